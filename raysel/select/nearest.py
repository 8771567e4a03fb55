"""Select the pool rows that are most similar to the target rows, which take turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from raysel.core.budgets import check_budget
from raysel.core.calls import checked_call
from raysel.core.parameters import check_fields
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, as_matrix
from raysel.quotas import PerClass, check_per_class
from raysel.select.matches import Matches, Turns
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.selector_inputs import Inputs

_THINNED = (
    "The target rows were replaced by k-means centroids, because the lists of similar rows would be too long."
)
_PAIRS = 1 << 25  # pairs of a target row and a pool row that are kept: 20 bytes each


@dataclass(frozen=True)
class Nearest:
    """Select, for one target row after another, the most similar pool row that is not selected yet (RDS+).

    In every round, the most similar pool row (by cosine) that is not selected yet is selected for each target row, until
    the budget is reached. A larger budget adds rows to the selection of a smaller budget.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    per_class : {"uniform", "pool", "target"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` or ``target`` for the proportions of the
        pool or of the target, or a mapping from each class to its share. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    column : str
        Column with the vectors.
    seed : int
        Seed of k-means, which groups the target rows if there are too many to compare all of them. In a workflow,
        the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    The lists of most similar rows have at most 2**25 entries in all. If the budget needs longer lists, the target rows
    are replaced by fewer k-means centroids. The number of rows that are selected for a centroid is proportional to the
    number of target rows in its cluster. ``info["target"]`` then contains the number of centroids.

    References
    ----------
    Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning, arXiv:2503.01807.

    Examples
    --------
    >>> chosen = raysel.Nearest(budget=0.3).select(rows, rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    per_class: PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "nearest"
    uses_vectors: ClassVar[bool] = True
    uses_target: ClassVar[bool] = True
    uses_avoid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        object.__setattr__(self, "budget", check_budget(self.budget, in_bytes=True))
        check_fields(self)
        check_per_class(self.per_class)

    @checked_call
    def select(
        self, pool: Dataset, target: Dataset, *, avoid: Dataset | None = None, start: Selection | None = None
    ) -> Selection:
        """Select the pool rows that are most similar to the target rows.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        target : ray.data.Dataset
            Rows to find similar rows for. Labels are not used.
        avoid : ray.data.Dataset, optional
            Rows that must not be learned. A pool row is excluded if its most similar row to avoid is at least as similar as
            its most similar target row.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget.

        Returns
        -------
        Selection
            Next to the usual columns: ``target_id`` (int64, the target row that took the row; -1 for rows of
            ``start`` and for a target of centroids) and ``turn`` (int32). The score is the cosine to that target
            row; dropped rows have none.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> first = raysel.Nearest(budget=2).select(rows, rows)
        >>> set(first.ids) <= set(raysel.Nearest(budget=4).select(rows, rows).ids)
        True
        """
        from raysel.selector_inputs import make_selection, nearer_to_avoid, open_inputs

        rule = partial(nearer_to_avoid, cosine=True)
        inputs = open_inputs(self, pool, start, target, avoid=avoid, avoided=rule)
        ids, vectors = inputs.target.sample(inputs.target.rows, self.seed)
        share, thinned = np.ones(len(ids), np.int64), False
        before = inputs.ids[inputs.kept | inputs.avoided]
        quotas = inputs.quotas
        by_class: dict[str, Any] = {}
        if self.per_class is not None:
            classes = dict(zip(inputs.ids.tolist(), quotas.codes.tolist(), strict=True))
            full = inputs.ids[quotas.rows[quotas.codes] == 0]
            before = np.union1d(before, full)
            by_class = {"classes": classes, "room": quotas.rows.tolist()}
        wanted = int(quotas.rows.sum())
        turns = Turns(wanted, share, before, **by_class)
        k = 4 * -(-inputs.count // len(ids)) + 16
        while True:
            k = min(k, inputs.pool.rows)
            if len(vectors) * k > _PAIRS and len(vectors) > 1:
                vectors, share = _thinned(vectors, share, max(1, _PAIRS // k), self.seed)
                turns, thinned = Turns(wanted, share, before, **by_class), True
            lists, cosines = _match(inputs, self.column, vectors, k, turns.taken)
            if turns.take(lists, cosines, complete=k == inputs.pool.rows):
                break
            k *= 2
        score = np.full(len(inputs.ids), np.nan)
        target_id = np.full(len(inputs.ids), -1, np.int64)
        turn = np.full(len(inputs.ids), -1, np.int32)
        at = np.searchsorted(inputs.ids, turns.ids)
        score[at], turn[at] = turns.cosines, turns.turns
        if not thinned:
            target_id[at] = ids[turns.targets]
        reason = np.ones(len(inputs.ids), np.int64)
        reason[at] = 0
        return make_selection(
            inputs,
            np.array(turns.ids, np.int64),
            score=score,
            reason=reason,
            texts=[
                "the most similar row to a target row, among the rows that were not yet selected",
                "the budget was reached before the row was selected for a target row",
            ],
            info={
                "method": "nearest",
                **asdict(self),
                "score": "cosine to the target row for which the row was selected",
                "notes": [_THINNED] if thinned else [],
                "target": f"{len(vectors):,} {'centroids' if thinned else 'rows'} of {inputs.target.rows:,} rows",
            },
            columns={"target_id": target_id, "turn": turn},
            all_scored=False,
        )


def _thinned(vectors: np.ndarray, share: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most ``count`` centroids, each with the share of the vectors that it stands for."""
    from raysel.gio.quantize import assign, fit_centroids

    centroids = fit_centroids(vectors, count, seed)
    joined = np.bincount(assign(vectors, centroids)[0], share, minlength=len(centroids))
    used = np.flatnonzero(joined)
    return centroids[used], joined[used].astype(np.int64)


def _match(
    inputs: Inputs, column: str, targets: np.ndarray, k: int, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    import ray

    from raysel.cluster.blocks import map_groups

    parts = map_groups(match_group, inputs.pool.blocks, column, ray.put((targets, taken)), k)
    return reduce(lambda one, other: one.merge(other), parts).lists()


def match_group(tables: Iterator[pa.Table], column: str, shared: Any, k: int) -> Matches:
    """Return the k most similar rows of every target row; ``shared`` refers to the targets and the ids that do not count."""
    import ray

    targets, taken = ray.get(shared)
    found = Matches(targets, k)
    for table in tables:
        ids = table[ID].to_numpy()
        free = ~np.isin(ids, taken)
        found.add(ids[free], as_matrix(table[column], column, ids)[free])
    return found.trim()
