"""k-nearest-neighbour estimators of KL(target || chosen), in nats.

``nearest`` and ``nearest_mean`` are from Wang, Kulkarni & Verdú (2009); ``average``, over all ranks, is from
Everaert & Potts, ICLR 2024, arXiv:2306.11670. With rho_j(i) the distance of target row i to its j-th
neighbour among the target rows, nu_j(i) to its j-th neighbour among the chosen rows, n target rows, m chosen
rows and d dimensions::

    nearest       d * mean_i ln(nu_k(i) / rho_k(i)) + ln(m / (n-1))
    nearest_mean  the mean of nearest over the ranks j = 1..k; each is a consistent estimate, so the mean is one,
                  and the additive constant stays ln(m / (n-1))
    average       d * (mean_ij ln(|x_i - w_j| + eps) - mean_i ln(rho_k(i) + eps)) + ln k - ln(n-1) + ln m - ln(m!)/m

Distances are at least 1e-5 and eps is 1e-8, both as published. ``average`` is not an estimate of the
divergence if there are many ranks, and cannot rank selections: it prefers the centre of the pool.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raysel.core.numbers import whole
from raysel.errors import ConfigError, DataError
from raysel.gio.distances import MIN_DISTANCE, check_device, mean_logs, nearest_logs, vectors

Estimator = Literal["nearest", "nearest_mean", "average"]
EPS = 1e-8
_DEFAULT_K = {"nearest": 1, "nearest_mean": 5, "average": 5}

__all__ = ["EPS", "MIN_DISTANCE", "Estimator", "kl"]


def kl(
    target: Any,
    chosen: Any,
    estimator: Estimator = "nearest",
    k: int | None = None,
    *,
    target_weights: Any = None,
    device: str | None = None,
) -> float:
    """Estimate KL(target || chosen) in nats.

    Memory does not grow with n * m.

    Parameters
    ----------
    target : array or tensor of float, shape (n, d)
        Sample of the distribution to match.
    chosen : array or tensor of float, shape (m, d)
        Selected rows.
    estimator : {"nearest", "nearest_mean", "average"}
        The estimator. ``average`` is the published one, and cannot rank selections.
    k : int, optional
        Rank of the neighbour. Default: 1, or 5 for ``nearest_mean`` and ``average`` (as published).
    target_weights : array of float, shape (n,), optional
        Weight of each target row, for example if it is a centroid. Default: equal weights.
    device : str, optional
        Where distances are computed, such as "cuda". Default: the CPU.

    Returns
    -------
    float
        The estimate, which can be negative.

    Raises
    ------
    DataError
        For arrays that cannot be used.
    ConfigError
        For a ``k`` that the rows do not allow.

    References
    ----------
    Wang, Kulkarni & Verdú (2009); Everaert & Potts, ICLR 2024, arXiv:2306.11670.

    Examples
    --------
    >>> from raysel.gio import kl
    >>> rng = np.random.default_rng(0)
    >>> target, near, far = rng.normal(size=(50, 2)), rng.normal(size=(50, 2)), rng.normal(5, 1, size=(50, 2))
    >>> kl(target, near) < kl(target, far)
    True
    """
    target, d = check_target(target)
    chosen = vectors(chosen, "chosen", d)
    rank = check_rank(estimator, k, len(target))
    if estimator != "average" and rank > len(chosen):
        raise ConfigError(
            f"k = {rank} needs at least {rank} selected rows, but there are {len(chosen)}; lower k."
        )
    check_device(device)
    weights = check_weights(target_weights, len(target))
    centre = target.mean(axis=0, dtype=np.float64)
    rho = rho_logs(target, rank, centre, estimator, weights, device=device)
    if estimator == "average":
        g = mean_logs(chosen, target, centre, EPS, weights, device=device)
        return average_kl(float(g.mean()), len(chosen), len(target), d, rank, float(rho[-1]))
    nu = row_mean(nearest_logs(target, chosen, rank, centre, device=device), weights)
    return nearest_kl(nu, rho, len(chosen), len(target), d, estimator)


def nearest_kl(nu: Any, rho: Any, m: int, n: int, d: int, estimator: Estimator) -> float:
    """Return the estimate from mean_i ln nu_j and mean_i ln rho_j of the r ranks of ``nu``."""
    difference = np.asarray(nu) - np.asarray(rho)[: len(nu)]
    log_ratio = float(difference[-1] if estimator == "nearest" else difference.mean())
    return d * log_ratio + math.log(m / (n - 1))


def average_kl(mean_g: float, m: int, n: int, d: int, k: int, rho: float) -> float:
    """Return the published average.

    ``mean_g`` is the mean of g over the chosen rows, ``rho`` that of ln rho_k.
    """
    return d * (mean_g - rho) + math.log(k) - math.log(n - 1) + math.log(m) - math.lgamma(m + 1) / m


def rho_logs(
    target: Any, k: int, centre: Any, estimator: Estimator, weights: Any, *, device: str | None = None
) -> NDArray[np.float64]:
    """Return mean_i ln rho_j(i) for j = 1..k (plus eps inside the logarithm for ``average``)."""
    logs = nearest_logs(target, target, k, centre, among_itself=True, device=device)
    if estimator == "average":
        logs = np.log(np.exp(logs) + EPS)
    return row_mean(logs, weights)


def row_mean(logs: Any, weights: Any) -> NDArray[np.float64]:
    """Return the weighted mean over rows; weights have mean 1."""
    mean: NDArray[np.float64] = (logs if weights is None else logs * weights[:, None]).mean(axis=0)
    return mean


def check_target(target: Any) -> tuple[NDArray[Any], int]:
    """Return the target as an array of at least two rows, and its dimensions."""
    array = vectors(target, "target")
    if len(array) < 2:
        raise DataError(
            "target has 1 row, but the estimate uses the distances between rows; give two or more."
        )
    return array, array.shape[1]


def check_rank(estimator: str, k: int | None, n: int) -> int:
    """Return the rank to use.

    Raise ConfigError for an unknown estimator or a rank that n target rows do not have.
    """
    if estimator not in _DEFAULT_K:
        raise ConfigError(
            f"estimator = {estimator!r} is unknown; use one of {', '.join(get_args(Estimator))}."
        )
    if k is None:
        return min(_DEFAULT_K[estimator], n - 1)
    if (rank := whole("k", k, 1)) > n - 1:
        raise ConfigError(
            f"k = {rank} is too large for a target of {n} rows: a row has {n - 1} neighbours; lower k."
        )
    return rank


def check_weights(weights: Any, n: int) -> NDArray[np.float64] | None:
    """Return the weights of the target rows, scaled to mean 1."""
    if weights is None:
        return None
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise DataError(
            f"target_weights has shape {array.shape}; it must hold one weight for each of {n} rows."
        )
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise DataError("target_weights must be finite and not negative, with a positive sum.")
    scaled: NDArray[np.float64] = array * (n / array.sum())
    return scaled
