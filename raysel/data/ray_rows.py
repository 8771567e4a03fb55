"""Rows of a Ray Dataset, numbered in its order, with one type per column in all blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, map_blocks
from raysel.data.arrow_types import plain_schema, plain_table
from raysel.data.content import digest_blocks
from raysel.data.identity import NumberedFile, PoolIdentity, identity, mark, row_ids
from raysel.data.row_index import ID, check_ids, with_ids
from raysel.data.schemas import common_type
from raysel.data.vectors import is_tensor
from raysel.errors import DataError

_WHERE = "the Ray Dataset"


def numbered(dataset: Dataset) -> tuple[Dataset, pa.Schema, str]:
    """Return the rows of ``dataset`` with ids, which are kept if it has them, their schema, and words for messages.

    Runs what is still lazy. Blocks may differ in the size of tensors; other types of a column are unified exactly.

    Raises
    ------
    DataError
        For no rows, ids that occur twice, and a column whose blocks hold values of different kinds.
    """
    refs = arrow_blocks(dataset)
    found = map_blocks(lambda table: (table.num_rows, table.schema), refs)
    filled = [(ref, rows) for ref, (rows, _) in zip(refs, found, strict=True) if rows]
    schemas = [kept for rows, kept in found if rows]
    if not filled:
        raise DataError(f"There are no rows in {_WHERE}.")
    schema = common_schema(schemas)
    has_ids = ID in schema.names
    alike = has_ids and all(kept.remove_metadata().equals(schema) for kept in schemas)
    make = ray.remote(_made)
    blocks, spans, start = [], [], 0
    for ref, rows in filled:
        blocks.append(ref if alike else make.remote(ref, schema, None if has_ids else start))
        spans.append((start, start + rows - 1))
        start += rows
    if has_ids:
        check_ids(np.concatenate(map_blocks(row_ids, blocks, _WHERE)), _WHERE)
        return mark(ray.data.from_arrow_refs(blocks), identity(dataset)), schema, _WHERE
    map_blocks(len, blocks)  # raises what a cast raised
    file = NumberedFile("a Ray Dataset", digest_blocks(blocks, spans), start)
    return mark(ray.data.from_arrow_refs(blocks), PoolIdentity((file,))), schema, _WHERE


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return one schema for blocks: a column that a block lacks is missing there, tensors keep their own size.

    Raises
    ------
    DataError
        For types that cannot be unified.
    """
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in plain_schema(schema, _WHERE):
            kinds.setdefault(field.name, []).append(field.type)
    return pa.schema([pa.field(name, _common(found, name)) for name, found in kinds.items()])


def _common(kinds: list[pa.DataType], name: str) -> pa.DataType:
    found = kinds[0]
    for kind in kinds[1:]:
        if kind.equals(found) or (is_tensor(kind) and is_tensor(found)):
            continue
        common = common_type(found, kind, loose=True)
        if common is None:
            raise DataError(
                f"Column '{name}' of {_WHERE} holds {found} in some blocks and {kind} in others; convert it to one type."
            )
        found = common
    return found


def _made(table: pa.Table, schema: pa.Schema, start: int | None) -> pa.Table:
    """Return a block with the columns of ``schema``, and with ids from ``start`` on if one is given."""
    table = plain_table(table, _WHERE)
    columns = {}
    for field in schema:
        if field.name not in table.column_names:
            columns[field.name] = pa.nulls(len(table), field.type)
            continue
        column = table[field.name]
        try:
            kept = column.type.equals(field.type) or is_tensor(column.type)
            if not kept and pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            columns[field.name] = column if kept else column.cast(field.type)
        except pa.ArrowException as error:
            raise DataError(
                f"Column '{field.name}' of {_WHERE} holds {column.type} in one block and {field.type} in others, and "
                f"{field.type} cannot represent all values exactly ({str(error).splitlines()[0]}); convert the column to one type."
            ) from error
    made = pa.table(columns)
    return made if start is None else with_ids(made, start)
