"""Look-ups in sorted arrays, and vectors of unit length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def positions(
    ascending: npt.NDArray[Any], wanted: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Find values in a sorted array.

    Parameters
    ----------
    ascending : ndarray (n,)
        Sorted. Of equal values the first is found.
    wanted : ndarray (m,)
        Any order, of the same dtype.

    Returns
    -------
    places : ndarray (m,) of int64
        The position in ``ascending`` of each value that is there. For any other value an arbitrary valid position, and
        0 where ``ascending`` is empty.
    found : ndarray (m,) of bool
        Which of the values are there.

    Examples
    --------
    >>> places, found = positions(np.array([2, 5, 7]), np.array([7, 3]))
    >>> places[found].tolist(), found.tolist()
    ([2], [True, False])
    """
    if not len(ascending):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return places, ascending[places] == wanted


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return rows (n, d) scaled to unit length as float32; a zero vector stays one."""
    wide = np.asarray(rows, np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return (wide / np.where(length > 0, length, 1.0)).astype(np.float32)
