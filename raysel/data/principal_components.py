"""Principal components from exact sums, with the same bits however the rows are split. Without Ray.

Values are rounded to a grid of whole numbers, column by column: small integers (pixels) as they are, others
to 16 to 20 bits of the column's range. Sums and products of whole numbers below 2**53 are exact in float64 in
any order, so partial sums of any blocks, threads or nodes add up to one and the same covariance. The grid
costs at most 2**-16 of a column's range per value, about what float32 sums would lose, and not always the
same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BITS = 20  # of a column's half range, where the number of rows leaves room for it
_WHOLE_BITS = 16


@dataclass(frozen=True)
class Range:
    """What a grid depends on: rows, extremes (D,), and whether values are integers of at most 16 bits."""

    rows: int
    low: np.ndarray
    high: np.ndarray
    whole: bool

    @classmethod
    def of(cls, values: np.ndarray) -> Range:
        """Return the range of values (n, D), n >= 1, all finite."""
        return cls(
            len(values),
            values.min(axis=0).astype(np.float64),
            values.max(axis=0).astype(np.float64),
            values.dtype in (np.uint8, np.int8, np.uint16, np.int16, np.bool_),
        )

    def __add__(self, other: Range) -> Range:
        return Range(
            self.rows + other.rows,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.whole and other.whole,
        )


@dataclass(frozen=True)
class Grid:
    """value = centre + step * whole number of at most ``bits`` bits; centre, step (D,) float64."""

    centre: np.ndarray
    step: np.ndarray
    bits: int

    @classmethod
    def over(cls, span: Range) -> Grid:
        """Return the grid for a range."""
        if span.whole:
            return cls(np.zeros(len(span.low)), np.ones(len(span.low)), _WHOLE_BITS)
        bits = min(_BITS, (62 - span.rows.bit_length()) // 2)
        half = (span.high - span.low) / 2
        return cls(span.low + half, np.where(half > 0, half, 1.0) / 2**bits, bits)


@dataclass(frozen=True)
class Moments:
    """Exact sums over rows on a grid: their count, sum (D,) and products (D, D), int64."""

    rows: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, grid: Grid) -> Moments:
        """Return the moments of values (n, D)."""
        width = values.shape[1]
        total, products = np.zeros(width, np.int64), np.zeros((width, width), np.int64)
        height = 1 << (53 - 2 * grid.bits)  # so many products of two numbers stay below 2**53
        for start in range(0, len(values), height):
            part = np.rint((values[start : start + height].astype(np.float64) - grid.centre) / grid.step)
            total += part.sum(axis=0).astype(np.int64)
            products += (part.T @ part).astype(np.int64)
        return cls(len(values), total, products)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.rows + other.rows, self.total + other.total, self.products + other.products)


def components(moments: Moments, grid: Grid, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the mean (D,), the ``count`` first components (count, D) and their share of the variance.

    Components have unit length, largest variance first, and their largest element is positive.
    """
    from threadpoolctl import threadpool_limits

    mean = moments.total / moments.rows
    covariance = moments.products / moments.rows - np.outer(mean, mean)
    covariance *= np.outer(grid.step, grid.step)
    with threadpool_limits(limits=1):  # more threads would add in another order
        variances, vectors = np.linalg.eigh(covariance)
    top = vectors[:, ::-1][:, :count].T
    largest = np.abs(top).argmax(axis=1)
    top = top * np.sign(top[np.arange(len(top)), largest])[:, None]
    variances = np.maximum(variances[::-1], 0)
    total = variances.sum()
    explained = float(variances[:count].sum() / total) if total > 0 else 1.0
    return (
        (grid.centre + grid.step * mean).astype(np.float32),
        np.ascontiguousarray(top, dtype=np.float32),
        explained,
    )
