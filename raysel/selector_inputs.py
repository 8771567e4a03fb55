"""What every selector on vectors begins and ends with: checked inputs, and a Selection with a reason for every row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.cluster.blocks import column_names, map_blocks, stream_blocks
from raysel.core.arrays import unit
from raysel.core.budgets import arrow_bytes, budget_rows, parse_bytes
from raysel.data.identity import check_dataset, identity
from raysel.data.row_index import ID
from raysel.data.vector_blocks import VectorBlocks, vector_blocks
from raysel.data.vectors import as_matrix
from raysel.errors import ConfigError, DataError, first
from raysel.gio.quantize import assign
from raysel.quotas import PerClass, Quotas, quotas_of
from raysel.selection import Selection, check_selection, coded_text

TARGET_ROWS = 20_000  # of a larger target a sample is used
THEIRS = {"target": "the target's", "rows to avoid": "those of the rows to avoid have"}
AVOIDED = "similar to a row to avoid"  # the reason of a dropped row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Checked vectors, and how many rows are selected from them.

    Attributes
    ----------
    pool : VectorBlocks
        Vectors of the pool.
    aim : VectorBlocks or None
        Vectors of the target; None for a selector without a target.
    data : ray.data.Dataset
        The pool, whose identity the Selection carries.
    ids : array of int64
        Of all pool rows, ascending.
    count : int
        Rows to select, with those of ``start``.
    start : Selection or None
        Rows that are selected already.
    quotas : Quotas
        Rows to take per class.
    avoided : array of bool
        Whether each of ``ids`` must not be selected, because of the rows to avoid.
    notes : list of str
        What the report says of them.
    """

    pool: VectorBlocks
    aim: VectorBlocks | None
    data: Dataset
    ids: np.ndarray
    count: int
    start: Selection | None
    quotas: Quotas
    avoided: np.ndarray
    notes: list[str]

    @property
    def target(self) -> VectorBlocks:
        """Vectors of the target."""
        assert self.aim is not None
        return self.aim

    @property
    def kept(self) -> np.ndarray:
        """Whether ``start`` has each of ``ids``."""
        return np.zeros(len(self.ids), bool) if self.start is None else np.isin(self.ids, self.start.ids)

    @property
    def free(self) -> np.ndarray:
        """Positions of the rows that may be selected and are not in ``start``."""
        return np.flatnonzero(~self.kept & ~self.avoided)


class OnVectors(Protocol):
    """The fields that selectors on vectors have in common."""

    @property
    def budget(self) -> float | int | str: ...  # noqa: D102
    @property
    def column(self) -> str: ...  # noqa: D102
    @property
    def per_class(self) -> PerClass | None: ...  # noqa: D102
    @property
    def label(self) -> str | None: ...  # noqa: D102


Avoid = Callable[[VectorBlocks, VectorBlocks, VectorBlocks], tuple[np.ndarray, str]]


def open_inputs(
    selector: OnVectors,
    pool: Dataset,
    start: Selection | None,
    *targets: Dataset,
    avoid: Dataset | None = None,
    avoided: Avoid | None = None,
    limit: float = 1.0,
) -> Inputs:
    """Check the vectors of the pool, and of a target if the selector has one, the budget and the selection to extend.

    Parameters
    ----------
    selector, pool, start, *targets
        As the selector and its ``select`` have them.
    avoid : ray.data.Dataset, optional
        Rows that must not be learned.
    avoided : callable, optional
        Returns, from the vectors of pool, target and rows to avoid, which pool rows must not be selected (in ascending order
        of their ids), and a sentence about them. Rows of ``start`` are kept.
    limit : float
        Largest budget, as a share of the pool.

    Raises
    ------
    ConfigError
        If the target is None, and for a budget that the pool does not allow.
    DataError
        For vectors that cannot be used, rows to avoid that hold the target, and a ``start`` from another pool.
    """
    check_dataset(pool, "pool")
    source, aim = vector_blocks(pool, selector.column, "pool"), None
    for target in targets:
        if target is None:
            raise ConfigError("target: This selector needs the target; pass its rows as the second argument.")
        aim = _like_the_pool(target, selector.column, "target", source)
    budget = selector.budget
    count = (
        rows_of_bytes(budget, pool, source.rows)
        if isinstance(budget, str)
        else budget_rows(budget, source.rows)
    )
    count = max(1, min(count, int(limit * source.rows + 1e-9)))
    before = check_start(start, pool, source.ids, count)
    ids = np.sort(source.ids)
    kept = np.isin(ids, before)
    out, notes = np.zeros(len(ids), bool), []
    if avoid is not None and avoided is not None and aim is not None:
        bad = _like_the_pool(avoid, selector.column, "rows to avoid", source)
        _check_avoid(aim, bad)
        out, note = avoided(source, aim, bad)
        out &= ~kept
        notes = [note]
        if count > (left := int(np.count_nonzero(~out))):
            raise ConfigError(
                f"budget: {count:,} rows cannot be selected, because the rows to avoid leave {left:,} of {len(ids):,} rows of "
                "the pool. Lower the budget, or give fewer rows to avoid."
            )
    target = targets[0] if targets else None
    quotas = quotas_of(selector.per_class, selector.label, pool, target, ids, count, kept, out)
    return Inputs(source, aim, pool, ids, count, start, quotas, out, notes)


def _like_the_pool(rows: Dataset, column: str, what: str, pool: VectorBlocks) -> VectorBlocks:
    """Return the vectors of other rows than the pool's. Raises DataError if they have another dimension."""
    check_dataset(rows, what)
    found = vector_blocks(rows, column, what)
    if found.dimension != pool.dimension:
        raise DataError(
            f"The pool's vectors have {pool.dimension} dimensions, but {THEIRS[what]} {found.dimension}; "
            "embed both with the same embedder."
        )
    return found


def _check_avoid(target: VectorBlocks, avoid: VectorBlocks) -> None:
    held = {row.tobytes() for row in avoid.sample(TARGET_ROWS, 0)[1] + np.float32(0)}  # -0.0 is 0.0
    if all(row.tobytes() in held for row in target.sample(TARGET_ROWS, 0)[1] + np.float32(0)):
        raise DataError(
            "avoid: Every target row is also among the rows to avoid, so no target row is left to select for; give other rows to "
            "avoid, or another target."
        )


def nearer_to_avoid(
    pool: VectorBlocks, target: VectorBlocks, avoid: VectorBlocks, cosine: bool = False
) -> tuple[np.ndarray, str]:
    """Return which pool rows are at least as close to a row to avoid as to every target row, and a sentence about them.

    Of more than 20,000 target rows or rows to avoid, a sample is used.

    Parameters
    ----------
    pool, target, avoid : VectorBlocks
        The vectors.
    cosine : bool
        Compare by cosine instead of the Euclidean distance.
    """
    sides = [side.sample(TARGET_ROWS, 0)[1] for side in (target, avoid)]
    parts = map_blocks(_nearer, pool.blocks, pool.column, ray.put(sides), cosine)
    ids, near = (np.concatenate(one) for one in zip(*parts, strict=True))
    near = near[np.argsort(ids, kind="stable")]
    return near, (
        f"{np.count_nonzero(near):,} of {len(near):,} pool rows were excluded, because they are at least as similar to a row to "
        "avoid as to the most similar target row."
    )


def _nearer(table: pa.Table, column: str, sides: Any, cosine: bool) -> tuple[np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    scaled = unit if cosine else np.asarray
    rows = scaled(as_matrix(table[column], column, ids))
    to_target, to_avoid = (assign(rows, scaled(side), ids)[1] for side in sides)
    return ids, to_avoid <= to_target


def check_start(start: Selection | None, pool: Dataset, pool_ids: np.ndarray, count: int) -> np.ndarray:
    """Return the ids that were selected before."""
    if start is None:
        return np.empty(0, np.int64)
    check_selection(start, "start")
    here = identity(pool)
    if start.pool is not None and here is not None:
        start.pool.check(here)
    strange = np.setdiff1d(start.ids, pool_ids)
    if len(strange):
        raise DataError(
            f"start: {len(strange):,} rows of this selection are not in the pool (sample_id {first(strange)}); "
            "extend a selection that was made from the same pool."
        )
    if len(start) >= count:
        raise ConfigError(
            f"budget: {count:,} rows are too few, because start already holds {len(start):,}; give a larger budget."
        )
    return start.ids


def rows_of_bytes(budget: str, pool: Dataset, rows: int) -> int:
    """Return how many of the pool's ``rows`` take at most ``budget`` Arrow bytes of all its columns, at the mean row size.

    Raises
    ------
    ConfigError
        If that is no row.
    """
    total = sum(stream_blocks(pool, column_names(pool), "pool", arrow_bytes))
    count = parse_bytes(budget) * rows // max(total, 1)
    if count < 1:
        raise ConfigError(
            f"budget: {budget} is less than the size of one row: the pool's {rows:,} rows take {total:,} bytes. Choose a larger budget."
        )
    return min(count, rows)


def warn_of_empty_clusters(empty: np.ndarray, clusters: int, targets: int) -> list[str]:
    """Return a note for the report if some of the new rows are from clusters without target rows; warn if a tenth are.

    Parameters
    ----------
    empty : array of bool
        Whether the cluster of each new row has no target row.
    clusters, targets : int
        Number of clusters and of target rows.
    """
    count = int(empty.sum())
    if not count:
        return []
    note = (
        f"{count:,} of the {len(empty):,} selected rows are from clusters without target rows, because the clusters with "
        f"target rows have too few rows for the budget. The pool was divided into {clusters:,} clusters, and the target has "
        f"{targets:,} rows: set 'clusters' to a smaller number, give more target rows, or select fewer rows."
    )
    if count >= len(empty) / 10:
        logger.warning(note)
    return [note]


def make_selection(
    inputs: Inputs,
    new: np.ndarray,
    *,
    score: np.ndarray,
    reason: np.ndarray,
    texts: Sequence[str],
    info: dict[str, Any],
    columns: dict[str, np.ndarray] | None = None,
    all_scored: bool = True,
) -> Selection:
    """Return a Selection of new rows and those of ``start``; all other rows are listed as dropped.

    Parameters
    ----------
    inputs : Inputs
        What was selected from.
    new : array of int64
        Ids of the selected rows that ``start`` does not have.
    score : array of float, shape (n,)
        Score of every row of the pool, in the order of ``inputs.ids``.
    reason : array of int, shape (n,)
        Index into ``texts`` for every row.
    texts : sequence of str
        Reasons.
    info : dict
        Method and parameters.
    columns : dict of str to array, shape (n,), optional
        More columns.
    all_scored : bool
        Whether the score and the columns hold values for dropped rows too.
    """
    kept = inputs.kept
    chosen = kept | np.isin(inputs.ids, new)
    codes = np.where(inputs.avoided, len(texts) + 1, np.where(kept, len(texts), reason))
    weight = np.ones(len(inputs.ids), np.float32)
    if inputs.start is not None:
        weight[kept] = inputs.start.weights  # both ascend in their ids
    every = [*texts, "in the selection that was extended", AVOIDED]
    more = columns or {}
    dropped = {ID: pa.array(inputs.ids[~chosen])}
    if all_scored:
        dropped |= {name: pa.array(values[~chosen]) for name, values in {"score": score, **more}.items()}
    dropped["reason"] = coded_text(codes[~chosen], every)
    return Selection.of(
        inputs.ids[chosen],
        score=score[chosen],
        weight=weight[chosen],
        reason=coded_text(codes[chosen], every),
        dropped=pa.table(dropped),
        info={
            **info,
            "pool_rows": len(inputs.ids),
            "start_rows": int(kept.sum()),
            "avoided": int(inputs.avoided.sum()),
            "notes": [*info.get("notes", []), *inputs.notes],
        },
        columns={name: values[chosen] for name, values in more.items()},
        pool=inputs.data,
    )
