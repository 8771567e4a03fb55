"""Centroids, assignment that depends on nothing but the row, and the cut to a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from raysel.errors import ConfigError, DataError
from raysel.gio import quantize
from raysel.gio.quantize import assign, cut_to_budget, draw_to_budget, fit_centroids


def by_hand(rows, centroids):
    difference = rows.astype(np.float64)[:, None] - centroids.astype(np.float64)[None]
    squared = (difference * difference).sum(axis=-1)
    return squared.argmin(axis=1), np.sqrt(squared.min(axis=1)).astype(np.float32)


def scene(kind, seed):
    rng = np.random.default_rng(seed)
    d, clusters, n = int(rng.integers(1, 70)), int(rng.integers(1, 60)), int(rng.integers(1, 500))
    centroids, rows = rng.normal(size=(clusters, d)), rng.normal(size=(n, d))
    if kind == "grid":  # many exact ties
        centroids, rows = np.rint(centroids), np.rint(rows) / 2
    elif kind == "pixels":  # far from the origin
        centroids, rows = centroids * 1e-3 + 200, rows * 1e-3 + 200
    elif kind == "near ties":
        centroids[1:] = centroids[:1] + rng.normal(size=(clusters - 1, d)) * 1e-6
    elif kind in ("halfway", "huge"):  # ties but for the rounding of the rows themselves
        rows = (centroids[rng.integers(clusters, size=n)] + centroids[rng.integers(clusters, size=n)]) / 2
        rows, centroids = (part * (1e21 if kind == "huge" else 1.0) for part in (rows, centroids))
    elif kind == "outlier":
        centroids[0] *= 1e12
    elif kind == "scale":
        scale = 10.0 ** rng.integers(-25, 25)
        centroids, rows = centroids * scale, rows * scale
    return rows.astype(np.float32), centroids.astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["plain", "grid", "pixels", "near ties", "halfway", "huge", "outlier", "scale"]
)
@pytest.mark.parametrize("device", [None, "cpu:0"])  # "cpu:0" takes the path of an accelerator
def test_nearest_centroid_as_by_hand(kind, device):
    for seed in range(12):
        rows, centroids = scene(kind, seed)
        cluster, distance = assign(rows, centroids, device=device)
        expected, length = by_hand(rows, centroids)
        assert cluster.dtype == np.int32 and distance.dtype == np.float32
        assert np.array_equal(cluster, expected)
        assert np.array_equal(distance, length)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["plain", "grid", "pixels", "near ties", "halfway"]), st.integers(0, 30), st.data())
def test_a_row_gets_the_same_bits_in_any_company(kind, seed, data):
    rows, centroids = scene(kind, seed)
    cluster, distance = assign(rows, centroids)
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=40))
    again, length = assign(rows[some], centroids)
    assert np.array_equal(again, cluster[some])
    assert np.array_equal(length.view(np.uint32), distance[some].view(np.uint32))


def test_blocks_threads_and_layout_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    rows, centroids = (
        rng.normal(size=(3000, 48)).astype(np.float32),
        rng.normal(size=(200, 48)).astype(np.float32),
    )
    cluster, distance = assign(rows, centroids)
    for block, threads in ((1, 1), (1 << 14, 2), (1 << 24, 1)):
        monkeypatch.setattr(quantize, "_BLOCK", block)
        with threadpool_limits(threads):
            again, length = assign(np.asfortranarray(rows), centroids)
        assert np.array_equal(again, cluster) and np.array_equal(length, distance)
    for at in range(0, 3000, 611):
        again, length = assign(rows[at : at + 611], centroids)
        assert np.array_equal(again, cluster[at : at + 611]) and np.array_equal(
            length, distance[at : at + 611]
        )


def test_a_wrong_matrix_product_within_its_bound_changes_nothing(monkeypatch):
    """Whatever a BLAS rounds differently may only decide what is looked at again."""
    rng = np.random.default_rng(1)
    rows, centroids = (
        rng.normal(size=(400, 16)).astype(np.float32),
        rng.normal(size=(90, 16)).astype(np.float32),
    )
    rows[:200] = (centroids[rng.integers(90, size=200)] + centroids[rng.integers(90, size=200)]) / 2  # ties
    expected = assign(rows, centroids)
    matmul = np.matmul

    def noisy(a, b, out):
        matmul(a, b, out=out)
        out *= 1 + (rng.random(out.shape) - 0.5).astype(np.float32) * 1e-6
        return out

    monkeypatch.setattr(np, "matmul", noisy)
    for _ in range(5):
        found = assign(rows, centroids)
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


def test_equal_centroids_go_to_the_lowest_index():
    centroids = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0]], np.float32), 3, axis=0)
    cluster, distance = assign(np.array([[0.1, 0.0], [0.9, 0.0], [0.5, 2.0]]), centroids)
    assert cluster.tolist() == [0, 3, 0]
    assert distance == pytest.approx([0.1, 0.1, np.hypot(0.5, 2.0)])


@pytest.mark.parametrize(
    "rows,centroids,says",
    [
        (np.ones(3), np.ones((2, 3)), "vectors must be an array of shape"),
        (np.ones((4, 2)), np.ones((2, 3)), "vectors has 2 dimensions, but 3 were expected"),
        (np.ones((0, 3)), np.ones((2, 3)), "vectors is empty"),
        (np.ones((4, 3)), np.ones((0, 3)), "centroids is empty"),
        (
            np.where(np.arange(4)[:, None] == 2, np.nan, np.ones((4, 3))),
            np.ones((2, 3)),
            "id 102 holds a value that is NaN",
        ),
        (np.full((4, 3), 1e39), np.ones((2, 3)), "id 100 .* too large"),
    ],
)
def test_bad_vectors(rows, centroids, says):
    with pytest.raises(DataError, match=says):
        assign(rows, centroids, ids=np.arange(100, 104))


def blobs(seed=0, groups=20, n=2000, d=6):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(groups, d)) * 10
    return (middle[np.arange(n) % groups] + rng.normal(size=(n, d)) * 0.1).astype(np.float32), middle


def test_centroids_find_the_groups():
    rows, middle = blobs()
    centroids = fit_centroids(rows, 40, seed=1)
    assert centroids.shape == (40, 6) and centroids.dtype == np.float32
    cluster, distance = assign(rows, centroids)
    assert len(np.unique(cluster)) == 40 and distance.max() < 1.5
    assert (assign(middle, centroids)[1] < 1.0).all()


@pytest.mark.parametrize("levels", [1, 2])
def test_the_same_seed_gives_the_same_centroids_on_any_number_of_threads(levels, monkeypatch):
    if levels == 2:
        monkeypatch.setattr(quantize, "_TWO_LEVELS_ABOVE", 10)
    rows, _ = blobs(n=3000)
    found = []
    for threads, seed in ((1, 3), (2, 3), (4, 3), (1, 4)):
        with threadpool_limits(threads):
            found.append(fit_centroids(rows, 60, seed=seed))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])
    assert len(found[0]) == 60


def test_two_levels_cover_the_sample(monkeypatch):
    monkeypatch.setattr(quantize, "_TWO_LEVELS_ABOVE", 30)
    rows, _ = blobs(groups=50)
    centroids = fit_centroids(rows, 100)
    assert len(centroids) == 100
    assert assign(rows, centroids)[1].max() < 1.5


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any), st.integers(1, 200))
def test_shares_are_fair(size, total):
    size = np.array(size)
    if total < (size > 0).sum() or total > size.sum():
        return
    share = np.array(quantize._shares(size, total))
    assert share.sum() <= total and (share <= size).all() and (share[size > 0] >= 1).all()


def test_fewer_distinct_rows_than_clusters():
    rows = np.repeat(np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32), 30, axis=0)
    assert np.array_equal(fit_centroids(rows, 50), rows[::30])
    assert np.array_equal(fit_centroids(rows, 7), rows[::30])
    assert len(fit_centroids(np.concatenate([rows, rows[:1] + 1]), 7)) == 7
    assert fit_centroids(np.full((40, 2), 3.0), 5).tolist() == [[3.0, 3.0]]
    assert len(fit_centroids(rows[:1], 5)) == 1


@pytest.mark.parametrize("clusters", [0, -1, 2.5])
def test_bad_clusters(clusters):
    with pytest.raises(ConfigError, match="clusters"):
        fit_centroids(np.ones((4, 2)), clusters)
    with pytest.raises(DataError, match="sample row 1 holds a value that is NaN"):
        fit_centroids([[1.0], [np.nan]], 1)


#            position:   0    1    2    3    4    5    6    7
CLUSTER = np.array([2, 0, 2, 1, 2, 0, 1, 2])
DISTANCE = np.array([0.5, 0.1, 0.2, 0.3, 0.5, 0.9, 0.1, 0.7], np.float32)
IDS = np.array([70, 60, 50, 40, 30, 20, 10, 0])


@pytest.mark.parametrize(
    "budget,expected",
    [
        (1, [2]),  # cluster 2 first: its nearest row
        (2, [2, 4]),  # positions 0 and 4 are as far: the lower id (30) goes in
        (3, [0, 2, 4]),
        (4, [0, 2, 4, 7]),
        (5, [0, 1, 2, 4, 7]),  # then cluster 0
        (6, [0, 1, 2, 4, 5, 7]),
        (100, [0, 1, 2, 4, 5, 7]),  # cluster 1 was not picked
    ],
)
def test_cut_by_hand(budget, expected):
    found = cut_to_budget([2, 0], CLUSTER, DISTANCE, IDS, budget)
    assert found.dtype == np.int64 and found.tolist() == expected


@settings(max_examples=80)
@given(st.integers(0, 10_000), st.booleans())
def test_cuts_are_nested_exact_and_blind_to_the_order_of_rows(seed, drawn):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    cluster, distance, ids = rng.integers(0, 9, n), rng.integers(0, 4, n) / 4, rng.permutation(1000)[:n]
    order = rng.permutation(9)[: rng.integers(1, 10)]
    support, share = int(rng.integers(0, len(order) + 1)), rng.integers(0, 5, 9)
    held = int(np.isin(cluster, order).sum())

    def cut(some, budget):
        if drawn:
            return draw_to_budget(order, support, share, cluster[some], ids[some], budget, seed)
        return cut_to_budget(order, cluster[some], distance[some], ids[some], budget)

    shuffle, before = rng.permutation(n), set()
    for budget in range(1, n + 2):
        chosen = cut(np.arange(n), budget)
        assert len(chosen) == min(budget, held)
        now = set(ids[chosen].tolist())
        assert before <= now
        assert set(ids[shuffle][cut(shuffle, budget)].tolist()) == now
        # Clusters are reached in their order; a draw has all of the support before it goes on.
        touched = [c for c in order if (cluster[chosen] == c).any()]
        full = [c for c in order if (cluster == c).any()]
        if drawn:
            first = [c for c in full if c in order[:support]]
            rest = [c for c in touched if c not in first]
            assert rest == [c for c in full if c not in first][: len(rest)]
            assert not rest or set(np.flatnonzero(np.isin(cluster, first))) <= set(chosen)
        else:
            assert touched == full[: len(touched)]
        before = now


def test_a_draw_follows_the_shares():
    cluster, ids = np.repeat([0, 1, 2, 3], [1000, 1000, 20, 1000]), np.arange(3020)
    share = [30, 10, 20, 0]
    found = draw_to_budget([2, 0, 1, 3], 4, share, cluster, ids, 60)
    assert np.bincount(cluster[found]).tolist() == [30, 10, 20]
    found = draw_to_budget([2, 0, 1, 3], 4, share, cluster, ids, 420)  # cluster 2 has run out
    assert np.bincount(cluster[found]).tolist() == [300, 100, 20]
    found = draw_to_budget([2, 0, 1, 3], 4, share, cluster, ids, 2030)  # share 0 comes last
    assert np.bincount(cluster[found]).tolist() == [1000, 1000, 20, 10]
    found = draw_to_budget([1, 0], 2, share, cluster, ids, 60, before=[0, 20, 0, 0])  # 20 are there already
    assert np.bincount(cluster[found]).tolist() == [60]
    found = draw_to_budget([1, 0], 2, share, cluster, ids, 100, before=[0, 20, 0, 0])
    assert np.bincount(cluster[found]).tolist() == [90, 10]
    one, two = (draw_to_budget([0], 1, share, cluster, ids, 500, seed) for seed in (0, 1))
    assert not np.array_equal(one, two) and 200 < len(np.intersect1d(one, two)) < 300


@pytest.mark.parametrize(
    "options,error",
    [
        ({"budget": 0}, ConfigError),
        ({"budget": 1.5}, ConfigError),
        ({"order": [1, 1]}, DataError),
        ({"order": [-1]}, DataError),
        ({"ids": IDS[:3]}, DataError),
    ],
)
def test_bad_cuts(options, error):
    good = {"order": [1], "cluster": CLUSTER, "distance": DISTANCE, "ids": IDS, "budget": 2}
    with pytest.raises(error):
        cut_to_budget(**{**good, **options})
    assert len(cut_to_budget([], CLUSTER, DISTANCE, IDS, 2)) == 0
