"""Look for test rows that are among the training rows too, for the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

import raysel
from raysel.cluster.blocks import stream_blocks
from raysel.core.arrays import positions
from raysel.core.storage import Place
from raysel.data.row_index import ID
from raysel.data.store import values_of
from raysel.errors import DataError
from raysel.workflow.config import Embed
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.steps.arrays import inputs
from raysel.workflow.steps.step import Step

_NEAR = 0.95  # cosine of near duplicates
_MOST = 1_000_000  # training rows whose vectors are compared; more would take minutes


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
            "vectors": self._vectors(run),
            "columns": inputs(run.workflow),
            "seed": run.workflow.seed,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return the number of such test rows, and the cosine from which on rows count (None for copies); empty without inputs."""
        column, columns = self._vectors(run), inputs(run.workflow)
        if column is not None:
            train, seed = run.among(run.rows, [column]), run.workflow.seed
            try:
                found = raysel.leakage(train, run.read("test"), _NEAR, column=column, seed=seed)
                return {"rows": found.num_rows, "cosine": _NEAR}
            except DataError as error:  # the training needs no vectors of the test rows
                run.progress.done(self.title, f"Near duplicates of test rows are not counted: {error}")
        if not columns:
            return {}
        parts = list(stream_blocks(run.read("test"), [ID, *columns], "test data", digests, columns))
        tested, rows = np.unique(np.concatenate(parts), return_counts=True)
        there, shared = np.zeros(len(tested), bool), ray.put(tested)
        for places in stream_blocks(
            run.among(run.rows, columns), [ID, *columns], "pool", _among, columns, shared
        ):
            there[places] = True
        return {"rows": int(rows[there].sum()), "cosine": None}

    def _vectors(self, run: RunDirectory) -> str | None:
        """Return the column of stored vectors; None if the vectors are computed, which the test rows have no need of."""
        if self.embed is None or self.embed.embedder != "column" or run.count(run.rows) > _MOST:
            return None
        return self.embed.column if self.embed.column in run.inputs["test"].schema.names else None


def digests(table: pa.Table, columns: list[str]) -> npt.NDArray[np.uint64]:
    """Return a digest of the values of every row, as the training reads them."""
    found = [hashlib.blake2b(digest_size=8) for _ in range(table.num_rows)]
    for name in columns:
        for digest, value in zip(found, values_of(table[name], name), strict=True):
            raw = value.encode() if isinstance(value, str) else value
            raw = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
    return np.frombuffer(b"".join(digest.digest() for digest in found), np.uint64)


def _among(table: pa.Table, columns: list[str], shared: Any) -> npt.NDArray[np.int64]:
    """Return the places of the tested digests that the table has."""
    tested = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    places, found = positions(tested, digests(table, columns))
    return np.unique(places[found])
