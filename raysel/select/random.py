"""Select rows at random: the control that every selector is compared with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from raysel.core.arrow import plain_values
from raysel.core.budgets import budget_rows, check_budget
from raysel.core.calls import checked_call
from raysel.core.hashing import hash_ids
from raysel.core.parameters import check_fields
from raysel.data.identity import check_dataset, row_ids
from raysel.data.row_index import ID, check_ids
from raysel.errors import ConfigError, DataError
from raysel.quotas import check_per_class, quotas_of
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class Random:
    """Select a uniformly random subset of the pool.

    The draw depends only on the seed and ``sample_id``. With the same seed, a smaller subset is contained in a larger one.

    Parameters
    ----------
    budget : float or int
        Number of rows to select: a share of the pool (float) or a number of rows (int).
    stratify : str, optional
        Column for stratified sampling, such as the label: each value of this column has the same share in the
        selection as in the pool.
    seed : int
        Seed of the random numbers. In a workflow, the default is the seed of the workflow; in Python, it is 0.
    per_class : {"uniform", "pool"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` for the proportions of the pool, or a
        mapping from each class to its share. If a class has too few rows, the other classes get more rows. By default,
        the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.

    Raises
    ------
    ConfigError
        For a budget that is out of range, and if both ``stratify`` and ``per_class`` are given.

    Examples
    --------
    >>> len(raysel.Random(budget=0.3, seed=1).select(rows))   # rows: 10 rows
    3
    """

    budget: float | int
    stratify: str | None = None
    seed: int = 0
    per_class: Literal["uniform", "pool"] | dict[str | int, float] | None = None
    label: str | None = None
    title: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        """Raise ConfigError for a budget that no pool allows, and for a value of another type."""
        object.__setattr__(self, "budget", check_budget(self.budget))
        check_fields(self)
        check_per_class(self.per_class)
        if self.stratify is not None and self.per_class is not None:
            raise ConfigError(
                "per_class: Random cannot have both parameters, per_class and stratify; remove one of them."
            )

    @checked_call
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
        ConfigError
            If the budget is more than the pool has rows, or ``pool`` is not a Ray Dataset.
        DataError
            If a column is missing, the pool has no rows, an id occurs twice, or ``stratify`` holds values that
            cannot be compared, such as lists.

        Examples
        --------
        >>> raysel.Random(budget=4, stratify="label").select(rows).apply(rows).unique("label")
        [0, 1]
        """
        from raysel.cluster.blocks import gather

        check_dataset(pool, "pool")
        wanted = [ID] if self.stratify is None else [ID, self.stratify]
        table = gather(pool, list(dict.fromkeys(wanted)), "pool")
        ids = row_ids(table, "the pool")
        check_ids(ids, "the pool")
        count = budget_rows(self.budget, len(ids))
        if self.per_class is None:
            groups = np.zeros(len(ids), np.int64) if self.stratify is None else strata(table, self.stratify)
            chosen = choose(ids, groups, count, self.seed)
        else:
            ids, none = np.sort(ids), np.zeros(len(ids), bool)
            draws = hash_ids(ids, self.seed)
            quotas = quotas_of(self.per_class, self.label, pool, None, ids, count, none)
            chosen = quotas.take(lambda rows, some: rows[np.argsort(draws[rows])[:some]], np.arange(len(ids)))
        info = {"method": "random", **asdict(self), "pool_rows": len(ids), "score": "none"}
        return Selection.of(ids[chosen], reason=f"random, seed {self.seed}", info=info, pool=pool)


def strata(table: pa.Table, column: str) -> np.ndarray:
    """Return a code per row, 0..S-1 in the order of the column's values; rows without a value are the last stratum."""
    values = plain_values(table[column])
    try:
        found = values.dictionary_encode()
        names = found.dictionary.to_pylist()
        place = {name: at for at, name in enumerate(sorted({n for n in names if n == n}))}
    except (pa.ArrowNotImplementedError, TypeError):
        raise DataError(
            f"stratify: Column '{column}' holds {values.type}, whose values cannot be counted; name a column of text, numbers "
            "or times."
        ) from None
    codes = np.array([place.get(name, len(place)) for name in names] + [len(place) + 1], np.int64)
    coded = codes[found.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return np.unique(coded, return_inverse=True)[1]


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
