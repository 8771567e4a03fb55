"""Draws that belong to a slot, sums that sharding cannot move, and equal steps on every rank."""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.core.sums import exact_sum
from raysel.dynamic import FullData, Plan, Policy, SampleState
from raysel.dynamic.plan import (
    CHUNK,
    ORDER,
    PRUNE,
    annealing,
    batches,
    below,
    check_epoch,
    chunk_sums,
    fraction,
    full,
    length_grouped,
    loss_sum,
    mean,
    order,
    part,
    step_sizes,
    steps,
    uniform,
    unweighted,
)
from raysel.errors import ConfigError, DataError

FAST = settings(deadline=None, max_examples=60)


# ---- draws


@given(st.integers(0, 2**70), st.integers(0, 10**6), st.lists(st.integers(0, 300), max_size=8))
@FAST
def test_any_split_draws_the_same(seed, epoch, cuts):
    edges = [0, *sorted(cuts), 300]
    pieces = [uniform(seed, epoch, a, b) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), uniform(seed, epoch, 0, 300))


def test_draws_beyond_two_to_the_31():
    far = 3 * 2**31 + 5
    assert np.array_equal(uniform(7, 1, far, far + 20), uniform(7, 1, far - 13, far + 40)[13:33])


def test_draws_are_pinned():
    # A plan must be the same next year: these change only with the format of every run there is.
    assert uniform(0, 0, 0, 3).tolist() == PINNED_FIRST
    assert uniform(2024, 17, 10**9, 10**9 + 3).tolist() == PINNED_FAR


PINNED_FIRST = [2180191166, 3759418713, 3519002466]
PINNED_FAR = [2260653179, 3102130239, 1367322759]


def test_streams_differ_by_seed_epoch_and_purpose():
    streams = [uniform(s, e, 0, 64, purpose=p) for s in (0, 1, 2**32) for e in (0, 1) for p in (PRUNE, ORDER)]
    assert len({stream.tobytes() for stream in streams}) == len(streams)


def test_draws_are_uniform():
    draws = uniform(5, 3, 0, 400_000)
    counts = np.bincount(draws >> np.uint32(24), minlength=256)
    chi2 = ((counts - 400_000 / 256) ** 2 / (400_000 / 256)).sum()
    assert 150 < chi2 < 380  # 255 degrees of freedom, +- about 5 sigma
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / math.sqrt(400_000)


def test_below():
    assert below(0.0) == 0 and below(0.5) == 2**31 and below(1 - 2**-53) == 2**32 - 1
    assert abs(np.mean(uniform(0, 1, 0, 100_000) < below(0.3)) - 0.3) < 4 * math.sqrt(0.21 / 100_000)


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0", True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ConfigError, match="seed"):
        uniform(seed, 0, 0, 1)


def test_order_is_a_seeded_permutation():
    assert np.array_equal(np.sort(order(1000, 1, 2)), np.arange(1000))
    assert order(1000, 1, 2).dtype == np.int64
    assert np.array_equal(order(1000, 1, 2), order(1000, 1, 2))
    assert not np.array_equal(order(1000, 1, 2), order(1000, 1, 3))
    assert not np.array_equal(order(1000, 1, 2), order(1000, 2, 2))
    assert order(0, 0, 0).size == 0


def test_global_random_states_are_untouched():
    torch = pytest.importorskip("torch")
    before = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().numpy().tobytes())  # noqa: NPY002
    uniform(0, 0, 0, 100)
    batches(100, 8, 0, 2, 0, 0)
    after = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().numpy().tobytes())  # noqa: NPY002
    assert before == after


# ---- sums


floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats32, max_size=200))
@FAST
def test_exact_sum_is_the_correctly_rounded_sum(values):
    array = np.array(values, np.float32)
    assert exact_sum(array) == math.fsum(array.tolist())


@pytest.mark.parametrize("kind", ["uniform", "wide", "cancelling", "extreme", "constant", "zero"])
def test_exact_sum_of_a_whole_chunk(kind):
    rng = np.random.default_rng(0)
    values = {
        "uniform": rng.random(CHUNK),
        "wide": 10.0 ** rng.uniform(-44, 38, CHUNK),
        "cancelling": np.concatenate([x := rng.normal(size=CHUNK // 2) * 1e20, -x]) + rng.normal(size=CHUNK),
        "extreme": rng.choice([3.4e38, -3.4e38, 1e-45], CHUNK),
        "constant": np.full(CHUNK, 0.1),
        "zero": np.zeros(CHUNK),
    }[kind].astype(np.float32)
    assert exact_sum(values) == math.fsum(values.tolist())


@given(st.integers(1, 6), st.integers(0, CHUNK - 1), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=10)
def test_shards_at_chunk_boundaries_cannot_move_the_mean(shards, tail, rnd):
    n = 5 * CHUNK + tail
    rng = np.random.default_rng(rnd.randrange(2**32))
    loss = (10.0 ** rng.uniform(-6, 2, n)).astype(np.float32)
    loss[rng.random(n) < 0.1] = np.nan
    loss[rng.integers(n)] = np.inf
    state = SampleState(loss, np.zeros(n, np.int32))
    edges = sorted({0, n, *(CHUNK * rnd.randrange(6) for _ in range(shards))})
    partial = [chunk_sums(loss[a:b]) for a, b in pairwise(edges)]
    rnd.shuffle(partial)  # shards may answer in any order
    joined = [s for sums, _ in partial for s in sums], sum(count for _, count in partial)
    assert mean(*joined) == mean(*loss_sum(state))
    assert joined[1] == np.isfinite(loss).sum()


def test_mean_of_nothing_is_none():
    assert mean(*loss_sum(SampleState.empty(10))) is None
    assert mean(*loss_sum(SampleState.empty(0))) is None


@given(st.floats(2**-126, 2**100, width=32), st.integers(1, 3 * CHUNK))
@settings(deadline=None, max_examples=30)
def test_the_mean_of_equal_losses_is_that_loss(value, n):
    assert mean(*chunk_sums(np.full(n, value, np.float32))) == value


# ---- plans


def test_a_plan_is_checked_read_only_and_picklable():
    plan = Plan(np.array([0, 5, 9]), np.ones(3, np.float32))
    again = pickle.loads(pickle.dumps(plan))
    assert len(plan) == len(again) == 3 and again.slots.tolist() == [0, 5, 9]
    with pytest.raises(ValueError, match="read-only"):
        plan.weights[0] = 2


@pytest.mark.parametrize(
    ("slots", "weights", "sentence"),
    [
        ([0, 2, 2], [1, 1, 1], "ascend"),
        ([0, 2, 1], [1, 1, 1], "ascend"),
        ([-1, 2], [1, 1], "must be at least 0, because they are positions of samples, counted from 0"),
        ([0, 1], [1], "2 slots and 1 weights"),
        ([0, 1], [1, np.nan], "finite"),
        ([0, 1], [1, np.inf], "finite"),
        ([0, 1], [1, -1], "not negative"),
    ],
)
def test_a_wrong_plan_is_refused(slots, weights, sentence):
    with pytest.raises(DataError, match=sentence):
        Plan(np.array(slots, np.int64), np.array(weights, np.float32))


def test_a_plan_of_other_types_is_refused():
    with pytest.raises(
        DataError,
        match=r"A plan's slots must be a one-dimensional int64 array, not a numpy ndarray of shape \(3,\) of int32",
    ):
        Plan(np.arange(3, dtype=np.int32), np.ones(3, np.float32))
    with pytest.raises(
        DataError, match=r"A plan's weights must be a one-dimensional float32 array, not .* of float64"
    ):
        Plan(np.arange(3), np.ones(3))


def test_order_is_checked_across_the_edge_of_a_chunk():
    slots = np.arange(CHUNK + 2)
    slots[CHUNK] = slots[CHUNK - 1]
    with pytest.raises(DataError, match="ascend"):
        Plan(slots, np.ones(len(slots), np.float32))


def test_full_and_unweighted():
    assert full(3).slots.tolist() == [0, 1, 2] and full(3).weights.tolist() == [1, 1, 1]
    assert unweighted(np.array([True, False, True])).slots.tolist() == [0, 2]
    assert len(full(0)) == 0


def test_the_protocol_recognises_a_policy():
    assert isinstance(FullData(), Policy) and not isinstance(object(), Policy)


# ---- parameters


@pytest.mark.parametrize(
    ("share", "n", "count"), [(0.29, 100, 29), (0.7, 10, 7), (0.875, 200, 175), (1, 3, 3)]
)
def test_part_is_of_the_number_as_written(share, n, count):
    assert part(share, n) == count


def test_annealing_starts_at_floor():
    assert [annealing(e, 10, 0.875) for e in range(10)] == [False] * 8 + [True] * 2
    assert all(annealing(e, 5, 0.0) for e in range(5)) and not any(annealing(e, 5, 1.0) for e in range(5))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_fraction_refuses(value):
    with pytest.raises(ConfigError, match=r"x must be a number in \[0, 1\]"):
        fraction("x", value)


@pytest.mark.parametrize(("epoch", "num_epochs"), [(3, 3), (-1, 3), (0, 0), (0.5, 3), (0, 2.0)])
def test_epochs_are_checked(epoch, num_epochs):
    with pytest.raises(ConfigError, match="epoch"):
        check_epoch(epoch, num_epochs)


# ---- distribution


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.booleans())
@FAST
def test_ranks_share_the_plan_exactly_once_in_equal_steps(n, batch_size, world, epoch, shuffle):
    shares = [batches(n, batch_size, r, world, seed=3, epoch=epoch, shuffle=shuffle) for r in range(world)]
    length = math.ceil(n / (batch_size * world))
    assert all(s.shape == (length, batch_size) and s.dtype == np.int64 for s in shares)
    assert steps(n, batch_size, world) == length
    everything = np.concatenate([s.ravel() for s in shares])
    assert np.array_equal(np.sort(everything[everything >= 0]), np.arange(n))
    evened = (
        n % (batch_size * world) == 1 and n > batch_size * world > 2
    )  # the last step took a row from the one before
    for share in shares:
        assert (share[: -1 - evened] >= 0).all(), "padding before the last step"
    if evened:
        assert [sum(int((s[at] >= 0).sum()) for s in shares) for at in (-2, -1)] == [
            batch_size * world - 1,
            2,
        ]
    if length:
        last = [int((s[-1] >= 0).sum()) for s in shares]
        assert max(last) - min(last) <= 1
        assert all((s[-1, :k] >= 0).all() for s, k in zip(shares, last, strict=True)), "padding comes last"


@given(st.integers(0, 300), st.integers(1, 20))
@FAST
def test_no_step_has_a_single_row_and_the_rest_depends_on_the_rows_that_remain(n, rows):
    sizes = step_sizes(n, rows)
    assert len(sizes) == -(-n // rows) and sizes.sum() == n and (sizes <= rows).all()
    assert n == 1 or rows <= 2 or (sizes >= 2).all()
    assert (sizes[:-2] == rows).all()
    for done in range(len(sizes) + 1):
        assert np.array_equal(step_sizes(n - int(sizes[:done].sum()), rows), sizes[done:])


@pytest.mark.parametrize("n", [1, 3, 50, 4_097, 20_000])
def test_an_order_grouped_by_length_is_the_same_rows_with_like_neighbours(n):
    lengths = np.random.default_rng(n).integers(1, 500, n)
    visit = order(n, 3, 1)
    grouped = length_grouped(visit, lengths)
    assert np.array_equal(np.sort(grouped), np.arange(n))

    def padding(positions):
        some = lengths[positions[: n // 32 * 32]].reshape(-1, 32)
        return 1 - some.sum() / (some.max(1) * 32).sum() if some.size else 0.0

    if n > 4_000:
        assert padding(grouped) < 0.05 and padding(visit) > 0.4
        assert (
            np.abs(np.diff(lengths[grouped[: n // 2]])).max() < 50
        )  # no batch joins the longest with the shortest
    shares = [batches(n, 8, r, 2, 3, 1, skip=n // 3, lengths=lengths) for r in range(2)]
    assert sorted(i for s in shares for i in s.ravel().tolist() if i >= 0) == sorted(
        grouped[n // 3 :].tolist()
    )
    again = [batches(n, 4, r, 4, 3, 1, skip=n // 3, lengths=lengths) for r in range(4)]
    rows_of_steps = [
        [sorted(i for s in some for i in s[at].tolist() if i >= 0) for at in range(len(some[0]))]
        for some in (shares, again)
    ]
    assert rows_of_steps[0] == rows_of_steps[1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_depend_on_their_size_alone(shuffle):
    def sets(n: int, world: int) -> list[frozenset[int]]:
        shares = [batches(n, 8 // world, r, world, seed=1, epoch=2, shuffle=shuffle) for r in range(world)]
        return [frozenset(row[row >= 0].tolist()) for row in np.concatenate(shares, axis=1)]

    for n in (105, 107):
        assert sets(n, 1) == sets(n, 2) == sets(n, 4)


@given(
    st.integers(0, 200), st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.data()
)
@FAST
def test_an_epoch_goes_on_with_other_batches_where_it_stopped(n, batch_size, world, later, workers, data):
    done = data.draw(st.integers(0, steps(n, batch_size, world)))
    first = [batches(n, batch_size, r, world, 3, 1)[:done] for r in range(world)]
    skip = int(step_sizes(n, batch_size * world)[:done].sum())
    rest = [batches(n, later, r, workers, 3, 1, skip=skip) for r in range(workers)]
    assert all(r.shape == (steps(n - skip, later, workers), later) for r in rest)
    both = np.concatenate([x.ravel() for x in first + rest])
    assert np.array_equal(np.sort(both[both >= 0]), np.arange(n))
    if (later, workers) == (batch_size, world):  # the very batches that an undisturbed epoch has
        undisturbed = [batches(n, batch_size, r, world, 3, 1)[done:] for r in range(world)]
        assert all(np.array_equal(a, b) for a, b in zip(rest, undisturbed, strict=True))


def test_skipped_batches_worked_by_hand():
    assert batches(7, 2, 0, 2, 0, 0, shuffle=False, skip=4).tolist() == [[4, -1]]
    assert batches(7, 3, 0, 1, 0, 0, shuffle=False, skip=2).tolist() == [[2, 3, 4], [5, 6, -1]]
    assert np.array_equal(batches(20, 4, 0, 1, 5, 6, skip=8)[0], order(20, 5, 6)[8:12])
    assert batches(7, 2, 0, 2, 0, 0, skip=7).shape == (0, 2)


def test_batches_worked_by_hand():
    assert batches(7, 2, 0, 2, 0, 0, shuffle=False).tolist() == [[0, 1], [4, -1]]
    assert batches(7, 2, 1, 2, 0, 0, shuffle=False).tolist() == [[2, 3], [5, 6]]


def test_batches_follow_the_order():
    visit = order(8, 5, 6)
    assert np.array_equal(batches(8, 4, 0, 2, 5, 6)[0], visit[:4])
    assert np.array_equal(batches(8, 4, 1, 2, 5, 6)[0], visit[4:])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"rank": 2},
        {"rank": -1},
        {"world": 0},
        {"n": -1},
        {"skip": -1},
        {"skip": 11},
        {"seed": -1},
    ],
)
def test_batches_refuses(kwargs):
    with pytest.raises(ConfigError):
        batches(**{"n": 10, "batch_size": 2, "rank": 0, "world": 2, "seed": 0, "epoch": 0, **kwargs})


def test_the_room_does_not_import_ray():
    code = "import sys, raysel.dynamic, raysel.dynamic.keeper; sys.exit(any(m in sys.modules for m in ('ray', 'torch')))"
    subprocess.run([sys.executable, "-c", code], check=True)
