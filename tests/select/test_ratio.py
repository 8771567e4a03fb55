"""The density ratio of two samples whose ratio is known, and the draw by it."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.core.hashing import hash_ids
from raysel.select.ratio import Features, draw_by_ratio, fit_path, fit_ratio


def samples(seed, shift, pool_rows=4000, target_rows=2000, d=4):
    """Half of the pool is like the target; the other half is ``shift`` away along the first axis."""
    rng = np.random.default_rng(seed)
    pool, target = (rng.normal(size=(rows, d)).astype(np.float32) for rows in (pool_rows, target_rows))
    off = np.arange(pool_rows) % 2 == 1
    pool[off, 0] += shift
    return pool, target, off


def test_the_score_is_the_logarithm_of_the_ratio():
    pool, target, off = samples(0, 3.0)
    found = fit_ratio(np.arange(len(pool)), pool, np.arange(len(target)), target)
    score = found.scores(np.arange(len(pool)), pool)
    x = pool[:, 0].astype(np.float64)
    exact = -np.log(0.5 + 0.5 * np.exp(3.0 * x - 4.5))  # target density over that of the mixture
    middle = (x > -2) & (x < 2.5)  # where the target has rows
    assert np.corrcoef(score[middle], exact[middle])[0, 1] > 0.9
    assert abs(np.median(score[middle] - exact[middle])) < 0.2
    assert found.separates and found.gain > 10 * found.error
    assert score[~off].mean() > score[off].mean() + 1.5


def minimum(x, label, strength):
    """Newton's method on the penalised loss."""
    share = 0.5 / np.bincount(label.astype(int))[label.astype(int)]
    penalty = np.append(np.full(x.shape[1] - 1, strength), 0.0)
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (share * (p - label)) + penalty * w
        w -= np.linalg.solve((x.T * (share * p * (1 - p))) @ x + np.diag(penalty), slope)
    return w


def test_two_samples_of_one_distribution_are_not_told_apart():
    pool, target, _ = samples(1, 0.0)
    found = fit_ratio(np.arange(len(pool)), pool, np.arange(len(target)), target)
    assert not found.separates


def test_a_row_is_scored_by_a_model_that_has_not_seen_it():
    pool, target, _ = samples(2, 1.0, 300, 150)
    plain = Features(np.zeros(4), 1.0, np.empty((4, 0)), np.empty(0))
    label, folds = np.repeat([0.0, 1.0], [300, 150]), np.arange(450) % 3
    rows = np.concatenate([pool, target])
    strength, weights, bias, scores = fit_path(plain, rows, label, folds)
    x = np.append(rows, np.ones((450, 1)), axis=1).astype(np.float64)
    for number in range(3):
        outside = folds != number
        exact = minimum(x[outside], label[outside], strength)
        assert np.allclose([*weights[number], bias[number]], exact, atol=2e-3)
        assert np.allclose(scores[~outside], rows[~outside] @ weights[number] + bias[number], atol=1e-4)
    ids = np.arange(300)
    found = fit_ratio(ids, pool, np.arange(150), target)
    number = (hash_ids(ids, 1) * 3).astype(int)  # seed 0, the pool's stream
    by_own = (found.features(pool) * found.weights[number]).sum(axis=1) + found.bias[number]
    scored = found.scores(ids, pool)
    assert np.abs(scored - by_own).max() <= 2**-11 + 1e-9
    parts = [found.scores(ids[at : at + 7], pool[at : at + 7]) for at in range(0, 300, 7)]
    assert np.array_equal(scored, np.concatenate(parts))


@pytest.mark.parametrize("seed", range(30))
def test_the_draw_is_the_exponential_race(seed):
    rng = np.random.default_rng(seed)
    n, clusters = int(rng.integers(5, 200)), int(rng.integers(1, 6))
    ids = rng.permutation(5 * n)[:n]
    score = np.round(rng.normal(size=n) * 1024) / 1024
    cluster, target = rng.integers(0, clusters, n), rng.integers(0, clusters, 20)
    keep = score >= -0.5
    keep[0] = True
    place = draw_by_ratio(ids, score, cluster, target, keep, seed)
    assert sorted(place) == list(range(n))
    kept = [np.count_nonzero(keep & (cluster == c)) for c in range(clusters)]
    total = np.exp(score[keep]).sum()
    share = [
        np.count_nonzero(target == c)
        + np.count_nonzero(kept) / 2 * np.exp(score[keep & (cluster == c)]).sum() / total
        for c in range(clusters)
    ]
    u = hash_ids(ids, seed)
    race = [-np.log1p(-u[i]) * kept[cluster[i]] / share[cluster[i]] if keep[i] else np.inf for i in range(n)]
    wanted = sorted(range(n), key=lambda i: (not keep[i], race[i] if keep[i] else 0, -score[i], ids[i]))
    assert np.argsort(place).tolist() == wanted
