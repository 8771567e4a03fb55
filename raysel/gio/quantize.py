"""Quantisation: centroids of a sample, the nearest centroid of every row, and the cut to a budget of rows.

``assign`` returns the same bits for a row, whatever rows it arrives with and whatever computes the matrix
product. The float32 product only rules out centroids that its worst-case rounding error cannot make nearest;
the others (one centroid for nearly every row) are measured in float64 from the difference of the vectors.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysel.core.hashing import hash_ids
from raysel.core.numbers import whole
from raysel.errors import DataError
from raysel.gio.distances import check_device, first_equal, vectors

Array = NDArray[Any]

_TWO_LEVELS_ABOVE = 256
_PER_CENTROID = 256  # rows per centroid; more do not move the centroids
_INIT_PER_CENTROID = 16
_ITERATIONS = 25
_REFINEMENTS = 3  # Lloyd iterations over all centroids of two levels
_BLOCK = 1 << 20  # scores at a time: 4 MB of float32, which stay in cache
_OVERFLOWS = 1e36  # a squared length whose float32 scores could overflow: use float64
_UNDERFLOWS = 1e-36  # absolute error of a score by underflow


def fit_centroids(sample: Any, clusters: int, seed: int = 0) -> NDArray[np.float32]:
    """Return centroids (K, d) float32 of a sample (n, d).

    k-means++ is followed by at most 25 Lloyd iterations of scikit-learn. The same sample and seed return the
    same centroids on any number of cores. Above 256 clusters there are two levels (the clusters of a coarse clustering are
    clustered again), which cost about a tenth, and three Lloyd iterations over all centroids. K < ``clusters`` if the
    sample has fewer distinct rows (each is then its own centroid) or a cluster ended empty.

    Raises
    ------
    DataError, ConfigError
        For a sample or a number of clusters that cannot be used.
    """
    rows = vectors(sample, "sample", single=True)
    clusters = whole("clusters", clusters, 1)
    distinct = np.flatnonzero(first_equal(rows) == np.arange(len(rows)))
    if len(distinct) <= clusters:
        return rows[distinct]
    return _fit(rows, clusters, whole("seed", seed))


def _fit(rows: Array, clusters: int, seed: int) -> NDArray[np.float32]:
    if clusters <= _TWO_LEVELS_ABOVE:
        return _lloyd(rows, clusters, seed)
    coarse = round(clusters**0.5)
    some = _some(rows, coarse * _PER_CENTROID, seed)
    cell, _ = assign(rows, _lloyd(some, coarse, seed))
    order = np.argsort(cell, kind="stable")
    size = np.bincount(cell)
    ends = np.cumsum(size)
    parts = [
        fit_centroids(rows[order[end - count : end]], share, seed + 1 + at)
        for at, (end, count, share) in enumerate(zip(ends, size, _shares(size, clusters), strict=True))
        if share
    ]
    return _refined(rows, np.concatenate(parts))


def _refined(rows: Array, centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of the rows that are nearest to each centroid, again and again; without empty clusters."""
    for _ in range(_REFINEMENTS):
        nearest, _ = assign(rows, centroids)
        size = np.bincount(nearest, minlength=len(centroids))
        sums = np.stack([np.bincount(nearest, column, len(centroids)) for column in rows.T], axis=1)
        centroids = (sums[size > 0] / size[size > 0, None]).astype(np.float32)
    return centroids


def _lloyd(rows: Array, clusters: int, seed: int) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans, kmeans_plusplus
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # scikit-learn adds its threads' partial sums in the order they finish: one thread, or other centroids each time
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        some = _some(rows, clusters * _INIT_PER_CENTROID, seed)
        centre = some.mean(axis=0, dtype=np.float64).astype(np.float32)  # squares of raw pixels lose digits
        init, _ = kmeans_plusplus(some - centre, clusters, random_state=seed % 2**32, n_local_trials=1)
        model = KMeans(clusters, init=init + centre, n_init=1, max_iter=_ITERATIONS)
        labels = model.fit(rows).labels_
    used: NDArray[np.float32] = model.cluster_centers_[np.unique(labels)].astype(np.float32, copy=False)
    return used


def _some(rows: Array, count: int, seed: int) -> Array:
    """Return at most ``count`` rows, evenly drawn, in their order."""
    if len(rows) <= count:
        return rows
    chosen = np.random.Generator(np.random.Philox(seed % 2**64)).choice(len(rows), count, replace=False)
    return rows[np.sort(chosen)]


def _shares(size: Array, total: int) -> list[int]:
    """Return ``total`` clusters over cells in proportion to their sizes, at least one per cell with rows."""
    share = (size > 0).astype(np.int64)
    exact = (total - share.sum()) * size / size.sum()
    share += np.minimum(np.floor(exact).astype(np.int64), size - share)
    for cell in np.argsort(np.floor(exact) - exact, kind="stable"):
        if share.sum() >= total:
            break
        share[cell] += share[cell] < size[cell]
    return [int(count) for count in share]


def assign(
    vectors_: Any, centroids: Any, ids: Any = None, *, device: str | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the nearest centroid of every row (the lowest index of equals) and its distance.

    A row's result depends only on the row and the centroids: not on the other rows, the block, the BLAS or
    the device.

    Parameters
    ----------
    vectors_ : array, shape (n, d)
        Rows, read as float32.
    centroids : array, shape (K, d)
        Centroids, read as float32.
    ids : array, shape (n,), optional
        What errors call the rows.
    device : str, optional
        Where to compute.

    Returns
    -------
    cluster : array of int32, shape (n,)
        The nearest centroid.
    distance : array of float32, shape (n,)
        The distance to it.

    Raises
    ------
    DataError
        For arrays that cannot be used.
    """
    centres = vectors(centroids, "centroids", single=True)
    rows = vectors(vectors_, "vectors", centres.shape[1], ids=ids, single=True)
    check_device(device)
    nearest = np.empty(len(rows), np.int32)
    distance = np.empty(len(rows), np.float32)
    scores = _Scores(centres, device)
    step = scores.rows_at_a_time
    exact_centres = centres.astype(np.float64)
    for at in range(0, len(rows), step):
        block = rows[at : at + step]
        exact = block.astype(np.float64)
        best, row, candidate = scores.candidates(block)
        if len(row):
            squared = np.empty(len(row))
            for a in range(0, len(row), step):
                difference = exact[row[a : a + step]] - exact_centres[candidate[a : a + step]]
                squared[a : a + step] = (difference * difference).sum(axis=1)
            order = np.lexsort((candidate, squared, row))
            first = order[np.diff(row[order], prepend=-1) > 0]
            best[row[first]] = candidate[first]
        difference = exact - exact_centres[best]
        nearest[at : at + step] = best
        distance[at : at + step] = np.sqrt((difference * difference).sum(axis=1))
    return nearest, distance


class _Scores:
    """``|c|^2 - 2 x.c`` of a block of rows for every centroid, with a bound on the rounding error."""

    def __init__(self, centres: Array, device: str | None) -> None:
        self._device = None if device == "cpu" else device
        self._middle = centres.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._centres = centres.astype(np.float64) - self._middle
        self._squares = (self._centres**2).sum(axis=1)
        self._double = not self._squares.max() < _OVERFLOWS
        if self._device is not None:
            import torch

            self._double |= torch.get_float32_matmul_precision() != "highest"  # TF32 would break the bound
        self._operands: dict[Any, tuple[Array, float]] = {}
        self._moved: dict[Any, Any] = {}
        self._buffer: Array | None = None
        self.rows_at_a_time = max(64, (_BLOCK if self._device is None else _BLOCK << 6) // len(centres))

    def candidates(self, rows: Array) -> tuple[Array, Array, Array]:
        """Return every row's best centroid, and (row, centroid) pairs of rows with several possible ones."""
        moved = rows - self._middle
        with np.errstate(over="ignore"):
            squares = (moved * moved).sum(axis=1)
        if self._double or not squares.max() < _OVERFLOWS:
            moved = rows.astype(np.float64) - self._middle
            squares = (moved * moved).sum(axis=1)
        matrix, unit = self._operand(moved.dtype.type)
        extended = np.ones((len(rows), matrix.shape[0]), moved.dtype)
        extended[:, :-1] = moved
        if self._device is not None:
            return self._on_device(extended, matrix, squares, unit)
        scores = np.matmul(extended, matrix, out=self._output(len(rows), moved.dtype))
        index = np.arange(len(rows))
        best = scores.argmin(axis=1)
        # every score is optimistic by its error bound; this is the best one's, made pessimistic
        limit = scores[index, best] + self._slack(squares, best, unit)
        scores[index, best] = np.inf
        close = np.flatnonzero(scores.min(axis=1) <= limit)
        row, candidate = np.nonzero(scores[close] <= limit[close, None])
        return best, np.concatenate([close, close[row]]), np.concatenate([best[close], candidate])

    def _slack(self, squares: Array, best: Array, unit: float) -> Array:
        return (2 * unit * (squares.astype(np.float64) + self._squares[best]) + _UNDERFLOWS).astype(
            squares.dtype
        )

    def _operand(self, dtype: Any) -> tuple[Array, float]:
        """(-2 c, |c|^2 less its share of the error bound) as columns, and the bound per unit of |x|^2 + |c|^2."""
        if dtype not in self._operands:
            # a sum of d + 1 products, and the roundings of x, c and |c|^2; 2|x||c| <= |x|^2 + |c|^2
            unit = (self._centres.shape[1] + 8) * float(np.finfo(dtype).eps)
            columns = np.concatenate([-2 * self._centres.T, self._squares[None] * (1 - unit)])
            self._operands[dtype] = np.ascontiguousarray(columns.astype(dtype)), unit
        return self._operands[dtype]

    def _output(self, rows: int, dtype: Any) -> Array:
        if self._buffer is None or self._buffer.dtype != dtype or len(self._buffer) < rows:
            self._buffer = np.empty((rows, len(self._centres)), dtype)
        return self._buffer[:rows]

    def _on_device(
        self, rows: Array, matrix: Array, squares: Array, unit: float
    ) -> tuple[Array, Array, Array]:
        """Do the same three steps in torch."""
        import torch

        if matrix.dtype not in self._moved:
            self._moved[matrix.dtype] = torch.from_numpy(matrix).to(self._device)
        scores = torch.from_numpy(rows).to(self._device) @ self._moved[matrix.dtype]
        lowest, index = scores.min(dim=1)
        best = index.cpu().numpy()
        limit = lowest + torch.from_numpy(self._slack(squares, best, unit)).to(self._device)
        scores.scatter_(1, index[:, None], float("inf"))
        on_device = torch.nonzero(scores.amin(dim=1) <= limit)[:, 0]
        row, candidate = torch.nonzero(scores[on_device] <= limit[on_device, None], as_tuple=True)
        close = on_device.cpu().numpy()
        pairs = np.concatenate([close, close[row.cpu().numpy()]])
        return best, pairs, np.concatenate([best[close], candidate.cpu().numpy()])


def cut_to_budget(order: Any, cluster: Any, distance: Any, ids: Any, budget: int) -> NDArray[np.int64]:
    """Return the positions of the rows to take: clusters in order until ``budget`` rows, the last one cut.

    The cut keeps the rows nearest to the centroid (ties: the lower id). A smaller budget takes a subset of a
    larger one's rows. If the picked clusters have fewer rows than ``budget``, all of them are returned.

    Parameters
    ----------
    order : array of int
        Picked clusters, best first.
    cluster, distance, ids : array, shape (n,)
        Each row's cluster, its distance to the centroid and its integer id.
    budget : int
        Rows to take.

    Returns
    -------
    array of int64
        Positions, ascending.

    Raises
    ------
    DataError, ConfigError
        For arrays or a budget that cannot be used.
    """
    order, cluster, distance, ids = _checked(order, cluster, distance, ids, budget)
    if len(order) == 0 or len(cluster) == 0:
        return np.empty(0, np.int64)
    place = np.full(max(int(order.max()), int(cluster.max())) + 1, len(order))
    place[order] = np.arange(len(order))
    return _first(budget, place[cluster] < len(order), ids, distance, place[cluster])


def draw_to_budget(
    order: Any,
    support: int,
    share: Any,
    cluster: Any,
    ids: Any,
    budget: int,
    seed: int = 0,
    before: Any = None,
) -> NDArray[np.int64]:
    """Return the positions of rows drawn from the first ``support`` clusters of ``order``, of each by its ``share``.

    When the support is used up, the other clusters of ``order`` follow, one after another. Inside a cluster
    rows are taken by the lowest hash of (seed, id). A smaller budget takes a subset of a larger one's rows.

    Parameters
    ----------
    order : array of int
        Picked clusters, best first.
    support : int
        Number of clusters that rows are drawn from.
    share : array of float, shape (K,)
        How much of the result each cluster should make up. A cluster without further rows leaves its part to
        the others, and one with share 0 comes after them.
    cluster, ids : array, shape (n,)
        Each row's cluster and its integer id.
    budget : int
        Rows to take.
    seed : int
        Seed of the draw.
    before : array of int, shape (K,), optional
        Rows that are there already, which count in the cluster's part.

    Returns
    -------
    array of int64
        Positions, ascending.

    Raises
    ------
    DataError, ConfigError
        For arrays or a budget that cannot be used.
    """
    draw = hash_ids(np.asarray(ids), seed)
    order, cluster, draw, ids = _checked(order, cluster, draw, ids, budget)
    if len(order) == 0 or len(cluster) == 0:
        return np.empty(0, np.int64)
    share = np.asarray(share, np.float64)
    size = np.bincount(cluster, minlength=len(share))
    rank = np.empty(len(cluster))
    rank[np.lexsort((ids, draw, cluster))] = np.arange(len(cluster)) - np.repeat(np.cumsum(size) - size, size)
    if before is not None:
        rank += np.asarray(before)[cluster]
    place = np.full(len(share), len(order))
    place[order] = np.arange(len(order))
    later = np.where(place < support, 0, place)[cluster]
    # turn t of a cluster with share s comes at (t + 1/2) / s: any number of first turns is in proportion
    with np.errstate(divide="ignore"):
        turn = np.where(later > 0, 0.0, (rank + 0.5) / share[cluster])
    return _first(budget, later < len(order), ids, draw, turn, later)


def _first(budget: int, allowed: Array, *keys: Array) -> NDArray[np.int64]:
    """Return the allowed positions that come first by the keys (the last key counts most), ascending."""
    there = np.flatnonzero(allowed)
    return np.sort(there[np.lexsort([key[there] for key in keys])[:budget]])


def _checked(order: Any, cluster: Any, key: Any, ids: Any, budget: int) -> tuple[Array, Array, Array, Array]:
    order, cluster, key, ids = (np.asarray(each) for each in (order, cluster, key, ids))
    if not (cluster.ndim == 1 and cluster.shape == key.shape == ids.shape):
        raise DataError(
            f"cluster, distance and ids must be 1-D and of one length, not {cluster.shape}, {key.shape}, {ids.shape}."
        )
    whole("budget", budget, 1)
    if len(order) and (len(np.unique(order)) != len(order) or order.min() < 0):
        raise DataError("order must hold each picked cluster once, by an index of 0 or more.")
    if len(cluster) and cluster.min() < 0:
        raise DataError("cluster must hold indices of 0 or more.")
    return order, cluster, key, ids
