"""Look for test rows that are among the training rows too, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

import raysel
from raysel.cluster.blocks import stream_blocks
from raysel.core.storage import Place
from raysel.data.content import row_digests, shared_digests
from raysel.data.row_index import ID
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
        parts = list(stream_blocks(run.read("test"), [ID, *columns], "test data", row_digests, columns))
        tested, rows = np.unique(np.concatenate(parts), return_counts=True)
        there, shared = np.zeros(len(tested), bool), ray.put(tested)
        for places in stream_blocks(
            run.among(run.rows, columns), [ID, *columns], "pool", shared_digests, columns, shared
        ):
            there[places] = True
        return {"rows": int(rows[there].sum()), "cosine": None}

    def _vectors(self, run: RunDirectory) -> str | None:
        """Return the column of stored vectors; None if the vectors are computed, which the test rows have no need of."""
        if self.embed is None or self.embed.embedder != "column" or run.count(run.rows) > _MOST:
            return None
        (column,) = self.embed.columns
        return column if column in run.inputs["test"].schema.names else None
