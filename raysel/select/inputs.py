"""What every selector on vectors begins and ends with: checked inputs, and a Selection with a reason for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.core.budgets import budget_rows
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID
from raysel.data.vector_blocks import VectorBlocks, vector_blocks
from raysel.errors import ConfigError, DataError
from raysel.gio.distributed import check_start, rows_of_bytes
from raysel.select.quotas import PerClass, Quotas, quotas_of
from raysel.selection import Selection, coded_text

TARGET_ROWS = 20_000  # of a larger target a sample is used


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
    """

    pool: VectorBlocks
    aim: VectorBlocks | None
    data: Dataset
    ids: np.ndarray
    count: int
    start: Selection | None
    quotas: Quotas

    @property
    def target(self) -> VectorBlocks:
        """Vectors of the target."""
        assert self.aim is not None
        return self.aim

    @property
    def kept(self) -> np.ndarray:
        """Whether ``start`` has each of ``ids``."""
        return np.zeros(len(self.ids), bool) if self.start is None else np.isin(self.ids, self.start.ids)


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


def open_inputs(selector: OnVectors, pool: Dataset, start: Selection | None, *targets: Dataset) -> Inputs:
    """Check the vectors of the pool, and of a target if the selector has one, the budget and the selection to extend.

    Raises
    ------
    ConfigError
        If the target is None, and for a budget that the pool does not allow.
    DataError
        For vectors that cannot be used, and a ``start`` from another pool.
    """
    check_dataset(pool, "pool")
    source, aim = vector_blocks(pool, selector.column, "pool"), None
    for target in targets:
        if target is None:
            raise ConfigError("target: This selector needs the target; pass its rows as the second argument.")
        check_dataset(target, "target")
        aim = vector_blocks(target, selector.column, "target")
        if source.dimension != aim.dimension:
            raise DataError(
                f"The pool's vectors have {source.dimension} dimensions, but the target's {aim.dimension}; "
                "embed both with the same embedder."
            )
    budget = selector.budget
    count = (
        rows_of_bytes(budget, pool, source.rows)
        if isinstance(budget, str)
        else budget_rows(budget, source.rows)
    )
    check_start(start, pool, source.ids, count)
    ids = np.sort(source.ids)
    kept = np.zeros(len(ids), bool) if start is None else np.isin(ids, start.ids)
    target = targets[0] if targets else None
    quotas = quotas_of(selector.per_class, selector.label, pool, target, ids, count, kept)
    return Inputs(source, aim, pool, ids, count, start, quotas)


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
    codes = np.where(kept, len(texts), reason)
    weight = np.ones(len(inputs.ids), np.float32)
    if inputs.start is not None:
        weight[kept] = inputs.start.weights  # both ascend in their ids
    every = [*texts, "in the selection that was extended"]
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
        info={**info, "pool_rows": len(inputs.ids), "start_rows": int(kept.sum())},
        columns={name: values[chosen] for name, values in more.items()},
        pool=inputs.data,
    )
