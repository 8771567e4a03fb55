"""Embedders without a neural network: a column as it is, principal components, hashed text, tables.

An embedder is a picklable callable with a name: ``embedder(rows) -> vectors (n, d) float32``. Optional
attributes:

- ``takes``: the form of the rows (see ``decode.Takes``), by default "any"
- ``tile``: number of ids that are embedded together, because a row's last bits depend on the other rows
- ``load(device)``: returns the callable to use instead, once per worker (a network and its weights)
- ``digest``: text that changes when the vectors may; by default the fingerprint
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
    """A picklable callable with a name; further attributes are optional (see the module)."""

    @property
    def name(self) -> str:
        """Name for people and for the keys of vectors."""
        ...

    def __call__(self, rows: Any) -> np.ndarray:
        """Return one vector per row: (n, d) float32."""
        ...


@dataclass(frozen=True)
class ColumnEmbedder:
    """Returns the column as it is."""

    name: str = "column"
    takes: Takes = "matrix"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows."""
        return rows

    def __fingerprint__(self) -> Any:
        return (1,)


@dataclass(frozen=True, eq=False)
class PCAEmbedder:
    """Projects onto principal components: ``(x - mean) @ components.T``.

    Attributes
    ----------
    name : str
        Name of the embedder.
    mean : array of float32, shape (D,)
        Mean of the rows.
    components : array of float32, shape (N, D)
        Components of unit length, largest variance first.
    explained : float
        Share of the variance that the N components have.
    """

    name: str
    mean: np.ndarray
    components: np.ndarray
    explained: float
    takes: Takes = "numbers"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the projections of the rows."""
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
        """Return the hashed words of each text."""
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=self.size, ngram_range=(1, 2), dtype=np.float32)
        return hashing.transform(rows).toarray()

    def __fingerprint__(self) -> Any:
        return 1, self.size, library_versions("scikit-learn")


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


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a numeric column as float64 (n,), NaN if there is no finite value."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    values[~np.isfinite(values)] = np.nan
    return values


@dataclass(frozen=True)
class FunctionEmbedder:
    """A plain Python function; a row's vector must not depend on the other rows."""

    name: str
    function: Callable[[Any], np.ndarray]
    takes: Takes = "any"

    def __call__(self, rows: Any) -> np.ndarray:
        """Return what the function returns."""
        return self.function(rows)


def check_vectors(vectors: Any, ids: np.ndarray, name: str, dimension: int | None = None) -> np.ndarray:
    """Return ``vectors`` if they are valid for these ids, (n, d) float32; raise DataError otherwise."""
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
    """Return the rows ``start`` to ``stop`` of an embedder's input."""
    return rows.slice(start, stop - start) if isinstance(rows, pa.Table) else rows[start:stop]


def length_of(rows: Any) -> int:
    """Return the number of rows of an embedder's input."""
    return rows.num_rows if isinstance(rows, pa.Table) else len(rows)
