"""Select rows that cover or represent the pool, without a target."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from raysel.core.budgets import check_budget
from raysel.core.calls import checked_call
from raysel.core.hashing import hash_ids
from raysel.core.numbers import whole
from raysel.core.parameters import check_fields
from raysel.data.vectors import EMBEDDING
from raysel.quotas import check_per_class
from raysel.select.covering import (
    Greedy,
    facility_location,
    herding,
    k_center,
    nearest_first,
    round_robin,
    turns,
)
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.gio.distributed import Quantised

_EXACT = 50_000  # rows; of a larger pool, centroids are selected
_PerClass = Literal["uniform", "pool"] | dict[str | int, float]


@dataclass(frozen=True)
class KCenter:
    """Select rows so that every pool row is close to a selected row (k-center greedy).

    Each selected row is the one that is farthest from the rows selected before it. Rare rows and outliers are therefore
    selected early. Distances are Euclidean.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int
        Number of k-means clusters, which are used only if the pool has more than 50,000 rows.
    per_class : {"uniform", "pool"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` for the proportions of the pool, or a mapping from each
        class to its share. The rows of every class are selected separately. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    column : str
        Column with the vectors.
    seed : int
        Seed of k-means and of the random draws. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    If the pool has more than 50,000 rows, the selector selects k-means centroids. Each selected centroid
    stands for the row that is nearest to it. Further rows are drawn at random, equally many from every cluster.

    References
    ----------
    Gonzalez 1985, Clustering to minimize the maximum intercluster distance. Sener & Savarese 2018, Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, arXiv:1708.00489.

    Examples
    --------
    >>> chosen = raysel.KCenter(budget=0.3).select(rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int = 1500
    per_class: _PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "k-center"
    uses_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        _check(self)

    @checked_call
    def select(self, pool: Dataset, *, start: Selection | None = None) -> Selection:
        """Select rows so that every pool row is close to a selected row.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget.

        Returns
        -------
        Selection
            Next to the usual columns: ``rank`` (int32, the order of selection, separate for each class with ``per_class``; -1 for
            rows of ``start``).
            The score is the distance to the nearest row that was selected before it; for the first row, it is the distance to the
            mean of the pool. ``info["radius"]`` is the largest distance of a pool row to the nearest selected row.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> first = raysel.KCenter(budget=2).select(rows)
        >>> set(first.ids) <= set(raysel.KCenter(budget=4).select(rows).ids)
        True
        """
        return _select(
            self,
            pool,
            start,
            k_center,
            texts=(
                "farthest from the rows that were selected before it",
                "in every step, another row was farther from the selected rows",
            ),
            score="distance to the nearest row that was selected before it",
            value="radius",
            note="Every pool row is within a distance of {:.4g} of a selected row.",
        )


@dataclass(frozen=True)
class FacilityLocation:
    """Select rows so that, on average, a pool row is similar to its most similar selected row (facility location).

    Each selected row is the one that adds the most to the sum, over all pool rows, of the cosine to the most similar
    selected row. Rows from dense regions are selected first; outliers are selected late.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int
        Number of k-means clusters, which are used only if the pool has more than 50,000 rows.
    per_class : {"uniform", "pool"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` for the proportions of the pool, or a mapping from each
        class to its share. The rows of every class are selected separately. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    column : str
        Column with the vectors.
    seed : int
        Seed of k-means and of the random draws. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    If the pool has more than 50,000 rows, the selector selects k-means centroids, weighted by the number of their
    rows. Each selected centroid stands for the row that is nearest to it. Further rows are drawn at random, from
    every cluster in proportion to the number of its rows.

    References
    ----------
    Mirzasoleiman, Bilmes & Leskovec 2020, Coresets for Data-efficient Training of Machine Learning Models,
    arXiv:1906.01827.

    Examples
    --------
    >>> chosen = raysel.FacilityLocation(budget=0.3).select(rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int = 1500
    per_class: _PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "facility location"
    uses_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        _check(self)

    @checked_call
    def select(self, pool: Dataset, *, start: Selection | None = None) -> Selection:
        """Select rows so that, on average, a pool row is similar to its most similar selected row.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget.

        Returns
        -------
        Selection
            Next to the usual columns: ``rank`` (int32, the order of selection, separate for each class with ``per_class``; -1 for
            rows of ``start``).
            The score is the mean increase, over all pool rows, of the cosine to the most similar selected row; for the first row, it
            is its mean cosine. ``info["similarity"]`` is the mean cosine of
            a pool row to the most similar selected row.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> first = raysel.FacilityLocation(budget=2).select(rows)
        >>> set(first.ids) <= set(raysel.FacilityLocation(budget=4).select(rows).ids)
        True
        """
        return _select(
            self,
            pool,
            start,
            facility_location,
            texts=(
                "increased the similarity of the pool rows to the selected rows the most",
                "would increase the similarity of the pool rows to the selected rows less",
            ),
            score="mean increase of the cosine of a pool row to the most similar selected row",
            value="similarity",
            note="The mean cosine of a pool row to the most similar selected row is {:.4f}.",
        )


@dataclass(frozen=True)
class Herding:
    """Select rows whose distribution is close to the distribution of the pool (kernel herding).

    Each selected row is the one that brings the mean of the selected rows closest to the mean of the pool, in the feature
    space of a Gaussian kernel. The bandwidth of the kernel is the median distance between pool rows.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int
        Number of k-means clusters, which are used only if the pool has more than 50,000 rows.
    per_class : {"uniform", "pool"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` for the proportions of the pool, or a mapping from each
        class to its share. The rows of every class are selected separately. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    column : str
        Column with the vectors.
    seed : int
        Seed of k-means and of the random draws. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    If the pool has more than 50,000 rows, the selector selects k-means centroids, weighted by the number of their
    rows. A centroid that is selected n times stands for n of its rows: the row that is nearest to it, and n - 1 random
    rows.

    References
    ----------
    Chen, Welling & Smola 2010, Super-Samples from Kernel Herding, arXiv:1203.3472.

    Examples
    --------
    >>> chosen = raysel.Herding(budget=0.3).select(rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int = 1500
    per_class: _PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "herding"
    uses_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        _check(self)

    @checked_call
    def select(self, pool: Dataset, *, start: Selection | None = None) -> Selection:
        """Select rows whose distribution is close to the distribution of the pool.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget.

        Returns
        -------
        Selection
            Next to the usual columns: ``rank`` (int32, the order of selection, separate for each class with ``per_class``; -1 for
            rows of ``start``).
            The score is the mean kernel value between the row and the pool, less the sum of its kernel values with the t rows
            selected before it, divided by t + 1. ``info["discrepancy"]`` is the maximum mean discrepancy between the
            selected rows and the pool.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> first = raysel.Herding(budget=2).select(rows)
        >>> set(first.ids) <= set(raysel.Herding(budget=4).select(rows).ids)
        True
        """
        return _select(
            self,
            pool,
            start,
            herding,
            texts=(
                "brought the mean of the selected rows closest to the mean of the pool",
                "would bring the mean of the selected rows less close to the mean of the pool",
            ),
            score="mean kernel value with the pool, minus the mean kernel value with the rows selected before",
            value="discrepancy",
            note="The maximum mean discrepancy between the selected rows and the pool is {:.4g}.",
        )


def _check(selector: KCenter | FacilityLocation | Herding) -> None:
    object.__setattr__(selector, "budget", check_budget(selector.budget, in_bytes=True))
    check_fields(selector)
    check_per_class(selector.per_class)
    whole("clusters", selector.clusters, 1)


@dataclass(frozen=True)
class _Found:
    """Selected rows of one class: positions in the pool in the order of selection, their scores, and the value reached."""

    at: NDArray[np.int64]
    score: NDArray[np.float64]
    value: float


def _select(
    selector: KCenter | FacilityLocation | Herding,
    pool: Dataset,
    start: Selection | None,
    greedy: Greedy,
    *,
    texts: tuple[str, str],
    score: str,
    value: str,
    note: str,
) -> Selection:
    from raysel.gio.distributed import quantise
    from raysel.selector_inputs import make_selection, open_inputs

    inputs = open_inputs(selector, pool, start)
    codes, rows, kept = inputs.quotas.codes, inputs.quotas.rows, inputs.kept
    if inputs.pool.rows <= _EXACT:
        found = inputs.pool.on_sample(_of_rows, inputs.pool.rows, selector.seed, greedy, codes, rows, kept)
        values, sizes = [part.value for part in found], np.bincount(codes)[rows > 0]
        reached = max(values) if greedy is k_center else float(np.average(values, weights=sizes))
        about: dict[str, Any] = {value: reached, "notes": [note.format(reached)]}
    else:
        groups = quantise(inputs.pool, selector.clusters, selector.seed)
        found = _of_centroids(groups, hash_ids(inputs.ids, selector.seed), greedy, codes, rows, kept)
        used = len(groups.centroids)
        about = {
            "centroids": used,
            "notes": [
                f"The pool has more than {_EXACT:,} rows, so the selector compared {used:,} k-means centroids instead of all rows."
            ],
        }
    scores, rank = np.full(len(codes), np.nan), np.full(len(codes), -1, np.int32)
    for part in found:
        scores[part.at], rank[part.at] = part.score, np.arange(len(part.at))
    return make_selection(
        inputs,
        inputs.ids[rank >= 0],
        score=scores,
        reason=np.where(rank >= 0, 0, 1),
        texts=texts,
        info={"method": selector.title, **asdict(selector), "score": score, **about},
        columns={"rank": rank},
        all_scored=False,
    )


def _of_rows(
    vectors: np.ndarray, greedy: Greedy, codes: np.ndarray, rows: np.ndarray, kept: np.ndarray
) -> list[_Found]:
    found = []
    for code in np.flatnonzero(rows):
        here = np.flatnonzero(codes == code)
        weight, held = np.ones(len(here), np.int64), kept[here].astype(np.int64)
        picks = greedy(vectors[here], weight, held, int(rows[code]))
        found.append(_Found(here[picks.order], picks.score, picks.value))
    return found


def _of_centroids(
    groups: Quantised,
    draws: np.ndarray,
    greedy: Greedy,
    codes: np.ndarray,
    rows: np.ndarray,
    kept: np.ndarray,
) -> list[_Found]:
    found = []
    for code in np.flatnonzero(rows):
        here = np.flatnonzero(codes == code)
        used, cluster = np.unique(groups.cluster[here], return_inverse=True)
        size, held = np.bincount(cluster), np.bincount(cluster[kept[here]], minlength=len(used))
        picks = greedy(groups.centroids[used], size, held, int(rows[code]))
        free = ~kept[here]
        turn = nearest_first(cluster, groups.distance[here], draws[here], free)
        cluster = cluster[free]
        if greedy is herding:
            picked, score = turns(picks.order, cluster, turn), picks.score
        else:
            weight = np.ones(len(size)) if greedy is k_center else size
            picked = round_robin(picks.order, weight, held, cluster, turn, int(rows[code]))
            of = np.full(len(size), np.nan)
            of[picks.order] = picks.score
            score = of[cluster[picked]]
        found.append(_Found(here[free][picked], score, picks.value))
    return found
