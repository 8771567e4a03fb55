"""Density ratio of target to pool, row by row, by a classifier of one against the other. Without Ray.

The classifier minimises 1/2 mean_pool log(1 + e^s) + 1/2 mean_target log(1 + e^-s) + lambda/2 |w|^2, so that s estimates the
logarithm of the ratio of the two densities whatever the numbers of rows. Rows belong to one of three folds by a hash of
their id; a row is scored by the model that was fitted without its fold.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysel.core.hashing import hash_ids

Array = NDArray[Any]

FOLDS = 3
_POOL, _TARGET, _WAVES = 1, 2, 3  # streams of draws that do not depend on each other
_STRENGTHS = tuple(10.0 / 10 ** (at / 2) for at in range(8))  # of the penalty: 10 to 0.003
_FEATURES = 1024
_STEP = (
    2.0**-10
)  # scores are rounded to it, so that the rounding errors of a matrix product do not reach them
_BLOCK = 4096  # rows whose features are in memory at a time


@dataclass(frozen=True)
class Features:
    """Standardised vectors, with random Fourier features next to them if there are frequencies.

    Attributes
    ----------
    mean : array of float64, shape (d,)
        Of the pool.
    scale : float
        Mean standard deviation of the elements in the pool.
    frequencies : array of float64, shape (d, 1024) or (d, 0)
        Of the cosines.
    phases : array of float64, shape (1024,) or (0,)
        Of the cosines.
    """

    mean: Array
    scale: float
    frequencies: Array
    phases: Array

    def __call__(self, rows: Array) -> NDArray[np.float64]:
        """Return the features (n, D) of rows (n, d)."""
        z = (rows.astype(np.float64) - self.mean) / self.scale
        if not len(self.phases):
            return z
        waves = np.sqrt(2.0) * np.cos(z @ self.frequencies + self.phases)  # of variance 1, as z
        return np.concatenate([z, waves], axis=1)


@dataclass(frozen=True)
class Ratio:
    """The classifier of target against pool.

    Attributes
    ----------
    features : Features
        What it is linear in.
    weights : array of float64, shape (3, D)
        One model per fold, fitted without that fold.
    bias : array of float64, shape (3,)
        Their intercepts.
    strength : float
        Of the penalty, chosen by the loss out of fold.
    gain, error : float
        Loss of a constant less the loss out of fold, in nats, and its standard error.
    target_scores : array of float64, shape (m,)
        Of the target rows, out of fold.
    seed : int
        Of the folds.
    """

    features: Features
    weights: Array
    bias: Array
    strength: float
    gain: float
    error: float
    target_scores: Array
    seed: int

    @property
    def separates(self) -> bool:
        """Whether pool and target differ by more than two standard errors."""
        return self.gain > 2 * self.error

    def scores(self, ids: NDArray[np.int64], rows: Array) -> NDArray[np.float64]:
        """Return the logarithm of the ratio for pool rows (n, d), rounded to 2**-10."""
        return self._scores(fold(ids, self.seed, _POOL), rows)

    def _scores(self, folds: Array, rows: Array) -> NDArray[np.float64]:
        found = np.empty(len(rows))
        for at in range(0, len(rows), _BLOCK):
            part = slice(at, at + _BLOCK)
            every = self.features(rows[part]) @ self.weights.T + self.bias
            found[part] = every[np.arange(len(every)), folds[part]]
        return np.round(found / _STEP) * _STEP


def fold(ids: NDArray[np.int64], seed: int, stream: int) -> NDArray[np.int64]:
    """Return the fold of every id."""
    return (hash_ids(ids, seed * 4 + stream) * FOLDS).astype(np.int64)


def fit_ratio(
    pool_ids: NDArray[np.int64], pool: Array, target_ids: NDArray[np.int64], target: Array, seed: int = 0
) -> Ratio:
    """Fit the classifier on samples of pool and target.

    Candidates are a linear model and one with 1,024 random Fourier features, whose bandwidth is half of the median distance
    from pool to target, each with penalties from 10 down to 0.003. The one with the lowest loss out of fold is kept.

    Parameters
    ----------
    pool_ids, target_ids : array of int64, shape (n,) and (m,)
        Determine the folds.
    pool, target : array, shape (n, d) and (m, d)
        Vectors.
    seed : int
        Seed of folds and features.

    Returns
    -------
    Ratio
        The fitted classifier.
    """
    from threadpoolctl import threadpool_limits

    mean = pool.mean(axis=0, dtype=np.float64)
    # One scale for all elements: dividing each by its own spread would make the elements that hold mostly noise, such as the
    # last principal components, as important as the first.
    scale = float(pool.std(axis=0, dtype=np.float64).mean()) or 1.0
    d = pool.shape[1]
    linear = Features(mean, scale, np.empty((d, 0)), np.empty(0))
    rng = np.random.Generator(np.random.Philox(seed % 2**62 * 4 + _WAVES))
    width = _median_distance(linear(pool[:1000]), linear(target[:1000])) / 2
    waves = rng.standard_normal((d, _FEATURES)) / (width or 1.0)
    fourier = Features(mean, scale, waves, rng.uniform(0, 2 * np.pi, _FEATURES))
    folds = np.concatenate([fold(pool_ids, seed, _POOL), fold(target_ids, seed, _TARGET)])
    rows = np.concatenate([pool, target])
    label = np.repeat([0.0, 1.0], [len(pool), len(target)])
    with threadpool_limits(1):  # the order of a sum depends on the number of threads
        found = [fit_path(features, rows, label, folds) for features in (linear, fourier)]
    features, (strength, weights, bias, scores) = min(
        zip((linear, fourier), found, strict=True), key=lambda one: _loss(one[1][3], label)
    )
    gains = np.log(2) - np.logaddexp(0, np.where(label > 0, -scores, scores))
    parts = [gains[label == which] for which in (0, 1)]
    gain = sum(part.mean() for part in parts) / 2
    error = 0.5 * sum(part.var(ddof=1) / len(part) if len(part) > 1 else np.inf for part in parts) ** 0.5
    made = Ratio(features, weights, bias, strength, float(gain), float(error), np.empty(0), seed)
    own = made._scores(folds[label > 0], target)
    return Ratio(features, weights, bias, strength, float(gain), float(error), own, seed)


def fit_path(
    features: Features, rows: Array, label: Array, folds: Array
) -> tuple[float, Array, Array, Array]:
    """Return the best strength of the penalty, weights and bias per fold, and scores out of fold."""
    order = np.argsort(folds, kind="stable")
    ends = np.searchsorted(folds[order], np.arange(FOLDS + 1))
    x, label = _with_ones(features, rows[order]), label[order]
    parts = [(x[a:b], label[a:b]) for a, b in itertools.pairwise(ends)]
    grams = [_grams(*part) for part in parts]
    models = [np.zeros(x.shape[1]) for _ in range(FOLDS)]
    best: tuple[float, Array, Array, Array] | None = None
    lowest, worse = np.inf, 0
    for strength in _STRENGTHS:
        scores = np.zeros(len(x))
        for number in range(FOLDS):
            inside = [fold for fold in range(FOLDS) if fold != number]
            models[number] = logistic(
                [parts[fold] for fold in inside], [grams[fold] for fold in inside], strength, models[number]
            )
            scores[ends[number] : ends[number + 1]] = parts[number][0] @ models[number].astype(np.float32)
        loss = _loss(scores, label)
        worse = 0 if loss < lowest else worse + 1
        if best is None or loss < lowest:
            there = np.empty(len(scores))
            there[order] = scores
            lowest, best = loss, (strength, np.array(models)[:, :-1], np.array(models)[:, -1], there)
        if worse == 2:  # weaker penalties fit noise, and take the longest
            break
    assert best is not None
    return best


def _with_ones(features: Features, rows: Array) -> NDArray[np.float32]:
    """Return features as float32 with a last column of ones, for the bias."""
    found = np.ones((len(rows), len(features.mean) + len(features.phases) + 1), np.float32)
    for at in range(0, len(rows), _BLOCK):
        found[at : at + _BLOCK, :-1] = features(rows[at : at + _BLOCK])
    return found


def _grams(x: Array, label: Array) -> tuple[Array, Array]:
    """Return x^T x of the pool rows and of the target rows."""
    return tuple((x[label == which].T @ x[label == which]).astype(np.float64) for which in (0, 1))


def logistic(
    parts: list[tuple[Array, Array]], grams: list[tuple[Array, Array]], strength: float, start: Array
) -> Array:
    """Return weights and, last, the bias of the balanced logistic regression.

    L-BFGS in the coordinates in which the Hessian at zero is the identity, where it takes few iterations.

    Parameters
    ----------
    parts : list of (features, label)
        Rows to fit, in one part or more; the last feature is one.
    grams : list of (gram, gram)
        For each part the matrix x^T x of its pool rows and of its target rows.
    strength : float
        Of the penalty, which the bias does not have.
    start : array, shape (D,)
        Weights to begin with.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import minimize

    counts = sum(np.bincount(label.astype(np.int64), minlength=2) for _, label in parts)
    share = 0.5 / np.maximum(counts, 1)
    penalty = np.append(np.full(len(start) - 1, strength), 0.0)
    curvature = sum(share[which] / 4 * gram[which] for gram in grams for which in (0, 1))
    curvature[np.diag_indices_from(curvature)] += penalty + 1e-6
    root = cholesky(curvature, lower=True)

    def objective(u: Array) -> tuple[float, Array]:
        w = solve_triangular(root, u, lower=True, trans="T")
        value, slope = penalty @ (w * w) / 2, penalty * w
        for x, label in parts:
            sign, weight = 2 * label - 1, share[label.astype(np.int64)]
            margin = sign * (x @ w.astype(np.float32))
            value += weight @ np.logaddexp(0, -margin)
            slope = slope + (-sign * weight / (1 + np.exp(np.clip(margin, -700, 700)))).astype(np.float32) @ x
        return float(value), solve_triangular(root, slope, lower=True)

    options = {"maxiter": 100, "gtol": 1e-5, "ftol": 1e-9}
    found = minimize(objective, root.T @ start, jac=True, method="L-BFGS-B", options=options).x
    return solve_triangular(root, found, lower=True, trans="T")


def _loss(scores: Array, label: Array) -> float:
    pool, target = np.logaddexp(0, scores[label == 0]), np.logaddexp(0, -scores[label > 0])
    return float(pool.mean() + target.mean()) / 2


def _median_distance(one: Array, other: Array) -> float:
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return float(np.sqrt(np.maximum(np.median(squares), 0.0)))


def draw_by_ratio(
    ids: NDArray[np.int64],
    score: Array,
    cluster: Array,
    target_cluster: Array,
    keep: Array,
    seed: int,
) -> NDArray[np.int64]:
    """Return the position of every row in the order of selection, so that budgets nest.

    Kept rows are drawn by the exponential race. Cluster c has the share t_c + K/2 e_c: target rows t_c in the cluster, and the
    cluster's part e_c of the sum of ratios e^score over the kept rows. All kept rows of a cluster have the same weight. Rows that are not kept
    follow, the highest score first.

    Parameters
    ----------
    ids : array of int64, shape (n,)
        Of the pool.
    score : array, shape (n,)
        Logarithm of the ratio.
    cluster : array of int, shape (n,)
        Cluster of each row.
    target_cluster : array of int, shape (m,)
        Cluster of each target row.
    keep : array of bool, shape (n,)
        Rows that are drawn from.
    seed : int
        Of the draw.

    Returns
    -------
    array of int64, shape (n,)
        Position of each row in the order.
    """
    clusters = 1 + max(int(cluster.max(initial=0)), int(target_cluster.max(initial=0)))
    kept = np.bincount(cluster[keep], minlength=clusters)
    # exact in any order: the ratios are rounded to multiples of one power of two
    top = float(score[keep].max(initial=0.0))
    ratio = np.round(np.exp(score[keep] - top) * 2.0**30)
    mass = np.bincount(cluster[keep], ratio, minlength=clusters)
    share = np.bincount(target_cluster, minlength=clusters) + np.count_nonzero(kept) / 2 * mass / max(
        mass.sum(), 1.0
    )
    weight = np.zeros(len(ids))
    weight[keep] = (share / np.maximum(kept, 1))[cluster[keep]]
    with np.errstate(divide="ignore"):
        race = np.where(weight > 0, -np.log1p(-hash_ids(ids, seed)) / weight, np.inf)
    order = np.lexsort((ids, -score, race, ~keep))
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    return place
