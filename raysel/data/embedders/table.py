"""Features of table columns: numbers scaled by the range they have in the pool, and hashed categories."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from raysel.cluster.blocks import stream_blocks
from raysel.core.fingerprint import library_versions
from raysel.data.decode import Takes
from raysel.data.embedders.embedder import check_no_argument

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
            self._number(rows[name], name) if name in self.low else self._category(rows[name])
            for name in self.columns
        ]
        return np.concatenate(parts, axis=1)

    def __fingerprint__(self) -> Any:
        return 1, self.columns, self.low, self.high, self.buckets, library_versions("pyarrow")

    def _number(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        values = numbers(column)
        missing = np.isnan(values)
        width = self.high[name] - self.low[name]
        scaled = (values - self.low[name]) / (width if width > 0 else 1.0)
        return np.stack([np.where(missing, 0.5, scaled), missing], axis=1).astype(np.float32)

    def _category(self, column: pa.ChunkedArray) -> np.ndarray:
        coded = column.combine_chunks().dictionary_encode()
        names = coded.dictionary.cast(pa.string()).to_pylist()
        places = [zlib.crc32(text.encode()) % self.buckets for text in names] + [
            zlib.crc32(b"\0") % self.buckets
        ]
        codes = pc.fill_null(coded.indices, len(names)).to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(column), self.buckets), np.float32)
        vectors[np.arange(len(column)), np.array(places)[codes]] = 1
        return vectors


@dataclass(frozen=True)
class TableFeatures:
    """Features of several columns: numbers scaled to 0..1 and hashed categories, fitted on the pool.

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

    def __post_init__(self) -> None:
        check_no_argument(self.spec, self.argument)

    def fit(self, dataset: Dataset, columns: list[str]) -> TableEmbedder:
        """Learn the ranges of the numbers."""
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        for part in stream_blocks(dataset, columns, "dataset to fit on", _extremes):
            for name, (least, most) in part.items():
                low[name], high[name] = min(low.get(name, least), least), max(high.get(name, most), most)
        return TableEmbedder(self.spec, tuple(columns), low, high, _BUCKETS)


def _extremes(table: pa.Table) -> dict[str, tuple[float, float]]:
    found = {}
    for name in table.column_names:
        kind = table[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            values = numbers(table[name])
            values = values[np.isfinite(values)]
            found[name] = (float(values.min()), float(values.max())) if len(values) else (np.inf, -np.inf)
    return found


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a numeric column as float64 (n,), NaN if there is no finite value."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    values[~np.isfinite(values)] = np.nan
    return values
