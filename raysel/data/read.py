"""Read rows from files and tables into a Ray Dataset whose rows have a stable ``sample_id``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq
import ray
from ray.data import Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from raysel.cluster.blocks import arrow_blocks, map_blocks, plain_errors
from raysel.core.fingerprint.files import Trust
from raysel.data.content import digest_blocks, digest_table
from raysel.data.identity import POOL_FILE, NumberedFile, PoolIdentity, identity, mark, short_names
from raysel.data.images import digest_images, holds_images, list_images, load_images
from raysel.data.memory import as_table
from raysel.data.row_index import (
    ID,
    Piece,
    RowIndex,
    check_ids,
    index_parquet,
    list_files,
    opened,
    resolve,
    with_ids,
)
from raysel.errors import DataError, first

_FEW_GROUPS, _MANY_GROUPS = 8, 200  # row groups between which each is a block; Ray's default is 200 blocks
_IMAGE_ROWS = 256  # images that make one block
_BLOCK_ROWS = 65_536  # rows of a table in memory that make one block


def read(
    source: Any,
    *,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    trust: Trust = "content",
) -> Dataset:
    """Read rows into a Ray Dataset with a stable ``sample_id``.

    Parameters
    ----------
    source : path, URI, table or dataset
        One or more paths or URIs of Parquet (also a directory), Feather / Arrow, CSV, JSON lines, ``.npy`` or
        ``.npz``, or a directory of images; a pandas DataFrame; an Arrow table; a NumPy array (column
        ``data``) or a dict of arrays; a Ray Dataset; a Hugging Face dataset; a map-style torch Dataset
        (columns ``data``, or ``data`` and ``target``, or those of its dicts). Images are read when they are
        needed. Their columns are ``path``, ``image`` (the bytes of the file) and ``label`` (the first folder
        below the directory, if there are any, or from ``labels.csv`` in the directory, with the columns
        ``path`` and ``label``).
    label : str, optional
        Column of classes: integers, booleans or text. It is checked, is read even if ``columns`` does not
        list it, and keeps its name. Pass the name to whatever needs the classes.
    columns : sequence of str, optional
        Read only these columns. Default: all.
    index : path, optional
        File that keeps the order of Parquet files between runs, so that files added later get new ids and an
        id never refers to another row. It is written by the first call. For it all bytes of the files are
        read once, so that a file with other rows is refused.
    trust : {"content", "mtime"}
        What identifies a Parquet file in the index and in the keys of cached vectors: all its bytes, or its
        size and modification time, for data that cannot be read twice.

    Returns
    -------
    ray.data.Dataset
        The columns of the source, and ``sample_id`` (int64): 0..N-1 in the order of the files and their rows.
        A column ``sample_id`` of the source is kept and checked. Parquet is read lazily, column by column;
        the other formats are put into Ray's object store. The Dataset, and everything derived from it,
        carries the identity of the rows (:class:`raysel.data.identity.PoolIdentity`), by which a Selection
        checks that it was made from them.

    Raises
    ------
    DataError
        If the source cannot be read, has no rows, or lacks a column.

    Examples
    --------
    >>> table = pa.table({"text": ["one", "two", "three"], "label": ["a", "b", "a"]})
    >>> rows = raysel.read(table, label="label")
    >>> [row["sample_id"] for row in rows.take_all()]
    [0, 1, 2]
    """
    if index is not None and not _is_parquet(source):
        raise DataError(
            "index: Only Parquet files can be read with an index, and this source is not a Parquet path."
        )
    if _is_parquet(source):
        dataset, schema, where = _read_parquet(source, index, trust)
    elif _is_path(source):
        dataset, schema, where = _read_files(source) if _suffix(_paths(source)[0]) else read_images(source)
    elif isinstance(source, Dataset):
        dataset, schema, where = _read_dataset(source)
    else:
        table = as_table(source)
        dataset, schema, where = (
            _number([table], ["a table in memory"], "the table"),
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
                f"There is no column {', '.join(map(repr, missing))} in {where}; the columns are {', '.join(schema.names)}."
            )
        wanted = {ID, *columns, *([label] if label else [])}
        dataset = dataset.select_columns([name for name in names if name in wanted])
    return dataset


def check_label(schema: pa.Schema, label: str, where: str) -> None:
    """Raise DataError unless the column ``label`` exists and holds classes: integers, booleans or text."""
    if label not in schema.names:
        raise DataError(
            f"There is no label column '{label}' in {where}; the columns are {', '.join(schema.names)}."
        )
    kind = schema.field(label).type
    of = kind.value_type if pa.types.is_dictionary(kind) else kind
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


class IndexedParquet(Datasource):
    """Parquet files read by row group, with ids from the index; only projected columns are read."""

    def __init__(self, filesystem: pafs.FileSystem, index: RowIndex, schema: pa.Schema) -> None:
        super().__init__()
        self._projection_map = None  # Ray sets it on a copy when a later step needs only some columns
        self._filesystem = filesystem
        self._index = index
        self._schema = schema

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system of the files."""
        return self._filesystem

    @property
    def index(self) -> RowIndex:
        """The files, their rows and the first id of each."""
        return self._index

    @property
    def file_schema(self) -> pa.Schema:
        """The schema of the files, without the ids that the index adds."""
        return self._schema

    @property
    def stores_ids(self) -> bool:
        """Whether ids are a column of the files rather than the positions of the rows."""
        return ID in self._schema.names

    def pieces(self) -> list[Piece]:
        """Return the row groups that hold rows, in the order of their ids."""
        return [
            Piece(self._filesystem, file.path, number, int(start), rows, size)
            for file, offset in zip(self._index.files, self._index.offsets, strict=True)
            for number, start, rows, size in zip(
                range(len(file.group_rows)),
                offset + np.concatenate([[0], np.cumsum(file.group_rows)[:-1]]).astype(np.int64),
                file.group_rows,
                file.group_bytes,
                strict=True,
            )
            if rows
        ]

    def get_name(self) -> str:
        """Return the name that Ray shows."""
        return "Parquet"

    def supports_projection_pushdown(self) -> bool:
        """Return True: Ray hands over the columns that later steps need."""
        return True

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all row groups."""
        return sum(sum(file.group_bytes) for file in self._index.files)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return tasks of consecutive row groups with about equal bytes per task."""
        share = max(1, self.estimate_inmemory_data_size() // max(1, parallelism))
        tasks: list[list[Piece]] = []
        held = share
        for piece in self.pieces():  # consecutive row groups, about equal bytes per task
            if held >= share:
                tasks.append([])
                held = 0
            tasks[-1].append(piece)
            held += piece.bytes
        return [self._task(task, per_task_row_limit) for task in tasks]

    def _task(self, pieces: list[Piece], limit: int | None) -> ReadTask:
        names = self._schema.names
        projection = self.get_projection_map()
        columns = None if projection is None else list(projection) or [ID]
        # Bound here, not to self: the complete index must not be sent with every task.
        metadata = BlockMetadata(
            num_rows=sum(piece.rows for piece in pieces),
            size_bytes=sum(piece.bytes for piece in pieces),
            exec_stats=None,
            input_files=tuple(dict.fromkeys(piece.path for piece in pieces)),
        )
        return ReadTask(
            lambda: _read_groups(pieces, names, columns),
            metadata,
            schema=self._with_id(columns),
            per_task_row_limit=limit,
        )

    def _with_id(self, columns: list[str] | None) -> pa.Schema:
        fields = {field.name: field for field in self._schema} | {ID: pa.field(ID, pa.int64())}
        return pa.schema([fields[n] for n in columns or [ID, *(n for n in self._schema.names if n != ID)]])


def _read_groups(pieces: list[Piece], names: list[str], columns: list[str] | None) -> Iterable[pa.Table]:
    wanted = [ID, *(n for n in names if n != ID)] if columns is None else columns
    stored = [name for name in wanted if name in names]
    for piece, reader in opened(pieces):
        table = reader.read_row_group(piece.number, columns=stored)
        if table.num_rows != piece.rows:
            raise DataError(
                f"Row group {piece.number} of {piece.path} has {table.num_rows} rows, but its footer says {piece.rows}; write the file again."
            )
        if ID in wanted and ID not in names:
            table = with_ids(table, piece.start)
        elif ID in wanted:
            table = table.set_column(table.column_names.index(ID), ID, table[ID].cast(pa.int64()))
        yield table.select(wanted).replace_schema_metadata(None)


def parquet_rows(dataset: Dataset) -> tuple[IndexedParquet, dict[str, str]] | None:
    """Return the Parquet files whose rows ``dataset`` holds, if it holds all of them with unchanged values.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Any Dataset.

    Returns
    -------
    (IndexedParquet, dict) or None
        The reader, and for each column of ``dataset`` the name of that column in the files. None if a step
        other than selecting and renaming columns lies between the files and ``dataset``.

    Notes
    -----
    Ray has no public view of a Dataset's plan, so this reads its logical plan. If a later Ray has another
    one, the rows are not recognised and are read through Ray instead, which is slower and gives the same
    values.
    """
    step, projections = _below_projections(dataset)
    reader = getattr(step, "datasource", None)
    if type(reader) is not IndexedParquet or any(one is None for one in projections):
        return None
    names = {name: name for name in [ID, *(n for n in reader.file_schema.names if n != ID)]}
    for projection in reversed(projections):
        assert projection is not None
        if not set(projection.values()) <= set(names):
            return None
        names = {name: names[below] for name, below in projection.items()}
    return reader, names


def at_rest(dataset: Dataset) -> bool:
    """Return whether reading ids runs no step: the rows lie in the object store or in indexed Parquet."""
    step, projections = _below_projections(dataset)
    kind = type(step).__name__
    held = kind == "InputData" or kind.startswith("From")
    return None not in projections and (held or type(getattr(step, "datasource", None)) is IndexedParquet)


def _below_projections(dataset: Dataset) -> tuple[Any, list[dict[str, str] | None]]:
    """Return the last step that does more than select and rename columns, and each projection after it."""
    step: Any = getattr(getattr(dataset, "_logical_plan", None), "dag", None)
    projections = []
    while type(step).__name__ == "Project":
        projections.append(_projection(getattr(step, "exprs", [None])))
        step = step.input_dependencies[0]
    return step, projections


def _projection(expressions: Sequence[Any]) -> dict[str, str] | None:
    """Return the column names before the step by the names after it; None if a value is computed."""
    names: dict[str, str] = {}
    for expression in expressions:
        column = expression.expr if type(expression).__name__ == "AliasExpr" else expression
        if type(column).__name__ != "ColumnExpr":
            return None
        names[expression.name] = column.name
    return names


def _read_parquet(
    source: Any, index: str | os.PathLike[str] | None, trust: Trust
) -> tuple[Dataset, pa.Schema, str]:
    filesystem, paths = list_files(_paths(source))
    known = RowIndex.load(index) if index is not None and Path(index).exists() else None
    rows, schema = index_parquet(filesystem, paths, known, trust)
    where = paths[0] if len(paths) == 1 else f"{len(paths)} Parquet files from {paths[0]}"
    if rows.rows == 0:
        raise DataError(f"There are no rows in {where}.")
    if ID in schema.names:
        check_ids(_stored_ids(filesystem, rows, schema), where)
    if index is not None:
        rows.save(index)
    reader = IndexedParquet(filesystem, rows, schema)
    groups = len(reader.pieces())
    # Ray cuts few row groups into hundreds of small blocks, and a step after the cut no longer joins the reading.
    blocks = groups if _FEW_GROUPS <= groups < _MANY_GROUPS else None
    dataset = ray.data.read_datasource(reader, override_num_blocks=blocks)
    return mark(dataset, _carried(filesystem, source) if reader.stores_ids else rows), schema, where


def _carried(filesystem: pafs.FileSystem, source: Any) -> PoolIdentity | None:
    """Return the identity that ``embed`` wrote next to the vectors of a directory, if there is one."""
    if len(_paths(source)) > 1:
        return None
    try:
        with filesystem.open_input_stream(f"{resolve(_paths(source)[0])[1]}/{POOL_FILE}") as stream:
            return PoolIdentity.from_list(json.loads(stream.read()))
    except (OSError, ValueError, TypeError):  # there is none
        return None


def _stored_ids(filesystem: pafs.FileSystem, index: RowIndex, schema: pa.Schema) -> np.ndarray:
    if not pa.types.is_integer(schema.field(ID).type):
        raise DataError(f"Column '{ID}' holds {schema.field(ID).type}; ids must be integers.")
    parts = []
    for file in index.files:
        column = pq.read_table(file.path, columns=[ID], filesystem=filesystem)[ID]
        if column.null_count:
            raise DataError(
                f"Column '{ID}' of {file.path} has no value in {column.null_count} rows; every row needs an id."
            )
        parts.append(column.cast(pa.int64()).to_numpy())
    return np.concatenate(parts)


def _read_files(source: Any) -> tuple[Dataset, pa.Schema, str]:
    sources = _paths(source)
    suffix = _suffix(sources[0])
    readers = {
        ".csv": lambda f: pacsv.read_csv(f),
        ".jsonl": lambda f: pajson.read_json(f),
        ".ndjson": lambda f: pajson.read_json(f),
        ".json": lambda f: pajson.read_json(f),
        ".arrow": lambda f: feather.read_table(f),
        ".feather": lambda f: feather.read_table(f),
        ".npy": lambda f: as_table(np.load(f, allow_pickle=False)),
        ".npz": lambda f: as_table(dict(np.load(f, allow_pickle=False))),
    }
    if suffix not in readers:
        raise DataError(
            f"The format of {sources[0]} is unknown; raysel reads .parquet, {', '.join(readers)} "
            "and directories of Parquet files or images."
        )
    if any(_suffix(other) != suffix for other in sources):
        raise DataError(f"These files have different formats: {first(sources)}; read them separately.")
    filesystem, paths = list_files(sources, suffix)
    tables = []
    for path in paths:
        try:
            with filesystem.open_input_file(path) as stream:
                tables.append(readers[suffix](stream))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a readable {suffix} file ({str(error).splitlines()[0]})."
            ) from error
        if not tables[-1].schema.equals(tables[0].schema):
            raise DataError(
                f"{path} has other columns or types than {paths[0]}; all files must have the same."
            )
    where = paths[0] if len(paths) == 1 else f"{len(paths)} files from {paths[0]}"
    return _number(tables, short_names(paths), where), tables[0].schema, where


def read_images(source: Any) -> tuple[Dataset, pa.Schema, str]:
    """Return the images of one directory; their bytes are read when they are needed."""
    if len(_paths(source)) > 1:
        raise DataError(
            f"Directories of images must be read one at a time, not together: {first(_paths(source))}."
        )
    where = _paths(source)[0]
    table = with_ids(list_images(where), 0)
    schema = pa.schema([*list(table.schema)[1:], pa.field("image", pa.binary())])
    blocks = [table.slice(start, _IMAGE_ROWS) for start in range(0, len(table), _IMAGE_ROWS)]
    listed = ray.data.from_arrow(blocks)
    mark(listed, PoolIdentity((NumberedFile("a directory of images", digest_images(where), len(table)),)))
    return (
        plain_errors(listed.map_batches(load_images, fn_args=(where,), batch_format="pyarrow")),
        schema,
        where,
    )


def _read_dataset(dataset: Dataset) -> tuple[Dataset, pa.Schema, str]:
    where = "the Ray Dataset"
    refs = arrow_blocks(dataset)
    rows = map_blocks(lambda table: (table.num_rows, table.schema), refs)
    counts = [count for count, _ in rows]
    if sum(counts) == 0:
        raise DataError(f"There are no rows in {where}.")
    schema = next(schema for count, schema in rows if count)
    if ID in schema.names:
        ids = map_blocks(
            lambda table: table[ID].to_numpy() if table.num_rows else np.empty(0, np.int64), refs
        )
        check_ids(np.concatenate(ids), where)
        return mark(ray.data.from_arrow_refs(refs), identity(dataset)), schema, where
    add = ray.remote(with_ids)
    numbered, spans, start = [], [], 0
    for ref, count in zip(refs, counts, strict=True):
        if count:
            numbered.append(add.remote(ref, start))
            spans.append((start, start + count - 1))
            start += count
    file = NumberedFile("a Ray Dataset", digest_blocks(numbered, spans), start)
    return mark(ray.data.from_arrow_refs(numbered), PoolIdentity((file,))), schema, where


def _number(tables: list[pa.Table], names: Sequence[str], where: str) -> Dataset:
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        raise DataError(f"There are no rows in {where}.")
    if ID in table.column_names:
        if not pa.types.is_integer(table[ID].type) or table[ID].null_count:
            raise DataError(f"Column '{ID}' of {where} must hold an integer in every row.")
        table = table.set_column(table.column_names.index(ID), ID, table[ID].cast(pa.int64()))
        check_ids(table[ID].to_numpy(), where)
        numbered_by = None
    else:
        numbered_by = PoolIdentity(
            tuple(
                NumberedFile(name, digest_table(part), part.num_rows)
                for name, part in zip(names, tables, strict=True)
            )
        )
        table = with_ids(table, 0)
    blocks = [table.slice(start, _BLOCK_ROWS) for start in range(0, table.num_rows, _BLOCK_ROWS)]
    return mark(ray.data.from_arrow(blocks), numbered_by)


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) or (
        isinstance(source, (list, tuple))
        and bool(source)
        and all(isinstance(s, (str, os.PathLike)) for s in source)
    )


def _paths(source: Any) -> list[str]:
    return [os.fspath(source)] if isinstance(source, (str, os.PathLike)) else [os.fspath(s) for s in source]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_parquet(source: Any) -> bool:
    if not _is_path(source):
        return False
    first_path = _paths(source)[0]
    return _suffix(first_path) in (".parquet", ".pq") or (
        not _suffix(first_path) and not holds_images(first_path)
    )
