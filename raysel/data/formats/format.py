"""What a file format provides, and how errors of the library that reads it are reported. Without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from raysel.core.fingerprint.files import Trust, settled_stamp
from raysel.data.files import File, Folder
from raysel.data.schemas import Unified, unify
from raysel.errors import DataError, RayselError, reason_of

_KNOWN = 10_000  # files whose inferred columns are kept


class Format:
    """A file format: which files it takes, their schema, and their rows as Arrow tables.

    A new format is a subclass in a module of its own and one line in :data:`raysel.registry.FORMATS`; a package adds
    one with an entry point of the group ``raysel.formats``. Only ``name``, ``suffixes``, :meth:`schema` and
    :meth:`tables` are needed for a format of single files.

    Attributes
    ----------
    name : str
        Name in messages.
    suffixes : tuple of str
        Suffixes of its files, in lower case and without that of a compression.
    unit : str
        What it reads, in messages.
    is_parquet : bool
        Its files are Parquet, which is read lazily by row group; :meth:`schema` and :meth:`tables` are not used.
    takes_encoding : bool
        Its files are text, so that ``encoding`` applies.
    """

    name: str = ""
    suffixes: tuple[str, ...] = ()
    unit: str = "file"
    is_parquet: bool = False
    takes_encoding: bool = False

    def recognises(self, head: bytes) -> bool:
        """Return whether a file begins like this format, for names without a known suffix."""
        return False

    def holds(self, folder: Folder) -> bool:
        """Return whether a directory is one data set of this format."""
        return False

    def files(self, folder: Folder) -> list[File]:
        """Return the files of a directory that :meth:`holds`, in the order of their rows."""
        raise NotImplementedError

    def left_out(self, folder: Folder) -> list[str]:
        """Return the names of files in a directory that :meth:`holds` which are not read."""
        return []

    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the columns of a file.

        Parameters
        ----------
        file : File
            The file.
        encoding : str, optional
            Character encoding of text; UTF-8 by default.
        sample : bool
            Look at the beginning alone, where types are inferred from the values.
        """
        raise NotImplementedError

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a file in their order.

        Parameters
        ----------
        file : File
            The file.
        schema : pyarrow.Schema
            The columns to read, with the types that all files of the source have together. Columns that the file does
            not have may be left out, and values may have a narrower type.
        encoding : str, optional
            Character encoding of text; UTF-8 by default.
        """
        raise NotImplementedError

    def unify(self, names: Sequence[str], schemas: Sequence[pa.Schema]) -> Unified:
        """Return the schema of several files."""
        return unify(names, schemas)

    def digest(self, file: File, trust: Trust = "content") -> str:
        """Return a digest of the values of a file."""
        return file.digest(trust)

    def identity(self, file: File, trust: Trust = "content") -> str:
        """Return a digest of what an id of a row of the file refers to."""
        return self.digest(file, trust)


def inferred(schema: Callable[..., pa.Schema]) -> Callable[..., pa.Schema]:
    """Keep the columns that a method of a format infers from all values of a file, until the file changes."""
    known: dict[tuple[object, ...], pa.Schema] = {}

    @functools.wraps(schema)
    def kept(self: Format, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        stamp = None if sample else settled_stamp(file.filesystem, file.path)
        key = file.path, encoding, stamp
        if key in known:
            return known[key]
        found = schema(self, file, encoding, sample)
        if stamp is not None and settled_stamp(file.filesystem, file.path) == stamp:
            while len(known) >= _KNOWN:
                known.pop(next(iter(known)))
            known[key] = found
        return found

    return kept


@contextmanager
def reading(
    path: str, what: str, hint: Callable[[Exception], str | None] = lambda error: None
) -> Iterator[None]:
    """Raise DataError with the path in place of whatever a library raises for a file.

    ``hint`` may return another sentence for an error.
    """
    try:
        yield
    except RayselError:
        raise
    except Exception as error:
        message = hint(error) or f"{path} is not a readable {what} ({reason_of(error)})."
        raise DataError(message) from error


@contextmanager
def reading_file(
    file: File, what: str, hint: Callable[[Exception], str | None] = lambda error: None
) -> Iterator[None]:
    """Raise DataError as :func:`reading` does; of a file that Git LFS has not fetched, say so."""
    try:
        with reading(file.path, what, hint):
            yield
    except DataError as error:
        if file.is_pointer():
            raise DataError(
                f"{file.path} is only a pointer of Git LFS, not the file itself; fetch the file with 'git lfs pull'."
            ) from error
        raise


def checked(table: pa.Table) -> pa.Table:
    """Return the table if its buffers are consistent and its text is UTF-8; pyarrow's error otherwise."""
    table.validate(full=True)
    return table
