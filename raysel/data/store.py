"""Columns as memory-mapped arrays addressed by ``sample_id``, from which a workflow's training reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, map_blocks, pick
from raysel.core.arrow import plain_column
from raysel.core.storage import filled, output, read_json, unwritable, write_json
from raysel.data.decode import is_bytes, is_text
from raysel.data.listing import warn
from raysel.data.node_cache import on_this_node
from raysel.data.row_index import ID, check_ids
from raysel.data.vectors import not_finite, tensor_rows, to_numpy
from raysel.errors import COLUMNS, DataError, RunError, first, reason_of

_META = "columns.json"
Kind = Literal["array", "text", "bytes", "lists"]


@dataclass(frozen=True)
class Column:
    """What the rows of a column hold.

    Attributes
    ----------
    kind : {"array", "text", "bytes", "lists"}
        Numbers of one shape; text; encoded files such as images; lists of numbers that differ in length.
    dtype : str
        Type of the numbers; that of a class's code for a column of classes.
    shape : tuple of int
        Shape of a row, ``()`` for single numbers; empty for other kinds than "array".
    """

    kind: Kind
    dtype: str
    shape: tuple[int, ...] = ()


def described(held: Column) -> str:
    """Return what a column holds, for messages."""
    return f"{held.dtype} of shape {held.shape}" if held.kind == "array" else held.kind


def column_of(
    values: pa.ChunkedArray, name: str, ids: np.ndarray | None = None, ragged: bool = True
) -> Column:
    """Return what a column of a table holds. Raises DataError for what a training cannot read, and for missing values."""
    return _values(values, name, ids, ragged)[0]


def values_of(
    values: pa.ChunkedArray, name: str, ids: np.ndarray | None = None, ragged: bool = True
) -> np.ndarray:
    """Return the rows of a column as NumPy holds them: (n, ...) of numbers, else n objects (str, bytes, arrays)."""
    return _values(values, name, ids, ragged)[1]


def write_columns(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    rows: int | None = None,
    classes: Mapping[str, Sequence[Any]] | None = None,
    names: Mapping[str, str] | None = None,
    ragged: bool = False,
) -> dict[str, Column]:
    """Write columns of every row, to be read at the position of its ``sample_id``; return what they hold.

    One block after another passes through the driver. Rows with NaN or infinite numbers are written, since a selection may
    leave them out, and a warning names them.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with ``sample_id`` and the columns.
    directory : path or URI
        Every worker must be able to reach it. From an object store, each node copies the files before its workers read them.
    columns : sequence of str
        Names of the columns.
    rows : int, optional
        Number of rows of which ``dataset`` is a part: ids are below it, and there may be gaps. By default there are
        no gaps.
    classes : mapping of str to sequence, optional
        For columns of classes, all values in the order of their codes 0..C-1, which are written.
    names : mapping of str to str, optional
        Other names for columns of the dataset.
    ragged : bool
        Whether lists of numbers may differ in length.

    Raises
    ------
    DataError
        For ids that leave gaps or do not fit, missing values, a value that is not among its column's classes, and
        what a training cannot read.
    RunError
        If the disk is full.
    """
    classes, names = dict(classes or {}), dict(names or {})
    blocks = arrow_blocks(pick(dataset, [ID, *columns], "training data"))
    parts = [
        part for part in map_blocks(_block_stats, blocks, list(columns), classes, ragged) if len(part[0])
    ]
    ids = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int64)
    if not len(ids):
        raise DataError("The training data has no rows.")
    check_ids(ids, "the training data")
    if rows is None and int(ids.max()) != len(ids) - 1:
        raise DataError(
            f"The training data has {len(ids):,} rows, but its column '{ID}' holds ids up to {int(ids.max()):,}. Training needs "
            f"the ids 0 to {len(ids) - 1:,}, each once. If you rename the column, raysel numbers the rows."
        )
    about = {name: _common(name, [part[1][at] for part in parts]) for at, name in enumerate(columns)}
    for at, name in enumerate(columns):
        bad = np.sort(np.concatenate([part[2][at] for part in parts]))
        if len(bad):
            warn(
                f"Column '{name}' holds NaN or infinite values in {len(bad):,} of {len(ids):,} rows (sample_id {first(bad)}). A "
                "model that trains on such a row usually learns nothing; repair the rows, or drop them."
            )
    with filled(directory) as target:
        order = np.sort(ids)
        dense = int(order[-1]) == len(order) - 1
        writers = [
            _writer(target, at, about[name], len(ids), sum(part[3][at] for part in parts))
            for at, name in enumerate(columns)
        ]
        if not dense:
            _save(target / "ids.npy", order)
        import ray

        for block in blocks:
            table = ray.get(block)
            if not len(table):
                continue
            here = table[ID].to_numpy()
            places = here if dense else np.searchsorted(order, here)
            for name, writer in zip(columns, writers, strict=True):
                writer.put(places, _coded(table[name], name, here, classes.get(name)))
        for writer in writers:
            writer.close()
        write_json(
            target / _META,
            {
                "rows": int(rows if rows is not None else len(ids)),
                "stored": len(ids),
                "columns": {names.get(name, name): asdict(kind) for name, kind in about.items()},
                "classes": {names.get(name, name): list(known) for name, known in classes.items()},
            },
        )
    return {names.get(name, name): kind for name, kind in about.items()}


def classes_of(dataset: Dataset, column: str, where: str) -> list[Any]:
    """Return the classes in a column, sorted. Raises DataError, which begins with ``where``, for rows without one."""
    parts = map_blocks(_labels, arrow_blocks(pick(dataset, [ID, column], "training data")), column)
    missing = [row for part in parts for row in part[1]]
    if missing:
        raise DataError(
            f"{where}: {len(missing):,} rows have no label in column '{column}' (sample_id {first(missing)}); label or drop "
            "them first."
        )
    return sorted({name for part in parts for name in part[0]}, key=lambda value: (str(type(value)), value))


class ColumnStore:
    """Rows that :func:`write_columns` has written, as a map-style dataset whose batches are columns.

    ``store.rows(ids)`` is a mapping from column to array, with ``sample_id``; see `raysel.train.tasks.Task.collate`.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = output(directory)
        try:
            with on_this_node(self.directory) as place:
                about = read_json(place / _META)
                self.columns = {name: Column(**_tuple(kind)) for name, kind in about["columns"].items()}
                self.classes: dict[str, list[Any]] = dict(about["classes"])
                self._rows, stored = int(about["rows"]), int(about["stored"])
                sparse = place / "ids.npy"
                self._ids = np.load(sparse, mmap_mode="r", allow_pickle=False) if sparse.exists() else None
                self._readers = {
                    name: _reader(place, at, kind, stored)
                    for at, (name, kind) in enumerate(self.columns.items())
                }
            if self._ids is not None and len(self._ids) != stored:
                raise ValueError("The arrays have different numbers of rows.")
        except RunError:  # of an object store that cannot be read, or a full disk
            raise
        except Exception as error:  # of damaged files anything
            raise DataError(
                f"The arrays in {self.directory} are damaged ({reason_of(error)}); remove the folder and run the workflow again."
            ) from error

    def __len__(self) -> int:
        return self._rows

    @property
    def ids(self) -> np.ndarray:
        """Ids of the rows that are stored, ascending."""
        return np.arange(self._rows) if self._ids is None else np.asarray(self._ids)

    def rows(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of the rows with these ids, in their order; the values are copies."""
        ids = np.asarray(ids, np.int64)
        places = ids if self._ids is None else np.searchsorted(self._ids, ids)
        found = {name: read(places) for name, read in self._readers.items()}
        return {ID: ids, **found}

    def column(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Return one column of the rows with these ids."""
        return self._readers[name](ids if self._ids is None else np.searchsorted(self._ids, ids))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.rows(np.array([index]))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [
            self.rows(np.asarray(indices))
        ]  # the complete batch at once, for a collate function of columns

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}  # a worker process maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"])  # type: ignore[misc]


# ---- what a column holds -------------------------------------------------------------------------------------


def _values(column: Any, name: str, ids: np.ndarray | None, ragged: bool = True) -> tuple[Column, np.ndarray]:
    column = plain_column(column)
    kind = column.type
    if is_text(kind) or (is_bytes(kind) and not pa.types.is_struct(kind)):
        if column.null_count:
            empty = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            where = empty if ids is None else ids[empty]
            raise DataError(
                f"Column '{name}' has no value in {len(where):,} rows (sample_id {first(where)}); repair or drop these rows first."
            )
        text = is_text(kind)
        return Column("text" if text else "bytes", "uint8"), _objects(column.to_pylist())
    try:
        values = to_numpy(column, name, ids)
    except DataError:
        lists = _lists(column, name) if ragged else None
        if lists is None:
            raise
        return Column("lists", str(lists[0].dtype)), _objects(lists)
    return Column("array", str(values.dtype), tuple(values.shape[1:])), values


def _lists(column: Any, name: str) -> list[np.ndarray] | None:
    """Return lists of numbers that differ in length, None for anything else."""
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not listed or column.null_count or not len(column):
        return None
    inner = kind.value_type
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        return None
    values = [tensor_rows(column.slice(at, 1), name)[0] for at in range(len(column))]
    return values


def _objects(values: Sequence[Any]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values  # never an array of two dimensions, however equal the lengths
    return found


def _coded(column: Any, name: str, ids: np.ndarray, classes: Sequence[Any] | None) -> np.ndarray:
    if classes is None:
        return values_of(column, name, ids)
    codes = {value: number for number, value in enumerate(classes)}
    return np.array([codes[value] for value in column.to_pylist()], np.int64)


def _block_stats(
    table: pa.Table, columns: list[str], classes: Mapping[str, Sequence[Any]], ragged: bool
) -> tuple[np.ndarray, list[Column], list[np.ndarray], list[int]]:
    """Return ids, what each column holds, the ids of rows with NaN or infinite numbers, and the elements of ragged columns."""
    kinds, bad, sizes = list[Column](), list[np.ndarray](), list[int]()
    if not len(table):  # an empty block may come without its columns
        return np.empty(0, np.int64), kinds, bad, sizes
    ids = table[ID].to_numpy()
    for name in columns:
        none, size = ids[:0], 0
        if name in classes:
            known = set(classes[name])
            if table[name].null_count:
                where = ids[table[name].is_null().to_numpy(zero_copy_only=False)]
                raise DataError(
                    f"{len(where):,} rows have no label in column '{name}' (sample_id {first(where)}); label or drop them first."
                )
            strange = [value for value in table[name].unique().to_pylist() if value not in known]
            if strange:
                raise DataError(
                    f"The label {first(strange)} does not occur in the pool, whose classes are {first(classes[name], COLUMNS)}; "
                    "remove the rows with this label, or add rows of this class to the pool."
                )
            kind = Column("array", "int64")
        else:
            kind, values = _values(table[name], name, ids, ragged)
            if kind.kind == "array" and values.dtype.kind == "f":
                none = ids[not_finite(values.reshape(len(values), int(np.prod(kind.shape))))]
            elif kind.kind != "array":
                size = sum(len(_flat(value)) for value in values)
        kinds.append(kind)
        bad.append(none)
        sizes.append(size)
    return ids, kinds, bad, sizes


def _common(name: str, kinds: Sequence[Column]) -> Column:
    """Return what the blocks of a column hold; raise DataError if they differ."""
    found = set(kinds)
    if len(found) == 1:
        return kinds[0]
    numbers = "lists" in {kind.kind for kind in found} <= {"array", "lists"}
    if (
        numbers
        and len({kind.dtype for kind in found}) == 1
        and all(len(kind.shape) in (0, 1) for kind in found)
    ):
        return Column("lists", kinds[0].dtype)  # of one length within a block, by chance
    shown = sorted({described(kind) for kind in found})
    raise DataError(
        f"Column '{name}' holds rows of different shapes or types ({first(shown)}); training needs the same shape and type in every row."
    )


def _labels(table: pa.Table, column: str) -> tuple[list[Any], list[int]]:
    if not len(table):
        return [], []
    values = table[column]
    missing = table[ID].filter(values.is_null()).to_pylist() if values.null_count else []
    return [value for value in values.unique().to_pylist() if value is not None], missing


# ---- files ---------------------------------------------------------------------------------------------------


def _allocate(path: Path, size: int) -> None:
    """Allocate a file, since a full disk would otherwise end the process when a page of the map is written."""
    try:
        with open(path, "r+b") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise unwritable(path, error) from error


def _save(path: Path, values: np.ndarray) -> None:
    try:
        np.save(path, values)
    except OSError as error:
        raise unwritable(path, error) from error


def _flat(value: Any) -> np.ndarray:
    """Return a text, bytes or list as the numbers that are stored."""
    if isinstance(value, np.ndarray):
        return value
    return np.frombuffer(value.encode() if isinstance(value, str) else value, np.uint8)


class _Array:
    """Writer of rows of one shape."""

    def __init__(self, path: Path, kind: Column, rows: int) -> None:
        self._values = np.lib.format.open_memmap(path, "w+", np.dtype(kind.dtype), (rows, *kind.shape))
        _allocate(path, os.path.getsize(path))

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        self._values[places] = values

    def close(self) -> None:
        self._values.flush()


class _Ragged:
    """Writer of rows that differ in length: all elements one after another, and where each row's begin and end."""

    def __init__(self, path: Path, spans: Path, kind: Column, rows: int, size: int) -> None:
        self._path, self._dtype = path, np.dtype(kind.dtype)
        self._file = open(path, "w+b")  # noqa: SIM115 (closed below)
        _allocate(path, size * self._dtype.itemsize)
        self._spans, self._spans_path, self._at = np.zeros((rows, 2), np.int64), spans, 0

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        flat = [_flat(value) for value in values]
        ends = self._at + np.cumsum([len(value) for value in flat])
        self._spans[places, 0] = np.concatenate([[self._at], ends[:-1]])
        self._spans[places, 1] = ends
        self._file.write(np.concatenate(flat).astype(self._dtype, copy=False).tobytes())
        self._at = int(ends[-1])

    def close(self) -> None:
        self._file.close()
        _save(self._spans_path, self._spans)


def _writer(directory: Path, at: int, kind: Column, rows: int, size: int) -> _Array | _Ragged:
    if kind.kind == "array":
        return _Array(directory / f"{at}.npy", kind, rows)
    return _Ragged(directory / f"{at}.bin", directory / f"{at}.spans.npy", kind, rows, size)


def _reader(directory: Path, at: int, kind: Column, rows: int) -> Any:
    """Return a function from positions to values. Raises for files that do not fit."""
    if kind.kind == "array":
        values = np.load(directory / f"{at}.npy", mmap_mode="r", allow_pickle=False)
        if values.shape != (rows, *kind.shape) or str(values.dtype) != kind.dtype:
            raise ValueError("An array has another shape or type than expected.")
        return lambda places: np.asarray(values[places])
    spans = np.load(directory / f"{at}.spans.npy", mmap_mode="r", allow_pickle=False)
    size = os.path.getsize(directory / f"{at}.bin")
    flat = np.memmap(directory / f"{at}.bin", np.dtype(kind.dtype), "r") if size else np.empty(0, kind.dtype)
    if spans.shape != (rows, 2) or (rows and int(spans[:, 1].max()) != len(flat)):
        raise ValueError("The arrays have different numbers of rows.")
    made = {
        "text": lambda part: part.tobytes().decode(),
        "bytes": lambda part: part.tobytes(),
        "lists": np.array,
    }
    make: Any = made[kind.kind]
    return lambda places: _objects([make(flat[begin:end]) for begin, end in spans[places].tolist()])


def _tuple(kind: dict[str, Any]) -> dict[str, Any]:
    return {**kind, "shape": tuple(kind["shape"])}
