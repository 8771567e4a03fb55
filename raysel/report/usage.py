"""How a run used its samples: how often it selected each, how evenly, and when it first saw rare factors."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysel.dynamic.plan import Policy
from raysel.dynamic.state import SampleState
from raysel.errors import DataError

Counts = npt.NDArray[np.integer]
_PIXELS = 96  # of an image that the report shows: longest side


@dataclass(frozen=True, eq=False)
class Course:
    """How often samples were selected in a run, and the units that were seen.

    Attributes
    ----------
    selected : array of int32, shape (n,)
        How often each sample was selected.
    seen : list of float
        After every epoch, the share of the units seen on a sample so far.
    """

    selected: npt.NDArray[np.int32]
    seen: list[float]


def replay(
    policy: Policy,
    n: int,
    num_epochs: int,
    seed: int,
    having: tuple[npt.NDArray[np.int64], npt.NDArray[np.integer]],
) -> Course:
    """Return how often a policy selects each sample in a run, for a policy whose plans do not depend on losses.

    ``having`` has slots and units, a pair for every slot that has the unit.
    """
    state, chosen = SampleState.empty(n), np.zeros(n, np.bool_)
    slots, units = having
    _, unit = np.unique(units, return_inverse=True)
    seen, shares = np.zeros(int(unit.max(initial=-1)) + 1, np.bool_), []
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    for epoch in range(num_epochs):
        plan = policy.plan(state, epoch=epoch, num_epochs=num_epochs, seed=seed)
        state = policy.update(state, plan, *nothing)
        chosen[plan.slots] = True  # now or before
        seen[unit[chosen[slots]]] = True
        shares.append(float(seen.mean()) if len(seen) else 1.0)
    return Course(state.selected, shares)


def times(selected: Counts) -> tuple[tuple[int, int], ...]:
    """Return pairs (times selected, number of samples), ascending, for every number of times that occurs."""
    found, samples = np.unique(selected, return_counts=True)
    return tuple((int(often), int(count)) for often, count in zip(found, samples, strict=True))


def images(values: Iterable[npt.NDArray[Any]]) -> list[str] | None:
    """Return samples as small PNG files in base64, or None if their shape is not that of grey or RGB images.

    Numbers that are not uint8 are scaled, the smallest of an image to black and its largest to white.
    """
    files = [_image(value) for value in values]
    return None if None in files else [file for file in files if file is not None]


def _image(image: npt.NDArray[Any]) -> str | None:
    from PIL import Image

    if image.ndim == 2:
        image = image[..., None]
    elif image.ndim == 3 and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.ndim != 3 or image.shape[2] not in (1, 3) or min(image.shape[:2]) < 4:
        return None
    if image.dtype != np.uint8:
        image = image.astype(np.float64)
        span = float(np.ptp(image))
        image = (255 * (image - image.min()) / span if span > 0 else 0 * image).astype(np.uint8)
    shown = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    shown.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def gini(selected: Counts) -> float:
    """Return the Gini coefficient of how often each sample was selected.

    It is 0 if all were selected equally often or none was, and near 1 if few took all.

    Parameters
    ----------
    selected : array of int, shape (n,)
        Whole numbers from 0 up.

    Returns
    -------
    float
        The coefficient, in [0, 1).

    Raises
    ------
    DataError
        For other arrays.
    """
    counts, total = _counts(selected)
    if total == 0:
        return 0.0
    n, ranks = len(counts), np.arange(1, len(counts) + 1, dtype=np.float64)
    return max(0.0, float(2 * (ranks @ np.sort(counts)) / (n * total) - (n + 1) / n))


def total_variation(selected: Counts) -> float:
    """Return half the sum of ``|selected / total - 1 / n|``, in [0, 1]: the distance from a uniform draw.

    If no gradient is longer than G, the mean gradient over the samples used differs from that over all samples by at
    most 2 G times this value. ``selected`` is as in :func:`gini`.
    """
    counts, total = _counts(selected)
    return 0.0 if total == 0 else float(np.abs(counts / total - 1 / len(counts)).sum() / 2)


def _counts(selected: Counts) -> tuple[npt.NDArray[np.float64], float]:
    counts = np.asarray(selected)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or len(counts) == 0 or int(counts.min()) < 0:
        raise DataError(
            "The argument 'selected' must be a one-dimensional array of integers of at least 0, got "
            f"{counts.dtype}{list(counts.shape)}."
        )
    return counts.astype(np.float64), float(counts.sum(dtype=np.float64))
