"""What turns rows into vectors without a neural network: a column as it is, principal components, hashed text, tables.

An embedder is a picklable callable with a name: ``embedder(rows) -> vectors (n, d) float32``. It may also say

- ``takes``: what it is called with (see ``decode.Takes``), by default "any"
- ``tile``: rows come in tiles of so many ids, because a row's last bits depend on the rows beside it
- ``load(device)``: the callable to use in its place, made once in every worker (a network and its weights)
- ``digest``: text that changes when the vectors may; by default its fingerprint
- ``prepare``: applied to every decoded image where it is decoded
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.fingerprint import library_versions
from raysel.data.decode import Takes
from raysel.data.product import project
from raysel.errors import DataError, first


class Embedder(Protocol):
    """A picklable callable with a name; the attributes above are optional."""

    @property
    def name(self) -> str: ...

    def __call__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class ColumnEmbedder:
    """Takes the column as it is."""

    name: str = "column"
    takes: Takes = "matrix"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def __fingerprint__(self) -> Any:
        return (1,)


@dataclass(frozen=True, eq=False)
class PCAEmbedder:
    """Projects onto principal components: ``(x - mean) @ components.T``.

    mean: (D,) float32. components: (N, D) float32, of unit length, largest variance first.
    explained: share of the variance that the N components hold.
    """

    name: str
    mean: np.ndarray
    components: np.ndarray
    explained: float
    takes: Takes = "numbers"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"Embedder {self.name} was fitted on {len(self.mean)} columns, but these rows have {rows.shape[1]}."
            )
        return project(rows, self.mean, self.components.T)

    def __fingerprint__(self) -> Any:
        return 1, self.mean, self.components, library_versions("numpy")


@dataclass(frozen=True)
class HashEmbedder:
    """Words and pairs of words, hashed with a sign into ``size`` elements, of unit length (scikit-learn)."""

    name: str
    size: int
    takes: Takes = "text"

    def __call__(self, rows: list[str]) -> np.ndarray:
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=self.size, ngram_range=(1, 2), dtype=np.float32)
        return hashing.transform(rows).toarray()

    def __fingerprint__(self) -> Any:
        return 1, self.size, library_versions("scikit-learn")


@dataclass(frozen=True)
class TableEmbedder:
    """Features of table columns: numbers scaled to 0..1 and a flag for a missing one, categories hashed.

    low, high: the range of each numeric column in the rows it was fitted on; a number outside it goes beyond 0..1,
    a missing one is 0.5. A category (text, boolean, date) is a one among ``buckets`` zeros; missing is a category.
    """

    name: str
    columns: tuple[str, ...]
    low: dict[str, float]
    high: dict[str, float]
    buckets: int
    takes: Takes = "table"

    def __call__(self, rows: pa.Table) -> np.ndarray:
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


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A numeric column as float64 (n,), NaN where there is no finite value."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    values[~np.isfinite(values)] = np.nan
    return values


@dataclass(frozen=True)
class FunctionEmbedder:
    """A plain Python function; a row's vector must not depend on the rows beside it."""

    name: str
    function: Callable[[Any], np.ndarray]
    takes: Takes = "any"

    def __call__(self, rows: Any) -> np.ndarray:
        return self.function(rows)


def check_vectors(vectors: Any, ids: np.ndarray, name: str, dimension: int | None = None) -> np.ndarray:
    """``vectors`` if it is what an embedder must return for these ids, (n, d) float32; DataError otherwise."""
    where = f"the rows from sample_id {first(ids[:1])}"
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        got = (
            f"{vectors.dtype} of shape {vectors.shape}"
            if isinstance(vectors, np.ndarray)
            else f"a {type(vectors).__name__}"
        )
        raise DataError(
            f"Embedder {name} returned {got} for {where}; it must return float32 of shape (rows, dimension)."
        )
    if len(vectors) != len(ids):
        raise DataError(
            f"Embedder {name} returned {len(vectors):,} vectors for {len(ids):,} rows ({where}); it must return one vector per row."
        )
    if vectors.shape[1] == 0:
        raise DataError(f"Embedder {name} returned vectors without elements for {where}.")
    if dimension is not None and vectors.shape[1] != dimension:
        raise DataError(
            f"Embedder {name} returned {vectors.shape[1]} dimensions for {where}, but {dimension} before."
        )
    return vectors


def rows_of(rows: Any, start: int, stop: int) -> Any:
    """Rows ``start`` to ``stop`` of what an embedder takes."""
    return rows.slice(start, stop - start) if isinstance(rows, pa.Table) else rows[start:stop]


def length_of(rows: Any) -> int:
    """Number of rows of what an embedder takes."""
    return rows.num_rows if isinstance(rows, pa.Table) else len(rows)
