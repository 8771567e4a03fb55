"""Sums for each group without any rounding, as Python integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from raysel.gime.grouped import Codes

_SCALE = 1130  # sums are integers in units of 2^-1130, below the least subnormal's last digit


def exact_sums(group: Codes | None, values: npt.NDArray[np.float64], groups: int) -> list[int]:
    """The sum of finite floats for each group without any rounding: Python integers, see :func:`as_float`.

    From each value its digits above a common place are cut off, which are few enough that floats add them exactly in any
    order, and again from what is left (AccSum: Rump, Ogita & Oishi 2008).
    """
    totals = [0] * groups
    huge = np.abs(values) >= 2.0**900  # whose place to cut at would overflow
    if huge.any():
        codes = None if group is None else group[huge]
        totals = [total << 200 for total in exact_sums(codes, np.ldexp(values[huge], -200), groups)]
        values = np.where(huge, 0.0, values)
    for start in range(0, len(values), 1 << 24):  # so many times 2^25 still fit the 53 digits
        rest = values[start : start + (1 << 24)]
        codes = None if group is None else group[start : start + (1 << 24)]
        while largest := float(max(rest.max(), -rest.min())):
            top = math.frexp(largest)[1]
            cutter = math.ldexp(1.5, top + 27)  # 1.5, so that no sum falls below a power of two
            upper = (rest + cutter) - cutter  # multiples of 2^(top - 25)
            sums = np.array([upper.sum()]) if codes is None else np.bincount(codes, upper, groups)
            for at in np.flatnonzero(sums):
                totals[at] += int(math.ldexp(sums[at], 25 - top)) << (top - 25 + _SCALE)
            rest = rest - upper
    return totals


def integer_sums(group: Codes | None, values: npt.NDArray[np.int64], groups: int) -> list[int]:
    """The sum of int64 for each group, beyond int64 too."""
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
    """A sum of :func:`exact_sums` by ``divisor``, rounded once; infinite beyond float64."""
    try:
        return float(Fraction(total, divisor << _SCALE))
    except OverflowError:
        return math.inf if total > 0 else -math.inf
