"""What schemas and Parquet footers show to be wrong with ids, labels and the model's input, before a row is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysel.data.read import check_label
from raysel.data.row_index import ID
from raysel.data.store import Column, column_of
from raysel.errors import ConfigError, DataError
from raysel.workflow.inputs import Look
from raysel.workflow.validation import drawn_role


def trained_roles(look: Look) -> list[str]:
    """Return the roles whose rows are trained or scored on, the pool first."""
    drawn = drawn_role(look.workflow)
    return [role for role in look.schemas if role in ("pool", "test", "validation", drawn)]


def check_id_types(look: Look) -> None:
    """Raise DataError for stored ids that are no integers."""
    for role, schema in look.schemas.items():
        if ID in schema.names and not pa.types.is_integer(schema.field(ID).type):
            raise DataError(
                f"{role}.path: Column '{ID}' holds {schema.field(ID).type}, but ids must be integers. Store integers, or "
                "rename the column: raysel then numbers the rows."
            )


def check_labels(look: Look) -> None:
    """Raise DataError for labels that are missing, of another type than the pool's, or outside of its range."""
    flow = look.workflow
    pool = str(flow.pool.label)
    kind, known = _kind(look.schemas["pool"].field(pool).type), _statistics(look, "pool", pool)
    for role in trained_roles(look):
        label = str(getattr(flow, role).label)
        if label == ID:
            raise ConfigError(
                f"{role}.label: '{ID}' holds the ids of the rows, so every row would be a class of its own; name the column with the class."
            )
        try:
            check_label(look.schemas[role], label, f"the files of {role}.path")
        except DataError as error:
            raise DataError(f"{role}.label: {error}") from None
        of = look.schemas[role].field(label).type
        if _kind(of) != kind:
            raise DataError(
                f"{role}.label: Column '{label}' holds {_kind(of)}, but the labels of the pool are {kind}; store both with the same type."
            )
        found = _statistics(look, role, label)
        if found is None:
            continue
        low, high, nulls = found
        if nulls:
            raise DataError(
                f"{role}.label: {nulls:,} rows have no label in column '{label}'; label or drop them first."
            )
        if known is not None and kind != "text" and (low < known[0] or high > known[1]):
            strange = low if low < known[0] else high
            raise DataError(
                f"{role}.label: The label {strange} in column '{label}' does not occur in the pool, whose labels are "
                f"{known[0]} to {known[1]}; add rows of that class to the pool, or drop it."
            )


def check_ids(look: Look) -> None:
    """Raise DataError for stored ids that training cannot use to address rows."""
    for role in trained_roles(look):
        found = _statistics(look, role, ID) if ID in look.schemas[role].names else None
        if found is not None and (found[:2] != (0, look.counts[role] - 1) or found[2]):
            raise DataError(
                f"{role}.path: Column '{ID}' holds ids from {found[0]:,} to {found[1]:,}, but there are {look.counts[role]:,} rows. "
                f"Training needs the ids 0 to {look.counts[role] - 1:,}, each once. Store these ids, or rename the column: raysel then numbers the "
                "rows."
            )


def check_column(look: Look, role: str, column: str, key: str) -> Column:
    """Return what an input column holds; raise an error for one that a training cannot read."""
    look.check_column(role, column, key)
    if column in (ID, getattr(look.workflow, role).label):
        what = "the ids of the rows" if column == ID else "the labels that the model is to learn"
        raise ConfigError(
            f"{key}: Column '{column}' holds {what}; name the column with the input of the model."
        )
    return held(look, role, column, key)


def held(look: Look, role: str, column: str, key: str) -> Column:
    """Return what a column holds; raise an error for one that a training cannot read."""
    try:
        return column_of(pa.schema([look.schemas[role].field(column)]).empty_table()[column], column)
    except DataError as error:
        raise DataError(
            f"{key}: {error} A training reads numbers, vectors, tensors, text and encoded images; prepare such a column in the "
            f"files of {role}.path."
        ) from None


def _kind(of: pa.DataType) -> str:
    of = of.value_type if pa.types.is_dictionary(of) else of
    return "integers" if pa.types.is_integer(of) else "booleans" if pa.types.is_boolean(of) else "text"


def _statistics(look: Look, role: str, column: str) -> tuple[Any, Any, int] | None:
    """Return the least and greatest value and the number of nulls of a column; None where a footer does not say it."""
    if role not in look.indexes:
        return None
    lows, highs, nulls = [], [], 0
    for footer in _footers(look, role):
        for group in map(footer.row_group, range(footer.num_row_groups)):
            parts = [
                part for part in map(group.column, range(group.num_columns)) if part.path_in_schema == column
            ]
            found = parts[0].statistics if parts else None
            if found is None or not found.has_null_count:
                return None
            nulls += found.null_count
            if found.has_min_max:
                lows.append(found.min)
                highs.append(found.max)
            elif found.null_count < group.num_rows:
                return None
    return (min(lows), max(highs), nulls) if lows else (None, None, nulls) if nulls else None


def _footers(look: Look, role: str) -> Iterator[pq.FileMetaData]:
    for file in look.listings[role].files:
        with file.filesystem.open_input_file(file.path) as source:
            yield pq.read_metadata(source)
