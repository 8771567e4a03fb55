"""Tables whose columns can be stored, in plain types, with each name once. Without Ray."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raysel.core.arrow import plain_column, plain_type
from raysel.errors import DataError, first


def stored_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Return the plain type of column ``name``; raise DataError if its values cannot be stored."""
    _check(kind, name)
    return plain_type(kind)


def stored_column(column: Any, name: str) -> Any:
    """Return the values of a column in their plain type; raise DataError if they cannot be stored."""
    _check(column.type, name)
    return plain_column(column)


def _check(kind: pa.DataType, name: str) -> None:
    types = pa.types
    if types.is_union(kind):
        raise DataError(
            f"Column '{name}' holds values of several types ({kind}); convert them to one type, or write one column per type."
        )
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name in ("pandas.period", "pandas.interval"):
            what = kind.extension_name.removeprefix("pandas.")
            raise DataError(
                f"Column '{name}' holds pandas {what}s, which raysel cannot store; convert them to text or timestamps."
            )
        _check(kind.storage_type, name)
    elif types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        _check(kind.value_type, name)
    else:
        for at in range(kind.num_fields):  # of a list, map or struct
            _check(kind.field(at).type, name)


def plain_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """Return the columns in their plain types, nullable and without metadata.

    Raises
    ------
    DataError
        For a name that occurs twice, and for types that cannot be stored.
    """
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Column {first(map(repr, twice))} occurs more than once in {where}; rename one of them."
        )
    return pa.schema([pa.field(field.name, stored_type(field.type, field.name)) for field in schema])


def plain_table(table: pa.Table, where: str) -> pa.Table:
    """Return the rows of a table in the plain types of their columns; see :func:`plain_schema`."""
    schema = plain_schema(table.schema, where)
    try:
        return pa.Table.from_arrays([plain_column(column) for column in table.columns], schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"The columns of {where} cannot be read ({str(error).splitlines()[0]}).") from error
