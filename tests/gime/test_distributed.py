"""GIME over Ray: what one table gives, in whatever blocks; states that go on; errors without Ray around them."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest

from raysel.errors import ConfigError, DataError
from raysel.gime import State, measure, merge, partial, row_scores, with_target

pytestmark = pytest.mark.usefixtures("cluster")


def test_any_blocks_give_the_state_of_the_whole_table(table, full, tmp_path):
    import pyarrow.parquet as pq
    import ray

    import raysel

    data, target = table(0, 3000, 900), table(1, 200, 900)
    gime = raysel.GIME(full).aim(ray.data.from_arrow(target))
    assert gime.binding == with_target(full, target)
    whole = partial(data, gime.binding)
    for start in range(0, 3000, 600):
        pq.write_table(data.slice(start, 600), tmp_path / f"{start}.parquet", row_group_size=100)
    for dataset in (
        ray.data.from_arrow(data),
        ray.data.from_arrow(data).repartition(7),
        ray.data.read_parquet(str(tmp_path)),
        ray.data.from_arrow(data).map_batches(lambda t: t, batch_format="pyarrow"),
    ):
        assert gime.state(dataset).digest() == whole.digest()
    dataset = ray.data.from_arrow([data.slice(0, 1000), data.slice(1000)])
    for by in ("file", timedelta(days=7)):
        assert gime.measure(dataset, by).equals(measure(data, gime.binding, by), check_metadata=True)

    scores = raysel.GIME(full).row_scores(dataset).select_columns(["gime_scope", "gime_variety"])
    found = pa.concat_tables(ray.get(scores.to_arrow_refs()))
    expected = row_scores(data, raysel.gime.Binding(entity=full.entity, classes=full.classes))
    assert (
        found.sort_by("gime_scope").column(0).to_pylist() == expected.sort_by("scope").column(0).to_pylist()
    )

    path = tmp_path / "yesterday.arrow"
    gime.state(ray.data.from_arrow(data.slice(0, 2000))).save(path)
    both = merge(State.load(path), gime.state(ray.data.from_arrow(data.slice(2000))))
    assert both.digest() == whole.digest()


def test_selects_whole_groups_that_satisfy_the_thresholds(table, full):
    import numpy as np
    import ray

    import raysel

    data = table(3, 400, 6, 0.1).append_column("sample_id", pa.array(np.arange(400)[::-1].copy()))
    binding = raysel.gime.Binding(classes="label", event_time="at")
    gime = raysel.GIME(binding, {"variety.classes": (6, None), "volume.rows": (100, None)}, floors={0: 5})
    pool = ray.data.from_arrow([data.slice(0, 150), data.slice(150)])
    for by in ("file", timedelta(days=2)):
        chosen = gime.select(pool, by)
        rows = data.filter(pa.array(np.isin(data["sample_id"].to_numpy(), chosen.ids)))
        found = {(r["metric"], r["statistic"]): r["value"] for r in measure(rows, binding).to_pylist()}
        assert found["variety", "classes"] == 6 and 100 <= rows.num_rows == len(chosen) < 400
        assert rows["label"].to_pylist().count(0) >= 5
        assert sorted([*chosen.ids, *chosen.dropped["sample_id"].to_pylist()]) == list(range(400))
        assert all("pick" in reason for reason in chosen.table["reason"].to_pylist())
        assert chosen.info["reached"]["variety.classes"] == 6
    with pytest.raises(ConfigError, match="No selection of groups was found"):
        raysel.GIME(binding, {"volume.rows": (401, None)}).select(pool, "file")


def test_errors_are_raysels_own(table, full):
    import ray

    import raysel

    data = table(0, 50)
    with pytest.raises(
        DataError, match=r"no column 'thread', which the binding names as relation \(did you mean 'threat'"
    ):
        raysel.GIME(full).measure(
            ray.data.from_arrow(
                data.rename_columns([n.replace("thread", "threat") for n in data.column_names])
            )
        )
    late = data.set_column(data.schema.get_field_index("large"), "large", pa.array([1.0] * 49 + [-1.0]))
    with pytest.raises(DataError, match=r"Column 'large' row 49: -1\.0 is a negative size") as caught:
        raysel.GIME(full).measure(ray.data.from_arrow(late))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="The dataset is empty"):
        raysel.GIME(full).measure(ray.data.from_arrow(data.slice(0, 0)))
    with pytest.raises(DataError, match="The target has none of the columns"):
        raysel.GIME(full).aim(ray.data.from_arrow(pa.table({"z": [1]})))


def test_calibrates_on_the_cluster_as_in_one_process_and_chooses_rows(table, full):
    import numpy as np
    import ray

    import raysel
    from raysel.gime import measure, proxy, sensitivity

    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 1600)
    data = pa.table(
        {
            "kind": kind,
            "x": rng.normal(size=1600) + kind,
            "seen": pa.array(kind + rng.normal(size=1600), mask=rng.random(1600) < 0.1 * kind),
            "sample_id": np.arange(1600),
        }
    )
    binding = raysel.gime.Binding(classes="kind", content=["x", "seen"])
    test = data.slice(0, 200)
    pool = ray.data.from_arrow(
        [data.slice(900), data.slice(200, 700)]
    )  # in another order than that of the ids
    score = proxy(["x", "seen"], "kind", test)
    options = {"mix": "kind", "rows": 100, "count": 60, "tolerance": 0.35, "share": 0.7, "seed": 3}
    options["statistics"] = ["variety.effective_classes"]
    found = raysel.GIME(binding).sensitivity(pool, score, columns=["x"], **options)
    expected = sensitivity(data.slice(200), binding, score, **options)
    assert found.subsets.equals(expected.subsets) and found.evidence.equals(expected.evidence)
    assert found.thresholds == expected.thresholds and found.thresholds
    with pytest.raises(DataError, match="no row with a value in 'kind'"):
        none = data.set_column(0, "kind", pa.nulls(1600, pa.int64()))
        raysel.GIME(binding).sensitivity(ray.data.from_arrow(none), score, **options | {"mix": "sample_id"})

    thresholds = {"granularity.completeness": (0.99, None), "volume.rows": (300, None)}
    gime = raysel.GIME(binding, thresholds, {3: 60})
    chosen = [gime.select(p, seed=1) for p in (pool, pool.repartition(5))]
    assert chosen[0].table.equals(chosen[1].table) and chosen[0].dropped.equals(chosen[1].dropped)
    rows = data.filter(pa.array(np.isin(data["sample_id"].to_numpy(), chosen[0].ids)))
    reached = {f"{r['metric']}.{r['statistic']}": r["value"] for r in measure(rows, binding).to_pylist()}
    assert reached["granularity.completeness"] >= 0.99 and 300 <= rows.num_rows < 400
    assert rows["kind"].to_pylist().count(3) >= 60 and chosen[0].info["by"] == "rows"
    assert len(chosen[0]) + chosen[0].dropped.num_rows == 1400
    assert all("piece" in text for text in chosen[0].dropped["reason"].to_pylist())
    assert gime.select(pool, seed=2).digest() != chosen[0].digest()


def test_rows_are_scored_once_and_columns_keep_their_names():
    import ray

    import raysel

    data = pa.table({"sample_id": [0, 1, 2, 3], "raysel piece": [0, 1, 0, 1]})
    pool = ray.data.from_arrow(data)
    gime = raysel.GIME(raysel.gime.Binding(classes="raysel piece"), {"volume.rows": (2, None)})
    assert len(gime.select(pool)) == 2
    scored = gime.row_scores(pool)
    with pytest.raises(DataError, match="has a column 'gime_variety' already; rename or drop it"):
        gime.row_scores(scored).take_all()


def test_a_metric_of_ones_own_over_ray(tmp_path):
    import ray

    import raysel

    (tmp_path / "own.py").write_text(
        "from raysel.gime import Figure\ndef twice(view): return [Figure('rows', 2 * view.rows, 'rows')]\n"
    )
    pool = ray.data.from_arrow(pa.table({"sample_id": range(20), "c": ["a", "b"] * 10})).repartition(3)
    gime = raysel.GIME(
        raysel.gime.Binding(classes="c"), {"twice.rows": (10, None)}, metrics=[f"{tmp_path}/own.py:twice"]
    )
    assert gime.measure(pool).to_pylist()[-1]["value"] == 40.0
    chosen = gime.select(pool)
    assert len(chosen) == 5 and chosen.info["reached"] == {"twice.rows": 10.0}
    with pytest.raises(ConfigError, match="count: Of 20 subsets, 0 are left"):
        gime.sensitivity(pool, lambda part: 1.0, mix="c", rows=5, count=20)


def test_an_empty_target_is_named_as_the_target():
    import ray

    import raysel

    rows = ray.data.from_arrow(pa.table({"sample_id": [0, 1], "c": ["a", "b"], "v": [0.0, 1.0]}))
    gime = raysel.GIME(raysel.gime.Binding(classes="c"))
    for empty in (rows.filter(lambda row: False), rows.limit(0), ray.data.from_arrow(pa.table({"c": []}))):
        with pytest.raises(DataError, match=r"^The target is empty"):
            gime.aim(empty)
        with pytest.raises(DataError, match=r"^The dataset is empty"):
            gime.measure(empty)
    with pytest.raises(DataError, match=r"^The target is empty"):
        raysel.GIO(1.0, clusters=None, column="v").select(rows, rows.filter(lambda row: False))
