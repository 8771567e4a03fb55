"""GIO over Ray Datasets: vectors stay on the cluster; only a sample, centroids, counts and ids travel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.data.blocks import VectorBlocks, map_blocks, vector_blocks
from raysel.data.rowid import ID, budget_rows
from raysel.data.vectors import EMBEDDING, as_matrix
from raysel.errors import ConfigError, DataError
from raysel.gio.greedy import greedy
from raysel.gio.quantize import assign, cut_to_budget, fit_centroids
from raysel.selection import Selection, coded_text

_POINTS_PER_CENTROID = 256  # k-means learns from so many sampled rows per centroid, as FAISS does by default
_TARGET_ROWS = (
    20_000  # target rows the KL is estimated on; more are sampled, which bounds the distance matrix
)


@dataclass(frozen=True)
class GIO:
    """Gradient information optimization: choose the pool rows that bring KL(target || chosen) down fastest.

    budget: rows to keep; a float is a share of the pool, an int a count. clusters: k-means centroids the pool is
    quantised to (None, or no fewer than there are rows: every row stands for itself). Greedy selection over
    centroids with the nearest-neighbour estimator is exact; then each chosen centroid brings its rows, the
    last one cut to the budget, farthest rows first. column: the vectors. seed: of sampling and k-means.

    Source: Everaert & Potts, ICLR 2024 (arXiv 2306.11670), with the k-NN estimator of Wang, Kulkarni &
    Verdú (2009) in place of the published average over all neighbour ranks (see docs/methods.md).
    """

    budget: float | int
    clusters: int | None = 1500
    column: str = EMBEDDING
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clusters is not None and (isinstance(self.clusters, bool) or self.clusters < 1):
            raise ConfigError(
                f"clusters: {self.clusters!r}; give at least 1, or None for every row on its own."
            )
        budget_rows(self.budget, 2**62)  # says at once what can be said without the pool

    def select(self, pool: Dataset, target: Dataset) -> Selection:
        """The chosen rows; ``info["curve"]`` holds the KL and the rows after each pick.

        The result hangs on the rows, their ids and the seed alone, not on blocks or nodes. Columns beside the
        usual: ``cluster`` (int32), ``rank`` (int32, order of its cluster), ``distance`` (float32, to the
        centroid). DataError for vectors that cannot be used, ConfigError for a budget over the pool's rows.
        """
        source = vector_blocks(pool, self.column, "pool")
        aim = vector_blocks(target, self.column, "target")
        if source.dimension != aim.dimension:
            raise DataError(
                f"The pool's vectors have {source.dimension} dimensions, the target's {aim.dimension}; "
                "embed both with the same embedder."
            )
        count = budget_rows(self.budget, source.rows)
        ids, cluster, distance, centroids = self._quantise(source)
        _, aims = aim.sample(_TARGET_ROWS, self.seed)
        sizes = np.bincount(cluster, minlength=len(centroids))
        order, kls, rows = [], [], []
        for index, kl in greedy(centroids, aims):
            order.append(index)
            kls.append(kl)
            rows.append(min(count, int(sizes[order].sum())))
            if rows[-1] >= count:
                break
        picked = np.array(order, np.int64)
        chosen = cut_to_budget(picked, cluster, distance, ids, count)
        return self._selection(source.rows, ids, cluster, distance, picked, np.array(kls), rows, chosen)

    def _quantise(self, source: VectorBlocks) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ids ascending, and each row's cluster and distance to its centroid; the centroids (K, d), none empty."""
        if self.clusters is None or self.clusters >= source.rows:
            ids, vectors = source.sample(source.rows, self.seed)
            return ids, np.arange(len(ids), dtype=np.int32), np.zeros(len(ids), np.float32), vectors
        _, sample = source.sample(self.clusters * _POINTS_PER_CENTROID, self.seed)
        centroids = fit_centroids(sample, self.clusters, self.seed)
        parts = map_blocks(_assign, source.blocks, self.column, ray.put(centroids))
        ids = np.concatenate([part[0] for part in parts])
        order = np.argsort(ids, kind="stable")
        cluster = np.concatenate([part[1] for part in parts])[order]
        distance = np.concatenate([part[2] for part in parts])[order]
        used, cluster = np.unique(cluster, return_inverse=True)  # a centroid without a row is nothing to pick
        return ids[order], cluster.astype(np.int32), distance, centroids[used]

    def _selection(
        self,
        pool_rows: int,
        ids: np.ndarray,
        cluster: np.ndarray,
        distance: np.ndarray,
        picked: np.ndarray,
        kls: np.ndarray,
        rows: list[int],
        chosen: np.ndarray,
    ) -> Selection:
        rank_of = np.full(int(cluster.max()) + 1, -1, np.int64)
        rank_of[picked] = np.arange(len(picked))
        rank = rank_of[cluster]
        left = np.ones(len(ids), bool)
        left[chosen] = False
        left_out = np.flatnonzero(left)
        why = [
            "its cluster was not reached within the budget",
            "cut from the last cluster: far from its centroid",
        ]
        dropped = pa.table(
            {
                ID: pa.array(ids[left_out]),
                "cluster": pa.array(cluster[left_out]),
                "reason": coded_text((rank[left_out] >= 0).astype(np.int32), why),
            }
        )
        texts = [
            f"cluster {c}, pick {r + 1}, KL {kl:.6g} after it"
            for r, (c, kl) in enumerate(zip(picked, kls, strict=True))
        ]
        info: dict[str, Any] = {
            "method": "GIO",
            **asdict(self),
            "estimator": "nearest",
            "solver": "exact",
            "pool_rows": pool_rows,
            "score": "KL(target || chosen centroids) in nats after the row's cluster joined",
            "curve": {"rows": rows, "kl": kls.tolist(), "cluster": picked.tolist()},
        }
        return Selection.of(
            ids[chosen],
            score=kls[rank[chosen]],
            reason=coded_text(rank[chosen], texts),
            dropped=dropped,
            info=info,
            columns={
                "cluster": cluster[chosen],
                "rank": rank[chosen].astype(np.int32),
                "distance": distance[chosen],
            },
        )


def _assign(table: pa.Table, column: str, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    cluster, distance = assign(as_matrix(table[column], column, ids), centroids)
    return ids, cluster, distance
