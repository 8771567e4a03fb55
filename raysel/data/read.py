"""Read rows from files and tables into a Ray Dataset whose rows have a stable ``sample_id``."""

from __future__ import annotations

import json
import logging
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.cluster.blocks import plain_errors
from raysel.core import storage
from raysel.core.fingerprint.files import Trust
from raysel.data.content import digest_table
from raysel.data.datasource import parquet_dataset
from raysel.data.formats.images import ROWS, Images, list_images, load_images
from raysel.data.formats.parquet import read_pieces
from raysel.data.identity import POOL_FILE, NumberedFile, PoolIdentity, mark, row_ids, short_names
from raysel.data.listing import Listing, list_source, warn
from raysel.data.memory import as_table
from raysel.data.ray_rows import numbered
from raysel.data.row_index import ID, RowIndex, check_ids, index_parquet, with_ids
from raysel.errors import COLUMNS, ConfigError, DataError, first, shown

_BLOCK_ROWS = 65_536  # rows of a table in memory that make one block

logger = logging.getLogger(__name__)


def read(
    source: Any,
    *,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    trust: Trust = "content",
    encoding: str | None = None,
) -> Dataset:
    """Read rows into a Ray Dataset with a stable ``sample_id``.

    Parameters
    ----------
    source : path, URI, table or dataset
        One or more paths, URIs, patterns with wildcards or directories of Parquet, CSV, JSON (lines or an array),
        Arrow IPC (also Feather), ``.npy`` or ``.npz``, or WebDataset tar; a directory of images, a Delta table, or a
        data set that Hugging Face saved; a data frame of pandas, polars or DuckDB; an Arrow table, batch, reader
        or stream; a NumPy array or torch tensor (column ``data``), a dict of columns, or a list of dicts; a Ray
        Dataset; a Hugging Face dataset; a map-style torch Dataset (columns ``data``, or ``data`` and ``target``,
        or those of its dicts). Values in memory are kept unchanged; a value that cannot be kept raises an error. Images are
        read when they are needed. Their columns are ``path``, ``image`` (the bytes of the file) and ``label`` (the first folder
        below the directory, if there are any, or from ``labels.csv`` in the directory, with the columns
        ``path`` and ``label``). Directories named ``year=2024`` give columns: int32 if all values are integers, else
        text.
    label : str, optional
        Column of classes: integers, booleans or text. The column is checked, is read even if ``columns`` does
        not list it, and keeps its name. Pass this name to the functions that need the classes.
    columns : sequence of str, optional
        Read only these columns. Default: all.
    index : path, optional
        File that keeps the order of Parquet files between runs, so that files added later get new ids and an
        id never refers to another row. The first call writes the index and reads all bytes of the files for
        it; a later call raises an error if a file has changed.
    trust : {"content", "mtime"}
        What identifies a Parquet file in the index and in the keys of cached vectors: all its bytes, or only
        its size and modification time, if reading all bytes takes too long.
    encoding : str, optional
        Character encoding of CSV and JSON, for example ``"latin-1"``. Default: UTF-8.

    Returns
    -------
    ray.data.Dataset
        The columns of the source, and ``sample_id`` (int64): 0..N-1 in the order of the files and their rows.
        A column ``sample_id`` of the source is kept and checked. Files may differ in the order of their columns, in the
        number of bits of numbers, and in whether values may be missing. In the rows of a file that lacks a column,
        the values of the column are missing. Parquet is read lazily, column by column;
        the other formats are put into Ray's object store. The Dataset, and everything derived from it,
        carries the identity of the rows (:class:`raysel.data.identity.PoolIdentity`), by which a Selection
        checks that it was made from them.

    Notes
    -----
    The logger ``raysel.data.read`` reports at level INFO how many files and rows were read. The logger
    ``raysel.data.listing`` warns of files of a directory that are not read.

    Raises
    ------
    ConfigError
        If ``columns`` or ``trust`` has another value than described here.
    DataError
        If the source cannot be read, has no rows, or lacks a column.

    Examples
    --------
    >>> table = pa.table({"text": ["one", "two", "three"], "label": ["a", "b", "a"]})
    >>> rows = raysel.read(table, label="label")
    >>> [row["sample_id"] for row in rows.take_all()]
    [0, 1, 2]
    """
    if trust not in get_args(Trust):
        raise ConfigError(f"trust: {shown(trust)} is neither 'content' nor 'mtime'.")
    if columns is not None and (isinstance(columns, str) or not all(isinstance(n, str) for n in columns)):
        raise ConfigError(f"columns: {shown(columns)} is not a list of names; write ['text'], for example.")
    listing = list_source(_paths(source), encoding) if _is_path(source) else None
    if index is not None and (listing is None or not listing.format.is_parquet):
        raise DataError(
            "index: Only Parquet files can be read with an index, but this source is not a Parquet file; "
            "leave index out, or write the rows to Parquet files."
        )
    if listing is None and encoding is not None:
        raise DataError(
            "encoding: This source is in memory, and only CSV and JSON files have an encoding; leave out the argument encoding."
        )
    if listing is not None:
        for sentence in listing.left_out:
            warn(sentence)
    if listing is not None and listing.format.is_parquet:
        dataset, schema, where = _read_parquet(listing, index, trust)
    elif listing is not None and isinstance(listing.format, Images):
        dataset, schema, where = _read_images(listing)
    elif listing is not None:
        dataset, schema, where = _read_files(listing, trust)
    elif isinstance(source, Dataset):
        dataset, schema, where = numbered(source)
    else:
        table = as_table(source)
        dataset, schema, where = (
            _number(table, lambda: _memory_identity(table), "the table"),
            table.schema,
            "the table",
        )
    names = [ID, *(name for name in schema.names if name != ID)]
    if label is not None:
        check_label(schema, label, where)
    if columns is not None:
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(
                f"There is no column {', '.join(map(repr, missing))} in {where}; the columns are {first(schema.names, COLUMNS)}."
            )
        wanted = {ID, *columns, *([label] if label else [])}
        dataset = dataset.select_columns([name for name in names if name in wanted])
    return dataset


def check_label(schema: pa.Schema, label: str, where: str, classes: bool = True) -> None:
    """Raise DataError unless the column ``label`` exists and, with ``classes``, holds integers, booleans or text."""
    if label not in schema.names:
        raise DataError(
            f"There is no label column '{label}' in {where}; the columns are {first(schema.names, COLUMNS)}."
        )
    kind = schema.field(label).type
    of = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not classes:
        return
    known = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
    )
    if not any(is_kind(of) for is_kind in known):
        raise DataError(
            f"The label column '{label}' of {where} holds {kind}; a class must be an integer, a boolean or text."
        )


def _read_parquet(
    listing: Listing, place: str | os.PathLike[str] | None, trust: Trust
) -> tuple[Dataset, pa.Schema, str]:
    place = None if place is None else storage.output(place)
    known = RowIndex.load(place) if place is not None and storage.exists(place) else None
    index = index_parquet(listing, known, trust)
    if index.rows == 0:
        raise DataError(f"There are no rows in {listing.where}.")
    stored = ID in index.schema.names
    if stored:
        check_stored_ids(index, listing.where)
    if place is not None:
        index.save(place)
    for note in index.notes:
        warn(note)
    logger.info("%s", listing.took(index.rows))
    dataset = mark(parquet_dataset(index), carried_identity(listing) if stored else index)
    return dataset, index.schema, listing.where


def carried_identity(listing: Listing) -> PoolIdentity | None:
    """Return the identity that ``embed`` wrote next to the vectors of a directory, if there is one."""
    folders = {posixpath.dirname(path) for path in listing.paths}
    if len(folders) > 1:
        return None
    try:
        with listing.filesystem.open_input_stream(f"{folders.pop()}/{POOL_FILE}") as stream:
            return PoolIdentity.from_list(json.loads(stream.read()))
    except (OSError, ValueError, TypeError):  # there is none
        return None


def check_stored_ids(index: RowIndex, where: str) -> None:
    """Raise DataError unless the column ``sample_id`` holds a different integer, 0 or more, in every row."""
    parts = [row_ids(table, piece.path) for piece, table in read_pieces(index.pieces(), [ID])]
    check_ids(np.concatenate(parts), where)


def _read_files(listing: Listing, trust: Trust) -> tuple[Dataset, pa.Schema, str]:
    """Return rows of files that are not Parquet, in Ray's object store."""
    unified = listing.unified
    counts, tables = [], [unified.schema.empty_table()]
    for file in listing.files:
        parts = list(listing.tables(file, unified.schema))
        counts.append(sum(map(len, parts)))
        tables += parts
    for note in unified.notes:
        warn(note)
    logger.info("%s", listing.took(sum(counts)))
    dataset = _number(pa.concat_tables(tables), listing_identity(listing, counts, trust), listing.where)
    return dataset, unified.schema, listing.where


def listing_identity(listing: Listing, counts: Sequence[int], trust: Trust) -> PoolIdentity:
    """Return the identity of rows that were numbered in the order of a listing's files."""
    suffix = f"&encoding={listing.encoding}" if listing.encoding else ""
    files = zip(listing.files, short_names(listing.paths), counts, strict=True)
    return PoolIdentity(
        tuple(
            NumberedFile(name, listing.format.identity(file, trust) + suffix, rows)
            for file, name, rows in files
        )
    )


def _read_images(listing: Listing) -> tuple[Dataset, pa.Schema, str]:
    """Return the images of one directory; their bytes are read when they are needed."""
    folder = listing.files[0]
    images = list_images(folder.filesystem, folder.path)
    schema = listing.unify(
        [pa.schema([*images.schema, pa.field("image", pa.binary())])] * len(listing.files)
    ).schema
    table = with_ids(images, 0)
    blocks = [table.slice(start, ROWS) for start in range(0, len(table), ROWS)]
    listed = ray.data.from_arrow(blocks)
    mark(listed, listing_identity(listing, [len(table)], "content"))
    logger.info("%s", listing.took(len(table)))
    return (
        plain_errors(
            listed.map_batches(load_images, fn_args=(folder.filesystem, folder.path), batch_format="pyarrow")
        ),
        schema,
        listing.where,
    )


def _number(table: pa.Table, numbered_by: PoolIdentity | Callable[[], PoolIdentity], where: str) -> Dataset:
    if table.num_rows == 0:
        raise DataError(f"There are no rows in {where}.")
    if ID in table.column_names:
        ids = row_ids(table, where)
        check_ids(ids, where)
        table = table.set_column(table.column_names.index(ID), ID, pa.array(ids))
        known = None
    else:
        known = numbered_by() if callable(numbered_by) else numbered_by
        table = with_ids(table, 0)
    blocks = [table.slice(start, _BLOCK_ROWS) for start in range(0, table.num_rows, _BLOCK_ROWS)]
    return mark(ray.data.from_arrow(blocks), known)


def _memory_identity(table: pa.Table) -> PoolIdentity:
    return PoolIdentity((NumberedFile("a table in memory", digest_table(table), table.num_rows),))


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) or (
        isinstance(source, (list, tuple))
        and bool(source)
        and all(isinstance(s, (str, os.PathLike)) for s in source)
    )


def _paths(source: Any) -> list[str]:
    return [os.fspath(source)] if isinstance(source, (str, os.PathLike)) else [os.fspath(s) for s in source]
