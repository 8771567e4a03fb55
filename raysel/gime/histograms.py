"""Histograms of integers: exact up to ``BINS`` different ones, then in dyadic bins, absolute or relative.

Bins are as coarse as needed. The relative ones are those of DDSketch (Masson, Rim & Lee, 2019) with integer
edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from raysel.gime.columns import Array
from raysel.gime.estimates import Estimate, exact
from raysel.gime.grouped import Codes, Grouped, order_of, sizes_of, sorted_by, starts_of

BINS = 2048  # different integers a histogram holds exactly; beyond, its bins
_TABLE_BITS = 17  # bins that a table counts, 2^17,
_TABLE_DIGITS = 13  # or relative ones of so many binary digits, 2^12 a power of two


@dataclass(frozen=True, eq=False)
class Histogram(Grouped):
    """Counts of int64 values of G groups by bins: ``sizes`` (int64[G]), lower ``edge`` ascending.

    Attributes
    ----------
    level : array of int64, shape (G,)
        0 if exact. The level of a group is the least with at most ``BINS`` bins, which does not depend on the
        order of merging.
    relative : bool
        Whether bins keep the first 63 - level binary digits of values (at least 0), so that a bin is narrower
        than 2^(level - 62) of its edge. Otherwise bins are 2^level wide.
    """

    edge: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    relative: bool

    def of(self, group: int) -> Histogram:
        """Return the histogram of one group."""
        here, one = self.entries(group), slice(group, group + 1)
        return Histogram(self.sizes[one], self.edge[here], self.count[here], self.level[one], self.relative)

    def widths(self) -> npt.NDArray[np.int64]:
        """Return the width of each bin; 1 if values are exact."""
        return np.int64(1) << _shift(self.edge, self.level[self.group], self.relative)

    def quantile(self, share: float) -> Estimate:
        """Return the least value with at least ``share`` of all at or below it.

        The middle of its bin. For one group.
        """
        total = int(self.count.sum())
        rank = max(math.ceil(Fraction(share) * total), 1)
        at = int(np.searchsorted(np.cumsum(self.count), rank))
        low, width = int(self.edge[at]), int(self.widths()[at])
        return Estimate(low + (width - 1) / 2, low, low + width - 1)


def _shift(values: Array, level: Array, relative: bool) -> npt.NDArray[np.int64]:
    if not relative:
        return level
    return np.maximum(_bit_length(values.view(np.uint64)) - (63 - level), 0)


def _bit_length(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    high = (values >> np.uint64(32)).astype(np.float64)
    low = (values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1]).astype(np.int64)


def histogram(group: Codes | None, values: npt.NDArray[np.int64], groups: int, relative: bool) -> Histogram:
    """Return the histogram of rows; values of a relative one must not be negative."""
    if group is None and len(values) > 4 * BINS and (found := _counted(values, relative)) is not None:
        return _coarsen(found)
    group, ordered = (None, np.sort(values)) if group is None else sorted_by(group, values)
    starts = starts_of(ordered, group)
    counts = np.diff(np.append(starts, len(ordered)))
    sizes = sizes_of(group, starts, groups)
    return _coarsen(Histogram(sizes, ordered[starts], counts, np.zeros(groups, np.int64), relative))


def _counted(values: npt.NDArray[np.int64], relative: bool) -> Histogram | None:
    """Return the histogram of one group by a table of bins; None if a finer one may fit."""
    low, high = int(values.min()), int(values.max())
    if relative:
        level = 63 - _TABLE_DIGITS
        if high >= 2**53:  # what a float has no digits for lies below those seen
            values = np.where(values >= 2**53, values & -2048, values)
        drop = 53 - _TABLE_DIGITS
        first = 1022 << (_TABLE_DIGITS - 1)  # the cells before those of 1, of which one is for 0
        cells = np.maximum((values.astype(np.float64).view(np.int64) >> drop) - first, 0)
        counts = np.bincount(cells)
        used = np.flatnonzero(counts)
        edges = np.where(used > 0, (used + first) << drop, 0).view(np.float64).astype(np.int64)
    else:
        level = max((high - low).bit_length() - _TABLE_BITS, 0)
        counts = np.bincount((values >> level) - (low >> level))
        used = np.flatnonzero(counts)
        edges = (used + (low >> level)) << level
    if level and len(used) <= BINS:
        return None
    return Histogram(np.array([len(used)]), edges, counts[used], np.array([level]), relative)


def _binned(group: Codes, values: Array, counts: Array, level: Array, relative: bool) -> Histogram:
    if not len(values):
        return Histogram(np.zeros(len(level), np.int64), values[:0], counts[:0], level, relative)
    shift = _shift(values, level[group], relative)
    edges = (values >> shift) << shift
    order = order_of(group, edges)
    edges, group = edges[order], group[order]
    starts = starts_of(edges, group)
    sizes = np.bincount(group[starts], minlength=len(level))
    return Histogram(sizes, edges[starts], np.add.reduceat(counts[order], starts), level, relative)


def _coarsen(found: Histogram) -> Histogram:
    over = np.flatnonzero(found.sizes > BINS)
    if not len(over):
        return found
    level = found.level.copy()
    for group in over:
        edges = found.of(int(group)).edge.view(np.uint64)
        differ = _bit_length(edges[1:] ^ edges[:-1])  # neighbours share a bin from this level on
        if found.relative:
            differ = 63 - (_bit_length(edges[1:]) - differ)
        apart = len(differ) - np.cumsum(np.bincount(differ, minlength=65))  # neighbours apart at each level
        level[group] = max(int(np.flatnonzero(apart + 1 <= BINS)[0]), int(level[group]))
    return _binned(found.group, found.edge, found.count, level, found.relative)


def merge_histograms(one: Histogram, other: Histogram) -> Histogram:
    """Return the histograms of the rows of both, over the same groups."""
    return _coarsen(
        _binned(
            np.concatenate([one.group, other.group]),
            np.concatenate([one.edge, other.edge]),
            np.concatenate([one.count, other.count]),
            np.maximum(one.level, other.level),
            one.relative,
        )
    )


def distribution_distance(one: Histogram, other: Histogram) -> Estimate:
    """Return the Kolmogorov-Smirnov distance of two absolute histograms of one group each."""
    level = np.maximum(one.level, other.level)
    parts = [_binned(h.group, h.edge, h.count, level, False) for h in (one, other)]
    edges = np.sort(np.concatenate([part.edge for part in parts]))
    edges = edges[starts_of(edges)]
    mass = np.zeros((2, len(edges)))
    for row, part in zip(mass, parts, strict=True):
        row[np.searchsorted(edges, part.edge)] = part.count / part.count.sum()
    value = float(np.abs(np.cumsum(mass[0]) - np.cumsum(mass[1])).max())
    if not level[0]:
        return exact(min(value, 1.0))
    return Estimate(min(value, 1.0), value, min(value + float(mass.max()), 1.0))
