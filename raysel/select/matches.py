"""The most similar pool rows of every target row, in one pass over the pool, and whose turn takes which row.

Similarity is the cosine. The float32 matrix product only rules out rows that its rounding error cannot bring among the best;
the others are measured in float64 from the two vectors alone. The result does therefore not depend on blocks or the BLAS.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysel.core.arrays import unit

Array = NDArray[Any]

_ROWS = 8192  # rows at a time, so that they and the similarities stay in cache
_SCORES = 1 << 21  # similarities at a time: 8 MB of float32
_HELD = 4  # candidates are sorted out when there are so many times as many as are kept


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
        # (position of the target row, id, cosine) of the candidates, in parts
        self._parts: list[tuple[Array, Array, Array]] = []
        self._count = 0
        self._limit = np.full(
            len(self.targets), -np.inf, np.float32
        )  # a row below it is not among the k best

    def add(self, ids: NDArray[np.int64], rows: Array) -> Matches:
        """Take rows (n, d) with their ids into account."""
        rows = unit(rows)
        for start in range(0, len(rows), _ROWS):
            part, names = rows[start : start + _ROWS], ids[start : start + _ROWS]
            step = max(1, _SCORES // len(part))
            for at in range(0, len(self.targets), step):
                aims, limit = self.targets[at : at + step], self._limit[at : at + step, None]
                near = aims @ part.T
                close = near >= limit
                if len(part) > self.k and np.count_nonzero(close) > 2 * self.k * len(aims):
                    # nor is a row that the k-th of these rows excludes
                    place = len(part) - self.k
                    kth = np.partition(near, place, axis=1)[:, place, None]
                    close = near >= np.maximum(limit, kth - np.float32(self._slack))
                target, row = np.nonzero(close)
                self._keep(at + target, names[row], _cosines(part, row, aims, target))
        return self

    def trim(self) -> Matches:
        """Forget the rows that are not among the ``k`` most similar ones, before this object is sent elsewhere."""
        self._sort_out()
        return self

    def merge(self, other: Matches) -> Matches:
        """Take the rows of another one with the same targets into account."""
        for part in other._parts:
            self._keep(*part)
        return self

    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return ids and cosines (m, k), best first; -1 and -inf where there are fewer rows."""
        target, found, cosine = self._sort_out()
        ids = np.full((len(self.targets), self.k), -1, np.int64)
        score = np.full(ids.shape, -np.inf)
        rank = ranks(target)
        ids[target, rank] = found
        score[target, rank] = cosine
        return ids, score

    def _keep(self, target: Array, ids: Array, score: Array) -> None:
        self._parts.append((target.astype(np.int32), ids, score))
        self._count += len(ids)
        if self._count > _HELD * self.k * len(self.targets):
            self._sort_out()

    def _sort_out(self) -> tuple[Array, Array, Array]:
        """Keep the ``k`` best candidates of every target row, and return them."""
        none: tuple[Array, Array, Array] = (np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0))
        target, ids, score = map(np.concatenate, zip(none, *self._parts, strict=True))
        self._parts = []
        order = np.lexsort((ids, -score, target))
        order = order[ranks(target[order]) < self.k]
        target, ids, score = best = target[order], ids[order], score[order]
        self._parts, self._count = [best], len(ids)
        last = np.flatnonzero(ranks(target) == self.k - 1)
        self._limit = self._limit.copy()  # one that came through the object store cannot be written to
        self._limit[target[last]] = (score[last] - self._slack).astype(np.float32)
        return best


def _cosines(rows: Array, row: Array, targets: Array, target: Array) -> NDArray[np.float64]:
    """Return the cosine of pairs of unit vectors, each from the two vectors alone."""
    found = np.empty(len(row))
    step = max(1, _SCORES // rows.shape[1])
    for at in range(0, len(row), step):
        pairs = slice(at, at + step)
        found[pairs] = (rows[row[pairs]].astype(np.float64) * targets[target[pairs]]).sum(axis=1)
    return found


def ranks(groups: Array) -> NDArray[np.int64]:
    """Return the position of every element within its group; groups lie together, in ascending order."""
    if not len(groups):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


class Turns:
    """Target rows take pool rows one after another, each its most similar row that is not taken.

    Parameters
    ----------
    count : int
        Rows to take.
    share : array of int64, shape (m,)
        Turn t of a target row comes at (t + 1/2) / share, the lower position first.
    taken : iterable of int
        Ids that are taken already.
    classes : dict of int to int, optional
        Class of every id. With ``room``: after a class has as many rows as ``room`` allows, no more of its rows are taken.
    room : list of int, optional
        Rows to take per class.

    Attributes
    ----------
    ids, targets, turns, cosines : list
        The taken rows in the order of the turns, with the target row, the number of its turn, and their cosine.
    """

    def __init__(
        self,
        count: int,
        share: NDArray[np.int64],
        taken: Any = (),
        classes: dict[int, int] | None = None,
        room: Sequence[int] = (),
    ) -> None:
        self.count = count
        self._classes, self._room = classes, list(room)
        self.ids: list[int] = []
        self.targets: list[int] = []
        self.turns: list[int] = []
        self.cosines: list[float] = []
        self._weight = share.tolist()
        self._turn = [0] * len(self._weight)
        self._gone = {int(one) for one in taken}
        self._queue = [(0.5 / weight, target) for target, weight in enumerate(self._weight) if weight > 0]
        heapq.heapify(self._queue)

    def _use(self, code: int) -> None:
        """Use the room of a class; where it is used up, its other rows are as good as taken."""
        assert self._classes is not None
        self._room[code] -= 1
        if not self._room[code]:
            self._gone.update(row for row, of in self._classes.items() if of == code)

    @property
    def taken(self) -> NDArray[np.int64]:
        """Ids that are taken, or whose class already has all its rows, ascending."""
        return np.sort(np.fromiter(self._gone, np.int64, len(self._gone)))

    def take(self, ids: NDArray[np.int64], cosines: Array, complete: bool) -> bool:
        """Let the target rows take rows until all turns are done or a list ends; return whether they are done.

        Parameters
        ----------
        ids : array of int64, shape (m, k)
            Most similar rows of every target row among those that were not taken at the call, best first; -1 behind the last.
        cosines : array, shape (m, k)
            Their cosines.
        complete : bool
            Whether the lists hold all rows. If not, further lists are needed where one ends.
        """
        lists: list[list[int]] = ids.tolist()
        place = [0] * len(lists)
        while len(self.ids) < self.count and self._queue:
            target = self._queue[0][1]
            row, at = lists[target], place[target]
            while at < len(row) and row[at] in self._gone:
                at += 1
            if at == len(row) or row[at] < 0:
                if not complete:
                    return False
                heapq.heappop(self._queue)
                continue
            self._gone.add(row[at])
            if self._classes is not None:
                self._use(self._classes[row[at]])
            self.ids.append(row[at])
            self.targets.append(target)
            self.turns.append(self._turn[target])
            self.cosines.append(float(cosines[target, at]))
            place[target] = at + 1
            self._turn[target] += 1
            heapq.heapreplace(self._queue, ((self._turn[target] + 0.5) / self._weight[target], target))
        return True
