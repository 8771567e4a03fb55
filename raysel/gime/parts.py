"""Accumulators that stay small for any number of rows, and do not depend on how rows were split or merged.

Everything is by group: rows have a ``group``, int64 codes 0..G-1, and entries are grouped one group after
another, ``sizes`` of them each. Every sum is of integers, so merging is associative and commutative to the
last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from raysel.gime.columns import Array
from raysel.gime.grouped import Codes
from raysel.gime.histograms import Histogram, merge_histograms
from raysel.gime.keys import KEYS, Keys, merge_keys

LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Parts:
    """The accumulators of G groups, by name.

    Attributes
    ----------
    counts : dict of str to array of int64, shape (G,)
        Added when merged.
    low, high : dict of str to array of int64, shape (G,)
        Least and greatest; MOST and LEAST if there is none.
    sums : dict of str to list of int
        G Python integers.
    waves : dict of str to array of int64, shape (G, 2 * WAVES)
        Added when merged.
    keys, histograms : dict
        See `raysel.gime.keys` and `raysel.gime.histograms`.
    """

    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    low: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    high: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, list[int]] = field(default_factory=dict)
    keys: dict[str, Keys] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    waves: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def spread(parts: Parts, place: Codes, groups: int) -> Parts:
    """Return the same accumulators over more groups: group g becomes ``place[g]``, which ascends."""

    def scatter(values: Array, fill: int) -> Array:
        wide = np.full((groups, *values.shape[1:]), fill, values.dtype)
        wide[place] = values
        return wide

    sums = {name: [0] * groups for name in parts.sums}
    for name, given in parts.sums.items():
        for at, total in zip(place, given, strict=True):
            sums[name][at] = total
    return Parts(
        {name: scatter(v, 0) for name, v in parts.counts.items()},
        {name: scatter(v, MOST) for name, v in parts.low.items()},
        {name: scatter(v, LEAST) for name, v in parts.high.items()},
        sums,
        {
            name: replace(k, sizes=scatter(k.sizes, 0), cut=scatter(k.cut, 0))
            for name, k in parts.keys.items()
        },
        {
            name: replace(h, sizes=scatter(h.sizes, 0), level=scatter(h.level, 0))
            for name, h in parts.histograms.items()
        },
        {name: scatter(v, 0) for name, v in parts.waves.items()},
    )


def merge_parts(one: Parts, other: Parts) -> Parts:
    """Return the accumulators of the rows of both, over the same groups."""
    return Parts(
        {name: v + other.counts[name] for name, v in one.counts.items()},
        {name: np.minimum(v, other.low[name]) for name, v in one.low.items()},
        {name: np.maximum(v, other.high[name]) for name, v in one.high.items()},
        {name: [a + b for a, b in zip(v, other.sums[name], strict=True)] for name, v in one.sums.items()},
        {name: merge_keys(v, other.keys[name], KEYS) for name, v in one.keys.items()},
        {name: merge_histograms(v, other.histograms[name]) for name, v in one.histograms.items()},
        {name: v + other.waves[name] for name, v in one.waves.items()},
    )
