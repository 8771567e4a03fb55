"""Greedy selection of points that cover or represent all points. Without Ray.

A point is a row, or the centroid of several rows. Of equal points the lower position is selected first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysel.core.arrays import unit
from raysel.select.matches import ranks

Array = NDArray[Any]

# Products of numbers on this grid are exact in float32, so that sums of them are equal on every machine and in any order.
_GRID = 2.0**-11
_KERNEL_GRID = 2.0**-20
_NONE = -2.0  # similarity to the most similar selected point where none is selected
_NUMBERS = 1 << 24  # at a time: 64 MB of float32
_KERNEL_KEPT = 1 << 26  # values of the kernel that are kept in memory: 256 MB
_DISTANCES = 1000  # points between which the median distance is taken
_OVERFLOWS = 1e36  # a squared length whose float32 products could overflow


@dataclass(frozen=True)
class Picks:
    """Selected points.

    Attributes
    ----------
    order : array of int64
        Positions of the points, in the order of selection. Only `herding` selects a point again, which stands for a further row.
    score : array of float64
        What each selection was decided by.
    value : float
        How well the selected points represent all points; the unit depends on the function.
    """

    order: NDArray[np.int64]
    score: NDArray[np.float64]
    value: float


class Greedy(Protocol):
    """`k_center`, `facility_location` or `herding`."""

    def __call__(
        self, points: Array, weight: NDArray[np.int64], held: NDArray[np.int64], count: int
    ) -> Picks:
        """Select ``count`` points."""
        ...


def k_center(points: Array, weight: NDArray[np.int64], held: NDArray[np.int64], count: int) -> Picks:
    """Select the point that is farthest from the selected points, again and again (Gonzalez 1985).

    The first point is the one that is closest to the mean.

    Parameters
    ----------
    points : array of float32, shape (n, d)
        Rows or centroids.
    weight : array of int64, shape (n,)
        Number of rows that each point stands for.
    held : array of int64, shape (n,)
        Number of these rows that are selected already.
    count : int
        Points to select. If there are fewer, all are selected.

    Returns
    -------
    Picks
        The score is the distance to the nearest point that was selected before; of the first point, to the mean. The value is
        the largest distance of a point to the nearest selected one.
    """
    distances = _Distances(points)
    before = np.flatnonzero(held)
    nearest = np.full(len(points), np.inf)
    for kept in before.tolist():
        distances.lower(nearest, kept)
    order: list[int] = []
    score: list[float] = []
    free = held == 0
    if not len(before) and count:
        mean = np.average(points.astype(np.float64), axis=0, weights=weight)
        from_mean = ((points - mean) ** 2).sum(axis=1)
        order.append(int(from_mean.argmin()))
        score.append(float(from_mean[order[0]]))
        free[order[0]] = False
        distances.lower(nearest, order[0])
    for _ in range(min(count - len(order), int(free.sum()))):
        point = int(np.where(free, nearest, -1.0).argmax())
        order.append(point)
        score.append(float(nearest[point]))
        free[point] = False
        distances.lower(nearest, point)
    return Picks(np.array(order, np.int64), np.sqrt(score), float(np.sqrt(nearest.max())))


class _Distances:
    """Squared distances between points: measured in float64 where the float32 product cannot rule out a smaller one."""

    def __init__(self, points: Array) -> None:
        self._points = points
        moved = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
        self._squares = (moved * moved).sum(axis=1)
        kind = np.float32 if self._squares.max(initial=0.0) < _OVERFLOWS else np.float64
        self._moved = moved.astype(kind)
        self._unit = (points.shape[1] + 8) * float(np.finfo(kind).eps)

    def lower(self, nearest: NDArray[np.float64], point: int) -> None:
        """Lower ``nearest`` to the squared distance from ``point`` where that is smaller."""
        both = self._squares + self._squares[point]
        about = both - 2 * (self._moved @ self._moved[point])
        close = np.flatnonzero(about - 2 * self._unit * both <= nearest)
        step = max(1, _NUMBERS // self._points.shape[1])
        for at in range(0, len(close), step):
            some = close[at : at + step]
            apart = self._points[some].astype(np.float64) - self._points[point]
            nearest[some] = np.minimum(nearest[some], (apart * apart).sum(axis=1))


def facility_location(points: Array, weight: NDArray[np.int64], held: NDArray[np.int64], count: int) -> Picks:
    """Select the point that adds the most to the sum, over all rows, of the cosine to the most similar selected point.

    The greedy solution reaches at least 1 - 1/e of the largest possible sum. The gain of every point is kept up to date, for
    which only the points have to be compared whose most similar selected point has changed.

    Parameters
    ----------
    points, weight, held, count
        As for `k_center`.

    Returns
    -------
    Picks
        The score is the gain per row; of the first point, its mean cosine. The value is the mean, over all rows, of the cosine
        to the most similar selected point.
    """
    vectors = (np.rint(unit(points) / _GRID) * _GRID).astype(np.float32)
    total = int(weight.sum())
    nearest = np.full(len(points), _NONE, np.float32)
    gain = vectors.astype(np.float64) @ (weight @ vectors.astype(np.float64)) - _NONE * total
    free = held == 0
    order: list[int] = []
    score: list[float] = []

    def join(point: int) -> None:
        similar = vectors @ vectors[point]
        changed = np.flatnonzero(similar > nearest)
        step = max(1, _NUMBERS // len(points))
        for at in range(0, len(changed), step):
            some = changed[at : at + step]
            before, after = nearest[some, None], similar[some, None]
            products = vectors[some] @ vectors.T
            np.clip(products, before, after, out=products)
            products -= before
            gain[:] -= (
                products.sum(axis=0, dtype=np.float64)
                if total == len(points)
                else weight[some] @ products.astype(np.float64)
            )
        nearest[changed] = similar[changed]

    for kept in np.flatnonzero(held).tolist():
        join(kept)
    for _ in range(min(count, int(free.sum()))):
        point = int(np.where(free, gain, -1.0).argmax())
        order.append(point)
        score.append(float(gain[point]) / total + (0.0 if order[:-1] or held.any() else _NONE))
        free[point] = False
        join(point)
    return Picks(
        np.array(order, np.int64), np.array(score), float(weight @ nearest.astype(np.float64)) / total
    )


def herding(points: Array, weight: NDArray[np.int64], held: NDArray[np.int64], count: int) -> Picks:
    """Select rows whose mean in the feature space of a Gaussian kernel is close to that of all rows (kernel herding).

    The next point has the largest ``mean_j k(x, x_j) - sum_s k(x, s) / (t + 1)`` over all rows j and the t selected rows s.
    The bandwidth of the kernel is the median distance between points.

    Parameters
    ----------
    points, weight, held, count
        As for `k_center`. A point is selected at most as many times as it stands for rows.

    Returns
    -------
    Picks
        The score is that difference. The value is the distance of the two means (the maximum mean discrepancy).
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the order of a sum depends on the number of threads
        kernel = _Kernel(points)
        mean = kernel.sums(weight)  # times the number of rows, in units of the grid, as all that follows
        total, chosen = int(weight.sum()), int(held.sum())
        near = kernel.sums(held) if chosen else np.zeros(len(points))
        left = weight - held
        order = np.empty(min(count, int(left.sum())), np.int64)
        score = np.empty(len(order))
        taken = held.copy()
        for at in range(len(order)):
            # integers below 2**53 for up to 50,000 rows
            value = (chosen + 1) * mean - total * near
            value[left <= 0] = -np.inf
            point = int(value.argmax())
            order[at], score[at] = point, value[point] * _KERNEL_GRID / (total * (chosen + 1))
            near += kernel.column(point)
            left[point] -= 1
            taken[point] += 1
            chosen += 1
    if not chosen:
        return Picks(order, score, 0.0)
    squared = weight @ mean / total**2 - 2 * (taken @ mean) / total / chosen + taken @ near / chosen**2
    return Picks(order, score, max(float(squared) * _KERNEL_GRID, 0.0) ** 0.5)


class _Kernel:
    """A Gaussian kernel between points, as integers in units of its grid."""

    def __init__(self, points: Array) -> None:
        moved = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
        some = moved[np.unique(np.linspace(0, len(moved) - 1, _DISTANCES).astype(np.int64))]
        squares = (some**2).sum(axis=1)
        apart = squares[:, None] + squares - 2 * some @ some.T
        width = float(np.median(apart[np.triu_indices(len(some), 1)])) if len(some) > 1 else 0.0
        self._scaled = (moved / np.sqrt(width if width > 1e-9 * squares.max(initial=0.0) else 1.0)).astype(
            np.float32
        )
        self._squares = (self._scaled * self._scaled).sum(axis=1)
        self._kept = self._rows(slice(None)) if len(points) ** 2 <= _KERNEL_KEPT else None

    def _rows(self, which: Any) -> NDArray[np.float32]:
        found = self._scaled[which] @ self._scaled.T
        found -= self._squares[which, None] / 2
        found -= self._squares / 2
        np.exp(np.minimum(found, 0, out=found), out=found)
        found /= _KERNEL_GRID
        return np.rint(found, out=found)

    def column(self, point: int) -> NDArray[np.float32]:
        """Return the kernel of every point with one."""
        return self._rows(slice(point, point + 1))[0] if self._kept is None else self._kept[point]

    def sums(self, weight: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return for every point the sum of the kernel with all points, each ``weight`` times."""
        found = np.zeros(len(weight))
        there = np.flatnonzero(weight)
        step = max(1, _NUMBERS // len(weight))
        for at in range(0, len(there), step):
            some = there[at : at + step]
            rows = self._rows(some) if self._kept is None else self._kept[some]
            found += weight[some] @ rows.astype(np.float64)
        return found


def nearest_first(
    cluster: NDArray[np.int64],
    distance: NDArray[np.float32],
    draws: NDArray[np.float64],
    free: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the turn of every free row among the free rows of its cluster.

    The row nearest to the centroid is first, the others are in the order of ``draws``.
    """
    later = np.ones(len(cluster), bool)
    by_distance = np.lexsort((draws, distance, cluster))
    later[by_distance[ranks(cluster[by_distance]) == 0]] = False
    order = np.lexsort((draws, later, cluster))
    order = order[free[order]]
    found = np.empty(len(cluster), np.int64)
    found[order] = ranks(cluster[order])
    return found[free]


def turns(order: NDArray[np.int64], cluster: NDArray[np.int64], turn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of the row that each selection of a cluster stands for: its rows, by their turns."""
    again = np.argsort(order, kind="stable")
    time = np.empty(len(order), np.int64)
    time[again] = ranks(order[again])
    place = np.lexsort((turn, cluster))
    return place[np.searchsorted(cluster[place], order) + time]


def round_robin(
    order: NDArray[np.int64],
    weight: NDArray[Any],
    held: NDArray[np.int64],
    cluster: NDArray[np.int64],
    turn: NDArray[np.int64],
    count: int,
) -> NDArray[np.int64]:
    """Return the positions of ``count`` rows of selected clusters, in the order of selection.

    The first row of every cluster comes first, in the order of the clusters. Turn t of a cluster with weight w then comes at
    (t + 1/2) / w.

    Parameters
    ----------
    order : array of int64
        Selected clusters: ``count`` of them, or all that have no row yet.
    weight : array, shape (K,)
        Of every cluster.
    held : array of int64, shape (K,)
        Rows of every cluster that are selected already.
    cluster, turn : array of int64, shape (n,)
        Cluster of every row, and its turn within the cluster.
    count : int
        Rows to select.
    """
    place = np.full(len(weight), len(order))
    place[order] = np.arange(len(order))
    turn = turn + held[cluster]
    when = np.where(turn == 0, 0.0, (turn + 0.5) / weight[cluster])
    # of equal turns, the cluster alone decides, so that a selection can be extended without the order of its clusters
    return np.lexsort((np.where(turn == 0, place[cluster], cluster), when, turn > 0))[:count]
