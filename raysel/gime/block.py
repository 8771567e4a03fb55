"""Blocks of rows, from which metrics collect, and accumulators of a group, from which they report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysel.core.arrow import plain_column, plain_values
from raysel.errors import DataError
from raysel.gime.binding import Binding
from raysel.gime.columns import (
    NOTHING,
    Array,
    Coded,
    Hashes,
    coded,
    combine,
    hash_rows,
    kind,
    numbers,
    times,
    valid,
)
from raysel.gime.estimates import Estimate, exact
from raysel.gime.grouped import Codes
from raysel.gime.histograms import Histogram, histogram
from raysel.gime.keys import KEYS, Sample, gather_keys
from raysel.gime.parts import LEAST, MOST, Parts

Mask = npt.NDArray[np.bool_]
Scale = Any  # Target.scale, or None


class Figure(NamedTuple):
    """One statistic of a metric: a value, with a remark if there is one, or null (None) with the reason."""

    statistic: str
    value: Estimate | None
    unit: str
    reason: str | None = None


@dataclass(eq=False)
class Block:
    """Rows, their groups (int64 codes, None if all are in one), and what metrics have collected.

    ``scale`` is that of the target's columns, None without a target. ``first_row`` is the table's first row,
    for errors.
    """

    table: pa.Table
    binding: Binding
    group: Codes | None
    groups: int
    scale: Scale = None
    first_row: int = 0
    parts: Parts = field(default_factory=Parts)
    kinds: dict[str, str] = field(default_factory=dict)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = [plain_column(column) for column in self.table.columns]
        self.table = pa.Table.from_arrays(plain, self.table.column_names)
        for name in self.binding.columns:
            self.kinds[name] = kind(self.table.schema.field(name).type, name)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def coded(self, name: str) -> Coded | None:
        """Return the column as codes of a few values, if it has few."""
        return self._once(("coded", name), lambda: coded(self.table[name], name))

    def hash(self, name: str) -> Hashes:
        """Return the hash of each row of a column."""
        few = self.coded(name)
        return self._once(
            ("hash", name), lambda: hash_rows(self.table[name], name) if few is None else few.rows
        )

    def valid(self, name: str) -> Mask:
        """Return True where the column has a value."""
        return self._once(("valid", name), lambda: _valid(self.table[name]))

    def numbers(self, name: str) -> Array:
        """Return the numbers of a column."""
        return self._once(("numbers", name), lambda: numbers(self.table[name], name))

    def time(self, name: str) -> tuple[npt.NDArray[np.int64], Mask]:
        """Return nanoseconds, and where there are any."""
        found = self._once(("time", name), lambda: times(self.table[name], name, self.first_row))
        if self.kinds[name] != NOTHING:
            self.kinds[name] = found[2]
        return found[0], found[1]

    def key(self, names: Sequence[str]) -> tuple[Hashes, Mask]:
        """Return one hash per row of several columns, and where all of them have a value."""
        return self._once(
            ("key", tuple(names)),
            lambda: (
                combine([self.hash(name) for name in names], self.table.num_rows),
                np.logical_and.reduce([self.valid(name) for name in names]),
            ),
        )

    def codes(self, where: Mask | None = None) -> Codes | None:
        """Return the groups of the selected rows."""
        return self.group if self.group is None or where is None or where.all() else self.group[where]

    # What is collected, each under a name that the report reads.

    def count(self, name: str, where: Mask | None = None) -> None:
        """Add the rows of each group."""
        if self.group is None:
            rows = self.table.num_rows if where is None else int(np.count_nonzero(where))
            self.add(name, np.full(self.groups, rows, np.int64))
        else:
            self.add(
                name, np.bincount(self.group if where is None else self.group[where], minlength=self.groups)
            )

    def add(self, name: str, counts: npt.NDArray[np.int64]) -> None:
        """Add counts under a name."""
        known = self.parts.counts.get(name)
        self.parts.counts[name] = counts if known is None else known + counts

    def extremes(self, name: str, values: npt.NDArray[np.int64], where: Mask) -> None:
        """Keep the least and greatest value of each group."""
        values, codes = _picked(values, where), self.codes(where)
        low, high = np.full(self.groups, MOST), np.full(self.groups, LEAST)
        if codes is None:
            if len(values):
                low[0], high[0] = values.min(), values.max()
        else:
            np.minimum.at(low, codes, values)
            np.maximum.at(high, codes, values)
        self.parts.low[name], self.parts.high[name] = low, high

    def keys(self, name: str, hashes: Hashes, where: Mask | None = None, **columns: Any) -> None:
        """Keep the distinct keys of each group."""
        if where is not None and not where.all():
            columns = {n: v if isinstance(v, int) else v[where] for n, v in columns.items()}
            hashes = hashes[where]
        self.parts.keys[name] = gather_keys(self.codes(where), hashes, self.groups, KEYS, **columns)

    def rows_by_key(self, name: str, columns: Sequence[str]) -> None:
        """Count the rows of each key of these columns, if all of them have a value."""
        few = self.coded(columns[0]) if len(columns) == 1 else None
        if few is None:
            self.keys(name, *self.key(columns), count=1)
        else:
            self.coded_keys(name, few, self.valid(columns[0]), counted=True)

    def coded_keys(self, name: str, few: Coded, where: Mask, counted: bool) -> None:
        """Do as :meth:`keys` for rows given by codes: it works on the few values instead of the rows."""
        width, codes, group = len(few.hashes), _picked(few.codes, where), self.codes(where)
        if group is not None:
            if self.groups * width > max(len(codes), 1):  # mostly cells without a row
                self.keys(name, few.rows, where, **({"count": 1} if counted else {}))
                return
            codes = group * width + codes
        counts = np.bincount(codes, minlength=self.groups * width)
        used = np.flatnonzero(counts)
        columns = {"count": counts[used]} if counted else {}
        self.parts.keys[name] = gather_keys(
            None if group is None else used // width, few.hashes[used % width], self.groups, KEYS, **columns
        )

    def histogram(self, name: str, values: npt.NDArray[np.int64], where: Mask, relative: bool) -> None:
        """Keep a histogram of each group."""
        self.parts.histograms[name] = histogram(
            self.codes(where), _picked(values, where), self.groups, relative
        )


def _valid(column: pa.ChunkedArray) -> Mask:
    return (
        valid(plain_values(column))
        if column.null_count or _hides_nulls(column.type)
        else np.ones(len(column), bool)
    )


def _hides_nulls(of: Any) -> bool:
    return pa.types.is_dictionary(of) or isinstance(of, pa.BaseExtensionType) or pa.types.is_null(of)


def _picked(values: Array, where: Mask) -> Array:
    return values if where.all() else values[where]


@dataclass(frozen=True, eq=False)
class View:
    """The counts, sums and sketches of one group of rows, from which metrics are computed."""

    binding: Binding
    parts: Parts
    group: int
    kinds: dict[str, str]
    target: View | None = None

    def count(self, name: str) -> int:
        """Return a count."""
        return int(self.parts.counts[name][self.group])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.count("rows")

    def low(self, name: str) -> int | None:
        """Return the least value; None if there is none."""
        found = int(self.parts.low[name][self.group])
        return None if self.high(name) is None else found

    def high(self, name: str) -> int | None:
        """Return the greatest value; None if there is none."""
        low, high = int(self.parts.low[name][self.group]), int(self.parts.high[name][self.group])
        return None if low > high else high

    def sum(self, name: str) -> int:
        """Return a sum."""
        return self.parts.sums[name][self.group]

    def keys(self, name: str) -> Sample:
        """Return the distinct keys."""
        return self.parts.keys[name].of(self.group)

    def histogram(self, name: str) -> Histogram:
        """Return a histogram."""
        return self.parts.histograms[name].of(self.group)

    def left_out(self, counted: int, what: str) -> str | None:
        """Return a remark about rows that a figure does not include."""
        missing = self.rows - counted
        return (
            f"{missing:,} of {self.rows:,} rows are left out, because they lack {what}" if missing else None
        )


def unbound(role: str, *statistics: tuple[str, str]) -> list[Figure]:
    """Return the figures of a metric whose input is not bound."""
    return [Figure(name, None, unit, f"the binding names no {role}") for name, unit in statistics]


def absent(reason: str, *statistics: tuple[str, str]) -> list[Figure]:
    """Return the figures of a metric that has nothing to be computed from."""
    return [Figure(name, None, unit, reason) for name, unit in statistics]


def share(part: int, whole: int) -> Estimate:
    """Return an exact share."""
    return exact(part / whole)


def refuse_row(block: Block, name: str, bad: Mask, why: str) -> None:
    """Raise DataError with the first row of ``bad``, if there is one."""
    if bad.any():
        row = int(np.argmax(bad))
        value = block.table[name][row].as_py()
        raise DataError(f"Column '{name}' row {block.first_row + row}: {value} {why}.")
