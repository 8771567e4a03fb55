"""Columns of every Arrow type in plain types: no views, encodings or extension types.

Ray, NumPy and half of Arrow's own functions do not take views of text, views of lists, run-end encoding or extension
types. Their values are the same in the plain type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_KEPT = ("arrow.fixed_shape_tensor", "ray.")  # extension types that are plain: tensors
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of ``kind`` without views, runs and extension types.

    Dictionaries of scalars and tensors are kept. Unions stay as they are.
    """
    types = pa.types
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_dictionary(kind):
        values = plain_type(kind.value_type)
        return values if types.is_nested(values) else pa.dictionary(kind.index_type, values, kind.ordered)
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type), kind.keys_sorted)
    if types.is_fixed_size_list(kind):  # without elements it has no values that Parquet can tell apart
        return pa.list_(plain_type(kind.value_type), kind.list_size or -1)
    if types.is_fixed_size_binary(kind) and not kind.byte_width:
        return pa.binary()
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in kind])
    if isinstance(kind, pa.BaseExtensionType) and not kind.extension_name.startswith(_KEPT):
        return pa.bool_() if kind.extension_name == "arrow.bool8" else plain_type(kind.storage_type)
    return kind


def plain_column(column: pa.Array | pa.ChunkedArray) -> Any:
    """Return the values of a column in their plain type, in the same chunks; see :func:`plain_type`."""
    kind = plain_type(column.type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if kind.equals(column.type) and not any(map(_has_null_category, chunks)):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([plain_column(chunk) for chunk in chunks], kind)
    return _plain_array(column, kind)


def plain_values(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the values of a column as one array in a plain type that is neither a dictionary nor a tensor."""
    array = _storage(plain_column(combined(column)))
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def combined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one chunk."""
    try:
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # dictionaries that Arrow cannot make one of
        return pa.concat_arrays([plain_values(chunk) for chunk in column.chunks])
    if isinstance(array, pa.ChunkedArray):  # what combining no chunks gives, or text of more than 2 GiB
        if not array.num_chunks:
            return pa.array([], array.type)
        return pa.concat_arrays(array.cast(_LARGE.get(array.type, array.type)).chunks)
    return array


def _storage(array: pa.Array) -> pa.Array:
    """Return the array without its extension type."""
    return _storage(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def _has_null_category(column: pa.Array) -> bool:
    return pa.types.is_dictionary(column.type) and bool(column.dictionary.null_count)


def _plain_array(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return ``column`` in the plain type ``kind``. Arrow casts the rest, but not these, or not rightly."""
    types, old = pa.types, column.type
    if types.is_dictionary(old) and not types.is_dictionary(kind):
        return _plain_array(column.dictionary, kind).take(column.indices)
    if types.is_dictionary(old) and _has_null_category(column):
        # A null that neither Parquet nor null_count has.
        values = _plain_array(column.dictionary, kind.value_type)
        return values.take(column.indices).dictionary_encode().cast(kind)
    if kind.equals(old):
        return column
    if types.is_run_end_encoded(old):
        runs = pa.array(np.arange(len(column.values)))
        places = pa.RunEndEncodedArray.from_arrays(column.run_ends, runs).slice(column.offset, len(column))
        return _plain_array(column.values, kind).take(pc.run_end_decode(places))
    if isinstance(old, pa.BaseExtensionType):
        return _plain_array(column.storage, kind)
    mask = column.is_null() if column.null_count else None
    if types.is_list(kind) or types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        index = pa.int32() if types.is_list(kind) else pa.int64()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), index)
        values = _plain_array(column.flatten(), kind.value_type)
        build = pa.ListArray if types.is_list(kind) else pa.LargeListArray
        return build.from_arrays(offsets, values, type=kind, mask=mask)
    if types.is_fixed_size_list(kind):
        width = kind.list_size
        values = column.values.slice(column.offset * width, len(column) * width)
        return pa.FixedSizeListArray.from_arrays(_plain_array(values, kind.value_type), type=kind, mask=mask)
    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        parts = [_plain_array(part, f.type) for part, f in zip(column.flatten(), fields, strict=True)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=mask)
    return column.cast(kind)
