"""Arrow columns as the metrics need them: 64-bit hashes, integer nanoseconds, numbers, bytes per row.

A hash is the same on every machine and in every process, and does not depend on the value's block, chunk,
width or dictionary: 1, 1.0 and an int8 of 1 are one number, text is its UTF-8 bytes, -0.0 is 0.0, and all NaN
are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.arrow import combined, plain_column, plain_type, plain_values
from raysel.core.hashing import GOLDEN, hash_integers, mix
from raysel.errors import DataError

Array = npt.NDArray[Any]
Hashes = npt.NDArray[np.uint64]

UNZONED, ZONED, NOTHING = "time without zone", "time with zone", "nothing"
_LIST = "list of "
_NULL, _NAN = np.uint64(0x6E756C6C6E756C6C), np.uint64(0x6E616E6E616E6E61)
_BEYOND = np.uint64(0x6265796F6E646279)
_SLICE = 1 << 20  # words or elements hashed at once
_RANGE = 1 << 16  # integers of so short a range are codes
_TRIED = 1 << 12  # rows of text looked at to see whether it repeats


def kind(of: Any, name: str) -> str:
    """Return what a column holds: "number", "text", "time with zone", "list of number" ...

    Raises
    ------
    DataError
        For types whose values have no single meaning as a key: maps and unions.
    """
    of, is_ = plain_type(of), pa.types
    if isinstance(of, pa.BaseExtensionType):
        return kind(of.storage_type, name)
    if is_.is_dictionary(of):
        return kind(of.value_type, name)
    if is_.is_null(of):
        return NOTHING
    if is_.is_boolean(of):
        return "bool"
    if is_.is_integer(of) or is_.is_floating(of):
        return "number"
    if is_.is_decimal(of):
        return f"decimal of scale {of.scale}"
    if is_.is_string(of) or is_.is_large_string(of):
        return "text"
    if is_.is_binary(of) or is_.is_large_binary(of) or is_.is_fixed_size_binary(of):
        return "bytes"
    if is_.is_timestamp(of):
        return UNZONED if of.tz is None else ZONED
    if is_.is_date(of):
        return UNZONED
    if is_.is_time(of) or is_.is_duration(of):
        return "clock time" if is_.is_time(of) else "duration"
    if _is_list(of):
        return _LIST + kind(of.value_type, name)
    if is_.is_struct(of):
        return f"struct of {', '.join(f'{f.name} {kind(f.type, name)}' for f in of)}"
    raise DataError(
        f"Column '{name}' is of type {of}, which cannot be compared or counted; use a column of numbers, "
        "text, times, lists or structs."
    )


def one_kind(one: str, other: str) -> str | None:
    """Return the kind of a column that holds both; None if they differ.

    Nothing, and a list of nothing, go with any other kind.
    """
    if one == other or other == NOTHING:
        return one
    if one == NOTHING:
        return other
    if one.startswith(_LIST) and other.startswith(_LIST):
        inner = one_kind(one.removeprefix(_LIST), other.removeprefix(_LIST))
        return None if inner is None else _LIST + inner
    return None


def _is_list(of: Any) -> bool:
    return pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)


def valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return True where the row has a value."""
    if not array.null_count:
        return np.ones(len(array), bool)
    return array.is_valid().to_numpy(zero_copy_only=False)


def _fixed(array: pa.Array, dtype: Any) -> Array:
    """Return the values buffer of a fixed-width array, whatever lies under its nulls, as a view."""
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows as codes of a few values.

    Attributes
    ----------
    codes : array of int64, shape (n,)
        Code of each row.
    hashes : array of uint64
        Hash of each code's value, including null's. Two may be equal if a dictionary holds a value, or null,
        twice.
    """

    codes: npt.NDArray[np.int64]
    hashes: Hashes

    @property
    def rows(self) -> Hashes:
        """The hash of each row."""
        return self.hashes[self.codes]


def coded(column: pa.ChunkedArray | pa.Array, name: str) -> Coded | None:
    """Return a column whose values repeat (a dictionary, integers of a short range, text) as codes.

    None for any other.
    """
    array = plain_column(combined(column))
    of, is_ = array.type, pa.types
    if is_.is_dictionary(of):
        few = len(array.dictionary) <= len(array)  # or to hash it costs more than the rows
        return _coded(array.indices, array.dictionary, name) if few else None
    if not len(array) or array.null_count == len(array):
        return None
    if is_.is_boolean(of):
        array = array.cast(pa.uint8())
    if is_.is_boolean(of) or is_.is_integer(of):
        return _of_short_range(array)
    if is_.is_string(of) or is_.is_large_string(of) or is_.is_binary(of) or is_.is_large_binary(of):
        tried = array.slice(0, _TRIED)
        if pc.count_distinct(tried).as_py() <= len(tried) // 4:
            found = array.dictionary_encode()
            return _coded(found.indices, found.dictionary, name)
    return None


def _coded(indices: pa.Array, values: pa.Array, name: str) -> Coded:
    null = len(values)
    codes = indices.cast(pa.int64()).fill_null(null).to_numpy(zero_copy_only=False)
    return Coded(codes, np.append(hash_column(values, name), _NULL))


def _of_short_range(array: pa.Array) -> Coded | None:
    ends = pc.min_max(array).as_py()
    low, high = ends["min"], ends["max"]
    if high - low >= min(_RANGE, len(array)) or high >= 2**63:
        return None
    values = _fixed(array, np.dtype(array.type.to_pandas_dtype())).astype(np.int64) - low
    codes = np.where(valid(array), values, high - low + 1) if array.null_count else values
    return Coded(codes, np.append(hash_integers(low + np.arange(high - low + 1)), _NULL))


def code_integers(values: npt.NDArray[np.int64]) -> Coded | None:
    """Return integers of a short range as codes; None for others."""
    return _of_short_range(pa.array(values)) if len(values) else None


def hash_column(column: pa.ChunkedArray | pa.Array, name: str) -> Hashes:
    """Return a uint64 for each row; null has its own value."""
    few = coded(column, name)
    return hash_rows(column, name) if few is None else few.rows


def hash_rows(column: pa.ChunkedArray | pa.Array, name: str) -> Hashes:
    """Return what `hash_column` returns, for a column that is not :func:`coded`."""
    array = plain_values(column)
    found = _hash(array, name)
    if array.null_count:
        found[~valid(array)] = _NULL
    return found


def _hash(array: pa.Array, name: str) -> Hashes:
    of = array.type
    is_ = pa.types
    if is_.is_null(of):
        return np.full(len(array), _NULL)
    if is_.is_boolean(of):
        return _hash_ints(array.cast(pa.uint8()))
    if is_.is_integer(of):
        return _hash_ints(array)
    if is_.is_floating(of):
        return _hash_floats(array.cast(pa.float64()))
    if is_.is_timestamp(of) or is_.is_date(of):
        return _hash_ints(nanoseconds(array, name).view(pa.int64()))
    if is_.is_time(of):
        unit = pa.time64("ns")
        return _hash_ints(
            (array.cast(pa.time32("ms")) if is_.is_time32(of) else array).cast(unit).view(pa.int64())
        )
    if is_.is_duration(of):
        return _hash_ints(_cast(array, pa.duration("ns"), name).view(pa.int64()))
    if is_.is_decimal(of):
        return _hash_bytes(array.cast(pa.string()).cast(pa.large_binary()))
    if _is_list(of):
        return _hash_lists(array, name)
    if is_.is_struct(of):
        return combine([hash_column(part, name) for part in array.flatten()], len(array))
    if is_.is_fixed_size_binary(of):
        return _hash_bytes(array.cast(pa.binary()).cast(pa.large_binary()))
    kind(of, name)  # refuses all other types but text and binary
    return _hash_bytes(array.cast(pa.large_binary()))


def _hash_ints(array: pa.Array) -> Hashes:
    width, signed = array.type.bit_width // 8, array.type not in _UNSIGNED
    values = _fixed(array, np.dtype(f"{'i' if signed else 'u'}{width}"))
    found = hash_integers(values.astype(np.int64 if signed else np.uint64))
    if array.type == pa.uint64():
        high = np.flatnonzero(values >= np.uint64(2**63))  # whose digits are also those of a negative int64
        found[high] = mix(found[high] ^ _BEYOND)
    return found


_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())


def _hash_floats(array: pa.Array) -> Hashes:
    values = _fixed(array, np.float64)
    whole = np.rint(values)
    bits = (values + 0.0).view(np.uint64) ^ np.uint64(0x7F)
    alike = np.flatnonzero((whole == values) & (np.abs(values) < 2.0**62))
    bits[alike] = whole[alike].astype(np.int64).view(np.uint64)
    found = mix(bits + GOLDEN)
    nan = np.isnan(values)
    if nan.any():
        found[nan] = _NAN
    return found


def _hash_bytes(array: pa.Array) -> Hashes:
    """Return a sum of mixed 8-byte words, each with its position; the cost depends on the bytes alone."""
    found = np.empty(len(array), np.uint64)
    if not len(array):
        return found
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    raw = array.buffers()[2]
    data = np.frombuffer(raw, np.uint8) if raw is not None else np.empty(0, np.uint8)
    words = np.maximum((np.diff(offsets) + 7) >> 3, 1)
    ends = np.cumsum(words)
    start = 0
    while start < len(array):
        stop = max(int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _SLICE)), start + 1)
        found[start:stop] = _hash_words(data, offsets[start : stop + 1], words[start:stop])
        start = stop
    return found


def _hash_words(data: npt.NDArray[np.uint8], offsets: Array, words: Array) -> Hashes:
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(((last - first) >> 3) + 2, "<u8")
    padded.view(np.uint8)[: last - first] = data[first:last]
    length = np.diff(offsets)
    longest = int(words.max())
    if longest == 1:
        place, start, left = np.zeros(len(words), np.int64), offsets[:-1] - first, length
    else:
        row = np.repeat(np.arange(len(words)), words)
        place = np.arange(len(row)) - np.repeat(np.cumsum(words) - words, words)
        start = (offsets[:-1] - first)[row] + 8 * place
        left = length[row] - 8 * place
    at, shift = start >> 3, ((start & 7) << 3).astype(np.uint64)
    word = padded[at] >> shift
    high = np.flatnonzero(shift)
    word[high] |= padded[at[high] + 1] << (np.uint64(64) - shift[high])
    cut = np.flatnonzero(left < 8)
    word[cut] &= (np.uint64(1) << (left[cut] << 3).astype(np.uint64)) - np.uint64(1)
    mixed = mix(word ^ mix((place.astype(np.uint64) + np.uint64(1)) * GOLDEN))
    if longest > 1:
        mixed = np.add.reduceat(mixed, np.cumsum(words) - words)
    return mix(mixed + length.astype(np.uint64) * GOLDEN)


def _hash_lists(array: pa.Array, name: str) -> Hashes:
    """Return a sum of the elements' mixed hashes, each with its position."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        inner = array.values.slice(array.offset * size, len(array) * size)
        length = np.full(len(array), size, np.int64)
    else:  # a null's elements are not in flatten()
        length = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        inner = array.flatten()
    ends = np.cumsum(length)
    elements = hash_column(inner, name)
    place = np.arange(len(elements)) - np.repeat(ends - length, length)
    sums = np.concatenate(
        [
            np.zeros(1, np.uint64),
            np.cumsum(mix(elements ^ mix((place.astype(np.uint64) + np.uint64(1)) * GOLDEN))),
        ]
    )
    return mix(sums[ends] - sums[ends - length] + (length.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def combine(parts: list[Hashes], rows: int) -> Hashes:
    """Return one hash per row from the hashes of several columns, in their order."""
    if len(parts) == 1:
        return parts[0]
    found = np.full(rows, np.uint64(len(parts)))
    factor = GOLDEN  # odd, and another for each place; the parts are mixed already
    with np.errstate(over="ignore"):
        for part in parts:
            found += part * factor
            factor *= GOLDEN
    return mix(found)


def _cast(array: pa.Array, to: Any, name: str, first_row: int = 0) -> pa.Array:
    try:
        return array.cast(to)
    except pa.ArrowInvalid:
        row, value = _first_bad(array, lambda part: part.cast(to))
        raise DataError(
            f"Column '{name}' row {first_row + row}: {value} is outside the years 1677 to 2262, the range of "
            "nanosecond timestamps; if it is a placeholder, replace it with null."
        ) from None


def nanoseconds(array: pa.Array, name: str, first_row: int = 0) -> pa.Array:
    """Return a timestamp or date array as timestamp[ns].

    Raise DataError with the row for what it cannot hold.
    """
    of = array.type
    if pa.types.is_date(of):
        array = (
            array.cast(pa.date32()).cast(pa.timestamp("s"))
            if pa.types.is_date32(of)
            else array.cast(pa.timestamp("ms"))
        )
    return _cast(array, pa.timestamp("ns", array.type.tz), name, first_row)


def times(
    column: pa.ChunkedArray, name: str, first_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], str]:
    """Return int64 nanoseconds since 1970, where there is a value, and the kind of the column.

    Timestamps, dates and ISO 8601 text are read. The kind is with zone, without, or nothing.

    Raises
    ------
    DataError
        With the row (counted from ``first_row``), for text that is not a time, for text of which only some
        has a zone, and for moments outside 1677 to 2262.
    """
    array = plain_values(column)
    what = kind(array.type, name)
    if what == NOTHING:
        return np.zeros(len(array), np.int64), np.zeros(len(array), bool), NOTHING
    if what == "text":
        array, what = _parse(array, name, first_row)
    elif what not in (ZONED, UNZONED):
        raise DataError(
            f"Column '{name}' holds {what}, not times. Convert the column to timestamps, because raysel does "
            "not guess the unit and the origin of the values."
        )
    array = nanoseconds(array, name, first_row)
    good = valid(array)
    values = _fixed(array, np.int64)
    return (values if good.all() else np.where(good, values, 0)), good, what if good.any() else NOTHING


def _parse(array: pa.Array, name: str, first_row: int) -> tuple[pa.Array, str]:
    zoned, unzoned = pa.timestamp("ns", "UTC"), pa.timestamp("ns")
    for to, what in ((unzoned, UNZONED), (zoned, ZONED)):
        try:
            return array.cast(to), what
        except pa.ArrowInvalid:
            pass
    seen: dict[str, tuple[int, str]] = {}
    for row, text in enumerate(array.to_pylist()):  # only to say what is wrong
        if text is None:
            continue
        one = pa.array([text], pa.string())
        holds = UNZONED if _casts(one, unzoned) else ZONED if _casts(one, zoned) else None
        if holds is None:
            raise DataError(
                f"Column '{name}' row {first_row + row}: {text!r} is not a time in ISO 8601 between 1677 and 2262; "
                "repair it or replace it with null."
            )
        seen.setdefault(holds, (first_row + row, text))
        if len(seen) == 2:
            break
    (row_z, text_z), (row_u, text_u) = seen[ZONED], seen[UNZONED]
    raise DataError(
        f"Column '{name}' mixes times with and without a zone (row {row_z}: {text_z!r}, row {row_u}: {text_u!r}); "
        "write all of them with a zone, or none."
    )


def _casts(array: pa.Array, to: Any) -> bool:
    try:
        array.cast(to)
    except pa.ArrowInvalid:
        return False
    return True


def _first_bad(array: pa.Array, use: Any) -> tuple[int, str]:
    """Return the first row that ``use`` refuses, by halving."""
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            use(array.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low, pc.cast(array.slice(low, 1), pa.string())[0].as_py()


def numbers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """Return float64 (n,), or (n, d) for lists of one length.

    Null as NaN. Raise DataError without numbers.
    """
    array = plain_values(column)
    of = array.type
    if pa.types.is_null(of):
        return np.full(len(array), np.nan)
    if pa.types.is_fixed_size_list(of) or _is_list(of):
        return _vectors(array, name)
    if pa.types.is_boolean(of):
        array = array.cast(pa.uint8())
    found = array.cast(pa.float64(), safe=False)  # integers beyond 2^53 are rounded
    values = _fixed(found, np.float64)
    return np.where(valid(found), values, np.nan) if found.null_count else values


def not_finite(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    """Return True where the row is, or its list or struct has, a NaN or an infinity."""
    array = plain_values(column)
    of = array.type
    if pa.types.is_floating(of):
        found = valid(array)
        found[found] = ~np.isfinite(array.drop_null().cast(pa.float64()).to_numpy())
        return found
    if _is_list(of):  # a null's elements are not in flatten()
        length = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.cumsum(np.where(valid(array), length, 0))
        inner = not_finite(array.flatten())
        if not inner.any():
            return np.zeros(len(array), bool)
        sums = np.concatenate([[0], np.cumsum(inner)])
        return sums[ends] > sums[np.concatenate([[0], ends[:-1]])]
    if pa.types.is_struct(of) and of.num_fields:
        return np.logical_or.reduce([not_finite(part) for part in array.flatten()])
    return np.zeros(len(array), bool)


def _vectors(array: pa.Array, name: str) -> npt.NDArray[np.float64]:
    good = valid(array)
    there = array.drop_null() if not good.all() else array
    length = pc.list_value_length(there).to_numpy(zero_copy_only=False)
    if len(length) and (length != length[0]).any():
        raise DataError(
            f"Column '{name}' holds lists of different lengths ({length.min()} to {length.max()}), so they are not vectors; "
            "give all the same length, or leave the column out of 'content' in the binding."
        )
    width = int(length[0]) if len(length) else 0
    found = np.full((len(array), width), np.nan)
    found[good] = numbers(there.flatten(), name).reshape(-1, width) if width else 0.0
    return found


def row_bytes(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.int64]:
    """Return the bytes of each row, int64, as `raysel.core.budgets.arrow_bytes` counts them."""
    array = plain_values(column)
    of = array.type
    if pa.types.is_null(of):
        return np.zeros(len(array), np.int64)
    if pa.types.is_struct(of):
        return np.sum([row_bytes(part, name) for part in array.flatten()], axis=0, dtype=np.int64)
    if pa.types.is_fixed_size_list(of):
        inner = row_bytes(array.values.slice(array.offset * of.list_size, len(array) * of.list_size), name)
        each = inner.reshape(len(array), of.list_size).sum(axis=1)
        return np.where(valid(array), each, 0)
    if _is_list(of):
        length = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        sums = np.concatenate([[0], np.cumsum(row_bytes(array.flatten(), name))])
        ends = np.cumsum(length)
        return sums[ends] - sums[ends - length] + (8 if pa.types.is_large_list(of) else 4)
    try:
        return np.full(len(array), max(of.bit_width // 8, 1), np.int64)
    except ValueError:  # text and binary
        length = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return length.astype(np.int64) + 4
