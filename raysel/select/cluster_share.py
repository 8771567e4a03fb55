"""Select rows of every cluster in proportion to the target rows in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysel.core.budgets import check_budget
from raysel.core.calls import checked_call
from raysel.core.numbers import whole
from raysel.core.parameters import check_fields
from raysel.data.vectors import EMBEDDING
from raysel.quotas import PerClass, check_per_class
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class ClusterShare:
    """Divide the pool into clusters, and draw random rows from each in proportion to its target rows.

    If a cluster has too few rows, more rows are drawn from the other clusters. Rows of clusters without target rows are
    drawn only if all other clusters have too few rows.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int
        Number of k-means clusters into which the pool is divided.
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
        Seed of all random numbers. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Examples
    --------
    >>> chosen = raysel.ClusterShare(budget=0.3).select(rows, rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int = 1500
    per_class: PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "cluster share"
    uses_vectors: ClassVar[bool] = True
    uses_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        object.__setattr__(self, "budget", check_budget(self.budget, in_bytes=True))
        check_fields(self)
        check_per_class(self.per_class)
        whole("clusters", self.clusters, 1)

    @checked_call
    def select(self, pool: Dataset, target: Dataset, *, start: Selection | None = None) -> Selection:
        """Select rows of every cluster in proportion to the target rows in it.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        target : ray.data.Dataset
            Sample of the distribution to match. Labels are not used.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count in the parts of their clusters.

        Returns
        -------
        Selection
            Next to the usual columns: ``cluster`` (int32). The score is the share of the target rows in the row's cluster.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> first = raysel.ClusterShare(budget=2).select(rows, rows)
        >>> set(first.ids) <= set(raysel.ClusterShare(budget=4).select(rows, rows).ids)
        True
        """
        from raysel.gio.distributed import quantise
        from raysel.gio.quantize import assign, draw_to_budget
        from raysel.selector_inputs import TARGET_ROWS, make_selection, open_inputs, warn_of_empty_clusters

        inputs = open_inputs(self, pool, start, target)
        groups = quantise(inputs.pool, self.clusters, self.seed)
        _, aims = inputs.target.sample(TARGET_ROWS, self.seed)
        share = np.bincount(assign(aims, groups.centroids)[0], minlength=len(groups.centroids))
        kept = inputs.kept
        every = np.arange(len(share))

        def draw(rows: np.ndarray, count: int) -> np.ndarray:
            same = kept & np.isin(inputs.quotas.codes, inputs.quotas.codes[rows[:1]])
            before = np.bincount(groups.cluster[same], minlength=len(share))
            cluster, ids = groups.cluster[rows], inputs.ids[rows]
            return rows[draw_to_budget(every, len(share), share, cluster, ids, count, self.seed, before)]

        new = inputs.quotas.take(draw, inputs.free)
        empty = share[groups.cluster] == 0
        reason = np.where(empty, 3, 2)
        reason[new] = np.where(empty[new], 1, 0)
        return make_selection(
            inputs,
            inputs.ids[new],
            score=(share / len(aims))[groups.cluster],
            reason=reason,
            texts=[
                "drawn in proportion to the target rows in its cluster",
                "drawn from a cluster without target rows, because the others had too few rows",
                "its cluster has target rows, but the row was not drawn",
                "its cluster has no target rows",
            ],
            info={
                "method": "cluster share",
                **asdict(self),
                "centroids": len(groups.centroids),
                "score": "share of the target rows in the row's cluster",
                "notes": warn_of_empty_clusters(empty[new], len(share), inputs.target.rows),
            },
            columns={"cluster": groups.cluster},
        )
