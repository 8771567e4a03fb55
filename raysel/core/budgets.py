"""Budgets of a selection: a share of the rows, a number of rows, or bytes in text such as "200MB"."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.arrow import plain_values
from raysel.core.numbers import plain
from raysel.errors import ConfigError, shown

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_ONE_ROW = 1e-9
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+|%)?\s*", re.ASCII)


def check_budget(budget: Any, in_bytes: bool = False) -> float | int | str:
    """Return a budget as a Python float, int or str.

    Parameters
    ----------
    budget : float, int or str
        Also a number of NumPy.
    in_bytes : bool
        Whether text such as "200MB" is allowed.

    Raises
    ------
    ConfigError
        If no pool allows it; the message says what to write.
    """
    budget = plain(budget)
    if isinstance(budget, str):
        if not in_bytes or _bytes_of(budget) is None:
            raise ConfigError(f"budget: {shown(budget)} is not a budget. {_advice(budget, in_bytes)}")
        return budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ConfigError(f"budget: {shown(budget)} is not a budget. {_advice(budget, in_bytes)}")
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ConfigError(f"budget: {budget} is not a share in (0, 1]. {_advice(budget, in_bytes)}")
    elif budget < 1:
        raise ConfigError(f"budget: {budget} rows are too few; select at least 1.")
    elif budget == 1:
        raise ConfigError(
            f"budget: 1 can mean one row or all rows. Write 1.0 for all rows, or {_ONE_ROW:g} for one row, because "
            "raysel rounds such a small share up to one row."
        )
    return budget


def budget_of(rows: int) -> float | int:
    """Return the budget that selects a number of rows."""
    return rows if rows > 1 else _ONE_ROW


def budget_rows(budget: float | int, rows: int) -> int:
    """Return the number of rows of a budget: a float in (0, 1] is a share of ``rows``, an int a count.

    Raises
    ------
    ConfigError
        If it is out of range or more than there are.
    """
    found = check_budget(budget)
    if isinstance(found, float):
        return max(1, round(found * rows))
    assert isinstance(found, int)
    if found > rows:
        raise ConfigError(
            f"budget: {found:,} rows are more than the {rows:,} rows of the pool; select fewer."
        )
    return found


def parse_bytes(text: str) -> int:
    """Return the bytes in "200MB", "1.5 GiB", "800 kB" ...; raise ConfigError for anything else."""
    found = _bytes_of(text)
    if found is None:
        raise ConfigError(f"budget: {shown(text)} is not a number of bytes. {_advice(text, True)}")
    return found


def _bytes_of(text: str) -> int | None:
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] is None or match[2].upper() not in _UNITS:
        return None
    return int(Decimal(match[1]) * _UNITS[match[2].upper()]) or None


def _advice(budget: object, in_bytes: bool) -> str:
    """Return what to write in place of a budget that is none."""
    match = _AMOUNT.fullmatch(budget) if isinstance(budget, str) else None
    if match and match[2] == "%" and 0 < (share := float(match[1]) / 100) <= 1:
        return f"Write {share:g} for {match[1]} % of the rows."
    if match and match[2] is None and (number := float(match[1])):
        if number <= 1 and "." in match[1]:
            return f"Write {match[1]} without quotes for a share of the rows."
        if number.is_integer():
            return f"Write {int(number)} without quotes for a number of rows."
    if isinstance(budget, float) and math.isfinite(budget) and budget > 1:
        percent = f"{budget / 100:g} for {budget:g} % of them, or " if budget <= 100 else ""
        return f"Write {percent}a number of rows as an integer, such as {math.ceil(budget)}."
    ways = "a share of the rows such as 0.3, or a number of rows such as 1000"
    return f"Write {ways}." if not in_bytes else f'Write {ways}, or bytes such as "200MB".'


def arrow_bytes(table: pa.Table) -> int:
    """Return the bytes of the values and offsets of a table.

    They do not depend on its chunks, nor on how values are encoded: views, dictionaries and runs count as the plain
    values that they stand for.
    """
    return sum(_bytes(chunk) for column in table.columns for chunk in column.chunks)


def _bytes(array: pa.Array) -> int:
    array = plain_values(array)
    kind: Any = array.type
    is_ = pa.types
    if is_.is_null(kind):
        return 0
    if is_.is_struct(kind):
        return sum(_bytes(part) for part in array.flatten())
    if is_.is_fixed_size_list(kind):
        return _bytes(array.flatten())
    if is_.is_map(kind):
        return _bytes(array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    if is_.is_list(kind):
        return _bytes(array.flatten()) + 4 * len(array)
    if is_.is_large_list(kind):
        return _bytes(array.flatten()) + 8 * len(array)
    if is_.is_union(kind):
        return len(array) + sum(_bytes(part) for part in _members(array))
    try:
        return len(array) * max(kind.bit_width // 8, 1)
    except ValueError:  # text and binary
        return (pc.sum(pc.binary_length(array)).as_py() or 0) + 4 * len(array)


def _members(array: pa.UnionArray) -> list[pa.Array]:
    """Return for each member of a union the values that its rows have."""
    if array.offset:  # which its type codes and offsets ignore
        array = array.take(pa.array(range(len(array)), pa.int64()))
    found, codes = [], array.type_codes
    for place, code in enumerate(array.type.type_codes):
        here = pc.equal(codes, pa.scalar(code, pa.int8()))
        values = array.field(place)
        if array.type.mode == "dense":
            found.append(values.take(array.offsets.filter(here)))
        else:
            found.append(values.filter(here))
    return found
