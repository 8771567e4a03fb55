"""Rows in memory as an Arrow table: tables, data frames, arrays and datasets of other libraries. Without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysel.data.foreign import from_hugging_face, from_torch
from raysel.data.vectors import to_column
from raysel.errors import DataError


def as_table(source: Any) -> pa.Table:
    """Return the rows of ``source``; raise DataError if they cannot be columns."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source, preserve_index=False).replace_schema_metadata(None)
    if type(source).__module__.partition(".")[0] == "datasets" and hasattr(source, "with_format"):
        return from_hugging_face(source)
    if isinstance(source, np.ndarray):
        source = {"data": source}
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(values) for name, values in source.items()}
        lengths = {name: len(values) if values.ndim else None for name, values in arrays.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise DataError(
                f"The columns have different lengths ({lengths}); every column needs one value per row."
            )
        return pa.table({n: to_column(v) if v.ndim > 1 else pa.array(v) for n, v in arrays.items()})
    if (
        hasattr(source, "__getitem__")
        and hasattr(source, "__len__")
        and not isinstance(source, (str, list, tuple))
    ):
        return from_torch(source)
    raise DataError(
        f"Rows cannot be read from a {type(source).__name__}; give a path, a DataFrame, an Arrow table, "
        "NumPy arrays, a Ray Dataset, a Hugging Face dataset or a map-style torch Dataset."
    )
