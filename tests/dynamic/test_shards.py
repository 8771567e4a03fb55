"""One rule, any number of shards: joined partials, exact ranks, and plans equal to the last bit."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raysel
from raysel.dynamic import FullData, InfoBatch, Plan, RandomPrune, RandomSubset, RoundRobin, SampleState
from raysel.dynamic.infobatch import prune_below
from raysel.dynamic.keeper import Keeper, Keepers
from raysel.dynamic.plan import CHUNK, ShardedPolicy, class_sums, uniform, unweighted
from raysel.dynamic.shards import (
    alone,
    cut,
    join,
    kth,
    lowest,
    ordered,
    plan_whole,
    spans,
    together,
    values_of,
)
from raysel.dynamic.state import observe
from raysel.errors import ConfigError, DataError, StateError
from raysel.selection import Selection

N = 6 * CHUNK + 123
CLASSES = np.random.default_rng(5).integers(0, 7, N) * 3 - 4  # any labels, negative ones too


@dataclass(frozen=True)
class HideEasy:
    """Somebody else's policy, by shards, as the documentation of ShardedPolicy shows it."""

    share: float = 0.3

    def plan_shard(self, state, start, n, *, epoch, num_epochs, seed):
        seen = yield int(np.isfinite(state.loss).sum())
        easy = yield from lowest(ordered(state.loss), min(int(self.share * n), seen), start)
        return unweighted(~easy, start)

    def plan(self, state, *, epoch, num_epochs, seed):
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state, plan, slots, losses):
        return observe(state, plan.slots, slots, losses)

    def parameters(self):
        return {"policy": "HideEasy", "share": self.share}


POLICIES = [
    FullData(),
    RandomPrune(0.7, 0.6),
    RandomSubset(0.3),
    RoundRobin(0.3),
    RoundRobin(0.7, delta=0.9),
    InfoBatch(0.6),
    InfoBatch(threshold=0.3),
    InfoBatch(target_saving=0.2),
    InfoBatch(target_saving=0.6),
    InfoBatch(0.6, ema=0.5),
    InfoBatch(0.6, classes=CLASSES),
    InfoBatch(threshold=0.4, classes=CLASSES),
    InfoBatch(target_saving=0.4, classes=CLASSES),
    HideEasy(),
]


def state(kind: str = "drawn") -> SampleState:
    rng = np.random.default_rng(2)
    loss = {
        "drawn": rng.standard_exponential(N),
        "ties": np.round(rng.standard_exponential(N), 1),  # many samples at every threshold
        "equal": np.full(N, 0.1),
        "unseen": np.full(N, np.nan),
    }[kind].astype(np.float32)
    if kind != "equal":
        loss[::17] = np.nan
        loss[5 * CHUNK :] = np.nan  # with five shards, one has seen nothing at all
    return SampleState(loss, np.zeros(N, np.int32))


def same(a: Plan, b: Plan) -> bool:
    return a.slots.tobytes() == b.slots.tobytes() and a.weights.tobytes() == b.weights.tobytes()


def by_shards(policy, whole: SampleState, shards: int, **run) -> Plan:
    parts = spans(len(whole), shards)
    assert len(parts) == shards
    generators = [
        cut(policy, a, b, len(whole)).plan_shard(whole.cut(a, b), a, len(whole), **run) for a, b in parts
    ]
    plans = together(generators)
    return Plan(np.concatenate([p.slots for p in plans]), np.concatenate([p.weights for p in plans]))


# ---- plans


@pytest.mark.parametrize("kind", ["drawn", "ties", "equal", "unseen"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_any_number_of_shards_plans_what_the_whole_plans(policy, kind):
    assert isinstance(policy, ShardedPolicy)
    whole = state(kind)
    for epoch in (0, 2, 9) if kind == "drawn" else (2,):
        run = {"epoch": epoch, "num_epochs": 10, "seed": 9}
        expected = policy.plan(whole, **run)
        for shards in (1, 2, 5):
            assert same(by_shards(policy, whole, shards, **run), expected), (shards, epoch)


def test_the_plans_differ_between_policies_so_the_test_above_can_tell():
    run = {"epoch": 2, "num_epochs": 10, "seed": 9}
    assert (
        len({p.plan(state(), **run).slots.tobytes() for p in POLICIES}) == len(POLICIES) - 1
    )  # ema plans alike


def test_the_rounds_that_the_exact_tools_replace():
    # NumPy's own selection, on the whole: the same thresholds, the same marks.
    whole = state("ties")
    seen = np.sort(whole.loss[np.isfinite(whole.loss)])
    q = InfoBatch(threshold=0.3).plan(whole, epoch=1, num_epochs=9, seed=1)
    expected = prune_below(whole.loss, seen[math.floor(0.3 * len(seen))], 0.5, seed=1, epoch=1)
    assert same(q, expected)
    draws = uniform(4, 3, 0, N, purpose=3)
    chosen = np.sort(np.argsort(draws, kind="stable")[: int(0.3 * N)])
    assert np.array_equal(RandomSubset(0.3).plan(whole, epoch=3, num_epochs=9, seed=4).slots, chosen)


def test_a_policy_that_only_plans_the_whole_is_refused_by_shards():
    class Whole:
        plan, update, parameters = FullData.plan, FullData.update, FullData.parameters

    assert cut(Whole(), 0, 10, 10)
    for make in (
        lambda: cut(Whole(), 0, CHUNK, 2 * CHUNK),
        lambda: Keeper(Whole(), CHUNK, 3, 0, total=2 * CHUNK),
    ):
        with pytest.raises(ConfigError, match=r"Whole has no method plan_shard, so .* use shards=1"):
            make()


# ---- classes


def test_each_class_has_its_own_mean():
    loss = np.float32([1, 2, 6, 10, 20, 30, np.nan, 5])
    classes = [7, 7, 7, -1, -1, -1, 7, 3]  # means 3, 20 and 5
    policy = InfoBatch(prune_ratio=0.999999, classes=classes)
    plan = policy.plan(SampleState(loss, np.zeros(8, np.int32)), epoch=1, num_epochs=9, seed=0)
    assert plan.slots.tolist() == [
        2,
        4,
        5,
        6,
        7,
    ]  # without classes, the mean of 10.6 would spare only 4, 5 and 6


def test_each_class_has_its_own_quantile_and_its_own_share_of_the_target():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 3000)
    loss = (rng.random(3000) + 100 * classes).astype(np.float32)
    whole = SampleState(loss, np.zeros(3000, np.int32))
    q = InfoBatch(threshold=0.2, classes=classes).plan(whole, epoch=1, num_epochs=10, seed=0)
    strong = InfoBatch(target_saving=0.6, classes=classes).plan(whole, epoch=1, num_epochs=10, seed=0)
    for k in range(3):
        mine = np.flatnonzero(classes == k)
        gone = np.setdiff1d(mine, q.slots)
        assert loss[gone].max() < np.sort(loss[mine])[math.floor(0.2 * len(mine))]
        assert abs(len(gone) - 0.1 * len(mine)) < 5 * math.sqrt(0.05 * len(mine))
        left = np.setdiff1d(mine, strong.slots)
        assert abs(len(left) - 6 / 7 * len(mine)) < 5 * math.sqrt(0.09 * len(mine))
    assert strong.weights.max() == pytest.approx(10, rel=1e-2)


def test_class_sums_are_exact():
    rng = np.random.default_rng(1)
    loss = (10.0 ** rng.uniform(-30, 30, 2 * CHUNK + 5)).astype(np.float32)
    loss[::11] = np.nan
    classes = rng.integers(0, 4, len(loss))
    sums, count = class_sums(loss, classes, 5)
    for k in range(5):
        mine = loss[(classes == k) & np.isfinite(loss)].tolist()
        assert math.fsum(s[k] for s in sums) == math.fsum(mine) and count[k] == len(mine)


def test_classes_are_named_by_their_digest_and_travel():
    policy = InfoBatch(classes=np.array([5, 5, 9], np.uint8))
    assert json.loads(json.dumps(policy.parameters()))["classes"] == policy.classes_digest
    assert policy == InfoBatch(classes=[0, 0, 1]) != InfoBatch(classes=[0, 1, 1]) and hash(policy)
    assert policy != InfoBatch() and "classes" not in InfoBatch().parameters()
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy and again.classes.tolist() == [0, 0, 1] and not policy.classes.flags.writeable
    part = policy.shard(1, 3, 3)
    assert part.classes.tolist() == [0, 1] and part == policy and part.parameters() == policy.parameters()
    with pytest.raises(ConfigError, match="has 3 entries, but there are 4 samples"):
        policy.shard(0, 2, 4)
    assert policy.for_ids(3) is policy and InfoBatch().for_ids(4) == InfoBatch()
    with pytest.raises(ConfigError, match="has 3 entries, but there are 4 samples"):
        policy.for_ids(4)
    with pytest.raises(
        ConfigError, match=r"has 3 entries, but sample_id 3 is selected; .* per row of the pool"
    ):
        policy.for_ids(np.array([0, 3]))
    for epoch in (0, 1):
        with pytest.raises(ConfigError, match="has 3 entries, but there are 4 samples"):
            policy.plan(SampleState.empty(4), epoch=epoch, num_epochs=9, seed=0)
    for wrong in ([0.5, 1.0], [[1, 2]], "ab"):
        with pytest.raises(ConfigError, match="classes must be a vector of integers"):
            InfoBatch(classes=wrong)


def test_classes_belong_to_sample_ids():
    ids, of_pool = np.array([1, 4, 5, 9]), np.array([3, 8, 3, 3, 8, 6, 3, 3, 3, 6])
    aligned = InfoBatch(classes=of_pool).for_ids(ids)
    assert aligned == InfoBatch(classes=[8, 8, 6, 6]) and aligned.classes.tolist() == [1, 1, 0, 0]
    dynamic = raysel.DynamicSelection(InfoBatch(classes=of_pool), Selection.of(ids), num_epochs=3)
    assert dynamic.run.policy["classes"] == aligned.classes_digest


# ---- ranks


floats = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, math.nan, -math.nan, math.inf, 1.0]))


@given(st.lists(floats, min_size=1, max_size=60))
@settings(deadline=None)
def test_keys_sort_as_the_values_do(values):
    array = np.array(values, np.float32)
    by_key = array[np.argsort(ordered(array), kind="stable")]
    assert np.array_equal(by_key, np.sort(array), equal_nan=True)
    back = values_of(ordered(array))
    assert np.array_equal(back, array, equal_nan=True) and np.array_equal(
        np.signbit(back[~np.isnan(array)]), np.signbit(array[~np.isnan(array)])
    )


def pieces(rng, keys, groups, shards):
    edges = np.sort(np.concatenate([[0, len(keys)], rng.integers(0, len(keys) + 1, shards - 1)]))
    for a, b in pairwise(edges):
        yield int(a), keys[a:b], None if groups is None else groups[a:b]


@given(
    st.integers(1, 60),
    st.integers(1, 4),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([2, 2**16 + 3, 2**32 - 1]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_ranks_and_marks_are_those_of_a_sort(n, number, shards, top, seed):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, top + 1, n, dtype=np.uint32)
    groups = None if number == 1 else rng.integers(0, number, n)
    of = np.zeros(n, int) if groups is None else groups
    count = rng.integers(0, n + 3, number)

    found = together(
        [kth(k, lambda sizes: count, g, number) for _, k, g in pieces(rng, keys, groups, shards)]
    )
    assert all(np.array_equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))
    key, ties = found[0]
    for g in range(number):
        mine = np.sort(keys[of == g])
        if count[g] < len(mine):
            assert key[g] == mine[count[g]] and ties[g] == count[g] + 1 - np.searchsorted(mine, key[g])
        else:
            assert ties[g] == 0

    marks = together(
        [lowest(k, lambda sizes: count, a, g, number) for a, k, g in pieces(rng, keys, groups, shards)]
    )
    expected = np.zeros(n, bool)
    for g in range(number):
        mine = np.flatnonzero(of == g)
        expected[mine[np.argsort(keys[mine], kind="stable")[: count[g]]]] = True
    assert np.array_equal(np.concatenate(marks), expected)


def test_ranks_over_several_blocks():
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 1000, 20 * CHUNK, dtype=np.uint32)
    marks = alone(lowest(keys, 777_777, 0))
    assert np.array_equal(np.flatnonzero(marks), np.sort(np.argsort(keys, kind="stable")[:777_777]))


# ---- spans and joins


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 10**9])
@pytest.mark.parametrize("shards", [1, 2, 5, 9])
def test_spans_cover_all_at_whole_chunks_and_none_is_empty(n, shards):
    found = spans(n, shards)
    assert found[0][0] == 0 and found[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(stop > start and start % CHUNK == 0 for start, stop in found)
    assert len(found) == min(shards, -(-n // CHUNK))
    assert max(b - a for a, b in found) - min(b - a for a, b in found) < 2 * CHUNK


@pytest.mark.parametrize("shards", [0, -1, 1.5, True, None])
def test_a_number_of_shards_is_whole(shards):
    with pytest.raises(ConfigError, match="shards must be a whole number of at least 1"):
        spans(10, shards)


def test_join_worked_by_hand():
    a, b = ([1.5], 2, (np.array([1, 2]), ["x"])), ([2.5, 3.5], 3, (np.array([10, 20]), ["y"]))
    lists, count, (array, names) = join([a, b])
    assert lists == [1.5, 2.5, 3.5] and count == 5 and array.tolist() == [11, 22] and names == ["x", "y"]
    for float_ in (0.5, np.ones(2), np.float32(1)):
        with pytest.raises(StateError, match="Yield floats only in a list"):
            join([float_, float_])


def test_shards_that_do_not_yield_alike_are_refused():
    def shard(rounds):
        for _ in range(rounds):
            yield 1

    with pytest.raises(StateError, match="yield equally often on all shards"):
        together([shard(1), shard(2)])


# ---- the keepers of several shards


EPOCHS = 5


def keepers(policy, shards: int, attempt: str | None = "a") -> Keepers:
    parts = spans(N, shards)
    made = Keepers(
        [Keeper(cut(policy, a, b, N), b - a, EPOCHS, 3, a, N) for a, b in parts],
        parts,
    )
    if attempt:
        made.restore(attempt)
    return made


def losses(slots: np.ndarray, epoch: int) -> np.ndarray:
    return np.where(slots % 1009 == 0, np.nan, np.sin(slots * 12.9898 + epoch) + 1.5).astype(np.float32)


def train(made, attempt: str, epoch: int, parts: int = 3) -> dict:
    slots = np.random.default_rng(epoch).permutation(made.plan(attempt, epoch).slots)
    for some in np.array_split(slots, parts):
        made.update(attempt, epoch, some, losses(some, epoch))
    return made.commit(attempt, epoch)


@pytest.mark.parametrize("policy", [InfoBatch(0.6), InfoBatch(classes=CLASSES), RoundRobin(0.4)], ids=str)
def test_any_number_of_shards_leaves_the_same_state_in_every_epoch(policy):
    alone_ = Keeper(policy, N, EPOCHS, 3)
    alone_.restore("a")
    expected = [train(alone_, "a", epoch) for epoch in range(EPOCHS)]
    for shards in (1, 2, 5):
        made = keepers(policy, shards)
        assert [train(made, "a", epoch, parts=1 + shards) for epoch in range(EPOCHS)] == expected
        assert made.state("a")[1].digest() == alone_.state("a")[1].digest() == expected[-1]["digest"]
        assert made.progress() == (EPOCHS, expected[-1])
        assert (
            made.state("a", 10, 2 * CHUNK + 3)[1].digest()
            == alone_.state("a")[1].cut(10, 2 * CHUNK + 3).digest()
        )


def test_a_state_goes_on_in_another_number_of_shards_also_in_mid_epoch():
    policy, first = InfoBatch(0.6), keepers(InfoBatch(0.6), 5)
    summaries = [train(first, "a", epoch) for epoch in range(2)]
    slots = first.plan("a", 2).slots
    first.update("a", 2, slots[1::2], losses(slots[1::2], 2))
    (epoch, kept), (at, values) = first.state("a"), first.staged("a", 2)
    assert np.array_equal(at, slots[1::2]) and epoch == 2
    assert np.array_equal(first.staged("a", 2, 70_000, 300_000)[0], at[(at >= 70_000) & (at < 300_000)])
    for shards in (1, 2):
        other = keepers(policy, shards, None)
        other.restore("b", epoch, kept)
        other.plan("b", 2)
        other.update("b", 2, at, values)
        other.update("b", 2, slots[::2], losses(slots[::2], 2))
        summaries.append(other.commit("b", 2))
    assert summaries[2] == summaries[3] and summaries[2]["planned"] == len(slots)


def test_every_worker_may_make_the_rounds_and_each_is_worked_out_once():
    class Counting(InfoBatch):
        rounds: list[int] = []  # noqa: RUF012

        def plan_shard(self, state, start, n, **run):
            self.rounds.append(start)
            return (yield from super().plan_shard(state, start, n, **run))

    made = keepers(Counting(threshold=0.3), 2)
    train(made, "a", 0)
    Counting.rounds.clear()
    shard, other = made._keepers
    assert shard.plan_round("a", 1, 0)[0] is False  # somebody has begun and died
    plans = [made.plan("a", 1) for _ in range(3)]
    assert sorted(Counting.rounds) == [0, 3 * CHUNK] and all(same(p, plans[0]) for p in plans)
    assert other.plan_round("a", 1, 0)[0] is False and other.plan_round("a", 1, 2) == (True, None)
    with pytest.raises(StateError, match="Round 5 of the plan of epoch 1 was requested"):
        other.plan_round("a", 1, 5)


def test_a_shard_alone_cannot_plan():
    shard = keepers(FullData(), 2)._keepers[0]
    for call in (lambda: shard.plan("a", 0), lambda: shard.update("a", 0, np.array([0]), np.array([1.0]))):
        with pytest.raises(StateError, match="have not finished computing it together"):
            call()
    with pytest.raises(StateError, match="Round 1 of the plan of epoch 0 was requested, but round 0 is next"):
        shard.plan_round("a", 0, 1)


def test_a_commit_has_two_phases():
    made = keepers(FullData(), 2)
    slots = made.plan("a", 0).slots
    made.update("a", 0, slots, losses(slots, 0))
    first, second = made._keepers
    with pytest.raises(StateError, match="cannot be committed to the selection state yet"):
        first.fold("a", 0)
    prepared = first.prepare("a", 0)
    assert first.state("a")[0] == 0 and first.prepare("a", 0) is prepared
    made.update("a", 0, slots[:10], np.full(10, 9.0))  # makes what was prepared void
    with pytest.raises(StateError, match="cannot be committed to the selection state yet"):
        first.fold("a", 0)
    first.prepare("a", 0), second.prepare("a", 0)
    first.fold("a", 0)  # and whoever folded died: some shards are an epoch ahead
    with pytest.raises(StateError, match="have finished different numbers of epochs"):
        made.state("a")
    assert made.progress() == (0, None)
    summary = made.commit("a", 0)  # another goes on from there
    assert summary == made.commit("a", 0) and made.state("a")[0] == 1
    assert made.state("a")[1].loss[:10].tolist() == [9.0] * 10


def test_a_shard_that_cannot_prepare_keeps_all_from_folding():
    class Wrong(FullData):
        def update(self, state, plan, slots, losses):
            if len(state) == N - 3 * CHUNK:
                raise ValueError("no")
            return super().update(state, plan, slots, losses)

    made = keepers(Wrong(), 2)
    made.plan("a", 0)
    with pytest.raises(ValueError, match="no"):
        made.commit("a", 0)
    assert made.state("a")[0] == 0


def test_bad_observations_are_said_with_the_runs_own_slots():
    made = keepers(InfoBatch(0.9), 2)
    train(made, "a", 0)
    plan = made.plan("a", 1)
    left_out = np.setdiff1d(np.arange(N), plan.slots)
    wrong = left_out[left_out > 4 * CHUNK][:1]
    with pytest.raises(DataError, match=f"not planned in epoch 1: {wrong[0]}"):
        made.update("a", 1, wrong, np.ones(1))
    for slot in (-1, N):
        with pytest.raises(DataError, match=rf"slots \(positions of samples\) are outside .*: {slot}"):
            made.update("a", 1, np.array([slot]), np.ones(1))
    twice = plan.slots[plan.slots > 4 * CHUNK][:1].repeat(2)
    with pytest.raises(
        DataError, match=f"Two different losses were given for the same slots .* in epoch 1: {twice[0]}"
    ):
        made.update("a", 1, twice, np.array([1.0, 2.0]))
    with pytest.raises(DataError, match="with one loss per slot"):
        made.update("a", 1, plan.slots[:3], np.ones(2))
    with pytest.raises(StateError, match="another data set"):
        made.restore("b", 1, SampleState.empty(N - 1))


def test_a_shards_plan_that_leaves_it_is_refused():
    class Astray(FullData):
        def plan_shard(self, state, start, n, **run):
            yield from ()
            return Plan(np.array([0]), np.ones(1, np.float32))

    with pytest.raises(
        StateError,
        match=r"Astray.plan must return a Plan whose slots \(positions of samples\) are in \d+\.\.\d+",
    ):
        keepers(Astray(), 2).plan("a", 0)
