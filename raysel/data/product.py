"""Matrix products whose last bits depend only on the numbers multiplied. Without Ray.

A BLAS adds in an order that depends on the shape of the product, the number of threads, the processor, and
even on a row's position among the others, so a row's result may differ in the last bit from block to block.
Here every result is the exact sum, rounded once to float32, whatever computes it.
"""

from __future__ import annotations

import numpy as np

from raysel.core.sums import exact_sum

_CHUNK = 256  # rows worked on at once: their float64 copy stays in the cache
_U = 2.0**-53  # the largest relative error of one float64 operation


def project(rows: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``(rows - mean) @ weights``, each element the float32 nearest to the exact sum.

    Products of float32 are exact in float64, in which the BLAS adds them; its error is at most (d - 1) u |x|
    |w| in any order (Higham, 2002, section 3.1; u = 2**-53). If all of that interval rounds to one float32,
    that is the result; the few other elements are added exactly. Rows that are not finite get what the BLAS
    computes.

    Parameters
    ----------
    rows : array, shape (n, d)
        Rows. Differences are computed in the dtype of ``rows - mean`` and rounded to float32.
    mean : array of float32, shape (d,)
        What is subtracted.
    weights : array of float32, shape (d, k)
        The other factor.

    Returns
    -------
    array of float32, shape (n, k)
        The product.
    """
    wide = weights.astype(np.float64)
    # One more u than the bound has, and a thousandth: the norms and the ends of the interval are rounded too.
    error = 1.001 * len(weights) * _U * np.linalg.norm(wide, axis=0)
    single = np.empty((min(_CHUNK, len(rows)), rows.shape[1]), np.float32)
    double = np.empty(single.shape)
    result = np.empty((len(rows), weights.shape[1]), np.float32)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        x = double[: len(part)]
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(part, mean, out=single[: len(part)], casting="same_kind")
            np.copyto(x, single[: len(part)])
            margin = np.linalg.norm(x, axis=1)[:, None] * error
            near, open_ = _round(x @ wide, margin)
        i, j = np.nonzero(open_ & np.isfinite(margin))
        near[i, j] = _nearest(x[i] * wide.T[j])
        result[start : start + len(part)] = near + np.float32(0)  # no -0.0, whose sign depends on the order
    return result


def _round(sums: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the float32 nearest to each sum, and where a sum within the margin has another."""
    return sums.astype(np.float32), (sums - margin).astype(np.float32) != (sums + margin).astype(np.float32)


def _nearest(terms: np.ndarray) -> np.ndarray:
    """Return the float32 nearest to the exact sum of each row of float64 terms (m, d), ties to even.

    High parts on one grid are added without an error, and the rest with an error far below u of the sum
    (Rump, Ogita & Oishi, Accurate Floating-Point Summation, 2008, algorithm 3.2).
    """
    d = terms.shape[1]
    largest = np.abs(terms).max(axis=1, keepdims=True, initial=np.finfo(np.float64).tiny)
    grid = np.ldexp(1.0, np.frexp(largest)[1] + (d + 1).bit_length())
    high = (grid + terms) - grid
    total = high.sum(axis=1) + (terms - high).sum(axis=1)
    margin = 1.001 * (_U * np.abs(total) + d * d * _U**2 * grid[:, 0])
    near, open_ = _round(total, 2 * margin)
    for row in np.flatnonzero(open_):
        near[row] = _nearest_one(terms[row])
    return near


def _nearest_one(terms: np.ndarray) -> np.float32:
    """Return the same for one row (d,), however close to half way between two float32 its sum is."""
    total = exact_sum(terms)  # rounded once, to float64: rounding it again errs only where it lies half way
    near = np.float32(total)
    away = np.nextafter(near, np.float32(np.inf if total > float(near) else -np.inf))
    half = (float(near) + float(away)) / 2
    if total != half:
        return near
    beyond = exact_sum(np.append(terms, -half))  # rounding keeps its sign
    if beyond == 0:
        return near
    return max(near, away) if beyond > 0 else min(near, away)
