"""Row identity: the same ``sample_id`` on every run and on a cluster of any size.

For Parquet, ``id = rows of the files before it + position in its file``, both from the footers. The first
reading fixes the order of the files (sorted by path); files that are added later are appended, so an id is
never used twice, and a file that changed under its name is an error. Files are compared by content, which is
read only when a digest is needed. Without Ray.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.fingerprint.files import Trust, stored_digests
from raysel.core.storage import resolve
from raysel.errors import DataError, first

ID = "sample_id"
_FORMAT = 2


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
    """

    path: str
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    stamp: tuple[int, int]
    filesystem: pafs.FileSystem | None = field(default=None, repr=False)
    trust: Trust = "content"
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
                file._digests[kind] = digest
    return [file._digests[kind] for file, kind in zip(files, wanted, strict=True)]


def _changed(path: str) -> DataError:
    return DataError(
        f"{path} has changed since its rows were numbered. Ids are never reused for other rows: write the new rows to a "
        "new file, or number all rows again in a new index."
    )


def _by_filesystem(files: Sequence[IndexedFile]) -> list[tuple[pafs.FileSystem, list[IndexedFile]]]:
    groups: list[tuple[pafs.FileSystem, list[IndexedFile]]] = []
    for file in files:
        filesystem = file.filesystem
        if filesystem is None:
            raise DataError(
                f"The saved index identifies {file.path} by another setting of trust (content or mtime); use the setting that "
                "it was made with."
            )
        if not groups or not groups[-1][0].equals(filesystem):
            groups.append((filesystem, []))
        groups[-1][1].append(file)
    return groups


@dataclass(frozen=True)
class RowIndex:
    """The files of a data set in the order that gives its rows their ids."""

    files: tuple[IndexedFile, ...]

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
        storage.make_folder(os.path.dirname(os.fspath(path)) or ".")
        storage.write_json(path, {"format": _FORMAT, "files": files})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RowIndex:
        """Read an index that :meth:`save` wrote; raise DataError if it is not one."""
        try:
            raw = storage.read_json(path)
            if raw["format"] != _FORMAT:
                raise DataError(
                    f"{path} is a row index of format {raw['format']}, but this version reads format {_FORMAT}; remove it "
                    "to number the rows again."
                )
            return cls(
                tuple(
                    IndexedFile(
                        f["path"],
                        tuple(f["group_rows"]),
                        tuple(f["group_bytes"]),
                        (f["stamp"][0], f["stamp"][1]),
                        None,
                        f["trust"],
                        {f["trust"]: f["digest"]},
                    )
                    for f in raw["files"]
                )
            )
        except DataError:
            raise
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is not a row index ({error}); remove it to number the rows again."
            ) from error


@dataclass(frozen=True)
class Piece:
    """A row group of a Parquet file: its place, first ``sample_id``, rows and bytes."""

    filesystem: pafs.FileSystem
    path: str
    number: int
    start: int
    rows: int
    bytes: int


def with_ids(table: pa.Table, start: int) -> pa.Table:
    """Return ``table`` with the ids from ``start`` on as its first column."""
    return table.add_column(0, ID, pa.array(np.arange(start, start + table.num_rows, dtype=np.int64)))


def list_files(
    sources: Sequence[str | os.PathLike[str]], suffix: str = ".parquet"
) -> tuple[pafs.FileSystem, list[str]]:
    """Return the files under the given paths, sorted; a directory is searched for ``suffix`` in it and below.

    Names that begin with "." or "_" are left out, as Spark and Ray do.

    Raises
    ------
    DataError
        If a path is missing, a directory has no such file, or the paths are on different filesystems.
    """
    if not sources:
        raise DataError("No path was given to read.")
    found: list[str] = []
    filesystem: pafs.FileSystem | None = None
    for source in sources:
        here, path = resolve(source)
        if filesystem is not None and not here.equals(filesystem):
            raise DataError(f"{source} is on another filesystem than {sources[0]}; read them separately.")
        filesystem = here
        info = here.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{source} does not exist.")
        if info.type == pafs.FileType.File:
            found.append(path)
            continue
        inside = [
            entry.path
            for entry in here.get_file_info(pafs.FileSelector(path, recursive=True))
            if entry.type == pafs.FileType.File
            and entry.path.endswith(suffix)
            and not any(p.startswith((".", "_")) for p in entry.path[len(path) :].split("/") if p)
        ]
        if not inside:
            raise DataError(f"The directory {source} holds no {suffix} file.")
        found.extend(inside)
    assert filesystem is not None
    repeated = (
        sorted({path for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []
    )
    if repeated:
        raise DataError(f"These files are named more than once; name each once: {first(repeated)}.")
    return filesystem, sorted(found)


def index_parquet(
    filesystem: pafs.FileSystem,
    paths: Sequence[str],
    known: RowIndex | None = None,
    trust: Trust = "content",
) -> tuple[RowIndex, pa.Schema]:
    """Assign ids to the rows of Parquet files from their footers; only data of files in ``known`` is read.

    Files in ``known`` keep their place; others follow, sorted. A known file is compared by what its digest
    was made of.

    Parameters
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where the files are.
    paths : list of str
        The files.
    known : RowIndex, optional
        An earlier index.
    trust : {"content", "mtime"}
        What identifies a file: its content, or its size and time of modification.

    Returns
    -------
    (RowIndex, pyarrow.Schema)
        The index and the common schema.

    Raises
    ------
    DataError
        If a known file is missing or its content changed, a file is not Parquet, or schemas differ.
    """
    if known is not None:
        here = set(paths)
        gone = [file.path for file in known.files if file.path not in here]
        if gone:
            raise DataError(
                f"{first(gone)} cannot be found, but the index has ids for its rows, and the ids of later files would shift. "
                "Restore the file, or number all rows again in a new index."
            )
        old = [file.path for file in known.files]
        paths = [*old, *sorted(set(paths) - set(old))]
    with ThreadPoolExecutor(max_workers=16) as pool:
        footers = list(pool.map(lambda path: _footer(filesystem, path, trust), paths))
    schema = footers[0][1]
    for path, (_, other) in zip(paths, footers, strict=True):
        if not other.equals(schema):
            raise DataError(
                f"{path} and {paths[0]} differ: {_difference(schema, other)}. All files must have the same columns and types."
            )
    if known is not None:
        now = [file for file, _ in footers[: len(known.files)]]
        found: dict[Trust, list[str]] = {
            kind: file_digests(now, kind) for kind in {f.trust for f in known.files}
        }
        for place, before in enumerate(known.files):
            if before.digest != found[before.trust][place]:
                raise _changed(before.path)
    return RowIndex(tuple(file for file, _ in footers)), schema


def opened(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, pq.ParquetFile]]:
    """Yield each row group with its file, which is opened once for consecutive ones."""
    for (_, path), group in itertools.groupby(pieces, lambda piece: (piece.filesystem, piece.path)):
        held = list(group)
        with held[0].filesystem.open_input_file(path) as source:
            reader = pq.ParquetFile(source)
            for piece in held:
                yield piece, reader


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


def _footer(filesystem: pafs.FileSystem, path: str, trust: Trust) -> tuple[IndexedFile, pa.Schema]:
    try:
        info = filesystem.get_file_info(path)
        with filesystem.open_input_file(path) as source:
            metadata = pq.read_metadata(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({_one_line(error)}).") from error
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    entry = IndexedFile(
        path,
        tuple(g.num_rows for g in groups),
        tuple(g.total_byte_size for g in groups),
        (info.size, info.mtime_ns),
        filesystem,
        trust,
    )
    return entry, metadata.schema.to_arrow_schema().remove_metadata()


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    for name in [*one.names, *(n for n in other.names if n not in one.names)]:
        if name not in other.names:
            return f"column '{name}' is only in the second"
        if name not in one.names:
            return f"column '{name}' is only in the first"
        if one.field(name).type != other.field(name).type:
            return f"column '{name}' is {other.field(name).type} in the first and {one.field(name).type} in the second"
    return "their columns are in different orders"


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
