"""Matrix products whose last bits hang on nothing but the numbers multiplied. Pure: no Ray.

A BLAS adds in an order that depends on the shape of the product, the number of threads, the processor, and even on a row's
place among its neighbours, so a row's result may differ in the last bit from block to block. Here every result is the exact
sum, rounded once to float32, whoever computes it.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_CHUNK = 256  # rows worked on at once: their float64 copy stays in the cache


def matmul(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``rows @ weights`` for float32 rows (n, d) and weights (d, k): each element the float32 nearest to the exact sum.

    Products of float32 are exact in float64, where the BLAS adds them; its error is at most (d - 1) u |x| |w| in any order
    (Higham, 2002, section 3.1; u = 2**-53). Where all of that interval rounds to one float32, that is the answer; the few
    elements left are added exactly. Rows that are not finite get what the BLAS makes of them.
    """
    wide = weights.astype(np.float64)
    # One more u than the bound has, and a thousandth: the norms and the ends of the interval are rounded too.
    error = 1.001 * len(weights) * 2.0**-53 * np.linalg.norm(wide, axis=0)
    buffer = np.empty((min(_CHUNK, len(rows)), rows.shape[1]))
    result = np.empty((len(rows), weights.shape[1]), np.float32)
    for start in range(0, len(rows), _CHUNK):
        x = buffer[: len(rows) - start]
        np.copyto(x, rows[start : start + len(x)])
        with np.errstate(invalid="ignore", over="ignore"):
            sums = x @ wide
            margin = np.linalg.norm(x, axis=1)[:, None] * error
            low, high = (sums - margin).astype(np.float32), (sums + margin).astype(np.float32)
            part = sums.astype(np.float32)
        for i, j in np.argwhere((low != high) & np.isfinite(margin)):
            part[i, j] = _nearest(x[i] * wide[:, j])
        result[start : start + len(x)] = part + np.float32(0)  # no -0.0, whose sign hangs on the order
    return result


def _nearest(terms: np.ndarray) -> np.float32:
    """The float32 nearest to the exact sum of float64 terms, ties to even."""
    total = math.fsum(terms)  # rounded once, to float64: rounding it again errs only where it lies half way
    near = np.float32(total)
    away = np.nextafter(near, np.float32(np.inf if total > float(near) else -np.inf))
    half = (float(near) + float(away)) / 2
    if total != half:
        return near
    exact = sum(map(Fraction, terms.tolist()), Fraction(0)) - Fraction(half)
    if exact == 0:
        return near
    return max(near, away) if exact > 0 else min(near, away)
