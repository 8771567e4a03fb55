from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysel import GIO, Deduplicate, KCenter, Random, Selection
from raysel.data.identity import NumberedFile, PoolIdentity
from raysel.errors import ConfigError, DataError
from raysel.select.random import choose, strata
from raysel.selection import coded_text


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
        DataError,
        match="one is a selection of format 1, but this version of raysel reads format 2; select again",
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


def test_reasons_that_no_row_has_are_not_stored():
    found = coded_text(np.array([3, 1, 3]), ["a", "b", "c", "d"])
    assert found.to_pylist() == ["d", "b", "d"] and found.dictionary.to_pylist() == ["b", "d"]


def test_dropped_rows_that_are_no_table_are_refused():
    with pytest.raises(
        DataError, match=r"^Selection\(dropped=...\) must be an Arrow table with the columns sample_id and"
    ):
        Selection.of(np.array([1]), dropped=[0])


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
        (lambda t: t.append_column("reason", t["reason"]), "has more than one column 'reason'"),
        (
            lambda t: t.append_column("x", t["score"]).append_column("x", t["score"]),
            "more than one column 'x'",
        ),
        (lambda t: t.set_column(2, "score", t["reason"]), "'score' must be double"),
        (lambda t: t.set_column(3, "reason", t["score"]), "'reason' must be text, not double"),
        (
            lambda t: t.to_pandas(),
            r"^Selection\(table=...\) needs an Arrow table, not a pandas DataFrame of shape \(3, 4\); to make a Selection from ids",
        ),
    ],
)
def test_a_table_that_is_no_selection_is_refused(change, sentence):
    with pytest.raises(DataError, match=sentence):
        Selection(change(example().table))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dropped": pa.table({"sample_id": [1]})}, "dropped rows needs the column 'reason'; it has sample_id"),
        ({"dropped": pa.table({"sample_id": [1.0], "reason": ["a"]})}, "dropped rows's column 'sample_id' must be int64"),
        ({"info": ["random"]}, r"info: \['random'\] should be a dict"),
        ({"pool": "pool"}, "pool: 'pool' should be a PoolIdentity"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_selection_is_checked(change, sentence):
    with pytest.raises((DataError, ConfigError), match=sentence):
        replace(example(), **change)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ids": [0.5, 1.0]}, "ids: .* is not a list of sample_id; give one integer per row"),
        ({"ids": [True, False]}, r"ids: A mask of True and False .* give numpy.flatnonzero\(mask\)"),
        ({"ids": ["a"]}, r"ids: \['a'\] is not a list of sample_id"),
        ({"ids": {1, 2}}, r"ids: \{1, 2\} is not a list of sample_id"),
        ({"ids": [[0], [1]]}, r"ids: \[\[0\], \[1\]\] is not a list"),
        ({"ids": [[0], [1, 2]]}, "is not a list of sample_id"),
        ({"ids": np.array([2**63], np.uint64)}, "is not a list of sample_id"),
        ({"ids": None}, "ids: None is not a list of sample_id"),
        ({"ids": []}, "has no rows"),
        ({"ids": [1, 1]}, "without repeats"),
        ({"ids": [1, 2], "weight": [1.0, 2.0, 3.0]}, r"weight: An array of shape \(3,\) does not hold one value for each of 2"),
        ({"ids": [1, 2], "weight": "high"}, "weight: 'high' should be numbers"),
        ({"ids": [1, 2], "score": [[1.0], [2.0]]}, r"score: An array of shape \(2, 1\)"),
        ({"ids": [1, 2], "reason": pa.array(["a"])}, "reason: There are 1 reasons for 2 ids"),
        ({"ids": [1, 2], "columns": {"weight": [1, 2]}}, "columns: Every selection has a column 'weight' already"),
        ({"ids": [1, 2], "columns": {"rank": [1]}}, r"columns\['rank'\]: An array of shape \(1,\)"),
    ],
)  # fmt: skip
def test_what_makes_no_selection_gets_one_sentence(arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        Selection.of(**arguments)


def test_ids_and_weights_of_other_libraries():
    chosen = Selection.of(
        pa.array([4, 2]), weight=np.float64(2), score=torch.tensor([0.5, 1.5]), info={"k": np.int64(3)}
    )
    assert chosen.ids.tolist() == [2, 4] and chosen.weights.tolist() == [2.0, 2.0]
    assert chosen.table["score"].to_pylist() == [1.5, 0.5]
    assert Selection.of(torch.tensor([3, 1]), reason=["c", "a"]).table["reason"].to_pylist() == ["a", "c"]


def test_numbers_of_numpy_in_the_info_are_saved_and_other_objects_refused(tmp_path):
    info = {"seed": np.int64(1), "share": np.float32(0.5), "curve": np.arange(2), "pool_rows": 8}
    replace(example(), info=info).save(tmp_path / "a")
    assert Selection.load(tmp_path / "a").info == {"seed": 1, "share": 0.5, "curve": [0, 1], "pool_rows": 8}
    circle: dict = {}
    circle["of"] = circle
    for wrong in ({"at": object()}, {("a", 1): 2}, circle):
        with pytest.raises(DataError, match="info cannot be saved as JSON"):
            replace(example(), info=wrong).save(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_it_is_shown_in_one_line():
    large = Selection.of(np.arange(5000), info={"method": "GIO", "pool_rows": 10_000})
    assert repr(large) == "<Selection of 5,000 of 10,000 rows by GIO>"
    assert repr(Selection.of([1])) == "<Selection of 1 rows by hand>"


@pytest.mark.parametrize("before", [[1, 2], np.arange(3), "saved", None, Random])
def test_only_a_selection_comes_before_another(before):
    with pytest.raises(ConfigError, match=r"^before: .* is not a Selection; .*raysel.Selection"):
        example().after(before)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: Deduplicate(0.9).select(1, 2),
            r"Deduplicate\.select .*too many positional arguments.*call it as select\(pool\)\.",
        ),
        (lambda: Random(0.5).select(1, target=2), r"Random\.select .*'target'.*call it as select\(pool\)\."),
        (
            lambda: KCenter(0.5).select(1, avoid=2),
            r"KCenter\.select .*'avoid'.*call it as select\(pool, \*, start=None\)\.",
        ),
        (
            lambda: GIO(0.5).select(1),
            r"GIO\.select .*'target'.*as select\(pool, target, \*, avoid=None, start=None\)\.",
        ),
    ],
)
def test_arguments_that_a_selector_does_not_have(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()


def test_no_target_is_the_same_as_none():
    with pytest.raises(ConfigError, match="The pool must be a Ray Dataset"):
        Deduplicate(0.9).select(1, None, avoid=None, start=None)
    with pytest.raises(ConfigError, match="The pool must be a Ray Dataset"):
        KCenter(0.5).select(1, target=None, avoid=None, start=None)


def test_a_selector_is_made_before_it_selects():
    for call in (
        lambda: Random.select(None),
        lambda: Random.select(None, None),
        lambda: GIO.select(np.eye(2), np.eye(2)),
    ):
        with pytest.raises(
            ConfigError, match=r"\.select was called on the class; make a selector first, as in raysel\."
        ):
            call()
    for cls in (Random, GIO):
        pool = np.eye(2)
        arguments = [pool] if cls is Random else [pool, pool]
        with pytest.raises(
            ConfigError,
            match=r"The pool must be a Ray Dataset, not a numpy ndarray of shape .* make one with",
        ):
            cls(1.0).select(*arguments)
    with pytest.raises(ConfigError, match=r"or use raysel.gio.exact_select, which takes arrays"):
        GIO(1.0).select(np.eye(2), np.eye(2))
    for pool, sentence in (
        (example(), "apply the selection"),
        ("pool.parquet", "make one with raysel.read"),
        (None, "None; make"),
    ):
        with pytest.raises(ConfigError, match=f"The pool must be a Ray Dataset, not .*{sentence}"):
            Random(1.0).select(pool)


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
    chosen = Selection.of(np.array([7, 0, 3]), weight=np.array([2.0, 1.0, 3.0]))
    rows = chosen.apply(pool).take_all()
    assert [(r["sample_id"], r["x"], r["weight"]) for r in rows] == [(0, 0, 1.0), (3, 30, 3.0), (7, 70, 2.0)]
    # A weight of the pool's own, or of an earlier apply, is never overwritten.
    own = pool.add_column("weight", lambda frame: frame["x"])
    for twice in (chosen.apply(pool), own.materialize()):
        with pytest.raises(
            DataError, match=r"^The dataset already has a column 'weight'.*with rows.*later.after"
        ):
            chosen.apply(twice)
    with pytest.raises(DataError, match="already has a column 'weight'"):
        chosen.apply(own).take_all()
    assert chosen.apply(chosen.apply(pool).drop_columns(["weight"])).count() == 3
    assert [row["weight"] for row in chosen.rows(own).take_all()] == [0, 30, 70]
    for wrong in ([0, 3], np.arange(8), chosen, Random(2)):
        with pytest.raises(ConfigError, match="The dataset must be a Ray Dataset, not "):
            chosen.apply(wrong)


def test_a_column_that_cannot_hold_ids_is_refused(cluster):
    import ray

    narrow = ray.data.from_arrow(pa.table({"sample_id": pa.array(range(8), pa.uint8())}))
    assert [row["sample_id"] for row in Selection.of([1, 7]).rows(narrow).take_all()] == [1, 7]
    assert len(Random(2).select(narrow)) == 2
    for ids, sentence in (
        (["a", "b"], "holds string"), ([1.0, 2.0], "holds double"), ([1, None], "holds int64 with 1 null values"),
        (pa.array([2**63, 1], pa.uint64()), "holds integers above"),
    ):  # fmt: skip
        odd = ray.data.from_arrow(pa.table({"sample_id": ids, "v": [0.5, 1.0]}))
        for use in (
            lambda odd=odd: Random(1.0).select(odd),
            lambda odd=odd: Selection.of([1]).rows(odd),
            lambda odd=odd: GIO(1.0, column="v").select(odd, odd),
        ):
            with pytest.raises(DataError, match=f"Column 'sample_id' of the (pool|dataset) {sentence}"):
                use()
    with pytest.raises(DataError, match="Column 'sample_id' of the pool holds ids, not vectors"):
        GIO(1.0, column="sample_id").select(narrow, narrow)


def test_values_that_define_no_strata_are_refused():
    nan = float("nan")
    assert strata(pa.table({"x": [0.0, nan, -0.0, None, 1.0, nan]}), "x").tolist() == [0, 2, 0, 3, 1, 2]
    assert strata(pa.table({"x": ["b", None, "a"]}), "x").tolist() == [1, 2, 0]
    assert strata(pa.table({"x": pa.nulls(2)}), "x").tolist() == [0, 0]
    assert strata(pa.table({"x": [10, 9, 10]}), "x").tolist() == [1, 0, 1]
    for values in ([[1], [2]], [{"a": 1}, {"a": 2}]):
        with pytest.raises(DataError, match=r"stratify: Column 'x' holds .*, whose values cannot be counted"):
            strata(pa.table({"x": values}), "x")


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
    with pytest.raises(DataError, match="rows that the earlier selection left out"):
        Selection.of(np.array([2])).after(before)
