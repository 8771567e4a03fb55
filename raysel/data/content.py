"""Digests of the content of rows: equal for equal values, however they are cut into chunks and blocks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from raysel.cluster.wait import get
from raysel.core.arrays import positions
from raysel.core.arrow import plain_column
from raysel.data.row_index import ID
from raysel.data.store import values_of
from raysel.data.vectors import is_tensor, tensor_rows, to_column

_ROWS = 1024  # rows that are hashed together: always those of the same ids


def digest_table(table: pa.Table) -> str:
    """Return a digest of the values of all rows in their order, and of the names and types of the columns."""
    parts = [table.slice(start, _ROWS) for start in range(0, table.num_rows, _ROWS)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return _join(pool.map(_digest, parts))


def row_digests(table: pa.Table, columns: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return a digest of the values of every row, as a training reads them; equal rows of any blocks have the same."""
    found = [hashlib.blake2b(digest_size=8) for _ in range(table.num_rows)]
    for name in columns:
        for digest, value in zip(found, values_of(table[name], name), strict=True):
            raw = value.encode() if isinstance(value, str) else value
            raw = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
    return np.frombuffer(b"".join(digest.digest() for digest in found), np.uint64)


def shared_digests(table: pa.Table, columns: Sequence[str], shared: Any) -> npt.NDArray[np.int64]:
    """Return which of some digests the table's rows have: their places; ``shared`` refers to the digests, ascending."""
    known = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    places, found = positions(known, row_digests(table, columns))
    return np.unique(places[found])


def digest_blocks(blocks: Sequence[ray.ObjectRef], spans: Sequence[tuple[int, int]]) -> str:
    """Return a digest of the ids and values of all rows, the same for any blocks.

    Parameters
    ----------
    blocks : sequence of ray.ObjectRef
        Arrow tables with ``sample_id``, none of them empty.
    spans : sequence of (int, int)
        The lowest and the highest id of each block; they ascend and do not overlap.

    Returns
    -------
    str
        The digest.
    """
    task = ray.remote(max_retries=3)(_digest_ranges)
    pending, done = [], -1
    for place, (low, high) in enumerate(spans):
        first, last = max(low // _ROWS, done + 1), high // _ROWS
        if first > last:
            continue
        end = place + 1  # the task reads on to the end of the last range that begins in its block
        while end < len(spans) and spans[end][0] // _ROWS <= last:
            end += 1
        pending.append(task.remote(first, last, *blocks[place:end]))
        done = last
    return _join(get(pending))


def _digest_ranges(first: int, last: int, *tables: pa.Table) -> bytes:
    ordered = []
    for table in tables:
        ids = table[ID].to_numpy()
        ordered.append(table if (np.diff(ids) > 0).all() else table.sort_by(ID))
    ids = [table[ID].to_numpy() for table in ordered]
    numbers = np.unique(np.concatenate([part // _ROWS for part in ids]))
    found = []
    for number in numbers[(numbers >= first) & (numbers <= last)].tolist():
        ends = [np.searchsorted(part, [number * _ROWS, (number + 1) * _ROWS]) for part in ids]
        parts = [
            table.slice(start, stop - start)
            for table, (start, stop) in zip(ordered, ends, strict=True)
            if stop > start
        ]
        found.append(_digest(pa.concat_tables(_alike(parts), promote_options="default")))
    return b"".join(found)


def _alike(tables: list[pa.Table]) -> list[pa.Table]:
    """Return tables in which Ray's tensors, of one or several shapes, have one type however they are cut into blocks."""
    for name in tables[0].column_names:
        columns = [table[name] for table in tables if name in table.column_names]
        kinds = {column.type for column in columns}
        plain = len(kinds) == 1 and isinstance(columns[0].type, pa.FixedShapeTensorType)
        if plain or not all(map(is_tensor, kinds)) or any(column.null_count for column in columns):
            continue
        rows = [tensor_rows(table[name], name) for table in tables]
        alike = len({row.shape for some in rows for row in some}) == 1
        for at, some in enumerate(rows):
            tensors = to_column(np.stack(some)) if alike else _ragged(some)
            tables[at] = tables[at].set_column(tables[at].column_names.index(name), name, tensors)
    return tables


def _ragged(rows: list[np.ndarray]) -> pa.Array:
    values = [pa.array(row.reshape(-1)) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in values])])
    data = pa.LargeListArray.from_arrays(pa.array(offsets), pa.concat_arrays(values))
    return pa.StructArray.from_arrays([data, pa.array([list(row.shape) for row in rows])], ["data", "shape"])


def _digest(table: pa.Table) -> bytes:
    """Return a digest of a few rows by value, not of their buffers, which may hold more than the rows.

    Rows that have too many bytes for one chunk of their type are digested in halves.
    """
    try:
        return _digest_together(table)
    except (pa.ArrowInvalid, pa.ArrowCapacityError):
        half = len(table) // 2
        if not half:
            raise
        return _digest(table.slice(0, half)) + _digest(table.slice(half))


def _digest_together(table: pa.Table) -> bytes:
    columns = [_plain(column) for column in table.columns]
    content = hashlib.blake2b(digest_size=16)
    schema = pa.schema([pa.field(n, c.type) for n, c in zip(table.column_names, columns, strict=True)])
    for batch in pa.Table.from_arrays(columns, schema=schema).combine_chunks().to_batches():
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(batch)
        content.update(sink.getbuffer())
    return content.digest()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return plain values without dictionaries, copied so that nothing is under nulls or after the end."""
    column = plain_column(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    of = column.type
    flat = pa.types.is_primitive(of) and not pa.types.is_boolean(of)
    if not column.null_count and (flat or pa.types.is_large_binary(of) or pa.types.is_binary(of)):
        return column  # every byte of it is a value
    try:
        return column.take(pa.array(np.arange(len(column))))
    except pa.ArrowNotImplementedError:  # lists of tensors, which are hashed as they lie
        return column


def _join(parts: Any) -> str:
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(part)
    return content.hexdigest()
