"""SplitMix64 on arrays: the one hash of integers, for draws that depend on nothing but an id and a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64, odd


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the SplitMix64 finalizer of each value, a bijection of uint64.

    Parameters
    ----------
    values : ndarray of uint64, any shape
        Left unchanged.

    References
    ----------
    Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    x = values ^ (values >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def hash_integers(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return a uint64 hash of each int64 or uint64; integers with the same 64 bits have the same hash."""
    return mix(values.view(np.uint64) + GOLDEN)


def hash_ids(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """Return a uniform draw in [0, 1) for every id, which depends on the id and the seed alone.

    Rows are sampled by these draws, since a draw per block would depend on how the rows are cut into blocks.

    Parameters
    ----------
    ids : ndarray of int64
    seed : int
        Draws of different seeds (modulo 2**32) are independent.

    Returns
    -------
    ndarray of float64
        Multiples of 2**-53.
    """
    stream = np.uint64(int(GOLDEN) * (2 * (seed % 2**32) + 1) % 2**64)
    hashes = mix(ids.astype(np.uint64) + stream)
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
