"""Figures with the interval in which they are stated to lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

SIGMAS = 3.0  # bounds of sampled figures are so many standard errors


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval in which it is stated to lie; exact if the three are one."""

    value: float
    low: float
    high: float

    @property
    def bound(self) -> float:
        """The largest absolute error."""
        if math.isinf(self.value):  # beyond float64, where a difference would say nothing
            return 0.0 if self.low == self.high else math.inf
        return max(self.high - self.value, self.value - self.low)

    def through(self, function: Callable[[float], float]) -> Estimate:
        """Return the estimate of a monotone function of the figure."""
        ends = (function(self.low), function(self.high))
        return Estimate(function(self.value), min(ends), max(ends))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)

    def __truediv__(self, other: Estimate) -> Estimate:
        """Return the quotient of figures that are not negative."""
        return Estimate(
            _ratio(self.value, other.value), _ratio(self.low, other.high), _ratio(self.high, other.low)
        )

    def clip(self, low: float, high: float) -> Estimate:
        """Return the estimate limited to an interval."""
        return Estimate(*(min(max(end, low), high) for end in (self.value, self.low, self.high)))


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf


def exact(value: float) -> Estimate:
    """Return an exact estimate."""
    return Estimate(float(value), float(value), float(value))
