"""Rows whose loss stayed high while the losses of their neighbours fell: labels to check. Without Ray.

A row that is only difficult lies among other difficult rows. A row with a wrong label lies among rows whose labels the
model has learned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysel.core.arrays import positions

Array = NDArray[Any]

NEIGHBOURS = 10
_PAIRS = 1 << 30  # of a candidate and any row, at most


def candidates(ids: NDArray[np.int64], losses: Array) -> NDArray[np.int64]:
    """Return the rows with the highest losses, ascending; of equal losses the lower ids.

    They are half of the rows, or fewer, so that there are at most 2^30 pairs of a candidate and any row. No other row has a
    higher score than the lowest of their losses, since losses are not negative.

    Parameters
    ----------
    ids : array of int64, shape (n,)
        Rows.
    losses : array, shape (n,)
        Their finite losses.
    """
    count = max(1, min(len(ids) // 2, _PAIRS // max(len(ids), 1)))
    return np.sort(ids[np.lexsort((ids, -losses))[:count]])


def rank(
    ids: NDArray[np.int64],
    losses: Array,
    labels: Array,
    rows: NDArray[np.int64],
    neighbours: NDArray[np.int64],
) -> dict[str, Array]:
    """Return rows in descending order of how much their loss exceeds the median loss of their neighbours.

    Parameters
    ----------
    ids : array of int64, shape (n,)
        All rows with a loss, ascending.
    losses : array, shape (n,)
        The loss of each row.
    labels : array, shape (n,)
        The label of each row.
    rows : array of int64, shape (m,)
        Rows to rank.
    neighbours : array of int64, shape (m, k)
        The nearest other rows of each of ``rows``; -1 where there are fewer.

    Returns
    -------
    dict of str to array
        ``sample_id``, ``score``, ``loss``, ``neighbour_loss`` (the median, 0 without neighbours), ``label``, ``neighbour_label`` (the most frequent,
        of equally frequent ones that of the nearest), ``agreement`` (share of the neighbours that have the row's label).
        Rows with equal scores are in ascending order of their ids.
    """
    place, _ = positions(ids, rows)
    near, there = positions(ids, neighbours.ravel())
    near, there = near.reshape(neighbours.shape), there.reshape(neighbours.shape)
    count = np.maximum(there.sum(axis=1), 1)
    own = losses[place].astype(np.float64)
    middle = np.median(np.where(there, losses[near], np.inf), axis=1)  # of complete lists
    for row in np.flatnonzero(~there.all(axis=1)):
        middle[row] = np.median(losses[near[row]][there[row]]) if there[row].any() else 0.0
    _, codes = np.unique(labels, return_inverse=True)
    theirs = np.where(there, codes[near], -1)
    votes = (theirs[:, :, None] == theirs[:, None, :]).sum(axis=2) * there
    common = near[np.arange(len(rows)), votes.argmax(axis=1)]  # the first of the greatest is the nearest
    agreement = (theirs == codes[place][:, None]).sum(axis=1) / count
    order = np.lexsort((rows, middle - own))
    found = {
        "sample_id": rows,
        "score": own - middle,
        "loss": own,
        "neighbour_loss": middle,
        "label": labels[place],
        "neighbour_label": labels[common],
        "agreement": agreement,
    }
    return {name: values[order] for name, values in found.items()}


def others(rows: NDArray[np.int64], lists: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return lists of nearest rows (m, k + 1) without the row itself, or without the last one where it is not in its list."""
    own = lists == rows[:, None]
    own[~own.any(axis=1), -1] = True
    return lists[~own].reshape(len(rows), lists.shape[1] - 1)
