from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raysel import Selection
from raysel.baselines import choose
from raysel.data.identity import NumberedFile, PoolIdentity
from raysel.data.row_index import budget_rows
from raysel.errors import ConfigError, DataError


def example() -> Selection:
    dropped = pa.table({"sample_id": [1, 2], "reason": ["far", "far"]})
    return Selection.of(
        np.array([7, 0, 3]),
        score=np.array([0.5, 0.1, 0.3]),
        reason="near",
        dropped=dropped,
        info={"pool_rows": 8},
    )


def test_rows_are_kept_in_the_order_of_their_ids():
    chosen = example()
    assert chosen.ids.tolist() == [0, 3, 7]
    assert chosen.table["score"].to_pylist() == [0.1, 0.3, 0.5]
    assert chosen.weights.tolist() == [1, 1, 1] and chosen.weights.dtype == np.float32
    assert chosen.table["reason"].to_pylist() == ["near"] * 3


def test_saved_and_loaded_is_the_same_and_saving_twice_writes_the_same_bytes(tmp_path):
    chosen = example()
    chosen.save(tmp_path / "one")
    chosen.save(tmp_path / "two")
    back = Selection.load(tmp_path / "one")
    assert (
        back.table.equals(chosen.table) and back.info == chosen.info and back.dropped.equals(chosen.dropped)
    )
    for name in ("selection.parquet", "dropped.parquet", "selection.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_saved_selection_says_what_numbered_its_pool(tmp_path, monkeypatch):
    pool = PoolIdentity((NumberedFile("a.parquet", "0f", 5), NumberedFile("b.parquet", "1e", 3)))
    replace(example(), pool=pool).save(tmp_path / "one")
    about = json.loads((tmp_path / "one/selection.json").read_text())
    assert about == {
        "format": 1, "info": {"pool_rows": 8}, "pool": [["a.parquet", "0f", 5], ["b.parquet", "1e", 3]],
    }  # fmt: skip
    assert Selection.load(tmp_path / "one").pool == pool
    monkeypatch.setattr("raysel.selection._FORMAT", 2)
    with pytest.raises(
        DataError, match="one is a selection of format 1, but this version reads format 2; select again"
    ):
        Selection.load(tmp_path / "one")


def test_nothing_is_overwritten_and_nothing_half_written_is_taken_for_whole(tmp_path, monkeypatch):
    example().save(tmp_path / "one")
    with pytest.raises(ConfigError, match="exists already"):
        example().save(tmp_path / "one")

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("raysel.selection.pq.write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        example().save(tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(DataError, match="not a saved selection"):
        Selection.load(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.drop_columns(["weight"]), "needs the column 'weight'"),
        (lambda t: t.slice(0, 0), "has no rows"),
        (lambda t: t.set_column(0, "sample_id", pa.array([0.0, 3.0, 7.0])), "'sample_id' must be int64"),
        (lambda t: t.set_column(1, "weight", pa.array([1.0, 1.0, 1.0])), "'weight' must be float"),
        (lambda t: t.set_column(0, "sample_id", pa.array([0, 3, 3])), "must be in ascending order"),
        (lambda t: t.set_column(0, "sample_id", pa.array([-1, 3, 5])), "must be in ascending order"),
        (lambda t: t.set_column(1, "weight", pa.array([1, -1, 1], pa.float32())), "not negative"),
        (lambda t: t.set_column(1, "weight", pa.array([1, np.nan, 1], pa.float32())), "finite"),
    ],
)
def test_a_table_that_is_no_selection_is_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        Selection(change(example().table))


@pytest.mark.parametrize(
    ("budget", "rows"), [(0.3, 30), (1.0, 100), (1, 1), (100, 100), (0.001, 1), (0.005, 1)]
)
def test_a_budget_is_a_share_or_a_number_of_rows(budget, rows):
    assert budget_rows(budget, 100) == rows


@pytest.mark.parametrize("budget", [0.0, 1.5, -0.1, 0, -3, 101, True, "0.3", float("nan")])
def test_a_budget_out_of_range_is_refused(budget):
    with pytest.raises(ConfigError, match="budget"):
        budget_rows(budget, 100)


def test_random_subsets_are_nested_and_stratified_ones_keep_the_shares():
    ids = np.arange(0, 3000, 3)
    groups = np.repeat([0, 1, 2], [600, 300, 100])
    small, large = (set(choose(ids, np.zeros(1000, int), n, 5)) for n in (100, 400))
    assert len(small) == 100 and small < large
    taken = choose(ids, groups, 250, 5)
    assert np.bincount(groups[taken]).tolist() == [150, 75, 25]
    assert set(choose(ids, groups, 250, 6)) != set(taken)
    assert len(choose(ids, groups, 7, 5)) == 7


def test_apply_keeps_the_chosen_rows_and_adds_their_weight(cluster):
    import raysel

    pool = raysel.read({"x": np.arange(8) * 10})
    rows = Selection.of(np.array([7, 0, 3]), weight=np.array([2.0, 1.0, 3.0])).apply(pool).take_all()
    assert [(r["sample_id"], r["x"], r["weight"]) for r in rows] == [(0, 0, 1.0), (3, 30, 3.0), (7, 70, 2.0)]


def test_random_on_the_cluster_does_not_see_the_blocks(cluster):
    import raysel

    rng = np.random.default_rng(0)
    pool = raysel.read({"x": np.arange(500), "kind": rng.choice(["a", "b"], 500)})
    one = raysel.Random(0.2, stratify="kind", seed=3).select(pool)
    for blocks in (2, 7):
        other = raysel.Random(0.2, stratify="kind", seed=3).select(pool.repartition(blocks))
        assert other.table.equals(one.table)
    with pytest.raises(DataError, match="no column 'colour'"):
        raysel.Random(0.2, stratify="colour").select(pool)


def test_a_choice_from_a_choice_is_one_from_the_pool():
    before = Selection.of(
        np.array([1, 3, 5, 8]),
        weight=np.array([1.0, 2.0, 1.0, 1.0]),
        dropped=pa.table({"sample_id": [0, 2, 4], "reason": ["old", "old", "odd"]}),
        info={"method": "GIME", "pool_rows": 7},
    )
    later = Selection.of(
        np.array([3, 8]), weight=3.0, dropped=pa.table({"sample_id": [5, 1], "reason": ["far", "cut"]}), info={"method": "GIO", "pool_rows": 4},
    )  # fmt: skip
    both = later.after(before)
    assert both.ids.tolist() == [3, 8] and both.weights.tolist() == [6.0, 3.0]
    assert both.info["pool_rows"] == 7 and both.info["method"] == "GIO"
    assert both.info["before"]["method"] == "GIME"
    assert both.dropped.to_pydict() == {
        "sample_id": [0, 1, 2, 4, 5], "reason": ["old", "cut", "old", "odd", "far"],
    }  # fmt: skip
    drawn = Selection.of(np.array([1]), info={"method": "random"}).after(before)
    assert drawn.dropped.filter(drawn.dropped["sample_id"].to_numpy() == 8)["reason"].to_pylist() == [
        "left out by random"
    ]
    with pytest.raises(DataError, match="rows that the earlier one left out"):
        Selection.of(np.array([2])).after(before)
