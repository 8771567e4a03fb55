"""Vectors for rows: the column ``embedding`` (float32, one length) that preselection works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.data.blocks import check_columns, vector_blocks
from raysel.data.rowid import ID
from raysel.data.tiles import matmul
from raysel.data.vectors import EMBEDDING, as_matrix, to_column
from raysel.errors import ConfigError, DataError

_PCA_ROWS = (
    65_536  # rows a PCA is fitted on, sampled by id: bounds the driver's memory, not the answer's worth
)


class Embedder(Protocol):
    """What turns a column's rows (n, ...) into vectors: a picklable callable with a name."""

    @property
    def name(self) -> str: ...

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (n, d) float32 of the rows (n, D) float32."""


@dataclass(frozen=True)
class ColumnEmbedder:
    """Takes the column as it is."""

    name: str = "column"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows


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

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"{self.name} was fitted on {len(self.mean)} columns, these rows have {rows.shape[1]}."
            )
        return matmul(rows - self.mean, np.ascontiguousarray(self.components.T))


def fit_embedder(
    spec: str, dataset: Dataset | None = None, *, column: str | None = None, seed: int = 0
) -> Embedder:
    """The embedder that ``spec`` names, fitted on ``dataset`` where it must learn from data.

    spec: ``"column"`` (the column holds vectors already) or ``"pca:N"`` (N principal components).
    Use one fitted embedder for pool and target: two fits would give vectors that cannot be compared.
    ConfigError for an unknown spec; DataError for a column that holds no usable vectors.
    """
    kind, _, argument = spec.partition(":")
    if kind == "column" and not argument:
        return ColumnEmbedder()
    if kind == "pca":
        if not argument.isdecimal() or int(argument) < 1:
            raise ConfigError(f"embedder: '{spec}' names no number of components; write pca:32, for example.")
        if dataset is None or column is None:
            raise ConfigError(
                f"embedder: '{spec}' learns from data; give the dataset and the column to fit it on."
            )
        return _fit_pca(spec, int(argument), dataset, column, seed)
    raise ConfigError(f"embedder: '{spec}' is not known; there are column and pca:N.")


def embed(dataset: Dataset, embedder: str | Embedder, *, column: str) -> Dataset:
    """``dataset`` with the column ``embedding``: one float32 vector a row, made from ``column``.

    embedder: ``"column"``, or what :func:`fit_embedder` returned. Lazy. A row's vector is the same bit for
    bit however the data set is split into blocks.
    """
    if isinstance(embedder, str):
        if embedder.startswith("pca"):
            raise ConfigError(
                f"embedder: '{embedder}' learns from data; fit it once with "
                f"raysel.fit_embedder('{embedder}', pool, column='{column}') and use it for pool and target alike."
            )
        embedder = fit_embedder(embedder)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:  # else the step that makes the rows is still lazy, and the block below will tell
        check_columns(schema.names, [column], "dataset to embed")
    return dataset.map_batches(
        _embed_block, fn_args=(embedder, column), batch_format="pyarrow", batch_size=None
    )


def _embed_block(table: pa.Table, embedder: Embedder, column: str) -> pa.Table:
    check_columns(table.column_names, [column], "dataset to embed")
    ids = table[ID].to_numpy() if ID in table.column_names else None
    rows = as_matrix(table[column], column, ids)
    vectors = check_vectors(embedder(rows), len(rows), embedder.name)
    if EMBEDDING in table.column_names:
        table = table.drop_columns([EMBEDDING])
    return table.append_column(EMBEDDING, to_column(vectors))


def check_vectors(vectors: Any, rows: int, name: str) -> np.ndarray:
    """``vectors`` if it is what an embedder must return, (rows, d) float32; DataError otherwise."""
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        got = (
            f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        )
        raise DataError(f"Embedder {name} returned {got}; it must return float32 of shape (rows, dimension).")
    if len(vectors) != rows:
        raise DataError(f"Embedder {name} returned {len(vectors)} vectors for {rows} rows.")
    return vectors


def _fit_pca(spec: str, components: int, dataset: Dataset, column: str, seed: int) -> PCAEmbedder:
    from sklearn.decomposition import PCA  # two seconds that workers, who only project, need not spend
    from threadpoolctl import threadpool_limits

    source = vector_blocks(dataset, column, "dataset to fit on")
    _, sample = source.sample(_PCA_ROWS, seed)
    most = min(source.dimension, len(sample))
    if components > most:
        raise ConfigError(
            f"embedder: '{spec}' asks for {components} components; {len(sample)} rows of {source.dimension} "
            f"columns have at most {most}."
        )
    with threadpool_limits(limits=1):  # more threads would add in another order
        fitted = PCA(components, svd_solver="covariance_eigh").fit(sample.astype(np.float64))
    return PCAEmbedder(
        spec,
        fitted.mean_.astype(np.float32),
        np.ascontiguousarray(fitted.components_, dtype=np.float32),
        float(fitted.explained_variance_ratio_.sum()),
    )
