"""GIO over Ray Datasets: the same choice whatever the blocks, and the choice that brute force makes."""

from __future__ import annotations

import numpy as np
import pytest

import raysel
from raysel.errors import ConfigError, DataError
from raysel.gio import Stop, exact_select, gradient_select


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 5)) * 6
    pool = (centres[rng.integers(0, 6, 900)] + rng.normal(size=(900, 5))).astype(np.float32)
    target = (centres[rng.integers(0, 2, 80)] + rng.normal(size=(80, 5))).astype(np.float32)
    return pool, target


def dataset(array, blocks=1):
    made = raysel.read({"embedding": array})
    return made if blocks == 1 else made.repartition(blocks)


def test_the_choice_does_not_see_the_blocks(cluster, vectors):
    pool, target = vectors
    gio = raysel.GIO(budget=0.25, clusters=40, seed=3)
    one = gio.select(dataset(pool), dataset(target))
    for blocks in (2, 5):
        other = gio.select(dataset(pool, blocks), dataset(target, blocks))
        assert other.table.equals(one.table) and other.dropped.equals(one.dropped) and other.info == one.info


@pytest.mark.parametrize("within", ["nearest", "random"])
def test_every_row_has_its_reason_and_the_budget_is_met_to_the_row(cluster, vectors, within):
    pool, target = vectors
    chosen = raysel.GIO(budget=0.25, clusters=40, within=within).select(dataset(pool), dataset(target))
    assert len(chosen) == 225 and chosen.info["pool_rows"] == 900 and chosen.info["curve"]["rows"][-1] == 225
    assert sorted([*chosen.ids.tolist(), *chosen.dropped["sample_id"].to_pylist()]) == list(range(900))
    table, dropped = chosen.table.to_pandas(), chosen.dropped.to_pandas()
    assert (table.reason == [f"cluster {c}, pick {r + 1}, KL {k:.4g} after it" for c, r, k in
                             zip(table.cluster, table["rank"], table.score, strict=True)]).all()  # fmt: skip
    kl = np.array(chosen.info["curve"]["kl"])
    assert np.array_equal(table.score, kl[table["rank"]])
    picked = dropped.cluster.isin(chosen.info["curve"]["cluster"])
    cut = {"nearest": "only a part of its cluster was selected: the rows nearest to the centroid",
           "random": "its cluster was selected, but the row was not drawn"}[within]  # fmt: skip
    assert set(dropped.reason[picked]) == {cut}
    assert set(dropped.reason[~picked]) == {"its cluster was not reached within the budget"}
    if within == "nearest":  # of the last cluster the farthest rows were cut; of every other one none
        last = table["rank"] == table["rank"].max()
        assert set(dropped.cluster[picked]) <= set(table.cluster[last])


def test_a_draw_takes_from_every_cluster_what_the_target_has_there(cluster, vectors):
    pool, target = vectors
    chosen = {
        rows: raysel.GIO(rows, clusters=6).select(dataset(pool), dataset(target)) for rows in (60, 120, 500)
    }
    assert set(chosen[60].ids) < set(chosen[120].ids) < set(chosen[500].ids)
    near = np.linalg.norm(pool[:, None] - target[None], axis=2).argmin(axis=1)
    table = chosen[120].table.to_pandas()
    found = table.groupby("cluster").size()
    share = {c: 0 for c in found.index}
    centre = {c: pool[table.sample_id[table.cluster == c]].mean(axis=0) for c in share}
    for row in target:
        share[min(share, key=lambda c: np.linalg.norm(row - centre[c]))] += 1
    assert len(near) == 900 and all(abs(found[c] - 120 * share[c] / 80) <= 1.5 for c in share)


def test_the_target_gets_what_it_needs(cluster, vectors):
    pool, target = vectors
    chosen = raysel.GIO(budget=200, clusters=40).select(dataset(pool), dataset(target))
    near = np.linalg.norm(pool[:, None] - target[None], axis=2).min(axis=1)
    assert (near[chosen.ids] < 3.5).mean() > 0.95 > (near < 3.5).mean() + 0.3


def test_without_clusters_it_is_exhaustive_greedy_over_the_rows(cluster):
    rng = np.random.default_rng(4)
    pool, target = rng.normal(size=(60, 3)).astype("f4"), rng.normal(size=(30, 3)).astype("f4")
    chosen = raysel.GIO(budget=9, clusters=None).select(dataset(pool, 3), dataset(target))
    logs = np.log(np.linalg.norm(target[:, None].astype(float) - pool[None].astype(float), axis=2))
    nearest, picked = np.full(30, np.inf), []
    for _ in range(9):
        score = [np.minimum(nearest, logs[:, j]).mean() if j not in picked else np.inf for j in range(60)]
        picked.append(int(np.argmin(score)))
        nearest = np.minimum(nearest, logs[:, picked[-1]])
    assert chosen.ids.tolist() == sorted(picked)
    assert chosen.table.to_pandas().sort_values("rank").cluster.tolist() == picked


def test_input_that_cannot_be_used_gets_one_sentence(cluster, vectors):
    pool, target = vectors
    with pytest.raises(DataError, match="5 dimensions, but the target's 4"):
        raysel.GIO(0.1).select(dataset(pool), dataset(target[:, :4]))
    with pytest.raises(DataError, match="pool has no column 'embedding'"):
        raysel.GIO(0.1).select(raysel.read({"x": pool}), dataset(target))
    with pytest.raises(ConfigError, match="1,000 rows are more than the 900 rows of the pool"):
        raysel.GIO(1000).select(dataset(pool), dataset(target))
    broken = pool.copy()
    broken[[3, 7, 8, 500], 2] = [np.nan, np.inf, -np.inf, np.nan]
    with pytest.raises(DataError, match=r"in 4 of 900 rows \(sample_id 3, 7, 8 and 1 more\)"):
        raysel.GIO(0.1).select(dataset(broken, 3), dataset(target))
    with pytest.raises(DataError, match="target is empty"):
        raysel.GIO(0.1).select(dataset(pool), dataset(target).filter(lambda row: False))
    for budget in (0.0, 1.5, 0, True):
        with pytest.raises(ConfigError, match="budget"):
            raysel.GIO(budget)
    with pytest.raises(ConfigError, match="clusters"):
        raysel.GIO(0.1, clusters=0)


def test_the_gradient_solver_is_the_pure_one_over_centroids(cluster, vectors):
    pool, target = vectors
    for init in ("mean", "jump"):
        gio = raysel.GIO(90, clusters=None, estimator="average", solver="gradient", init=init, seed=2)
        chosen = gio.select(dataset(pool), dataset(target))
        picks = gradient_select(pool, target, 90, init=init, seed=2, stop=None)
        assert chosen.info["curve"]["cluster"] == picks.indices.tolist()
        assert chosen.info["curve"]["kl"] == picks.kl.tolist() and chosen.info["ended"] == "count"
    resets = raysel.GIO(
        1.0, clusters=None, estimator="average", solver="gradient", stop=Stop(max_resets=2), seed=2
    )
    again = resets.select(dataset(pool[:40] * 0.1), dataset(target))
    assert again.info["curve"]["rows"][-1] == len(again) <= 40


@pytest.mark.parametrize("estimator,k", [("nearest", 2), ("nearest_mean", 3), ("average", None)])
def test_estimators_are_the_pure_ones(cluster, vectors, estimator, k):
    pool, target = vectors
    chosen = raysel.GIO(30, clusters=None, estimator=estimator, k=k).select(dataset(pool, 2), dataset(target))
    picks = exact_select(pool, target, 30, estimator, k)
    assert chosen.info["curve"]["cluster"] == picks.indices.tolist()
    assert chosen.info["curve"]["kl"] == picks.kl.tolist()


def test_stop_rules_end_before_the_budget(cluster, vectors):
    pool, target = vectors
    whole = raysel.GIO(1.0, clusters=40).select(dataset(pool), dataset(target))
    kl, rows = whole.info["curve"]["kl"], whole.info["curve"]["rows"]
    rise = next(m for m in range(1, 40) if kl[m] > kl[m - 1])
    stopped = raysel.GIO(1.0, clusters=40, stop=Stop(increase=True)).select(dataset(pool), dataset(target))
    assert len(stopped) == rows[rise - 1] < 900 and stopped.info["ended"] == "stop"
    assert set(stopped.dropped["reason"].to_pylist()) == {
        "its cluster was not reached before a stop rule ended the selection"
    }
    half = raysel.GIO(1.0, clusters=40, stop=Stop(data_size=0.5)).select(dataset(pool), dataset(target))
    assert len(half) == 450
    never = raysel.GIO(1.0, clusters=40, stop=Stop(min_difference=1e9)).select
    # The first pick falls from infinity; nothing after it falls by so much.
    assert len(never(dataset(pool), dataset(target)).info["curve"]["kl"]) == 1


def test_continuing_an_earlier_selection(cluster, vectors):
    pool, target = vectors
    rows = [dataset(pool, 3), dataset(target)]
    one = raysel.GIO(120, clusters=None).select(*rows)
    first = raysel.GIO(50, clusters=None).select(*rows)
    more = raysel.GIO(120, clusters=None).select(*rows, start=first)
    assert more.ids.tolist() == one.ids.tolist() and set(first.ids) <= set(more.ids)
    assert one.info["curve"]["cluster"][50:] == more.info["curve"]["cluster"]
    np.testing.assert_allclose(one.info["curve"]["kl"][50:], more.info["curve"]["kl"], atol=1e-9)
    assert more.info["curve"]["rows"] == list(range(51, 121))
    table = more.table.to_pandas()
    old = table.sample_id.isin(first.ids)
    assert (table["rank"][old] == -1).all() and (table["rank"][~old] >= 0).all()
    assert set(table.reason[old]) == {"in the selection that was extended"}
    assert table.score[old].to_numpy() == pytest.approx(first.info["curve"]["kl"][-1], abs=1e-9)

    # Over clusters: whatever is there already fills the target's groups, so that the rest looks elsewhere.
    near = np.linalg.norm(pool[:, None] - target[None], axis=2).min(axis=1) < 3.5
    weights = np.linspace(0.5, 1, near.sum()).astype(np.float32)
    start = raysel.Selection.of(np.flatnonzero(near), weight=weights, reason="mine")
    more = raysel.GIO(near.sum() + 100, clusters=40).select(*rows, start=start)
    assert len(more) == near.sum() + 100 and np.array_equal(
        more.weights[np.isin(more.ids, start.ids)], weights
    )
    assert len(more.dropped) == 900 - len(more) and more.info["start_rows"] == near.sum()
    with pytest.raises(
        DataError, match=r"start: 1 rows of this selection are not in the pool \(sample_id 5000\)"
    ):
        raysel.GIO(0.5).select(*rows, start=raysel.Selection.of([1, 5000]))
    with pytest.raises(ConfigError, match="start already holds 50"):
        raysel.GIO(50, clusters=None).select(*rows, start=first)


def test_a_budget_in_bytes(cluster):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    texts = ["x" * int(n) for n in rng.integers(0, 50, 300)]
    pool = raysel.read({"embedding": vectors, "text": np.array(texts)})
    total = 300 * (8 + 16 + 4) + sum(map(len, texts))
    for blocks in (1, 5):
        here = pool if blocks == 1 else pool.repartition(blocks)
        chosen = raysel.GIO("5 kB", clusters=20).select(here, dataset(vectors[:30]))
        assert len(chosen) == 5000 * 300 // total
    assert len(raysel.GIO("1GB", clusters=20).select(pool, dataset(vectors[:30]))) == 300  # all there is
    with pytest.raises(
        ConfigError, match=rf"1B is less than the size of one row: the pool's 300 rows take {total:,} bytes"
    ):
        raysel.GIO("1B").select(pool, dataset(vectors[:30]))
    for wrong in ("200", "MB", "-3MB", "3 parsecs", "0.1B"):
        with pytest.raises(ConfigError, match="budget"):
            raysel.GIO(wrong)


def test_targets_and_pools_at_the_edge(cluster, vectors):
    pool, target = vectors
    with pytest.raises(DataError, match="target has 1 row"):
        raysel.GIO(0.1, clusters=None).select(dataset(pool), dataset(target[:1]))
    with pytest.raises(ConfigError, match="k = 80 is too large for a target of 80 rows"):
        raysel.GIO(0.1, k=80).select(dataset(pool), dataset(target))
    # A constant pool is one cluster, cut by id; duplicates share their cluster; a pool row may be a target row.
    constant = raysel.GIO(7, clusters=10, within="nearest").select(
        dataset(np.ones((50, 3), "f4")), dataset(np.eye(3))
    )
    assert constant.ids.tolist() == list(range(7)) and constant.info["centroids"] == 1
    same = np.repeat(target[:6], 20, axis=0)
    few = raysel.GIO(40, clusters=50, within="nearest").select(dataset(same, 2), dataset(target))
    assert few.info["centroids"] == 6 and (np.bincount(few.ids // 20, minlength=6) % 20 == 0).all()
    assert np.isfinite(few.table["score"].to_numpy()).all()
    single = raysel.GIO(5, clusters=None).select(dataset(same), dataset(target))
    assert len(single) == 5 and np.isfinite(single.info["curve"]["kl"]).all()
    one = raysel.GIO(1.0, clusters=4).select(dataset(pool[:1]), dataset(target))
    assert one.ids.tolist() == [0] and len(one.dropped) == 0


@pytest.mark.parametrize(
    "options,says",
    [
        ({"estimator": "mean"}, "estimator: 'mean' should be 'nearest', 'nearest_mean' or 'average'"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"solver": "lazy"}, "solver: 'lazy' should be 'exact' or 'gradient'"),
        ({"solver": "gradient"}, "give estimator='average'"),
        ({"init": "zero"}, "init: 'zero' should be 'mean', 'jump' or 'prev_opt'"),
        ({"within": "farthest"}, "within: 'farthest' should be 'random' or 'nearest'"),
        ({"clusters": 0}, "clusters: 0 is not a number of clusters"),
        ({"clusters": 2.5}, "clusters: 2.5 should be an integer"),
        ({"clusters": "ten"}, "clusters: 'ten' should be an integer"),
        ({"seed": None}, "seed: None should be an integer"),
        ({"seed": True}, "seed: True should be an integer"),
        ({"column": 3}, "column: 3 should be text"),
        ({"stop": "increase"}, "stop: 'increase' should be"),
        ({"stop": Stop(max_resets=1)}, "max_resets can only be used with solver='gradient'"),
    ],
)
def test_options_that_make_no_sense(options, says):
    with pytest.raises(ConfigError, match=says):
        raysel.GIO(0.5, **options)


def test_saved_and_loaded_again(cluster, vectors, tmp_path):
    pool, target = vectors
    chosen = raysel.GIO(100, clusters=40, stop=Stop(min_kl=-50.0)).select(dataset(pool), dataset(target))
    chosen.save(tmp_path / "chosen")
    again = raysel.Selection.load(tmp_path / "chosen")
    assert again.table.equals(chosen.table) and again.dropped.equals(chosen.dropped)
    assert again.info == chosen.info
