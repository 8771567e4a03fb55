"""Distances between two sets of vectors, in blocks: never more than one bounded block in memory.

Squares are expanded as ``|x|^2 + |y|^2 - 2 x.y`` in float64 on centred vectors. Pairs that this cannot
resolve (near or equal rows, as among raw 0-255 pixels) are computed again from the difference itself.
torch computes the blocks, so that ``device="cuda"`` is the same code; it is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysel.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

MIN_DISTANCE = 1e-5  # as published: squared distances are clipped to >= 1e-10
_MIN_SQUARED = MIN_DISTANCE**2
_NEAR = 1e-5  # below this share of |x|^2 the expansion has lost digits
_ROWS, _COLUMNS = 256, 4096  # one block: 8 MB of float64
_KEEP = 1 << 24  # numbers: this much of a side stays converted, 128 MB
_LARGEST = 1e150  # its square is still a float64
_LARGEST_SINGLE = 1e38  # twice that is still a float32


def vectors(
    values: Any, name: str, dimensions: int | None = None, *, ids: Any = None, single: bool = False
) -> Array:
    """Return a finite 2-D array of at least one row, or raise DataError with what is wrong with ``name``.

    Parameters
    ----------
    values : array or tensor, shape (rows, dimensions)
        Any real dtype; float32 and float64 are not copied.
    name : str
        What the message calls the array.
    dimensions : int, optional
        Number of dimensions that is expected.
    ids : array, optional
        What the message calls the rows.
    single : bool
        Return float32, which must be able to hold the values.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 2:
        raise DataError(f"{name} must be an array of shape (rows, dimensions), not of shape {array.shape}.")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise DataError(f"{name} is empty: its shape is {array.shape}.")
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name} must hold numbers, not {array.dtype}.")
        array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    if dimensions is not None and array.shape[1] != dimensions:
        raise DataError(
            f"{name} has {array.shape[1]} dimensions, but {dimensions} were expected; all arrays must have the same number."
        )
    largest = _LARGEST_SINGLE if single else _LARGEST
    if not (float(array.min()) > -largest and float(array.max()) < largest):  # also false for NaN
        row = int(np.argmin((np.abs(array.astype(np.float64)) < largest).all(axis=1)))
        which = f"row {row}" if ids is None else f"row with id {ids[row]}"
        raise DataError(
            f"{name} {which} holds a value that is NaN, infinite or too large; repair or drop the row."
        )
    return array.astype(np.float32, copy=False) if single else array


def first_equal(rows: Array) -> NDArray[np.int64]:
    """Return for every row the index of the first equal row, so that ties among duplicates are exact."""
    words = rows.dtype.itemsize // 4
    odd = np.random.Generator(np.random.Philox(0)).integers(
        0, 2**63, size=rows.shape[1] * words, dtype=np.uint64, endpoint=False
    )
    odd = odd * np.uint64(2) + np.uint64(1)
    keys = np.empty(len(rows), np.uint64)
    for at in range(0, len(rows), 4096):
        block = np.ascontiguousarray(rows[at : at + 4096] + rows.dtype.type(0))  # turns -0.0 into 0.0
        keys[at : at + 4096] = (block.view(np.uint32).astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found = first[inverse].astype(np.int64)
    later = np.flatnonzero(found != np.arange(len(rows)))
    equal = (rows[later] == rows[found[later]]).all(axis=1)
    found[later[~equal]] = later[~equal]  # two rows with one key: not duplicates
    return found


def nearest_logs(
    x: Array, y: Array, k: int, centre: Array, *, among_itself: bool = False, device: str | None = None
) -> Array:
    """Return ln of the distances of every x to its k nearest y, ascending: (n, k) float64.

    Distances are at least MIN_DISTANCE. With ``among_itself``, y is x, and a row is not its own neighbour.
    """
    torch = _torch()
    out = np.empty((len(x), k))
    columns = _Blocks(y, centre, _COLUMNS, device)
    for row, left, left_squares in _Blocks(x, centre, _ROWS, device):
        nearest = None
        for column, right, right_squares in columns:
            squared = _squared(left, right, left_squares, right_squares)
            if among_itself:
                own = torch.arange(len(left), device=squared.device)
                inside = (own + row >= column) & (own + row < column + len(right))
                squared[own[inside], own[inside] + (row - column)] = float("inf")
            if k == 1:
                smallest = squared.amin(dim=1, keepdim=True)
                nearest = smallest if nearest is None else torch.minimum(nearest, smallest)
            else:
                smallest = squared if nearest is None else torch.cat([nearest, squared], dim=1)
                nearest = smallest.topk(min(k, smallest.shape[1]), dim=1, largest=False, sorted=True).values
        assert nearest is not None  # y is never empty
        out[row : row + len(left)] = _half_log(nearest).cpu().numpy()
    return out


def log_matrix(y: Array, x: Array, centre: Array, dtype: Any, *, device: str | None = None) -> Array:
    """Return ln max(|y_c - x_i|, MIN_DISTANCE), (rows of y, rows of x); equal rows of y have equal bits."""
    out = np.empty((len(y), len(x)), dtype)
    columns = _Blocks(x, centre, _COLUMNS, device)
    for row, left, left_squares in _Blocks(y, centre, _ROWS, device):
        for column, right, right_squares in columns:
            logs = _half_log(_squared(left, right, left_squares, right_squares)).cpu().numpy()
            out[row : row + len(left), column : column + len(right)] = logs
    first = first_equal(y)
    again = np.flatnonzero(first != np.arange(len(y)))
    for at in range(0, len(again), _ROWS):
        out[again[at : at + _ROWS]] = out[first[again[at : at + _ROWS]]]
    return out


def mean_logs(
    y: Array, x: Array, centre: Array, eps: float, weights: Array | None = None, *, device: str | None = None
) -> NDArray[np.float64]:
    """Return g(y_c) = mean over x of ln(max(|x_i - y_c|, MIN_DISTANCE) + eps), one float64 per row of y."""
    out = np.zeros(len(y))
    columns = _Blocks(x, centre, _COLUMNS, device)
    for row, left, left_squares in _Blocks(y, centre, _ROWS, device):
        for column, right, right_squares in columns:
            squared = _squared(left, right, left_squares, right_squares)
            logs = squared.clamp_(min=_MIN_SQUARED).sqrt_().add_(eps).log_()
            if weights is not None:
                part = weights[column : column + len(right)]
                logs *= _torch().as_tensor(part, device=logs.device)[None, :]
            out[row : row + len(left)] += logs.sum(dim=1).cpu().numpy()
    return (out / len(x))[first_equal(y)]


class _Blocks:
    """First row, centred float64 rows and their squared lengths of each block, as often as iterated."""

    def __init__(self, rows: Array, centre: Array, size: int, device: str | None) -> None:
        self._rows, self._centre, self._size, self._device = rows, centre, size, device
        self._kept: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        if self._rows.size > _KEEP:
            return self._make()
        if self._kept is None:
            self._kept = list(self._make())
        return iter(self._kept)

    def _make(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        torch = _torch()
        for at in range(0, len(self._rows), self._size):
            block = torch.from_numpy(self._rows[at : at + self._size] - self._centre).to(
                self._device or "cpu"
            )
            yield at, block, (block * block).sum(dim=1)


def _squared(
    x: torch.Tensor, y: torch.Tensor, x_squares: torch.Tensor, y_squares: torch.Tensor
) -> torch.Tensor:
    torch = _torch()
    squared = torch.addmm(y_squares[None, :], x, y.T, alpha=-2.0)
    squared += x_squares[:, None]
    # near pairs have nearly equal lengths, so a limit that depends on x alone finds them all
    limit = _NEAR * x_squares
    for row in torch.nonzero(squared.amin(dim=1) <= limit)[:, 0].tolist():
        near = torch.nonzero(squared[row] <= limit[row])[:, 0]
        difference = y[near] - x[row]
        squared[row, near] = (difference * difference).sum(dim=1)
    return squared


def _half_log(squared: torch.Tensor) -> torch.Tensor:
    return squared.clamp_(min=_MIN_SQUARED).log_().mul_(0.5)


def _torch() -> Any:
    import torch

    return torch


def check_device(device: str | None) -> None:
    """Raise ConfigError if ``device`` names an accelerator that is not available."""
    if device is None or device == "cpu":
        return
    try:
        _torch().empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device = {device!r} cannot be used here ({str(error).splitlines()[0]}); choose another, such as 'cpu'."
        ) from error
