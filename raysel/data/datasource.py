"""Indexed Parquet as a Ray Dataset, and whether a Dataset still holds rows of such files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from raysel.cluster.plans import Read, TableSource, below_projections, source_columns
from raysel.data.formats.parquet import Piece, read_pieces
from raysel.data.row_index import ID, RowIndex, with_ids

_FEW_GROUPS = 8  # row groups, below which Ray's default is left
_TASK_BYTES, _TASKS_PER_CPU = 32 << 20, 4  # a task costs Ray Data 13 ms and more: it should read for longer


class IndexedParquet(TableSource):
    """Parquet files read by row group, with ids from the index; only projected columns are read."""

    def __init__(self, index: RowIndex) -> None:
        super().__init__()
        self._projection_map = None  # Ray sets it on a copy when a later step needs only some columns
        self._index = index

    @property
    def index(self) -> RowIndex:
        """The files, their rows and the first id of each."""
        return self._index

    @property
    def file_schema(self) -> pa.Schema:
        """The schema of the files, without the ids that the index adds."""
        return self._index.schema

    @property
    def stores_ids(self) -> bool:
        """Whether ids are a column of the files rather than the positions of the rows."""
        return ID in self._index.schema.names

    def pieces(self) -> list[Piece]:
        """Return the row groups that hold rows, in the order of their ids."""
        return self._index.pieces()

    def get_name(self) -> str:
        """Return the name that Ray shows."""
        return "Parquet"

    def supports_projection_pushdown(self) -> bool:
        """Return True: Ray hands over the columns that later steps need."""
        return True

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all row groups."""
        return sum(sum(file.group_bytes) for file in self._index.files)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return tasks of consecutive row groups with about equal bytes per task."""
        return [self._task(pieces, per_task_row_limit) for pieces in self._parts(parallelism)]

    def columns(self) -> list[str]:
        """Return the columns of the files and ``sample_id``, which is the first."""
        return [ID, *(name for name in self._index.schema.names if name != ID)]

    def reads(self, columns: Sequence[str], cpus: int) -> list[Read]:
        """Return what reads consecutive row groups."""
        return [partial(_read_groups, pieces, list(columns)) for pieces in self._parts(self.tasks(cpus))]

    def tasks(self, cpus: int) -> int:
        """Return how many tasks read the files well: each reads for long, and none is waited for by many CPUs."""
        return max(self.estimate_inmemory_data_size() // _TASK_BYTES, _TASKS_PER_CPU * cpus, _FEW_GROUPS)

    def _parts(self, tasks: int) -> list[list[Piece]]:
        """Return consecutive row groups with about equal bytes per task."""
        share = max(1, self.estimate_inmemory_data_size() // max(1, tasks))
        parts: list[list[Piece]] = []
        held = share
        for piece in self.pieces():
            if held >= share:
                parts.append([])
                held = 0
            parts[-1].append(piece)
            held += piece.bytes
        return parts

    def _task(self, pieces: list[Piece], limit: int | None) -> ReadTask:
        projection = self.get_projection_map()
        columns = None if projection is None else list(projection) or [ID]
        # Bound here, not to self: the complete index must not be sent with every task.
        metadata = BlockMetadata(
            num_rows=sum(piece.rows for piece in pieces),
            size_bytes=sum(piece.bytes for piece in pieces),
            exec_stats=None,
            input_files=tuple(dict.fromkeys(piece.path for piece in pieces)),
        )
        return ReadTask(
            lambda: _read_groups(pieces, columns),
            metadata,
            schema=self._with_id(columns),
            per_task_row_limit=limit,
        )

    def _with_id(self, columns: list[str] | None) -> pa.Schema:
        schema = self._index.schema
        fields = {field.name: field for field in schema} | {ID: pa.field(ID, pa.int64())}
        return pa.schema([fields[n] for n in columns or [ID, *(n for n in schema.names if n != ID)]])


def _read_groups(pieces: list[Piece], columns: list[str] | None) -> Iterable[pa.Table]:
    names = pieces[0].schema.names
    wanted = [ID, *(n for n in names if n != ID)] if columns is None else columns
    for piece, table in read_pieces(pieces, [name for name in wanted if name in names]):
        if ID in wanted and ID not in names:
            table = with_ids(table, piece.start)
        elif ID in wanted:
            table = table.set_column(table.column_names.index(ID), ID, table[ID].cast(pa.int64()))
        yield table.select(wanted)


def rows_of(piece: Piece, ids: np.ndarray, columns: list[str]) -> pa.Table:
    """Return columns of the rows of a row group that have some ids; ``sample_id`` is one of the columns."""
    tables = _read_groups([piece], columns)
    return pa.concat_tables([table.filter(pa.array(np.isin(table[ID].to_numpy(), ids))) for table in tables])


def parquet_dataset(index: RowIndex) -> Dataset:
    """Return the rows of indexed files; they are read when they are needed."""
    reader = IndexedParquet(index)
    groups = len(reader.pieces())
    # Ray cuts few row groups into hundreds of small blocks, and a step after the cut no longer joins the reading.
    if groups < _FEW_GROUPS:
        return ray.data.read_datasource(reader)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return ray.data.read_datasource(reader, override_num_blocks=min(groups, reader.tasks(cpus)))


def parquet_rows(dataset: Dataset) -> tuple[IndexedParquet, dict[str, str]] | None:
    """Return the Parquet files whose rows ``dataset`` holds, if it holds all of them with unchanged values.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Any Dataset.

    Returns
    -------
    (IndexedParquet, dict) or None
        The reader, and for each column of ``dataset`` the name of that column in the files. None if a step
        other than selecting and renaming columns lies between the files and ``dataset``.
    """
    source, names = source_columns(dataset) or (None, {})
    return (source, names) if type(source) is IndexedParquet else None


def at_rest(dataset: Dataset) -> bool:
    """Return whether reading ids runs no step: the rows lie in the object store or in indexed Parquet."""
    step, projections = below_projections(dataset)
    kind = type(step).__name__
    held = kind == "InputData" or kind.startswith("From")
    return None not in projections and (held or type(getattr(step, "datasource", None)) is IndexedParquet)
