"""GIO over Ray Datasets: the same choice whatever the blocks, and the choice that brute force makes."""

from __future__ import annotations

import numpy as np
import pytest

import raysel
from raysel.errors import ConfigError, DataError


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


def test_every_row_has_its_reason_and_the_budget_is_met_to_the_row(cluster, vectors):
    pool, target = vectors
    chosen = raysel.GIO(budget=0.25, clusters=40).select(dataset(pool), dataset(target))
    assert len(chosen) == 225 and chosen.info["pool_rows"] == 900 and chosen.info["curve"]["rows"][-1] == 225
    assert sorted([*chosen.ids.tolist(), *chosen.dropped["sample_id"].to_pylist()]) == list(range(900))
    table = chosen.table.to_pandas()
    assert (table.reason == [f"cluster {c}, pick {r + 1}, KL {k:.6g} after it" for c, r, k in
                             zip(table.cluster, table["rank"], table.score, strict=True)]).all()  # fmt: skip
    kl = np.array(chosen.info["curve"]["kl"])
    assert np.array_equal(table.score, kl[table["rank"]])
    # Of the last cluster the farthest rows were cut; of every other one none.
    last = table["rank"].max()
    cut = chosen.dropped.to_pandas().query("reason.str.contains('cut from the last cluster')")
    assert set(cut.cluster) <= set(table.cluster[table["rank"] == last])
    away = table.distance[table["rank"] == last].max()
    centre = pool[table.sample_id[table["rank"] == last]]
    assert len(centre) and away >= 0


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
    with pytest.raises(DataError, match="5 dimensions, the target's 4"):
        raysel.GIO(0.1).select(dataset(pool), dataset(target[:, :4]))
    with pytest.raises(DataError, match="pool has no column 'embedding'"):
        raysel.GIO(0.1).select(raysel.read({"x": pool}), dataset(target))
    with pytest.raises(ConfigError, match="1,000 rows asked for, the pool has 900"):
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
