"""Row identity: the same ``sample_id`` on every run and on a cluster of any size.

For Parquet, ``id = rows of the files before it + position in its file``, both from the footers. The first
reading fixes the order of the files (sorted by path); files that are added later are appended, so an id is
never used twice, and a file that changed under its name is an error. Files are compared by content, which is
read only when a digest is needed. Without Ray.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from raysel.core import storage
from raysel.core.fingerprint.files import Trust, stored_digests
from raysel.data.files import File, Partition
from raysel.data.formats.parquet import Footer, Piece, footer, piece_starts
from raysel.data.listing import Listing
from raysel.errors import DataError, first, reason_of

ID = "sample_id"
_FORMAT = 2
_NOTHING = pa.schema([])


@dataclass(frozen=True, eq=False)
class IndexedFile:
    """One Parquet file: its path, the rows and bytes of each row group, and the digest of its content.

    Attributes
    ----------
    stamp : (int, int)
        Size and time of modification (ns) when its footer was read.
    filesystem : pyarrow.fs.FileSystem or None
        Where the file is; None for a file of a saved index, whose digest is known.
    trust : {"content", "mtime"}
        What its digest is made of.
    partition : tuple of (str, pyarrow.Scalar)
        Columns with one value for the complete file; part of its digest.
    """

    path: str
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    stamp: tuple[int, int]
    filesystem: pafs.FileSystem | None = field(default=None, repr=False)
    trust: Trust = "content"
    partition: Partition = ()
    _digests: dict[Trust, str] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.group_rows)

    @property
    def digest(self) -> str:
        """Digest of the content, read when it is first needed; DataError if the file has changed since."""
        return file_digests([self])[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IndexedFile) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.path, self.group_rows))

    def _key(self) -> tuple[str, tuple[int, ...], tuple[int, ...], str]:
        return self.path, self.group_rows, self.group_bytes, self.digest


def file_digests(files: Sequence[IndexedFile], trust: Trust | None = None) -> list[str]:
    """Return digests of indexed files, in their order; content that is not known yet is read in parallel.

    Parameters
    ----------
    files : sequence of IndexedFile
        Files of one index.
    trust : {"content", "mtime"}, optional
        What identifies a file. Default: what its index was made with.

    Returns
    -------
    list of str
        See :func:`raysel.core.fingerprint.stored_digest`.

    Raises
    ------
    DataError
        If a file changed after its footer was read, or cannot be read.
    """
    wanted = [trust or file.trust for file in files]
    for kind in sorted(set(wanted)):
        missing = [
            file for file, k in zip(files, wanted, strict=True) if k == kind and kind not in file._digests
        ]
        for filesystem, group in _by_filesystem(missing):
            found = stored_digests(filesystem, [file.path for file in group], kind)
            infos = filesystem.get_file_info([file.path for file in group])
            for file, digest, info in zip(group, found, infos, strict=True):
                if (info.size, info.mtime_ns) != file.stamp:
                    raise _changed(file.path)
                named = (f"{name}={value}" for name, value in file.partition)
                file._digests[kind] = "&".join([digest, *named])
    return [file._digests[kind] for file, kind in zip(files, wanted, strict=True)]


def _changed(path: str) -> DataError:
    return DataError(
        f"{path} has changed since the ids of its rows were recorded, so these ids may no longer belong to the same rows. "
        "Restore the old file and put new rows in a new file, or give index= a new index file, which gives all rows new ids."
    )


_IDENTIFIED: dict[Trust, str] = {"content": "content", "mtime": "size and modification time"}


def _by_filesystem(files: Sequence[IndexedFile]) -> list[tuple[pafs.FileSystem, list[IndexedFile]]]:
    groups: list[tuple[pafs.FileSystem, list[IndexedFile]]] = []
    for file in files:
        filesystem = file.filesystem
        if filesystem is None:
            raise DataError(
                f"The saved index identifies {file.path} by its {_IDENTIFIED[file.trust]}; pass trust='{file.trust}', or "
                "number all rows again in a new index."
            )
        if not groups or not groups[-1][0].equals(filesystem):
            groups.append((filesystem, []))
        groups[-1][1].append(file)
    return groups


@dataclass(frozen=True)
class RowIndex:
    """The files of a data set in the order that gives its rows their ids.

    Attributes
    ----------
    files : tuple of IndexedFile
        The files.
    schema : pyarrow.Schema
        The columns that they have together; without any for a saved index, which is only compared.
    notes : tuple of str
        One sentence per column that some files lack.
    """

    files: tuple[IndexedFile, ...]
    schema: pa.Schema = field(default=_NOTHING, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(file.rows for file in self.files)

    @property
    def offsets(self) -> np.ndarray:
        """First ``sample_id`` of each file, int64."""
        counts = np.array([file.rows for file in self.files], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts

    @property
    def digest(self) -> str:
        """Digest that changes if a row's content or id may have changed, not with the names of the files."""
        joined = "\n".join(f"{digest} {rows}" for digest, rows in self.identity())
        return hashlib.sha256(joined.encode()).hexdigest()

    def identity(self, trust: Trust | None = None) -> tuple[tuple[str, int], ...]:
        """Return the digest and number of rows of each file, in the order that gives the rows their ids.

        Parameters
        ----------
        trust : {"content", "mtime"}, optional
            What identifies a file. Default: what the index was made with.

        Returns
        -------
        tuple of (str, int)
            One pair per file.
        """
        digests = file_digests(self.files, trust)
        return tuple((digest, file.rows) for digest, file in zip(digests, self.files, strict=True))

    def pieces(self) -> list[Piece]:
        """Return the row groups that hold rows, in the order of their ids."""
        return [
            Piece(
                file.filesystem,
                file.path,
                number,
                start,
                rows,
                size,
                self.schema,
                file.partition,
                file.stamp[0],
            )
            for file, offset in zip(self.files, self.offsets.tolist(), strict=True)
            for number, start, rows, size in zip(
                range(len(file.group_rows)),
                piece_starts(file.group_rows, offset),
                file.group_rows,
                file.group_bytes,
                strict=True,
            )
            if rows
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as JSON."""
        digests = file_digests(self.files)
        files = [
            {
                "path": file.path,
                "group_rows": file.group_rows,
                "group_bytes": file.group_bytes,
                "stamp": file.stamp,
                "trust": file.trust,
                "digest": digest,
            }
            for file, digest in zip(self.files, digests, strict=True)
        ]
        place = storage.output(path)
        storage.make_folder(place.parent)
        storage.write_json(place, {"format": _FORMAT, "files": files})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RowIndex:
        """Read an index that :meth:`save` wrote; raise DataError if it is not one."""
        try:
            raw = storage.read_json(path)
            if raw["format"] != _FORMAT:
                raise DataError(
                    f"{path} is a row index of format {raw['format']}, but this version of raysel reads format "
                    f"{_FORMAT}. Remove the file, and raysel numbers the rows again."
                )
            return cls(tuple(_saved_file(entry) for entry in raw["files"]))
        except DataError:
            raise
        except (OSError, LookupError, TypeError, ValueError, RecursionError, AssertionError) as error:
            raise DataError(
                f"{path} is not a row index ({reason_of(error)}); check the path. If it is a damaged row index, remove the file, and "
                "raysel numbers the rows again."
            ) from error


def _saved_file(entry: dict[str, Any]) -> IndexedFile:
    """Return a file of a saved index; raise LookupError, TypeError or AssertionError for anything else."""
    rows, sizes, stamp = (tuple(entry[name]) for name in ("group_rows", "group_bytes", "stamp"))
    assert all(type(count) is int and count >= 0 for count in (*rows, *sizes, *stamp))
    assert len(rows) == len(sizes) and len(stamp) == 2 and entry["trust"] in ("content", "mtime")
    assert isinstance(entry["path"], str) and isinstance(entry["digest"], str)
    digests: dict[Trust, str] = {entry["trust"]: entry["digest"]}
    return IndexedFile(entry["path"], rows, sizes, stamp, None, entry["trust"], _digests=digests)


def with_ids(table: pa.Table, start: int) -> pa.Table:
    """Return ``table`` with the ids from ``start`` on as its first column."""
    return table.add_column(0, ID, pa.array(np.arange(start, start + table.num_rows, dtype=np.int64)))


def index_parquet(listing: Listing, known: RowIndex | None = None, trust: Trust = "content") -> RowIndex:
    """Assign ids to the rows of Parquet files from their footers; only data of files in ``known`` is read.

    Files in ``known`` keep their place; others follow, in the order of the listing. A known file is compared by what
    its digest was made of.

    Parameters
    ----------
    listing : Listing
        The files.
    known : RowIndex, optional
        An earlier index.
    trust : {"content", "mtime"}
        What identifies a file: its content, or its size and time of modification.

    Returns
    -------
    RowIndex
        The index, with the common schema.

    Raises
    ------
    DataError
        If a known file is missing or its content changed, a file is not Parquet, or schemas cannot be unified.
    """
    files = {file.path: file for file in listing.files}
    if known is not None:
        gone = [file.path for file in known.files if file.path not in files]
        if gone:
            raise DataError(
                f"{first(gone)} cannot be found, but the index has ids for its rows; without them, the ids of later files would change. "
                "Restore the file, or number all rows again in a new index."
            )
        old = [file.path for file in known.files]
        files = {path: files[path] for path in [*old, *(path for path in files if path not in set(old))]}
    ordered = tuple(files.values())
    with ThreadPoolExecutor(max_workers=16) as pool:
        footers = list(pool.map(footer, ordered))
    unified = replace(listing, files=ordered).unify(
        _schemas(footers), lambda at, column, kind: footers[at].fits(column, kind)
    )
    indexed = tuple(_indexed(file, found, trust) for file, found in zip(ordered, footers, strict=True))
    if known is not None:
        now = indexed[: len(known.files)]
        digests: dict[Trust, list[str]] = {
            kind: file_digests(now, kind) for kind in {f.trust for f in known.files}
        }
        for place, before in enumerate(known.files):
            if before.digest != digests[before.trust][place]:
                raise _changed(before.path)
    ranges = {found.range_index: file.path for file, found in zip(ordered, footers, strict=True)}
    notes = tuple(
        f"The index '{name}' of a pandas frame is not read, because {path} holds only the range of the index "
        "(RangeIndex), not its values; call reset_index() before writing the frame."
        for name, path in ranges.items()
        if name is not None and name not in unified.schema.names
    )
    return RowIndex(indexed, unified.schema, unified.notes + notes)


def _schemas(footers: Sequence[Footer]) -> list[pa.Schema]:
    """Return the schema of each file; a file without rows fits the types of the others."""
    filled = {name: None for found in footers if sum(found.group_rows) for name in found.schema.names}

    def empty(schema: pa.Schema) -> pa.Schema:
        own = [pa.field(field.name, pa.null()) if field.name in filled else field for field in schema]
        return pa.schema([*own, *(pa.field(name, pa.null()) for name in filled if name not in schema.names)])

    return [found.schema if sum(found.group_rows) else empty(found.schema) for found in footers]


def _indexed(file: File, found: Footer, trust: Trust) -> IndexedFile:
    return IndexedFile(
        file.path, found.group_rows, found.group_bytes, found.stamp, file.filesystem, trust, file.partition
    )


def check_ids(ids: np.ndarray, where: str) -> None:
    """Raise DataError unless ``ids`` (int64) are non-negative and all different."""
    if len(ids) and int(ids.min()) < 0:
        raise DataError(
            f"Column '{ID}' of {where} holds negative ids ({first(ids[ids < 0])}); ids must be at least 0."
        )
    order = np.sort(ids)
    twice = np.unique(order[1:][order[1:] == order[:-1]])
    if len(twice):
        raise DataError(
            f"Column '{ID}' of {where} holds ids that occur more than once ({first(twice)}); ids must be unique."
        )
