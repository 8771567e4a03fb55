"""One schema for several files, and tables that have exactly that schema. Without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.arrow import plain_column
from raysel.data.arrow_types import stored_type
from raysel.errors import DataError, first

Fits = Callable[[int, str, pa.DataType], bool]
_EXACT_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}  # integers up to 2**bits are exact


@dataclass(frozen=True)
class Unified:
    """The common schema of several files.

    Attributes
    ----------
    schema : pyarrow.Schema
        All columns, those of the first file first; every column may have missing values.
    notes : tuple of str
        One sentence per column that some files lack.
    """

    schema: pa.Schema
    notes: tuple[str, ...] = ()


def unify(
    names: Sequence[str],
    schemas: Sequence[pa.Schema],
    fits: Fits = lambda file, column, kind: False,
    text: bool = False,
    loose: bool = False,
) -> Unified:
    """Return the schema that holds the values of every file exactly.

    Schemas may differ in nullability, order, missing columns and metadata, in the width of integers, floats, decimals
    and times, between string, large_string, string views and dictionaries of them (the same for binary), between list
    types, and in columns of the null type.

    Parameters
    ----------
    names : sequence of str
        The files, for messages.
    schemas : sequence of pyarrow.Schema
        Their schemas.
    fits : callable
        Receives the position of a file, a column of integers and a type. Returns whether all values are known to have
        that type exactly, so that integers can become floats, or signed integers unsigned ones.
    loose : bool
        Integers always become floats or unsigned ones where that is the other type; what casts them must check that no
        value changes.
    text : bool
        Columns whose types do not agree become text: for formats that store text.

    Raises
    ------
    DataError
        If types cannot be unified exactly, a required column is missing, or files have no column in common.
    """
    places: dict[str, dict[pa.DataType, list[int]]] = {}
    optional: dict[str, bool] = {}
    for at, (name, schema) in enumerate(zip(names, schemas, strict=True)):
        _check_names(name, schema)
        if len(schema) and len(schemas[0]) and not set(schema.names) & set(schemas[0].names):
            raise DataError(
                f"{name} and {names[0]} have no column in common ({first(schema.names)}; {first(schemas[0].names)}); "
                "read them separately."
            )
        for field in schema:
            places.setdefault(field.name, {}).setdefault(stored_type(field.type, field.name), []).append(at)
            optional[field.name] = optional.get(field.name, True) and field.nullable
    fields, notes = [], []
    for column, kinds in places.items():
        fields.append(pa.field(column, _common(column, kinds, names, fits, text, loose)))
        there = {at for held in kinds.values() for at in held}
        missing = [name for at, name in enumerate(names) if at not in there]
        if missing and not optional[column]:
            raise DataError(
                f"The schema of {names[min(there)]} or of another file requires a value in column '{column}' of every row, but "
                f"{missing[0]} has no such column; read the files separately, or write them with the same columns."
            )
        if missing:
            notes.append(
                f"Column '{column}' is missing in {len(missing):,} of {len(names):,} files ({first(missing)}), so it has no "
                "values in their rows."
            )
    return Unified(pa.schema(fields), tuple(notes))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of ``schema`` with its types; a column that ``table`` lacks has no values."""
    there = set(table.column_names)
    columns = [
        _cast(table[field.name], field.type, field.name)
        if field.name in there
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    if not columns:
        return table.select([])
    return pa.Table.from_arrays(columns, schema=pa.schema([pa.field(f.name, f.type) for f in schema]))


def common_type(one: pa.DataType, other: pa.DataType, loose: bool = False) -> pa.DataType | None:
    """Return the type that holds every value of two plain types exactly, None if there is none; see :func:`unify`."""
    if one.equals(other):
        return one
    for this, that in ((one, other), (other, one)):
        if pa.types.is_null(this):
            return that
        if pa.types.is_dictionary(this):
            return common_type(this.value_type, that, loose)
    for rule in (_numbers, _texts, _times, _decimals):
        if (found := rule(one, other)) is not None:
            return found
    if loose and (wider := _wider(one, other)) is not None:
        return wider
    return _nested(one, other, loose)


def _check_names(name: str, schema: pa.Schema) -> None:
    if len(set(schema.names)) < len(schema):
        twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
        raise DataError(
            f"{name} has several columns named {first(map(repr, twice))}; every column needs a name of its own."
        )


def _common(
    column: str,
    kinds: dict[pa.DataType, list[int]],
    names: Sequence[str],
    fits: Fits,
    text: bool,
    loose: bool,
) -> pa.DataType:
    if len(kinds) == 1:
        return next(iter(kinds))
    found: pa.DataType | None = None
    for kind, places in kinds.items():
        if found is None:
            found, before = kind, places[0]
            continue
        merged = common_type(found, kind, loose)
        if merged is None and (wider := _wider(found, kind)) is not None:
            files = [at for k, held in kinds.items() if k != wider and pa.types.is_integer(k) for at in held]
            merged = wider if all(fits(at, column, wider) for at in files) else None
        if merged is None and text:
            return pa.string()
        if merged is None:
            raise DataError(
                f"Column '{column}' holds {kind} in {names[places[0]]} and {found} in {names[before]}, and no "
                "type represents the values of both exactly; write the files with one type, or read them "
                "separately."
            )
        found = merged
    assert found is not None
    return found


def exact_range(kind: pa.DataType) -> tuple[int, int]:
    """Return the least and the greatest integer up to which a float or unsigned type holds every integer."""
    bits = 64 if pa.types.is_integer(kind) else _EXACT_BITS[kind]
    return (0, 2**bits - 1) if pa.types.is_integer(kind) else (-(2**bits), 2**bits)


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the float type or uint64 of a pair that integers of the other type have if they are in its range."""
    types = pa.types
    for this, that in ((one, other), (other, one)):
        if types.is_integer(this) and (
            types.is_floating(that) or (types.is_integer(that) and that == pa.uint64())
        ):
            return that
    return None


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_floating(one) and types.is_floating(other):
        return one if one.bit_width >= other.bit_width else other
    if types.is_integer(one) and types.is_integer(other):
        if types.is_signed_integer(one) == types.is_signed_integer(other):
            return one if one.bit_width >= other.bit_width else other
        signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
        bits = max(signed.bit_width, 2 * unsigned.bit_width)
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)
    if (floats := _wider(one, other)) is not None:
        whole = one if types.is_integer(one) else other
        bits = whole.bit_width - types.is_signed_integer(whole)
        return next(
            (
                f
                for f in (pa.float32(), pa.float64())
                if bits <= _EXACT_BITS[f] and f.bit_width >= floats.bit_width
            ),
            None,
        )
    return None


def _texts(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = pa.types
    pair = (one, other)
    if all(types.is_string(k) or types.is_large_string(k) or types.is_string_view(k) for k in pair):
        return pa.string() if all(types.is_string(k) for k in pair) else pa.large_string()
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if all(any(test(k) for test in binary) for k in pair):
        small = all(types.is_binary(k) or types.is_fixed_size_binary(k) for k in pair)
        return pa.binary() if small else pa.large_binary()
    return None


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = pa.types
    units = ("s", "ms", "us", "ns")
    if types.is_timestamp(one) and types.is_timestamp(other) and one.tz == other.tz:
        return max(one, other, key=lambda kind: units.index(kind.unit))
    if types.is_duration(one) and types.is_duration(other):
        return max(one, other, key=lambda kind: units.index(kind.unit))
    if types.is_date(one) and types.is_date(other):
        return pa.date64()
    if types.is_time(one) and types.is_time(other):
        return max(one, other, key=lambda kind: units.index(kind.unit))
    return None


def _decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_decimal(one) and pa.types.is_decimal(other)):
        return None
    scale = max(one.scale, other.scale)
    digits = max(one.precision - one.scale, other.precision - other.scale) + scale
    return (
        pa.decimal128(digits, scale)
        if digits <= 38
        else pa.decimal256(digits, scale)
        if digits <= 76
        else None
    )


def _nested(one: pa.DataType, other: pa.DataType, loose: bool) -> pa.DataType | None:
    types = pa.types
    if isinstance(one, pa.FixedShapeTensorType) and isinstance(other, pa.FixedShapeTensorType):
        inner = common_type(one.value_type, other.value_type, loose)
        alike = one.shape == other.shape and one.permutation is None and other.permutation is None
        return pa.fixed_shape_tensor(inner, one.shape) if alike and inner is not None else None
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            known = fields.get(field.name)
            merged = field.type if known is None else common_type(known, field.type, loose)
            if merged is None:
                return None
            fields[field.name] = merged
        return pa.struct(list(fields.items()))
    if types.is_map(one) and types.is_map(other):
        key, item = (
            common_type(one.key_type, other.key_type, loose),
            common_type(one.item_type, other.item_type, loose),
        )
        return None if key is None or item is None else pa.map_(key, item)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not all(any(test(kind) for test in lists) for kind in (one, other)):
        return None
    inner = common_type(one.value_type, other.value_type, loose)
    if inner is None:
        return None
    if types.is_fixed_size_list(one) and types.is_fixed_size_list(other) and one.list_size == other.list_size:
        return pa.list_(inner, one.list_size)
    return pa.large_list(inner) if types.is_large_list(one) or types.is_large_list(other) else pa.list_(inner)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.ChunkedArray:
    column = plain_column(column)
    if column.type.equals(kind):
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(kind, pa.FixedShapeTensorType) and isinstance(column.type, pa.FixedShapeTensorType):
        parts = [
            pa.ExtensionArray.from_storage(kind, part.storage.cast(kind.storage_type))
            for part in column.chunks
        ]
        return pa.chunked_array(parts, kind)
    return pc.cast(column, kind)
