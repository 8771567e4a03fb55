"""Columns of one plain type per value: no views, encodings or extension types but tensors. Without Ray.

Ray, NumPy and half of Arrow's own functions do not take views of text, views of lists, run-end encoding or extension
types. Their values are the same in the plain type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.errors import DataError, first


def plain_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Return the type in which the values of column ``name`` are kept; raise DataError if there is none."""
    types = pa.types
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_run_end_encoded(kind):
        return plain_type(kind.value_type, name)
    if types.is_dictionary(kind):
        values = plain_type(kind.value_type, name)
        return values if types.is_nested(values) else pa.dictionary(kind.index_type, values, kind.ordered)
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type, name), plain_type(kind.item_type, name), kind.keys_sorted)
    if types.is_fixed_size_list(kind):  # without elements it has no values that Parquet can tell apart
        return pa.list_(plain_type(kind.value_type, name), kind.list_size or -1)
    if types.is_fixed_size_binary(kind) and not kind.byte_width:
        return pa.binary()
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type, name))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type, name))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain_type(field.type, name)) for field in kind])
    if types.is_union(kind):
        raise DataError(
            f"Column '{name}' holds values of several types ({kind}); convert them to one type, or write one column per type."
        )
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.bool8":
            return pa.bool_()
        if kind.extension_name in ("pandas.period", "pandas.interval"):
            what = kind.extension_name.removeprefix("pandas.")
            raise DataError(
                f"Column '{name}' holds {what}s of pandas, which raysel cannot store; write them as text or timestamps."
            )
        kept = ("arrow.fixed_shape_tensor", "ray.")
        return kind if kind.extension_name.startswith(kept) else plain_type(kind.storage_type, name)
    return kind


def plain_column(column: pa.Array | pa.ChunkedArray, name: str) -> Any:
    """Return the values of a column in their plain type; see :func:`plain_type`."""
    kind = plain_type(column.type, name)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if kind.equals(column.type) and not any(map(_has_null_category, chunks)):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([plain_column(chunk, name) for chunk in column.chunks], kind)
    return _plain_array(column, kind, name)


def _has_null_category(column: pa.Array) -> bool:
    return pa.types.is_dictionary(column.type) and bool(column.dictionary.null_count)


def _plain_array(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """Return ``column`` in the plain type ``kind``. Arrow casts the rest, but not these, or not rightly."""
    types, old = pa.types, column.type
    if types.is_dictionary(old) and not types.is_dictionary(kind):
        return _plain_array(column.dictionary, kind, name).take(column.indices)
    if types.is_dictionary(old) and _has_null_category(
        column
    ):  # a null that neither Parquet nor null_count has
        values = _plain_array(column.dictionary, kind.value_type, name)
        return values.take(column.indices).dictionary_encode().cast(kind)
    if kind.equals(old):
        return column
    if types.is_run_end_encoded(old):
        runs = pa.array(np.arange(len(column.values)))
        places = pa.RunEndEncodedArray.from_arrays(column.run_ends, runs).slice(column.offset, len(column))
        return _plain_array(column.values, kind, name).take(pc.run_end_decode(places))
    if isinstance(old, pa.BaseExtensionType):
        return _plain_array(column.storage, kind, name)
    mask = column.is_null() if column.null_count else None
    if types.is_list(kind) or types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        index = pa.int32() if types.is_list(kind) else pa.int64()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), index)
        values = _plain_array(column.flatten(), kind.value_type, name)
        build = pa.ListArray if types.is_list(kind) else pa.LargeListArray
        return build.from_arrays(offsets, values, type=kind, mask=mask)
    if types.is_fixed_size_list(kind):
        width = kind.list_size
        values = column.values.slice(column.offset * width, len(column) * width)
        return pa.FixedSizeListArray.from_arrays(
            _plain_array(values, kind.value_type, name), type=kind, mask=mask
        )
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        parts = [_plain_array(part, f.type, name) for part, f in zip(column.flatten(), fields, strict=True)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=mask)
    return column.cast(kind)


def plain_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """Return the columns in their plain types, nullable and without metadata.

    Raises
    ------
    DataError
        For a name that occurs twice, and for types that cannot be kept.
    """
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Column {first(map(repr, twice))} occurs more than once in {where}; rename one of them."
        )
    return pa.schema([pa.field(field.name, plain_type(field.type, field.name)) for field in schema])


def plain_table(table: pa.Table, where: str) -> pa.Table:
    """Return the rows of a table in the plain types of their columns; see :func:`plain_schema`."""
    schema = plain_schema(table.schema, where)
    try:
        columns = [plain_column(c, n) for c, n in zip(table.columns, table.column_names, strict=True)]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"The columns of {where} cannot be read ({str(error).splitlines()[0]}).") from error
