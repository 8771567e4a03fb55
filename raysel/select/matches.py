"""The most similar pool rows of every target row, in one pass over the pool, and whose turn takes which row.

Similarity is the cosine. The float32 matrix product only rules out rows that its rounding error cannot bring among the best;
the others are measured in float64 from the two vectors alone. The result does therefore not depend on blocks or the BLAS.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SCORES = 1 << 21  # similarities at a time: 8 MB of float32
_HELD = 4  # candidates are sorted out when there are so many times as many as are kept


def unit(rows: Array) -> NDArray[np.float32]:
    """Return rows (n, d) scaled to unit length as float32; a zero vector stays one."""
    wide = np.asarray(rows, np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return (wide / np.where(length > 0, length, 1.0)).astype(np.float32)


class Matches:
    """The ``k`` most similar rows of every target row among the rows that were added, the lower id first among equals.

    Parameters
    ----------
    targets : array, shape (m, d)
        Target vectors of any length.
    k : int
        Rows that are kept for each target row.
    """

    def __init__(self, targets: Array, k: int) -> None:
        self.targets, self.k = unit(targets), k
        # each product has a rounding error of at most (d + 1) eps |x| |t|, and both lengths are 1 up to rounding
        self._slack = 2 * (self.targets.shape[1] + 4) * float(np.finfo(np.float32).eps)
        self._target = np.empty(0, np.int32)
        self._ids = np.empty(0, np.int64)
        self._score = np.empty(0)
        self._limit = np.full(
            len(self.targets), -np.inf, np.float32
        )  # a row below it is not among the k best

    def add(self, ids: NDArray[np.int64], rows: Array) -> Matches:
        """Take rows (n, d) with their ids into account."""
        rows = unit(rows)
        step = max(1, _SCORES // max(1, len(self.targets)))
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            near = part @ self.targets.T
            limit = self._limit
            if len(part) > self.k:  # and not below the k-th of these rows
                kth = np.partition(near, len(part) - self.k, axis=0)[len(part) - self.k]
                limit = np.maximum(limit, kth - np.float32(self._slack))
            row, target = np.nonzero(near >= limit)
            self._keep(target, ids[at + row], _cosines(part, row, self.targets, target))
        return self

    def merge(self, other: Matches) -> Matches:
        """Take the rows of another one with the same targets into account."""
        self._keep(other._target, other._ids, other._score)
        return self

    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return ids and cosines (m, k), best first; -1 and -inf where there are fewer rows."""
        self._sort_out()
        ids = np.full((len(self.targets), self.k), -1, np.int64)
        score = np.full(ids.shape, -np.inf)
        rank = _ranks(self._target)
        ids[self._target, rank] = self._ids
        score[self._target, rank] = self._score
        return ids, score

    def _keep(self, target: Array, ids: Array, score: Array) -> None:
        self._target = np.concatenate([self._target, target.astype(np.int32)])
        self._ids = np.concatenate([self._ids, ids])
        self._score = np.concatenate([self._score, score])
        if len(self._ids) > _HELD * self.k * len(self.targets):
            self._sort_out()

    def _sort_out(self) -> None:
        order = np.lexsort((self._ids, -self._score, self._target))
        order = order[_ranks(self._target[order]) < self.k]
        self._target, self._ids, self._score = self._target[order], self._ids[order], self._score[order]
        last = np.flatnonzero(_ranks(self._target) == self.k - 1)
        self._limit = self._limit.copy()  # one that came through the object store cannot be written to
        self._limit[self._target[last]] = (self._score[last] - self._slack).astype(np.float32)


def _cosines(rows: Array, row: Array, targets: Array, target: Array) -> NDArray[np.float64]:
    """Return the cosine of pairs of unit vectors, each from the two vectors alone."""
    found = np.empty(len(row))
    step = max(1, _SCORES // rows.shape[1])
    for at in range(0, len(row), step):
        pairs = slice(at, at + step)
        found[pairs] = (rows[row[pairs]].astype(np.float64) * targets[target[pairs]]).sum(axis=1)
    return found


def _ranks(groups: Array) -> NDArray[np.int64]:
    """Return the position of every element within its group; groups lie together, in ascending order."""
    if not len(groups):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def take_turns(
    ids: NDArray[np.int64],
    count: int,
    pool_rows: int,
    share: NDArray[np.int64] | None = None,
    taken: Any = (),
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Let target rows take pool rows one after another, each its most similar row that is not taken.

    Parameters
    ----------
    ids : array of int64, shape (m, k)
        Most similar pool rows of every target row, best first; -1 behind the last.
    count : int
        Rows to take.
    pool_rows : int
        Rows of the pool. A list of this length is complete, and its target row drops out when the list ends.
    share : array of int64, shape (m,), optional
        Turn t of a target row comes at (t + 1/2) / share, the lower position first. Default: all have one turn per round.
    taken : iterable of int
        Ids that are taken already.

    Returns
    -------
    (ids, targets, turns) or None
        The taken rows in the order of the turns, with the target row and the number of its turn. None if a list ended
        although the pool has more rows: longer lists are needed.
    """
    lists: list[list[int]] = ids.tolist()
    gone = {int(one) for one in taken}
    place, turn = [0] * len(lists), [0] * len(lists)
    weight = [1] * len(lists) if share is None else share.tolist()
    queue = [(0.5 / weight[target], target) for target in range(len(lists)) if weight[target] > 0]
    heapq.heapify(queue)
    found: list[tuple[int, int, int]] = []
    while len(found) < count and queue:
        target = queue[0][1]
        row, at = lists[target], place[target]
        while at < len(row) and row[at] in gone:
            at += 1
        if at == len(row) and len(row) < pool_rows:
            return None
        if at == len(row) or row[at] < 0:
            heapq.heappop(queue)
            continue
        gone.add(row[at])
        found.append((row[at], target, turn[target]))
        place[target] = at + 1
        turn[target] += 1
        heapq.heapreplace(queue, ((turn[target] + 0.5) / weight[target], target))
    taken_ids, by, turns = (np.array(column, np.int64) for column in zip(*found, strict=True))
    return taken_ids, by, turns
