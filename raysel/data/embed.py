"""Vectors for rows: the column ``embedding`` (float32 or float16, all of one length) that selectors read."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from ray import cloudpickle
from ray.data import Dataset

from raysel.cluster.blocks import check_columns, materialized, plain_errors
from raysel.core.fingerprint.files import cache_root
from raysel.core.storage import output
from raysel.data import pipeline, shards
from raysel.data.datasource import parquet_rows
from raysel.data.decode import decode
from raysel.data.embedders.build import (
    as_embedder,
    check_columns_of,
    check_object,
    check_types,
    column_names,
    make_embedder,
)
from raysel.data.embedders.column import ColumnEmbedder
from raysel.data.embedders.embedder import Embedder, FunctionEmbedder, check_vectors
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID
from raysel.data.sources import Source, source_of
from raysel.data.vectors import EMBEDDING, as_vectors, to_column
from raysel.errors import ConfigError, reason_of


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

    The vector of a row has the same bits for any division of the data set into blocks and on any number of nodes.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows to embed.
    embedder : str, Embedder or callable
        A name as in `raysel.fit_embedder`, an embedder that this function returned, or a function of rows (text as a list
        of str, encoded images as a list of RGB arrays, numbers as a float32 matrix) that returns float32
        vectors (n, d). Of a function, a copy is made: later changes of values that it reads have no effect.
    column : str or sequence of str
        Column to embed, or several for an embedder that takes a table.
    normalize : bool
        Scale vectors to unit length.
    dtype : {"float32", "float16"}
        Type in which vectors are stored.
    on_error : {"raise", "drop", "null"}
        What happens to a row without a value, or whose image or vector cannot be used: raise DataError, leave
        the row out, or give it a null vector. With "drop" and "null", the file ``_rejected.parquet`` next to
        the vectors lists the row and the reason.
    directory : path, optional
        Directory for the vectors, which every node must be able to write and read. Vectors are always written
        if the embedder is a network or ``on_error`` is not "raise". Default: a directory in ``$RAYSEL_CACHE``
        or ``~/.cache/raysel`` whose name depends on the content of the rows, so that the same rows are not
        embedded twice. An interrupted call resumes from the written vectors.
    version : str, optional
        Text that identifies the embedder, together with its name. Default: the fingerprint of the embedder,
        which covers its code and your own code and values that it reads. Open files, locks and connections have
        no fingerprint, and data files that the code reads are not part of it. Change the version whenever the
        vectors may change.

    Returns
    -------
    ray.data.Dataset
        ``dataset`` with the column ``embedding``. If nothing is written, vectors are computed lazily. If
        vectors are written and ``dataset`` is not plain Parquet (see
        :func:`raysel.data.datasource.parquet_rows`), its steps are run once and its rows are put into Ray's
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
    check_object(named)
    if hasattr(named, "fit"):
        raise ConfigError(
            f"embedder: '{embedder}' must be fitted on data first. Fit it once with "
            f"raysel.fit_embedder('{embedder}', pool, column='{column}') and use it for both pool and target."
        )
    made = as_embedder(named)
    frozen = _frozen(made) if isinstance(made, FunctionEmbedder) else made
    columns = column_names(column)
    check_columns_of(made, made.name, columns)
    options = shards.Options(normalize, dtype, on_error)
    check_dataset(dataset, "dataset to embed")
    if version is not None and not (isinstance(version, str) and version):
        raise ConfigError(f'version: {version!r} is not text; write version="1", for example.')
    place = None if directory is None else str(output(directory))
    written = directory is not None or hasattr(made, "load") or on_error != "raise"
    if not written:
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None:  # else the step that makes the rows is still lazy, and the block below checks
            _check_schema(schema, made, columns)
        return plain_errors(
            dataset.map_batches(
                _embed_block, fn_args=(frozen, columns, options), batch_format="pyarrow", batch_size=None
            )
        )
    if parquet_rows(dataset) is None:
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None:
            _check_schema(schema, made, columns)
        dataset = materialized(dataset)  # its steps run here, and never again
    source = source_of(dataset, columns)
    place = place or _cache(source, made, columns, options, version)
    watch = _show_progress if sys.stderr.isatty() else None
    report = pipeline.compute(source, made, columns, place, options, watch, version)
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
    return pipeline.attach(dataset, place, report, options)


def _frozen(made: FunctionEmbedder) -> FunctionEmbedder:
    """Return the function as workers receive it: names that it reads may change before the vectors are computed."""
    try:
        function = cloudpickle.loads(cloudpickle.dumps(made.function))
    except Exception as error:  # of any object that the function reads
        raise ConfigError(
            f"embedder: {made.name} cannot be sent to other processes ({reason_of(error)}). If it uses a lock, an open file or a "
            "connection, create this object inside of the function."
        ) from error
    return replace(made, function=function)


def _check_schema(schema: Any, embedder: Embedder, columns: list[str]) -> None:
    """Raise DataError for columns that are missing, or whose type the embedder cannot use."""
    check_columns(schema.names, columns, "dataset to embed")
    if isinstance(schema.base_schema, pa.Schema):
        check_types(schema.base_schema, embedder, columns)


def _cache(
    source: Source,
    embedder: Embedder,
    columns: list[str],
    options: shards.Options,
    version: str | None,
) -> str:
    key = pipeline.key_of(source, embedder, columns, options, version)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return f"{cache_root()}/vectors/{name}"


def _show_progress(text: str) -> None:
    sys.stderr.write(f"\r\x1b[2K  embedding      {text}")
    sys.stderr.flush()


def _embed_block(
    table: pa.Table, embedder: Embedder, columns: list[str], options: shards.Options
) -> pa.Table:
    check_columns(table.column_names, columns, "dataset to embed")
    if isinstance(embedder, ColumnEmbedder) and options == shards.Options():
        stored = as_vectors(table[columns[0]])
        if stored is not None:  # nothing to compute, and nothing to copy
            return _with_vectors(table, stored)
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
