"""Near duplicates: pairs of rows whose cosine reaches a threshold, and which rows are kept of them. Without Ray.

Rows are compared within cells, the neighbourhoods of k-means centroids: every row with the rows of its own cell and of the next few. Whether a pair
reaches the threshold is decided from the two vectors alone, so that the result does not depend on blocks or the BLAS.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EDGES = 64  # earlier near duplicates that are noted for a row, those that come first
_SCORES = 1 << 22  # cosines at a time: 16 MB of float32


class Pairs(NamedTuple):
    """Pairs of rows by their ids: the later one, the earlier one, and their cosine."""

    later: NDArray[np.int64]
    earlier: NDArray[np.int64]
    cosine: NDArray[np.float64]


def nearest_cells(rows: Array, centroids: Array, probes: int) -> NDArray[np.int32]:
    """Return the ``probes`` centroids with the highest cosine for every row (n, probes), the lower index among equals.

    Parameters
    ----------
    rows, centroids : array of float32, shape (n, d) and (K, d)
        Of unit length.
    probes : int
        At most K.
    """
    slack = _slack(rows.shape[1])
    found = np.empty((len(rows), probes), np.int32)
    step = max(1, _SCORES // len(centroids))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        near = part @ centroids.T
        limit = np.partition(near, len(centroids) - probes, axis=1)[:, len(centroids) - probes]
        row, cell = np.nonzero(near >= (limit - slack)[:, None])
        cosine = _cosines(part[row], centroids[cell])
        order = np.lexsort((cell, -cosine, row))
        row, cell = row[order], cell[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        first = rank < probes
        found[at + row[first], rank[first]] = cell[first]
    return found


def close_pairs(ids: NDArray[np.int64], rows: Array, threshold: float) -> Pairs:
    """Return the pairs of rows with a cosine of at least ``threshold``.

    Of a row with more than 64 earlier ones those 64 that come first are returned.

    Parameters
    ----------
    ids : array of int64, shape (n,)
        Ascending: the lower id is the earlier row.
    rows : array of float32, shape (n, d)
        Of unit length.
    threshold : float
        Least cosine.
    """
    slack = _slack(rows.shape[1])
    found: list[tuple[Array, Array, Array]] = []
    at = 0
    while at < len(rows):
        end = min(len(rows), at + max(1, _SCORES // max(at, 1)), at + 4096)
        near = rows[at:end] @ rows[:end].T
        later, earlier = np.nonzero(near >= threshold - slack)
        before = earlier < later + at
        later, earlier = later[before], earlier[before]
        unsure = np.flatnonzero(near[later, earlier] < threshold + slack)
        below = unsure[_cosines(rows[at + later[unsure]], rows[earlier[unsure]]) < threshold]
        later, earlier = np.delete(later, below), np.delete(earlier, below)
        first = np.arange(len(later)) - np.searchsorted(later, later) < EDGES  # both ascend
        later, earlier = later[first] + at, earlier[first]
        found.append((ids[later], ids[earlier], _cosines(rows[later], rows[earlier])))
        at = end
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return join_pairs([Pairs(*part) for part in found])


def pairs_across(
    ids: NDArray[np.int64], rows: Array, other_ids: NDArray[np.int64], others: Array, threshold: float
) -> Pairs:
    """Return the pairs of a row and one of ``others`` with a cosine of at least ``threshold``, the later id first.

    Of a row with more than 64 earlier ones those 64 that come first are returned. Parameters as for :func:`close_pairs`; no
    id is on both sides.
    """
    slack = _slack(rows.shape[1])
    found: list[Pairs] = []
    step = max(1, _SCORES // max(1, len(others)))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        near = part @ others.T
        row, other = np.nonzero(near >= threshold - slack)
        unsure = np.flatnonzero(near[row, other] < threshold + slack)
        below = unsure[_cosines(part[row[unsure]], others[other[unsure]]) < threshold]
        row, other = np.delete(row, below), np.delete(other, below)
        one, two = ids[at + row], other_ids[other]
        later, earlier = np.maximum(one, two), np.minimum(one, two)
        order = np.lexsort((earlier, later))
        order = order[np.arange(len(order)) - np.searchsorted(later[order], later[order]) < EDGES]
        cosine = _cosines(part[row[order]], others[other[order]])
        found.append(Pairs(later[order], earlier[order], cosine))
    return join_pairs(found)


def probes_for(threshold: float) -> int:
    """Return how many cells a row is compared in, so that 98 % of the pairs at the threshold are found.

    Measured on 20,000 images of FashionMNIST in 500 cells, where 2, 5, 11 and 28 suffice at 0.98, 0.95, 0.9 and 0.8.
    """
    degrees = math.degrees(math.acos(min(threshold, 1.0)))
    return math.ceil(2 ** (1.1 + 0.165 * max(0.0, degrees - 11.5)))


def join_pairs(parts: list[Pairs]) -> Pairs:
    """Return the pairs of several cells, each once, sorted by the later and then the earlier row."""
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    later = np.concatenate([part.later for part in parts])
    earlier = np.concatenate([part.earlier for part in parts])
    cosine = np.concatenate([part.cosine for part in parts])
    order = np.lexsort((earlier, later))
    later, earlier, cosine = later[order], earlier[order], cosine[order]
    new = np.ones(len(later), bool)
    new[1:] = (np.diff(later) != 0) | (np.diff(earlier) != 0)
    return Pairs(later[new], earlier[new], cosine[new])


def keep_first(pairs: Pairs, threshold: float) -> Pairs:
    """Return the dropped rows: in ascending order of the ids, a row is dropped if a kept row reaches the threshold.

    Parameters
    ----------
    pairs : Pairs
        Sorted as :func:`join_pairs` returns them.
    threshold : float
        Pairs with a lower cosine do not count.

    Returns
    -------
    Pairs
        Every dropped row (``later``) with the most similar kept row and their cosine.
    """
    close = pairs.cosine >= threshold
    dropped: set[int] = set()
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(pairs.later), 1 << 20):
        part = slice(start, start + (1 << 20))
        here = close[part]
        for row, other, cosine in zip(
            pairs.later[part][here].tolist(),
            pairs.earlier[part][here].tolist(),
            pairs.cosine[part][here].tolist(),
            strict=True,
        ):
            if other in dropped:
                continue
            if row not in dropped:
                dropped.add(row)
                found.append((row, other, cosine))
            elif cosine > found[-1][2]:  # the pairs of a row follow each other
                found[-1] = (row, other, cosine)
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    rows, others, cosines = zip(*found, strict=True)
    return Pairs(np.array(rows, np.int64), np.array(others, np.int64), np.array(cosines))


def drop_to(pairs: Pairs, rows: int, keep: int) -> tuple[float, Pairs] | None:
    """Return the highest threshold, a multiple of 0.001, that keeps at most ``keep`` of ``rows`` rows, and the dropped rows.

    Where the threshold would drop more rows than wanted, those with the lowest cosine are not dropped (of equals the lower
    ids): every other dropped row still has its kept row.

    Parameters
    ----------
    pairs : Pairs
        Sorted as :func:`join_pairs` returns them, with all pairs down to the lowest threshold that may be returned.
    rows, keep : int
        Rows there are, and rows to keep.

    Returns
    -------
    (threshold, dropped) or None
        As :func:`keep_first` returns them; a threshold of 2 drops nothing. None if every threshold keeps more rows.
    """
    steps = np.append(np.unique(np.floor(pairs.cosine * 1000) / 1000), 2.0)
    low, high = -1, len(steps) - 1  # the first keeps at most so many rows, if it is a step
    if rows <= keep:
        return 2.0, keep_first(pairs, 2.0)
    while high - low > 1:
        middle = (low + high) // 2
        if rows - len(keep_first(pairs, steps[middle]).later) <= keep:
            low = middle
        else:
            high = middle
    if low < 0:
        return None
    found = keep_first(pairs, steps[low])
    stay = np.lexsort((found.later, found.cosine))[: keep - (rows - len(found.later))]
    return float(steps[low]), Pairs(
        np.delete(found.later, stay), np.delete(found.earlier, stay), np.delete(found.cosine, stay)
    )


def _slack(dimension: int) -> float:
    """Return a bound of the error of a float32 cosine, twice."""
    return 2 * (dimension + 4) * float(np.finfo(np.float32).eps)


def _cosines(rows: Array, others: Array) -> NDArray[np.float64]:
    found = np.empty(len(rows))
    step = max(1, _SCORES // max(1, rows.shape[1]))
    for at in range(0, len(rows), step):
        found[at : at + step] = (rows[at : at + step].astype(np.float64) * others[at : at + step]).sum(axis=1)
    return found
