"""The files of a source in the order of their rows, their format, and what is not read. Without Ray."""

from __future__ import annotations

import fnmatch
import functools
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.fs as pafs

from raysel.core.fingerprint.files import Trust
from raysel.data.files import (
    File,
    Folder,
    compression_of,
    find,
    hidden,
    is_marker,
    same_files,
    suffix_of,
    typed_partitions,
)
from raysel.data.formats.format import Format, reading
from raysel.data.schemas import Fits, Unified, conform, unify
from raysel.errors import DataError, first, shown
from raysel.registry import FORMATS

_PACKED = (".xz", ".lzma", ".zip", ".br", ".snappy", ".7z", ".rar", ".z", ".lzo")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes
    ----------
    format : Format
        How they are read.
    files : tuple of File
        In the order of their rows.
    where : str
        The source in messages.
    encoding : str, optional
        Character encoding of text; UTF-8 by default.
    left_out : tuple of str
        One sentence per reason for which files of a directory are not read.
    """

    format: Format
    files: tuple[File, ...]
    where: str
    encoding: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system of the files."""
        return self.files[0].filesystem

    @property
    def paths(self) -> list[str]:
        """Paths of the files on their file system."""
        return [file.path for file in self.files]

    def unify(self, schemas: Sequence[pa.Schema], fits: Fits | None = None) -> Unified:
        """Return the schema that the files have together, with the columns of their directories.

        A column that a file stores is not taken from the names of its directories. For ``fits`` see
        :func:`raysel.data.schemas.unify`.
        """
        complete = []
        for file, schema in zip(self.files, schemas, strict=True):
            for name, value in file.partition:
                if name not in schema.names:
                    schema = schema.append(pa.field(name, value.type))
            complete.append(schema)
        return self.format.unify(self.paths, complete) if fits is None else unify(self.paths, complete, fits)

    def sample_schema(self) -> pa.Schema:
        """Return the schema of the beginning of the first file, of files that are not Parquet."""
        return replace(self, files=self.files[:1])._unified(sample=True).schema

    @cached_property
    def unified(self) -> Unified:
        """The schema of files that are not Parquet, which may read all of them."""
        return self._unified(sample=False)

    def _unified(self, sample: bool) -> Unified:
        with reading(self.where, f"{self.format.name} source"):
            schemas = [self.format.schema(file, self.encoding, sample) for file in self.files]
            [schema.names for schema in schemas]  # raises for a name that is not UTF-8
        return self.unify(schemas)

    def tables(self, file: File, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a file that is not Parquet, with exactly the columns and types of ``schema``."""
        with reading(file.path, f"{self.format.name} file"):
            for table in self.format.tables(file, schema, self.encoding):
                for name, value in file.partition:
                    if name in schema.names and name not in table.column_names:
                        table = table.append_column(name, pa.repeat(value, len(table)))
                yield conform(table, schema)

    def took(self, rows: int | None) -> str:
        """Return a sentence about what is read; without the number of rows where it is not known."""
        count, unit = len(self.files), self.format.unit
        units = unit if count == 1 else f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
        files = f"{count:,} {self.format.name} {units}"
        return f"{files} of {self.where}." if rows is None else f"{rows:,} rows in {files} of {self.where}."

    def digest(self, file: File, trust: Trust = "content") -> str:
        """Return a digest of the values of a file, with what decides how they are read."""
        suffix = f"&encoding={self.encoding}" if self.encoding else ""
        return f"{self.format.digest(file, trust)}{suffix}"


def list_source(sources: Sequence[str | os.PathLike[str]], encoding: str | None = None) -> Listing:
    """Return the files that paths, URIs, patterns and directories name.

    Parameters
    ----------
    sources : sequence of path
        All of one format and on one file system. Files that they name more than once are refused.
    encoding : str, optional
        Character encoding of text.

    Raises
    ------
    DataError
        If there is nothing to read, or the format is not known.
    """
    if not sources:
        raise DataError("No path was given to read.")
    if encoding is not None:
        _check_encoding(encoding)
    files: list[File] = []
    sentences: list[str] = []
    form: Format | None = None
    for source in sources:
        for found in find(source):
            with reading(found.path, "source"):
                here, inside, left = (
                    _of_folder(found) if isinstance(found, Folder) else (_of_file(found), [found], [])
                )
            if form is not None and here is not form:
                raise DataError(
                    f"{os.fspath(sources[0])} and {found.path} have different formats ({form.name}, {here.name}); read them "
                    "separately."
                )
            if files and not found.filesystem.equals(files[0].filesystem):
                raise DataError(
                    f"{os.fspath(source)} is on another filesystem than {os.fspath(sources[0])}; read them separately."
                )
            form = here
            files += inside
            sentences += left
    assert form is not None
    if encoding is not None and not form.takes_encoding:
        raise DataError(
            f"encoding: {os.fspath(sources[0])} is read as {form.name}, and only CSV and JSON files have an encoding; leave out the argument encoding."
        )
    _check_once(files)
    if len(sources) > 1:
        files = sorted(files, key=lambda file: file.path)
    where = os.fspath(sources[0]) if len(sources) == 1 else f"{len(files)} files from {files[0].path}"
    return Listing(form, tuple(typed_partitions(files)), where, encoding, tuple(sentences))


def _check_once(files: Sequence[File]) -> None:
    """Raise DataError if the rows of a file would be read more than once."""
    twice = sorted(path for path, count in Counter(file.path for file in files).items() if count > 1)
    if twice:
        raise DataError(f"These files are named more than once; name each once: {first(twice)}.")
    unpacked: dict[str, str] = {}
    for file in files:
        stem = os.path.splitext(file.path)[0] if file.compression else file.path
        other = unpacked.setdefault(stem, file.path)
        if other != file.path:
            raise DataError(
                f"{other} and {file.path} have the same name except for the suffix of the compression, so the same rows would be "
                "read twice; remove one of the two files, or rename it if its rows are different."
            )
    if len(files) > 1 and isinstance(files[0].filesystem, pafs.LocalFileSystem):
        for one, other in same_files([file.path for file in files]):
            raise DataError(
                f"{other} is a link to the same file as {one}, whose rows would be read twice; remove the "
                "link, or name the files to read."
            )


def _check_encoding(encoding: str) -> None:
    """Raise DataError unless Python decodes bytes to text with this name."""
    try:
        "a".encode(encoding)
    except (LookupError, TypeError, ValueError):
        raise DataError(
            f"encoding: Python has no encoding {shown(encoding)}; write for example latin-1."
        ) from None


@functools.cache
def formats() -> tuple[Format, ...]:
    """Return all formats in the order of the registry."""

    def refuse(spec: str, where: str) -> None:
        raise AssertionError(spec)

    return tuple(FORMATS.find(name, "formats", refuse)() for name in FORMATS.names())


def _of_file(file: File) -> Format:
    found = next((form for form in formats() if file.suffix in form.suffixes), None)
    if found is None:
        with reading(file.path, "file"):
            head = file.head(4096)
        found = next((form for form in formats() if form.recognises(head)), None)
    if found is not None and found.is_parquet and file.compression:
        raise DataError(
            f"{file.path} is a compressed Parquet file; unpack it, because Parquet compresses its content itself."
        )
    if found is not None:
        return found
    if file.path.lower().endswith(_PACKED):
        raise DataError(
            f"{file.path} is compressed in a way that raysel does not read; unpack it, or compress it with gzip, bzip2, zstd "
            "or lz4 (.gz, .bz2, .zst, .lz4)."
        )
    raise DataError(
        f"The format of {file.path} is recognised neither by its name nor by its first bytes. Give files whose names end in "
        f"{', '.join(suffix for form in formats() for suffix in form.suffixes)}, directories of such files, or directories of "
        "images."
    )


def _of_folder(folder: Folder) -> tuple[Format, list[File], list[str]]:
    """Return the format of a directory, its files, and sentences about those that are not read."""
    for form in formats():
        if form.holds(folder):
            names = [name for name in form.left_out(folder) if not is_marker(name)]
            return form, form.files(folder), _sentences(folder, form, [], names)
    for kind, inside in (("Hudi", ".hoodie/*"), ("Iceberg", "metadata/*.metadata.json")):
        if fnmatch.filter(folder.files, inside):
            raise DataError(
                f"The directory {folder.path} is a table of {kind}, whose files also hold rows that were changed or deleted; "
                "write its current rows to Parquet, and read those."
            )
    visible, masked = [], []
    for name in folder.files:
        if not hidden(name):
            visible.append(name)
        elif not is_marker(name):
            masked.append(name)
    by_suffix = {suffix: form for form in reversed(formats()) for suffix in form.suffixes}
    groups: dict[Format, list[str]] = {}
    for name in visible:
        named = by_suffix.get(suffix_of(name))
        if named is not None and not (named.is_parquet and compression_of(name)):
            groups.setdefault(named, []).append(name)
    plain = [name for name in visible if "." not in posixpath.basename(name)]
    if not groups and plain:
        groups = {_of_file(folder.file(plain[0])): plain}
    chosen = next((form for form in groups if form.is_parquet), None)
    if chosen is None and len(groups) > 1:
        examples = first([f"{held[0]} is {form.name}" for form, held in groups.items()])
        raise DataError(
            f"The directory {folder.path} holds files of several formats ({examples}); name the files to read."
        )
    if not groups:
        names = [*visible, *masked]
        there = f" Its files are {first(names)}." if names else " It is empty."
        if masked and not visible:
            there = f" Names that begin with '.' or '_' are not read ({first(masked)})."
        known = ", ".join(suffix for form in formats() for suffix in form.suffixes)
        raise DataError(
            f"The directory {folder.path} holds no file of a format that raysel reads ({known}, or images).{there}"
        )
    form = chosen or next(iter(groups))
    taken = set(groups[form])
    others = [name for name in visible if name not in taken and not is_marker(name)]
    return form, [folder.file(name) for name in groups[form]], _sentences(folder, form, masked, others)


def _sentences(folder: Folder, form: Format, masked: list[str], others: list[str]) -> list[str]:
    found = []
    for names, why in (
        (masked, "a part of the name begins with '.' or '_'"),
        (others, f"the directory is read as {form.name}"),
        (list(folder.special), "pipes, sockets and devices hold no rows"),
    ):
        if names:
            count = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
            found.append(f"{folder.path}: {count} not read, because {why} ({first(names)}).")
    return found


@functools.cache
def warn(sentence: str) -> None:
    """Log a warning once per process."""
    logger.warning("%s", sentence)
