"""GIO over Ray Datasets.

Vectors stay on the cluster. Centroids, counts, ids and a sample of the target go to the driver.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset
from ray.util import ActorPool

from raysel.cluster.blocks import map_blocks
from raysel.cluster.errors import name_losses, unwrap_errors
from raysel.core.budgets import check_budget
from raysel.core.calls import checked_call
from raysel.core.parameters import check_fields
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID
from raysel.data.vector_blocks import VectorBlocks
from raysel.data.vectors import EMBEDDING, as_matrix
from raysel.errors import ConfigError
from raysel.gio.gradient import gradient_select
from raysel.gio.greedy import Picks, Stop, exact_select
from raysel.gio.kl import Estimator, check_rank
from raysel.gio.quantize import assign, cut_to_budget, draw_to_budget, fit_centroids
from raysel.quotas import PerClass, check_per_class
from raysel.selection import Selection, coded_text
from raysel.selector_inputs import (
    AVOIDED,
    TARGET_ROWS,
    Inputs,
    nearer_to_avoid,
    open_inputs,
    warn_of_empty_clusters,
)

_POINTS_PER_CENTROID = 256  # k-means learns from so many sampled rows per centroid, as FAISS does by default
_SAMPLE_ROWS, _SAMPLE_NUMBERS = 1 << 20, 1 << 27  # and from no more than these: 512 MB
_ARRAYS = "raysel.gio.exact_select"  # takes arrays


@dataclass(frozen=True)
class GIO:
    """Select the pool rows that lower the Kullback-Leibler divergence (KL) from the target the most.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int, optional
        Number of k-means clusters into which the pool is divided. The selection picks one cluster after another, always
        the one that lowers the KL the most. With None (null in a workflow), or with at least as many clusters as rows,
        the selection picks single rows instead, and all vectors are sent to the driver.
    estimator : {"nearest", "nearest_mean", "average"}
        How the KL is estimated from the distances of each target row to its nearest neighbours: ``nearest`` uses the
        nearest neighbour, ``nearest_mean`` several of them, and ``average``, as published, all of them. See
        `raysel.gio.kl`.
    k : int, optional
        Which neighbour the estimator uses: 1 for the nearest, 2 for the second nearest, and so on. The default is 1 for
        ``nearest``, and 5 otherwise.
    solver : {"exact", "gradient"}
        How the next cluster is found: ``exact`` finds the one that lowers the KL the most, and ``gradient`` follows the
        published gradient descent, which needs ``estimator: average``.
    init : {"mean", "jump", "prev_opt"}
        Only for ``solver: gradient``. Where each descent starts: at the mean of the target (``mean``), at a random target row
        (``jump``), or where the last descent ended (``prev_opt``).
    stop : Stop, optional
        Rules that may stop the selection before the budget is reached.
    within : {"random", "nearest"}
        How rows are chosen from the picked clusters. With ``random``, only the clusters that were picked
        before the KL first rises are used, and the other picked clusters only if these have too few rows. Random rows are
        drawn from each of them, in proportion to the number of its target rows. With ``nearest``, as published, complete clusters are taken in the order in which they were
        picked. Of the last cluster, only the rows nearest to its centroid are taken.
    column : str
        Column with the vectors.
    seed : int
        Seed of all random numbers. In a workflow, the default is the seed of the workflow; in Python, it is 0.
    per_class : {"uniform", "pool", "target"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` or ``target`` for the proportions of the
        pool or of the target, or a mapping from each class to its share. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.

    Raises
    ------
    ConfigError
        For a parameter that is out of range or in conflict with another.

    References
    ----------
    Everaert & Potts, ICLR 2024, arXiv:2306.11670. The default estimator is the k-nearest-neighbour estimator
    of Wang, Kulkarni & Verdú (2009) in place of the published average over all neighbour ranks, which cannot
    rank selections (see `raysel.gio.kl`).

    Examples
    --------
    >>> chosen = raysel.GIO(budget=0.3).select(rows, rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int | None = 1500
    estimator: Estimator = "nearest"
    k: int | None = None
    solver: Literal["exact", "gradient"] = "exact"
    init: Literal["mean", "jump", "prev_opt"] = "mean"
    stop: Stop | None = None
    within: Literal["random", "nearest"] = "random"
    column: str = EMBEDDING
    seed: int = 0
    per_class: PerClass | None = None
    label: str | None = None
    title: ClassVar[str] = "GIO"
    uses_vectors: ClassVar[bool] = True
    uses_target: ClassVar[bool] = True
    uses_avoid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        object.__setattr__(self, "budget", check_budget(self.budget, in_bytes=True))
        check_fields(self)
        check_per_class(self.per_class)
        if self.clusters is not None and self.clusters < 1:
            raise ConfigError(
                f"clusters: {self.clusters} is not a number of clusters; give at least 1, or None to select single rows."
            )
        check_rank(self.estimator, self.k, 2**62)
        if self.solver == "gradient" and self.estimator != "average":
            raise ConfigError(
                f"solver: 'gradient' works only with the published estimator; give estimator='average', not {self.estimator!r}."
            )
        if self.solver == "exact" and self.stop is not None and self.stop.max_resets is not None:
            raise ConfigError(
                "stop.max_resets can only be used with solver='gradient'; remove it or choose this solver."
            )

    @checked_call
    def select(
        self, pool: Dataset, target: Dataset, *, avoid: Dataset | None = None, start: Selection | None = None
    ) -> Selection:
        """Select the pool rows that lower the KL divergence from the target the most.

        The result depends only on the rows, their ids and the seed, not on blocks or nodes.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        target : ray.data.Dataset
            Sample of the distribution to match. Labels are not used.
        avoid : ray.data.Dataset, optional
            Rows that must not be learned. A pool row is excluded if its nearest row to avoid is at least as close as its
            nearest target row.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget, and
            the centroids of their clusters count as picked.

        Returns
        -------
        Selection
            Next to the usual columns: ``cluster`` (int32), ``rank`` (int32, the order of the row's cluster,
            -1 for rows of ``start``) and ``distance`` (float32, to the centroid). ``info["curve"]`` holds the
            KL and the number of rows after each pick.

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget or ``k`` that the rows do not allow, and for arguments that are not of these types.

        Examples
        --------
        >>> first = raysel.GIO(budget=2).select(rows, rows)
        >>> more = raysel.GIO(budget=4).select(rows, rows, start=first)
        >>> set(first.ids) <= set(more.ids)
        True
        """
        check_dataset(pool, "pool", _ARRAYS)
        check_dataset(target, "target", _ARRAYS)
        limit = 1.0 if self.stop is None else self.stop.data_size or 1.0
        inputs = open_inputs(self, pool, start, target, avoid=avoid, avoided=nearer_to_avoid, limit=limit)
        _, aims = inputs.target.sample(TARGET_ROWS, self.seed)
        if len(aims) > 1:
            check_rank(self.estimator, self.k, len(aims))
        quantised = quantise(inputs.pool, self.clusters, self.seed)
        picks = self._pick(quantised, inputs, aims)
        new, notes = self._rows(quantised, inputs, picks, aims)
        return self._selection(quantised, inputs, picks, new, [*inputs.notes, *notes])

    def _pick(self, pool: Quantised, inputs: Inputs, target: np.ndarray) -> Picks:
        """Pick clusters that bring enough rows; clusters of rows in ``start`` count as chosen."""
        kept, sizes = inputs.kept, np.bincount(pool.cluster[inputs.free], minlength=len(pool.centroids))
        # with quotas, any cluster may be needed for the rows of a class
        count = int(inputs.quotas.rows.sum()) if self.per_class is None else len(inputs.free)
        left = np.flatnonzero(sizes)
        start = pool.centroids[np.unique(pool.cluster[kept])] if kept.any() else None
        stop = None if self.stop is None else replace(self.stop, data_size=None)  # it is in the count
        rest: dict[str, Any] = {
            "k": self.k,
            "stop": stop,
            "sizes": sizes[left],
            "onward": self._draws(pool),
        }
        if self.solver == "exact":
            found = exact_select(pool.centroids[left], target, count, self.estimator, start=start, **rest)
        else:
            found = gradient_select(
                pool.centroids[left], target, count, start, self.init, seed=self.seed, **rest
            )
        return Picks(left[found.indices], found.kl, found.kl_start, found.ended)

    def _draws(self, pool: Quantised) -> bool:
        return self.within == "random" and len(pool.centroids) < len(pool.ids)

    def _rows(
        self, pool: Quantised, inputs: Inputs, picks: Picks, target: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """Return the positions of the new rows from the picked clusters, and what the report says of them."""
        kept = inputs.kept
        order = picks.indices[np.sort(np.unique(picks.indices, return_index=True)[1])]  # resets pick again
        if not self._draws(pool):

            def cut(rows: np.ndarray, count: int) -> np.ndarray:
                return rows[
                    cut_to_budget(order, pool.cluster[rows], pool.distance[rows], pool.ids[rows], count)
                ]

            return inputs.quotas.take(cut, inputs.free), []
        rises = np.flatnonzero(np.diff(picks.kl, prepend=picks.kl_start) > 0)
        held = np.unique(pool.cluster[kept])
        support = np.union1d(picks.indices[: rises[0]] if len(rises) else order, held)
        order = np.concatenate([support, order[~np.isin(order, support)]])
        share = np.bincount(assign(target, pool.centroids)[0], minlength=len(pool.centroids))

        def draw(rows: np.ndarray, count: int) -> np.ndarray:
            same = kept & np.isin(inputs.quotas.codes, inputs.quotas.codes[rows[:1]])
            before = np.bincount(pool.cluster[same], minlength=len(pool.centroids))
            cluster, ids = pool.cluster[rows], pool.ids[rows]
            return rows[draw_to_budget(order, len(support), share, cluster, ids, count, self.seed, before)]

        new = inputs.quotas.take(draw, inputs.free)
        return new, warn_of_empty_clusters(share[pool.cluster[new]] == 0, len(share), inputs.target.rows)

    def _selection(
        self, pool: Quantised, inputs: Inputs, picks: Picks, new: np.ndarray, notes: list[str]
    ) -> Selection:
        kept, start = inputs.kept, inputs.start
        rank_of = np.full(len(pool.centroids), -1, np.int64)
        rank_of[picks.indices[::-1]] = np.arange(len(picks))[::-1]  # the first time, where picked again
        rank = rank_of[pool.cluster]
        rank[kept] = -1
        taken = kept.copy()
        taken[new] = True
        out, chosen = np.flatnonzero(~taken), np.flatnonzero(taken)

        unreached = "its cluster was not reached within the budget"
        if picks.ended == "stop":
            unreached = "its cluster was not reached before a stop rule ended the selection"
        left_out = "only a part of its cluster was selected: the rows nearest to the centroid"
        reached = rank[out] >= 0
        if self._draws(pool):
            left_out = "its cluster was selected, but the row was not drawn"
            reached |= np.isin(pool.cluster[out], pool.cluster[kept])
        dropped = pa.table(
            {
                ID: pa.array(pool.ids[out]),
                "cluster": pa.array(pool.cluster[out]),
                "reason": coded_text(
                    np.where(inputs.avoided[out], 2, reached), [unreached, left_out, AVOIDED]
                ),
            }
        )
        texts = [
            *(f"cluster {c}, pick {r + 1}, KL {kl:.4g} after it" for r, (c, kl) in enumerate(zip(picks.indices, picks.kl, strict=True))),
            "in the selection that was extended",
            "its cluster is in the selection that was extended",
        ]  # fmt: skip
        reason = np.where(rank >= 0, rank, np.where(kept, len(picks), len(picks) + 1))
        weight = np.ones(len(pool.ids), np.float32)
        if start is not None:
            weight[kept] = start.weights  # both ascend in their ids
        brought = np.bincount(rank[new] + 1, minlength=len(picks) + 1)
        info: dict[str, Any] = {
            "method": "GIO",
            **asdict(self),
            "pool_rows": len(pool.ids),
            "centroids": len(pool.centroids),
            "start_rows": int(kept.sum()),
            "avoided": int(inputs.avoided.sum()),
            "notes": notes,
            "ended": picks.ended,
            "score": "KL(target || chosen centroids) in nats after the row's cluster joined",
            "curve": {
                "rows": (kept.sum() + np.cumsum(brought)[1:]).tolist(),
                "kl": picks.kl.tolist(),
                "cluster": picks.indices.tolist(),
            },
        }
        return Selection.of(
            pool.ids[chosen],
            score=np.append(picks.kl, picks.kl_start)[rank[chosen]],  # the last one is that of rank -1
            weight=weight[chosen],
            reason=coded_text(reason[chosen], texts),
            dropped=dropped,
            info=info,
            columns={
                "cluster": pool.cluster[chosen],
                "rank": rank[chosen].astype(np.int32),
                "distance": pool.distance[chosen],
            },
            pool=inputs.data,
        )


@dataclass(frozen=True)
class Quantised:
    """Ids, ascending; each row's cluster (int32) and distance; the centroids (K, d), none of them empty."""

    ids: np.ndarray
    cluster: np.ndarray
    distance: np.ndarray
    centroids: np.ndarray


def quantise(source: VectorBlocks, clusters: int | None, seed: int) -> Quantised:
    """Return the clusters of all rows: k-means on a sample, then the nearest centroid of every row.

    With None, or with at least as many clusters as rows, every row is its own centroid, and all vectors go to the driver.
    """
    if clusters is None or clusters >= source.rows:
        ids, vectors = source.sample(source.rows, seed)
        return Quantised(ids, np.arange(len(ids), dtype=np.int32), np.zeros(len(ids), np.float32), vectors)
    rows = min(clusters * _POINTS_PER_CENTROID, _SAMPLE_ROWS, _SAMPLE_NUMBERS // source.dimension)
    rows = max(rows, clusters)
    centroids = source.on_sample(fit_centroids, rows, seed, clusters, seed)
    parts = _assign(source, centroids)
    ids = np.concatenate([part[0] for part in parts])
    order = np.argsort(ids, kind="stable")
    cluster = np.concatenate([part[1] for part in parts])[order]
    distance = np.concatenate([part[2] for part in parts])[order]
    used, cluster = np.unique(cluster, return_inverse=True)  # a centroid without a row is nothing to pick
    return Quantised(ids[order], cluster.astype(np.int32), distance, centroids[used])


def _assign(source: VectorBlocks, centroids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return ids, cluster and distance of every row, block by block: on free GPUs, else in tasks on CPUs."""
    shared = ray.put(centroids)
    gpus = min(int(ray.available_resources().get("GPU", 0)), len(source.blocks))
    if not gpus:
        return map_blocks(_nearest, source.blocks, source.column, shared)
    actors = [ray.remote(num_gpus=1)(_OnDevice).remote(source.column, shared) for _ in range(gpus)]
    try:
        with name_losses(), unwrap_errors():
            return list(
                ActorPool(actors).map(lambda actor, block: actor.nearest.remote(block), source.blocks)
            )
    finally:
        for actor in actors:
            ray.kill(actor)


class _OnDevice:
    """An actor that holds a GPU during one assignment."""

    def __init__(self, column: str, centroids: np.ndarray) -> None:
        import torch

        self._column, self._centroids = column, centroids
        self._device = "cuda" if torch.cuda.is_available() else None

    def __repr__(self) -> str:  # the name of the actor on the dashboard
        return "nearest clusters on a GPU"

    def nearest(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _nearest(table, self._column, self._centroids, self._device)


def _nearest(
    table: pa.Table, column: str, centroids: np.ndarray, device: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    cluster, distance = assign(as_matrix(table[column], column, ids), centroids, ids, device=device)
    return ids, cluster, distance
