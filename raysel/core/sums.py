"""Exact sums of floats: the same bits in whatever order, blocks or processes the values are added."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]

_SCALE = 1130  # sums are integers in units of 2^-1130, below the last digit of the smallest subnormal
_HUGE = 2.0**900  # from here on the place to cut at could overflow
_ROWS = 1 << 24  # values that are cut at a common place


def exact_sum(values: npt.NDArray[Any]) -> float:
    """Return the sum of all values, rounded once.

    Parameters
    ----------
    values : ndarray (n,)
        Numbers, which are converted to float64.

    Returns
    -------
    float
        The float64 nearest to the exact sum, infinite beyond float64. If a value is not finite, infinity or NaN as from
        ``numpy.sum``.

    References
    ----------
    Rump, Ogita & Oishi, Accurate Floating-Point Summation, SIAM J. Sci. Comput. 31(1), 2008, algorithm 3.2.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return 0.0
    largest = max(float(values.max()), -float(values.min()))
    if not math.isfinite(largest):
        return float(np.sum(values))
    if largest >= _HUGE:
        return as_float(exact_sums(None, values, 1)[0])
    return math.fsum(float(part[0]) for part in partial_sums(None, values, 1))


def exact_sums(group: Codes | None, values: npt.NDArray[np.float64], groups: int) -> list[int]:
    """Return the sum for each group without any rounding.

    Parameters
    ----------
    group : ndarray (n,) of int64 or None
        Group of each value, 0..groups-1. None: all are in one group.
    values : ndarray (n,) of float64
        Finite.
    groups : int
        Number of groups.

    Returns
    -------
    list of int
        One per group, in units of 2**-1130: see :func:`as_float`. They are added and compared as integers.
    """
    totals = [0] * groups
    huge = np.abs(values) >= _HUGE
    if huge.any():
        codes = None if group is None else group[huge]
        totals = [total << 200 for total in exact_sums(codes, np.ldexp(values[huge], -200), groups)]
        values = np.where(huge, 0.0, values)
    for sums in partial_sums(group, values, groups):
        for at in np.flatnonzero(sums):
            digits, exponent = math.frexp(sums[at])
            totals[at] += int(math.ldexp(digits, 53)) << (exponent - 53 + _SCALE)
    return totals


def partial_sums(
    group: Codes | None, values: npt.NDArray[np.floating], groups: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield a few exact float64 sums for each group, which together have the exact sum of its values.

    Adding all sums of a group with ``math.fsum`` gives the correctly rounded sum. Of each value the digits above a common
    place are cut off, which are few enough that floats add them exactly in any order, and again of the rest (AccSum: Rump,
    Ogita & Oishi 2008).

    Parameters
    ----------
    group, groups
        As in :func:`exact_sums`.
    values : ndarray (n,) of float32 or float64
        Finite, below 2**900 in magnitude.

    Yields
    ------
    ndarray (groups,) of float64
    """
    for start in range(0, len(values), _ROWS):
        rest = values[start : start + _ROWS].astype(np.float64)  # a copy
        codes = None if group is None else group[start : start + _ROWS]
        # For n values of at most 2^top: their upper parts are multiples of 2^(top + b - 52), n < 2^b.
        bits = len(rest).bit_length()
        while largest := max(float(rest.max()), -float(rest.min())):
            cutter = math.ldexp(1.5, math.frexp(largest)[1] + bits)  # 1.5, so that no sum leaves the binade
            upper = (rest + cutter) - cutter
            sums = [upper.sum()] if codes is None else np.bincount(codes, upper, groups)
            yield np.asarray(sums, np.float64)
            rest -= upper


def integer_sums(group: Codes | None, values: npt.NDArray[np.int64], groups: int) -> list[int]:
    """Return the sum of int64 for each group as Python integers, correct also beyond int64."""
    totals = [0] * groups
    for start in range(0, len(values), 1 << 20):
        piece = values[start : start + (1 << 20)]
        codes = None if group is None else group[start : start + (1 << 20)]
        for shift, digits in ((44, piece >> 44), (22, (piece >> 22) & (2**22 - 1)), (0, piece & (2**22 - 1))):
            if codes is None:
                totals[0] += int(digits.sum()) << shift
                continue
            sums = np.bincount(codes, digits.astype(np.float64), groups)
            for at in np.flatnonzero(sums):
                totals[at] += int(sums[at]) << shift
    return totals


def as_float(total: int, divisor: int = 1) -> float:
    """Return a sum of :func:`exact_sums` divided by ``divisor``, rounded once; infinite beyond float64."""
    try:
        return float(Fraction(total, divisor << _SCALE))
    except OverflowError:
        return math.inf if total > 0 else -math.inf
