"""Data sets of Hugging Face and torch as Arrow tables. Without Ray."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from raysel.data.columns import columns_table
from raysel.data.listing import warn
from raysel.errors import DataError


def _bases(source: Any) -> list[str]:
    return [base.__module__.partition(".")[0] for base in type(source).__mro__]


def is_hugging_face(source: Any) -> bool:
    """Return whether ``source`` is of the package datasets: one table, several, or a stream."""
    return "datasets" in _bases(source) and hasattr(source, "with_format")


def from_hugging_face(dataset: Any) -> pa.Table:
    """Return the rows of a ``datasets.Dataset``, in its order; classes stay numbers, images encoded bytes."""
    name = type(dataset).__name__
    if isinstance(dataset, dict):
        splits = ", ".join(map(repr, dataset))
        raise DataError(
            f"A {name} is not one table; choose one of its splits ({splits}), for example dataset['train']."
        )
    if not hasattr(dataset, "num_rows"):
        raise DataError(streamed(name))
    if (getattr(dataset, "format", None) or {}).get("type") == "custom":
        warn(
            f"raysel reads the stored rows of this {name} and does not apply its transform. Use map() to store the rows that the "
            "transform returns."
        )
    return dataset.with_format("arrow")[:]


def is_map_style(source: Any) -> bool:
    """Return whether ``source`` is a data set of torch, or has items by number and their count."""
    if isinstance(source, (str, bytes, list, tuple)):
        return False
    return "torch" in _bases(source) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))


def from_torch(dataset: Any) -> pa.Table:
    """Return the items of a map-style Dataset: dicts by name, pairs as data and target, others as data."""
    name = type(dataset).__name__
    streams = any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__)
    if streams or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(streamed(name))
    rows: list[Mapping[Any, Any]] = []
    for number in range(len(dataset)):
        try:
            rows.append(_named(dataset[number]))
        except Exception as error:  # the user's own code: anything can happen
            text = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
            raise DataError(
                f"Item {number} of the {name} cannot be read ({type(error).__name__}: {text})."
            ) from error
        if list(rows[-1]) != list(rows[0]):
            raise DataError(
                f"The items of the {name} have different fields: item {number} has {list(rows[-1])}, item 0 has "
                f"{list(rows[0])}; give every item the same fields."
            )
    if not rows:
        raise DataError(f"The {name} has no rows.")
    return columns_table({name: [row[name] for row in rows] for name in rows[0]})


def _named(item: Any) -> Mapping[Any, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return dict(zip(item._fields, item, strict=True))
    if isinstance(item, (tuple, list)):
        names = itertools.chain(["data", "target"], (f"field{i}" for i in itertools.count(2)))
        return dict(zip(names, item, strict=False))
    return {"data": item}


def streamed(name: str) -> str:
    """Return the sentence about a source whose rows come one after another, without a number."""
    return (
        f"This {name} is streamed, so the number and the order of its rows are not fixed, and raysel cannot number the rows. "
        "Write it to Parquet and read the files, or load it without streaming."
    )
