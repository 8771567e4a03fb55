"""RepDiv: a plan worked out by hand, brute force, and what the publication proves of its rotation."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.dynamic import Plan, RepDiv, SampleState
from raysel.dynamic.plan import TIES, uniform
from raysel.dynamic.repdiv import Scores, priority
from raysel.dynamic.shards import together
from raysel.errors import ConfigError, DataError

REP = [1, 0.5, 0, 1, 0, 0.5]
DIV = [0, 0.5, 1, 0.25, 0, 1]


def table(rep: object, div: object, label: object = None, ids: object = None) -> pa.Table:
    rep = np.asarray(rep, np.float32)
    columns = {"sample_id": pa.array(np.arange(len(rep)) if ids is None else ids, pa.int64())}
    columns |= {"rep": pa.array(rep), "div": pa.array(np.asarray(div, np.float32))}
    return pa.table(columns if label is None else {**columns, "label": pa.array(label)})


def counted(selected: object) -> SampleState:
    selected = np.asarray(selected, np.int32)
    return SampleState(np.full(len(selected), np.nan, np.float32), selected)


def drawn(seed: int, n: int = 40, classes: int = 4, levels: int = 5) -> tuple[pa.Table, SampleState]:
    """Scores of few levels, so that ties abound."""
    rng = np.random.default_rng(seed)
    rep, div = rng.integers(0, levels, (2, n)) / (levels - 1)
    label = rng.integers(0, classes, n) ** 2 // 3
    return table(rep, div, label), counted(rng.integers(0, 3, n))


def oracle(scores: pa.Table, state: SampleState, policy: RepDiv, epoch: int, of: int, seed: int) -> list[int]:
    """Section 2 of the method, by sorting."""
    rep, div = (scores[c].to_numpy().astype(float) for c in ("rep", "div"))
    label = scores["label"].to_pylist() if "label" in scores.column_names else [0] * len(rep)
    n, t = len(rep), epoch + 1
    slope = 10 / of if policy.k_s is None else policy.k_s
    alpha = policy.alpha
    if alpha is None:
        sigmoid = 1 / (1 + math.exp(-slope * (t - policy.t_mid * of)))
        alpha = policy.a_min + (1 - policy.a_min) * (1 - sigmoid)
    h = [
        np.float32(alpha * rep[i] + (1 - alpha) * div[i] - policy.penalty * math.log(1 + state.selected[i]))
        for i in range(n)
    ]
    draws = uniform(seed, 0, 0, n, purpose=TIES).tolist()
    best = sorted(range(n), key=lambda i: (-h[i], draws[i], i))
    count = max(int(policy.ratio * 100 + 0.5) * n // 100, 1)
    quota = count // len(set(label))
    chosen = {i for c in set(label) for i in [j for j in best if label[j] == c][:quota]}
    chosen |= set([i for i in best if i not in chosen][: count - len(chosen)])
    return sorted(chosen)


def same(a: Plan, b: Plan) -> bool:
    return a.slots.tobytes() == b.slots.tobytes() and a.weights.tobytes() == b.weights.tobytes()


# ---- the plan ----------------------------------------------------------------------------------------------


def test_worked_by_hand():
    policy = RepDiv(table(REP, DIV), ratio=0.5)
    # T = 10: k_s = 1 and t_mid * T = 6, so alpha is 0.2 + 0.8 / 2 in epoch 5, the sixth
    assert policy.alpha_in(5, 10) == pytest.approx(0.6)
    assert policy.alpha_in(4, 10) == pytest.approx(0.2 + 0.8 / (1 + math.exp(-1)))
    assert policy.alpha_in(6, 10) == pytest.approx(0.2 + 0.8 / (1 + math.exp(1)))
    state = counted([0, 0, 0, 3, 1, 0])
    h = priority(np.float32(REP), np.float32(DIV), state.selected, 0.6, 0.2)
    # 0.6, 0.3 + 0.2, 0.4, 0.6 + 0.1 - 0.2 ln 4, -0.2 ln 2, 0.3 + 0.4
    np.testing.assert_allclose(h, [0.6, 0.5, 0.4, 0.422741, -0.138629, 0.7], atol=1e-6)
    at = {"epoch": 5, "num_epochs": 10, "seed": 0}
    plan = policy.plan(state, **at)
    assert plan.slots.tolist() == [0, 1, 5] and plan.weights.tolist() == [1, 1, 1]

    # two classes: one each, 5 of a and 3 of b, and the third goes to the highest of the rest, 0
    policy = RepDiv(table(REP, DIV, ["a", "a", "b", "b", "b", "a"]), ratio=0.5)
    assert policy.plan(state, **at).slots.tolist() == [0, 3, 5]
    # a class of one gives what it has, and the rest is handed on: 5 and 0 of a, 4 of b, then 1
    policy = RepDiv(table(REP, DIV, ["a", "a", "a", "a", "b", "a"]), ratio=0.67)
    assert policy.plan(state, **at).slots.tolist() == [0, 1, 4, 5]

    after = policy.update(state, policy.plan(state, **at), np.array([0, 4]), np.array([0.5, np.nan]))
    assert after.selected.tolist() == [1, 1, 0, 3, 2, 1]
    assert np.array_equal(after.loss, np.float32([0.5] + [np.nan] * 5), equal_nan=True)


@given(
    st.integers(0, 2**20),
    st.integers(0, 16),
    st.sampled_from([0.1, 0.3, 0.55, 0.7, 0.99]),
    st.sampled_from([0.0, 0.2, 5.0]),
    st.sampled_from([None, 0.0, 0.4, 1.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_against_the_oracle(seed, epoch, ratio, penalty, alpha, labelled):
    scores, state = drawn(seed)
    scores = scores if labelled else scores.drop_columns("label")
    policy = RepDiv(scores, ratio=ratio, penalty=penalty, alpha=alpha)
    plan = policy.plan(state, epoch=epoch, num_epochs=20, seed=seed)
    assert plan.slots.tolist() == oracle(scores, state, policy, epoch, 20, seed)
    assert (plan.weights == 1).all()


@pytest.mark.parametrize("classes", [1, 4, 500])
def test_any_number_of_shards_makes_the_plan_of_the_whole(classes):
    scores, state = drawn(3, n=3000, classes=classes)
    policy = RepDiv(scores, ratio=0.4).for_ids(3000)
    at = {"epoch": 2, "num_epochs": 10, "seed": 5}
    whole = policy.plan(state, **at)
    for cuts in ([], [1], [1000, 1001, 2999], list(range(100, 3000, 700))):
        spans = list(zip([0, *cuts], [*cuts, 3000], strict=True))
        parts = together(
            [policy.shard(a, b, 3000).plan_shard(state.cut(a, b), a, 3000, **at) for a, b in spans]
        )
        joined = Plan(np.concatenate([p.slots for p in parts]), np.concatenate([p.weights for p in parts]))
        assert same(joined, whole)
    assert len(whole) == 1200


def test_ties_are_broken_by_the_seed_and_alike_in_every_epoch():
    policy = RepDiv(table(np.zeros(2000), np.zeros(2000)), ratio=0.5, penalty=0, tail=0)
    state = SampleState.empty(2000)
    first = policy.plan(state, epoch=0, num_epochs=9, seed=1)
    assert same(first, policy.plan(state, epoch=7, num_epochs=9, seed=1))
    other = policy.plan(state, epoch=0, num_epochs=9, seed=2)
    shared = len(np.intersect1d(first.slots, other.slots))
    assert 400 < shared < 600 and len(first) == len(other) == 1000
    assert 400 < (first.slots < 1000).sum() < 600, "not simply the first slots"


def test_the_order_of_the_rows_and_the_names_of_the_classes_do_not_matter():
    scores, state = drawn(8, n=300)
    renamed = scores.set_column(3, "label", pa.array([f"class {9 - v}" for v in scores["label"].to_pylist()]))
    mixed = renamed.take(np.random.default_rng(0).permutation(300))
    coded = mixed.set_column(3, "label", mixed["label"].combine_chunks().dictionary_encode())
    names = [*sorted(set(mixed["label"].to_pylist())), "no one's"]
    codes = pa.array([names.index(name) for name in mixed["label"].to_pylist()], pa.int8())
    sorted_ = mixed.set_column(3, "label", pa.DictionaryArray.from_arrays(codes, names))
    assert not coded["label"].chunk(0).dictionary.equals(sorted_["label"].chunk(0).dictionary)
    at = {"epoch": 2, "num_epochs": 10, "seed": 5}
    plan = RepDiv(scores, ratio=0.4).plan(state, **at)
    some = np.arange(150, 300)
    digest = RepDiv(scores).for_ids(some).scores_digest
    for other in (coded, sorted_):
        assert RepDiv(other).for_ids(some).scores_digest == digest
    for other in (renamed, mixed, coded, sorted_, pa.concat_tables([mixed[:100], mixed[100:]])):
        assert same(RepDiv(other, ratio=0.4).plan(state, **at), plan)
        assert RepDiv(other).parameters() == RepDiv(scores).parameters()


# ---- what is promised of a run -----------------------------------------------------------------------------


def run(policy: RepDiv, num_epochs: int, seed: int = 0, epochs: int | None = None):
    """(plan, state after it) of one epoch after the other."""
    state, none = SampleState.empty(len(policy.scores)), np.empty(0)
    for epoch in range(num_epochs if epochs is None else epochs):
        plan = policy.plan(state, epoch=epoch, num_epochs=num_epochs, seed=seed)
        state = policy.update(state, plan, none.astype(np.int64), none)
        yield plan, state


some_scores = st.tuples(
    *[st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8)] * 2,
    st.lists(st.integers(0, 1), min_size=8, max_size=8),
)


@given(some_scores, st.sampled_from([0.3, 0.5, 0.75]), st.floats(0.1, 0.5))
@settings(deadline=None, max_examples=6)
def test_no_sample_runs_away(scores, ratio, steepness):
    # Theorem 3.1 with Delta / lambda <= 0.5: 1 + u_i <= exp(Delta / lambda) (1 + u_j) + 1 within a class
    rep, div, label = (np.array(column) for column in scores)
    policy = RepDiv(table(rep, div, label), ratio=ratio, tail=0)
    mixes = [policy.alpha_in(epoch, 200) for epoch in range(200)]
    spread = max(np.ptp(a * rep + (1 - a) * div) for a in mixes)
    policy = RepDiv(policy.scores, ratio=ratio, tail=0, penalty=max(spread / steepness, 1e-3))
    bound = math.exp(spread / policy.penalty)
    for _, state in run(policy, 200):
        for c in (0, 1):
            used = 1 + state.selected[label == c]
            if len(used):
                assert used.max() <= bound * used.min() + 1 + 1e-4


@given(some_scores, st.sampled_from([0.3, 0.5, 0.75]))
@settings(deadline=None, max_examples=10)
def test_a_heavy_penalty_is_round_robin(scores, ratio):
    rep, div, label = (np.array(column) for column in scores)
    policy = RepDiv(table(rep, div, label), ratio=ratio, tail=0, penalty=1.001 * (40 + 2))  # > Delta (T + 2)
    for _, state in run(policy, 40):
        assert all(np.ptp(state.selected[label == c]) <= 1 for c in set(label.tolist()))


def test_without_penalty_and_curriculum_every_epoch_takes_the_same():
    scores, _ = drawn(1, n=200)
    for alpha in (0.0, 0.3, 1.0):
        plans = [plan for plan, _ in run(RepDiv(scores, 0.3, penalty=0, alpha=alpha, tail=0), 12)]
        assert all(same(plan, plans[0]) for plan in plans) and len(plans[0]) == 60
    turning = [plan for plan, _ in run(RepDiv(scores, 0.3, penalty=0, tail=0), 12)]
    assert not same(turning[0], turning[-1]), "the curriculum moves it"


def test_one_term_alone():
    rng = np.random.default_rng(0)
    rep, div = rng.random((2, 100), np.float32)
    for alpha, score in ((1.0, rep), (0.0, div)):
        policy = RepDiv(table(rep, div), ratio=0.2, alpha=alpha, penalty=0)
        plan = policy.plan(SampleState.empty(100), epoch=0, num_epochs=10, seed=0)
        assert set(plan.slots.tolist()) == set(np.argsort(-score)[:20].tolist())


@pytest.mark.parametrize("tail", [0.0, 0.15, 0.29, 1.0])
@pytest.mark.parametrize("ratio", [0.29, 0.7, 1.0])
def test_the_cost_is_exact(ratio, tail):
    scores, _ = drawn(2, n=50)
    policy = RepDiv(scores, ratio=ratio, tail=tail)
    for num_epochs in (1, 3, 10, 20):
        trained = sum(len(plan) for plan, _ in run(policy, num_epochs))
        n_tail = round(tail * num_epochs)
        chosen = round(ratio * 100) * 50 // 100
        assert trained == (num_epochs - n_tail) * chosen + n_tail * 50
        assert policy.cost(50, num_epochs) == pytest.approx(trained / (50 * num_epochs), abs=1e-15)


def test_the_tail_takes_all_the_data():
    scores, _ = drawn(2, n=50)
    lengths = [len(plan) for plan, _ in run(RepDiv(scores, ratio=0.5), 20)]
    assert lengths == [25] * 17 + [50] * 3


# ---- scores and slots --------------------------------------------------------------------------------------


def test_scores_are_put_in_the_order_of_the_slots():
    scores, _ = drawn(4, n=100)
    ids = np.random.default_rng(0).permutation(1000)[:100]
    spread = scores.set_column(0, "sample_id", pa.array(ids))
    chosen = np.sort(ids[::2])
    policy = RepDiv(spread, ratio=0.3).for_ids(chosen)
    rows = [int(np.flatnonzero(ids == i)[0]) for i in chosen]
    direct = RepDiv(scores.take(rows).set_column(0, "sample_id", pa.array(np.arange(50))), ratio=0.3)
    at = {"epoch": 1, "num_epochs": 10, "seed": 2}
    state = SampleState.empty(50)
    assert same(policy.plan(state, **at), direct.plan(state, **at))
    assert policy.parameters()["scores"] != RepDiv(spread, ratio=0.3).parameters()["scores"]
    assert policy.scores.ids is None, "no more bytes a sample than the plan takes"
    alone = RepDiv(table(REP, DIV, ["a", "a", "b", "b", "b", "c"])).for_ids(np.array([0, 1, 5]))
    assert alone.scores.number == 2, "a class that nobody is left of takes no quota"


def test_parameters_can_be_written_and_tell_scores_apart():
    policy = RepDiv(table(REP, DIV), ratio=1)
    parameters = json.loads(json.dumps(policy.parameters()))
    digest = parameters.pop("scores")
    assert parameters == {
        "policy": "RepDiv",
        "ratio": 1.0,
        "a_min": 0.2,
        "t_mid": 0.6,
        "k_s": None,
        "penalty": 0.2,
        "tail": 0.15,
        "alpha": None,
    }
    others = [table(DIV, REP), table(REP, DIV, list("aaabbb")), table(REP[:5], DIV[:5])]
    assert len({digest, *(RepDiv(other).parameters()["scores"] for other in others)}) == 4
    again = pickle.loads(pickle.dumps(policy))
    assert again == policy and again.parameters() == policy.parameters()
    assert RepDiv(table(DIV, REP), ratio=1) != policy


def test_ids_that_do_not_match():
    policy = RepDiv(table(REP, DIV, ids=[0, 2, 4, 6, 8, 10]))
    with pytest.raises(DataError, match=r"2 of 3 samples have no score \(sample_id 1, 11\)"):
        policy.for_ids(np.array([1, 2, 11]))
    with pytest.raises(DataError, match=r"5 of 10 samples have no score \(sample_id 1, 3, 5 and 2 more\)"):
        policy.for_ids(10)
    with pytest.raises(DataError, match="already in the order of the samples of a run"):
        policy.for_ids(np.array([0])).for_ids(np.array([0]))
    with pytest.raises(ConfigError, match="has the scores of 6 samples, but the run has 7"):
        policy.plan(SampleState.empty(7), epoch=0, num_epochs=5, seed=0)
    with pytest.raises(ConfigError, match="has the scores of 6 samples, but the run has 7"):
        policy.shard(0, 3, 7)


def test_more_classes_than_the_quota_serves():
    policy = RepDiv(table(REP, DIV, list("abcdef")), ratio=0.5)
    with pytest.raises(
        ConfigError, match=r"selects 3 of 6 samples, but .* for each of the 6 classes. Raise ratio to 1 or"
    ):
        policy.plan(SampleState.empty(6), epoch=0, num_epochs=5, seed=0)
    with pytest.raises(ConfigError, match="for each of the 6 classes"):
        policy.for_ids(6)
    RepDiv(table(REP, DIV, list("abcdef")), ratio=1).for_ids(6)
    with pytest.raises(
        ConfigError, match=r"Raise ratio to 0\.334 or more, or give scores without the column 'label'"
    ):
        RepDiv(table(REP, DIV, list("aaabbb")), ratio=0.2).count(6)
    RepDiv(table(REP, DIV, list("aaabbb")), ratio=0.334).for_ids(6)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (table(REP, DIV).drop_columns("div"), "have no column 'div'"),
        (table(REP, DIV).slice(0, 0), "have no row"),
        (table(REP, DIV, ids=[0, 1, 2, 2, 1, 5]), "hold these ids more than once; give one row per id: 1, 2"),
        (
            table([0, 0], [0, 0]).set_column(0, "sample_id", pa.array([2**63, 1], pa.uint64())),
            "must fit int64; it does not for 9223372036854775808",
        ),
        (table([0, 1.5, np.nan], [0, 0, 0]), r"'rep' must lie in \[0, 1\]; it does not for sample_id 1, 2"),
        (table([0, 1], [0, -0.1]), "'div' must lie in"),
        (table(REP, DIV, ["a", None, "b", None, "c", "d"]), "have no label for sample_id 1, 3"),
        (table(REP, DIV).set_column(0, "sample_id", pa.array(list("abcdef"))), "sample_id must be integers"),
        (table(REP, DIV).set_column(1, "rep", pa.array([1, 0, 0, 1, 0, 0])), "must hold floating-point"),
    ],
)
def test_scores_that_cannot_be_used(scores, message):
    with pytest.raises(DataError, match=message):
        RepDiv(scores)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ratio": 0}, "RepDiv.ratio"),
        ({"ratio": 1.2}, "RepDiv.ratio"),
        ({"a_min": -0.1}, "RepDiv.a_min"),
        ({"t_mid": 2}, "RepDiv.t_mid"),
        ({"tail": "all"}, "RepDiv.tail"),
        ({"alpha": 1.5}, "RepDiv.alpha"),
        ({"penalty": -1}, "RepDiv.penalty"),
        ({"penalty": math.inf}, "RepDiv.penalty"),
        ({"k_s": math.nan}, "RepDiv.k_s"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ConfigError, match=message):
        RepDiv(table(REP, DIV), **setting)
    with pytest.raises(ConfigError, match="must be an Arrow table"):
        RepDiv([1, 2])


def test_scores_without_a_table():
    scores = Scores(np.float32(REP), np.float32(DIV), np.zeros(6, np.int32), 1)
    assert RepDiv(scores) == RepDiv(table(REP, DIV))
