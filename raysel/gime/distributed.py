"""GIME over Ray Datasets: each block becomes a small state as it is read; only states travel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.blocks import gather, stream_blocks
from raysel.cluster.errors import unwrap_errors
from raysel.data.rowid import ID, check_ids
from raysel.errors import DataError
from raysel.gime.binding import Binding
from raysel.gime.pieces import kind_of, pieces
from raysel.gime.rows import key_counts, merge_key_counts, row_scores
from raysel.gime.select import Thresholds, select_groups
from raysel.gime.sensitivity import Performance, Positions, Sensitivity, sensitivity
from raysel.gime.state import By, State, columns, finalize, grouping, merge, partial, with_target
from raysel.selection import Selection, coded_text

_PIECE = "raysel piece"


@dataclass(frozen=True)
class GIME:
    """General information metrics of a data set: eleven metrics in one pass over the columns that the binding names.

    binding: what the columns mean, see `raysel.gime.Binding`. thresholds, floors: what `select` has to satisfy, see
    `raysel.gime.select_groups`; of the result of `raysel.gime.sensitivity` its limits are taken: the thresholds, and at least
    as many rows as its subsets had.

    Source: Xu et al., arXiv 2501.02004, on Objective Information Theory; definitions in docs/methods/gime.md.
    """

    binding: Binding
    thresholds: Thresholds | Sensitivity = field(default_factory=dict)
    floors: Mapping[Any, int] = field(default_factory=dict)

    def aim(self, target: Dataset) -> GIME:
        """The same metrics with the distance to a target (mismatch, support_coverage). The columns of the target that the
        binding names come to the driver."""
        names = [name for name in self.binding.columns if name in (target.columns() or [])]
        if not names:
            raise DataError(
                f"The target has none of the columns that the binding names ({', '.join(self.binding.columns)})."
            )
        return replace(self, binding=with_target(self.binding, gather(target, names, "target")))

    def measure(self, dataset: Dataset, by: By = None) -> pa.Table:
        """The metrics of a data set, or of its groups: see `raysel.gime.measure`."""
        return finalize(self.state(dataset, by))

    def state(self, dataset: Dataset, by: By = None) -> State:
        """What is kept of a data set, to be saved and merged with that of new rows.

        It does not depend on blocks, nodes or the order in which they are read, to the last bit. DataError as of
        `raysel.gime.partial`, whose rows are counted within the block that Ray read, and if there is no row.
        """
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None and isinstance(schema.base_schema, pa.Schema):
            self.binding.check(schema.base_schema)
        waiting: list[
            tuple[int, State]
        ] = []  # a binary counter: states of as many blocks are merged, as in a tree
        for found in stream_blocks(dataset, columns(self.binding, by), "dataset", partial, self.binding, by):
            blocks = 1
            while waiting and waiting[-1][0] == blocks:
                blocks, found = 2 * blocks, merge(waiting.pop()[1], found)
            waiting.append((blocks, found))
        if not waiting:
            raise DataError("The dataset is empty: there are no rows to measure.")
        total = waiting.pop()[1]
        while waiting:
            total = merge(waiting.pop()[1], total)
        return total

    def select(self, pool: Dataset, by: By = None, seed: int = 0) -> Selection:
        """Rows of the pool of least volume that satisfy the thresholds together.

        by: whole groups (of a column, or windows of event time) are chosen. Without it rows are, by pieces of about 1/256 of the pool
        or of one row (`raysel.gime.pieces`, drawn by ``seed``); the bound columns then come to the driver. Every chosen row says
        when its group or piece was picked (``score``, 1 = first), every dropped row why it was not. ConfigError if no choice was
        found, naming the thresholds that conflict.
        """
        thresholds = self.thresholds.limits if isinstance(self.thresholds, Sensitivity) else self.thresholds
        if by is None:
            table = gather(pool, [ID, *(n for n in self.binding.columns if n != ID)], "pool").sort_by(ID)
            check_ids(table[ID].to_numpy(), "the pool")
            names = pieces(table, self.binding, thresholds, self.floors, seed)
            by, table = _PIECE, table.append_column(_PIECE, names)
            choice = select_groups(partial(table, self.binding, by), thresholds, self.floors, kind_of)
        else:
            choice = select_groups(self.state(pool, by), thresholds, self.floors)
            column = by if isinstance(by, str) else str(self.binding.event_time)
            table = gather(pool, list(dict.fromkeys([ID, column])), "pool")
            check_ids(table[ID].to_numpy(), "the pool")
        ids = table[ID].to_numpy()
        labels, codes = grouping(table, 0, self.binding, by)
        assert codes is not None
        place = {label: at + 1 for at, label in enumerate(choice.groups)}
        rank = np.array([place.get(label, 0) for label in labels])[codes]
        reasons = coded_text(codes, [f"{label}: {choice.reasons[label]}" for label in labels])
        taken, out = np.flatnonzero(rank), np.flatnonzero(rank == 0)
        out = out[np.argsort(ids[out], kind="stable")]
        info = {
            "method": "GIME",
            "binding": json.loads(self.binding.to_json()),
            "thresholds": {name: list(ends) for name, ends in thresholds.items()},
            "floors": {str(label): rows for label, rows in self.floors.items()},
            "by": "rows" if by == _PIECE else str(by),
            "groups": list(choice.groups),
            "reached": dict(choice.reached),
            "bounds": dict(choice.bounds),
            "pool_rows": len(ids),
            "score": "order in which the row's group was picked, 1 = first",
        }
        return Selection.of(
            ids[taken],
            score=rank[taken].astype(np.float64),
            reason=reasons.take(pa.array(taken)),
            dropped=pa.table({ID: ids[out], "reason": reasons.take(pa.array(out))}),
            info=info,
            pool=pool,
        )

    def sensitivity(
        self,
        pool: Dataset,
        performance: Performance,
        *,
        mix: str,
        rows: int,
        columns: Sequence[str] = (),
        **rest: Any,
    ) -> Sensitivity:
        """`raysel.gime.sensitivity` with the subsets as tasks on the cluster: the same figures, for the same rows in the same order.

        The bound columns of the pool, ``mix`` and ``columns``, those that ``performance`` reads, come to the driver, by their ids, and
        go to every node once. rest: as of `raysel.gime.sensitivity`.
        """
        wanted = dict.fromkeys([ID, *self.binding.columns, mix, *columns])
        table = gather(pool, list(wanted), "pool").sort_by(ID)
        return sensitivity(table, self.binding, performance, mix=mix, rows=rows, each=on_cluster, **rest)

    def row_scores(self, dataset: Dataset) -> Dataset:
        """``dataset`` with a score of each row by scope and variety: see `raysel.gime.row_scores`.

        One pass counts all entities and classes on the driver, 16 bytes for each; the second is lazy. The columns are
        called ``gime_scope`` and ``gime_variety``.
        """
        import ray

        roles = [*self.binding.entity, *self.binding.classes]
        binding = Binding(entity=self.binding.entity, classes=self.binding.classes)
        parts = list(stream_blocks(dataset, roles, "dataset", key_counts, binding))
        if not parts:
            raise DataError("The dataset is empty: there are no rows to score.")
        counts = ray.put(merge_key_counts(parts))
        return dataset.map_batches(
            _scored, fn_args=(binding, counts), batch_format="pyarrow", batch_size=None
        )


def on_cluster(run: Callable[[pa.Table], Any], table: pa.Table, parts: Sequence[Positions]) -> list[Any]:
    """``run`` of each part of the table, given by its positions, as tasks of one CPU each; in the order of the parts."""
    import ray

    task = ray.remote(_run_part)
    shared = [ray.put(run), ray.put(table)]
    waiting = [task.remote(*shared, ray.put(part)) for part in parts]
    with unwrap_errors():
        try:
            return ray.get(waiting)
        except ray.exceptions.RayError:
            for each in waiting:
                ray.cancel(each)
            raise


def _run_part(run: Callable[[pa.Table], Any], table: pa.Table, part: Positions) -> Any:
    return run(table.take(pa.array(part)))


def _scored(table: pa.Table, binding: Binding, counts: pa.Table) -> pa.Table:
    import ray

    known = ray.get(counts) if isinstance(counts, ray.ObjectRef) else counts
    if not table.num_rows:  # an empty block may come without its columns
        return table
    scores = row_scores(table, binding, known)
    for name in scores.column_names:
        table = table.append_column(f"gime_{name}", scores[name])
    return table
