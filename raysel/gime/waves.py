"""Sums of random Fourier features in integers, for the distance of two sets (Rahimi & Recht, 2007)."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from raysel.core.hashing import GOLDEN, mix
from raysel.gime.columns import Array
from raysel.gime.estimates import SIGMAS, Estimate
from raysel.gime.grouped import Codes, by_group, starts_of

WAVES = 64  # random frequencies of the kernel
_TURN, _STEPS = 32, 10  # a turn is 2^32, seen as 2^10 steps
_HEIGHT = 15  # a wave is 2^15 high, so that
_TILE, _HALF = 512, 26  # its sum over a tile stays below 2^26, and two of these fit in a float
_CLIP, _DIGITS = 64.0, 12  # coordinates beyond 64 standard deviations are cut, and have 12 binary places


@lru_cache(maxsize=8)
def _frequencies(width: int) -> npt.NDArray[np.float64]:
    """Return frequencies of the kernel exp(-|x - y|^2 / (2 width)), alternating, as integers of 2^-20."""
    draws = mix(np.arange(1, width * WAVES + 1, dtype=np.uint64) * GOLDEN)
    inverse = NormalDist().inv_cdf
    normal = np.array([inverse(u) for u in ((draws >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53])
    turns = normal / (2 * math.pi * math.sqrt(width))
    return np.rint(turns.reshape(width, WAVES) * 2.0 ** (_TURN - _DIGITS))


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.float64]:
    """Return cos + 1 in the upper digits and sin + 1 in the lower ones: one look-up and one sum for both."""
    angle = np.arange(1 << _STEPS) * (2 * math.pi / (1 << _STEPS))
    cos, sin = (np.rint((wave(angle) + 1) * (1 << _HEIGHT)) for wave in (np.cos, np.sin))
    return cos * 2.0**_HALF + sin


def waves(group: Codes | None, points: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.int64]:
    """Return sums of cos + 1 and sin + 1 of each frequency over the rows of ``points``: int64 (G, 2 * WAVES).

    ``points`` (n, d) must be finite. Coordinates and frequencies are rounded to so few binary places that
    their product is exact in float64 in any order of adding: the sums are the same whatever computes them.
    """
    frequencies = _frequencies(points.shape[1]) * 2.0 ** (_STEPS - _TURN)
    table, nudge = (
        _table(),
        1.5 * 2.0**52,
    )  # adding it leaves an integer, the nearest step, in the float's lower digits
    total = np.zeros((groups, 2 * WAVES), np.int64)
    phase, looked_up = np.empty((2, _TILE, WAVES))
    step = np.empty((_TILE, WAVES), np.int64)
    if group is not None:  # few groups a tile
        order = by_group(group)
        group, points = group[order], points[order]
    for start in range(0, len(points), _TILE):
        tile = np.rint(np.clip(points[start : start + _TILE], -_CLIP, _CLIP) * 2.0**_DIGITS)
        here = slice(len(tile))
        np.add(np.matmul(tile, frequencies, out=phase[here]), nudge, out=phase[here])
        np.bitwise_and(phase.view(np.int64)[here], (1 << _STEPS) - 1, out=step[here])
        seen = table.take(step[here], out=looked_up[here], mode="clip")
        if group is None:
            sums, codes = (np.ones(len(tile)) @ seen)[None], np.zeros(1, np.int64)
        else:
            codes = group[start : start + _TILE]
            starts = starts_of(codes)
            sums, codes = np.add.reduceat(seen, starts, axis=0), codes[starts]
        whole = sums.astype(np.int64)
        total[codes, :WAVES] += whole >> _HALF
        total[codes, WAVES:] += whole & ((1 << _HALF) - 1)
    return total


def kernel_distance(one: Array, rows_one: int, other: Array, rows_other: int) -> Estimate:
    """Return the MMD of two sets from their :func:`waves`: the root of mean |difference of means|^2."""
    gap = (one / rows_one - other / rows_other) / (1 << _HEIGHT)
    each = gap[:WAVES] ** 2 + gap[WAVES:] ** 2
    value, error = float(each.mean()), SIGMAS * float(each.std(ddof=1)) / math.sqrt(WAVES)
    found = Estimate(value, max(value - error, 0.0), value + error).through(math.sqrt)
    return found.clip(0.0, math.sqrt(2.0))  # the kernel is never negative; its 64 cosines may be
