"""What stays small however many rows there are, and does not depend on how they were split or merged.

Everything here is by group: rows come with their ``group``, int64 codes 0..G-1, and entries stand group by group, ``sizes``
of them each. Every sum is of integers, so merging is associative and commutative to the last bit.

- :class:`Keys`: distinct keys with exact aggregates; beyond ``KEYS`` the ones with the smallest hashes (bottom-k:
  Cohen & Kaplan 2007; distinct counts: Bar-Yossef et al. 2002), and a tug-of-war sketch of all counts (AMS: Alon,
  Matias & Szegedy 1996; by buckets: Thorup & Zhang 2004).
- :class:`Histogram`: integers, exact up to ``BINS`` different ones, then in dyadic bins as coarse as needed, absolute
  or relative (as DDSketch, Masson, Rim & Lee 2019, but with edges that are integers).
- :func:`exact_sums`: sums of floats without rounding.
- :func:`waves`: sums of random Fourier features (Rahimi & Recht 2007) in integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from raysel.gime.columns import Array, Hashes, mix

KEYS = 2048  # distinct keys a group holds exactly; beyond, the sample a bottom-k sketch keeps
TUG_ROWS, TUG_WIDTH = 3, 2048
BINS = 2048  # different integers a histogram holds exactly; beyond, its bins
WAVES = 64  # random frequencies of the kernel

SIGMAS = 3.0  # bounds of sampled figures are so many standard errors
LARGE = 0.05  # a key with so much of a sum makes it hang on whether the sample holds such keys
LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_UNIT, _ALL = 2.0**64, np.uint64(2**64 - 1)
_FOLD: dict[str, tuple[Any, Any]] = {
    "count": (np.add, np.int64),
    "first": (np.minimum, np.int64),
    "last": (np.maximum, np.int64),
    "size": (np.maximum, np.float64),
}

_TABLE_BITS = 17  # bins that a table counts, 2^17,
_TABLE_DIGITS = 13  # or relative ones of so many binary digits, 2^12 a power of two

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it is claimed to lie in; exact if the three are one."""

    value: float
    low: float
    high: float

    @property
    def bound(self) -> float:
        return max(self.high - self.value, self.value - self.low)

    def through(self, function: Callable[[float], float]) -> Estimate:
        """Of a monotone function."""
        ends = (function(self.low), function(self.high))
        return Estimate(function(self.value), min(ends), max(ends))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)

    def __truediv__(self, other: Estimate) -> Estimate:
        """Of figures that are not negative."""
        return Estimate(
            _ratio(self.value, other.value), _ratio(self.low, other.high), _ratio(self.high, other.low)
        )

    def clip(self, low: float, high: float) -> Estimate:
        return Estimate(*(min(max(end, low), high) for end in (self.value, self.low, self.high)))


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf


def exact(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))


# ---- distinct keys -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Entries of G groups, group by group: ``sizes`` (int64[G]) of each."""

    sizes: npt.NDArray[np.int64]

    @property
    def group(self) -> Codes:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.sizes)

    def entries(self, group: int) -> slice:
        """Where those of one group stand."""
        stop = int(self.ends[group])
        return slice(stop - int(self.sizes[group]), stop)


@dataclass(frozen=True, eq=False)
class Keys(_Grouped):
    """Distinct keys of G groups, ``sizes`` (int64[G]) of each: ``hash`` uint64, ascending within its group.

    columns: aggregates of each key, exact: ``count`` (sum), ``first``, ``last`` (least and greatest int64), ``size``
    (greatest float64). cut: bool[G], True where there were more than ``KEYS`` keys. tug: int64 (cut groups, 3 * 2048),
    the sketch of the counts of all keys, in the order of the groups; None without a count.
    """

    hash: Hashes
    columns: dict[str, Array]
    cut: npt.NDArray[np.bool_]
    tug: npt.NDArray[np.int64] | None = None

    def of(self, group: int) -> Sample:
        here, tug = self.entries(group), None
        if self.tug is not None and self.cut[group]:
            tug = self.tug[int(self.cut[:group].sum())]
        columns = {name: values[here] for name, values in self.columns.items()}
        return Sample(self.hash[here], columns, bool(self.cut[group]), tug)

    def alone(self, group: int) -> Keys:
        """The keys of one group, as of one that there is alone."""
        one, sample = slice(group, group + 1), self.of(group)
        return Keys(
            self.sizes[one],
            sample.hash,
            sample.columns,
            self.cut[one],
            None if sample.tug is None else sample.tug[None],
        )


def gather_keys(group: Codes | None, hashes: Hashes, groups: int, limit: int | None, **columns: Any) -> Keys:
    """The keys of rows: their groups (None = all in the one), hashes and what to aggregate (``count``: 1, or rows of each)."""
    if limit is None:
        return _fold(group, hashes, columns, groups)
    bound = _bounds(group, len(hashes), groups, limit)
    keys = _fold(group, hashes, columns, groups, _below(group, hashes, bound))
    short = (bound < _ALL) & (keys.sizes <= limit)
    if (
        short.any()
    ):  # so few keys are below the bound that those above it count: all rows of the group once more
        bound[short] = _ALL
        keys = _fold(group, hashes, columns, groups, _below(group, hashes, bound))
    cut = keys.sizes > limit
    if not cut.any():
        return keys
    tug = None
    if "count" in columns:
        counts, place = columns["count"], None
        if group is not None:
            picked = cut[group]
            place, hashes = (np.cumsum(cut) - 1)[group[picked]], hashes[picked]
            counts = counts if isinstance(counts, int) else counts[picked]
        tug = _tug(place, hashes, None if isinstance(counts, int) else counts, int(cut.sum()))
    return _least(replace(keys, cut=cut, tug=tug), limit)


def _bounds(group: Codes | None, rows: int, groups: int, limit: int) -> Hashes:
    """For each group a hash below which more than ``limit`` of its keys are to be expected if few of them repeat.

    Where they do repeat, that look was in vain; it costs less than a third of looking at all rows.
    """
    each = np.array([rows]) if group is None else np.bincount(group, minlength=groups)
    share = 4 * limit / np.maximum(each, 1)
    return np.where(share < 0.5, (np.minimum(share, 0.5) * _UNIT).astype(np.uint64), _ALL)


def _below(group: Codes | None, hashes: Hashes, bound: Hashes) -> Array | None:
    """The rows whose hash is not above its group's bound; None for all."""
    if (bound == _ALL).all():
        return None
    return np.flatnonzero(hashes <= (bound[0] if group is None else bound[group]))


def _starts(ordered: Array, group: Array | None = None) -> Array:
    if not len(ordered):
        return np.empty(0, np.int64)
    new = ordered[1:] != ordered[:-1]
    if group is not None:
        new |= group[1:] != group[:-1]
    return np.concatenate([[0], np.flatnonzero(new) + 1])


def _order(group: Codes, values: Array) -> Array:
    order = np.argsort(values)  # equal keys in any order: what is folded does not see it
    if len(group) and group[0] == group[-1] and (group == group[0]).all():
        return order
    small = group.astype(np.uint16) if group.max() < 2**16 else group  # sorted by digits
    return order[np.argsort(small[order], kind="stable")]


def _fold(
    group: Codes | None, hashes: Hashes, columns: dict[str, Any], groups: int, rows: Array | None = None
) -> Keys:
    """The distinct keys of the rows, or of those given, all of them."""
    if rows is not None:
        hashes, group = hashes[rows], None if group is None else group[rows]
        columns = {name: v if isinstance(v, int) else v[rows] for name, v in columns.items()}
    none = np.zeros(groups, bool)
    if not len(hashes):
        empty = {name: np.empty(0, _FOLD[name][1]) for name in columns}
        return Keys(np.zeros(groups, np.int64), hashes, empty, none)
    if group is None and all(isinstance(v, int) for v in columns.values()):  # nothing to bring along
        hashes = np.sort(hashes)
        starts = _starts(hashes)
        counts = {name: np.diff(np.append(starts, len(hashes))) for name in columns}
        return Keys(np.array([len(starts)]), hashes[starts], counts, none)
    order = np.argsort(hashes) if group is None else _order(group, hashes)
    hashes, group = hashes[order], None if group is None else group[order]
    starts = _starts(hashes, group)
    folded = {
        name: np.diff(np.append(starts, len(hashes)))
        if isinstance(v, int)
        else _FOLD[name][0].reduceat(v[order], starts)
        for name, v in columns.items()
    }
    sizes = np.array([len(starts)]) if group is None else np.bincount(group[starts], minlength=groups)
    return Keys(sizes, hashes[starts], folded, none)


def _least(keys: Keys, limit: int) -> Keys:
    """No more than ``limit`` keys a group, those with the smallest hashes."""
    kept = np.arange(len(keys.hash)) - np.repeat(keys.ends - keys.sizes, keys.sizes) < limit
    columns = {name: values[kept] for name, values in keys.columns.items()}
    return replace(keys, sizes=np.minimum(keys.sizes, limit), hash=keys.hash[kept], columns=columns)


def merge_keys(one: Keys, other: Keys, limit: int) -> Keys:
    """The keys of both, over the same groups. A key among the smallest of all was kept by every part that has it."""
    merged = _fold(
        np.concatenate([one.group, other.group]),
        np.concatenate([one.hash, other.hash]),
        {name: np.concatenate([one.columns[name], other.columns[name]]) for name in one.columns},
        len(one.sizes),
    )
    cut = one.cut | other.cut | (merged.sizes > limit)
    if not cut.any():
        return merged
    tug = None
    if "count" in one.columns:
        tug = np.stack([_all_counts(one, int(g)) + _all_counts(other, int(g)) for g in np.flatnonzero(cut)])
    return _least(replace(merged, cut=cut, tug=tug), limit)


def _all_counts(keys: Keys, group: int) -> npt.NDArray[np.int64]:
    sample = keys.of(group)
    return _tug(None, sample.hash, sample.columns["count"], 1)[0] if sample.tug is None else sample.tug


def _tug(group: Codes | None, hashes: Hashes, counts: Array | None, groups: int) -> npt.NDArray[np.int64]:
    """int64 (G, 3 * 2048): the sketch of the counts (None: one each), which is a sum over rows or over keys alike.

    Sign and bucket are 12 of the hash's lower digits for each of three; what is sampled hangs on the upper ones.
    """
    cells, rows = 2 * TUG_WIDTH, []
    for row in range(TUG_ROWS):
        place = ((hashes >> np.uint64(12 * row)) & np.uint64(cells - 1)).view(np.int64)
        if group is not None:
            place += group * cells
        found = np.bincount(place, counts, groups * cells).reshape(groups, 2, TUG_WIDTH)  # exact below 2^53
        rows.append(found[:, 1] - found[:, 0])
    return np.concatenate(rows, axis=1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Sample:
    """The keys of one group: all of them, or if ``cut`` those with the smallest hashes."""

    hash: Hashes
    columns: dict[str, Array]
    cut: bool
    tug: npt.NDArray[np.int64] | None = None

    @property
    def share(self) -> float:
        """The share of all keys that a cut sample holds before its last one, by the last one's hash."""
        return (float(self.hash[-1]) + 1.0) / _UNIT if self.cut else 1.0

    def distinct(self) -> Estimate:
        """Number of keys: relative standard error 1 / sqrt(KEYS - 2)."""
        return self.total(np.ones(len(self.hash)))

    def total(self, values: Array) -> Estimate:
        """Sum of a figure over all keys, from its value for the keys held (Horvitz-Thompson).

        The bound is blind to a few keys of very large values if the sample holds none of them.
        """
        if not self.cut:
            return exact(_fsum(values))
        inside, share = values[:-1].astype(np.float64), self.share
        value = _fsum(inside) / share
        with np.errstate(over="ignore"):
            error = SIGMAS * math.sqrt((1.0 - share) * _fsum(inside * inside)) / share
        held = _fsum(values) if (values >= 0).all() else -math.inf
        return Estimate(max(value, held), max(value - error, held), max(value + error, held))

    def squares(self) -> Estimate:
        """Sum of squared counts, by AMS where cut: standard error sqrt(2 / 2048) of it for each of three sketches."""
        counts = self.columns["count"]
        if self.tug is None:
            return exact(_sum_of_products(counts, counts))
        found = [_sum_of_products(row, row) for row in self.tug.reshape(TUG_ROWS, TUG_WIDTH)]
        value = float(sorted(found)[TUG_ROWS // 2])
        error = SIGMAS * math.sqrt(2.0 / TUG_WIDTH) * value
        held = float(_sum_of_products(counts, counts))
        return Estimate(max(value, held), max(value - error, held), max(value + error, held))

    def uneven(self, rows: int) -> bool:
        """Whether a few keys may have a large part of the counts, which sum to ``rows``, so that a sum over a sample of keys
        hangs on whether it holds them: the root of the sum of squares is at least the largest count."""
        return self.cut and self.tug is not None and math.sqrt(self.squares().value) > LARGE * rows

    def entropy(self, rows: int) -> Estimate:
        """Shannon entropy in bits of the counts, which sum to ``rows``.

        Cut, it lies between the collision entropy (AMS) and the logarithm of the number of keys; the estimate from the
        keys held is kept inside.
        """
        counts = self.columns["count"].astype(np.float64)
        if not rows:
            return exact(0.0)
        parts = self.total(counts * np.log2(counts))
        value = max(math.log2(rows) - parts.value / rows, 0.0)
        if not self.cut:
            return exact(value)
        high = min(math.log2(max(self.distinct().high, 1.0)), math.log2(rows))
        low = min(max(2 * math.log2(rows) - math.log2(self.squares().high), 0.0), high)
        return Estimate(min(max(value, low), high), low, high)


def _fsum(values: Array) -> float:
    """Rounded once; infinite beyond float64."""
    try:
        return math.fsum(values)
    except OverflowError:
        return as_float(sum(exact_sums(None, values, 1)))


def _sum_of_products(one: Array, other: Array) -> int:
    """In Python's integers where int64 would overflow."""
    if not len(one):
        return 0
    if float(np.abs(one).max()) * float(np.abs(other).max()) * len(one) < 2.0**62:
        return int(np.dot(one, other))
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


# ---- integers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Histogram(_Grouped):
    """Counts of int64 values of G groups by bins, ``sizes`` (int64[G]) of each: lower ``edge``, ascending in its group.

    level: int64[G]; 0 = exact. relative: bins keep the first 63 - level binary digits of values (at least 0), so a bin
    is narrower than 2^(level - 62) of its edge; else bins are 2^level wide. A group's level is the least with no more than
    ``BINS`` bins, which does not depend on the order of merging.
    """

    edge: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    level: npt.NDArray[np.int64]
    relative: bool

    def of(self, group: int) -> Histogram:
        here, one = self.entries(group), slice(group, group + 1)
        return Histogram(self.sizes[one], self.edge[here], self.count[here], self.level[one], self.relative)

    def widths(self) -> npt.NDArray[np.int64]:
        """Width of each bin; 1 where values are exact."""
        return np.int64(1) << _shift(self.edge, self.level[self.group], self.relative)

    def quantile(self, share: float) -> Estimate:
        """The least value with at least ``share`` of all at or below it; the middle of its bin. For one group."""
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
    """The histogram of rows; values of a relative one must not be negative."""
    level = np.zeros(groups, np.int64)
    if group is not None:
        return _coarsen(_binned(group, values, np.ones(len(values), np.int64), level, relative))
    if len(values) > 4 * BINS and (found := _counted(values, relative)) is not None:
        return _coarsen(found)
    ordered = np.sort(values)
    starts = _starts(ordered)
    counts = np.diff(np.append(starts, len(ordered)))
    return _coarsen(Histogram(np.array([len(starts)]), ordered[starts], counts, level, relative))


def _counted(values: npt.NDArray[np.int64], relative: bool) -> Histogram | None:
    """The histogram of one group at a level with a table's worth of bins; None if that may be coarser than need be."""
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
    order = _order(group, edges)
    edges, group = edges[order], group[order]
    starts = _starts(edges, group)
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
    """Of the rows of both, over the same groups."""
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
    """Kolmogorov-Smirnov distance of two absolute histograms of one group each: the largest gap of their shares."""
    level = np.maximum(one.level, other.level)
    parts = [_binned(h.group, h.edge, h.count, level, False) for h in (one, other)]
    edges = np.sort(np.concatenate([part.edge for part in parts]))
    edges = edges[_starts(edges)]
    mass = np.zeros((2, len(edges)))
    for row, part in zip(mass, parts, strict=True):
        row[np.searchsorted(edges, part.edge)] = part.count / part.count.sum()
    value = float(np.abs(np.cumsum(mass[0]) - np.cumsum(mass[1])).max())
    if not level[0]:
        return exact(min(value, 1.0))
    return Estimate(min(value, 1.0), value, min(value + float(mass.max()), 1.0))


# ---- sums of floats ----------------------------------------------------------------------------------------

_SCALE = 1130  # sums are integers in units of 2^-1130, below the least subnormal's last digit


def exact_sums(group: Codes | None, values: npt.NDArray[np.float64], groups: int) -> list[int]:
    """The sum of finite floats for each group without any rounding: Python integers, see :func:`as_float`.

    From each value its digits above a common place are cut off, which are few enough that floats add them exactly in any
    order, and again from what is left (AccSum: Rump, Ogita & Oishi 2008).
    """
    totals = [0] * groups
    huge = np.abs(values) >= 2.0**900  # whose place to cut at would overflow
    if huge.any():
        codes = None if group is None else group[huge]
        totals = [total << 200 for total in exact_sums(codes, np.ldexp(values[huge], -200), groups)]
        values = np.where(huge, 0.0, values)
    for start in range(0, len(values), 1 << 24):  # so many times 2^25 still fit the 53 digits
        rest = values[start : start + (1 << 24)]
        codes = None if group is None else group[start : start + (1 << 24)]
        while largest := float(max(rest.max(), -rest.min())):
            top = math.frexp(largest)[1]
            cutter = math.ldexp(1.5, top + 27)  # 1.5, so that no sum falls below a power of two
            upper = (rest + cutter) - cutter  # multiples of 2^(top - 25)
            sums = np.array([upper.sum()]) if codes is None else np.bincount(codes, upper, groups)
            for at in np.flatnonzero(sums):
                totals[at] += int(math.ldexp(sums[at], 25 - top)) << (top - 25 + _SCALE)
            rest = rest - upper
    return totals


def integer_sums(group: Codes | None, values: npt.NDArray[np.int64], groups: int) -> list[int]:
    """The sum of int64 for each group, beyond int64 too."""
    totals = [0] * groups
    for start in range(0, len(values), 1 << 20):
        piece = values[start : start + (1 << 20)]
        codes = None if group is None else group[start : start + (1 << 20)]
        for shift, digits in ((44, piece >> 44), (22, (piece >> 22) & (2**22 - 1)), (0, piece & (2**22 - 1))):
            if codes is None:
                totals[0] += int(digits.sum()) << shift
                continue
            sums = np.bincount(codes, digits.astype(np.float64), groups)
            for at in np.flatnonzero(sums):
                totals[at] += int(sums[at]) << shift
    return totals


def as_float(total: int, divisor: int = 1) -> float:
    """A sum of :func:`exact_sums` by ``divisor``, rounded once; infinite beyond float64."""
    try:
        return float(Fraction(total, divisor << _SCALE))
    except OverflowError:
        return math.inf if total > 0 else -math.inf


# ---- random Fourier features -------------------------------------------------------------------------------

_TURN, _STEPS = 32, 10  # a turn is 2^32, seen as 2^10 steps
_HEIGHT = 15  # a wave is 2^15 high, so that
_TILE, _HALF = 512, 26  # its sum over a tile stays below 2^26, and two of these fit in a float
_CLIP, _DIGITS = 64.0, 12  # coordinates beyond 64 standard deviations are cut, and have 12 binary places


@lru_cache(maxsize=8)
def _frequencies(width: int) -> npt.NDArray[np.float64]:
    """(width, WAVES): of the kernel exp(-|x - y|^2 / (2 width)), in turns, as integers of 2^-20."""
    draws = mix(np.arange(1, width * WAVES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    inverse = NormalDist().inv_cdf
    normal = np.array([inverse(u) for u in ((draws >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53])
    turns = normal / (2 * math.pi * math.sqrt(width))
    return np.rint(turns.reshape(width, WAVES) * 2.0 ** (_TURN - _DIGITS))


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.float64]:
    """cos + 1 in the upper digits and sin + 1 in the lower: one look, one sum for both."""
    angle = np.arange(1 << _STEPS) * (2 * math.pi / (1 << _STEPS))
    cos, sin = (np.rint((wave(angle) + 1) * (1 << _HEIGHT)) for wave in (np.cos, np.sin))
    return cos * 2.0**_HALF + sin


def waves(group: Codes | None, points: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.int64]:
    """Sums of cos + 1 and sin + 1 of each frequency over the rows of ``points`` (n, d): int64 (G, 2 * WAVES).

    Coordinates and frequencies are rounded to binary places so few that their product is exact in float64 in any order
    of adding: the sums are the same whatever computes them. DataError is the caller's for points that are not finite.
    """
    frequencies = _frequencies(points.shape[1]) * 2.0 ** (_STEPS - _TURN)
    table, nudge = (
        _table(),
        1.5 * 2.0**52,
    )  # adding it leaves an integer, the nearest step, in the float's lower digits
    total = np.zeros((groups, 2 * WAVES), np.int64)
    phase, looked_up = np.empty((2, _TILE, WAVES))
    step = np.empty((_TILE, WAVES), np.int64)
    for start in range(0, len(points), _TILE):
        tile = np.rint(np.clip(points[start : start + _TILE], -_CLIP, _CLIP) * 2.0**_DIGITS)
        here = slice(len(tile))
        np.add(np.matmul(tile, frequencies, out=phase[here]), nudge, out=phase[here])
        np.bitwise_and(phase.view(np.int64)[here], (1 << _STEPS) - 1, out=step[here])
        seen = table.take(step[here], out=looked_up[here], mode="clip")
        if group is None:
            sums, codes = (np.ones(len(tile)) @ seen)[None], np.zeros(1, np.int64)
        else:
            order = np.argsort(group[start : start + _TILE], kind="stable")
            codes = group[start : start + _TILE][order]
            starts = _starts(codes)
            sums, codes = np.add.reduceat(seen[order], starts, axis=0), codes[starts]
        whole = sums.astype(np.int64)
        total[codes, :WAVES] += whole >> _HALF
        total[codes, WAVES:] += whole & ((1 << _HALF) - 1)
    return total


def kernel_distance(one: Array, rows_one: int, other: Array, rows_other: int) -> Estimate:
    """MMD of two sets from their :func:`waves`: the root of the mean over frequencies of |difference of means|^2."""
    gap = (one / rows_one - other / rows_other) / (1 << _HEIGHT)
    each = gap[:WAVES] ** 2 + gap[WAVES:] ** 2
    value, error = float(each.mean()), SIGMAS * float(each.std(ddof=1)) / math.sqrt(WAVES)
    found = Estimate(value, max(value - error, 0.0), value + error).through(math.sqrt)
    return found.clip(0.0, math.sqrt(2.0))  # the kernel is never negative; its 64 cosines may be


# ---- over the same groups ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything a state holds of G groups, by name. counts: int64[G], added. low, high: int64[G], least and greatest,
    MOST and LEAST where there is none. sums: G Python integers. waves: int64 (G, 2 * WAVES), added."""

    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    low: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    high: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, list[int]] = field(default_factory=dict)
    keys: dict[str, Keys] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    waves: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def spread(parts: Parts, place: Codes, groups: int) -> Parts:
    """The same over more groups: group g becomes ``place[g]``, which ascends."""

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
    """Of the rows of both, over the same groups."""
    return Parts(
        {name: v + other.counts[name] for name, v in one.counts.items()},
        {name: np.minimum(v, other.low[name]) for name, v in one.low.items()},
        {name: np.maximum(v, other.high[name]) for name, v in one.high.items()},
        {name: [a + b for a, b in zip(v, other.sums[name], strict=True)] for name, v in one.sums.items()},
        {name: merge_keys(v, other.keys[name], KEYS) for name, v in one.keys.items()},
        {name: merge_histograms(v, other.histograms[name]) for name, v in one.histograms.items()},
        {name: v + other.waves[name] for name, v in one.waves.items()},
    )
