"""Parquet: footers, and row groups read into tables of one schema. Without Ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysel.data.files import File, Partition
from raysel.data.formats.format import Format, checked, reading, reading_file
from raysel.data.schemas import conform, exact_range
from raysel.errors import DataError, RayselError, reason_of

_SMALL_ROWS = 4096  # of a row group whose nested values do not fit one array


class Parquet(Format):
    """Parquet files."""

    name = "Parquet"
    suffixes = (".parquet", ".pq")
    is_parquet = True

    def recognises(self, head: bytes) -> bool:
        """Return whether a file begins as Parquet does."""
        return head.startswith(b"PAR1")


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says: its row groups, columns, and the file's size and time of modification."""

    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    stamp: tuple[int, int]
    schema: pa.Schema
    metadata: pq.FileMetaData = field(repr=False)

    @property
    def range_index(self) -> str | None:
        """Name of the index of a pandas frame that is a range, of which the file holds only first and last value."""
        try:
            (index,) = json.loads((self.metadata.metadata or {})[b"pandas"])["index_columns"]
            return index["name"] if index["kind"] == "range" else None
        except (KeyError, TypeError, ValueError):  # the frame had another index, or it was no frame
            return None

    def fits(self, column: str, kind: pa.DataType) -> bool:
        """Return whether the statistics show that a float or unsigned type holds all integers of a column exactly."""
        low, high = exact_range(kind)
        names = [self.metadata.schema.column(at).path for at in range(self.metadata.num_columns)]
        if column not in names:
            return False
        for at in range(self.metadata.num_row_groups):
            chunk = self.metadata.row_group(at).column(names.index(column))
            known = chunk.statistics
            if known is None or (not known.has_min_max and known.null_count != chunk.num_values):
                return False
            if known.has_min_max and not low <= int(known.min) <= int(known.max) <= high:
                return False
        return True


def footer(file: File) -> Footer:
    """Read the footer of a file; raise DataError if it is not Parquet."""
    with reading_file(file, "Parquet file"):
        info = file.filesystem.get_file_info(file.path)
        with file.filesystem.open_input_file(file.path) as source:
            metadata = pq.read_metadata(source)
        groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
        rows = tuple(group.num_rows for group in groups)
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise DataError(
                f"The footer of {file.path} is damaged: the number of rows of the file is not the sum of the "
                "rows of its row groups; write the file again."
            )
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        str(schema)  # raises for a name that is not UTF-8
        return Footer(
            rows,
            tuple(group.total_byte_size for group in groups),
            (info.size, info.mtime_ns),
            schema,
            metadata,
        )


@dataclass(frozen=True)
class Piece:
    """A row group: its place, first ``sample_id``, rows and bytes, and what its columns become.

    Attributes
    ----------
    schema : pyarrow.Schema
        The columns that all files have together.
    partition : tuple of (str, pyarrow.Scalar)
        Columns with one value for the complete file.
    file_size : int
        Size of the file when its footer was read.
    """

    filesystem: pafs.FileSystem
    path: str
    number: int
    start: int
    rows: int
    bytes: int
    schema: pa.Schema
    partition: Partition
    file_size: int


def read_pieces(
    pieces: Sequence[Piece], columns: Sequence[str], rows: int | None = None
) -> Iterator[tuple[Piece, pa.Table]]:
    """Yield each row group with its columns, which have the types of its schema; a file is opened once.

    Parameters
    ----------
    pieces : sequence of Piece
        Row groups.
    columns : sequence of str
        Columns of their schema.
    rows : int, optional
        Yield several tables of at most this many rows per row group.

    Raises
    ------
    DataError
        With the file and the number of the row group, for data that cannot be read. Checksums are verified where the
        file has them.
    """
    for (_, path), group in itertools.groupby(pieces, lambda piece: (piece.filesystem, piece.path)):
        held = list(group)
        with reading(path, "Parquet file"), held[0].filesystem.open_input_file(path) as source:
            if source.size() != held[0].file_size:
                raise DataError(
                    f"{path} has changed since the ids of its rows were recorded; read the source again."
                )
            reader = pq.ParquetFile(source, page_checksum_verification=True)
            there, exact = set(reader.schema_arrow.names), _int96(reader)
            for piece in held:
                yield from ((piece, table) for table in _tables(reader, there, exact, piece, columns, rows))


def _tables(
    reader: pq.ParquetFile,
    there: set[str],
    int96: list[str],
    piece: Piece,
    columns: Sequence[str],
    rows: int | None,
) -> Iterator[pa.Table]:
    wanted = pa.schema([piece.schema.field(name) for name in columns])
    stored = [name for name in columns if name in there]
    count = 0
    with _damaged(piece):
        if exact := [name for name in int96 if name in stored]:
            _check_int96(piece, exact)
        for part in _parts(reader, piece, stored, rows):
            count += len(part)
            if count > piece.rows:
                break
            for name, value in piece.partition:
                if name not in there and name in columns:
                    constant = pa.repeat(value, len(part))
                    part = part.append_column(name, constant)
            part = checked(part)
            try:
                part = conform(part, wanted)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"The values of {piece.path} cannot be converted to the types that raysel determined from all files "
                    f"({reason_of(error)}); write the files with one type, or read them "
                    "separately."
                ) from error
            yield part
    if count != piece.rows:
        raise DataError(
            f"Row group {piece.number} of {piece.path} has {count:,}{' or more' if count > piece.rows else ''} rows, but its "
            f"footer says {piece.rows:,}; write the file again."
        )


def _parts(reader: pq.ParquetFile, piece: Piece, stored: list[str], rows: int | None) -> Iterator[pa.Table]:
    if not stored:
        nothing = pa.table({"": pa.nulls(piece.rows, pa.null())}).select([])
        step = rows or max(piece.rows, 1)
        for start in range(
            0, piece.rows, step
        ):  # pyarrow does not end the slice of a table without columns at its last row
            yield nothing.slice(start, min(step, piece.rows - start))
        return
    if rows is None:
        try:
            yield reader.read_row_group(piece.number, columns=stored)
        except pa.ArrowNotImplementedError:  # nested values of more than 2 GB do not fit one array
            batches = reader.iter_batches(_SMALL_ROWS, row_groups=[piece.number], columns=stored)
            yield pa.Table.from_batches(batches)
        return
    for batch in reader.iter_batches(rows, row_groups=[piece.number], columns=stored):
        yield pa.Table.from_batches([batch])


def _int96(reader: pq.ParquetFile) -> list[str]:
    """Return the columns with 96-bit timestamps, which pyarrow reads as nanoseconds."""
    schema = reader.metadata.schema
    paths = {
        schema.column(at).path for at in range(len(schema)) if schema.column(at).physical_type == "INT96"
    }
    return [
        name
        for name in (reader.schema_arrow.names if paths else [])
        if any(path == name or path.startswith(f"{name}.") for path in paths)
    ]


def _check_int96(piece: Piece, columns: list[str]) -> None:
    """Raise DataError if a timestamp is beyond the years 1677 to 2262, where pyarrow's nanoseconds wrap around."""
    with piece.filesystem.open_input_file(piece.path) as source:
        again = pq.ParquetFile(source, coerce_int96_timestamp_unit="ms")
        coarse = again.read_row_group(piece.number, columns=columns)
    for name in columns:
        for times in _milliseconds(coarse[name].combine_chunks()):
            low, high = pc.min_max(times.cast(pa.int64())).as_py().values()
            if low is not None and (low < -(2**63) // 10**6 + 1 or high > 2**63 // 10**6 - 1):
                raise DataError(
                    f"Column '{name}' of row group {piece.number} of {piece.path} holds a timestamp (INT96) outside of the years "
                    "1677 to 2262, which nanoseconds cannot represent; write the column as TIMESTAMP in microseconds."
                )


def _milliseconds(column: pa.Array) -> Iterator[pa.Array]:
    """Yield the timestamps in a column, also those within lists, maps and records."""
    if pa.types.is_timestamp(column.type):
        if column.type.unit == "ms":
            yield column
    elif pa.types.is_map(column.type):
        yield from _milliseconds(column.keys)
        yield from _milliseconds(column.items)
    elif pa.types.is_struct(column.type):
        for part in column.flatten():
            yield from _milliseconds(part)
    elif pa.types.is_nested(column.type):
        yield from _milliseconds(column.flatten())


@contextmanager
def _damaged(piece: Piece) -> Iterator[None]:
    try:
        yield
    except RayselError:
        raise
    except Exception as error:
        raise DataError(
            f"Row group {piece.number} of {piece.path} cannot be read ({reason_of(error)}); restore the file or write it again."
        ) from error


def piece_starts(group_rows: Sequence[int], offset: int) -> list[int]:
    """Return the first id of each row group of a file whose first id is ``offset``."""
    return (
        (offset + np.concatenate([[0], np.cumsum(group_rows)[:-1]])).astype(np.int64).tolist()
        if group_rows
        else []
    )
