"""Exact selection against exhaustive search, index for index."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raysel.gio.greedy as module
from raysel.errors import ConfigError, DataError
from raysel.gio import Picks, Stop, exact_select, gradient_select, kl
from raysel.gio import distances as blocks
from raysel.gio.greedy import _best, _insert, _score, greedy

ESTIMATORS = [
    ("nearest", 1),
    ("nearest", 2),
    ("nearest", 3),
    ("nearest_mean", 2),
    ("nearest_mean", 4),
    ("average", 3),
]


def log_distances(x, y):
    difference = np.asarray(x, np.float64)[:, None] - np.asarray(y, np.float64)[None]
    return np.log(np.maximum(np.sqrt((difference**2).sum(-1)), 1e-5))


def objective(logs, estimator, k):
    """What the pick can change of the KL: a mean over target rows of the (n, m) log distances."""
    if estimator == "average":
        return np.log(np.exp(logs) + 1e-8).mean()
    nearest = np.sort(logs, axis=1)[:, :k]  # fewer than k rows chosen: the ranks there are
    return (nearest[:, -1] if estimator == "nearest" else nearest).mean()


def exhaustive(pool, target, estimator, k, start, count):
    logs = log_distances(target, pool)
    chosen = np.empty((len(target), 0)) if start is None else log_distances(target, start)
    left, picks = list(range(len(pool))), []
    for _ in range(count):
        values = [objective(np.column_stack([chosen, logs[:, c]]), estimator, k) for c in left]
        best = min(values)
        picks.append(next(c for c, value in zip(left, values, strict=True) if value <= best + 1e-12))
        left.remove(picks[-1])
        chosen = np.column_stack([chosen, logs[:, picks[-1]]])
    return picks


def problem(seed):
    rng = np.random.default_rng(seed)
    n, size, d = rng.integers(5, 14), rng.integers(4, 16), rng.integers(1, 6)
    target, pool = rng.normal(size=(n, d)), rng.normal(size=(size, d)) * 1.5
    pool[rng.integers(size, size=size // 3)] = pool[rng.integers(size, size=size // 3)]  # duplicates
    pool[rng.integers(size)] = target[rng.integers(n)]  # a distance of zero
    start = None if seed % 3 else np.concatenate([rng.normal(size=(rng.integers(1, 4), d)), target[:1]])
    offset = 100.0 * (seed % 2)
    return pool + offset, target + offset, None if start is None else start + offset


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_equals_exhaustive_greedy(estimator, k):
    for seed in range(120):
        pool, target, start = problem(seed)
        expected = exhaustive(pool, target, estimator, k, start, len(pool))
        found = exact_select(pool, target, estimator=estimator, k=k, start=start)
        assert found.indices.tolist() == expected, f"seed {seed}"


def all_evaluated(logs, estimator, k, count):
    """Greedy with the gains of the solver itself, every one of them computed anew for every pick."""
    nu, here, picks = np.empty((0, logs.shape[1])), np.ones(len(logs), bool), []
    for _ in range(count):
        gain, _bound = _score(logs, nu, k, estimator)(np.arange(len(logs)))
        picks.append(int(np.where(here, gain, -np.inf).argmax()))
        here[picks[-1]] = False
        nu = _insert(nu, logs[picks[-1]].astype(np.float64), k)
    return picks


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 9).flatmap(
        lambda d: st.tuples(
            st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=1, max_size=14),
            st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=4, max_size=10),
        )
    ),
    st.sampled_from(ESTIMATORS[:5]),
)
def test_lazy_evaluation_changes_nothing_on_grids(rows, which):
    """A grid is full of ties, true ones and ones broken by rounding: compare with the same gains, all evaluated."""
    estimator, k = which
    pool, target = (np.array(part, np.float64) for part in rows)
    logs = log_distances(pool, target)
    nu, bound, picks = np.empty((0, len(target))), np.full(len(pool), np.inf), []
    for _ in range(len(pool)):
        picks.append(_best(bound, _score(logs, nu, k, estimator)))
        bound[picks[-1]] = -np.inf
        nu = _insert(nu, logs[picks[-1]], k)
    assert picks == all_evaluated(logs, estimator, k, len(pool))


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_the_kl_after_every_pick(estimator, k):
    rng = np.random.default_rng(3)
    pool, target, start = rng.normal(size=(25, 4)), rng.normal(size=(12, 4)), rng.normal(size=(3, 4))
    for begin in (np.empty((0, 4)), start):
        picks = exact_select(pool, target, 15, estimator, k, start=begin)
        for m, value in enumerate(picks.kl, start=1):
            chosen = np.concatenate([begin, pool[picks.indices[:m]]])
            rank = k if estimator == "average" else min(k, len(chosen))
            assert value == pytest.approx(kl(target, chosen, estimator, rank), abs=1e-9)


def test_the_first_pick_minimises_the_mean_log_distance():
    rng = np.random.default_rng(4)
    pool, target = rng.normal(size=(40, 3)), rng.normal(size=(15, 3))
    expected = log_distances(target, pool).mean(axis=0).argmin()
    for estimator, k in ESTIMATORS[:5]:
        assert exact_select(pool, target, 1, estimator, k).indices.tolist() == [expected]


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_ties_go_to_the_lowest_index(estimator, k):
    rng = np.random.default_rng(5)
    pool, target = rng.normal(size=(300, 7)), rng.normal(size=(37, 7))
    twice = np.concatenate([pool, pool])  # positions far apart in the matrix product
    picks = exact_select(twice, target, 200, estimator, k).indices.tolist()
    for row in range(300):
        if row + 300 in picks:
            assert row in picks[: picks.index(row + 300)]
    assert exact_select(
        np.zeros((6, 2)), rng.normal(size=(8, 2)), estimator=estimator, k=k
    ).indices.tolist() == list(range(6))


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_equal_rows_tie_whatever_a_matrix_product_rounds(estimator, k, monkeypatch):
    rng = np.random.default_rng(13)
    squared = blocks._squared
    monkeypatch.setattr(blocks, "_squared", lambda *a: squared(*a) * (1 + 1e-12 * float(rng.normal())))
    monkeypatch.setattr(blocks, "_ROWS", 5)
    pool, target = rng.normal(size=(20, 4)), rng.normal(size=(15, 4))
    picks = exact_select(np.concatenate([pool, pool]), target, estimator=estimator, k=k).indices.tolist()
    assert all(picks.index(row) < picks.index(row + 20) for row in range(20))


@pytest.mark.parametrize("estimator,k", ESTIMATORS[:5])
def test_no_candidate_is_left_out(estimator, k, monkeypatch):
    """One candidate at a time, so that whatever is not looked at is left out by its bound alone."""
    monkeypatch.setattr(module, "_BATCH", 1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        logs = log_distances(rng.normal(size=(120, 2)), rng.normal(size=(25, 2)))
        nu, bound, picks = np.empty((0, 25)), np.full(120, np.inf), []
        for _ in range(60):
            picks.append(_best(bound, _score(logs, nu, k, estimator)))
            bound[picks[-1]] = -np.inf
            nu = _insert(nu, logs[picks[-1]], k)
        assert picks == all_evaluated(logs, estimator, k, 60)


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_a_larger_problem_in_many_blocks(estimator, k, monkeypatch):
    rng = np.random.default_rng(6)
    centres = rng.normal(size=(12, 5)) * 2
    pool = centres[rng.integers(12, size=400)] + rng.normal(size=(400, 5)) * 0.3
    target = centres[rng.integers(6, size=150)] + rng.normal(size=(150, 5)) * 0.3
    whole = exact_select(pool, target, 60, estimator, k)
    monkeypatch.setattr(blocks, "_ROWS", 64)
    monkeypatch.setattr(blocks, "_COLUMNS", 37)
    small = exact_select(pool, target, 60, estimator, k)
    assert small.indices.tolist() == whole.indices.tolist()
    assert small.indices.tolist()[:8] == exhaustive(pool, target, estimator, k, None, 8)
    if estimator != "average":
        logs = blocks.log_matrix(pool, target, target.mean(axis=0), np.float64)
        assert small.indices.tolist() == all_evaluated(logs, estimator, k, 60)
    np.testing.assert_allclose(small.kl, whole.kl, atol=1e-9)


@pytest.mark.parametrize("estimator,k", ESTIMATORS[:5])
def test_a_float32_matrix_stays_exact_for_its_own_values(estimator, k, monkeypatch):
    rng = np.random.default_rng(7)
    pool, target = rng.normal(size=(80, 4)), rng.normal(size=(30, 4))
    double = exact_select(pool, target, 40, estimator, k)
    monkeypatch.setattr(module, "_FLOAT32_ABOVE", 0)
    single = exact_select(pool, target, 40, estimator, k)
    np.testing.assert_allclose(single.kl, double.kl, atol=1e-4)
    assert single.indices.tolist()[:20] == double.indices.tolist()[:20]


def test_continuing_equals_one_run():
    rng = np.random.default_rng(8)
    pool, target = rng.normal(size=(60, 3)), rng.normal(size=(20, 3))
    for estimator, k in ESTIMATORS:
        whole = exact_select(pool, target, 20, estimator, k)
        first, rest = whole.indices[:8], np.setdiff1d(np.arange(60), whole.indices[:8])
        again = exact_select(pool[rest], target, 12, estimator, k, start=pool[first])
        assert rest[again.indices].tolist() == whole.indices[8:].tolist()
        np.testing.assert_allclose(again.kl, whole.kl[8:], atol=1e-9)


def test_one_at_a_time():
    rng = np.random.default_rng(9)
    pool, target = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    picks = exact_select(pool, target, 10)
    some = list(itertools.islice(greedy(pool, target), 10))
    assert [index for index, _ in some] == picks.indices.tolist()
    assert [value for _, value in some] == picks.kl.tolist()
    assert len(list(greedy(pool, target))) == 30
    assert picks.indices.dtype == np.int64 and picks.kl.dtype == np.float64 and len(picks) == 10
    with pytest.raises(DataError):
        greedy(pool[0], target)  # at once, not when the first row is asked for


@pytest.mark.parametrize("estimator,k", ESTIMATORS)
def test_weights_count_target_rows(estimator, k):
    rng = np.random.default_rng(10)
    pool, target, times = rng.normal(size=(25, 3)), rng.normal(size=(10, 3)), rng.integers(1, 4, size=10)
    start = rng.normal(size=(2, 3))
    weighted = exact_select(pool, target, 12, estimator, k, start, target_weights=times)
    logs = np.repeat(
        log_distances(target, pool), times, axis=0
    )  # a row of weight 3 is a row seen three times
    chosen, expected = np.repeat(log_distances(target, start), times, axis=0), []
    for _ in range(12):
        left = [c for c in range(25) if c not in expected]
        values = [objective(np.column_stack([chosen, logs[:, c]]), estimator, k) for c in left]
        expected.append(left[int(np.argmin(values))])
        chosen = np.column_stack([chosen, logs[:, expected[-1]]])
    assert weighted.indices.tolist() == expected
    final = kl(target, np.concatenate([start, pool[weighted.indices]]), estimator, k, target_weights=times)
    assert weighted.kl[-1] == pytest.approx(final, abs=1e-9)


def curve(stop, count=None):
    rng = np.random.default_rng(11)
    pool = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 30])
    target = rng.normal(size=(30, 2))
    return exact_select(pool, target, count, stop=stop)


def test_stop_rules():
    whole = curve(None)
    assert len(whole) == 80
    first_rise = next(m for m in range(1, 80) if whole.kl[m] > whole.kl[m - 1])
    stopped = curve(Stop(increase=True))
    assert (
        stopped.indices.tolist() == whole.indices[:first_rise].tolist()
    )  # the row that raised it is not taken

    reached = next(m for m in range(80) if whole.kl[m] < 1.0)
    assert len(curve(Stop(min_kl=1.0))) == reached + 1  # the row that gets there is taken

    small = next(m for m in range(1, 80) if whole.kl[m - 1] - whole.kl[m] < 0.05)
    assert len(curve(Stop(min_difference=0.05))) == small

    assert len(curve(Stop(data_size=0.25))) == 20
    assert len(curve(Stop(data_size=1.0))) == 80
    assert len(curve(Stop(data_size=0.001))) == 0
    assert len(curve(Stop(data_size=0.25), count=7)) == 7

    rises = np.diff(whole.kl, prepend=np.inf) > 0
    for tolerance in (0, 1, 3):
        run, expected = 0, 80
        for m in range(80):
            run = run + 1 if rises[m] else 0
            if run > tolerance:
                expected = m
                break
        assert expected < 80
        assert len(curve(Stop(sequential_increase_tolerance=tolerance))) == expected


GOOD = np.random.default_rng(12).normal(size=(10, 3))


@pytest.mark.parametrize(
    "pool,options,error,says",
    [
        (GOOD, {"count": 11}, ConfigError, "count = 11 is more than the pool's 10 rows"),
        (GOOD, {"count": 0}, ConfigError, "count must be a whole number of at least 1, got 0"),
        (GOOD, {"k": 10}, ConfigError, "k = 10 is too large"),
        (GOOD, {"estimator": "mean"}, ConfigError, "unknown"),
        (GOOD[0], {}, DataError, "pool must be an array of shape"),
        (GOOD[:0], {}, DataError, "pool is empty"),
        (GOOD[:, :2], {}, DataError, "pool has 2 dimensions"),
        (
            np.where(np.arange(10)[:, None] == 6, np.nan, GOOD),
            {},
            DataError,
            "pool row 6 holds a value that is NaN",
        ),
        (GOOD, {"start": GOOD[:, :1]}, DataError, "start has 1 dimensions"),
        (
            GOOD,
            {"stop": Stop(max_resets=1)},
            ConfigError,
            "max_resets can only be used with the gradient solver",
        ),
    ],
)
def test_bad_input(pool, options, error, says):
    with pytest.raises(error, match=says):
        exact_select(pool, GOOD, **options)
    with pytest.raises(DataError, match="target has 1 row"):
        exact_select(GOOD, GOOD[:1])


@pytest.mark.parametrize(
    "options",
    [
        {"data_size": 0.0},
        {"data_size": 1.5},
        {"sequential_increase_tolerance": -1},
        {"min_kl": math.nan},
        {"max_resets": 2, "increase": True},
    ],
)
def test_bad_stop_rules(options):
    with pytest.raises(ConfigError):
        Stop(**options)


def test_a_matrix_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_MATRIX", 50)
    with pytest.raises(ConfigError, match="give a smaller number of clusters"):
        exact_select(GOOD, GOOD)
    assert isinstance(exact_select(GOOD, GOOD, estimator="average"), Picks)


@pytest.mark.parametrize("solve", [exact_select, gradient_select])
def test_counts_in_rows_and_on_past_them_while_the_kl_falls(solve):
    rng = np.random.default_rng(7)
    pool, target = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    sizes = rng.integers(1, 9, 60)
    none = {} if solve is exact_select else {"stop": None, "init": "jump", "steps": 5}
    whole = solve(pool, target, 60, **none)
    rows = np.cumsum(sizes[whole.indices])
    fall = int(np.flatnonzero(np.diff(whole.kl, prepend=whole.kl_start) > 0)[0])
    assert fall < 60 and whole.ended == "count"
    for count in (1, 17, int(rows[fall]), int(rows[-1])):
        enough = int(np.searchsorted(rows, count)) + 1
        plain = solve(pool, target, count, sizes=sizes, **none)
        assert plain.indices.tolist() == whole.indices[:enough].tolist() and plain.ended == "count"
        onward = solve(pool, target, count, sizes=sizes, onward=True, **none)
        assert onward.indices.tolist() == whole.indices[: max(enough, fall)].tolist()
        assert onward.ended == "count"
    with pytest.raises(ConfigError, match=f"more than the pool's {rows[-1]} rows"):
        solve(pool, target, int(rows[-1]) + 1, sizes=sizes, **none)
    for wrong in (sizes[1:], sizes * 0, sizes / 2):
        with pytest.raises(DataError, match="sizes must hold"):
            solve(pool, target, 5, sizes=wrong, **none)


def test_why_it_ended_and_the_kl_before():
    rng = np.random.default_rng(8)
    pool, target, start = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)), rng.normal(size=(6, 4))
    assert exact_select(pool, target, 30).kl_start == np.inf
    assert exact_select(pool, target, 3, start=start).kl_start == pytest.approx(kl(target, start), abs=1e-9)
    assert exact_select(pool, target, stop=Stop(increase=True)).ended == "stop"
    assert exact_select(pool, target, stop=Stop(data_size=0.1)).ended == "stop"
    assert exact_select(pool, target, 1, stop=Stop(increase=True)).ended == "count"
