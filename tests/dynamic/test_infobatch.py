"""InfoBatch, and every defect of the published package that concerns a plan."""

from __future__ import annotations

import json
import math
import pickle
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.dynamic import InfoBatch, Plan, SampleState
from raysel.dynamic.infobatch import prune_below
from raysel.dynamic.keeper import Keeper
from raysel.dynamic.plan import CHUNK, chunk_sums, mean, uniform
from raysel.errors import ConfigError


def state_of(loss: object) -> SampleState:
    array = np.array(loss, np.float32)
    return SampleState(array, np.zeros(len(array), np.int32))


def same(a: Plan, b: Plan) -> bool:
    return a.slots.tobytes() == b.slots.tobytes() and a.weights.tobytes() == b.weights.tobytes()


def is_full(plan: Plan, n: int) -> bool:
    return np.array_equal(plan.slots, np.arange(n)) and bool((plan.weights == 1).all())


def oracle(loss: np.ndarray, r: float, *, seed: int, epoch: int) -> tuple[list[int], list[float]]:
    """Section 1 of the method, one sample after the other."""
    seen = [x for x in loss.tolist() if math.isfinite(x)]
    average = np.float32(math.fsum(seen) / len(seen))
    draws = uniform(seed, epoch, 0, len(loss)).tolist()
    slots, weights = [], []
    for i, (score, draw) in enumerate(zip(loss, draws, strict=True)):
        low = math.isfinite(score) and score < average
        if low and draw < r * 2**32:
            continue
        slots.append(i)
        weights.append(1 / (1 - r) if low else 1.0)
    return slots, weights


def test_worked_by_hand():
    # seen: 1, 2, 3, 6 -> mean 3; low: 1 and 2, not 3 (strict), not the two that were never seen
    state = state_of([1, 6, np.nan, 2, 3, np.nan])
    draws = uniform(SEED, 4, 0, 6)
    assert draws[0] < 2**31 <= draws[3], "the seed was chosen so that slot 0 goes and slot 3 stays"
    plan = InfoBatch(prune_ratio=0.5).plan(state, epoch=4, num_epochs=20, seed=SEED)
    assert plan.slots.tolist() == [1, 2, 3, 4, 5]
    assert plan.weights.tolist() == [1, 1, 2, 1, 1]

    losses = np.array([5.0, 0.5, np.nan, 0.25, np.inf])
    after = InfoBatch().update(state, plan, plan.slots, losses)
    assert np.array_equal(after.loss, np.float32([1, 5, 0.5, 2, 0.25, np.nan]), equal_nan=True)
    assert after.selected.tolist() == [0, 1, 1, 1, 1, 1]


SEED = 13


@given(
    st.lists(
        st.one_of(st.floats(0, 50, width=32), st.sampled_from([math.nan, 1.0, 2.0])), min_size=1, max_size=80
    ),
    st.floats(0, 0.99),
    st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=100)
def test_against_the_oracle(losses, ratio, seed):
    state = state_of(losses)
    plan = InfoBatch(prune_ratio=ratio).plan(state, epoch=3, num_epochs=10, seed=seed)
    if not np.isfinite(state.loss).any():
        assert is_full(plan, len(state))
        return
    slots, weights = oracle(state.loss, ratio, seed=seed, epoch=3)
    assert plan.slots.tolist() == slots
    np.testing.assert_allclose(plan.weights, weights, rtol=1e-6)


def test_the_first_epoch_keeps_all():
    state = state_of(np.arange(100))
    assert is_full(InfoBatch().plan(SampleState.empty(100), epoch=0, num_epochs=10, seed=0), 100)
    assert is_full(InfoBatch().plan(state, epoch=0, num_epochs=10, seed=0), 100)
    assert is_full(InfoBatch().plan(SampleState.empty(100), epoch=3, num_epochs=10, seed=0), 100)


@pytest.mark.parametrize("delta", [0.875, 0.7, 0.29])
def test_annealing_for_every_number_of_epochs(delta):
    # The published package leaves stale weights of 2 behind unless C * delta is whole.
    state = state_of(np.arange(40))
    percent = round(delta * 1000)
    for num_epochs in range(1, 301):
        first = num_epochs * percent // 1000
        policy = InfoBatch(delta=delta)
        for epoch in {1, first - 1, first, first + 1, num_epochs - 1} & set(range(1, num_epochs)):
            plan = policy.plan(state, epoch=epoch, num_epochs=num_epochs, seed=0)
            assert is_full(plan, 40) == (epoch >= first), (num_epochs, epoch)


def test_delta_at_its_ends():
    state = state_of(np.arange(40))
    assert all(is_full(InfoBatch(delta=0).plan(state, epoch=e, num_epochs=9, seed=0), 40) for e in range(9))
    assert not any(
        is_full(InfoBatch(delta=1).plan(state, epoch=e, num_epochs=9, seed=0), 40) for e in range(1, 9)
    )


@pytest.mark.parametrize("value", [0.1, 0.3, 1.7, 2.3025851, 1e-30, 3e38, -0.1])
@pytest.mark.parametrize("n", [3, 10, 1000, CHUNK + 17, 3 * CHUNK - 1])
def test_equal_losses_prune_nothing(value, n):
    # A plain float64 mean of equal losses can fall one ulp above them and prune nearly everything.
    plan = InfoBatch().plan(state_of(np.full(n, value)), epoch=1, num_epochs=10, seed=0)
    assert is_full(plan, n)


def test_equal_losses_prune_nothing_where_the_mean_itself_is_rounded():
    # Above 5 * 10**8 samples even the exact sum, rounded, may give a float64 mean that is an ulp off.
    value = np.float32(0.1)
    for average in (np.nextafter(float(value), 1), np.nextafter(float(value), 0)):
        plan = prune_below(np.full(100, value), np.float32(average), 0.5, seed=0, epoch=1)
        assert is_full(plan, 100)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_neither_prunes_nor_is_pruned(bad):
    loss = np.random.default_rng(0).random(2000).astype(np.float32)
    loss[7] = bad
    plan = InfoBatch().plan(state_of(loss), epoch=1, num_epochs=10, seed=0)
    assert plan.weights[np.searchsorted(plan.slots, 7)] == 1 and 7 in plan.slots
    assert 0.7 < len(plan) / 2000 < 0.8
    others = np.delete(np.arange(2000), 7)
    low = loss[others] < math.fsum(loss[others].tolist()) / 1999
    assert (np.isin(others, plan.slots) | low).all(), "of the rest, only low losses are left out"


def test_unseen_samples_stay_out_of_the_mean_and_in_the_plan():
    # The published package counts an unseen sample as a loss of 3, which here would prune all of the rest.
    state = state_of([*[np.nan] * 500, *[1.0] * 500])
    assert is_full(InfoBatch().plan(state, epoch=1, num_epochs=10, seed=0), 1000)


def test_the_same_call_gives_the_same_answer_and_changes_nothing():
    state = state_of(np.random.default_rng(1).random(5000))
    digest, policy = state.digest(), InfoBatch()
    first = policy.plan(state, epoch=3, num_epochs=10, seed=5)
    policy.plan(state, epoch=4, num_epochs=10, seed=5)
    assert same(first, pickle.loads(pickle.dumps(policy)).plan(state, epoch=3, num_epochs=10, seed=5))
    policy.update(state, first, first.slots, np.ones(len(first)))
    assert state.digest() == digest
    assert not same(first, policy.plan(state, epoch=4, num_epochs=10, seed=5))
    assert not same(first, policy.plan(state, epoch=3, num_epochs=10, seed=6))


def global_states() -> list[object]:
    torch = pytest.importorskip("torch")
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [name, keys.tobytes(), rest, random.getstate(), torch.get_rng_state().numpy().tobytes()]


def test_global_random_states_are_neither_changed_nor_read():
    state, before = state_of(np.random.default_rng(1).random(5000)), global_states()
    first = InfoBatch().plan(state, epoch=3, num_epochs=10, seed=5)
    InfoBatch().update(state, first, first.slots, np.ones(len(first)))
    assert global_states() == before
    np.random.random(3)  # noqa: NPY002
    random.random()
    assert same(first, InfoBatch().plan(state, epoch=3, num_epochs=10, seed=5))


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_plan_what_the_whole_plans(shards):
    n = 6 * CHUNK + 123
    loss = np.random.default_rng(2).standard_exponential(n).astype(np.float32)
    loss[::17] = np.nan
    whole = InfoBatch().plan(state_of(loss), epoch=2, num_epochs=10, seed=9)
    edges = [round(i * 7 / shards) * CHUNK for i in range(shards)] + [n]
    spans = list(pairwise(edges))
    partial = [chunk_sums(loss[a:b]) for a, b in spans]
    average = mean([s for sums, _ in partial for s in sums], sum(count for _, count in partial))
    plans = [prune_below(loss[a:b], np.float32(average), 0.5, seed=9, epoch=2, start=a) for a, b in spans]
    joined = Plan(np.concatenate([p.slots for p in plans]), np.concatenate([p.weights for p in plans]))
    assert same(joined, whole)


def test_ids_beyond_two_to_the_31_stay_exact():
    # In the published package an id passes through the loss's float type on its way between ranks.
    start = 5 * 2**31 + 1
    plan = prune_below(np.zeros(1000, np.float32), np.float32(1), 0.5, seed=0, epoch=1, start=start)
    assert plan.slots.dtype == np.int64
    assert np.array_equal(plan.slots, start + np.flatnonzero(uniform(0, 1, start, start + 1000) >= 2**31))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_resumed_run_plans_what_an_undisturbed_one_plans(dtype):
    policy, n, num_epochs = InfoBatch(), 3000, 8

    def losses(slots: np.ndarray, epoch: int) -> np.ndarray:
        return (np.sin(slots * 12.9898 + epoch) + 1.5).astype(dtype)

    state, plans, kept = SampleState.empty(n), [], {}
    for epoch in range(num_epochs):
        kept[epoch] = state.to_arrow()
        plans.append(policy.plan(state, epoch=epoch, num_epochs=num_epochs, seed=4))
        state = policy.update(state, plans[-1], plans[-1].slots, losses(plans[-1].slots, epoch))
    assert len({len(p) for p in plans}) > 2, "the plans do differ"
    for resume in range(num_epochs):
        again = SampleState.from_arrow(kept[resume])
        for epoch in range(resume, num_epochs):
            plan = policy.plan(again, epoch=epoch, num_epochs=num_epochs, seed=4)
            assert same(plan, plans[epoch])
            again = policy.update(again, plan, plan.slots, losses(plan.slots, epoch))
        assert again.digest() == state.digest()


# ---- unbiasedness


def four_standard_errors(draws: np.ndarray, expected: np.ndarray) -> bool:
    """Does the mean over draws (rows) lie within 4 standard errors of what is expected, everywhere?"""
    error = draws.std(axis=0, ddof=1) / math.sqrt(len(draws))
    return bool((np.abs(draws.mean(axis=0) - expected) <= 4 * error + 1e-9).all())


@pytest.fixture(scope="module")
def dense_weights() -> tuple[np.ndarray, np.ndarray]:
    """Weights (0 = pruned) of 4,000 plans of 200 samples, and their losses."""
    loss = np.random.default_rng(3).standard_exponential(200).astype(np.float32)
    state, policy, rows = state_of(loss), InfoBatch(prune_ratio=0.6), np.zeros((4000, 200))
    for i in range(4000):
        plan = policy.plan(state, epoch=1 + i % 50, num_epochs=100, seed=i // 50)
        rows[i, plan.slots] = plan.weights
    return rows, loss


def test_every_sample_counts_once_on_average(dense_weights):
    weights, loss = dense_weights
    low = loss < loss.mean()
    assert four_standard_errors(weights[:, low], np.ones(low.sum()))
    assert (weights[:, ~low] == 1).all()
    assert set(np.unique(weights[:, low])) == {0.0, 2.5}
    kept = (weights[:, low] > 0).sum(axis=1)  # independent draws: a binomial number survives
    assert abs(kept.var() / (low.sum() * 0.24) - 1) < 4 * math.sqrt(2 / 4000)


def test_the_gradient_of_a_linear_model_is_unbiased_and_without_weights_is_not(dense_weights):
    weights, loss = dense_weights
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 5)) + 1.0
    residual = np.sqrt(2 * loss)  # so that the losses are those of this model: loss = residual**2 / 2
    gradients = residual[:, None] * x
    whole = gradients.sum(axis=0)
    assert four_standard_errors(weights @ gradients, whole)
    assert not four_standard_errors((weights > 0) @ gradients, whole), "the check can tell"


# ---- quantile, target, moving average


def test_quantile_threshold():
    state = state_of([*np.random.default_rng(0).permutation(1000), *[np.nan] * 200])
    plan = InfoBatch(prune_ratio=0.5, threshold=0.3).plan(state, epoch=1, num_epochs=10, seed=0)
    gone = np.setdiff1d(np.arange(1200), plan.slots)
    assert state.loss[gone].max() < 300 and abs(len(gone) - 150) < 4 * math.sqrt(300 / 4)
    assert set(state.loss[plan.slots[plan.weights == 2]]) == set(range(300)) - set(state.loss[gone])
    equal = InfoBatch(threshold=0.9).plan(state_of([1.0] * 50), epoch=1, num_epochs=10, seed=0)
    assert is_full(equal, 50)
    assert is_full(InfoBatch(threshold=0.9).plan(SampleState.empty(5), epoch=1, num_epochs=9, seed=0), 5)


@pytest.mark.parametrize("kind", ["exponential", "symmetric", "equal", "unseen"])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.6, 0.63])
def test_target_saving_is_what_a_run_saves_and_stays_unbiased(kind, target):
    n, num_epochs, policy = 4000, 10, InfoBatch(target_saving=target)
    rng = np.random.default_rng(1)
    loss = {
        "exponential": rng.standard_exponential(n),
        "symmetric": rng.random(n),
        "equal": np.full(n, 0.1),
        "unseen": np.where(rng.random(n) < 0.02, np.nan, rng.random(n)),
    }[kind]
    found = [policy.plan(state_of(loss), epoch=e, num_epochs=num_epochs, seed=2) for e in range(num_epochs)]
    saved = 1 - sum(map(len, found)) / (n * num_epochs)
    reachable = 0.7 * 0.9 * np.isfinite(loss).mean()  # epochs 1 to 7 of 10, at most 9 of 10 samples seen
    assert abs(saved - min(target, reachable)) < 5 * math.sqrt(0.25 / (n * num_epochs))
    assert max(p.weights.max() for p in found) <= 10.0001
    drift = [float(p.weights.sum(dtype=np.float64)) / n - 1 for p in found]
    assert max(map(abs, drift)) < 5 * math.sqrt(9 / n)


def test_target_saving_raises_the_threshold_only_when_it_must():
    state = state_of(np.arange(1000))  # mean 499.5
    gentle = InfoBatch(target_saving=0.2).plan(state, epoch=1, num_epochs=10, seed=0)  # 2/7 of all: r = 0.571
    assert np.setdiff1d(np.arange(1000), gentle.slots).max() < 500
    assert gentle.weights.max() == pytest.approx(1 / (1 - 2 / 7 / 0.5))
    strong = InfoBatch(target_saving=0.6).plan(state, epoch=1, num_epochs=10, seed=0)  # 6/7: of 953, r = 0.9
    assert strong.weights.max() == pytest.approx(10, rel=1e-2)
    assert set(strong.slots[strong.weights == 1]) == set(range(953, 1000))


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_target_out_of_reach_is_refused_with_the_reachable_one(epoch):
    with pytest.raises(
        ConfigError, match=r"target_saving of 0.7 is out of reach: .* at most 0.63 of the samples\."
    ):
        InfoBatch(target_saving=0.7).plan(state_of(range(9)), epoch=epoch, num_epochs=10, seed=0)
    with pytest.raises(ConfigError, match="at most 0 of the samples"):
        InfoBatch(target_saving=0.1).plan(state_of(range(9)), epoch=0, num_epochs=2, seed=0)
    with pytest.raises(ConfigError, match="out of reach"):  # before anything of the run is started
        Keeper(InfoBatch(target_saving=0.7), 9, 10, 0)
    Keeper(InfoBatch(target_saving=0.6), 9, 10, 0)


def test_moving_average():
    state, policy = state_of([1.0, np.nan]), InfoBatch(ema=0.5)
    plan = policy.plan(state, epoch=1, num_epochs=9, seed=0)
    assert policy.update(state, plan, np.arange(2), np.array([2.0, 3.0])).loss.tolist() == [1.5, 3.0]


# ---- parameters


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"prune_ratio": 1}, r"InfoBatch.prune_ratio must be a number in \[0, 1\), got 1"),
        ({"prune_ratio": -0.1}, "prune_ratio"),
        ({"prune_ratio": math.nan}, "prune_ratio"),
        ({"prune_ratio": "half"}, "prune_ratio"),
        ({"delta": 1.5}, r"InfoBatch.delta must be a number in \[0, 1\], got 1.5"),
        ({"delta": None}, "delta"),
        ({"threshold": "median"}, r'threshold, unless "mean", must be a number in \(0, 1\), got \'median\''),
        ({"threshold": 1.0}, "threshold"),
        ({"target_saving": 0}, "target_saving"),
        ({"target_saving": 1}, "target_saving"),
        ({"ema": 1}, "ema"),
    ],
)
def test_parameters_are_checked(kwargs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        InfoBatch(**kwargs)


def test_prune_ratio_zero_is_full_data():
    assert is_full(InfoBatch(prune_ratio=0).plan(state_of(range(50)), epoch=1, num_epochs=9, seed=0), 50)


def test_parameters_are_json_and_make_the_policy_again():
    parameters = json.loads(json.dumps(InfoBatch(prune_ratio=np.float64(0.25)).parameters()))
    assert parameters["policy"] == "InfoBatch" and parameters["prune_ratio"] == 0.25
    del parameters["policy"]
    assert InfoBatch(**parameters) == InfoBatch(prune_ratio=0.25)
    assert InfoBatch(threshold=0.5, target_saving=0.2).parameters()["target_saving"] == 0.2


@pytest.mark.parametrize("wrong", [{"epoch": 10}, {"epoch": -1}, {"seed": -1}, {"num_epochs": 0}])
def test_plan_refuses_an_epoch_or_seed_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        InfoBatch().plan(state_of(range(50)), **{"epoch": 1, "num_epochs": 10, "seed": 0, **wrong})
