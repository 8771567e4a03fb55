"""Files of any format as Parquet, once, so that everything that reads Parquet lazily reads them too. Without Ray."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.fingerprint.files import Trust
from raysel.core.storage import Place
from raysel.data.files import File
from raysel.data.formats.parquet import Parquet
from raysel.data.listing import Listing
from raysel.errors import DataError, reason_of

_VERSION = 1  # of what the files hold; another one writes them again
_GROUP_BYTES, _GROUP_ROWS = 32 << 20, 65_536  # of a row group, at most


@dataclass(frozen=True)
class Converted:
    """Parquet files with the rows of a listing.

    Attributes
    ----------
    listing : Listing
        The Parquet files, one per file of the source and in its order.
    digests : tuple of str
        Digests of the source's files.
    notes : tuple of str
        Sentences about columns that some files of the source lack, and about objects without names, which are left out.
    written : int
        Number of files that were written now; the others were there.
    bytes : int
        Size of all files.
    """

    listing: Listing
    digests: tuple[str, ...]
    notes: tuple[str, ...]
    written: int
    bytes: int


def convert(
    source: Listing,
    directory: Place,
    trust: Trust = "content",
    note: Callable[[str], None] = lambda text: None,
) -> Converted:
    """Write the rows of a source as Parquet under ``directory``, or those of its files that are not there yet.

    A file is named by a digest of its source, of how it is read and of its columns. It appears complete or not at all;
    files in the directory that no longer belong to the source are removed.

    Parameters
    ----------
    source : Listing
        Files of a format other than Parquet.
    directory : Place
        A directory of this source alone.
    trust : {"content", "mtime"}
        What identifies a file of the source.
    note : callable
        Progress callback; receives a short status string.

    Raises
    ------
    DataError
        If the source cannot be read, or holds values that Parquet does not.
    RunError
        If the directory cannot be written.
    """
    digests = [source.digest(file, trust) for file in source.files]
    note("reading the columns")
    schema, left = _storable(source.unified.schema, source.where)
    storage.make_folder(directory)
    filesystem, root = storage.resolve(directory)
    there = storage.entries(directory)
    files, written = [], 0
    for at, (file, digest) in enumerate(zip(source.files, digests, strict=True)):
        about = [_VERSION, type(source.format).__name__, file.path, digest, str(schema)]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9.-]", "-", posixpath.basename(file.path))[:60] + f"-{key}.parquet"
        place = directory / name
        if name not in there:
            note(f"file {at + 1} of {len(digests)}")
            _write(source, file, schema, place)
            if source.digest(file, trust) != digest:
                storage.remove(place)
                raise DataError(
                    f"{file.path} changed while it was converted; run again when nothing writes to it."
                )
            written += 1
        files.append(File(filesystem, f"{root}/{name}"))
    kept = {posixpath.basename(file.path) for file in files}
    size = 0
    for name, entry in storage.entries(directory).items():
        if name in kept:
            size += entry.size
        else:
            storage.remove(directory / name)
    listing = Listing(Parquet(), tuple(files), source.where, left_out=source.left_out)
    notes = (*source.unified.notes, *left)
    return Converted(listing, tuple(digests), notes, written, size)


def _storable(schema: pa.Schema, where: str) -> tuple[pa.Schema, list[str]]:
    """Return the columns without objects that have no names, which Parquet does not hold, and a sentence about each."""
    fields, empty = [], list[str]()
    for field in schema:
        kind = _storable_type(field.type, field.name, where, empty)
        if kind is not None:
            fields.append(field.with_type(kind))
    sentences = [
        f"Column '{name}' of {where} is left out, because all of its values are empty objects."
        for name in empty
    ]
    return pa.schema(fields), sentences


def _storable_type(kind: pa.DataType, name: str, where: str, empty: list[str]) -> pa.DataType | None:
    """Return a type without objects that have no names, None if none of it remains; add the names of these to ``empty``."""
    types = pa.types
    if types.is_interval(kind):
        raise DataError(
            f"Column '{name}' of {where} holds {kind}, which Parquet cannot store; write it as a duration or as numbers."
        )
    if types.is_struct(kind):
        if not kind.num_fields:
            empty.append(name)
            return None
        inner = [(field, _storable_type(field.type, f"{name}.{field.name}", where, empty)) for field in kind]
        kept = [field.with_type(found) for field, found in inner if found is not None]
        return pa.struct(kept) if kept else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        found = _storable_type(kind.value_type, f"{name}[]", where, empty)
        if found is None or found.equals(kind.value_type):
            return None if found is None else kind
        return pa.large_list(found) if types.is_large_list(kind) else pa.list_(found)
    if types.is_map(kind):
        found = _storable_type(kind.item_type, f"{name}[]", where, empty)
        return None if found is None else pa.map_(kind.key_type, found)
    return kind


def _write(source: Listing, file: File, schema: pa.Schema, place: Place) -> None:
    tables = _groups(source.tables(file, schema))
    with storage.new_file(place) as partial:
        try:
            with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=_GROUP_ROWS)
        except OSError as error:
            raise storage.unwritable(place, error) from error
        except pa.ArrowException as error:
            raise DataError(
                f"The rows of {file.path} cannot be written as Parquet ({reason_of(error)})."
            ) from error


def _groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables up to the size of a row group."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.nbytes for part in held) >= _GROUP_BYTES or sum(map(len, held)) >= _GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
