"""Find the files of a source: paths, URIs, wildcards and directories, and the values in their names. Without Ray."""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from raysel.core.fingerprint.files import Trust, stored_digest
from raysel.core.storage import resolve
from raysel.errors import DataError, reason_of

_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_MARKERS = {  # files that say something about others, and hold no rows
    *("_SUCCESS", "_metadata", "_common_metadata", ".DS_Store", "Thumbs.db", "desktop.ini"),
    *("_done.json", "_key.json", "_pool.json", "_rejected.parquet"),
}
_INT32 = 2**31
SPECIAL = -1  # instead of a size, for what is neither a file nor a directory
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched
Partition = tuple[tuple[str, pa.Scalar], ...]


@dataclass(frozen=True)
class File:
    """A file of a source, or a folder that is read as one.

    Attributes
    ----------
    filesystem : pyarrow.fs.FileSystem
        Where it is.
    path : str
        Path on the filesystem.
    partition : tuple of (str, pyarrow.Scalar)
        Columns with one value for the complete file: from directories named ``year=2024``.
    """

    filesystem: pafs.FileSystem
    path: str
    partition: Partition = ()

    @property
    def suffix(self) -> str:
        """Suffix of the name in lower case, without that of a compression."""
        return suffix_of(self.path)

    @property
    def compression(self) -> str | None:
        """Compression that the suffix names."""
        return compression_of(self.path)

    def open(self) -> pa.NativeFile:
        """Open the file for reading at any position, decompressed."""
        if self.compression is None:
            return self.filesystem.open_input_file(self.path)
        with self.stream() as stream:
            return pa.BufferReader(stream.read())

    def stream(self) -> pa.NativeFile:
        """Open the file for reading from its beginning, decompressed."""
        return self.filesystem.open_input_stream(self.path, compression=self.compression)

    def head(self, size: int = 16) -> bytes:
        """Return the first bytes, decompressed."""
        with self.stream() as stream:
            return bytes(stream.read(size))

    def is_pointer(self) -> bool:
        """Return whether Git LFS has not fetched the file; False if it cannot be read."""
        for compression in (None, self.compression):
            with (
                contextlib.suppress(pa.ArrowException, OSError),
                self.filesystem.open_input_stream(self.path, compression=compression) as stream,
            ):
                if bytes(stream.read(len(LFS_POINTER))) == LFS_POINTER:
                    return True
        return False

    def digest(self, trust: Trust = "content") -> str:
        """Return a digest of what gives the rows their values: the content, and the partition."""
        content = stored_digest(self.filesystem, self.path, trust)
        return "&".join([content, *(f"{name}={value}" for name, value in self.partition)])


@dataclass(frozen=True)
class Folder:
    """A directory and all files in and below it, sorted; ``files`` are paths below the directory.

    ``special`` are pipes, sockets and devices, which are not read.
    """

    filesystem: pafs.FileSystem
    path: str
    files: tuple[str, ...]
    partition: Partition = ()
    special: tuple[str, ...] = ()

    def file(self, name: str) -> File:
        """Return a file with the values in the names of its directories."""
        partition = self.partition + partition_of(posixpath.dirname(name))
        return File(self.filesystem, posixpath.join(self.path, name), partition)


def find(source: str | os.PathLike[str]) -> list[File | Folder]:
    """Return the file or directory that a path, a URI or a pattern with wildcards names; several for a pattern.

    Raises
    ------
    DataError
        If there is nothing there, or the file system cannot be read.
    """
    if not os.fspath(source):
        raise DataError("The path to read is empty; name a file or a directory.")
    filesystem, path = resolve(source)
    try:
        composed = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
        for form in dict.fromkeys([path, *composed, path.replace("\\", "/")]):  # as another system writes it
            info = filesystem.get_file_info(form)
            if info.type == pafs.FileType.File:
                return [File(filesystem, form)]
            if info.type == pafs.FileType.Directory:
                return [_folder(filesystem, form)]
            if info.type == pafs.FileType.Unknown:
                raise _special(os.fspath(source))
        if not re.search(r"[*?[]", path):
            # fsspec does not tell a server without the file from one that cannot be reached.
            or_else = ", or cannot be reached" if isinstance(filesystem, pafs.PyFileSystem) else ""
            raise DataError(f"{os.fspath(source)} does not exist{or_else}.")
        return _matching(filesystem, path, os.fspath(source))
    except (pa.ArrowException, OSError, ValueError, re.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{os.fspath(source)} cannot be read ({reason_of(error)}).") from error


def _special(path: str) -> DataError:
    return DataError(f"{path} is neither a file nor a directory, and cannot be read.")


def _folder(filesystem: pafs.FileSystem, path: str, partition: Partition = ()) -> Folder:
    entries = sorted(entries_below(filesystem, path))
    names = (name for name, size in entries if size is not None and size != SPECIAL)
    special = (name for name, size in entries if size == SPECIAL)
    return Folder(filesystem, path, tuple(names), partition, tuple(special))


def entries_below(filesystem: pafs.FileSystem, root: str, deep: bool = True) -> list[tuple[str, int | None]]:
    """Return the path below a directory of everything in it, with the size of a file and None for a directory.

    A link to a directory that contains it is not followed. A link to nothing counts as a file: reading it fails. The
    size of a pipe, a socket or a device is :data:`SPECIAL`.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _local_entries(root, deep)
    entries = filesystem.get_file_info(pafs.FileSelector(root, recursive=deep))
    kept = (entry for entry in entries if entry.type in (pafs.FileType.File, pafs.FileType.Directory))
    return [(entry.path[len(root) :].lstrip("/"), entry.size if entry.is_file else None) for entry in kept]


def _local_entries(root: str, deep: bool) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    here = os.stat(root)
    waiting = [("", root, frozenset([(here.st_dev, here.st_ino)]))]
    while waiting:
        prefix, folder, above = waiting.pop()
        for entry in os.scandir(folder):
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"The name {os.fsencode(entry.name)!r} in {folder} is not UTF-8; rename the file."
                ) from None
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                found.append((name, None))
                place = entry.stat().st_dev, entry.stat().st_ino
                if deep and place not in above:
                    waiting.append((f"{name}/", entry.path, above | {place}))
            elif entry.is_file():
                found.append((name, entry.stat().st_size))
            else:
                found.append((name, 0 if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL))
    return found


def _matching(filesystem: pafs.FileSystem, pattern: str, source: str) -> list[File | Folder]:
    """Return what a pattern names: ``*``, ``?`` and ``[...]`` within a name, ``**`` for any directories."""
    parts = pattern.split("/")
    fixed = next(at for at, part in enumerate(parts) if re.search(r"[*?[]", part))
    root = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "")
    wanted = _regex(parts[fixed:])
    deep = "**" in parts or len(parts) - fixed > 1
    entries: list[tuple[str, int | None]] = []
    if not root or filesystem.get_file_info(root).type == pafs.FileType.Directory:
        entries = entries_below(filesystem, root, deep)
    named = [(name, size) for name, size in entries if wanted.fullmatch(name)]
    special = sorted(name for name, size in named if size == SPECIAL)
    if special:
        raise _special(posixpath.join(root, special[0]))
    files = sorted(name for name, size in named if size is not None)
    if files:  # directories above them match "**" too
        here = Folder(filesystem, root, tuple(files))
        return [here.file(name) for name in files]
    if not named:
        raise DataError(f"No file matches the pattern {source}; check the path.")
    return [_folder(filesystem, posixpath.join(root, name), partition_of(name)) for name, _ in sorted(named)]


def _regex(parts: Sequence[str]) -> re.Pattern[str]:
    text = ""
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        if part == "**":
            text += r"(?:[^/]+/)*" + (r"[^/]+" if last else "")
        else:
            text += ("" if part.startswith(".") else r"(?!\.)") + _name_regex(part) + ("" if last else "/")
    return re.compile(text)


def _name_regex(part: str) -> str:
    pieces = re.findall(r"\[[^\]]+\]|.", part)
    special = {"*": "[^/]*", "?": "[^/]"}
    return "".join(
        "[" + piece[1:].replace("\\", r"\\").replace("!", "^", piece.startswith("[!"))
        if len(piece) > 1
        else special.get(piece, re.escape(piece))
        for piece in pieces
    )


def same_files(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each pair of local paths that lead to one file, through links; the second is the link if only one is."""
    places: dict[tuple[int, int], str] = {}
    for path in sorted(paths, key=lambda path: (os.path.islink(path), path)):
        try:
            found = os.stat(path)
        except OSError:  # a link to nothing, which is said when it is read
            continue
        other = places.setdefault((found.st_dev, found.st_ino), path)
        if other != path:
            yield other, path


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, without that of a compression."""
    stem, suffix = os.path.splitext(posixpath.basename(name).lower())
    return os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix


def compression_of(name: str) -> str | None:
    """Return the compression that a suffix names."""
    return _COMPRESSED.get(os.path.splitext(name.lower())[1])


def hidden(name: str, underscores: bool = True) -> bool:
    """Return whether a path below a directory is left out: a part begins with ".", or with "_" as Spark marks files.

    A directory such as ``_year=2024`` is not hidden.
    """
    parts = name.split("/")
    return any(
        part.startswith(".")
        or (underscores and part.startswith("_") and not (at < len(parts) - 1 and "=" in part))
        for at, part in enumerate(parts)
    )


def is_marker(name: str) -> bool:
    """Return whether a file only says something about others: no row is lost if it is not read."""
    base = posixpath.basename(name)
    return base in _MARKERS or base.endswith(".crc") or name.startswith("_delta_log/")


@functools.lru_cache(maxsize=1 << 16)
def partition_of(directory: str) -> Partition:
    """Return the columns that directories named ``name=value`` give, as text; null for Hive's default name."""
    found: dict[str, pa.Scalar] = {}
    for part in directory.split("/"):
        name, equals, value = part.partition("=")
        if equals and name:
            name, value = unquote(name), unquote(value)
            if name in found:
                raise DataError(
                    f"The path {directory} has two directories named {name}=..., so column '{name}' would have "
                    "two values per row; rename one of the two directories."
                )
            held = None if value == "__HIVE_DEFAULT_PARTITION__" else value
            found[name] = pa.scalar(held, pa.string())
    return tuple(found.items())


def typed_partitions(files: Iterable[File]) -> list[File]:
    """Return the files with partition values as pyarrow infers them: int32 where all are integers, else text."""
    files = list(files)
    texts: dict[str, set[str]] = {}
    for partition in {file.partition for file in files}:
        for name, value in partition:
            if pa.types.is_string(value.type) and value.is_valid:
                texts.setdefault(name, set()).add(value.as_py())
    whole = {name for name, held in texts.items() if all(_is_int32(text) for text in held)}
    typed = {
        partition: tuple(_typed(name, value, name in whole) for name, value in partition)
        for partition in {file.partition for file in files}
    }
    return [replace(file, partition=typed[file.partition]) for file in files]


def _typed(name: str, value: pa.Scalar, whole: bool) -> tuple[str, pa.Scalar]:
    if not (whole and pa.types.is_string(value.type)):
        return name, value
    return name, pa.scalar(int(value.as_py()) if value.is_valid else None, pa.int32())


def _is_int32(text: str) -> bool:
    return bool(re.fullmatch(r"-?[0-9]{1,10}", text)) and -_INT32 <= int(text) < _INT32
