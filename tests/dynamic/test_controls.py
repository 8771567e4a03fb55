"""The controls, and a policy written by somebody else."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from raysel.dynamic import (
    FullData,
    InfoBatch,
    Plan,
    Policy,
    RandomPrune,
    RandomSubset,
    RoundRobin,
    SampleState,
)
from raysel.dynamic.keeper import Keeper
from raysel.dynamic.plan import CHUNK, unweighted
from raysel.dynamic.state import observe
from raysel.errors import ConfigError

CONTROLS = [FullData(), RandomPrune(), RandomSubset(0.3), RoundRobin(0.3), RoundRobin(0.3, delta=0.5)]


def seen(n: int) -> SampleState:
    loss = np.random.default_rng(0).standard_exponential(n).astype(np.float32)
    return SampleState(loss, np.zeros(n, np.int32))


def plans(policy: Policy, n: int, num_epochs: int, seed: int = 0) -> list[Plan]:
    state = SampleState.empty(n)
    return [policy.plan(state, epoch=e, num_epochs=num_epochs, seed=seed) for e in range(num_epochs)]


def is_full(plan: Plan, n: int) -> bool:
    return np.array_equal(plan.slots, np.arange(n)) and bool((plan.weights == 1).all())


@pytest.mark.parametrize("policy", CONTROLS, ids=str)
def test_plans_look_at_no_loss_and_are_the_same_again(policy):
    assert isinstance(policy, Policy) and policy == pickle.loads(pickle.dumps(policy))
    for epoch in range(6):
        a = policy.plan(SampleState.empty(1000), epoch=epoch, num_epochs=6, seed=1)
        b = pickle.loads(pickle.dumps(policy)).plan(seen(1000), epoch=epoch, num_epochs=6, seed=1)
        assert np.array_equal(a.slots, b.slots) and np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize("policy", CONTROLS, ids=str)
def test_losses_are_recorded_and_selections_counted(policy):
    plan = policy.plan(SampleState.empty(50), epoch=2, num_epochs=4, seed=0)
    after = policy.update(SampleState.empty(50), plan, plan.slots, np.arange(len(plan), dtype=np.float16))
    assert np.array_equal(after.loss[plan.slots], np.arange(len(plan)))
    assert np.array_equal(np.flatnonzero(after.selected), plan.slots)


@pytest.mark.parametrize("policy", CONTROLS, ids=str)
def test_parameters_are_json_and_make_the_policy_again(policy):
    parameters = json.loads(json.dumps(policy.parameters()))
    assert parameters.pop("policy") == type(policy).__name__
    assert type(policy)(**parameters) == policy


@pytest.mark.parametrize("policy", CONTROLS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, CHUNK + 1])
def test_any_number_of_samples(policy, n):
    assert all(len(plan) <= n for plan in plans(policy, n, 4))
    if n == 1 and not isinstance(policy, RandomPrune):
        assert all(len(plan) == 1 for plan in plans(policy, n, 4))


def test_full_data():
    assert all(is_full(plan, 20) for plan in plans(FullData(), 20, 3))


def test_random_prune_is_unbiased_and_saves_what_infobatch_saves():
    n, rows = 100, []
    policy = RandomPrune(prune_ratio=0.5, share=0.6)
    for seed in range(1000):
        for epoch in (1, 2, 3):
            plan = policy.plan(SampleState.empty(n), epoch=epoch, num_epochs=8, seed=seed)
            row = np.zeros(n)
            row[plan.slots] = plan.weights
            rows.append(row)
    weights = np.array(rows)
    error = weights.std(axis=0, ddof=1) / math.sqrt(len(weights))
    assert (np.abs(weights.mean(axis=0) - 1) <= 4 * error).all()
    assert np.allclose(np.unique(weights), [0, 1 / 0.7])
    assert abs((weights > 0).mean() - 0.7) < 4 * math.sqrt(0.21 / weights.size)

    losses = seen(20_000)
    low = float((losses.loss < losses.loss.mean()).mean())
    ours = len(RandomPrune(share=low).plan(losses, epoch=1, num_epochs=8, seed=0))
    theirs = len(InfoBatch().plan(losses, epoch=1, num_epochs=8, seed=0))
    assert abs(ours - theirs) < 6 * math.sqrt(20_000 * 0.25)


def test_random_prune_anneals_like_infobatch():
    for num_epochs in (1, 2, 7, 8, 10, 16, 33):
        ours = [is_full(p, 200) for p in plans(RandomPrune(), 200, num_epochs)]
        policy, state = InfoBatch(), seen(200)
        theirs = [
            is_full(policy.plan(state, epoch=e, num_epochs=num_epochs, seed=0), 200)
            for e in range(num_epochs)
        ]
        assert ours == theirs


def test_random_subset_has_its_size_and_is_fresh_and_uniform():
    found = plans(RandomSubset(0.29), 100, 2000)
    assert {len(p) for p in found} == {29} and all((p.weights == 1).all() for p in found)
    assert len({p.slots.tobytes() for p in found}) == 2000
    counts = np.bincount(np.concatenate([p.slots for p in found]), minlength=100)
    assert np.abs(counts - 580).max() < 4.5 * math.sqrt(2000 * 0.29 * 0.71)
    assert is_full(plans(RandomSubset(1), 10, 1)[0], 10)


@pytest.mark.parametrize(("n", "ratio"), [(100, 0.3), (100, 0.5), (97, 0.7), (10, 0.99), (7, 0.01)])
def test_round_robin_takes_nobody_twice_more_than_another(n, ratio):
    used = np.zeros(n, int)
    for plan in plans(RoundRobin(ratio), n, 40):
        assert len(plan) == max(1, math.floor(ratio * n)) and (plan.weights == 1).all()
        used[plan.slots] += 1
        assert used.max() - used.min() <= 1


def test_round_robin_visits_all_before_anyone_twice_and_has_a_full_tail():
    a, b, *tail = plans(RoundRobin(0.5, delta=0.5), 10, 5)
    assert sorted([*a.slots, *b.slots]) == list(range(10))
    assert all(is_full(plan, 10) for plan in tail)
    other = plans(RoundRobin(0.5), 1000, 1, seed=1)[0]
    assert not np.array_equal(other.slots, plans(RoundRobin(0.5), 1000, 1)[0].slots)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RandomPrune(prune_ratio=1.0), r"RandomPrune.prune_ratio must be a number in \[0, 1\)"),
        (lambda: RandomPrune(share=1.1), "RandomPrune.share"),
        (lambda: RandomPrune(delta=-1), "RandomPrune.delta"),
        (lambda: RandomSubset(0), r"RandomSubset.ratio must be a number in \(0, 1\]"),
        (lambda: RandomSubset(2), "RandomSubset.ratio"),
        (lambda: RoundRobin(math.nan), "RoundRobin.ratio"),
        (lambda: RoundRobin(delta="x"), "RoundRobin.delta"),
    ],
)
def test_parameters_are_checked(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


@dataclass(frozen=True)
class HideEasy:
    """Somebody else's policy, as the documentation of Policy shows it: hide the easiest share (KAKURENBO)."""

    share: float = 0.3

    def plan(self, state, *, epoch, num_epochs, seed):
        known = np.flatnonzero(np.isfinite(state.loss))
        easy = known[np.argsort(state.loss[known], kind="stable")[: int(self.share * len(state))]]
        keep = np.ones(len(state), bool)
        keep[easy] = False
        return unweighted(keep)

    def update(self, state, plan, slots, losses):
        return observe(state, plan.slots, slots, losses)

    def parameters(self):
        return {"policy": "HideEasy", "share": self.share}


def test_a_policy_of_ones_own_is_one_small_class():
    keeper = Keeper(HideEasy(0.3), size=10, num_epochs=2, seed=0)
    keeper.restore("a")
    keeper.update("a", 0, np.arange(10), np.arange(10, dtype=np.float32))
    keeper.commit("a", 0)
    assert keeper.plan("a", 1).slots.tolist() == list(range(3, 10))
