"""WebDataset: tar archives whose consecutive members with one name and several suffixes are a row. Without Ray."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raysel.data.files import File, hidden, is_marker
from raysel.data.formats.format import Format, reading_file
from raysel.data.listing import warn
from raysel.errors import DataError, first

_ROWS = 256
_TEXT = {"txt", "text", "json", "transcript", "caption"}
_WHOLE = {"cls", "cls2", "index", "count"}
_KEY = "__key__"


class WebDataset(Format):
    """Rows of tar archives, in the order of their members: ``__key__``, and a column per suffix.

    ``cls``, ``cls2``, ``index`` and ``count`` are integers, ``txt``, ``text``, ``json``, ``transcript`` and ``caption``
    text, other suffixes the bytes of the member. A row without a member of a suffix has no value there.
    """

    name = "WebDataset"
    suffixes = (".tar", ".tgz")

    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the columns; the members are listed, and not read."""
        suffixes: dict[str, None] = {}
        for at, (_, members) in enumerate(self._rows(file, ())):
            suffixes.update(dict.fromkeys(members))
            if sample and at >= _ROWS:
                break
        kinds = {
            name: pa.int64() if name in _WHOLE else pa.string() if name in _TEXT else pa.binary()
            for name in suffixes
        }
        return pa.schema([(_KEY, pa.string()), *sorted(kinds.items())])

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows in blocks."""
        held: list[tuple[str, dict[str, bytes]]] = []
        for row in self._rows(file, tuple(schema.names)):
            held.append(row)
            if len(held) == _ROWS:
                yield self._table(file, held, schema)
                held = []
        if held:
            yield self._table(file, held, schema)

    def _table(self, file: File, rows: list[tuple[str, dict[str, bytes]]], schema: pa.Schema) -> pa.Table:
        columns: dict[str, Any] = {}
        for field in schema:
            if field.name == _KEY:
                columns[_KEY] = pa.array([key for key, _ in rows], pa.string())
                continue
            values = [(key, members.get(field.name)) for key, members in rows]
            columns[field.name] = pa.array(
                [_value(file, field, key, value) for key, value in values], field.type
            )
        return pa.table(columns)

    def _rows(self, file: File, wanted: tuple[str, ...]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the key of each row and its members by suffix, empty if the suffix is not wanted."""
        key, seen = "", set[str]()
        skipped: list[str] = []
        members: dict[str, bytes] = {}
        with (
            reading_file(file, "tar archive", lambda error: _hint(file, error)),
            # tarfile decompresses what it can while it reads.
            file.open()
            if file.compression == "zstd"
            else file.filesystem.open_input_file(file.path) as source,
            tarfile.open(fileobj=source, mode="r:*") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                if member.issym() or member.islnk():
                    raise DataError(
                        f"The member {name} of {file.path} is a link; write the archive with the linked files instead of links."
                    )
                if not member.isfile() or hidden(name, underscores=False):
                    if not (member.isdir() or is_marker(name) or posixpath.basename(name).startswith("._")):
                        skipped.append(name)
                    continue
                folder, base = posixpath.split(name)
                stem, dot, suffix = base.partition(".")
                if not dot:
                    raise DataError(
                        f"The member {name} of {file.path} has no suffix; add one such as .jpg, because the suffix is the name of the column."
                    )
                here = posixpath.join(folder, stem)
                suffix = suffix.lower()
                if here != key:
                    if members:
                        yield key, members
                    if here in seen:
                        raise DataError(
                            f"The members of {file.path} named {here} are not next to each other; write the archive sorted "
                            "by name."
                        )
                    seen.add(here)
                    key, members = here, {}
                if suffix in members:
                    raise DataError(
                        f"The member {name} occurs more than once in {file.path}; remove or rename one of the two."
                    )
                content = archive.extractfile(member) if suffix in wanted else None
                members[suffix] = b"" if content is None else content.read()
            _check_end(file, source, archive)
        if skipped:
            count = "1 member is" if len(skipped) == 1 else f"{len(skipped):,} members are"
            warn(
                f"{file.path}: {count} not read, because a part of the name begins with '.', or the member is not a "
                f"file ({first(skipped)})."
            )
        if members:
            yield key, members


def _hint(file: File, error: Exception) -> str | None:
    opened = "could not be opened" in str(
        error
    )  # the rest of the text lists every compression that was tried
    return f"{file.path} is not a readable tar archive, or is empty." if opened else None


def _check_end(file: File, source: pa.NativeFile, archive: tarfile.TarFile) -> None:
    """Raise DataError unless the archive ends with a block of zeros, without which it may have been cut off."""
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise DataError(
            f"{file.path} has no end-of-archive mark, so it may have been cut off; write it again."
        )


def _value(file: File, field: pa.Field, key: str, value: bytes | None) -> Any:
    if value is None or pa.types.is_binary(field.type):
        return value
    try:
        text = value.decode()
        return text if pa.types.is_string(field.type) else pa.scalar(int(text), field.type).as_py()
    except (ValueError, OverflowError):
        wanted = "text in UTF-8" if pa.types.is_string(field.type) else "an integer of at most 64 bits"
        raise DataError(f"The member {key}.{field.name} of {file.path} is not {wanted}.") from None
