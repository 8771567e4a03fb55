"""Exact greedy selection: after every pick, no other row would have brought the KL lower.

At a fixed number of rows the KL depends on the pick only through a sum over target rows. For the nearest
neighbour (k = 1) and the mean over ranks, the gain of that sum, sum_i max(ln nu_k(i) - ln|x_i - y|, 0), can
only shrink as rows are chosen. An old gain is therefore an upper bound, and lazy evaluation is exact to the
last bit: rounding is monotone and every gain is summed in one fixed order. For a fixed rank k > 1 the gain
itself can grow, but the expression above still bounds it. With ``average`` picks do not affect each other: it
is one sorted pass.

While fewer than k rows are chosen, the rank is their number. The first pick of all minimises the mean log
distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysel.core.numbers import whole
from raysel.core.parameters import check_fields
from raysel.errors import ConfigError, DataError
from raysel.gio.distances import check_device, log_matrix, mean_logs, nearest_logs, vectors
from raysel.gio.kl import (
    EPS,
    Estimator,
    average_kl,
    check_rank,
    check_target,
    check_weights,
    nearest_kl,
    rho_logs,
    row_mean,
)

_FLOAT32_ABOVE = 50_000_000  # entries of the matrix of log distances
_BATCH = 16  # candidates looked at first
Run = Generator[tuple[int, float], "str | None", None]  # picks, answered with a Watch's verdict
_LARGEST_MATRIX = 4 * 2**30  # entries: 16 GiB of float32


@dataclass(frozen=True)
class Picks:
    """Selected pool rows, and the KL after each.

    Attributes
    ----------
    indices : array of int64, shape (m,)
        Positions in the pool, in the order of selection.
    kl : array of float64, shape (m,)
        KL in nats after each pick.
    kl_start : float
        KL before the first pick; infinite without start rows.
    ended : {"count", "stop", "pool"}
        Why the selection ended: the count was reached, a stop rule applied, or no row was left.
    """

    indices: NDArray[np.int64]
    kl: NDArray[np.float64]
    kl_start: float = math.inf
    ended: str = "count"

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Stop:
    """Rules that end a selection, as the publication documents them; several may be given.

    Parameters
    ----------
    increase : bool
        Stop when the KL rises. The row that would raise the KL is not selected.
    min_difference : float, optional
        Stop when a row lowers the KL by less than this value. That row is not selected.
    min_kl : float, optional
        Stop when the KL falls below this value. The row that lowers the KL below the value is still selected.
    data_size : float, optional
        Stop when this share of the pool is selected, in (0, 1].
    sequential_increase_tolerance : int, optional
        Number of consecutive rows that may raise the KL. The next row that raises the KL stops the selection
        and is not selected.
    max_resets : int, optional
        For the gradient solver only: how many times the selection may restart with the complete pool. At a
        restart, the row that would raise the KL is not selected, and all rows become available again, so a
        row may be selected twice. After this number of restarts, the next row that would raise the KL stops
        the selection.

    Raises
    ------
    ConfigError
        For a rule that is out of range or in conflict with another.

    References
    ----------
    Everaert & Potts, ICLR 2024, arXiv:2306.11670.

    Examples
    --------
    >>> from raysel.gio import Stop
    >>> raysel.GIO(budget=0.5, stop=Stop(increase=True)).stop.increase
    True
    """

    increase: bool = False
    min_difference: float | None = None
    min_kl: float | None = None
    data_size: float | None = None
    sequential_increase_tolerance: int | None = None
    max_resets: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data_size is not None and not 0 < self.data_size <= 1:
            raise ConfigError(f"stop.data_size = {self.data_size} must be a share of the pool in (0, 1].")
        for name in ("sequential_increase_tolerance", "max_resets"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"stop.{name} = {value} must not be negative.")
        for name in ("min_difference", "min_kl"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"stop.{name} = {value} must be a finite number.")
        if self.max_resets is not None and (self.increase or self.sequential_increase_tolerance is not None):
            raise ConfigError(
                "stop.max_resets cannot be combined with stop.increase or stop.sequential_increase_tolerance; "
                "remove one of them."
            )


class Watch:
    """Applies a Stop and a count to one run: it receives each pick and the KL after it.

    ``sizes`` has the number of rows that each pool row stands for; count and data_size are numbers of these.
    A row chosen again after a reset adds none. With ``onward`` the count alone ends nothing before the KL
    rises.
    """

    def __init__(
        self,
        stop: Stop | None,
        pool_rows: int,
        kl_start: float,
        count: int | None = None,
        sizes: NDArray[np.int64] | None = None,
        onward: bool = False,
    ) -> None:
        self._stop = stop or Stop()
        self.kl_start = self._previous = kl_start
        total = pool_rows if sizes is None else int(sizes.sum())
        share = total if self._stop.data_size is None else int(self._stop.data_size * total + 1e-9)
        self._limit = min(total if count is None else count, share)
        self._ended = "stop" if share < (total if count is None else count) else "count"
        self._sizes = None if sizes is None else sizes.copy()
        self._taken = self._rises = self._resets = 0
        self._onward = onward
        self.ended = "pool"

    @property
    def full(self) -> bool:
        """Whether no further row may be taken."""
        if self._taken < self._limit or self._onward:
            return False
        self.ended = self._ended
        return True

    def see(self, index: int, kl: float) -> str:
        """Return what to do with a row that leads to ``kl``.

        This is "take", "last" (take it and stop), "reset" or "stop".
        """
        verdict = self._judge(kl)
        if verdict in ("stop", "reset"):
            if verdict == "stop":
                self.ended = "count" if self._taken >= self._limit else "stop"
            return verdict
        self._onward &= kl <= self._previous
        if self.full:
            return "stop"
        self._previous = kl
        self._taken += 1 if self._sizes is None else int(self._sizes[index])
        if self._sizes is not None:
            self._sizes[index] = 0
        if self._stop.min_kl is not None and kl < self._stop.min_kl:
            self.ended = "stop"
            return "last"
        return "last" if self.full else "take"

    def _judge(self, kl: float) -> str:
        stop, rose = self._stop, kl > self._previous
        if rose and stop.increase:
            return "stop"
        if rose and stop.max_resets is not None:
            if self._resets >= stop.max_resets:
                return "stop"
            self._resets += 1
            return "reset"
        self._rises = self._rises + 1 if rose else 0
        tolerance = stop.sequential_increase_tolerance
        if tolerance is not None and self._rises > tolerance:
            return "stop"
        if stop.min_difference is not None and self._previous - kl < stop.min_difference:
            return "stop"
        return "take"


def exact_select(
    pool: Any,
    target: Any,
    count: int | None = None,
    estimator: Estimator = "nearest",
    k: int | None = None,
    start: Any = None,
    stop: Stop | None = None,
    *,
    sizes: Any = None,
    onward: bool = False,
    target_weights: Any = None,
    device: str | None = None,
) -> Picks:
    """Select the pool rows that lower KL(target || chosen) the fastest, greedily and exactly.

    Ties go to the lowest index, and equal rows tie exactly. Memory: one N x n matrix, in float32 if it has
    more than 5e7 entries (no matrix for ``average``).

    Parameters
    ----------
    pool : array or tensor of float, shape (N, d)
        Rows to select from.
    target : array or tensor of float, shape (n, d)
        Sample of the distribution to match.
    count : int, optional
        Number of rows to select. Default: all, or until ``stop``.
    estimator : {"nearest", "nearest_mean", "average"}
        Estimator of the KL; see `raysel.gio.kl`.
    k : int, optional
        Rank of the neighbour; see `raysel.gio.kl`.
    start : array or tensor of float, shape (m, d), optional
        Rows that are selected already.
    stop : Stop, optional
        Rules that may end the selection earlier.
    sizes : array of int, shape (N,), optional
        Number of rows that each pool row stands for, if it is a centroid. ``count`` is then a number of
        these, and the last pick may exceed it. Default: 1 each.
    onward : bool
        Continue after ``count`` while the KL falls.
    target_weights : array of float, shape (n,), optional
        Weight of each target row; see `raysel.gio.kl`.
    device : str, optional
        Where distances are computed, such as "cuda". Default: the CPU.

    Returns
    -------
    Picks
        The selected rows in order, and the KL after each.

    Raises
    ------
    DataError
        For arrays that cannot be used.
    ConfigError
        For parameters that are out of range, or a matrix that is too large.

    References
    ----------
    Everaert & Potts, ICLR 2024, arXiv:2306.11670.

    Examples
    --------
    >>> from raysel.gio import exact_select
    >>> pool, target = np.array([[0.0], [5.0], [0.2]]), np.array([[0.1], [0.3]])
    >>> exact_select(pool, target, 2).indices.tolist()
    [2, 0]
    """
    rows = vectors(pool, "pool")
    sizes = check_sizes(sizes, len(rows))
    check_count(count, len(rows) if sizes is None else int(sizes.sum()))
    if stop is not None and stop.max_resets is not None:
        raise ConfigError(
            "stop.max_resets can only be used with the gradient solver, because the exact solver never "
            "restarts the selection; remove it."
        )
    picks, kl_start = _greedy(rows, target, estimator, k, start, target_weights, device)
    return collect(picks, Watch(stop, len(rows), kl_start, count, sizes, onward))


def greedy(
    pool: Any,
    target: Any,
    estimator: Estimator = "nearest",
    k: int | None = None,
    start: Any = None,
    *,
    target_weights: Any = None,
    device: str | None = None,
) -> Iterator[tuple[int, float]]:
    """Yield (pool row, KL after it) of the same selection one by one, until the pool is empty."""
    return _greedy(vectors(pool, "pool"), target, estimator, k, start, target_weights, device)[0]


def collect(picks: Run, watch: Watch) -> Picks:
    """Return the picks that ``watch`` accepts; ``picks`` is sent the verdict on each."""
    indices: list[int] = []
    values: list[float] = []
    verdict: str | None = None
    while not watch.full and verdict not in ("stop", "last"):
        try:
            index, kl = picks.send(verdict)
        except StopIteration:
            break
        verdict = watch.see(index, kl)
        if verdict in ("take", "last"):
            indices.append(index)
            values.append(kl)
    return Picks(np.array(indices, np.int64), np.array(values, np.float64), watch.kl_start, watch.ended)


def check_count(count: int | None, pool_rows: int) -> None:
    """Raise ConfigError unless ``count`` rows can be chosen from the pool."""
    if count is None:
        return
    if whole("count", count, 1) > pool_rows:
        raise ConfigError(f"count = {count} is more than the pool's {pool_rows} rows.")


def check_sizes(sizes: Any, pool_rows: int) -> NDArray[np.int64] | None:
    """Return the number of rows that each pool row stands for, at least one each."""
    if sizes is None:
        return None
    array = np.asarray(sizes)
    if array.shape != (pool_rows,) or array.dtype.kind not in "iu" or array.min() < 1:
        raise DataError(
            f"sizes must hold a whole number of at least 1 for each of the pool's {pool_rows} rows."
        )
    return array.astype(np.int64)


def _greedy(
    pool: NDArray[Any],
    target: Any,
    estimator: Estimator,
    k: int | None,
    start: Any,
    target_weights: Any,
    device: str | None,
) -> tuple[Run, float]:
    """Return the picks, and the KL before the first one (infinite without ``start``)."""
    target, d = check_target(target)
    vectors(pool[:1], "pool", d)
    rank = check_rank(estimator, k, len(target))
    weights = check_weights(target_weights, len(target))
    check_device(device)
    begin = None if start is None or len(start) == 0 else vectors(start, "start", d)
    centre = target.mean(axis=0, dtype=np.float64)
    rho = rho_logs(target, rank, centre, estimator, weights, device=device)
    n = len(target)
    if estimator == "average":
        g = mean_logs(pool, target, centre, EPS, weights, device=device)
        total, m = 0.0, 0
        if begin is not None:
            total, m = float(mean_logs(begin, target, centre, EPS, weights, device=device).sum()), len(begin)
        kl_start = average_kl(total / m, m, n, d, rank, float(rho[-1])) if m else math.inf
        return _sorted_pass(g, total, m, n, d, rank, float(rho[-1])), kl_start

    if len(pool) * n > _LARGEST_MATRIX:
        raise ConfigError(
            f"The exact solver needs a matrix of {4 * len(pool) * n / 2**30:.0f} GiB for {len(pool)} centroids (with "
            f"clusters=None, pool rows) and {n} target rows; give a smaller number of clusters, or estimator='average'."
        )
    nu, m = np.empty((0, n)), 0
    if begin is not None:
        m = len(begin)
        nu = np.ascontiguousarray(nearest_logs(target, begin, min(rank, m), centre, device=device).T)
    kl_start = nearest_kl(row_mean(nu.T, weights), rho, m, n, d, estimator) if m else math.inf
    logs = log_matrix(
        pool, target, centre, np.float32 if len(pool) * n > _FLOAT32_ABOVE else np.float64, device=device
    )
    if weights is not None:  # scaling both sides by the weight leaves every comparison as it was
        logs *= weights.astype(logs.dtype)
        nu *= weights
    return _lazy(logs, nu, rank, m, rho, d, estimator), kl_start


def _sorted_pass(g: NDArray[np.float64], total: float, m: int, n: int, d: int, k: int, rho: float) -> Run:
    for index in np.argsort(g, kind="stable").tolist():
        total += float(g[index])
        m += 1
        yield index, average_kl(total / m, m, n, d, k, rho)


def _lazy(
    logs: NDArray[Any], nu: NDArray[np.float64], k: int, m: int, rho: Any, d: int, estimator: Estimator
) -> Run:
    """Yield picks from the (pool, target) matrix of log distances.

    ``nu`` has the ranks so far, (at most k, target).
    """
    pool_rows, n = logs.shape
    bound = np.full(pool_rows, np.inf)
    for _ in range(pool_rows):
        score = _score(logs, nu, k, estimator)
        index = _best(bound, score)
        bound[index] = -np.inf
        nu = _insert(nu, logs[index].astype(np.float64), k)
        m += 1
        yield index, nearest_kl(nu.sum(axis=1) / n, rho, m, n, d, estimator)


def _score(
    logs: NDArray[Any], nu: NDArray[np.float64], k: int, estimator: Estimator
) -> Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return a function of pool rows that returns their gain now, and a bound on their later gain."""
    n = logs.shape[1]
    block = max(1, 32_768 // n)
    buffer = np.empty((block, n))
    last = nu[-1] if len(nu) else None
    # the rank's value cannot fall below the rank before it
    room = nu[-1] - nu[-2] if estimator == "nearest" and len(nu) == k > 1 else None

    def score(rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gain = np.empty(len(rows))
        bound = np.full(len(rows), np.inf)
        for at in range(0, len(rows), block):
            part = slice(at, at + block)
            values = logs[rows[part]] if block > 1 else logs[rows[at], None]
            here = buffer[: len(values)]
            if last is None or (len(nu) < k and estimator == "nearest_mean"):
                np.negative(values, out=here)
                gain[part] = here.sum(axis=1)
            elif len(nu) < k:  # the new row makes a new rank: the farther of itself and the last one
                np.minimum(-last, np.negative(values, out=here), out=here)
                gain[part] = here.sum(axis=1)
            else:
                np.subtract(last, values, out=here)
                np.maximum(here, 0.0, out=here)
                gain[part] = bound[part] = here.sum(axis=1)
                if room is not None:
                    gain[part] = np.minimum(here, room, out=here).sum(axis=1)
        return gain, bound

    return score


def _best(
    bound: NDArray[np.float64],
    score: Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> int:
    """Return the lowest index of the largest gain.

    Tighten ``bound`` in place (-inf: no longer in the pool).
    """
    gain = np.full(len(bound), -np.inf)
    left = np.flatnonzero(bound > -np.inf)
    size, top = _BATCH, -np.inf
    while True:
        left = left[bound[left] >= top]
        if len(left) == 0:
            return int(gain.argmax())
        here = left
        if len(left) > size and bound[left].min() < np.inf:
            here = left[np.argpartition(-bound[left], size)[:size]]
        gain[here], bound[here] = score(here)
        top = max(top, float(gain[here].max()))
        left = np.setdiff1d(left, here, assume_unique=True)
        size = min(2 * size, 512)


def _insert(nu: NDArray[np.float64], values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the ranks with one more row in them, at most k."""
    out = np.empty((min(k, len(nu) + 1), len(values)))
    for rank in range(len(out)):
        if rank < len(nu):
            out[rank] = np.minimum(nu[rank], values)
            values = np.maximum(nu[rank], values)
        else:
            out[rank] = values
    return out
