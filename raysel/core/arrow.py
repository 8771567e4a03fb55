"""Columns of every Arrow type in one plain form."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

LARGE = {
    pa.string(): pa.large_string(),
    pa.string_view(): pa.large_string(),
    pa.binary(): pa.large_binary(),
    pa.binary_view(): pa.large_binary(),
}


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return one chunk without extension type.

    Dictionaries and runs as their values, views of text and bytes as large ones.
    """
    array = storage(combined(column))
    if pa.types.is_dictionary(array.type):
        return plain(_decoded(array))
    if pa.types.is_run_end_encoded(array.type):
        runs = pa.RunEndEncodedArray.from_arrays(array.run_ends, plain(array.values))
        return plain(pc.run_end_decode(runs.slice(array.offset, len(array))))
    return array.cast(LARGE[array.type]) if is_view(array.type) else array


def storage(array: pa.Array) -> pa.Array:
    """Return the array without its extension type."""
    return storage(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one chunk."""
    try:
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # dictionaries that Arrow cannot make one of
        return pa.concat_arrays([plain(chunk) for chunk in column.chunks])
    if isinstance(array, pa.ChunkedArray):  # what combining no chunks gives, or text of more than 2 GiB
        if not array.num_chunks:
            return pa.array([], array.type)
        large = LARGE.get(array.type)
        return pa.concat_arrays((array if large is None else array.cast(large)).chunks)
    return array


def without_views(table: pa.Table) -> pa.Table:
    """Return the table with string and binary views, which few functions take, as large text and bytes."""
    for at, of in enumerate(table.schema.types):
        if is_view(of):
            table = table.set_column(at, table.schema.field(at).name, table.column(at).cast(LARGE[of]))
    return table


def is_view(of: Any) -> bool:
    """Return whether a type is that of views of text or bytes."""
    return pa.types.is_string_view(of) or pa.types.is_binary_view(of)


def _decoded(array: pa.DictionaryArray) -> pa.Array:
    if is_view(array.type.value_type):  # which cannot be taken from
        array = pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary))
    return array.dictionary_decode()
