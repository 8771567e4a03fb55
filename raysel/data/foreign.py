"""Datasets of other libraries as Arrow tables. Without Ray."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.data.vectors import to_column
from raysel.errors import DataError


def from_hugging_face(dataset: Any) -> pa.Table:
    """Return the rows of a ``datasets.Dataset``, in its order; classes stay numbers, images encoded bytes."""
    if not hasattr(dataset, "num_rows") or isinstance(dataset, dict):
        raise DataError(
            f"A {type(dataset).__name__} is not one table; choose a split (dataset['train']) that is not streamed."
        )
    table = dataset.with_format("arrow")[:]
    return table.replace_schema_metadata(None)


def from_torch(dataset: Any) -> pa.Table:
    """Return the items of a map-style Dataset: dicts by name, pairs as data and target, others as data."""
    items = [dataset[i] for i in range(len(dataset))]
    if not items:
        raise DataError(f"The {type(dataset).__name__} has no rows.")
    rows = [_named(item) for item in items]
    names = list(rows[0])
    odd = next((i for i, row in enumerate(rows) if list(row) != names), None)
    if odd is not None:
        raise DataError(
            f"The items of the {type(dataset).__name__} differ: item {odd} has {list(rows[odd])}, item 0 has {names}. Every item must have the same keys."
        )
    return pa.table({name: _column([row[name] for row in rows], name) for name in names})


def _named(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, (tuple, list)):
        names = itertools.chain(["data", "target"], (f"field{i}" for i in itertools.count(2)))
        return dict(zip(names, item, strict=False))
    return {"data": item}


def _column(values: list[Any], name: str) -> pa.Array:
    if hasattr(values[0], "numpy"):  # tensors
        values = [value.numpy() for value in values]
    try:
        if isinstance(values[0], np.ndarray) and values[0].ndim:
            return to_column(np.stack(values))
        if type(values[0]).__module__.startswith("PIL."):
            return to_column(np.stack([np.asarray(value) for value in values]))
        return pa.array(
            [value.item() if isinstance(value, (np.generic, np.ndarray)) else value for value in values]
        )
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"Column '{name}' holds values of mixed shapes or types ({str(error).splitlines()[0]}); give all values the same shape and type."
        ) from None
