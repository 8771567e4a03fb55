"""How evenly a run used its samples: from how often each was selected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysel.errors import DataError

Counts = npt.NDArray[np.integer]


def gini(selected: Counts) -> float:
    """The Gini coefficient of how often each sample was selected: 0 when equally often, near 1 when few took all.

    selected: (n,), whole numbers from 0 up. 0 also when nothing was selected. DataError for other arrays.
    """
    counts, total = _counts(selected)
    if total == 0:
        return 0.0
    n, ranks = len(counts), np.arange(1, len(counts) + 1, dtype=np.float64)
    return max(0.0, float(2 * (ranks @ np.sort(counts)) / (n * total) - (n + 1) / n))


def total_variation(selected: Counts) -> float:
    """Half the sum of ``|selected / total - 1 / n|``, in [0, 1]: how far the samples used are from a uniform draw.

    With gradients of norm at most G, the expected gradient over what was used lies within 2 G of this from full
    data's. selected: as in :func:`gini`.
    """
    counts, total = _counts(selected)
    return 0.0 if total == 0 else float(np.abs(counts / total - 1 / len(counts)).sum() / 2)


def _counts(selected: Counts) -> tuple[npt.NDArray[np.float64], float]:
    counts = np.asarray(selected)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or len(counts) == 0 or int(counts.min()) < 0:
        raise DataError(
            f"Usage is one whole number from 0 up a sample, got {counts.dtype}{list(counts.shape)}."
        )
    return counts.astype(np.float64), float(counts.sum(dtype=np.float64))
