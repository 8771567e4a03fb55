"""Rank the training rows by how much their loss exceeds that of their neighbours, to find wrong labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raysel.cluster.blocks import gather, map_groups
from raysel.core.arrays import positions
from raysel.core.arrow import plain_values
from raysel.core.storage import Place, write_table
from raysel.data.row_index import ID
from raysel.data.vector_blocks import vector_blocks
from raysel.data.vectors import EMBEDDING
from raysel.errors import DataError
from raysel.report.results import LabelCheck, ShownLabel, ShownRow
from raysel.select.label_check import NEIGHBOURS, candidates, others, rank
from raysel.select.nearest import match_group
from raysel.train.epoch_log import EPOCHS, mean_losses
from raysel.workflow.directory import RunDirectory
from raysel.workflow.steps.arrays import class_column, inputs, made
from raysel.workflow.steps.gallery import shown
from raysel.workflow.steps.step import Step

RANKING = "labels.parquet"
_SHOWN = 24


@dataclass(frozen=True)
class Labels(Step):
    """A ranking of the rows whose labels may be wrong, from their losses and vectors. Its seconds are the report's expense."""

    name: str = "labels"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "labels to check, for the report"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the training with the losses, the vectors, and what the report shows of the rows."""
        return {
            "losses": run.finished["train-chain"].directory.name,
            "vectors": run.finished["embed"].directory.name,
            "rows": run.digests("pool"),
            "classes": class_column(made(run.workflow)),
            "columns": inputs(run.workflow),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Write the ranking; return what the report shows, nothing if the vectors cannot be compared."""
        column, columns = class_column(made(run.workflow)), inputs(run.workflow)
        assert column is not None
        trained = run.finished["train-chain"]
        losses = mean_losses(trained.directory / EPOCHS, len(trained.answer["epochs"]))
        losses = losses.filter(pa.array(np.isfinite(losses["loss"].to_numpy())))
        ids, values = losses[ID].to_numpy(), losses["loss"].to_numpy()
        rows = candidates(ids, values)
        try:
            lists = _nearest(run, rows, ids)
        except DataError as error:  # the run is complete without them
            run.progress.done(self.title, f"No labels are checked: {error}")
            return {}
        table = gather(run.among(run.rows, [column]), [ID, column], "pool").sort_by(ID)
        coded = plain_values(table[column]).dictionary_encode()
        places, _ = positions(table[ID].to_numpy(), ids)
        ranking = rank(ids, values, coded.indices.to_numpy()[places], rows, others(rows, lists))
        names = np.array([str(name) for name in coded.dictionary.to_pylist()])
        ranking |= {name: names[ranking[name]] for name in ("label", "neighbour_label")}
        write_table(directory / RANKING, pa.table(ranking))
        first = ranking[ID][:_SHOWN]
        pictures = shown(run.some_rows("pool", first, columns), columns)
        told = zip(
            first.tolist(), ranking["label"].tolist(), ranking["neighbour_label"].tolist(), strict=False
        )
        samples = []
        for i, label, other in told:
            row = pictures.get(i, ShownRow(i))
            samples.append(ShownLabel(i, label, other, row.image, row.text))
        differ = (ranking["neighbour_label"] != ranking["label"]) & (ranking["score"] > 0)
        found = LabelCheck(
            len(ids), len(rows), int(differ.sum()), f"steps/{directory.name}/{RANKING}", tuple(samples)
        )
        return asdict(found)


def _nearest(run: RunDirectory, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the nearest rows of every row (m, NEIGHBOURS + 1), itself included; -1 where there are fewer."""
    source = vector_blocks(run.vectors("pool"), EMBEDDING, "pool")
    shared = ray.put((source.of(rows), np.setdiff1d(source.ids, among)))
    found = map_groups(match_group, source.blocks, EMBEDDING, shared, NEIGHBOURS + 1)
    return reduce(lambda one, other: one.merge(other), found).lists()[0]
