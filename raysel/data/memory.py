"""Rows in memory as an Arrow table: tables, data frames, arrays and data sets of other libraries. Without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysel.data.arrow_types import plain_table
from raysel.data.columns import columns_table, is_tensor
from raysel.data.foreign import from_hugging_face, from_torch, is_hugging_face, is_map_style, streamed
from raysel.data.formats.format import checked
from raysel.errors import DataError, shown

_ROWS = "the table"


def as_table(source: Any) -> pa.Table:
    """Return the rows of ``source`` with the values that it holds.

    Parameters
    ----------
    source : table, data frame, arrays, dicts or data set
        What :func:`raysel.read` takes, without paths and Ray's own Datasets.

    Returns
    -------
    pyarrow.Table
        Columns of plain types, without metadata.

    Raises
    ------
    DataError
        For rows that cannot be columns, or not with the values that they have.
    """
    try:
        return checked(plain_table(_table(source), _ROWS))
    except DataError:
        raise
    except Exception as error:  # of the library that holds the rows
        text = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
        raise DataError(
            f"Rows cannot be read from this {type(source).__name__} ({type(error).__name__}: {text})."
        ) from error


def _table(source: Any) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, pd.DataFrame):
        return _from_pandas(source)
    if is_hugging_face(source):
        return from_hugging_face(source)
    if isinstance(source, Mapping):
        return columns_table(source)
    if isinstance(source, np.ndarray) and source.dtype.names is not None:
        return columns_table({name: source[name] for name in source.dtype.names})
    if isinstance(source, (np.ndarray, pd.Series, pa.Array, pa.ChunkedArray)) or is_tensor(source):
        return columns_table({"data": source})
    if hasattr(source, "__arrow_c_stream__"):
        return _from_stream(source)
    if hasattr(source, "__arrow_c_array__"):
        return pa.Table.from_batches([pa.record_batch(source)])
    if isinstance(source, (list, tuple)) and all(isinstance(row, Mapping) for row in source):
        return _from_dicts(source)
    if is_map_style(source):
        return from_torch(source)
    if hasattr(source, "__next__"):
        raise DataError(streamed(type(source).__name__))
    if hasattr(source, "collect"):
        raise DataError(
            f"A {type(source).__name__} is only a query; give its result, {_name(source)}.collect()."
        )
    raise DataError(
        f"Rows cannot be read from {shown(source) if source is None else f'the type {type(source).__name__}'}; give a path, a DataFrame, an Arrow table, a list of dicts, "
        "NumPy arrays, a Ray Dataset, a Hugging Face dataset or a map-style torch Dataset."
    )


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    """Return a data frame's columns, the named levels of its index first; an index without a name only counts rows."""
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError(
            "The columns of the DataFrame have names of several levels (a MultiIndex); join the levels of each name into one text, and read the DataFrame again."
        )
    index = frame.index
    levels = [(name, index.get_level_values(i)) for i, name in enumerate(index.names) if name is not None]
    names = [name for name, _ in levels] + list(frame.columns)
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(
            f"The DataFrame has more than one column {min(map(repr, twice))} (levels of the index count as columns); rename one of "
            "them."
        )
    return columns_table({**dict(levels), **{name: frame[name] for name in frame.columns}})


def _from_stream(source: Any) -> pa.Table:
    """Return the rows of a data frame, or of one series as the column ``data``."""
    if type(source).__module__.startswith("polars"):  # whose objects go through Arrow as addresses in memory
        for name, kind in dict(getattr(source, "schema", {})).items():
            if str(kind) in ("Object", "Int128", "UInt128"):
                if str(kind) == "Object":
                    what, advice = "Python objects", "numbers or text"
                else:
                    what, advice = f"{kind} integers", "Int64, UInt64, Float64 or text"
                raise DataError(
                    f"Column '{name}' holds {what}, which Arrow cannot store; convert the column to {advice}."
                )
    rows = pa.chunked_array(source)
    return (
        pa.Table.from_struct_array(rows) if pa.types.is_struct(rows.type) else columns_table({"data": rows})
    )


def _from_dicts(rows: Sequence[Mapping[Any, Any]]) -> pa.Table:
    """Return one row per dict; a key that a dict lacks is a missing value."""
    if not rows:
        raise DataError(f"There are no rows in {_ROWS}.")
    names = dict.fromkeys(name for row in rows for name in row)
    return columns_table({name: [row.get(name) for row in rows] for name in names})


def _name(source: Any) -> str:
    return type(source).__name__.lower()
