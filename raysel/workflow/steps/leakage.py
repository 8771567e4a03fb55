"""Look for test rows that are among the training rows too, for the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

import raysel
from raysel.cluster.blocks import stream_blocks
from raysel.core.arrow import plain
from raysel.core.storage import Place
from raysel.data.row_index import ID
from raysel.data.vectors import is_tensor, to_numpy
from raysel.workflow.config import Embed
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.steps.arrays import class_column, made
from raysel.workflow.steps.step import Step

_NEAR = 0.95  # cosine of near duplicates


@dataclass(frozen=True)
class Leakage(Step):
    """Test rows with a near duplicate among the training rows, by stored vectors; else those with a copy of their input."""

    embed: Embed | None
    name: str = "leakage"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "test rows that are also training rows, for the report"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Rows, the selection, and what is compared."""
        return {
            "rows": run.digests("pool", "test"),
            "selected": digest_of(run.rows),
            "validation": run.drawn and run.drawn.key,
            "columns": self._vectors(run) or inputs(run),
            "near": self._vectors(run) is not None,
            "seed": run.workflow.seed,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return the number of such test rows, and the cosine from which on rows count; None for copies."""
        pool, test, column = run.pool(), run.read("test"), self._vectors(run)
        if column is not None:
            found = raysel.leakage(pool, test, _NEAR, column=column, seed=run.workflow.seed)
            return {"rows": found.num_rows, "cosine": _NEAR}
        columns = inputs(run)
        tested = dict[bytes, int]()
        for part in stream_blocks(test, [ID, *columns], "test data", digests, columns):
            for digest in part:
                tested[digest] = tested.get(digest, 0) + 1
        shared = ray.put(frozenset(tested))
        there = set[bytes]()
        for found_there in stream_blocks(pool, [ID, *columns], "pool", _among, columns, shared):
            there |= found_there
        return {"rows": sum(tested[digest] for digest in there), "cosine": None}

    def _vectors(self, run: RunDirectory) -> str | None:
        """Return the column of stored vectors; None if the vectors are computed, which the test rows have no need of."""
        if self.embed is None or self.embed.embedder != "column":
            return None
        return self.embed.column if self.embed.column in run.inputs["test"].schema.names else None


def inputs(run: RunDirectory) -> list[str]:
    """Return the columns that the model receives."""
    task = made(run.workflow)
    return [name for name in task.columns if name not in (class_column(task), run.workflow.pool.label)]


def digests(table: pa.Table, columns: list[str]) -> list[bytes]:
    """Return a digest of the values of every row."""
    found = [hashlib.blake2b(digest_size=16) for _ in range(table.num_rows)]
    for name in columns:
        values = _bytes(table[name], name)
        for digest, value in zip(found, values, strict=True):
            digest.update(len(value).to_bytes(8, "little"))
            digest.update(value)
    return [digest.digest() for digest in found]


def _bytes(column: pa.ChunkedArray, name: str) -> list[bytes]:
    """Return the value of every row as bytes."""
    if is_tensor(column.type) and not column.null_count:
        return [row.tobytes() for row in np.ascontiguousarray(to_numpy(column, name))]
    return [
        value if isinstance(value, bytes) else repr(value).encode() for value in plain(column).to_pylist()
    ]


def _among(table: pa.Table, columns: list[str], shared: Any) -> set[bytes]:
    tested = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    return set(digests(table, columns)) & tested
