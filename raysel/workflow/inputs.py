"""The rows that a workflow names: their files, schema and ids, by role."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from ray.data import Dataset

import raysel
from raysel.data.identity import PoolIdentity, index_identity
from raysel.data.read import check_label
from raysel.data.row_index import RowIndex, index_parquet, list_files
from raysel.errors import DataError, RunError
from raysel.workflow.config import Rows, Workflow


@dataclass(frozen=True)
class Look:
    """Schemas and numbers of rows by role, from the footers alone."""

    workflow: Workflow
    schemas: dict[str, pa.Schema]
    counts: dict[str, int]

    def check_column(self, role: str, column: str, key: str) -> None:
        """Raise DataError, naming the configuration ``key``, unless the role's files have the column."""
        names = self.schemas[role].names
        if column not in names:
            raise DataError(
                f"{key}: There is no column '{column}' in the files of {role}.path; the columns are {', '.join(names)}."
            )

    def elements(self, role: str, column: str) -> int | None:
        """Return the number of elements of a row's value in a column of fixed shape.

        None for another column.
        """
        kind = self.schemas[role].field(column).type
        if isinstance(kind, pa.FixedShapeTensorType):
            return int(np.prod(kind.shape))
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


def look(workflow: Workflow) -> Look:
    """Read the footers of all files. Raises DataError for files and label columns that cannot be used."""
    found = Look(workflow, {}, {})
    for role in workflow.roles:
        rows = workflow.rows(role)
        assert rows is not None
        try:
            index, schema = index_parquet(*list_files(rows.paths))
        except DataError as error:
            raise DataError(f"{role}.path: {error}") from None
        if index.rows == 0:
            raise DataError(f"{role}.path: There are no rows in {rows.paths[0]}.")
        found.schemas[role], found.counts[role] = schema, index.rows
        if rows.label is not None:
            try:
                check_label(schema, rows.label, f"the files of {role}.path")
            except DataError as error:
                raise DataError(f"{role}.label: {error}") from None
    return found


@dataclass(frozen=True)
class Input:
    """Numbered rows of one role: the index that fixes their ids, and the file it is kept in."""

    role: str
    rows: Rows
    index: RowIndex
    schema: pa.Schema
    file: Path

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.index.rows

    @property
    def identity(self) -> PoolIdentity:
        """Files in the order that numbers their rows, which a Selection carries."""
        return index_identity(self.index)

    @property
    def label(self) -> str | None:
        """Column that holds the class."""
        return self.rows.label

    @property
    def digest(self) -> str:
        """Digest of the content of the files in their order; their names do not matter."""
        return self.index.digest

    @property
    def paths(self) -> list[str]:
        """The files that were numbered, as `raysel.read` takes them: none that came since."""
        scheme, found, _ = self.rows.paths[0].partition("://")
        return [f"{scheme}://{file.path}" if found else file.path for file in self.index.files]

    def read(self) -> Dataset:
        """Return the rows with their ids."""
        return raysel.read(self.paths, label=self.rows.label, index=self.file, trust=self.rows.trust)

    def check_unchanged(self, step: str) -> None:
        """Raise RunError if a file is no longer what was numbered; a new time of modification alone is nothing."""
        try:
            index_parquet(*list_files(self.paths), self.index, trust=self.rows.trust)
        except DataError as error:
            raise RunError(
                f"{self.role}.path: {error} This happened while the step '{step}' ran; run the workflow again."
            ) from error


def number(workflow: Workflow, directory: Path) -> tuple[dict[str, Input], list[str]]:
    """Fix the ids of every role's rows.

    Files keep the ids that an earlier run in the directory gave them as long as they are there and unchanged;
    otherwise all rows of the role are numbered again, and every step that depends on them has another key.

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
        file = directory / f"{role}-{hashlib.sha256(repr(rows.paths).encode()).hexdigest()[:8]}.json"
        known = RowIndex.load(file) if file.exists() else None
        try:
            listed = list_files(rows.paths)
            try:
                index, schema = index_parquet(*listed, known, trust=rows.trust)
            except DataError:
                if known is None:
                    raise
                index, schema = index_parquet(*listed, trust=rows.trust)
        except DataError as error:
            raise DataError(f"{role}.path: {error}") from None
        if known is not None and known.identity() != index.identity():
            changed.append(f"The files of {role}.path changed; the steps that depend on them run again.")
        index.save(file)
        inputs[role] = Input(role, rows, index, schema, file)
    return inputs, changed
