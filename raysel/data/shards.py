"""One shard of vectors: read its rows, embed them by tiles, write its file. Without Ray.

A shard is a fixed range of ids, so that its content does not depend on blocks, nodes or earlier attempts. It
appears as one file, complete or not at all. The rows of a network's tile are the same wherever it is
computed, and so are its bits.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.parameters import check_fields
from raysel.data.decode import Rows, Takes, decode, is_bytes, join
from raysel.data.embedders.embedder import Embedder, check_vectors, length_of, rows_of
from raysel.data.formats.format import reading
from raysel.data.formats.parquet import Piece, read_pieces
from raysel.data.row_index import ID, with_ids
from raysel.data.vectors import EMBEDDING, not_finite, to_column
from raysel.errors import DataError, RunError, first, reason_of

DONE = "_done.json"  # written last
_ROWS = 16_384  # of a shard whose rows are independent of each other
_ROWS_TILED = {"text": 2048, "images": 256}


@dataclass(frozen=True)
class Options:
    """How vectors are made and stored.

    Attributes
    ----------
    normalize : bool
        Scale to unit length.
    dtype : {"float32", "float16"}
        Type on disk.
    on_error : {"raise", "drop", "null"}
        For a row without a usable value or vector: raise, leave the row out, or keep it with a null vector.
    """

    normalize: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    on_error: Literal["raise", "drop", "null"] = "raise"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done with every shard, and where it is written."""

    embedder: Embedder
    columns: tuple[str, ...]
    directory: str
    options: Options
    shard: int


@dataclass(frozen=True)
class Unit:
    """What one reader reads: the ids low..high-1 without the shards that are done.

    Attributes
    ----------
    pieces : sequence of Piece
        The Parquet row groups with these ids; none if the rows come as tables.
    names : mapping of str to str
        For each column, its name in the files.
    """

    low: int
    high: int
    done: frozenset[int] = frozenset()
    pieces: tuple[Piece, ...] = ()
    names: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Stat:
    """What was done with a shard: its number and its rows."""

    number: int
    rows: int


def shard_rows(embedder: Embedder, kind: pa.DataType) -> int:
    """Return the ids per file, for a column of type ``kind``.

    Enough to be worth a file, and few enough that a lost one is soon computed again and that all decoded images of one
    fit into memory.
    """
    takes = getattr(embedder, "takes", "any")
    if getattr(embedder, "tile", None) is not None:
        return _ROWS_TILED.get(takes, 512)
    return _ROWS_TILED["images"] if takes == "images" or (takes == "any" and is_bytes(kind)) else _ROWS


# ---- reading -------------------------------------------------------------------------------------------------


def read(unit: Unit, work: Work, *tables: pa.Table) -> Iterator[Rows]:
    """Return the decoded rows of a unit's shards, from its pieces or from tables with more rows."""
    takes: Takes = getattr(work.embedder, "takes", "any")
    prepare = getattr(work.embedder, "prepare", None)
    for parts in _from_tables(unit, tables) if tables else _from_pieces(unit, work.shard):
        decoded = [decode(part, work.columns, takes, prepare) for part in parts]
        rows = decoded[0]
        if len(decoded) > 1 or (np.diff(rows.ids) < 0).any():
            rows = join(decoded, work.columns)
        if rows.rejected and work.options.on_error == "raise":
            refuse(rows.rejected, np.concatenate([part[ID].to_numpy() for part in parts]))
        yield rows


def _from_tables(unit: Unit, tables: Sequence[pa.Table]) -> Iterator[list[pa.Table]]:
    """Yield the rows of a shard, in as many tables as their types need: tensors of several sizes are not one column."""
    parts = [part for table in tables if (part := _between(table, unit.low, unit.high)).num_rows]
    if parts:
        alike = all(part.schema.equals(parts[0].schema) for part in parts)
        yield [pa.concat_tables(parts)] if alike else parts


def _from_pieces(unit: Unit, shard: int) -> Iterator[list[pa.Table]]:
    parts = stream_rows(unit.pieces, unit.names or {}, unit.low, unit.high, shard)
    for number, group in itertools.groupby(parts, lambda part: part[ID][0].as_py() // shard):
        if number not in unit.done:
            yield [pa.concat_tables(group)]


def _between(table: pa.Table, low: int, high: int) -> pa.Table:
    ids = table[ID].to_numpy()
    return table.filter(pa.array((ids >= low) & (ids < high)))


def stream_rows(
    pieces: Sequence[Piece], names: Mapping[str, str], low: int, high: int, step: int
) -> Iterator[pa.Table]:
    """Yield the rows low..high-1 of consecutive pieces, in tables that never cross a multiple of ``step``.

    ``names`` has, for each column, its name in the files. Only what is needed of the last piece is decoded.
    """
    begun, start = None, 0
    for piece, table in read_pieces(pieces, list(dict.fromkeys(names.values())), rows=step):
        start = piece.start if piece is not begun else start
        begun = piece
        if start >= high:
            return
        table = with_ids(pa.table({name: table[stored] for name, stored in names.items()}), start)
        cut = max(start, low)
        while cut < min(start + len(table), high):
            stop = min((cut // step + 1) * step, start + len(table), high)
            yield table.slice(cut - start, stop - cut)
            cut = stop
        start += len(table)


# ---- embedding -----------------------------------------------------------------------------------------------


def prepare_network(embedder: Embedder, device: str) -> Callable[[Any], Any]:
    """Return the callable to embed with: what ``load`` returns, or the embedder itself."""
    load = getattr(embedder, "load", None)
    run = embedder if load is None else load(device)
    if device == "cpu" and "torch" in sys.modules:
        # More threads would add in another order, and nodes differ in their number: one worker a CPU instead.
        sys.modules["torch"].set_num_threads(1)
    return run


def embed(rows: Rows, run: Callable[[Any], Any], work: Work) -> Stat:
    """Write the vectors of a shard's rows; raise DataError for vectors that cannot be used."""
    name = work.embedder.name
    vectors = (
        np.concatenate(list(_tiles(rows, run, work)))
        if length_of(rows.rows)
        else np.empty((0, 0), np.float32)
    )
    if work.options.on_error == "raise":
        refuse_not_finite(vectors, rows.ids, name)
    bad = not_finite(vectors)
    rejected = rows.rejected | dict.fromkeys(
        rows.ids[bad].tolist(), "its vector holds NaN or infinite values"
    )
    good = np.setdiff1d(np.arange(len(vectors)), bad)
    ids = rows.ids[good]
    if not len(ids):  # without a vector there is no dimension, and no column to write
        number = min(rejected) // work.shard
        VectorFolder(work.directory).write_none(number, rejected)
        return Stat(number, len(rejected))
    table = table_of(ids, finish(vectors[good], ids, name, work.options), rejected, work.options.on_error)
    number = int(ids[0]) // work.shard
    VectorFolder(work.directory).write_part(number, table, rejected)
    return Stat(number, len(ids) + len(rejected))


def _tiles(rows: Rows, run: Callable[[Any], Any], work: Work) -> Iterator[np.ndarray]:
    ids = rows.ids
    tile = getattr(work.embedder, "tile", None) or work.shard
    edges = [0, *(np.flatnonzero(np.diff(ids // tile)) + 1).tolist(), len(ids)]
    width: int | None = None
    for start, stop in itertools.pairwise(edges):
        vectors = check_vectors(
            run(rows_of(rows.rows, start, stop)), ids[start:stop], work.embedder.name, width
        )
        width = vectors.shape[1]
        yield vectors


def refuse(rejected: dict[int, str], ids: np.ndarray) -> None:
    """Raise DataError with the first three of the rejected rows among ``ids``."""
    some = sorted(rejected.items())
    reasons = "; ".join(f"sample_id {number}: {reason}" for number, reason in some[:3])
    raise DataError(
        f"{len(some):,} of the rows with sample_id {ids.min()} to {ids.max()} cannot be embedded ({reasons}"
        f"{'; and others' if len(some) > 3 else ''}); repair them, or set on_error to 'drop' or 'null'."
    )


def refuse_not_finite(vectors: np.ndarray, ids: np.ndarray, name: str) -> None:
    """Raise DataError with the first ids whose vectors have NaN or infinity."""
    bad = not_finite(vectors)
    if len(bad):
        raise DataError(
            f"Embedder {name} returned NaN or infinite values for {len(bad):,} of {len(vectors):,} rows "
            f"(sample_id {first(ids[bad])}); repair these rows, or correct the embedder."
        )


def finish(vectors: np.ndarray, ids: np.ndarray, name: str, options: Options) -> np.ndarray:
    """Return vectors (n, d) as they are stored: of unit length and of the dtype that the options name."""
    if options.normalize:
        vectors = vectors / np.maximum(np.sqrt(np.square(vectors).sum(axis=1, keepdims=True)), 1e-12)
    stored = vectors.astype(options.dtype, copy=False)
    if stored.dtype == np.float16 and len(over := not_finite(stored)):
        raise DataError(
            f"Embedder {name} returned values above 65504, the largest float16 value, for sample_id {first(ids[over])}; "
            "set 'normalize' to true, or 'dtype' to float32."
        )
    return stored


def table_of(ids: np.ndarray, vectors: np.ndarray, rejected: dict[int, str], on_error: str) -> pa.Table:
    """Return a part's columns; with rejected rows, as nulls, if ``on_error`` is "null"."""
    if on_error != "null" or not rejected:
        return pa.table({ID: ids, EMBEDDING: to_column(vectors)})
    every = np.sort(np.concatenate([ids, np.array(list(rejected), np.int64)]))
    filled = np.zeros((len(every), vectors.shape[1]), vectors.dtype)
    filled[np.searchsorted(every, ids)] = vectors
    column = to_column(filled)
    storage = pa.FixedSizeListArray.from_arrays(
        column.storage.values, vectors.shape[1], mask=pa.array(np.isin(every, ids, invert=True))
    )
    return pa.table({ID: every, EMBEDDING: pa.ExtensionArray.from_storage(column.type, storage)})


# ---- the directory -------------------------------------------------------------------------------------------


class VectorFolder(storage.Folder):
    """The files of a data set's vectors, on any filesystem; each appears complete or not at all."""

    def read(self, name: str) -> Any:
        """Return what a JSON file holds, None if it is missing."""
        try:
            return storage.read_json(self.file(name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.file(name)} is damaged ({error}); remove the directory {self.path} and run again."
            ) from error

    def claim(self, key: dict[str, Any]) -> None:
        """Make the directory these vectors' own; raise RunError if it has others."""
        before = self.read("_key.json")
        if before is None:
            storage.make_folder(self.path)
            storage.write_json(self.file("_key.json"), key)
        elif before != key:
            other = [part for part in key if before.get(part) != key[part]]
            raise RunError(
                f"{self.path} holds vectors that were computed from other data or with other settings (different: "
                f"{first(other)}); choose another directory, or remove this one."
            )

    def parts(self) -> set[int]:
        """Return the numbers of the shards that are there."""
        names = (name.partition(".")[0] for name in storage.list_files(self.path))
        return {int(name[5:]) for name in names if name.startswith(("part-", "none-"))}

    def part(self, number: int) -> str:
        """Return the path of a shard's file."""
        return self.file(part_name(number))

    @contextmanager
    def reading_part(self, number: int) -> Iterator[Any]:
        """Open a shard's file; what is raised for a damaged one becomes DataError. FileNotFoundError if it is missing."""
        with storage.open_file(self.part(number)) as source, intact(self.part(number)):
            yield source

    def write_part(self, number: int, table: pa.Table, rejected: dict[int, str]) -> None:
        """Write a shard's file, with the rejected rows in its metadata."""
        sink = pa.BufferOutputStream()
        kept = table.replace_schema_metadata({"rejected": json.dumps(sorted(rejected.items()))})
        pq.write_table(kept, sink, compression="none", write_page_checksum=True)
        self.write(part_name(number), sink.getvalue())

    def write_none(self, number: int, rejected: dict[int, str]) -> None:
        """Write the mark of a shard without any vector."""
        self.write(f"none-{number:012d}.json", json.dumps(sorted(rejected.items())).encode())


def intact(path: str) -> AbstractContextManager[None]:
    """Turn what reading a damaged file of vectors raises into a DataError with its path."""
    advice = "remove the directory and compute the vectors again"
    return reading(path, "vectors", lambda error: f"{path} is damaged ({reason_of(error)}); {advice}.")


def part_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:012d}.parquet"


def check_columns_of_part(schema: pa.Schema) -> None:
    """Raise ValueError unless the columns are those that :func:`table_of` makes, whose types a damaged footer can change."""
    kinds = {name: schema.field(name).type for name in (ID, EMBEDDING) if name in schema.names}
    vector = kinds.get(EMBEDDING)
    known = isinstance(vector, pa.FixedShapeTensorType) and pa.types.is_floating(vector.value_type)
    if kinds.get(ID) != pa.int64() or not known:
        raise ValueError(
            f"A file of vectors must have the columns {ID} and {EMBEDDING}, not {first(map(str, schema), 10)}."
        )


def check_parts(directory: str, numbers: list[int]) -> list[tuple[int, int, int, int, list[Any]]]:
    """Return for each part: vectors, the sum of ids, the dimension, the first id, and rejected rows."""
    folder = VectorFolder(directory)
    found = []
    for number in numbers:
        none = folder.read(f"none-{number:012d}.json")
        if none is not None:
            found.append((0, 0, 0, -1, none))
            continue
        with folder.reading_part(number) as source:
            file = pq.ParquetFile(source)
            schema = file.schema_arrow
            check_columns_of_part(schema)
            ids = file.read(columns=[ID])[ID].to_numpy()
            rejected = json.loads(schema.metadata[b"rejected"])
            ids = np.setdiff1d(ids, [number for number, _ in rejected], assume_unique=True)
            width = schema.field(EMBEDDING).type.shape[0]
            found.append((len(ids), int(ids.sum()), width, int(ids[0]) if len(ids) else -1, rejected))
    return found
