"""Features of table columns: numbers scaled by the range they have in the pool, and hashed categories."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from raysel.cluster.blocks import stream_blocks
from raysel.core.fingerprint import library_versions
from raysel.data.decode import Takes, is_text
from raysel.data.embedders.embedder import FITTED_ON, check_no_argument
from raysel.errors import DataError

_BUCKETS = 16  # elements of a hashed category


@dataclass(frozen=True)
class TableEmbedder:
    """Features of table columns: numbers scaled to 0..1 and a flag for a missing one, categories hashed.

    ``low`` and ``high`` are the range of each numeric column in the rows it was fitted on; a number outside
    it is outside 0..1, a missing one is 0.5. A category (text, boolean, date) is a one among ``buckets``
    zeros; missing is a category.
    """

    name: str
    columns: tuple[str, ...]
    low: dict[str, float]
    high: dict[str, float]
    buckets: int
    takes: Takes = "table"

    def __call__(self, rows: pa.Table) -> np.ndarray:
        """Return the features of each row."""
        parts = [
            self._number(rows[name], name) if name in self.low else self._category(rows[name], name)
            for name in self.columns
        ]
        return np.concatenate(parts, axis=1)

    def __fingerprint__(self) -> Any:
        return 1, self.columns, self.low, self.high, self.buckets, library_versions("pyarrow")

    def _number(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        values = numbers(column, name)
        missing = np.isnan(values)
        low, width = self.low[name], self.high[name] - self.low[name]
        if np.isinf(width):  # half of the numbers have half of the range, which is a number again
            values, low, width = values / 2, low / 2, self.high[name] / 2 - low / 2
        scaled = (values - low) / (width if width > 0 else 1.0)
        with np.errstate(over="ignore"):  # an infinity is refused like any other
            return np.stack([np.where(missing, 0.5, scaled), missing], axis=1).astype(np.float32)

    def _category(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        _kind_of(column.type, name)
        vectors = np.zeros((len(column), self.buckets), np.float32)
        start = 0
        for (
            chunk
        ) in column.chunks:  # one after another, since all text of a column may not fit into one chunk
            coded = chunk.dictionary_encode()
            names = coded.dictionary.cast(pa.large_string()).to_pylist()
            keys = [b"\0" if text is None else text.encode() for text in [*names, None]]
            places = np.array([zlib.crc32(key) % self.buckets for key in keys])
            codes = pc.fill_null(coded.indices.cast(pa.int64()), len(names)).to_numpy(zero_copy_only=False)
            vectors[start + np.arange(len(chunk)), places[codes]] = 1
            start += len(chunk)
        return vectors


@dataclass(frozen=True)
class TableFeatures:
    """Join several columns into one vector: scale numbers by their range in the pool to 0..1, and hash categories.

    Parameters
    ----------
    spec : str
        Complete name, such as ``table``.
    argument : str
        Empty.

    Raises
    ------
    ConfigError
        If the name has another form.
    """

    spec: str
    argument: str
    takes: ClassVar[Takes] = "table"

    def __post_init__(self) -> None:
        check_no_argument(self.spec, self.argument)

    def check_type(self, kind: pa.DataType, name: str) -> None:
        """Raise DataError if a column holds neither numbers nor categories."""
        _kind_of(kind, name)

    def fit(self, dataset: Dataset, columns: list[str]) -> TableEmbedder:
        """Learn the ranges of the numbers."""
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        empty = True
        for part in stream_blocks(dataset, columns, FITTED_ON, _extremes):
            for name, (least, most) in part.items():
                low[name], high[name] = min(low.get(name, least), least), max(high.get(name, most), most)
            empty = False
        if empty:
            raise DataError(f"The {FITTED_ON} is empty: there are no rows to learn from.")
        unknown = {name: 0.0 for name in low if low[name] > high[name]}  # without any number to learn from
        return TableEmbedder(self.spec, tuple(columns), low | unknown, high | unknown, _BUCKETS)


def _extremes(table: pa.Table) -> dict[str, tuple[float, float]]:
    found = {}
    for name in table.column_names:
        if _kind_of(table[name].type, name) == "number":
            values = numbers(table[name], name)
            values = values[np.isfinite(values)]
            found[name] = (float(values.min()), float(values.max())) if len(values) else (np.inf, -np.inf)
    return found


def _kind_of(kind: pa.DataType, name: str) -> Literal["number", "category"]:
    """Return how a column is embedded; raise DataError if its type is neither."""
    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if (
        is_text(of) or pa.types.is_primitive(of) or pa.types.is_null(of)
    ):  # Arrow counts truth values and dates as such
        return "category"
    raise DataError(
        f"Column '{name}' holds {kind}, which is neither a number nor a category (text, truth value, date or "
        "time); leave the column out, or convert it to one of these types."
    )


def numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return a numeric column as float64 (n,), NaN if there is no finite value."""
    if _kind_of(column.type, name) != "number" and not pa.types.is_null(column.type):
        raise DataError(
            f"Column '{name}' holds {column.type}, but held numbers when the embedder was fitted; convert the "
            "column to numbers, or fit the embedder again."
        )
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
    values[~np.isfinite(values)] = np.nan
    return values
