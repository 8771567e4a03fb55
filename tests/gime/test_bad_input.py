"""What cannot be measured is an error of one sentence that names the column and the row, or a null with its reason."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from raysel.errors import ConfigError, DataError, RayselError
from raysel.gime import Binding, measure, partial, with_target


def column(values, kind=None):
    return pa.table({"t": pa.array(values, kind), "x": np.arange(len(values))})


@pytest.mark.parametrize(
    "values,says",
    [
        (
            ["2024-01-01T00:00:00Z", None, "2024-01-01T00:00:00"],
            "mixes times with and without a zone .row 0: .*row 2: ",
        ),
        (["2024-01-01", "yesterday"], "row 1: 'yesterday' is not a time in ISO 8601"),
        (["2024-01-01", "9999-12-31"], "row 1: '9999-12-31' is not a time in ISO 8601 between 1677 and 2262"),
        ([1, 2], "holds number. Convert the column to timestamps"),
        ([[1], [2]], "holds list of number"),
        (
            pa.array([0, 253_402_214_400, 0], pa.timestamp("s")),
            "row 1: 9999-12-31 .*outside the years 1677 to 2262",
        ),
        (pa.array([0, 0, 2_900_000], pa.date32()), "row 2: 9909-.*outside the years"),
    ],
)
def test_times_that_cannot_be_read(values, says):
    with pytest.raises(DataError, match=says) as caught:
        measure(column(values), Binding(event_time="t"))
    assert "\n" not in str(caught.value) and "'t'" in str(caught.value)


def test_the_row_is_counted_from_the_tables_first(monkeypatch):
    from raysel.gime import state

    monkeypatch.setattr(state, "_ROWS", 10)
    values = ["2024-01-01"] * 35
    values[33] = "soon"
    with pytest.raises(DataError, match="row 33: 'soon'"):
        measure(column(values), Binding(event_time="t"))
    sizes = np.ones(35)
    sizes[27] = -2
    with pytest.raises(DataError, match=r"Column 'x' row 27: -2\.0 is a negative size"):
        measure(pa.table({"x": sizes}), Binding(size="x"))


def test_zones_are_not_mixed_between_columns():
    data = pa.table(
        {"t": pa.array([1], pa.timestamp("s", "Asia/Tokyo")), "r": pa.array([1], pa.timestamp("s"))}
    )
    with pytest.raises(
        DataError,
        match="'t' holds time with zone and column 'r' time without zone, so their difference is not defined",
    ):
        measure(data, Binding(event_time="t", record_time="r"))
    with pytest.raises(DataError, match="reference_time is a time without zone"):
        measure(data, Binding(event_time="t", reference_time="2024-01-01"))


def test_zones_are_moments_not_clocks():
    """Midnight in Tokyo is 15:00 in UTC, whatever the columns' zones."""
    tokyo = pa.array(["2024-01-02T00:00:00+09:00"]).cast(pa.timestamp("us", "Asia/Tokyo"))
    data = pa.table({"t": tokyo, "r": pa.array(["2024-01-01T15:00:30Z"])})
    found = {
        r["statistic"]: r["value"]
        for r in measure(data, Binding(event_time="t", record_time="r")).to_pylist()
    }
    assert found["as_defined"] == found["max"] == 30


def test_negative_delays_are_an_alarm_and_nothing_else():
    at = pa.array([100, 100, 100, 100], pa.timestamp("s"))
    seen = pa.array([160, 90, 120, 0], pa.timestamp("s"))
    result = measure(pa.table({"t": at, "r": seen}), Binding(event_time="t", record_time="r")).to_pylist()
    found = {r["statistic"]: r for r in result if r["metric"] == "delay"}
    assert (found["max"]["value"], found["mean"]["value"], found["p50"]["value"]) == (60, 40, 20)
    assert found["negative_rows"]["value"] == 2 and found["negative_rows"]["reason"].startswith(
        "Warning: 2 rows"
    )
    assert found["mean"]["reason"] == "2 of 4 rows are left out, because they lack a delay of 0 or more"
    late = measure(
        pa.table({"t": at, "r": pa.array([0] * 4, pa.timestamp("s"))}),
        Binding(event_time="t", record_time="r"),
    )
    found = {r["statistic"]: r for r in late.to_pylist() if r["metric"] == "delay"}
    assert (
        found["max"]["value"] is None
        and found["max"]["reason"] == "every record time is before the event time"
    )
    assert found["negative_rows"]["value"] == 4


def test_delays_beyond_int64():
    data = pa.table(
        {"t": pa.array([-(2**62) - 5], pa.timestamp("ns")), "r": pa.array([2**62], pa.timestamp("ns"))}
    )
    with pytest.raises(
        DataError, match=r"row 0: 18.* is more than 292 years from the record time of the row"
    ):
        measure(data, Binding(event_time="t", record_time="r"))
    two = pa.table({"t": pa.array([-(2**63) + 1, 2**63 - 1], pa.timestamp("ns"))})
    found = {r["statistic"]: r["value"] for r in measure(two, Binding(event_time="t")).to_pylist()}
    assert found["span"] == (2**64 - 2) / 1e9


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("typed", [True, False])
def test_nothing_but_nulls(table, full, rows, typed):
    data = table(0, rows, 3, 1.0)
    if not typed:
        data = pa.table({name: pa.array([None] * rows, pa.null()) for name in data.column_names})
    for binding in (full, with_target(full, table(0, 9))):
        for row in measure(data, binding).to_pylist():
            counted = row["metric"] in ("volume", "distortion", "coverage") or row["statistic"] in (
                "completeness",
                "schema",
                "overall",
            )
            assert row["value"] is None or counted, row
            assert row["value"] is not None or row["reason"], row
    assert measure(data, full, by="file").num_rows == (measure(data, full).num_rows if rows else 0)


def test_one_row(table, full):
    found = {(r["metric"], r["statistic"]): r for r in measure(table(1, 1, 3, 0.0), full).to_pylist()}
    assert found["duration", "span"]["value"] == 0
    assert found["sampling_rate", "rate"]["value"] is None
    assert (
        found["sampling_rate", "rate"]["reason"]
        == "all events have the same time, so there is no gap between events"
    )
    assert found["aggregation", "pairs"]["value"] == 0
    assert found["variety", "effective_classes"]["value"] == 1
    assert found["coverage", "copies_per_content"]["value"] == 1


NESTED = {
    "list": [[1, 2], [2, 1], [1, 2], [], None, [None], [1]],
    "struct": [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "x"}, {"a": None, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": "x"}],
    "deep": [[{"a": [1]}], [{"a": [1, 1]}], [{"a": [1]}], [], None, [None], [{"a": []}]],
}  # fmt: skip


@pytest.mark.parametrize("name", list(NESTED))
def test_nested_content_is_compared_by_its_elements(name):
    """Six different contents in seven rows, of which two are alike; empty, null and a list of null all differ."""
    data = pa.table({"c": pa.array(NESTED[name])})
    found = {r["statistic"]: r["value"] for r in measure(data, Binding(content="c")).to_pylist()}
    assert found["copies_per_content"] == 7 / 6
    for start in range(7):  # in slices, whose offsets do not begin at 0
        two = partial(data.slice(start), Binding(content="c")).parts.keys["content"]
        assert set(two.hash.tolist()) <= set(
            partial(data, Binding(content="c")).parts.keys["content"].hash.tolist()
        )


def test_content_without_one_meaning_is_refused():
    data = pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))})
    with pytest.raises(DataError, match=r"Column 'm' is of type map<.*cannot be compared or counted; use"):
        measure(data, Binding(content="m"))
    with pytest.raises(DataError, match="which cannot define groups"):
        measure(pa.table({"x": [1], "g": [[1]]}), Binding(content="x"), by="g")


def test_a_target_with_other_columns(table, full):
    data = table(0, 60)
    target = table(1, 30).select(["who", "where", "x", "label"])
    found = {
        r["statistic"]: r
        for r in measure(data, with_target(full, target)).to_pylist()
        if r["metric"] == "mismatch"
    }
    assert found["entities"]["value"] is not None and found["states"]["value"] is not None
    assert found["time"]["value"] is None and found["time"]["reason"] == "the target has no column 'at'"
    assert found["schema"]["value"] == 7 / 11 and "differing: " in found["schema"]["reason"]
    assert found["overall"]["reason"] == "mean of entities, states, labels, schema"

    texts = target.set_column(3, "label", target["label"].cast(pa.string()))
    found = {
        r["statistic"]: r
        for r in measure(data, with_target(full, texts)).to_pylist()
        if r["metric"] == "mismatch"
    }
    assert found["labels"]["reason"] == "column 'label' holds number, but text in the target"
    assert found["schema"]["value"] == 8 / 11

    with pytest.raises(DataError, match="The target has none of the columns that the binding names"):
        with_target(full, pa.table({"other": [1]}))
    with pytest.raises(DataError, match="The target is empty"):
        with_target(full, target.slice(0, 0))
    words = target.set_column(2, "x", pa.array(["w"] * 30))
    found = {r["statistic"]: r for r in measure(data, with_target(full, words)).to_pylist()}
    assert found["states"]["reason"] == "no content column of the target holds numbers"


def test_vectors_of_another_width_than_the_targets():
    one, other = (pa.table({"v": pa.array([[0.0] * width, [1.0] * width])}) for width in (3, 4))
    binding = with_target(Binding(content="v"), one)
    with pytest.raises(DataError, match="vectors of 4 elements, but those of the target have 3"):
        measure(other, binding)
    ragged = pa.table({"v": pa.array([[0.0], [1.0, 2.0]])})
    with pytest.raises(DataError, match="lists of different lengths"):
        measure(ragged, binding)
    assert measure(ragged, Binding(content="v")).num_rows  # as states they are fine


# ---- bindings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "roles,says",
    [
        ({}, "The binding names no column"),
        ({"entity": 3}, "binding.entity: 3 is not a column"),
        ({"entity": ["a", "a"]}, "contains a column twice"),
        ({"event_time": ["a"]}, r"binding.event_time: \['a'\] is not a column"),
        ({"event_time": "a", "record_time": "b", "reference_time": "2024-01-01"}, "not both"),
        (
            {"event_time": "a", "reference_time": "noon"},
            "binding.reference_time: 'noon' is not a moment in ISO 8601",
        ),
        ({"bounds": {"a": 3}}, r"binding.bounds.a: 3 is not a pair \(least, greatest\)"),
        ({"bounds": {"a": (2, 1)}}, "The least value 2 is above the greatest"),
        ({"bounds": {"a": ("x", 1)}}, "'x' is not a number"),
        ({"reference": "a"}, "is not a mapping of columns to columns"),
    ],
)
def test_bindings_that_mean_nothing(roles, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Binding(**roles)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "roles,says",
    [
        ({"entity": "whoo"}, r"no column 'whoo', which the binding names as entity \(did you mean 'who'\?\)"),
        ({"size": "who"}, "'who' is bound as size but holds text, not numbers"),
        ({"bounds": {"deep": (0, 1)}}, "'deep' is bound as bounds but holds list of decimal of scale 1"),
        ({"bounds": {"who": (0, 1)}}, "'who' is bound as bounds but holds text"),
        ({"event_time": "label"}, "'label' is bound as event_time but holds number"),
        ({"reference": {"label": "who"}}, "'label' holds number, but its reference 'who' holds text"),
    ],
)
def test_bindings_that_do_not_fit_the_table(table, roles, says):
    data = table(0, 9).append_column("deep", pa.array([None] * 9, pa.list_(pa.decimal128(3, 1))))
    with pytest.raises(DataError, match=says) as caught:
        measure(data, Binding(**roles))
    assert "\n" not in str(caught.value)


def test_a_column_that_is_there_twice():
    data = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="more than one column 'a'"):
        measure(data, Binding(entity="a"))


def test_groups_that_cannot_be_made(table, full):
    from datetime import timedelta

    with pytest.raises(DataError, match=r"no column 'fil' to group by \(did you mean 'file'\?\)"):
        measure(table(0, 9), full, by="fil")
    with pytest.raises(ConfigError, match="needs event_time"):
        measure(table(0, 9), Binding(entity="who"), by=timedelta(days=1))
    with pytest.raises(ConfigError, match="longer than zero"):
        measure(table(0, 9), full, by=timedelta(0))
    with pytest.raises(ConfigError, match="longer than 292 years"):
        measure(table(0, 9), full, by=timedelta(days=366 * 293))
    with pytest.raises(ConfigError, match="neither a column nor a window"):
        measure(table(0, 9), full, by=3)


def test_bindings_go_through_json(table, full):
    for binding in (
        full,
        with_target(full, table(0, 30)),
        Binding(event_time="a", reference_time="2024-01-01"),
    ):
        again = Binding.from_json(binding.to_json())
        assert again == binding and again.digest() == binding.digest()
    assert full.digest() != with_target(full, table(0, 30)).digest()
    assert json.loads(Binding(entity="a").to_json()) == {"entity": ["a"]}
    for text, says in (
        ("{", "not JSON"),
        ("[]", "A JSON object is needed"),
        ('{"entitty": "a"}', r"binding.entitty: There is no such key \(did you mean 'entity'\?\)"),
        ('{"entity": "a", "target": {"rows": 1}}', "not a saved target"),
        ('{"entity": "a", "target": 3}', "binding.target"),
    ):
        with pytest.raises(ConfigError, match=says):
            Binding.from_json(text)


def test_only_bound_columns_are_looked_at():
    data = pa.table({"e": [1, 1], "m": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64()))})
    assert measure(data, Binding(entity="e")).num_rows
    assert issubclass(DataError, RayselError)


def test_sizes_whose_sum_is_beyond_float64_are_infinite():
    table = pa.table({"e": ["a", "b"], "s": [1.7e308, 1.7e308]})
    found = {
        row["statistic"]: (row["value"], row["bound"])
        for row in measure(table, Binding(entity="e", size="s")).to_pylist()
    }
    assert found["size"] == (math.inf, 0.0) and found["mean_size"] == (1.7e308, 0.0)


def test_squares_of_sampled_sizes_beyond_float64_leave_an_infinite_bound():
    sizes = np.full(3000, 1.5e308)
    sizes[:1500] = 1.3e154  # whose squares are finite, and their sum is not
    table = pa.table({"e": np.arange(3000), "s": sizes})
    row = next(
        r for r in measure(table, Binding(entity="e", size="s")).to_pylist() if r["statistic"] == "size"
    )
    assert row["value"] == row["bound"] == math.inf


def test_what_is_given_to_gime_is_checked_before_it_reads():
    import raysel

    binding = Binding(classes="c")
    for arguments, says in (
        (("c",), "binding: 'c' is not a Binding; make one with raysel.gime.Binding"),
        ((Binding,), "binding: the class Binding is not a Binding"),
        ((binding, [("variety.classes", 2)]), "thresholds: .* is not a mapping of statistics"),
        (
            (binding, {"variety.classes": 2}),
            r"thresholds.variety.classes: 2 is not a pair \(least, greatest\)",
        ),
        ((binding, {"variety.classes": ("2", None)}), "thresholds.variety.classes: '2' is not a number"),
        (
            (binding, {"variety.classes": (float("nan"), None)}),
            "thresholds.variety.classes: nan is not a number",
        ),
        ((binding, {"variety.classes": (True, None)}), "thresholds.variety.classes: True is not a number"),
        ((binding, {"variety.classes": (10**400, None)}), "out of the range of floats"),
        ((binding, {"variety.classes": (None, None)}), "are both missing"),
        ((binding, {}, [3]), r"floors: \[3\] is not a mapping of classes"),
        ((binding, {}, {"a": 1.5}), "floors.a must be a whole number of at least 1, got 1.5"),
    ):
        with pytest.raises(ConfigError, match=says):
            raysel.GIME(*arguments)
    made = raysel.GIME(binding, {"variety.classes": np.array([2.0, 3.0])}, {np.int64(1): np.int64(2)})
    assert repr(made.thresholds) == "{'variety.classes': (2.0, 3.0)}" and repr(made.floors) == "{1: 2}"
    table = pa.table({"c": [1, 2]})
    for call, what in (
        (made.measure, "dataset"), (made.select, "pool"), (made.row_scores, "dataset"), (made.aim, "target"),
        (lambda table: made.sensitivity(table, len, mix="c", rows=1), "pool"),
    ):  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"The {what} must be a Ray Dataset, not a pyarrow Table .* raysel.gime"
        ):
            call(table)
    with pytest.raises(ConfigError, match=r"GIME.select was called on the class"):
        raysel.GIME.select(table)


def test_reprs_are_short(table, full):
    aimed = with_target(full, table(0, 200))
    state = partial(table(0, 200), aimed, "file")
    for shown in (aimed, state):
        assert len(repr(shown)) < 1000
    assert repr(partial(table(0, 9), Binding(entity="who"))) == "<State of the metrics of who, one group>"
