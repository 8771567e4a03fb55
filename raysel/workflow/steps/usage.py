"""Work out how RepDiv used the samples, for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import raysel
from raysel.core.arrays import positions
from raysel.core.storage import Place, is_folder
from raysel.data.row_index import ID
from raysel.data.store import ColumnStore
from raysel.dynamic.plan import Policy
from raysel.report.results import Extremes, PolicyUse, ShownRow
from raysel.report.usage import gini, images, replay, times, total_variation
from raysel.workflow.directory import RunDirectory, read_table
from raysel.workflow.steps.arrays import class_column, made
from raysel.workflow.steps.factors import RARE
from raysel.workflow.steps.step import Step
from raysel.workflow.steps.train import policy

_REPLAYED = 200_000_000  # (sample, epoch) pairs; more would take minutes
_SHOWN = 12


@dataclass(frozen=True)
class Usage(Step):
    """RepDiv's use of the samples next to a fresh random subset per epoch and round robin of equal cost.

    Their plans depend on no loss, so they are made again here: they are what the run trained on.
    """

    name: str = "usage"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "use of the samples, for the report"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the policy, its scores, the number of epochs, and what the report shows of the samples."""
        flow = run.workflow
        return {
            "policy": flow.dynamic.key(),
            "scores": run.finished["factors"].directory.name,
            "arrays": run.finished["arrays"].directory.name,
            "epochs": flow.train.epochs,
            "column": flow.embed.column,
            "seed": flow.seed,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return ``policies``, ``alpha`` and ``extremes``; nothing where there are too many samples."""
        count = run.count(run.rows)
        ids = np.arange(count) if run.rows is None else run.rows.ids
        epochs, seed = run.workflow.train.epochs, run.workflow.seed
        rule = policy(run)
        if count * epochs > _REPLAYED or not isinstance(rule, raysel.RepDiv):
            return {}
        rule = rule.for_ids(ids)
        pairs = read_table(run.finished["factors"].directory / RARE)
        tail = rule.tail_epochs(epochs)
        walked, spent = rule.count(count), (epochs - tail) * rule.count(count) + tail * count
        rules: dict[str, Policy] = {
            "RepDiv": rule,
            # The middle of what is rounded down to as many samples and epochs.
            "random": raysel.RandomSubset(min((spent // epochs + 0.5) / count, 1.0)),
            "round robin": raysel.RoundRobin(
                min((walked + 0.5) / count, 1.0), min((epochs - tail + 0.5) / epochs, 1.0)
            ),
        }
        slots, _ = positions(ids, pairs[ID].to_numpy())
        having = (slots, pairs["unit"].to_numpy())
        courses = {name: replay(made, count, epochs, seed, having) for name, made in rules.items()}
        shown = _extremes(run, ids, courses["RepDiv"].selected)
        return {
            "policies": [
                asdict(
                    PolicyUse(
                        name,
                        gini(course.selected),
                        total_variation(course.selected),
                        tuple(times(course.selected)),
                        tuple(course.seen),
                    )
                )
                for name, course in courses.items()
            ],
            "alpha": [rule.alpha_in(epoch, epochs) for epoch in range(epochs - tail)],
            "extremes": None if shown is None else asdict(shown),
        }


def _extremes(run: RunDirectory, ids: np.ndarray, selected: np.ndarray) -> Extremes | None:
    """Return samples selected most and least often of the class whose samples were used most unevenly.

    None if they are neither images nor texts.
    """
    folder = run.finished["arrays"].directory / "pool"
    task = made(run.workflow)
    column = class_column(task)
    if column is None or not is_folder(folder):  # of streamed rows nothing is at hand
        return None
    arrays = ColumnStore(folder)
    labels = arrays.column(column, ids)
    here = max(np.unique(labels), key=lambda code: gini(selected[labels == code]))
    mine = np.flatnonzero(labels == here)
    count = min(_SHOWN, len(mine) // 2)
    most, least = (mine[np.argsort(by, kind="stable")[:count]] for by in (-selected[mine], selected[mine]))
    slots = np.concatenate([most, least])
    wanted = ids[slots]
    inputs = [name for name in task.columns if name != column and arrays.columns[name].kind == "array"]
    pictures = images(arrays.column(inputs[0], wanted)) if len(inputs) == 1 else None
    texts = None if pictures is not None else texts_of(run, wanted)
    if (pictures is None and texts is None) or count == 0:
        return None
    samples = [
        ShownRow(
            int(wanted[at]),
            times=int(selected[slot]),
            image=None if pictures is None else pictures[at],
            text=None if texts is None else texts[at],
        )
        for at, slot in enumerate(slots)
    ]
    return Extremes(str(arrays.classes[column][here]), tuple(samples[:count]), tuple(samples[count:]))


def texts_of(run: RunDirectory, ids: np.ndarray) -> list[str] | None:
    """Texts that the vectors of these rows were made of, None if they were made of something else."""
    if len(run.workflow.embed.columns) > 1:
        return None
    column = run.workflow.embed.columns[0]
    kind = run.inputs["pool"].schema.field(column).type
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return None
    found = run.some_rows("pool", ids, [column])
    by_id = dict(zip(found[ID].to_pylist(), found[column].to_pylist(), strict=True))
    return [by_id[i] for i in ids.tolist()]
