"""GIME over Ray Datasets: each block becomes a small state, and only states go to the driver."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.blocks import column_names, gather, plain_errors, stream_blocks
from raysel.cluster.wait import cancel_queued, get
from raysel.core.calls import checked_call
from raysel.core.numbers import whole
from raysel.data.identity import check_dataset, row_ids
from raysel.data.row_index import ID, check_ids
from raysel.errors import ConfigError, DataError, shown
from raysel.gime.binding import Binding
from raysel.gime.metrics import Own, check_own
from raysel.gime.pieces import kind_of, pieces
from raysel.gime.rows import key_counts, merge_key_counts, row_scores
from raysel.gime.select import Thresholds, floors_of, limits_of, select_groups
from raysel.gime.sensitivity import Performance, Positions, Sensitivity, sensitivity
from raysel.gime.state import By, State, columns, finalize, grouping, merge, partial, with_target
from raysel.selection import Selection, coded_text

_PIECE = "raysel piece"


@dataclass(frozen=True)
class GIME:
    """Measure a data set by eleven information metrics, or select the rows that satisfy thresholds on them.

    All metrics are computed in one pass over the columns that the binding names.

    Parameters
    ----------
    binding : Binding
        What the columns mean; see `raysel.gime.Binding`.
    thresholds : mapping of str to (float or None, float or None), or Sensitivity
        Maps a statistic, such as ``"variety.classes"``, to its least and greatest value for the selected rows. If
        a result of `raysel.gime.sensitivity` is given, its thresholds are used, and at least as many rows are
        selected as its subsets had.
    floors : mapping of label to int
        Least number of selected rows per class.
    metrics : sequence of callable or str
        Metrics of your own, in addition to the eleven; see `raysel.gime.measure`.

    References
    ----------
    Xu et al., General Information Metrics Evaluation, arXiv:2501.02004, on Objective Information Theory;
    definitions in docs/methods/gime.md.

    Examples
    --------
    >>> gime = raysel.GIME(raysel.gime.Binding(classes="label"))
    >>> gime.measure(rows).num_columns   # metric, statistic, value, unit, bound, reason
    6
    """

    binding: Binding
    thresholds: Thresholds | Sensitivity = field(default_factory=dict)
    floors: Mapping[Any, int] = field(default_factory=dict)
    metrics: Own = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the data are."""
        if not isinstance(self.binding, Binding):
            raise ConfigError(
                f"binding: {shown(self.binding)} is not a Binding; make one with raysel.gime.Binding(classes=...)."
            )
        if not isinstance(self.thresholds, Sensitivity):
            object.__setattr__(self, "thresholds", limits_of(self.thresholds))
        object.__setattr__(self, "floors", floors_of(self.floors))
        check_own(self.metrics)

    def aim(self, target: Dataset) -> GIME:
        """Return a copy that also measures the distance to a target (``mismatch`` and ``support_coverage``).

        Parameters
        ----------
        target : ray.data.Dataset
            Sample of the distribution to compare with. The columns that the binding names are sent to the driver.

        Returns
        -------
        GIME
            The same binding, thresholds and floors, with a summary of the target in the binding.

        Raises
        ------
        DataError
            If the target has none of the columns that the binding names, no rows, or values that cannot be
            used.

        Examples
        --------
        >>> gime = raysel.GIME(raysel.gime.Binding(classes="label")).aim(rows)
        >>> gime.binding.target.rows
        10
        """
        check_dataset(target, "target", "raysel.gime.with_target")
        there = column_names(target)
        if not there:
            raise DataError("The target is empty: it has no rows.")
        names = [name for name in self.binding.columns if name in there]
        if not names:
            raise DataError(
                f"The target has none of the columns that the binding names ({', '.join(self.binding.columns)})."
            )
        return replace(self, binding=with_target(self.binding, gather(target, names, "target")))

    def measure(self, dataset: Dataset, by: By = None) -> pa.Table:
        """Measure a data set, or each of its groups.

        Parameters
        ----------
        dataset : ray.data.Dataset
            Rows with the columns that the binding names.
        by : str or datetime.timedelta, optional
            Column, or window of event time, whose groups are measured one by one. Default: one group.

        Returns
        -------
        pyarrow.Table
            One row per statistic (and group); see `raysel.gime.measure`.

        Raises
        ------
        DataError
            As :meth:`state` raises.

        Examples
        --------
        >>> table = raysel.GIME(raysel.gime.Binding(classes="label")).measure(rows, by="label")
        >>> sorted(set(table["group"].to_pylist()))
        ['0', '1']
        """
        return finalize(self.state(dataset, by), self.metrics)

    def state(self, dataset: Dataset, by: By = None) -> State:
        """Return the state of a data set, which can be saved and merged with the state of new rows.

        The state does not depend on blocks, nodes or the order in which they are read: it has the same bits.

        Parameters
        ----------
        dataset : ray.data.Dataset
            Rows with the columns that the binding names.
        by : str or datetime.timedelta, optional
            Column, or window of event time, to group by. Default: one group.

        Returns
        -------
        State
            See `raysel.gime.merge` and `raysel.gime.finalize`.

        Raises
        ------
        DataError
            As `raysel.gime.partial` raises, with rows counted within the block that Ray read, and if there is
            no row.

        Examples
        --------
        >>> state = raysel.GIME(raysel.gime.Binding(classes="label")).state(rows)
        >>> raysel.gime.merge(state, state).groups
        (None,)
        """
        check_dataset(dataset, "dataset", "raysel.gime.measure")
        schema = dataset.schema(fetch_if_missing=False)
        if schema is not None and isinstance(schema.base_schema, pa.Schema):
            self.binding.check(schema.base_schema)
        waiting: list[
            tuple[int, State]
        ] = []  # a binary counter: states of as many blocks are merged, as in a tree
        wanted = columns(self.binding, by)
        for found in stream_blocks(dataset, wanted, "dataset", partial, self.binding, by, combine=merge):
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

    @checked_call
    def select(self, pool: Dataset, by: By = None, seed: int = 0) -> Selection:
        """Select the fewest rows of the pool that together satisfy the thresholds and floors.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` and the bound columns.
        by : str or datetime.timedelta, optional
            Column, or window of event time, whose groups are selected or dropped completely. By default, rows are
            selected, in pieces of about 1/256 of the pool or of one row (`raysel.gime.pieces`); the bound columns
            are then sent to the driver.
        seed : int
            Seed by which rows are drawn into pieces.

        Returns
        -------
        Selection
            ``score`` is the order in which the row's group or piece was picked, 1 for the first. Every
            dropped row has the reason why its group or piece was not picked.

        Raises
        ------
        ConfigError
            If no selection was found that satisfies the thresholds; the message names the thresholds that conflict.
        DataError
            If a column or an id cannot be used.

        Examples
        --------
        >>> gime = raysel.GIME(raysel.gime.Binding(classes="label"), {"volume.rows": (4, None)}, {0: 2})
        >>> len(gime.select(rows))
        4
        """
        thresholds = self.thresholds.limits if isinstance(self.thresholds, Sensitivity) else self.thresholds
        check_dataset(pool, "pool", "raysel.gime.select_groups")
        groups, seed = "rows" if by is None else str(by), whole("seed", seed, 0)
        if by is None:
            table = gather(pool, list(dict.fromkeys([ID, *self.binding.columns])), "pool").sort_by(ID)
            check_ids(row_ids(table, "the pool"), "the pool")
            names = pieces(table, self.binding, thresholds, self.floors, seed)
            by = _PIECE
            while by in table.column_names:
                by += "'"
            table = table.append_column(by, names)
            state = partial(table, self.binding, by)
            choice = select_groups(state, thresholds, self.floors, kind_of, self.metrics)
        else:
            choice = select_groups(self.state(pool, by), thresholds, self.floors, metrics=self.metrics)
            column = by if isinstance(by, str) else str(self.binding.event_time)
            table = gather(pool, list(dict.fromkeys([ID, column])), "pool")
            check_ids(row_ids(table, "the pool"), "the pool")
        ids = row_ids(table, "the pool")
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
            "by": groups,
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
        """Find the metrics that a model's performance depends on; subsets are scored in Ray tasks.

        The results are those of `raysel.gime.sensitivity` for the same rows in the same order. The bound
        columns, ``mix`` and ``columns`` go to the driver, sorted by id, and to every node once.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` and the columns named here.
        performance : callable
            Takes a `pyarrow.Table` and returns the performance of a model trained on it, higher is better;
            see `raysel.gime.proxy`.
        mix : str
            Column whose values' shares vary from subset to subset.
        rows : int
            Number of rows per subset.
        columns : sequence of str
            Columns that ``performance`` reads.
        **rest
            Other parameters of `raysel.gime.sensitivity`.

        Returns
        -------
        Sensitivity
            Thresholds, correlations and the evidence for each.

        Raises
        ------
        ConfigError, DataError
            As `raysel.gime.sensitivity` raises.

        Examples
        --------
        >>> gime = raysel.GIME(raysel.gime.Binding(classes="label"))
        >>> gime.sensitivity(rows, lambda table: 0.9, mix="label", rows=5, count=20)
        Traceback (most recent call last):
            ...
        raysel.errors.ConfigError: count: Of 20 subsets, 0 are left to test the thresholds, because ...
        """
        check_dataset(pool, "pool", "raysel.gime.sensitivity")
        wanted = dict.fromkeys([ID, *self.binding.columns, mix, *columns])
        table = gather(pool, list(wanted), "pool").sort_by(ID)
        rest = {"each": on_cluster, "metrics": self.metrics, **rest}
        return sensitivity(table, self.binding, performance, mix=mix, rows=rows, **rest)

    def row_scores(self, dataset: Dataset) -> Dataset:
        """Add a score per row for scope and one for variety.

        The first pass counts all entities and classes on the driver, 16 bytes for each. The second pass is
        lazy.

        Parameters
        ----------
        dataset : ray.data.Dataset
            Rows with the columns that are bound as ``entity`` and ``classes``.

        Returns
        -------
        ray.data.Dataset
            ``dataset`` with the columns ``gime_scope`` and ``gime_variety``; see `raysel.gime.row_scores`.

        Raises
        ------
        DataError
            If there is no row, a column is missing, or the data set has a column of these names already.

        Examples
        --------
        >>> scored = raysel.GIME(raysel.gime.Binding(classes="label")).row_scores(rows)
        >>> "gime_variety" in scored.take(1)[0]
        True
        """
        import ray

        check_dataset(dataset, "dataset", "raysel.gime.row_scores")
        roles = list(dict.fromkeys([*self.binding.entity, *self.binding.classes]))
        binding = Binding(entity=self.binding.entity, classes=self.binding.classes)
        parts = list(stream_blocks(dataset, roles, "dataset", key_counts, binding))
        if not parts:
            raise DataError("The dataset is empty: there are no rows to score.")
        counts = ray.put(merge_key_counts(parts))
        return plain_errors(
            dataset.map_batches(_scored, fn_args=(binding, counts), batch_format="pyarrow", batch_size=None)
        )


def on_cluster(run: Callable[[pa.Table], Any], table: pa.Table, parts: Sequence[Positions]) -> list[Any]:
    """Return ``run(part)`` for each part of the table, in order, as tasks of one CPU."""
    import ray

    task = ray.remote(_run_part)
    shared = [ray.put(run), ray.put(table)]
    waiting = [task.remote(*shared, ray.put(part)) for part in parts]
    try:
        return list(get(waiting))
    except Exception:
        cancel_queued(waiting)
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
        if f"gime_{name}" in table.column_names:
            raise DataError(
                f"The dataset has a column 'gime_{name}' already; rename or drop it to score again."
            )
        table = table.append_column(f"gime_{name}", scores[name])
    return table
