"""Selectors that use neither vectors nor a target: the controls that every selection method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysel.core.hashing import hash_ids
from raysel.data.row_index import ID, budget_rows, check_ids
from raysel.errors import DataError
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Random:
    """Select a uniformly random subset of the pool.

    The draw depends on the seed and ``sample_id`` alone, and subsets of one seed are nested.

    Parameters
    ----------
    budget : float or int
        Rows to select: a share of the pool (float) or a number of rows (int).
    stratify : str, optional
        Column whose values keep their shares in the selection, such as the label.
    seed : int
        Seed of the draw; by default the seed of the workflow.

    Raises
    ------
    ConfigError
        For a budget that no pool allows.

    Examples
    --------
    >>> len(raysel.Random(budget=0.3, seed=1).select(rows))   # rows: 10 rows
    3
    """

    budget: float | int
    stratify: str | None = None
    seed: int = 0
    title: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        """Raise ConfigError for a budget that no pool allows."""
        budget_rows(self.budget, 2**62)

    def select(self, pool: Dataset) -> Selection:
        """Select rows of the pool.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64), and the column ``stratify`` if one is given.

        Returns
        -------
        Selection
            The selected rows at weight 1.

        Raises
        ------
        DataError
            If a column is missing, the pool has no rows, or an id occurs twice.

        Examples
        --------
        >>> raysel.Random(budget=4, stratify="label").select(rows).apply(rows).unique("label")
        [0, 1]
        """
        from raysel.cluster.blocks import gather

        table = gather(pool, [ID, *([self.stratify] if self.stratify else [])], "pool")
        ids = table[ID].to_numpy()
        if not len(ids):
            raise DataError("The pool is empty: there are no rows to choose from.")
        check_ids(ids, "the pool")
        groups = (
            np.unique(table[self.stratify].to_numpy(zero_copy_only=False), return_inverse=True)[1]
            if self.stratify
            else np.zeros(len(ids), np.int64)
        )
        chosen = choose(ids, groups, budget_rows(self.budget, len(ids)), self.seed)
        info = {
            "method": "random",
            "budget": self.budget,
            "stratify": self.stratify,
            "seed": self.seed,
            "pool_rows": len(ids),
            "score": "none",
        }
        return Selection.of(ids[chosen], reason=f"random, seed {self.seed}", info=info, pool=pool)


def choose(ids: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return positions of ``count`` ids, lowest hash first, each group by its share (largest remainders)."""
    draws = hash_ids(ids, seed)
    sizes = np.bincount(groups)
    exact = sizes * (count / len(ids))
    quota = np.floor(exact).astype(np.int64)
    short = count - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:short]] += 1
    order = np.lexsort((ids, draws, groups))
    rank = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < quota[groups[order]]])
