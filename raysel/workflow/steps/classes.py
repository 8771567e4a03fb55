"""Count the rows of each class in the pool, among the selected rows and in the target, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.cluster.blocks import gather
from raysel.core.storage import Place
from raysel.data.read import check_label
from raysel.data.row_index import ID
from raysel.errors import DataError
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Classes(Step):
    """Counts per class. Its seconds are the report's expense, not the selection's."""

    name: str = "classes"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "rows per class, for the report"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Rows and the selection."""
        target = run.workflow.target
        return {
            "rows": run.digests("pool", "target"),
            "labels": [run.workflow.pool.label, None if target is None else target.label],
            "selected": digest_of(run.rows),
            "validation": run.drawn and run.drawn.key,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return ``classes``: label, and rows in the pool, kept and in the target; empty if the labels are no classes."""
        flow = run.workflow
        label = str(flow.pool.label)
        try:
            check_label(run.inputs["pool"].schema, label, "the pool")
        except DataError:  # a number to predict, in a workflow without a task
            return {}
        table = gather(run.among(run.base), [ID, label], "pool")
        assert run.rows is not None
        kept = table.filter(pa.array(np.isin(table[ID].to_numpy(), run.rows.ids)))
        aims = flow.target.label if flow.target is not None else None
        target = None if aims is None else _count(gather(run.target(), [ID, aims], "target")[aims])
        pool, chosen = _count(table[label]), _count(kept[label])
        return {
            "classes": [
                {
                    "label": str(name),
                    "pool": pool[name],
                    "kept": chosen.get(name, 0),
                    "target": None if target is None else target.get(name, 0),
                }
                for name in sorted(pool, key=lambda value: (str(type(value)), value))
            ]
        }


def _count(column: pa.ChunkedArray) -> Mapping[Any, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
