"""Matrix products whose last bits do not depend on which rows happen to come together. Pure: no Ray.

A BLAS picks its kernel by the shape of the product, so a row's result can differ in the last bit between a
block of 1,000 rows and one of 37. Rows are therefore packed into tiles of one fixed height, the last one
padded with zeros: every product then has one shape, and choices made from it are the same whatever block
Ray hands over.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TILE = 256


def tiles(rows: np.ndarray, height: int = TILE) -> Iterator[tuple[slice, np.ndarray]]:
    """``rows`` (n, d) in tiles (height, d), the last one padded with zeros; and where each one's rows lie."""
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        if len(part) < height:
            padded = np.zeros((height, *rows.shape[1:]), rows.dtype)
            padded[: len(part)] = part
            yield slice(start, start + len(part)), padded
        else:
            yield slice(start, start + height), part


def matmul(rows: np.ndarray, weights: np.ndarray, height: int = TILE) -> np.ndarray:
    """``rows @ weights`` for rows (n, d) and weights (d, k), tile by tile; the dtype of ``rows``."""
    result = np.empty((len(rows), weights.shape[1]), rows.dtype)
    for place, tile in tiles(rows, height):
        result[place] = (tile @ weights)[: place.stop - place.start]
    return result
