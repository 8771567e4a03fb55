"""Budgets in bytes: the meaning of a text such as "200MB", and the bytes of a table. Without Ray."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysel.errors import ConfigError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """Return the bytes in "200MB", "1.5 GiB", "800 kB" ...; raise ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(
            f'budget: {text!r} is not a number of bytes; write "200MB" or "1.5GiB", for example.'
        )
    found = int(float(match[1]) * _UNITS[match[2].upper()])
    if found < 1:
        raise ConfigError(f"budget: {text!r} is less than one byte.")
    return found


def arrow_bytes(table: pa.Table) -> int:
    """Return the bytes of the values and offsets of a table, which do not depend on its chunks."""
    return sum(_bytes(chunk) for column in table.columns for chunk in column.chunks)


def _bytes(array: pa.Array) -> int:
    kind: Any = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return _bytes(array.dictionary_decode())
    if pa.types.is_struct(kind):
        return sum(_bytes(part) for part in array.flatten())
    if pa.types.is_fixed_size_list(kind):
        return _bytes(array.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _bytes(array.flatten()) + len(array) * (8 if pa.types.is_large_list(kind) else 4)
    if pa.types.is_null(kind):
        return 0
    try:
        return len(array) * max(kind.bit_width // 8, 1)
    except ValueError:  # text and binary
        return (pc.sum(pc.binary_length(array)).as_py() or 0) + 4 * len(array)
