"""Entries that stand group by group, and rows brought into that order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from raysel.gime.columns import Array

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Grouped:
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


def starts_of(ordered: Array, group: Array | None = None) -> Array:
    if not len(ordered):
        return np.empty(0, np.int64)
    new = ordered[1:] != ordered[:-1]
    if group is not None:
        new |= group[1:] != group[:-1]
    return np.concatenate([[0], np.flatnonzero(new) + 1])


def order_of(group: Codes, values: Array) -> Array:
    order = np.argsort(values)  # equal keys in any order: what is folded does not see it
    if len(group) and group[0] == group[-1] and (group == group[0]).all():
        return order
    small = group.astype(np.uint16) if group.max() < 2**16 else group  # sorted by digits
    return order[np.argsort(small[order], kind="stable")]
