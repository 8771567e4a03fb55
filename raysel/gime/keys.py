"""Distinct keys with exact aggregates; beyond ``KEYS``, those with the smallest hashes and a sketch.

Bottom-k: Cohen & Kaplan, 2007. Distinct counts: Bar-Yossef et al., 2002. The sketch of counts is a tug-of-war
(AMS: Alon, Matias & Szegedy, 1996; by buckets: Thorup & Zhang, 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raysel.core.sums import exact_sum
from raysel.gime.columns import Array, Hashes
from raysel.gime.estimates import SIGMAS, Estimate, exact
from raysel.gime.grouped import Codes, Grouped, order_of, sizes_of, sorted_by, starts_of

KEYS = 2048  # distinct keys a group holds exactly; beyond, the sample a bottom-k sketch keeps
TUG_ROWS, TUG_WIDTH = 3, 2048
LARGE = 0.05  # with a key of this share, a sum depends on whether the sample has such keys
_UNIT, _ALL = 2.0**64, np.uint64(2**64 - 1)
_FOLD: dict[str, tuple[Any, Any]] = {
    "count": (np.add, np.int64),
    "first": (np.minimum, np.int64),
    "last": (np.maximum, np.int64),
    "size": (np.maximum, np.float64),
}


@dataclass(frozen=True, eq=False)
class Keys(Grouped):
    """Distinct keys of G groups, ``sizes`` (int64[G]) of each: ``hash`` uint64, ascending within its group.

    Attributes
    ----------
    columns : dict of str to array
        Exact aggregates of each key: ``count`` (sum), ``first``, ``last`` (least and greatest int64),
        ``size`` (greatest float64).
    cut : array of bool, shape (G,)
        True if there were more than ``KEYS`` keys.
    tug : array of int64, shape (cut groups, 3 * 2048), or None
        The sketch of the counts of all keys, in the order of the groups; None without a count.
    """

    hash: Hashes
    columns: dict[str, Array]
    cut: npt.NDArray[np.bool_]
    tug: npt.NDArray[np.int64] | None = None

    def of(self, group: int) -> Sample:
        """Return the keys of one group as a sample."""
        here, tug = self.entries(group), None
        if self.tug is not None and self.cut[group]:
            tug = self.tug[int(self.cut[:group].sum())]
        columns = {name: values[here] for name, values in self.columns.items()}
        return Sample(self.hash[here], columns, bool(self.cut[group]), tug)

    def alone(self, group: int) -> Keys:
        """Return the keys of one group as if it were the only one."""
        one, sample = slice(group, group + 1), self.of(group)
        return Keys(
            self.sizes[one],
            sample.hash,
            sample.columns,
            self.cut[one],
            None if sample.tug is None else sample.tug[None],
        )


def gather_keys(group: Codes | None, hashes: Hashes, groups: int, limit: int | None, **columns: Any) -> Keys:
    """Return the keys of rows from their groups (None if all are in one), hashes and what to aggregate.

    ``count`` is 1, or the rows of each.
    """
    if limit is None:
        return _fold(group, hashes, columns, groups)
    bound = _bounds(group, len(hashes), groups, limit)
    keys = _fold(group, hashes, columns, groups, _below(group, hashes, bound))
    short = (bound < _ALL) & (keys.sizes <= limit)
    if short.any():  # then keys above the bound count, too: all rows of these groups once more
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
    """Return for each group a hash below which more than ``limit`` keys are expected if few repeat.

    If many repeat, filtering by it finds too few keys, and its work is wasted.
    """
    each = np.array([rows]) if group is None else np.bincount(group, minlength=groups)
    share = 4 * limit / np.maximum(each, 1)
    return np.where(share < 0.5, (np.minimum(share, 0.5) * _UNIT).astype(np.uint64), _ALL)


def _below(group: Codes | None, hashes: Hashes, bound: Hashes) -> Array | None:
    """Return the rows whose hash is not above its group's bound; None for all."""
    if (bound == _ALL).all():
        return None
    return np.flatnonzero(hashes <= (bound[0] if group is None else bound[group]))


def _fold(
    group: Codes | None, hashes: Hashes, columns: dict[str, Any], groups: int, rows: Array | None = None
) -> Keys:
    """Return the distinct keys of the rows, or of the given rows, all of them."""
    if rows is not None:
        hashes, group = hashes[rows], None if group is None else group[rows]
        columns = {name: v if isinstance(v, int) else v[rows] for name, v in columns.items()}
    none = np.zeros(groups, bool)
    if not len(hashes):
        empty = {name: np.empty(0, _FOLD[name][1]) for name in columns}
        return Keys(np.zeros(groups, np.int64), hashes, empty, none)
    if all(isinstance(v, int) for v in columns.values()):  # nothing to bring along
        group, hashes = (None, np.sort(hashes)) if group is None else sorted_by(group, hashes)
        starts = starts_of(hashes, group)
        counts = {name: np.diff(np.append(starts, len(hashes))) for name in columns}
        return Keys(sizes_of(group, starts, groups), hashes[starts], counts, none)
    order = np.argsort(hashes) if group is None else order_of(group, hashes)
    hashes, group = hashes[order], None if group is None else group[order]
    starts = starts_of(hashes, group)
    folded = {
        name: np.diff(np.append(starts, len(hashes)))
        if isinstance(v, int)
        else _FOLD[name][0].reduceat(v[order], starts)
        for name, v in columns.items()
    }
    return Keys(sizes_of(group, starts, groups), hashes[starts], folded, none)


def _least(keys: Keys, limit: int) -> Keys:
    """Return at most ``limit`` keys per group, those with the smallest hashes."""
    kept = np.arange(len(keys.hash)) - np.repeat(keys.ends - keys.sizes, keys.sizes) < limit
    columns = {name: values[kept] for name, values in keys.columns.items()}
    return replace(keys, sizes=np.minimum(keys.sizes, limit), hash=keys.hash[kept], columns=columns)


def merge_keys(one: Keys, other: Keys, limit: int) -> Keys:
    """Return the keys of both, over the same groups.

    A key among the smallest of all was kept by every part that has it.
    """
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
    """Return the sketch of counts (None: one each), int64 (G, 3 * 2048): a sum over rows or keys alike.

    Sign and bucket are 12 of the hash's lower digits for each of three; what is sampled depends on the upper
    ones.
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
        """The share of all keys that a cut sample has before its last one, from the last one's hash."""
        return (float(self.hash[-1]) + 1.0) / _UNIT if self.cut else 1.0

    def distinct(self) -> Estimate:
        """Return the number of keys: relative standard error 1 / sqrt(KEYS - 2)."""
        return self.total(np.ones(len(self.hash)))

    def total(self, values: Array) -> Estimate:
        """Return the sum of a figure over all keys, from its value for the kept keys (Horvitz-Thompson).

        The bound does not cover a few keys of very large values if the sample has none of them.
        """
        if not self.cut:
            return exact(exact_sum(values))
        inside, share = values[:-1].astype(np.float64), self.share
        value = exact_sum(inside) / share
        with np.errstate(over="ignore"):
            error = SIGMAS * math.sqrt((1.0 - share) * exact_sum(inside * inside)) / share
        held = exact_sum(values) if (values >= 0).all() else -math.inf
        return Estimate(max(value, held), max(value - error, held), max(value + error, held))

    def squares(self) -> Estimate:
        """Return the sum of squared counts, by AMS if cut.

        Its standard error is sqrt(2 / 2048) of it for each of three sketches.
        """
        counts = self.columns["count"]
        if self.tug is None:
            return exact(_sum_of_products(counts, counts))
        found = [_sum_of_products(row, row) for row in self.tug.reshape(TUG_ROWS, TUG_WIDTH)]
        value = float(sorted(found)[TUG_ROWS // 2])
        error = SIGMAS * math.sqrt(2.0 / TUG_WIDTH) * value
        held = float(_sum_of_products(counts, counts))
        return Estimate(max(value, held), max(value - error, held), max(value + error, held))

    def uneven(self, rows: int) -> bool:
        """Return whether a few keys may have a large part of the counts, which sum to ``rows``.

        A sum over a sample of keys then depends on whether it has them. The root of the sum of squares is at
        least the largest count.
        """
        return self.cut and self.tug is not None and math.sqrt(self.squares().value) > LARGE * rows

    def entropy(self, rows: int) -> Estimate:
        """Return the Shannon entropy in bits of the counts, which sum to ``rows``.

        If cut, it lies between the collision entropy (AMS) and the logarithm of the number of keys, and the
        estimate from the kept keys is limited to that interval.
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


def _sum_of_products(one: Array, other: Array) -> int:
    """Return the sum of products, in Python's integers if int64 would overflow."""
    if not len(one):
        return 0
    if float(np.abs(one).max()) * float(np.abs(other).max()) * len(one) < 2.0**62:
        return int(np.dot(one, other))
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
