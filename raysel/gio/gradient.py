"""Selection by gradient descent as published (Everaert & Potts, ICLR 2024, arXiv:2306.11670), in closed form.

A free point v descends KL(target || chosen + v) in ``steps`` plain gradient steps, and the nearest pool row
joins the chosen rows. Since the published KL is a mean over pairs, its gradient in v is ``d / (m+1)`` times
that of ``g(v) = mean_i ln(|x_i - v| + eps)`` whatever the m chosen rows are, and the KL after a pick follows
from g of the picked row alone. This module computes that; the picks are the published ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raysel.core.numbers import whole
from raysel.errors import ConfigError
from raysel.gio.distances import MIN_DISTANCE, check_device, first_equal, mean_logs, vectors
from raysel.gio.greedy import Picks, Run, Stop, Watch, check_count, check_sizes, collect
from raysel.gio.kl import EPS, average_kl, check_rank, check_target, rho_logs

_WARM_UP = 3  # times `steps`, on the first pick, after a reset and on a random restart
_UNIFORM_START = 20
AS_PUBLISHED = Stop(increase=True)


def gradient_select(
    pool: Any,
    target: Any,
    count: int = 100,
    start: Any = None,
    init: Literal["mean", "jump", "prev_opt"] = "mean",
    steps: int = 50,
    learning_rate: float = 0.01,
    seed: int = 0,
    *,
    k: int | None = None,
    stop: Stop | None = AS_PUBLISHED,
    restart: float = 0.0,
    sizes: Any = None,
    onward: bool = False,
    device: str | None = None,
) -> Picks:
    """Select pool rows as the publication does, by gradient descent.

    Random draws are those that the publication makes after ``random.seed(seed)``. Without resets no row is
    selected twice.

    Parameters
    ----------
    pool : array or tensor of float, shape (N, d)
        Rows to select from.
    target : array or tensor of float, shape (n, d)
        Sample of the distribution to match.
    count : int
        Greatest number of rows to select.
    start : array or tensor of float, shape (m, d), optional
        Rows that are selected already. Default: the published 20 uniform points of length 1.
    init : {"mean", "jump", "prev_opt"}
        Where v starts for every pick: the target's mean, a random target row, or where it stopped.
    steps : int
        Gradient steps per pick.
    learning_rate : float
        Learning rate of the descent.
    seed : int
        Seed of the random draws.
    k : int, optional
        Rank of the target's own neighbours. Default: 5, as published.
    stop : Stop or None
        Rules next to ``count``. Default: the published one, to stop when the KL rises; None for no rule.
    restart : float
        Probability of a descent of 3 * ``steps`` at a pick.
    sizes : array of int, shape (N,), optional
        See `raysel.gio.exact_select`.
    onward : bool
        See `raysel.gio.exact_select`.
    device : str, optional
        Where distances are computed, such as "cuda". Default: the CPU.

    Returns
    -------
    Picks
        The selected rows in order, and the KL after each by the estimator ``average``.

    Raises
    ------
    DataError
        For arrays that cannot be used.
    ConfigError
        For parameters that are out of range.

    References
    ----------
    Everaert & Potts, ICLR 2024, arXiv:2306.11670.

    Examples
    --------
    >>> from raysel.gio import gradient_select
    >>> rng = np.random.default_rng(0)
    >>> len(gradient_select(rng.normal(size=(30, 2)), rng.normal(size=(20, 2)), count=5, stop=None))
    5
    """
    rows = vectors(pool, "pool")
    target, d = check_target(target)
    vectors(rows[:1], "pool", d)
    rank = check_rank("average", k, len(target))
    sizes = check_sizes(sizes, len(rows))
    if stop is None or stop.max_resets is None:
        check_count(count, len(rows) if sizes is None else int(sizes.sum()))
    else:
        whole("count", count, 1)
    seed = whole("seed", seed)
    if init not in ("mean", "jump", "prev_opt"):
        raise ConfigError(f"init = {init!r} is unknown; use 'mean', 'jump' or 'prev_opt'.")
    if steps < 1 or not (math.isfinite(learning_rate) and learning_rate > 0) or not 0 <= restart <= 1:
        raise ConfigError("steps must be at least 1, learning_rate above 0, and restart in [0, 1].")
    check_device(device)
    begin = _uniform(d, seed) if start is None else vectors(start, "start", d)

    centre = target.mean(axis=0, dtype=np.float64)
    rho = float(rho_logs(target, rank, centre, "average", None, device=device)[-1])
    g = mean_logs(rows, target, centre, EPS, device=device)
    total, m = float(mean_logs(begin, target, centre, EPS, device=device).sum()), len(begin)
    kl_start = average_kl(total / m, m, len(target), d, rank, rho)
    walk = _Walk(rows, target, centre, m, init, steps, learning_rate, restart, seed)

    def run() -> Run:
        chosen, so_far = m, total
        while walk.left:
            with threadpool_limits(
                1, "blas"
            ):  # products this small lose more to waiting threads than they gain
                index = walk.nearest(chosen)
            after = so_far + float(g[index])
            verdict = yield index, average_kl(after / (chosen + 1), chosen + 1, len(target), d, rank, rho)
            if verdict == "reset":
                walk.reset()
            else:
                chosen, so_far = chosen + 1, after

    return collect(run(), Watch(stop, len(rows), kl_start, count, sizes, onward))


class _Walk:
    """The point v, the remaining pool rows, and the random draws, in the publication's order."""

    def __init__(
        self,
        pool: NDArray[Any],
        target: NDArray[Any],
        centre: NDArray[np.float64],
        m: int,
        init: str,
        steps: int,
        learning_rate: float,
        restart: float,
        seed: int,
    ) -> None:
        self._pool = pool - centre
        self._pool_squares = (self._pool**2).sum(axis=1)
        self._first_equal = first_equal(pool)
        self._target = target - centre
        self._slope = _slope(self._target)
        self._init, self._steps, self._restart = init, steps, restart
        self._random = random.Random(seed)
        self._here = np.ones(len(pool), bool)
        self._warm = True
        self._v = self._begin(np.zeros(len(centre)))
        slope = float(np.linalg.norm(self._slope(self._v)))
        # published: |v| / |gradient| at the first v, whose length is taken from the origin; the factor d is in both
        length = float(np.linalg.norm(self._v + centre))
        self._rate = learning_rate * (m + 1) * length / slope if slope > 0 else 0.0

    @property
    def left(self) -> bool:
        return bool(self._here.any())

    def nearest(self, m: int) -> int:
        """Descend with m rows chosen, and take the pool row nearest to the end point."""
        extend = self._warm or self._random.random() < self._restart
        for _ in range(self._steps * (_WARM_UP if extend else 1)):
            self._v = self._v - self._rate / (m + 1) * self._slope(self._v)
        squared = (self._pool_squares - 2.0 * (self._pool @ self._v))[self._first_equal]
        squared[~self._here] = np.inf
        index = int(squared.argmin())
        self._here[index] = self._warm = False
        self._v = self._begin(self._v)
        return index

    def reset(self) -> None:
        """Make all rows available again; ``prev_opt`` starts from the mean once more."""
        self._here[:] = self._warm = True
        if self._init == "prev_opt":
            self._v = np.zeros_like(self._v)

    def _begin(self, before: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._init == "mean":
            return np.zeros_like(before)  # the target is centred
        if self._init == "jump":
            row = self._random.sample(range(len(self._target)), 1)[0]
            return np.array(self._target[row])
        return before


def _slope(target: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the gradient of g as a function of v: two matrix-vector products."""
    squares = (target**2).sum(axis=1)
    columns = np.ascontiguousarray(target.T)

    def slope(v: NDArray[np.float64]) -> NDArray[np.float64]:
        squared = squares - 2.0 * (v @ columns) + float(v @ v)
        far = squared > MIN_DISTANCE**2  # where the distance is clipped the gradient is zero
        distance = np.sqrt(np.where(far, squared, 1.0))
        pull = np.where(far, 1.0 / (distance * (distance + EPS)), 0.0)
        gradient: NDArray[np.float64] = (pull.sum() * v - columns @ pull) / len(squares)
        return gradient

    return slope


def _uniform(d: int, seed: int) -> NDArray[np.float64]:
    points = np.random.Generator(np.random.Philox(seed % 2**64)).uniform(-1.0, 1.0, size=(_UNIFORM_START, d))
    scaled: NDArray[np.float64] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return scaled
