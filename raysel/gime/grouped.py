"""Entries grouped one group after another, and rows brought into that order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from raysel.gime.columns import Array

Codes = npt.NDArray[np.int64]

_FEW = 64  # average rows per group below which a call per group costs more than it saves


@dataclass(frozen=True, eq=False)
class Grouped:
    """Entries of G groups, one group after another: ``sizes`` (int64[G]) of each."""

    sizes: npt.NDArray[np.int64]

    @property
    def group(self) -> Codes:
        """The group of each entry."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """The end of each group."""
        return np.cumsum(self.sizes)

    def entries(self, group: int) -> slice:
        """Return where the entries of one group are."""
        stop = int(self.ends[group])
        return slice(stop - int(self.sizes[group]), stop)


def starts_of(ordered: Array, group: Array | None = None) -> Array:
    """Return where another value, or another group, begins in ordered rows."""
    if not len(ordered):
        return np.empty(0, np.int64)
    new = ordered[1:] != ordered[:-1]
    if group is not None:
        new |= group[1:] != group[:-1]
    return np.concatenate([[0], np.flatnonzero(new) + 1])


def sizes_of(group: Codes | None, starts: Array, groups: int) -> npt.NDArray[np.int64]:
    """Return the entries of each group (None if all are in one) whose first rows are at ``starts``."""
    return np.array([len(starts)]) if group is None else np.bincount(group[starts], minlength=groups)


def by_group(group: Codes) -> Array:
    """Return the order that brings each group's rows together, and keeps their order within it."""
    small = group.astype(np.uint16) if len(group) and group.max() < 2**16 else group  # sorted by digits
    return np.argsort(small, kind="stable")


def order_of(group: Codes, values: Array) -> Array:
    """Return the order by group and value."""
    order = np.argsort(values)  # equal values in any order: what is folded does not see it
    if len(group) and group[0] == group[-1] and (group == group[0]).all():
        return order
    return order[by_group(group[order])]


def sorted_by(group: Codes, values: Array) -> tuple[Codes, Array]:
    """Return groups and values in the order of both.

    Faster than :func:`order_of` if groups have many rows.
    """
    order = by_group(group)
    group, values = group[order], values[order]
    ends = [*(starts_of(group)[1:]).tolist(), len(group)]
    if len(ends) * _FEW > len(values):
        order = order_of(group, values)
        return group, values[order]
    start = 0
    for end in ends:
        values[start:end].sort()
        start = end
    return group, values
