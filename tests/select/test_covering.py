"""Greedy coverage against brute force on small problems, with equal rows, weights and rows that are selected already."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.select import covering
from raysel.select.covering import facility_location, herding, k_center, nearest_first, round_robin, turns
from raysel.select.matches import unit


def problem(seed, weighted):
    """Few distinct rows for odd seeds, so that many distances are equal; some rows are selected already."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    points = rng.integers(-2, 3, (n, d)) if seed % 2 else rng.normal(size=(n, d)) + seed % 5
    weight = rng.integers(1, 6, n) if weighted else np.ones(n, np.int64)
    held = np.minimum(rng.integers(0, 2, n) * (rng.random(n) < 0.3), weight)
    if held.all():
        held[0] = 0
    return points.astype(np.float32), weight, held, int(rng.integers(1, n + 1))


def center_by_hand(points, weight, held, count):
    wide = points.astype(np.float64)
    chosen, order = np.flatnonzero(held).tolist(), []
    while len(order) < count and len(chosen) < len(wide):
        if chosen:
            far = [min(((wide[i] - wide[s]) ** 2).sum() for s in chosen) for i in range(len(wide))]
        else:
            far = -((wide - np.average(wide, axis=0, weights=weight)) ** 2).sum(axis=1)
        best = max((i for i in range(len(wide)) if i not in chosen), key=lambda i: (far[i], -i))
        chosen.append(best)
        order.append(best)
    return order, max(min(((x - wide[s]) ** 2).sum() for s in chosen) for x in wide) ** 0.5


def facility_by_hand(points, weight, held, count):
    grid = 2.0**-11
    rows = np.rint(unit(points) / grid) * grid
    similar = rows @ rows.T
    chosen, order = np.flatnonzero(held).tolist(), []

    def worth(some):
        return weight @ similar[:, some].max(axis=1)

    while len(order) < count and len(chosen) < len(rows):
        best = max((i for i in range(len(rows)) if i not in chosen), key=lambda i: (worth([*chosen, i]), -i))
        chosen.append(best)
        order.append(best)
    return order, worth(chosen) / weight.sum()


def herding_by_hand(points, weight, held, count):
    kernel = covering._Kernel(points)._rows(slice(None)).astype(np.int64)
    left = (weight - held).tolist()
    chosen, order = np.repeat(np.arange(len(points)), held).tolist(), []
    while len(order) < count and any(left):
        value = (len(chosen) + 1) * (kernel @ weight) - weight.sum() * kernel[:, chosen].sum(axis=1)
        best = max((i for i in range(len(points)) if left[i]), key=lambda i: (value[i], -i))
        left[best] -= 1
        chosen.append(best)
        order.append(best)
    mine = np.bincount(chosen, minlength=len(points)) / len(chosen) - weight / weight.sum()
    return order, max(mine @ kernel @ mine * 2.0**-20, 0) ** 0.5


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("greedy", "by_hand"),
    [(k_center, center_by_hand), (facility_location, facility_by_hand), (herding, herding_by_hand)],
    ids=["k_center", "facility_location", "herding"],
)
def test_picks_are_those_of_brute_force(greedy, by_hand, weighted, monkeypatch):
    for seed in range(60):
        points, weight, held, count = problem(seed, weighted)
        monkeypatch.setattr(covering, "_NUMBERS", [100, 1 << 24][seed % 3 > 0])
        found = greedy(points, weight, held, count)
        order, value = by_hand(points, weight, held, count)
        assert found.order.tolist() == order, seed
        assert found.value == pytest.approx(value, abs=1e-6)
        assert len(found.score) == len(order) and np.isfinite(found.score).all()


@pytest.mark.parametrize("greedy", [k_center, facility_location, herding])
def test_a_selection_is_extended_as_if_it_had_not_been_interrupted(greedy):
    points = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    weight, held = np.ones(60, np.int64), np.zeros(60, np.int64)
    complete = greedy(points, weight, held, 30)
    assert greedy(points, weight, held, 12).order.tolist() == complete.order[:12].tolist()
    held[complete.order[:12]] = 1
    rest = greedy(points, weight, held, 18)
    assert rest.order.tolist() == complete.order[12:].tolist()
    assert rest.value == pytest.approx(complete.value)


def test_the_kernel_is_gaussian_with_the_median_distance_and_need_not_be_kept(monkeypatch):
    rng = np.random.default_rng(2)
    points = (rng.normal(size=(50, 5)) * 30 + 400).astype(np.float32)
    wide = points.astype(np.float64)
    squared = ((wide[:, None] - wide) ** 2).sum(axis=2)
    wanted = np.exp(-squared / (2 * np.median(squared[np.triu_indices(50, 1)])))
    assert np.abs(covering._Kernel(points)._rows(slice(None)) * 2.0**-20 - wanted).max() < 1e-5
    kept = herding(points, np.ones(50, np.int64), np.zeros(50, np.int64), 20)
    monkeypatch.setattr(covering, "_KERNEL_KEPT", 0)
    again = herding(points, np.ones(50, np.int64), np.zeros(50, np.int64), 20)
    assert again.order.tolist() == kept.order.tolist() and again.score == pytest.approx(kept.score, abs=1e-5)


@pytest.mark.parametrize("greedy", [k_center, facility_location, herding])
def test_rows_that_are_equal_or_large_or_zero(greedy):
    ones = np.ones(5, np.int64)
    for points in (
        np.ones((5, 3)),
        np.zeros((5, 3)),
        np.full((5, 3), 1e30) * np.arange(5)[:, None],
        np.full((5, 1), 1e-30),
    ):
        found = greedy(points.astype(np.float32), ones, 0 * ones, 3)
        assert len(set(found.order.tolist())) == 3 and np.isfinite(found.value)
    same = greedy(np.ones((5, 3), np.float32), ones, 0 * ones, 3)
    assert same.order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_clusters(seed):
    rng = np.random.default_rng(seed)
    n, clusters = int(rng.integers(5, 60)), int(rng.integers(1, 6))
    cluster = np.sort(rng.integers(0, clusters, n))
    clusters = int(cluster.max()) + 1
    distance, draws = rng.integers(0, 4, n).astype(np.float32), rng.random(n)
    free = rng.random(n) < 0.7
    among = nearest_first(cluster, distance, draws, free)
    turn = nearest_first(cluster, distance, draws, np.ones(n, bool))
    for c in np.unique(cluster[free]):
        here = np.flatnonzero(cluster[free] == c)
        assert among[here].tolist() == np.argsort(np.argsort(turn[free][here])).tolist()
    for c in np.unique(cluster):
        here = np.flatnonzero(cluster == c)
        first = min(here, key=lambda i: (distance[i], draws[i]))
        wanted = [first, *sorted(set(here.tolist()) - {first}, key=lambda i: draws[i])]
        assert here[np.argsort(turn[here])].tolist() == wanted
    size = np.bincount(cluster, minlength=clusters)
    order = rng.permutation(np.repeat(np.arange(clusters), size))[: int(rng.integers(1, n + 1))]
    picked = turns(order, cluster, turn)
    assert cluster[picked].tolist() == order.tolist() and len(set(picked.tolist())) == len(picked)
    for c in np.unique(order):
        assert turn[picked[order == c]].tolist() == list(range((order == c).sum()))
    held = rng.integers(0, 2, clusters)
    weight = rng.integers(1, 4, clusters)
    filled = np.flatnonzero(size)
    once = rng.permutation([c for c in filled if not held[c]]).astype(np.int64)
    count = int(rng.integers(len(once), n + 1))
    place = {c: at for at, c in enumerate(once.tolist())}

    def key(i):
        c, t = int(cluster[i]), int(turn[i] + held[cluster[i]])
        return (t > 0, 0.0 if t == 0 else (t + 0.5) / weight[c], place.get(c) if t == 0 else c, i)

    wanted = sorted(range(n), key=key)[:count]
    assert round_robin(once, weight, held, cluster, turn, count).tolist() == wanted
