"""Selectors on a real cluster: the same selection from any blocks, budgets that nest, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
import ray

import raysel
from raysel.core.arrays import unit
from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError
from raysel.select.matches import Matches, Turns

pytestmark = pytest.mark.usefixtures("cluster")
SELECTORS = [
    raysel.ClusterShare(0.2, clusters=12),
    raysel.DensityRatio(0.2, clusters=12),
    raysel.Nearest(0.2),
]


def dataset(vectors, blocks=1, start=0):
    table = pa.table({"sample_id": np.arange(start, start + len(vectors)), "embedding": to_column(vectors)})
    size = -(-len(vectors) // blocks)
    return ray.data.from_arrow([table.slice(at, size) for at in range(0, len(vectors), size)])


@pytest.fixture(scope="module")
def data():
    """A pool of which half is like the target, and the target."""
    rng = np.random.default_rng(0)
    pool, target = (rng.normal(size=(rows, 6)).astype(np.float32) for rows in (400, 150))
    pool[::2, :2] += 4.0
    pool[:, 5] += 3.0  # so that directions tell the halves apart
    target[:, 5] += 3.0
    return pool, target


@pytest.mark.parametrize("kind", [raysel.ClusterShare, raysel.GIO])
def test_rows_of_clusters_without_target_rows_are_said(data, kind, caplog):
    pool, target = data
    few, enough = (kind(0.3, clusters=count).select(dataset(pool), dataset(target[:8])) for count in (100, 4))
    share = pa.compute.value_counts(pa.chunked_array([few.table["cluster"], few.dropped["cluster"]]))
    assert len(share) == 100 and enough.info["notes"] == []
    note = few.info["notes"][0]
    assert "of the 120 selected rows are from clusters without target rows" in note
    assert "100 clusters, and the target has 8 rows: set 'clusters' to a smaller number" in note
    assert [record.message for record in caplog.records if record.name == "raysel.selector_inputs"] == [note]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda one: type(one).__name__)
def test_any_blocks_give_one_selection_and_budgets_nest(data, selector):
    pool, target = data
    found = [
        selector.select(dataset(pool, blocks), dataset(target, other)) for blocks, other in ((1, 1), (5, 2))
    ]
    one = found[0]
    assert len(one) == 80 and all(one.table.equals(other.table) for other in found[1:])
    assert one.dropped.num_rows == 320 and all(one.dropped.equals(other.dropped) for other in found[1:])
    good = (one.ids % 2 == 1).mean()
    assert good > 0.9  # a random choice has half
    rest = dataset(pool, 2), dataset(target)
    more = dataclasses.replace(selector, budget=160).select(*rest)
    assert set(one.ids) <= set(more.ids)
    extended = dataclasses.replace(selector, budget=160).select(*rest, start=one)
    assert len(extended) == 160 and set(one.ids) <= set(extended.ids)
    assert one.table["reason"].null_count == 0 and one.info["pool_rows"] == 400


def test_nearest_is_what_turns_over_the_whole_pool_take(data):
    pool, target = data
    turns = Turns(300, np.ones(150, np.int64))
    assert turns.take(*Matches(target, 400).add(np.arange(400), pool).lists(), complete=True)
    found = raysel.Nearest(300).select(dataset(pool, 3), dataset(target))
    order = np.argsort(turns.ids)
    assert found.ids.tolist() == sorted(turns.ids)
    for name, wanted in (("target_id", turns.targets), ("turn", turns.turns), ("score", turns.cosines)):
        assert found.table[name].to_pylist() == np.array(wanted)[order].tolist()


def test_a_target_with_too_many_pairs_is_thinned_and_the_result_says_so(data, monkeypatch):
    pool, target = data
    monkeypatch.setattr("raysel.select.nearest._PAIRS", 2000)
    found = raysel.Nearest(100).select(dataset(pool), dataset(target))
    assert "centroids of 150 rows" in found.info["target"]
    assert (found.ids % 2 == 1).mean() > 0.9


def test_density_ratio_drops_nothing_where_pool_and_target_are_alike():
    rng = np.random.default_rng(3)
    pool, target = (rng.normal(size=(rows, 6)).astype(np.float32) for rows in (300, 150))
    found = raysel.DensityRatio(0.5, clusters=10).select(dataset(pool), dataset(target))
    assert not found.info["separates"] and found.info["cut"] is None and found.info["share_above"] == 1.0


def test_density_ratio_takes_rows_below_the_cut_only_where_the_others_run_out(data):
    pool, target = data
    found = raysel.DensityRatio(350, clusters=12).select(dataset(pool), dataset(target))
    above = round(found.info["share_above"] * 400)
    assert found.info["separates"] and 120 < above < 250 and found.info["rows_below"] == 350 - above
    scores = found.table["score"].to_numpy()
    dropped = found.dropped["score"].to_numpy()
    assert dropped.max() <= scores[scores < found.info["cut"]].min()  # the best of the rest first


@pytest.mark.parametrize(
    "selector",
    [*SELECTORS, raysel.GIO(0.2, clusters=12), raysel.ByScore(0.2, "quality"), raysel.Random(0.2)],
    ids=lambda one: type(one).__name__,
)
def test_classes_give_their_quotas(data, selector):
    pool, target = data
    kind = np.array(["rare" if i % 20 == 1 else "often" for i in range(400)])
    table = pa.table(
        {"sample_id": np.arange(400), "embedding": to_column(pool), "kind": kind, "quality": np.arange(400.0)}
    )
    rows = ray.data.from_arrow([table.slice(0, 150), table.slice(150)])
    aims = pa.table(
        {"sample_id": np.arange(150), "embedding": to_column(target), "kind": ["often"] * 100 + ["rare"] * 50}
    )
    others = [] if isinstance(selector, raysel.ByScore | raysel.Random) else [ray.data.from_arrow(aims)]

    def counts(per_class, budget, **more):
        chosen = dataclasses.replace(selector, budget=budget, per_class=per_class, label="kind").select(
            rows, *others, **more
        )
        return chosen, dict(zip(*np.unique(kind[chosen.ids], return_counts=True), strict=True))

    chosen, found = counts("uniform", 30)
    assert found == {"often": 15, "rare": 15}
    assert counts("uniform", 80)[1] == {"often": 60, "rare": 20}  # there are no more
    assert counts("pool", 40)[1] == {"often": 38, "rare": 2}
    assert counts({"rare": 1.0, "often": 3.0}, 40)[1] == {"often": 30, "rare": 10}
    if others:
        assert counts("target", 30)[1] == {"often": 20, "rare": 10}
        assert set(chosen.ids) <= set(counts("uniform", 40, start=chosen)[0].ids)
    with pytest.raises(ConfigError, match=r"no class unknown|no class 'unknown'"):
        counts({"unknown": 1.0}, 30)
    with pytest.raises(ConfigError, match="have only 20 rows"):
        counts({"rare": 1.0}, 30)


AVOIDING = [raysel.DensityRatio(0.2, clusters=12), raysel.Nearest(0.2), raysel.GIO(0.2, clusters=12)]


@pytest.mark.parametrize("selector", AVOIDING, ids=lambda one: type(one).__name__)
def test_rows_to_avoid(data, selector):
    """Rows of the target's distribution, of which those with a high third element must not be learned."""
    rng = np.random.default_rng(5)
    pool, target = data
    pool, target = pool.copy(), target.copy()
    bad = rng.normal(size=(120, 6)).astype(np.float32)
    bad[:, 5] += 3.0
    bad[:, 2] += 6.0
    pool[1::4, 2] += 6.0  # half of the rows that are like the target
    target[:30, 2] += 6.0  # some of which the target has too
    rest = dataset(pool, 3), dataset(target)
    without = selector.select(*rest)
    found = selector.select(*rest, avoid=dataset(bad, 2))
    share = [(one.ids % 4 == 1).mean() for one in (found, without)]
    assert len(found) == 80 and share[0] < share[1]
    out = found.dropped.filter(pa.compute.equal(found.dropped["reason"], "similar to a row to avoid"))
    ids = out["sample_id"].to_numpy()
    assert found.info["avoided"] == len(ids) > 70 and np.isin(np.arange(1, 400, 4), ids).mean() > 0.7
    assert any(f"{len(ids)} of 400" in note for note in found.info["notes"])
    assert found.table.equals(selector.select(dataset(pool), dataset(target, 2), avoid=dataset(bad)).table)
    more = dataclasses.replace(selector, budget=90).select(*rest, avoid=dataset(bad), start=without)
    assert set(without.ids) <= set(more.ids)  # rows of the extended selection stay
    assert not np.isin(np.setdiff1d(more.ids, without.ids), ids).any()
    with pytest.raises(ConfigError, match=r"budget: 400 rows .* rows to avoid leave"):
        dataclasses.replace(selector, budget=400).select(*rest, avoid=dataset(bad))
    with pytest.raises(DataError, match="avoid: Every target row is also among the rows to avoid"):
        selector.select(*rest, avoid=dataset(target, 2))
    with pytest.raises(DataError, match="6 dimensions, but those of the rows to avoid have 5"):
        selector.select(*rest, avoid=dataset(bad[:, :5]))
    with pytest.raises(ConfigError, match="rows to avoid must be a Ray Dataset"):
        selector.select(*rest, avoid=bad)
    with pytest.raises(ConfigError, match="start"):
        selector.select(*rest, start=found.ids)


def test_a_row_is_avoided_by_its_nearest_neighbour(data):
    pool, target = data
    bad = np.concatenate([pool[:7], pool[40:60] + 0.1])
    for selector, cosine in ((raysel.Nearest(5), True), (raysel.GIO(5, clusters=None), False)):
        x, t, b = (unit(side).astype(np.float64) if cosine else side for side in (pool, target, bad))
        apart = [((x[:, None] - side) ** 2).sum(axis=2).min(axis=1) for side in (t, b)]
        out = np.flatnonzero(apart[1] <= apart[0])
        found = selector.select(dataset(pool), dataset(target), avoid=dataset(bad))
        reasons = found.dropped["reason"].to_numpy(zero_copy_only=False)
        ids = found.dropped["sample_id"].to_numpy()
        assert ids[reasons == "similar to a row to avoid"].tolist() == out.tolist()


def test_rows_to_avoid_that_look_like_the_target_exclude_nothing():
    rng = np.random.default_rng(8)
    pool, target, bad = (dataset(rng.normal(size=(200, 4)).astype(np.float32)) for _ in range(3))
    found = raysel.DensityRatio(0.5, clusters=5).select(pool, target, avoid=bad)
    assert (
        found.info["avoided"] == 0
        and "cannot separate target rows from the rows to avoid" in found.info["notes"][-1]
    )


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda one: type(one).__name__)
def test_degenerate_vectors(data, selector):
    """All rows equal, zero vectors, fewer rows than clusters, the target in the pool."""
    pool, target = data
    for rows, aim in (
        (np.ones((30, 6)), target),
        (np.zeros((30, 6)), np.zeros((4, 6))),
        (pool[:7], pool[:7]),
    ):
        few = selector.select(dataset(rows.astype(np.float32)), dataset(aim.astype(np.float32)))
        assert len(few) == round(0.2 * len(rows))


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda one: type(one).__name__)
def test_what_is_wrong_is_said(data, selector):
    pool, target = data
    with pytest.raises(ConfigError, match="budget: 401 rows"):
        dataclasses.replace(selector, budget=401).select(dataset(pool), dataset(target))
    with pytest.raises(ConfigError, match="budget"):
        dataclasses.replace(selector, budget=1.5)
    with pytest.raises(ConfigError, match="target"):
        selector.select(dataset(pool), None)
    with pytest.raises(DataError, match="6 dimensions, but the target's 5"):
        selector.select(dataset(pool), dataset(target[:, :5]))
    bad = pool.copy()
    bad[7, 0] = np.nan
    with pytest.raises(DataError, match="sample_id 7"):
        selector.select(dataset(bad), dataset(target))
