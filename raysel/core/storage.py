"""The one interface for files: a file or a folder is seen complete or not at all.

A path is local (also ``file://``) or a URI that ``pyarrow.fs`` resolves. A file is written as one complete buffer: a reader
sees the old content or the new one, also when the writer is killed or loses its connection. Files that belong together are a
:class:`Folder`, whose marker is written last. Names that begin with "." are not listed: files under construction have such
names. Nothing is renamed on an object store.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import xxhash

from raysel.core.object_store import SCHEMES, StorePath, has_folders, is_transient, open_store, writable
from raysel.errors import ConfigError, DataError, RunError, reason_of, shown

MARKER = "_done.json"
_FORMAT = 1
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # of two letters or more: C:/ is a drive
_HADOOP = {"hdfs", "viewfs"}
_PART = 1 << 20  # bytes read at once for a digest
_AGAIN_S, _PAUSE_S = 10.0, 1.0  # how long a write to an object store is tried again, and the pause before

Place = Path | StorePath
"""Where something is written: on this machine or on an object store."""


def resolve(source: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Return the Arrow filesystem of a local path or a URI (``s3://``, ``gs://``, ``hf://``, ...), and the path on it.

    A URI may be percent-encoded. Schemes that pyarrow does not have are opened through fsspec.

    Raises
    ------
    DataError
        If the URI is of no filesystem that can be opened.
    """
    text = path_text(source)
    scheme = _SCHEME.match(text)
    if scheme is not None and scheme[1].lower() == "file":
        try:
            return pafs.LocalFileSystem(), str(local_output(text))
        except ConfigError as error:
            raise DataError(str(error)) from None
    if scheme is not None and not scheme[0].endswith("//"):  # pathlib turns :// into :/
        text = f"{scheme[1]}://{text[scheme.end() :]}"
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        if scheme is not None and scheme[1].lower() in SCHEMES:
            return open_store(text)
        if scheme is not None and scheme[1].lower() in _HADOOP:
            return pafs.FileSystem.from_uri(text.replace(" ", "%20"))
        return _through_fsspec(text)
    except ConfigError as error:
        raise DataError(str(error)) from None
    except ImportError as error:
        raise DataError(
            f"{text} cannot be opened, because the package for it is not installed ({reason_of(error)})."
        ) from error
    except Exception as error:  # packages for file systems raise errors of their own
        raise DataError(f"{text} cannot be opened ({reason_of(error)}).") from error


def _through_fsspec(text: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(text)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def path_text(path: object) -> str:
    """Return a path or URI as text. Raises ConfigError for anything else."""
    try:
        text = os.fspath(path)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{shown(path if text is None else text)} is not a path.")
    return text


def output(path: str | os.PathLike[str]) -> Place:
    """Return the place of something that is to be written: a path, a ``file://`` URI, or a URI of an object store.

    Raises
    ------
    ConfigError
        For a URI that cannot be written to, and for what is not a path.
    """
    text = path_text(path)
    scheme = _SCHEME.match(text)  # pathlib turns :// into :/
    if scheme is None or scheme[1].lower() == "file":
        return local_output(text)
    return writable(f"{scheme[1]}://{text[scheme.end() :]}")


def local_output(path: str | os.PathLike[str]) -> Path:
    """Return the local path of something that can only be written to this machine: a path, or a ``file://`` URI.

    Raises
    ------
    ConfigError
        For a URI with another scheme, and for what is not a path.
    """
    text = path_text(path)
    scheme = _SCHEME.match(text)  # pathlib turns :// into :/
    if scheme is None:
        return Path(os.path.expanduser(text))
    uri = f"{scheme[1]}://{text[scheme.end() :]}"
    if scheme[1].lower() != "file":
        raise ConfigError(
            f"{uri} cannot be written to, because raysel writes these files only to local and mounted folders. Give such a "
            "folder, and copy the files yourself."
        )
    rest = text[scheme.end() :]
    host = rest.partition("/")[0] if scheme[0].endswith("//") and not scheme[0].endswith("///") else ""
    if host not in ("", "localhost"):
        raise ConfigError(f"{uri} names the machine '{host}'; write file:///{rest} for a local path.")
    place = unquote(f"/{rest.removeprefix('localhost/') if host else rest}")
    if "?" in rest or "#" in rest or "\0" in place:
        raise ConfigError(
            f"{text} is not the URI of a local file, because ? and # separate the parts of a URI; write %3F "
            "for ? and %23 for #."
        )
    if place.count("\ufffd") > rest.count("\ufffd"):
        raise ConfigError(
            f"{text} is not the URI of a local file, because the bytes written with % are not UTF-8; write "
            "the path without file://."
        )
    return Path(os.path.abspath(place))


# ---- files ---------------------------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    OSError
        If it is local and cannot be read.
    RunError
        If it is on an object store that cannot be read.
    """
    filesystem, place = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(place).read_bytes()
    with _reading(path, filesystem), filesystem.open_input_file(place) as source:
        return bytes(source.read())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value that a JSON file holds. Raises as :func:`read_bytes`, and ValueError if it is not JSON."""
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError("The JSON is nested too deeply.") from None


def open_file(path: str | os.PathLike[str]) -> Any:
    """Open a file for reading at any position, as Parquet needs it; a context manager. Raises as :func:`read_bytes`."""
    filesystem, place = resolve(path)
    with _reading(path, filesystem):
        return filesystem.open_input_file(place)


def read_table(path: str | os.PathLike[str]) -> pa.Table:
    """Return the table that a Parquet file holds. Raises as :func:`read_bytes`, and ArrowException if it is not Parquet."""
    return pq.read_table(pa.BufferReader(read_bytes(path)))


@contextmanager
def on_this_machine(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return the path of a local file, or of a copy of another one while the block runs. Raises as :func:`read_bytes`."""
    filesystem, place = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
        file = Path(folder) / os.path.basename(place)
        fetch(path, file)
        yield file


def fetch(path: str | os.PathLike[str], file: Path) -> str:
    """Copy a file to a local one; return its digest as :func:`digest` does. Raises as :func:`read_bytes`."""
    filesystem, place = resolve(path)
    hashed = xxhash.xxh3_128()
    with (
        _reading(path, filesystem),
        filesystem.open_input_stream(place, buffer_size=8 * _PART) as source,
        open(file, "wb") as sink,
    ):
        while part := source.read(8 * _PART):
            hashed.update(part)
            sink.write(part)
    return hashed.hexdigest()


def write_bytes(path: str | os.PathLike[str], content: Any) -> None:
    """Write a complete buffer: a reader sees the old file or the new one.

    Parameters
    ----------
    path : path or URI
        Its folder must exist, where the filesystem has folders: see :func:`make_folder`.
    content : bytes, pyarrow.Buffer or another object with the buffer interface

    Raises
    ------
    RunError
        If the file cannot be written. What was there before is still there.
    """
    filesystem, place = resolve(path)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            _replace(Path(place), content)
        else:
            _put(path, filesystem, place, content)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a local file of any size, which appears under its name when the block ends.

    On an object store, it is uploaded then. After an error in the block, nothing appears.

    Yields
    ------
    Path
        Where to write it.

    Raises
    ------
    RunError
        If it cannot be written. What the block raises is raised unchanged.
    """
    filesystem, place = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        temporary = Path(place).with_name(f".{os.path.basename(place)}.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            try:
                os.replace(temporary, place)
            except OSError as error:
                raise unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
        file = Path(folder) / "file"
        yield file
        with _mapped(file) as content:
            write_bytes(path, content)


def write_table(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write a table as Parquet, as :func:`write_bytes` does."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text as :func:`write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, as :func:`write_bytes` does; keys keep their order."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file or a folder at ``path``."""
    return _kind(path) != pafs.FileType.NotFound


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder at ``path``; on an object store, whether there is something in it."""
    return _kind(path) == pafs.FileType.Directory


def _kind(path: str | os.PathLike[str]) -> pafs.FileType:
    filesystem, place = resolve(path)
    try:
        return filesystem.get_file_info(place).type
    except OSError as error:
        raise DataError(f"{os.fspath(path)} cannot be accessed ({reason_of(error)}).") from error


def modified(path: str | os.PathLike[str]) -> float:
    """Return when a file was written, or the latest file in and below a folder; 0 if there is none. In seconds since 1970."""
    filesystem, place = resolve(path)
    with _reading(path, filesystem):
        found = [filesystem.get_file_info(place)]
        if found[0].type == pafs.FileType.Directory:
            found = filesystem.get_file_info(pafs.FileSelector(place, recursive=True, allow_not_found=True))
    return max((entry.mtime_ns / 1e9 for entry in found if entry.type == pafs.FileType.File), default=0.0)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with everything in it; nothing happens if there is neither. RunError if it cannot be."""
    filesystem, place = resolve(path)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
            else:
                Path(place).unlink(missing_ok=True)
        elif (kind := filesystem.get_file_info(place).type) == pafs.FileType.Directory:
            with suppress(FileNotFoundError):  # at last Arrow deletes an object for the folder itself, if any
                filesystem.delete_dir(place)
        elif kind != pafs.FileType.NotFound:
            filesystem.delete_file(place)
    except OSError as error:
        raise RunError(
            f"{os.fspath(path)} cannot be removed ({reason_of(error)}); check its permissions."
        ) from error


def digest(path: str | os.PathLike[str]) -> str:
    """Return the xxh3-128 digest of a file's bytes, 32 hexadecimal digits; raises as :func:`read_bytes`."""
    return _size_and_digest(path)[1]


def unwritable(path: str | os.PathLike[str], error: OSError) -> RunError:
    """Return the error for a place that cannot be written."""
    text = _uri(path)
    check = (
        "the connection to the object store, and that your credentials are allowed to write there"
        if text.partition("://")[0].lower() in SCHEMES
        else "that its folder exists and is writable"
    )
    return RunError(f"{text} cannot be written ({reason_of(error)}); check {check}.")


# ---- folders -------------------------------------------------------------------------------------------------


def list_files(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the files directly in a folder, sorted, without those that begin with "."; [] if it is missing."""
    found = entries(folder)
    return [
        name for name, entry in found.items() if entry.type == pafs.FileType.File and not name.startswith(".")
    ]


def entries(folder: str | os.PathLike[str]) -> dict[str, pafs.FileInfo]:
    """Return everything directly in a folder by name, sorted, with size and time; {} if the folder is missing."""
    filesystem, place = resolve(folder)
    with _reading(folder, filesystem):
        deep = (
            filesystem.type_name == "gcs"
        )  # where Arrow lists only folders that have an object of their own
        found = filesystem.get_file_info(pafs.FileSelector(place, recursive=deep, allow_not_found=True))
        if deep:
            found = _direct(found, place)
    return dict(sorted((entry.base_name, entry) for entry in found))


def _direct(found: list[pafs.FileInfo], place: str) -> list[pafs.FileInfo]:
    """Return what is directly in a folder, from a list of everything below it."""
    direct: dict[str, pafs.FileInfo] = {}
    for entry in found:
        name, below, _ = entry.path[len(place) :].strip("/").partition("/")
        path = f"{place.rstrip('/')}/{name}"
        direct[name] = pafs.FileInfo(path, pafs.FileType.Directory) if below else direct.get(name, entry)
    return list(direct.values())


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and those above it where they are missing; an object store has none. RunError if it cannot be made."""
    filesystem, place = resolve(folder)
    if not has_folders(filesystem):
        return
    try:
        filesystem.create_dir(place, recursive=True)
    except OSError as error:
        raise unwritable(folder, error) from error


class _Fault(ValueError):
    """What is wrong with a marker."""


class Folder:
    """Files that belong together, complete when their marker ``_done.json`` is there.

    The marker is written last and holds the name, the size and the digest of every file directly in the folder.

    Parameters
    ----------
    path : path or URI
        The folder. It is made by :func:`make_folder` or :func:`new_folder`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_text(path)
        self._written: dict[str, tuple[int, str]] = {}

    def file(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return f"{self.path.rstrip('/')}/{name}"

    def write(self, name: str, content: Any) -> None:
        """Write a file as :func:`write_bytes` does."""
        write_bytes(self.file(name), content)
        self._written[name] = (memoryview(content).nbytes, xxhash.xxh3_128(content).hexdigest())

    def names(self) -> list[str]:
        """Return the names of the files, sorted, without the marker."""
        return [name for name in list_files(self.path) if name != MARKER]

    def finish(self) -> None:
        """Write the marker: from here on the folder is complete, and its files must stay as they are."""
        files = {name: self._written.get(name) or _size_and_digest(self.file(name)) for name in self.names()}
        write_json(self.file(MARKER), {"format": _FORMAT, "files": files})

    def files(self) -> dict[str, tuple[int, str]]:
        """Return the size and digest of each file, from the marker.

        Raises
        ------
        OSError
            If the marker is missing or cannot be read.
        ValueError
            With what is wrong with it.
        """
        try:
            about = read_json(self.file(MARKER))
            if about["format"] != _FORMAT:
                written = shown(about["format"])
                raise _Fault(
                    f"{MARKER} has format {written}, but this version of raysel reads format {_FORMAT}."
                )
            files = {name: (int(size), str(value)) for name, (size, value) in about["files"].items()}
        except _Fault:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            raise _Fault(f"{MARKER} is damaged.") from None
        if any("/" in name for name in files):  # would lead out of the folder
            raise _Fault(f"{MARKER} is damaged.")
        return files

    def fault(self) -> str | None:
        """Return why the folder cannot be used, or None if it is complete and every file is as it was written.

        Every file is read.
        """
        if not exists(self.path):
            return "it does not exist"
        try:
            files = self.files()
        except FileNotFoundError:
            return f"{MARKER} is missing; it is written last, so the folder is incomplete"
        except OSError as error:
            return f"{MARKER} cannot be read: {reason_of(error)}"
        except _Fault as error:
            return str(error).removesuffix(".")
        for name, expected in sorted(files.items()):
            try:
                found = _size_and_digest(self.file(name))
            except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
                return f"{name} cannot be read: {reason_of(error)}"
            if found != expected:
                cut = f"has {found[0]:,} bytes instead of {expected[0]:,}"
                return f"{name} {'has been changed' if found[0] == expected[0] else cut}"
        return None


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Folder]:
    """Fill a new folder, which appears with all its files and its marker when the block ends.

    Local: it has another name until then, and an error in the block leaves nothing. On other filesystems it has no marker
    until then.

    Raises
    ------
    RunError
        If the folder cannot be made, or if there is a file or a folder with this name already. What the block raises is
        raised unchanged.
    """
    filesystem, place = resolve(path)
    taken = RunError(f"{os.fspath(path)} exists already; remove it or choose another name.")
    if exists(path):
        raise taken
    if not isinstance(filesystem, pafs.LocalFileSystem):
        make_folder(path)
        folder = Folder(path)
        yield folder
        folder.finish()
        return
    target = Path(place)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    _make_hidden(partial, target)
    try:
        folder = Folder(partial)
        yield folder
        folder.finish()
        try:
            os.replace(partial, target)
        except OSError as error:  # another process was faster, or the folder above has gone
            raise taken if target.exists() else unwritable(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def filled(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder with files of any size, on this machine; it takes the place of what is there when the block ends.

    On an object store, the files are uploaded then, and the marker last. After an error in the block, nothing appears.

    Raises
    ------
    RunError
        If the files cannot be written. What the block raises is raised unchanged.
    """
    place = output(path)
    remove(place)
    if isinstance(place, Path):
        staged = stage(place)
        try:
            yield staged
            _rename(staged, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="raysel-") as made:
        yield Path(made)
        folder = Folder(place)
        for file in sorted(file for file in Path(made).rglob("*") if file.is_file()):
            with _mapped(file) as content:
                folder.write(file.relative_to(made).as_posix(), content)
        folder.finish()


def stage(target: Path) -> Path:
    """Make an empty local folder that several processes fill before :func:`publish` gives it the name ``target``.

    What an interrupted attempt left there is removed.
    """
    folder = _staged(target)
    if os.path.lexists(folder):
        remove(folder)
    _make_hidden(folder, target)
    return folder


def publish(target: Path, before: Path) -> None:
    """Give the folder that was staged the name ``target``; an older one there gets the name ``before``.

    If the process is killed in here, at least one of the two is complete.
    """
    if target.exists():
        remove(before)
        _rename(target, before)
    _rename(_staged(target), target)


# ---- inside --------------------------------------------------------------------------------------------------


def _staged(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _make_hidden(folder: Path, target: Path) -> None:
    """Make the local folder that gets the name ``target`` when it is complete; an error names the target."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise unwritable(target, error) from error


def _rename(folder: Path, target: Path) -> None:
    try:
        os.replace(folder, target)
    except OSError as error:
        raise unwritable(target, error) from error


def _replace(path: Path, content: Any) -> None:
    """Write next to the path, and move the file into place when its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _mapped(file: Path) -> Iterator[pa.Buffer]:
    """Return the content of a local file without reading it into memory."""
    size = file.stat().st_size
    with pa.memory_map(str(file)) if size else pa.BufferReader(b"") as source:
        yield source.read_buffer(size)


def _put(path: str | os.PathLike[str], filesystem: pafs.FileSystem, place: str, content: Any) -> None:
    """Write an object in one call, and again for ten seconds if that fails for a reason that may pass.

    Arrow publishes what was written of an object when an exception closes its stream. Nothing is published if the call itself
    fails, as long as its parts are written in the background, which is Arrow's default.
    """
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem, place = open_store(_uri(path), attempts=1)
    limit = time.monotonic() + _AGAIN_S
    while True:
        try:
            with filesystem.open_output_stream(place) as sink:
                sink.write(content)
            return
        except OSError as error:
            if not is_transient(error) or time.monotonic() > limit:
                raise
        time.sleep(_PAUSE_S)


def _uri(path: str | os.PathLike[str]) -> str:
    text = path_text(path)
    scheme = _SCHEME.match(text)
    return text if scheme is None else f"{scheme[1]}://{text[scheme.end() :]}"


@contextmanager
def _reading(path: str | os.PathLike[str], filesystem: pafs.FileSystem) -> Iterator[None]:
    """Raise RunError if an object store does not return what is there, so that it is not taken for damaged or missing."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if (
            has_folders(filesystem) or error.errno is not None
        ):  # of this machine: no space is left, for example
            raise
        raise RunError(
            f"{_uri(path)} cannot be read ({reason_of(error)}); check the connection to the object store, and that your "
            "credentials are allowed to read and list there."
        ) from error


def _size_and_digest(path: str | os.PathLike[str]) -> tuple[int, str]:
    hashed, size = xxhash.xxh3_128(), 0
    filesystem, place = resolve(path)
    local = isinstance(filesystem, pafs.LocalFileSystem)
    with (
        _reading(path, filesystem),
        open(place, "rb") if local else filesystem.open_input_file(place) as source,
    ):
        while part := source.read(_PART):
            hashed.update(part)
            size += len(part)
    return size, hashed.hexdigest()
