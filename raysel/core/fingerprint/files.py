"""Digests of files: xxh3-128 over all bytes, read once for as long as a file's metadata stays the same.

A digest is kept under the path with the size, both times and the inode of the file. As git does with its index, it is
kept only if the file was already older than the clock is coarse: a file rewritten within one tick of the clock looks
unchanged, so a file that has just been written is read every time. Setting back the time of modification does not
help, because the time of the inode's change cannot be set. One change escapes: bytes written through a memory map that
the kernel has not written back, whose time it does not record.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import xxhash

from raysel.errors import DataError

Trust = Literal["content", "mtime"]
"""What identifies a file: all its bytes, or its size and time of modification."""

_Stamp = tuple[int, int, int, int]  # size, time of modification, time of the inode's change, inode
_CHUNK = 1 << 20
_THREADS = 16
_TRIES = 3
_SETTLED_NS = 3_000_000_000  # the clock of a file system is no coarser than 2 s


def file_digest(path: str | os.PathLike[str], trust: Trust = "content") -> str:
    """Return the digest of one local file. Links are followed.

    Parameters
    ----------
    path : path-like
        File to read.
    trust : {"content", "mtime"}
        Read all bytes, or identify the file by its size and time of modification.

    Returns
    -------
    str
        ``xxh3:`` and 32 hexadecimal digits, or ``mtime:SIZE:NANOSECONDS``.

    Raises
    ------
    DataError
        If the file cannot be read, or changes each time while it is read.
    """
    return file_digests([path], trust)[0]


def file_digests(paths: Sequence[str | os.PathLike[str]], trust: Trust = "content") -> list[str]:
    """Return the digests of local files in their order, reading files in parallel. See :func:`file_digest`."""
    places = [os.path.abspath(path) for path in paths]
    stamps = [_stamp(place) for place in places]
    if trust == "mtime":
        return [f"mtime:{size}:{modified}" for size, modified, _, _ in stamps]
    known = _CACHE.look(places)
    missing = sorted(
        {place for place, stamp in zip(places, stamps, strict=True) if known.get(place, (None,))[0] != stamp}
    )
    if missing:
        with ThreadPoolExecutor(min(_THREADS, len(missing))) as pool:
            read = dict(zip(missing, pool.map(_read, missing), strict=True))
        _CACHE.keep({place: (stamp, digest) for place, (stamp, digest, settled) in read.items() if settled})
        known |= {place: (stamp, digest) for place, (stamp, digest, _) in read.items()}
    return [known[place][1] for place in places]


def folder_digest(path: str | os.PathLike[str], skip: Callable[[str], bool] | None = None) -> str:
    """Return the digest of a local directory: relative names and contents of all files in and below it.

    Links are followed.

    Parameters
    ----------
    path : path-like
        Directory. A file is treated as a directory that holds only this file.
    skip : callable, optional
        Receives the name of a file and returns whether it is left out.

    Returns
    -------
    str
        ``xxh3:`` and 32 hexadecimal digits.

    Raises
    ------
    DataError
        If a file cannot be read. A broken link is part of the digest by its target.
    """
    files: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    root = os.fspath(path)
    if os.path.isdir(root):
        _walk(root, "", frozenset(), files, others)
    else:
        files.append((os.path.basename(root), root))
    kept = [(name, place) for name, place in files if skip is None or not skip(posixpath.basename(name))]
    digests = file_digests([place for _, place in kept])
    entries = sorted([*((name, digest) for (name, _), digest in zip(kept, digests, strict=True)), *others])
    whole = xxhash.xxh3_128()
    for name, digest in entries:
        raw = os.fsencode(name)
        whole.update(b"%d:%s%s\n" % (len(raw), raw, os.fsencode(digest)))
    return f"xxh3:{whole.hexdigest()}"


def stored_digest(filesystem: pafs.FileSystem, path: str, trust: Trust = "content") -> str:
    """Return the digest of a file on an Arrow filesystem.

    Local files are read as by :func:`file_digest`. On object stores the ETag or generation and the size identify an
    object without reading it. If there is neither, all bytes are read.

    Parameters
    ----------
    filesystem : pyarrow.fs.FileSystem
        Filesystem that holds the file.
    path : str
        Path on the filesystem.
    trust : {"content", "mtime"}
        Content, or size and time of modification.

    Returns
    -------
    str
        ``xxh3:...``, ``etag:ETAG:SIZE``, ``generation:NUMBER:SIZE`` or ``mtime:SIZE:NANOSECONDS``.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    local = local_path(filesystem, path)
    if local is not None:
        return file_digest(local, trust)
    try:
        if trust == "mtime":
            info = filesystem.get_file_info(path)
            if info.type != pafs.FileType.File:
                raise DataError(f"{path} does not exist.")
            return f"mtime:{info.size}:{info.mtime_ns}"
        with filesystem.open_input_stream(path) as stream:
            metadata = {
                _as_text(key).lower(): _as_text(value) for key, value in (stream.metadata() or {}).items()
            }
            for name in ("etag", "generation"):
                if metadata.get(name):
                    return f"{name}:{metadata[name].strip(chr(34))}:{filesystem.get_file_info(path).size}"
            whole = xxhash.xxh3_128()
            while part := stream.read(_CHUNK):
                whole.update(part)
            return f"xxh3:{whole.hexdigest()}"
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({_line(error)}).") from error


def stored_digests(filesystem: pafs.FileSystem, paths: Sequence[str], trust: Trust = "content") -> list[str]:
    """Digests of files on an Arrow filesystem, in their order and in parallel. See :func:`stored_digest`."""
    local = [local_path(filesystem, path) for path in paths]
    if all(path is not None for path in local):
        return file_digests([path for path in local if path is not None], trust)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: stored_digest(filesystem, path, trust), paths))


def local_path(filesystem: pafs.FileSystem, path: str) -> str | None:
    """Return the path on this machine of a file on an Arrow filesystem; None if it lies elsewhere."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return path
    if isinstance(filesystem, pafs.SubTreeFileSystem):
        return local_path(filesystem.base_fs, filesystem.base_path.rstrip("/") + "/" + path)
    return None


def settled_stamp(filesystem: pafs.FileSystem, path: str) -> tuple[int, ...] | None:
    """Return what a local file's next change will alter: its size, times and inode.

    None for a file that lies elsewhere or cannot be found, and for one written so recently that its next change may not
    show.
    """
    local, now = local_path(filesystem, path), time.time_ns()
    try:
        stamp = None if local is None else _stamp(local)
    except DataError:
        return None
    return stamp if stamp is not None and now - max(stamp[1], stamp[2]) > _SETTLED_NS else None


def _as_text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


# ---- reading ---------------------------------------------------------------------------------------------------------


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_line(error)}).") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is not a regular file and cannot be read.")
    return _of(found)


def _of(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(path: str) -> tuple[_Stamp, str, bool]:
    """Metadata and digest of a file, and whether the metadata will show the next change."""
    try:
        for _ in range(_TRIES):
            began = time.time_ns()
            with open(path, "rb", buffering=0) as source:
                before = _of(os.fstat(source.fileno()))
                whole = xxhash.xxh3_128()
                buffer = memoryview(bytearray(min(_CHUNK, max(before[0], 1) + 1)))
                done = 0
                while done <= before[0] and (
                    count := source.readinto(buffer)
                ):  # it may grow faster than it is read
                    whole.update(buffer[:count])
                    done += count
                after = _of(os.fstat(source.fileno()))
            if before == after == _of(os.stat(path)):
                return before, f"xxh3:{whole.hexdigest()}", began - max(before[1], before[2]) > _SETTLED_NS
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_line(error)}).") from error
    raise DataError(
        f"{path} changed during each of {_TRIES} attempts to read it; run again when no program writes to it."
    )


def _walk(
    folder: str,
    prefix: str,
    above: frozenset[tuple[int, int]],
    files: list[tuple[str, str]],
    others: list[tuple[str, str]],
) -> None:
    """Files below a directory; a link to a directory that contains it ends there."""
    try:
        here = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"The directory {folder} cannot be read ({_line(error)}).") from error
    place = here.st_dev, here.st_ino
    if place in above:
        others.append((prefix, "cycle"))
        return
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            _walk(entry.path, f"{name}/", above | {place}, files, others)
        elif entry.is_file():
            files.append((name, entry.path))
        elif entry.is_symlink():
            others.append((name, f"broken:{os.readlink(entry.path)}"))
        else:
            others.append((name, "special"))


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


# ---- what is known ---------------------------------------------------------------------------------------------------


class _Cache:
    """Digests by path and metadata, in memory and in a database that processes share; it may be lost at any time."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[_Stamp, str]] = {}
        self._lock = threading.Lock()

    def look(self, paths: Sequence[str]) -> dict[str, tuple[_Stamp, str]]:
        """Return what is known of these paths, with the metadata under which it holds."""
        with self._lock:
            found = {path: self._held[path] for path in paths if path in self._held}
        missing = [path for path in dict.fromkeys(paths) if path not in found]
        if missing:
            with (
                contextlib.suppress(sqlite3.Error, OSError, ValueError),
                contextlib.closing(_database()) as base,
            ):
                for path in missing:
                    row = base.execute("SELECT * FROM digests WHERE path = ?", (_key(path),)).fetchone()
                    if row is not None and _is_digest(row[5]):
                        found[path] = row[1:5], row[5]
        return found

    def keep(self, known: dict[str, tuple[_Stamp, str]]) -> None:
        with self._lock:
            self._held |= known
        rows = [(_key(path), *stamp, digest) for path, (stamp, digest) in known.items()]
        if rows:
            with (
                contextlib.suppress(sqlite3.Error, OSError, ValueError),
                contextlib.closing(_database()) as base,
                base,
            ):
                base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)

    def forget(self) -> None:
        """Forget what is in memory."""
        with self._lock:
            self._held.clear()


_CACHE = _Cache()


def cache_root() -> str:
    """Directory or URI under which raysel keeps what it can make again: ``$RAYSEL_CACHE`` or ``~/.cache/raysel``."""
    return (
        os.environ.get("RAYSEL_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "raysel")
    ).rstrip("/")


def _database() -> sqlite3.Connection:
    root = cache_root()
    if "://" in root:
        raise OSError("digests are kept on local disks only")
    os.makedirs(root, exist_ok=True)
    base = sqlite3.connect(os.path.join(root, "digests-1.sqlite"), timeout=2.0)
    try:
        base.execute("PRAGMA synchronous = OFF")
        base.execute(
            "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, "
            "changed INTEGER, inode INTEGER, digest TEXT) WITHOUT ROWID"
        )
    except BaseException:
        base.close()
        raise
    return base


def _key(path: str) -> bytes:
    return os.fsencode(path)


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and text.startswith("xxh3:") and len(text) == 37
