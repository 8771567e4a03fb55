"""The published algorithm: its own picks, and a literal implementation of it by automatic differentiation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from raysel.errors import ConfigError, DataError
from raysel.gio import Stop, gradient_select, kl

REFERENCE = Path(__file__).parent / "reference"


def reference(name):
    case = np.load(REFERENCE / f"{name}.npz")
    limit = (
        json.loads(str(case["args"])).get("max_iter", 100) + 1
    )  # the publication takes one row more than it says
    picks = gradient_select(case["G"], case["X"], count=min(limit, len(case["G"])), start=case["D"])
    return case, picks


@pytest.mark.parametrize("name", ["digits_mean", "digits_k150_mean"])
def test_published_picks_in_order(name):
    case, picks = reference(name)
    assert picks.indices.tolist() == case["selected"].tolist()
    np.testing.assert_allclose(picks.kl, case["kl"], atol=1e-4)


@pytest.mark.parametrize("name", ["mixed2d_increase", "self2d_mean"])
def test_two_dimensions_are_chaotic_but_end_alike(name):
    """The last bit of a gradient, which hangs on the processor, moves the path: what is compared is where it leads."""
    case, picks = reference(name)
    assert abs(len(picks) - len(case["selected"])) <= 10
    assert len(set(picks.indices) & set(case["selected"])) >= 0.9 * len(case["selected"])
    for count in (1, 10, len(case["selected"])):  # the publication's own picks have the KL that it printed
        chosen = np.concatenate([case["D"], case["G"][case["selected"][:count]]])
        assert kl(case["X"], chosen, "average", k=5) == pytest.approx(case["kl"][count - 1], abs=1e-4)


def test_a_pool_far_from_the_target_adds_nothing():
    _, picks = reference("negative2d")
    assert len(picks) == 0 and picks.indices.dtype == np.int64


def literal(pool, target, start, init, count, seed, steps=50, rate=0.01, k=5, restart=0.0, resets=None):
    """As published: every gradient through the whole double sum, `random` for the draws; rises reset or are kept."""
    draws = random.Random(seed)
    pool, target, start = (torch.tensor(part, dtype=torch.float64) for part in (pool, target, start))
    n, d = target.shape

    def divergence(w):
        def squares(y):
            return ((target[:, None] - y[None]) ** 2).sum(-1).clamp(1e-10, 1e20)

        rho = squares(target).sort(dim=1).values[:, k].sqrt()
        m = len(w)
        ranks = torch.log(k * m / (torch.arange(1, m + 1, dtype=torch.float64) * (n - 1))).mean()
        return d * ((squares(w).sqrt() + 1e-8).log().mean() - (rho + 1e-8).log().mean()) + ranks

    def gradient(w, v):
        v = v.clone().requires_grad_()
        (slope,) = torch.autograd.grad(divergence(torch.cat([w, v[None]])), v)
        return slope

    def begin(v):
        if init == "mean":
            return target.mean(0)
        return target[draws.sample(range(n), 1)[0]].clone() if init == "jump" else v

    w, here, picks, values = start, list(range(len(pool))), [], []
    v = begin(target.mean(0))
    scale = v.norm() / gradient(w, v).norm()
    previous, just_reset, done = divergence(w), False, 0
    while len(picks) < count:
        long = not picks or just_reset or draws.random() < restart
        for _ in range(steps * (3 if long else 1)):
            v = v - rate * scale * gradient(w, v)
        index = here[int((pool[here] - v).norm(dim=1).argmin())]
        here.remove(index)
        value = divergence(torch.cat([w, pool[index][None]]))
        v = begin(v)
        just_reset = False
        if resets is not None and value > previous:
            if done == resets:
                break
            done, here, just_reset = done + 1, list(range(len(pool))), True
            v = target.mean(0) if init == "prev_opt" else v
            continue
        w, previous = torch.cat([w, pool[index][None]]), value
        picks.append(index)
        values.append(float(value))
    return picks, values


@pytest.mark.parametrize("init", ["mean", "jump", "prev_opt"])
@pytest.mark.parametrize("restart", [0.0, 0.4])
def test_equals_the_literal_algorithm(init, restart):
    rng = np.random.default_rng(0)
    pool, target, start = rng.random((60, 16)), rng.random((30, 16)), rng.random((5, 16))
    indices, values = literal(pool, target, start, init, 12, seed=3, restart=restart)
    picks = gradient_select(pool, target, 12, start, init, seed=3, stop=None, restart=restart)
    assert picks.indices.tolist() == indices
    np.testing.assert_allclose(picks.kl, values, atol=1e-9)


@pytest.mark.parametrize("init", ["mean", "jump", "prev_opt"])
def test_resets_make_the_pool_available_again(init):
    rng = np.random.default_rng(1)
    pool, target, start = rng.random((8, 16)) * 1.2, rng.random((30, 16)), rng.random((12, 16))
    for resets in (0, 1, 2):
        indices, values = literal(pool, target, start, init, 30, seed=5, steps=20, resets=resets)
        picks = gradient_select(pool, target, 30, start, init, steps=20, seed=5, stop=Stop(max_resets=resets))
        assert picks.indices.tolist() == indices
        np.testing.assert_allclose(picks.kl, values, atol=1e-9)


def test_stops_as_documented():
    rng = np.random.default_rng(2)
    pool, target, start = rng.random((80, 8)), rng.random((40, 8)), rng.random((10, 8)) * 2
    whole = gradient_select(pool, target, 80, start, "jump", steps=5, stop=None)
    assert sorted(whole.indices) == list(range(80))  # every row once
    rise = next(m for m in range(1, 80) if whole.kl[m] > whole.kl[m - 1])
    stopped = gradient_select(pool, target, 80, start, "jump", steps=5)
    assert stopped.indices.tolist() == whole.indices[:rise].tolist()
    assert len(gradient_select(pool, target, 80, start, "jump", steps=5, stop=Stop(data_size=0.1))) == 8
    assert len(gradient_select(pool, target, 12, start, "jump", steps=5, stop=None)) == 12  # and not 13
    level = float(whole.kl[4])
    reached = gradient_select(pool, target, 80, start, "jump", steps=5, stop=Stop(min_kl=level + 1e-9))
    assert len(reached) == next(m for m in range(80) if whole.kl[m] < level + 1e-9) + 1


def test_same_seed_same_picks_and_no_global_generator():
    rng = np.random.default_rng(3)
    pool, target = rng.random((50, 8)), rng.random((30, 8))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (it is the global generator that is watched)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    runs = [gradient_select(pool, target, 5, init="jump", seed=seed, stop=None) for seed in (7, 7, 8)]
    assert runs[0].indices.tolist() == runs[1].indices.tolist() != runs[2].indices.tolist()
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_the_kl_is_that_of_the_chosen_rows():
    rng = np.random.default_rng(4)
    pool, target, start = rng.random((30, 6)), rng.random((20, 6)), rng.random((4, 6))
    picks = gradient_select(pool, target, 6, start, stop=None)
    for m in range(1, 7):
        chosen = np.concatenate([start, pool[picks.indices[:m]]])
        assert picks.kl[m - 1] == pytest.approx(kl(target, chosen, "average"), abs=1e-9)


def test_constant_target_and_duplicates():
    rng = np.random.default_rng(5)
    pool = np.repeat(rng.random((4, 3)), 3, axis=0)
    picks = gradient_select(pool, np.full((7, 3), 0.5), 12, stop=None)
    assert sorted(picks.indices) == list(range(12)) and np.isfinite(picks.kl).all()
    order = picks.indices.tolist()
    assert all(order.index(3 * row) < order.index(3 * row + 1) < order.index(3 * row + 2) for row in range(4))


@pytest.mark.parametrize(
    "options,error",
    [
        ({"init": "median"}, ConfigError),
        ({"steps": 0}, ConfigError),
        ({"learning_rate": 0.0}, ConfigError),
        ({"restart": 2.0}, ConfigError),
        ({"count": 100}, ConfigError),
        ({"k": 10}, ConfigError),
        ({"start": np.ones((2, 2))}, DataError),
        ({"target": np.ones((1, 3))}, DataError),
        ({"target": np.full((5, 3), np.nan)}, DataError),
        ({"pool": np.ones((5, 2))}, DataError),
    ],
)
def test_bad_input(options, error):
    rows = np.random.default_rng(6).random((10, 3))
    with pytest.raises(error):
        gradient_select(**{"pool": rows, "target": rows, "count": 5, **options})
