"""Select rows by a column of scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from raysel.core.budgets import budget_rows, check_budget
from raysel.core.calls import checked_call
from raysel.core.hashing import hash_ids
from raysel.core.parameters import check_fields
from raysel.data.identity import check_dataset, row_ids
from raysel.data.row_index import ID, check_ids
from raysel.errors import ConfigError, DataError, first
from raysel.quotas import check_per_class, quotas_of
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class ByScore:
    """Select the rows with the highest, lowest or middle values of a numeric column, or a sample weighted by them.

    Parameters
    ----------
    budget : float or int
        Number of rows to select: a share of the pool (float) or a number of rows (int).
    score : str
        Column with the score of each row, such as a quality rating, a loss or a length.
    how : {"top", "low", "middle", "sample"}
        Which rows are selected: the highest scores (top), the lowest scores (low), the scores nearest to the
        median (middle), or a random sample without replacement in proportion to ``exp(score / temperature)``
        (sample).
    temperature : float
        Only for ``how: sample``. With a high temperature, all rows are almost equally likely; with a low
        temperature, mostly the highest scores are selected.
    per_class : {"uniform", "pool"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` for the proportions of the pool, or a
        mapping from each class to its share. If a class has too few rows, the other classes get more rows. By default,
        the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    seed : int
        Seed for ``how: sample``. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    Of rows with equal scores, the row with the lowest ``sample_id`` comes first. A smaller budget selects a subset of the
    rows of a larger budget.

    References
    ----------
    Kool, van Hoof & Welling 2019, Stochastic Beams and Where to Find Them, arXiv:1903.06059, for sampling with Gumbel noise.

    Examples
    --------
    >>> chosen = raysel.ByScore(budget=2, score="sample_id").select(rows)   # rows: 10 rows
    >>> chosen.ids.tolist()
    [8, 9]
    """

    budget: float | int
    score: str
    how: Literal["top", "low", "middle", "sample"] = "top"
    temperature: float = 1.0
    per_class: Literal["uniform", "pool"] | dict[str | int, float] | None = None
    label: str | None = None
    seed: int = 0
    title: ClassVar[str] = "score"  # reads well after "by"

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        object.__setattr__(self, "budget", check_budget(self.budget))
        check_fields(self)
        check_per_class(self.per_class)
        if not 0 < self.temperature < np.inf:
            raise ConfigError(f"temperature: {self.temperature!r} is not a positive number.")

    @checked_call
    def select(self, pool: Dataset) -> Selection:
        """Select rows by their scores.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the column of scores.

        Returns
        -------
        Selection
            The selected rows at weight 1, with their scores; dropped rows have their scores too.

        Raises
        ------
        DataError
            If the column is missing, is not numeric, or has missing or infinite values.

        Examples
        --------
        >>> raysel.ByScore(budget=2, score="sample_id", how="low").select(rows).ids.tolist()
        [0, 1]
        """
        import pyarrow as pa

        from raysel.cluster.blocks import gather
        from raysel.selection import constant_text

        check_dataset(pool, "pool")
        table = gather(pool, list(dict.fromkeys([ID, self.score])), "pool")
        ids = row_ids(table, "the pool")
        check_ids(ids, "the pool")
        kind = table[self.score].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(f"score: The column '{self.score}' of the pool holds {kind}, not numbers.")
        score = table[self.score].to_numpy(zero_copy_only=False).astype(np.float64)
        bad = ids[~np.isfinite(score)]
        if len(bad):
            raise DataError(
                f"score: The column '{self.score}' of the pool is missing or infinite in {len(bad):,} of {len(ids):,} rows "
                f"(sample_id {first(np.sort(bad))}); repair or drop these rows first."
            )
        ascending = np.argsort(ids, kind="stable")
        ids, score = ids[ascending], score[ascending]
        count, none = budget_rows(self.budget, len(ids)), np.zeros(len(ids), bool)
        place = np.empty(len(ids), np.int64)
        wanted = preference(ids, score, self.how, self.temperature, self.seed)
        place[np.lexsort((ids, -wanted))] = np.arange(len(ids))
        quotas = quotas_of(self.per_class, self.label, pool, None, ids, count, none)
        chosen = quotas.take(lambda rows, some: rows[np.argsort(place[rows])[:some]], np.arange(len(ids)))
        out = np.setdiff1d(np.arange(len(ids)), chosen)
        reasons = {
            "top": "one of the highest scores",
            "low": "one of the lowest scores",
            "middle": "one of the scores nearest to the median",
            "sample": f"sampled by score, temperature {self.temperature:g}",
        }
        dropped = pa.table(
            {
                ID: ids[out],
                "score": score[out],
                "reason": constant_text(f"not {reasons[self.how]}", len(out)),
            }
        )
        return Selection.of(
            ids[chosen],
            score=score[chosen],
            reason=reasons[self.how],
            dropped=dropped,
            info={
                "method": self.title,
                **asdict(self),
                "column": self.score,
                "pool_rows": len(ids),
                "score": f"column '{self.score}'",
            },
            pool=pool,
        )


def preference(ids: np.ndarray, score: np.ndarray, how: str, temperature: float, seed: int) -> np.ndarray:
    """Return numbers by which rows are taken, the highest first."""
    if how == "low":
        return -score
    if how == "middle":
        return -np.abs(score - np.median(score))
    if how == "sample":
        uniform = np.maximum(hash_ids(ids, seed), 2.0**-54)  # 0 would be an infinite draw
        return score / temperature - np.log(-np.log(uniform))
    return score
