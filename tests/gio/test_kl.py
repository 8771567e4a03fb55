"""The estimators against direct double sums, and against the publication's own values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raysel.errors import ConfigError, DataError
from raysel.gio import distances as blocks
from raysel.gio import kl

REFERENCE = Path(__file__).parent / "reference"


def distances(x, y):
    difference = np.asarray(x, np.float64)[:, None] - np.asarray(y, np.float64)[None]
    return np.maximum(np.sqrt((difference**2).sum(-1)), 1e-5)


def direct(target, chosen, estimator, k):
    """Word for word from the definitions, with every distance in memory."""
    n, d = target.shape
    m = len(chosen)
    among = distances(target, target)
    np.fill_diagonal(among, np.inf)
    rho = np.sort(among, axis=1)[:, :k]
    nu = np.sort(distances(target, chosen), axis=1)
    if estimator == "average":
        ranks = np.log(k * m / (np.arange(1, m + 1) * (n - 1))).mean()
        return d * (np.log(nu + 1e-8).mean() - np.log(rho[:, -1] + 1e-8).mean()) + ranks
    of_rank = [d * np.log(nu[:, j] / rho[:, j]).mean() + math.log(m / (n - 1)) for j in range(k)]
    return of_rank[-1] if estimator == "nearest" else float(np.mean(of_rank))


@pytest.mark.parametrize("estimator", ["nearest", "nearest_mean", "average"])
@pytest.mark.parametrize("case", range(12))
def test_equals_the_direct_sum(estimator, case, monkeypatch):
    rng = np.random.default_rng(case)
    if case % 2:  # several blocks, and blocks smaller than k
        monkeypatch.setattr(blocks, "_ROWS", 7)
        monkeypatch.setattr(blocks, "_COLUMNS", 3)
    if case % 3 == 0:
        monkeypatch.setattr(blocks, "_KEEP", 0)
    n, m, d, k = 9 + 5 * case, 6 + case, 1 + case, 1 + case % 5
    target = rng.normal(size=(n, d)) * 3 + 50
    chosen = np.concatenate(
        [rng.normal(size=(m, d)) * 2 + 50, target[:2], target[:1]]
    )  # zero distances, a duplicate
    assert kl(target, chosen, estimator, k) == pytest.approx(direct(target, chosen, estimator, k), abs=1e-9)


@pytest.mark.parametrize("estimator,k", [("nearest", 1), ("nearest_mean", 5), ("average", 5)])
def test_default_rank(estimator, k):
    rng = np.random.default_rng(0)
    target, chosen = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    assert kl(target, chosen, estimator) == kl(target, chosen, estimator, k)


@pytest.mark.parametrize("estimator", ["nearest", "nearest_mean"])
def test_estimates_a_known_divergence(estimator):
    """KL of N(0, I) from N(1, I) in two dimensions is 1 nat; both estimators converge to it."""
    rng = np.random.default_rng(1)
    target, chosen = rng.normal(size=(2000, 2)), rng.normal(size=(2500, 2)) + 1.0
    assert kl(target, chosen, estimator, 5) == pytest.approx(1.0, abs=0.08)
    assert kl(target, rng.normal(size=(2500, 2)), estimator, 5) == pytest.approx(0.0, abs=0.08)


@pytest.mark.parametrize(
    "name", ["digits_k150_mean", "digits_mean", "mixed2d_increase", "self2d_mean", "negative2d"]
)
def test_average_of_the_published_picks(name):
    case = np.load(REFERENCE / f"{name}.npz")
    chosen = np.concatenate([case["D"], case["G"][case["selected"].astype(int)]])
    start = len(case["D"])
    assert kl(case["X"], case["D"], "average", 5) == pytest.approx(float(case["kl_start"]), abs=1e-4)
    for picks in range(1, len(case["selected"]) + 1, 5):
        assert kl(case["X"], chosen[: start + picks], "average", 5) == pytest.approx(
            case["kl"][picks - 1], abs=1e-4
        )


def test_near_neighbours_far_from_the_centre_keep_their_distance():
    """|x|^2 + |y|^2 - 2 x.y of such pairs is noise, even in float64 and centred."""
    rng = np.random.default_rng(2)
    target = 1e6 + rng.normal(size=(40, 8)) * 1e4
    chosen = target + rng.normal(size=target.shape) * 1e-3
    assert kl(target, chosen) == pytest.approx(direct(target, chosen, "nearest", 1), abs=1e-9)
    pixels = np.rint(rng.random((40, 300)) * 255).astype(np.float32)
    shifted = pixels.copy()
    shifted[:, 7] += 1
    assert kl(pixels, shifted) == pytest.approx(direct(pixels, shifted, "nearest", 1), abs=1e-9)


def test_the_target_itself_is_at_distance_zero():
    target = np.random.default_rng(3).normal(size=(20, 3))
    assert kl(target, target) == pytest.approx(direct(target, target.copy(), "nearest", 1), abs=1e-9)


def test_dtypes_and_tensors_agree():
    rng = np.random.default_rng(4)
    target, chosen = (rng.normal(size=(25, 5)).astype(np.float32) for _ in range(2))
    value = kl(target, chosen)
    assert kl(torch.from_numpy(target), torch.from_numpy(chosen).requires_grad_()) == value
    assert kl(target.astype(np.float64), chosen.astype(np.float64)) == pytest.approx(value, rel=1e-12)
    assert kl(target.tolist(), np.asfortranarray(chosen)) == pytest.approx(value, rel=1e-12)
    pixels = (target * 50 + 128).astype(np.uint8)
    assert kl(pixels, pixels[:9]) == kl(pixels.astype(np.float32), pixels[:9].astype(np.float32))


@pytest.mark.parametrize("estimator", ["nearest", "nearest_mean", "average"])
def test_constant_and_duplicate_rows_are_defined(estimator):
    target = np.repeat(np.random.default_rng(5).normal(size=(5, 3)), 4, axis=0)
    for rows in (target, np.full((8, 3), 7.0)):
        assert kl(rows, rows[:6], estimator, 2) == pytest.approx(
            direct(rows, rows[:6], estimator, 2), abs=1e-9
        )


@pytest.mark.parametrize("estimator", ["nearest", "nearest_mean", "average"])
def test_weights_are_a_weighted_mean(estimator):
    rng = np.random.default_rng(6)
    target, chosen, weights = rng.normal(size=(15, 3)), rng.normal(size=(9, 3)), rng.random(15)
    weights[3] = 0
    assert kl(target, chosen, estimator, 2, target_weights=np.full(15, 4.0)) == pytest.approx(
        kl(target, chosen, estimator, 2), abs=1e-12
    )
    # linear in the weights: the weighted value is the weighted mean of the values with all weight on one row
    single = [kl(target, chosen, estimator, 2, target_weights=np.eye(15)[i]) for i in range(15)]
    expected = np.average(single, weights=weights)
    assert kl(target, chosen, estimator, 2, target_weights=weights) == pytest.approx(expected, abs=1e-9)


def test_equal_rows_are_found():
    rng = np.random.default_rng(7)
    for dtype in (np.float32, np.float64):
        rows = rng.integers(0, 3, size=(300, 3)).astype(dtype)
        rows[rows == 0] *= rng.choice([-1.0, 1.0], size=(rows == 0).sum())  # -0.0 equals 0.0
        expected = [next(j for j in range(i + 1) if (rows[j] == rows[i]).all()) for i in range(len(rows))]
        assert blocks.first_equal(rows).tolist() == expected


GOOD = np.random.default_rng(8).normal(size=(10, 3))


@pytest.mark.parametrize(
    "target,chosen,options,error,says",
    [
        (GOOD[0], GOOD, {}, DataError, "target must be an array of shape"),
        (GOOD, GOOD[:, :2], {}, DataError, "chosen has 2 dimensions"),
        (GOOD, GOOD[:0], {}, DataError, "chosen is empty"),
        (GOOD[:0], GOOD, {}, DataError, "target is empty"),
        (GOOD[:1], GOOD, {}, DataError, "target has 1 row"),
        (
            np.where(np.arange(10)[:, None] == 4, np.nan, GOOD),
            GOOD,
            {},
            DataError,
            "target row 4 holds a value that is NaN",
        ),
        (GOOD, np.where(np.arange(10)[:, None] == 2, np.inf, GOOD), {}, DataError, "chosen row 2"),
        (GOOD, np.array([["a", "b", "c"]]), {}, DataError, "must hold numbers"),
        (GOOD, GOOD, {"k": 10}, ConfigError, "k = 10 is too large for a target of 10 rows"),
        (GOOD, GOOD[:2], {"k": 3}, ConfigError, "needs at least 3 selected rows"),
        (GOOD, GOOD, {"k": 0}, ConfigError, "k must be a whole number of at least 1, got 0"),
        (GOOD, GOOD, {"k": 1.5}, ConfigError, "k must be a whole number of at least 1, got 1.5"),
        (GOOD, GOOD, {"estimator": "median"}, ConfigError, "estimator = 'median' is unknown"),
        (GOOD, GOOD, {"target_weights": np.ones(3)}, DataError, "target_weights has shape"),
        (GOOD, GOOD, {"target_weights": np.zeros(10)}, DataError, "positive sum"),
        (GOOD, GOOD, {"device": "cuda:99"}, ConfigError, "device = 'cuda:99'"),
    ],
)
def test_bad_input(target, chosen, options, error, says):
    with pytest.raises(error, match=says) as caught:
        kl(target, chosen, **options)
    assert "\n" not in str(caught.value)
