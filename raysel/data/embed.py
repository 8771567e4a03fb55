"""Vectors for rows: the column ``embedding`` (float32 or float16, all of one length) that selectors read."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.blocks import check_columns, materialized, plain_errors, stream_blocks
from raysel.cluster.code import load_object
from raysel.core.fingerprint.files import cache_root
from raysel.data import pipeline, shards
from raysel.data.decode import decode
from raysel.data.embedders import (
    ColumnEmbedder,
    Embedder,
    FunctionEmbedder,
    HashEmbedder,
    PCAEmbedder,
    TableEmbedder,
    check_vectors,
    numbers,
)
from raysel.data.pca import Grid, Moments, Range, components
from raysel.data.read import parquet_rows
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, as_vectors, not_finite, to_column
from raysel.errors import ConfigError, DataError, first
from raysel.registry import EMBEDDERS

_NETWORKS = ("sentence-transformers", "timm", "torchvision", "open_clip", "torch")
_BUCKETS = 16  # elements of a hashed category


def fit_embedder(
    spec: str | Embedder | Learner,
    dataset: Dataset | None = None,
    *,
    column: str | Sequence[str] | None = None,
) -> Embedder:
    """Make the embedder that ``spec`` names, and fit it on ``dataset`` if it learns from data.

    Use one fitted embedder for pool and target: vectors of two fits cannot be compared.

    Parameters
    ----------
    spec : str or object
        One of

        - ``column``: the column holds vectors already;
        - ``pca:N``: N principal components of all rows, the same bits for any number of blocks;
        - ``hash:N``: words and pairs of words of text, hashed into N elements;
        - ``table``: numbers scaled to 0..1 and hashed categories of the columns;
        - ``sentence-transformers:NAME_OR_PATH``, ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``:
          pretrained networks, from local weights;
        - ``torch:file.py:factory``, ``torch:module:factory``: a network of your own; with ``:penultimate``
          appended, the input of its last linear layer;
        - ``file.py:Name``, ``package.module:Name``: an embedder of your own. Naming one runs its code;
        - an embedder object, which is fitted if it has a method ``fit(dataset, columns)``.
    dataset : ray.data.Dataset, optional
        Rows to learn from.
    column : str or list of str, optional
        Columns to learn from.

    Returns
    -------
    Embedder
        A callable with a name, which `raysel.embed` applies.

    Raises
    ------
    ConfigError
        If the name is unknown or the model is not available.
    DataError
        If the column has no usable values.

    Examples
    --------
    >>> embedder = raysel.fit_embedder("pca:2", rows, column="embedding")
    >>> embedder.name
    'pca:2'
    """
    made = make_embedder(spec) if isinstance(spec, str) else spec
    if hasattr(made, "fit"):
        name = spec if isinstance(spec, str) else getattr(made, "name", type(made).__name__)
        return as_embedder(made.fit(*_fitted_on(name, dataset, column)))
    return as_embedder(made)


class Learner(Protocol):
    """An embedder that has to be fitted before it embeds."""

    def fit(self, dataset: Dataset, columns: list[str]) -> Embedder:
        """Return the fitted embedder."""
        ...


def make_embedder(spec: str, where: str = "embedder") -> Any:
    """Return the embedder that ``spec`` names, not fitted yet; its ConfigErrors begin with ``where``."""
    kind, _, argument = spec.partition(":")
    if kind in _NETWORKS and not argument:
        raise ConfigError(f"{where}: '{spec}' does not name a model; write {kind}:NAME.")
    if kind in EMBEDDERS.names():
        return EMBEDDERS.find(kind, where, load_object)(spec, argument)
    found = EMBEDDERS.find(spec, where, load_object)
    return found() if isinstance(found, type) else found


def stored_column(spec: str, argument: str) -> ColumnEmbedder:
    """Vectors that the column holds already.

    Parameters
    ----------
    spec : str
        Complete name, such as ``column``.
    argument : str
        Empty.

    Returns
    -------
    ColumnEmbedder
        An embedder that needs no fit.

    Raises
    ------
    ConfigError
        If the name has another form.
    """
    _check_argument(spec, not argument, "column")
    return ColumnEmbedder()


def hashed_text(spec: str, argument: str) -> HashEmbedder:
    """Words and pairs of words of a text, hashed.

    Parameters
    ----------
    spec : str
        Complete name, such as ``hash:256``.
    argument : str
        Number of elements per vector.

    Returns
    -------
    HashEmbedder
        An embedder that needs no fit.

    Raises
    ------
    ConfigError
        If the name has another form.
    """
    return HashEmbedder(spec, _elements(spec, argument))


@dataclass(frozen=True)
class PCA:
    """Principal components of a numeric column, fitted on the pool.

    Parameters
    ----------
    spec : str
        Complete name, such as ``pca:32``.
    argument : str
        Number of components.

    Raises
    ------
    ConfigError
        If the name has another form.
    """

    spec: str
    argument: str

    def __post_init__(self) -> None:
        _elements(self.spec, self.argument)

    def fit(self, dataset: Dataset, columns: list[str]) -> PCAEmbedder:
        """Learn the components from the first of ``columns``."""
        return _fit_pca(self.spec, int(self.argument), dataset, columns)


@dataclass(frozen=True)
class TableFeatures:
    """Numbers scaled to 0..1 and hashed categories of a table's columns, fitted on the pool.

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
        _check_argument(self.spec, not self.argument, "table")

    def fit(self, dataset: Dataset, columns: list[str]) -> TableEmbedder:
        """Learn the ranges of the numbers."""
        return _fit_table(self.spec, dataset, columns)


def _elements(spec: str, argument: str) -> int:
    kind = spec.partition(":")[0]
    if not argument.isdecimal() or int(argument) < 1:
        raise ConfigError(f"embedder: '{spec}' lacks the number of elements; write {kind}:32, for example.")
    return int(argument)


def _check_argument(spec: str, right: bool, example: str) -> None:
    if not right:
        raise ConfigError(f"embedder: '{spec}' is unknown; write {example}.")


def embed(
    dataset: Dataset,
    embedder: str | Embedder | Callable[[Any], np.ndarray],
    *,
    column: str | Sequence[str],
    normalize: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    on_error: Literal["raise", "drop", "null"] = "raise",
    directory: str | os.PathLike[str] | None = None,
    version: str | None = None,
) -> Dataset:
    """Add the column ``embedding``: one vector per row, computed from ``column``.

    A row's vector has the same bits however the data set is split into blocks and on any number of nodes.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows to embed.
    embedder : str, Embedder or callable
        A name as in `raysel.fit_embedder`, what that function returned, or a function of rows (text as a list
        of str, encoded images as a list of RGB arrays, numbers as a float32 matrix) that returns float32
        vectors (n, d).
    column : str or sequence of str
        Column to embed, or several for an embedder that takes a table.
    normalize : bool
        Scale vectors to unit length.
    dtype : {"float32", "float16"}
        Type in which vectors are stored.
    on_error : {"raise", "drop", "null"}
        What happens to a row without a value, or whose image or vector cannot be used: raise DataError, leave
        the row out, or give it a null vector. The last two list the row with the reason in
        ``_rejected.parquet`` next to the vectors.
    directory : path or URI, optional
        Where vectors are written; every node must be able to reach it. Networks, and ``on_error`` other than
        "raise", always write. Default: under ``$RAYSEL_CACHE`` or ``~/.cache/raysel``, by content, so that
        the same rows are not embedded twice. An interrupted call is resumed from there.
    version : str, optional
        Identifies the embedder, with its name, in the key of written vectors. Default: the fingerprint of the
        embedder, which covers its code and your own code and values that it reads. A fingerprint cannot be
        made of open files, locks or connections, and does not cover data files that the code reads. Change
        the version whenever the vectors may change.

    Returns
    -------
    ray.data.Dataset
        ``dataset`` with the column ``embedding``. If nothing is written, vectors are computed lazily. If
        vectors are written and ``dataset`` is not plain Parquet (see
        :func:`raysel.data.read.parquet_rows`), its steps are run once and its rows are put into Ray's
        object store, which spills to disk what does not fit; the result is made of these rows, so that
        reading it does not run the steps again.

    Raises
    ------
    ConfigError
        If the embedder is unknown or still has to be fitted.
    DataError
        If a column is missing, or a row cannot be used and ``on_error="raise"``.

    Examples
    --------
    >>> vectors = raysel.embed(rows, lambda matrix: matrix[:, :2], column="embedding", normalize=True)
    >>> len(vectors.take(1)[0]["embedding"])
    2
    """
    named = make_embedder(embedder) if isinstance(embedder, str) else embedder
    if hasattr(named, "fit"):
        raise ConfigError(
            f"embedder: '{embedder}' learns from data. Fit it once with "
            f"raysel.fit_embedder('{embedder}', pool, column='{column}') and use it for both pool and target."
        )
    made = as_embedder(named)
    columns = [column] if isinstance(column, str) else list(column)
    options = shards.Options(normalize, dtype, on_error)
    if version is not None and not (isinstance(version, str) and version):
        raise ConfigError(f'version: {version!r} is not text; write version="1", for example.')
    written = directory is not None or hasattr(made, "load") or on_error != "raise"
    if not written:
        schema = dataset.schema(fetch_if_missing=False)
        if (
            schema is not None
        ):  # else the step that makes the rows is still lazy, and the block below will tell
            check_columns(schema.names, columns, "dataset to embed")
        return plain_errors(
            dataset.map_batches(
                _embed_block, fn_args=(made, columns, options), batch_format="pyarrow", batch_size=None
            )
        )
    if parquet_rows(dataset) is None:
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None:
            check_columns(schema.names, columns, "dataset to embed")
        dataset = materialized(dataset)  # its steps run here, and never again
    source = pipeline.source_of(dataset, columns)
    place = os.fspath(directory) if directory is not None else _cache(source, made, columns, options, version)
    watch = _tell if sys.stderr.isatty() else None
    report = pipeline.compute(source, made, columns, place, options, watch, version)
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
    return pipeline.attach(dataset, place, made, report, options)


def as_embedder(embedder: Embedder | Callable[[Any], np.ndarray]) -> Embedder:
    """Return ``embedder``; a plain function becomes an embedder with the function's name."""
    if isinstance(getattr(embedder, "name", None), str):
        return embedder  # type: ignore[return-value]
    if not callable(embedder):
        raise ConfigError(
            f"embedder: {embedder!r} is neither a name nor a function of rows; the names are "
            f"{', '.join(EMBEDDERS.names())}."
        )
    return FunctionEmbedder(getattr(embedder, "__qualname__", type(embedder).__name__), embedder)


def _cache(
    source: pipeline.Source,
    embedder: Embedder,
    columns: list[str],
    options: shards.Options,
    version: str | None,
) -> str:
    key = pipeline.key_of(source, embedder, columns, options, version)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return f"{cache_root()}/vectors/{name}"


def _tell(text: str) -> None:
    sys.stderr.write(f"\r\x1b[2K  embedding      {text}")
    sys.stderr.flush()


def _embed_block(
    table: pa.Table, embedder: Embedder, columns: list[str], options: shards.Options
) -> pa.Table:
    check_columns(table.column_names, columns, "dataset to embed")
    if isinstance(embedder, ColumnEmbedder) and options == shards.Options():
        vectors_there = as_vectors(table[columns[0]])
        if vectors_there is not None:  # nothing to compute, and nothing to copy
            return _with_vectors(table, vectors_there)
    if table.num_rows == 0:
        return table
    numbered = table if ID in table.column_names else table.append_column(ID, pa.array(range(len(table))))
    rows = decode(numbered, columns, getattr(embedder, "takes", "any"), getattr(embedder, "prepare", None))
    if rows.rejected:
        shards.refuse(rows.rejected, numbered[ID].to_numpy())
    vectors = check_vectors(embedder(rows.rows), rows.ids, embedder.name)
    if not isinstance(embedder, ColumnEmbedder):  # a column's own are checked where they are used
        shards.refuse_not_finite(vectors, rows.ids, embedder.name)
    return _with_vectors(table, to_column(shards.finish(vectors, rows.ids, embedder.name, options)))


def _with_vectors(table: pa.Table, vectors: pa.Array | pa.ChunkedArray) -> pa.Table:
    if EMBEDDING in table.column_names:
        table = table.drop_columns([EMBEDDING])
    return table.append_column(EMBEDDING, vectors)


# ---- fitting -------------------------------------------------------------------------------------------------


def _fitted_on(
    spec: str, dataset: Dataset | None, column: str | Sequence[str] | None
) -> tuple[Dataset, list[str]]:
    if dataset is None or column is None:
        raise ConfigError(
            f"embedder: '{spec}' learns from data; give the dataset and the column to fit it on."
        )
    return dataset, [column] if isinstance(column, str) else list(column)


def _fit_pca(spec: str, count: int, dataset: Dataset, columns: list[str]) -> PCAEmbedder:
    name = columns[0]
    what = "dataset to fit on"
    wanted = [ID, name] if ID in (dataset.columns() or []) else [name]
    span: Range | None = None
    bad = 0
    some: list[int] = []
    for part, wrong in stream_blocks(dataset, wanted, what, _range, name):
        bad, some = bad + len(wrong), sorted([*some, *wrong.tolist()])[:4]
        if part is not None:
            if span is not None and len(span.low) != len(part.low):
                raise DataError(
                    f"Column '{name}' of the {what} holds vectors of different lengths: "
                    f"{first(sorted((len(span.low), len(part.low))))}."
                )
            span = part if span is None else span + part
    if bad:
        more = f" and {bad - 3:,} more" if bad > 3 else ""
        raise DataError(
            f"Column '{name}' of the {what} holds NaN or infinite values in {bad:,} rows (sample_id "
            f"{first(some[:3])}{more}); repair or drop these rows first."
        )
    if span is None:
        raise DataError(f"The {what} is empty: there are no rows to learn from.")
    most = min(len(span.low), span.rows)
    if count > most:
        raise ConfigError(
            f"embedder: '{spec}' has {count} components, but {span.rows} rows of {len(span.low)} columns have at "
            f"most {most}; ask for fewer."
        )
    grid = Grid.over(span)
    total: Moments | None = None
    for moments in stream_blocks(dataset, wanted, what, _moments, name, grid):
        total = moments if total is None else total + moments
    assert total is not None
    return PCAEmbedder(spec, *components(total, grid, count))


def _values(table: pa.Table, name: str) -> np.ndarray:
    numbered = table if ID in table.column_names else table.append_column(ID, pa.array(range(len(table))))
    rows = decode(numbered, [name], "numbers")
    if rows.rejected:
        shards.refuse(rows.rejected, rows.ids)
    return rows.rows


def _range(table: pa.Table, name: str) -> tuple[Range | None, np.ndarray]:
    values = _values(table, name)
    ids = table[ID].to_numpy() if ID in table.column_names else np.arange(len(values))
    if values.dtype.kind == "f" and len(bad := not_finite(values)):
        return None, ids[bad]
    return Range.of(values), ids[:0]


def _moments(table: pa.Table, name: str, grid: Grid) -> Moments:
    return Moments.of(_values(table, name), grid)


def _fit_table(spec: str, dataset: Dataset, columns: list[str]) -> TableEmbedder:
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for part in stream_blocks(dataset, columns, "dataset to fit on", _extremes):
        for name, (least, most) in part.items():
            low[name], high[name] = min(low.get(name, least), least), max(high.get(name, most), most)
    return TableEmbedder(spec, tuple(columns), low, high, _BUCKETS)


def _extremes(table: pa.Table) -> dict[str, tuple[float, float]]:
    found = {}
    for name in table.column_names:
        kind = table[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            values = numbers(table[name])
            values = values[np.isfinite(values)]
            found[name] = (float(values.min()), float(values.max())) if len(values) else (np.inf, -np.inf)
    return found
