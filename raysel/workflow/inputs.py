"""The rows that a workflow names: their files, schema and ids, by role."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.core.storage import Place, exists
from raysel.data.convert import Converted, convert
from raysel.data.datasource import parquet_dataset
from raysel.data.formats.parquet import read_pieces
from raysel.data.identity import PoolIdentity, index_identity, mark
from raysel.data.listing import Listing, list_source
from raysel.data.read import carried_identity, check_label, check_stored_ids, listing_identity
from raysel.data.row_index import ID, RowIndex, index_parquet, with_ids
from raysel.data.vectors import is_list
from raysel.errors import COLUMNS, DataError, RunError, first
from raysel.workflow.config import Rows, Workflow


@dataclass(frozen=True)
class Look:
    """What is known of the rows of every role without reading them all.

    Attributes
    ----------
    schemas : dict of str to pyarrow.Schema
        From the footers of Parquet; else from the beginning of the first file.
    counts : dict of str to int
        Number of rows, of roles whose files say it.
    listings : dict of str to Listing
        The files.
    indexes : dict of str to RowIndex
        The ids, of Parquet files.
    """

    workflow: Workflow
    schemas: dict[str, pa.Schema] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    listings: dict[str, Listing] = field(default_factory=dict)
    indexes: dict[str, RowIndex] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether all schemas and counts are known: all files are Parquet."""
        return self.counts.keys() == self.listings.keys()

    def check_column(self, role: str, column: str, key: str) -> None:
        """Raise DataError, naming the configuration ``key``, unless the role's files have the column."""
        names = self.schemas[role].names
        if column not in names:
            raise DataError(
                f"{key}: There is no column '{column}' in the files of {role}.path; the columns are {first(names, COLUMNS)}."
            )

    def elements(self, role: str, column: str) -> int | None:
        """Return the number of elements of a row's value in a column of fixed shape.

        None for another column.
        """
        kind = self.schemas[role].field(column).type
        if isinstance(kind, pa.FixedShapeTensorType):
            return int(np.prod(kind.shape))
        if not pa.types.is_fixed_size_list(kind):
            return None
        elements = 1
        while pa.types.is_fixed_size_list(kind):
            elements, kind = elements * kind.list_size, kind.value_type
        return None if is_list(kind) else elements

    def scan(self, role: str, columns: Sequence[str] | None = None, rows: int = 8192) -> Iterator[pa.Table]:
        """Yield columns of a role's rows in the order of their ids, ``sample_id`` included.

        Parameters
        ----------
        role : str
            A role with files of its own.
        columns : sequence of str, optional
            By default all.
        rows : int
            Rows per table, at most; other formats than Parquet decide themselves.
        """
        start, index = 0, self.indexes.get(role)
        if index is not None:
            names = [*(columns or index.schema.names)]
            names += [ID] if ID in index.schema.names and ID not in names else []
            parts: Iterator[pa.Table] = (table for _, table in read_pieces(index.pieces(), names, rows))
        else:
            listing = self.listings[role]
            schema = listing.unified.schema
            if columns is not None:
                schema = pa.schema([f for f in schema if f.name in {ID, *columns}])
            parts = (table for file in listing.files for table in listing.tables(file, schema))
        for table in parts:
            yield table if ID in table.column_names else with_ids(table, start)
            start += len(table)

    def sentences(self) -> list[str]:
        """Return what is read of each role, what is not, and what could not be checked."""
        found = []
        for role, listing in self.listings.items():
            if role in self.counts:
                found.append(f"{role}: {listing.took(self.counts[role])}")
            else:
                found.append(
                    f"{role}: {listing.took(None)} Its columns were inferred from the beginning of "
                    f"{listing.files[0].path}; raysel checks the number of rows and all other values when it reads the data."
                )
            found += [f"{role}: {sentence}" for sentence in listing.left_out]
            found += [
                f"{role}: {note}" for note in (self.indexes[role].notes if role in self.indexes else ())
            ]
        return found


def look(workflow: Workflow) -> Look:
    """Look at all files. Raises DataError for files and label columns that cannot be used."""
    found = Look(workflow)
    for role in workflow.roles:
        rows = workflow.rows(role)
        assert rows is not None
        try:
            listing = found.listings[role] = list_source(rows.paths, rows.encoding)
            if listing.format.is_parquet:
                index = found.indexes[role] = index_parquet(listing)
                found.schemas[role], found.counts[role] = index.schema, index.rows
            else:
                found.schemas[role] = _schema(listing)
        except DataError as error:
            raise DataError(f"{role}.path: {error}") from None
        if found.counts.get(role) == 0:
            raise DataError(f"{role}.path: There are no rows in {listing.where}.")
        _check_label(workflow, found.schemas[role], role, rows)
    return found


def _schema(listing: Listing) -> pa.Schema:
    """Return the columns of files that are not Parquet: of all values, if a column has none in the beginning."""
    schema = listing.sample_schema()
    if not any(map(pa.types.is_null, schema.types)):
        return schema
    schema = listing.unified.schema
    tables = (table for file in listing.files for table in listing.tables(file, schema))
    if all(map(pa.types.is_null, schema.types)) and not any(map(len, tables)):
        raise DataError(f"There are no rows in {listing.where}.")
    return schema


def has_classes(workflow: Workflow) -> bool:
    """Return whether the label is a class; False for a task whose code was not loaded."""
    task = workflow.task
    loaded = task.builtin or "type" in task.__dict__
    return loaded and getattr(task.type, "classes", None) is not None


def _check_label(workflow: Workflow, schema: pa.Schema, role: str, rows: Rows) -> None:
    if rows.label is not None:
        try:
            check_label(
                schema, rows.label, f"the files of {role}.path", workflow.trains and has_classes(workflow)
            )
        except DataError as error:
            raise DataError(f"{role}.label: {error}") from None


@dataclass(frozen=True)
class Input:
    """Numbered rows of one role.

    Attributes
    ----------
    role : str
        The role.
    rows : Rows
        What the workflow names.
    listing : Listing
        The Parquet files that were numbered.
    index : RowIndex
        Their rows, schema and ids.
    source : Listing, optional
        The files that the workflow names, if they are not Parquet.
    converted : Converted, optional
        How they became Parquet.
    """

    role: str
    rows: Rows
    listing: Listing
    index: RowIndex
    source: Listing | None = None
    converted: Converted | None = None

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.index.rows

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""
        return self.index.schema

    @property
    def identity(self) -> PoolIdentity:
        """Files in the order that numbers their rows, which a Selection carries."""
        if self.source is None:
            return index_identity(self.index)
        return listing_identity(self.source, [file.rows for file in self.index.files], self.rows.trust)

    @property
    def label(self) -> str | None:
        """Column that holds the class."""
        return self.rows.label

    @property
    def digest(self) -> str:
        """Digest of the content of the files in their order; their names do not matter."""
        if self.converted is None:
            return self.index.digest
        counts = [file.rows for file in self.index.files]
        lines = (f"{digest} {rows}" for digest, rows in zip(self.converted.digests, counts, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read(self) -> Dataset:
        """Return the rows with their ids. Raises DataError if a file is no longer what was numbered."""
        index_parquet(self.listing, self.index, trust=self.rows.trust)
        found = parquet_dataset(self.index)
        found.set_name(self.role)  # by which the dashboard shows it and what is made of it
        if ID in self.schema.names:
            return mark(found, carried_identity(self.listing))
        return mark(found, self.index if self.source is None else self.identity)

    def check_unchanged(self, step: str) -> None:
        """Raise RunError if a file is no longer what was numbered; a new time of modification alone is nothing."""
        try:
            index_parquet(self.listing, self.index, trust=self.rows.trust)
        except DataError as error:
            raise RunError(
                f"{self.role}.path: {error} This happened while the step '{step}' ran; run the workflow again."
            ) from error

    def sentences(self) -> list[str]:
        """Return what was read, and what was not."""
        listing = self.source or self.listing
        took = listing.took(self.count)
        if self.converted is not None:
            files = len(self.listing.files)
            now = "converted to" if self.converted.written else "reused as"
            took += f" They are {now} {files:,} Parquet {'file' if files == 1 else 'files'} of {self.converted.bytes / 1e6:,.1f} MB."
        notes = self.index.notes if self.converted is None else self.converted.notes
        return [took, *listing.left_out, *notes]


def number(
    workflow: Workflow, directory: Place, note: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Input], list[str]]:
    """Fix the ids of every role's rows.

    Files keep the ids that an earlier run in the directory gave them as long as they are there and unchanged;
    otherwise all rows of the role are numbered again, and every step that depends on them has another key. Files that
    are not Parquet are converted, which keeps their order.

    Parameters
    ----------
    directory : Place
        The run directory. Indexes are in ``index``, converted files in ``inputs``.
    note : callable
        Progress callback; receives a short status string.

    Returns
    -------
    inputs : dict of str to Input
        By role.
    changed : list of str
        One sentence per role whose rows are no longer those of the earlier run.
    """
    inputs, changed = {}, []
    for role in workflow.roles:
        rows = workflow.rows(role)
        assert rows is not None
        # An index per list of paths: what another workflow in the same directory reads changes no id.
        name = f"{role}-{hashlib.sha256(repr(rows.paths).encode()).hexdigest()[:8]}"
        file = directory / "index" / f"{name}.json"
        known = RowIndex.load(file) if exists(file) else None
        try:
            found = numbered(role, rows, directory / "inputs" / name, known, note)
        except DataError as error:
            raise DataError(f"{role}.path: {error}") from None
        if known is not None and known.identity() != found.index.identity():
            changed.append(
                f"The files of {role}.path changed; the steps that depend on these files run again."
            )
        found.index.save(file)
        _check_label(workflow, found.schema, role, rows)
        inputs[role] = found
    return inputs, changed


def numbered(
    role: str,
    rows: Rows,
    place: Place,
    known: RowIndex | None,
    note: Callable[[str], None],
    again: bool = True,
) -> Input:
    """Return the rows of one role with their ids.

    Parameters
    ----------
    place : Place
        Folder for converted files.
    known : RowIndex, optional
        Index of an earlier run.
    again : bool
        Number all rows again if they are not those of ``known``; otherwise raise DataError.
    """
    listing = list_source(rows.paths, rows.encoding)
    source = converted = None
    if not listing.format.is_parquet:
        source = listing
        converted = convert(source, place, rows.trust, lambda text: note(f"{role}: {text}"))
        listing = converted.listing
    try:
        index = index_parquet(listing, known, trust=rows.trust)
    except DataError:
        if known is None or not again:
            raise
        index = index_parquet(listing, trust=rows.trust)
    if index.rows == 0:
        raise DataError(f"There are no rows in {listing.where}.")
    if ID in index.schema.names:
        check_stored_ids(index, listing.where)
    if source is not None and converted is not None:  # files that were added later come last
        places = {path: at for at, path in enumerate(listing.paths)}
        order = [places[file.path] for file in index.files]
        source = replace(source, files=tuple(source.files[at] for at in order))
        converted = replace(converted, digests=tuple(converted.digests[at] for at in order))
    return Input(role, rows, listing, index, source, converted)


def seen(look: Look, inputs: Mapping[str, Input]) -> Look:
    """Return what is known after all rows were numbered: of converted files, that of the Parquet files."""
    return replace(
        look,
        listings={role: entry.listing for role, entry in inputs.items()},
        schemas={role: entry.schema for role, entry in inputs.items()},
        counts={role: entry.count for role, entry in inputs.items()},
        indexes={role: entry.index for role, entry in inputs.items()},
    )
