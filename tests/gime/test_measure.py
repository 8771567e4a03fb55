"""Every metric against a brute-force oracle in pandas, and against a table worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from datetime import timedelta
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.core.budgets import arrow_bytes
from raysel.gime import Binding, finalize, measure, partial, with_target
from raysel.gime.waves import WAVES, _frequencies
from raysel.registry import METRICS

TABLES = {
    "seed": st.integers(0, 10**6),
    "rows": st.integers(0, 40),
    "card": st.integers(1, 6),
    "nulls": st.sampled_from([0.0, 0.2, 0.9, 1.0]),
}


def values(result: pa.Table) -> dict:
    rows = result.to_pylist()
    for row in rows:
        assert (row["value"] is None) == (row["bound"] is None)
        assert row["value"] is not None or row["reason"], row
        assert row["value"] is None or math.isfinite(row["value"])
    return {(r["metric"], r["statistic"]): r["value"] for r in rows}


def entropy(counts) -> float:
    p = np.array(list(counts), float) / sum(counts)
    return float(-(p * np.log2(p)).sum())


def inverted(delays, share):
    return sorted(delays)[max(math.ceil(share * len(delays)), 1) - 1]


def same(one, other) -> bool:
    return one == other or (one != one and other != other)


def oracle(table: pa.Table) -> dict:
    """Row by row, word for word from the definitions; Python's integers for times."""
    frame = table.to_pandas(integer_object_nulls=True)
    for name in ("at", "seen"):
        frame[name] = pd.Series(table[name].cast(pa.int64()).to_pylist(), dtype=object)
    for name in ("x", "large", "truth"):
        frame[name] = pd.Series(table[name].to_pylist(), dtype=object)  # NaN is not null here
    rows = [
        {k: None if v is None or v is pd.NA else v for k, v in r.items()} for r in frame.to_dict("records")
    ]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and value != value and name != "x":
                row[name] = None
    n = len(rows)
    out: dict = {}

    out["volume", "rows"] = n
    out["volume", "bytes"] = arrow_bytes(
        table.select(["who", "where", "at", "seen", "large", "label", "truth", "thread", "x", "text", "file"])
    )
    bits, any_state = 0.0, False
    for name in ("x", "text"):
        states = [
            "nan" if isinstance(r[name], float) and r[name] != r[name] else r[name]
            for r in rows
            if r[name] is not None
        ]
        if states:
            any_state = True
            bits += len(states) * entropy(Counter(states).values())
    out["volume", "entropy"] = bits if any_state else None

    events = [r["at"] for r in rows if r["at"] is not None]
    records = [r["seen"] for r in rows if r["seen"] is not None]
    both = [r["seen"] - r["at"] for r in rows if r["at"] is not None and r["seen"] is not None]
    good = [d for d in both if d >= 0]
    out["delay", "as_defined"] = (max(records) - max(events)) / 1e9 if events and records else None
    out["delay", "max"] = max(good) / 1e9 if good else None
    out["delay", "mean"] = sum(good) / len(good) / 1e9 if good else None
    out["delay", "p50"] = inverted(good, 0.5) / 1e9 if good else None
    out["delay", "p95"] = inverted(good, 0.95) / 1e9 if good else None
    out["delay", "negative_rows"] = len(both) - len(good) if both else None

    def entity(r):
        return (r["who"], r["where"]) if r["who"] is not None and r["where"] is not None else None

    named = [r for r in rows if entity(r) is not None]
    entities = {entity(r) for r in named}
    out["scope", "entities"] = len(entities) if named else None
    sized = [r["large"] for r in rows if r["large"] is not None]
    of_entity = {
        e: [r["large"] for r in named if entity(r) == e and r["large"] is not None] for e in entities
    }
    out["scope", "size"] = sum(max(s) for s in of_entity.values() if s) if any(of_entity.values()) else None
    out["granularity", "mean_size"] = sum(sized) / len(sized) if sized else None
    out["granularity", "scope_per_row"] = len(entities) / len(named) if named else None
    filled = sum(r[name] is not None for r in rows for name in ("x", "text"))
    out["granularity", "completeness"] = filled / (2 * n) if n else None

    labels = Counter(r["label"] for r in rows if r["label"] is not None)
    out["variety", "classes"] = len(labels) if labels else None
    out["variety", "effective_classes"] = 2 ** entropy(labels.values()) if labels else None

    out["duration", "span"] = (max(events) - min(events)) / 1e9 if events else None
    out["duration", "occupied_days"] = len({e // 86_400_000_000_000 for e in events}) if events else None
    span = max(events) - min(events) if events else 0
    out["sampling_rate", "rate"] = (len(set(events)) - 1) / (span / 1e9) if span else None
    gaps, time = 0, 0
    for e in entities:
        moments = {r["at"] for r in named if entity(r) == e and r["at"] is not None}
        if moments:
            gaps, time = gaps + len(moments) - 1, time + max(moments) - min(moments)
    out["sampling_rate", "rate_per_entity"] = gaps / (time / 1e9) if time else None

    pairs, known = 0, False
    for name in ("thread", "who"):
        pairs += sum(a[name] is not None and a[name] == b[name] for a, b in combinations(rows, 2))
        counts = Counter(r[name] for r in rows if r[name] is not None)
        known |= bool(counts)
        out["aggregation", f"linked_share[{name}]"] = (
            sum(c for c in counts.values() if c > 1) / n if n else None
        )
    if not known:
        out["aggregation", "linked_share[thread]"] = out["aggregation", "linked_share[who]"] = None
    out["aggregation", "pairs"] = pairs if known else None
    out["aggregation", "pairs_per_row"] = pairs / n if known else None

    contents = {
        ("nan" if isinstance(r["x"], float) and r["x"] != r["x"] else r["x"], r["text"]) for r in rows
    }
    copies = {
        (("nan" if isinstance(r["x"], float) and r["x"] != r["x"] else r["x"]), r["text"], r["file"])
        for r in rows
        if r["file"] is not None
    }
    out["coverage", "copies_per_content"] = n / len(contents) if n else None
    out["coverage", "duplicate_share"] = 1 - len(contents) / n if n else None
    out["coverage", "carriers"] = len(copies) if copies else None
    out["coverage", "carriers_per_content"] = len(copies) / len({c[:2] for c in copies}) if copies else None
    out["coverage", "support_coverage"] = None

    referred = [r for r in rows if r["truth"] is not None]
    out["distortion", "disagreement"] = (
        sum(r["label"] is None or r["label"] != r["truth"] for r in referred) / len(referred)
        if referred
        else None
    )
    cells = 3 * n
    null = sum(r[name] is None for r in rows for name in ("x", "text", "large"))
    infinite = sum(r["x"] is not None and not math.isfinite(r["x"]) for r in rows)
    outside = sum(r["x"] is not None and math.isfinite(r["x"]) and not -3 <= r["x"] <= 3 for r in rows)
    outside += sum(r["large"] is not None and r["large"] > 1.0 for r in rows)
    for name, bad in (
        ("invalid", null + infinite + outside),
        ("null", null),
        ("not_finite", infinite),
        ("out_of_bounds", outside),
    ):
        out["distortion", name] = bad / cells if n else None
    return out


def agree(found: dict, expected: dict) -> None:
    found = {key: value for key, value in found.items() if key[0] != "mismatch"}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert found[key] is None, (key, found[key])
        else:
            assert found[key] == pytest.approx(value, rel=1e-12, abs=1e-9), key


@settings(max_examples=150, deadline=None)
@given(**TABLES)
def test_every_metric_is_what_the_oracle_says(table, full, seed, rows, card, nulls):
    data = table(seed, rows, card, nulls)
    result = measure(data, full)
    agree(values(result), oracle(data))
    assert set(result["metric"].to_pylist()) == set(METRICS.builtin)
    assert all(bound in (None, 0.0) for bound in result["bound"].to_pylist())  # exact at this size


@settings(max_examples=25, deadline=None)
@given(**TABLES)
def test_groups_are_measured_as_tables_of_their_own(table, full, seed, rows, card, nulls):
    data = table(seed, rows, card, nulls)
    aimed = with_target(full, table(seed + 1, 30, card, 0.1))
    for by, key in (
        ("file", data["file"].to_pylist()),
        ("where", data["where"].cast(pa.string()).to_pylist()),
    ):
        result = measure(data, aimed, by=by)
        labels = list(dict.fromkeys(result["group"].to_pylist()))
        assert labels == sorted(set(key), key=lambda label: (label is not None, label or ""))
        for label in labels:
            mine = np.array([k == label for k in key])
            alone = measure(data.filter(pa.array(mine)), aimed)
            of_group = result.filter(pa.array([g == label for g in result["group"].to_pylist()]))
            assert of_group.drop(["group"]).equals(alone)


def test_windows_of_time_start_in_1970(table, full):
    data = table(3, 60, 4, 0.2)
    result = measure(data, full, by=timedelta(days=2))
    day2 = 2 * 86_400 * 10**9
    at = data["at"].cast(pa.int64()).to_pylist()
    starts = [None if a is None else a // day2 * day2 for a in at]
    rows = {r["group"]: r["value"] for r in result.to_pylist() if r["statistic"] == "rows"}
    expected = {
        None if s is None else str(np.datetime64(s, "ns")).replace("T", " "): c
        for s, c in Counter(starts).items()
    }
    assert rows == expected


@settings(max_examples=60, deadline=None)
@given(**TABLES)
def test_mismatch_is_what_the_oracle_says(table, full, seed, rows, card, nulls):
    pool, target = table(seed, rows, card, nulls), table(seed + 1, 30, card + 1, 0.1)
    binding = with_target(full, target)
    found = values(measure(pool, binding))

    def columns(data, *names):
        return [row for row in zip(*(data[n].to_pylist() for n in names), strict=True) if None not in row]

    p, q = (set(columns(d, "who", "where")) for d in (pool, target))
    assert_or_none(found["mismatch", "entities"], 1 - len(p & q) / len(p | q) if p and q else None)
    p, q = (Counter(columns(d, "label")) for d in (pool, target))
    tv = sum(abs(p[k] / p.total() - q[k] / q.total()) for k in p | q) / 2 if p and q else None
    assert_or_none(found["mismatch", "labels"], tv)
    reached = sum(q[k] for k in q if k in p) / max(q.total(), 1)
    assert_or_none(found["coverage", "support_coverage"], reached if p and q else None)
    p, q = (d["at"].cast(pa.int64()).drop_null().to_pylist() for d in (pool, target))
    ks = (
        max(abs(np.mean([a <= t for a in p]) - np.mean([a <= t for a in q])) for t in p + q)
        if p and q
        else None
    )
    assert_or_none(found["mismatch", "time"], ks)
    p, q = (np.array([x for (x,) in columns(d, "x") if math.isfinite(x)]) for d in (pool, target))
    mmd = None
    if len(p) and len(q):
        features = [
            np.exp(2j * np.pi * ((s - q.mean()) / (q.std() or 1.0))[:, None] * _frequencies(1) / 2**20)
            for s in (p, q)
        ]
        mmd = math.sqrt((np.abs(features[0].mean(0) - features[1].mean(0)) ** 2).mean())
        assert features[0].shape[1] == WAVES
    assert_or_none(found["mismatch", "states"], mmd, tolerance=3e-3)
    assert found["mismatch", "schema"] == 0
    parts = [found["mismatch", c] for c in ("entities", "time", "labels", "schema")]
    parts.append(None if mmd is None else found["mismatch", "states"] / math.sqrt(2))
    known = [part for part in parts if part is not None]
    assert found["mismatch", "overall"] == pytest.approx(sum(known) / len(known))


def assert_or_none(found, expected, tolerance=1e-12):
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected, abs=tolerance)


def test_a_table_is_at_no_distance_from_itself(table, full):
    data = table(5, 200, 5, 0.2)
    found = values(measure(data, with_target(full, data)))
    assert {name: value for (metric, name), value in found.items() if metric == "mismatch"} == dict.fromkeys(
        ("entities", "time", "states", "labels", "schema", "overall"), 0.0
    )
    assert found["coverage", "support_coverage"] == 1.0


def test_worked_by_hand():
    """Five readings of two sensors, one of them recorded before it happened, one without a time."""
    hour = 3600 * 10**9
    data = pa.table(
        {
            "sensor": ["a", "a", "b", "b", None],
            "at": pa.array([0, 2 * hour, 0, 4 * hour, None], pa.timestamp("ns")),
            "seen": pa.array([hour, 2 * hour, 3 * hour, 3 * hour, hour], pa.timestamp("ns")),
            "area": [2.0, 4.0, 10.0, 10.0, 1.0],
            "kind": ["warm", "warm", "warm", "cold", None],
            "value": [1.0, 1.0, None, 5.0, 5.0],
            "truth": ["warm", "cold", None, "cold", "warm"],
            "file": ["f", "g", "f", "f", "f"],
        }
    )
    binding = Binding(
        entity="sensor", event_time="at", record_time="seen", size="area", classes="kind", relation="sensor",
        content="value", carrier="file", reference={"kind": "truth"}, bounds={"value": (None, 4)},
    )  # fmt: skip
    found = values(measure(data, binding))
    expected = {
        ("volume", "rows"): 5,
        ("volume", "bytes"): (4 + 20) + 40 + 40 + 40 + (16 + 20) + 40 + (4 + 4 + 4 + 4 + 20) + (5 + 20),
        ("volume", "entropy"): 4.0,  # values 1, 1, 5, 5: four times one bit
        ("delay", "as_defined"): -3600.0,  # last record at 3 h, last event at 4 h
        ("delay", "max"): 3 * 3600.0,  # delays 1 h, 0, 3 h, and -1 h
        ("delay", "mean"): 4 * 3600.0 / 3,
        ("delay", "p50"): 3600.0,
        ("delay", "p95"): 3 * 3600.0,
        ("delay", "negative_rows"): 1,
        ("scope", "entities"): 2,
        ("scope", "size"): 14.0,  # the greatest of a, 4, and of b, 10
        ("granularity", "mean_size"): 27 / 5,
        ("granularity", "scope_per_row"): 2 / 4,
        ("granularity", "completeness"): 4 / 5,
        ("variety", "classes"): 2,
        ("variety", "effective_classes"): 2 ** (0.75 * math.log2(4 / 3) + 0.25 * 2),
        ("duration", "span"): 4 * 3600.0,
        ("duration", "occupied_days"): 1,
        ("sampling_rate", "rate"): 2 / (4 * 3600),  # 0, 2 h, 4 h
        ("sampling_rate", "rate_per_entity"): 2 / (6 * 3600),  # a: one gap in 2 h, b: one in 4 h
        ("aggregation", "pairs"): 2,
        ("aggregation", "pairs_per_row"): 2 / 5,
        ("aggregation", "linked_share[sensor]"): 4 / 5,
        ("coverage", "copies_per_content"): 5 / 3,  # 1, null, 5
        ("coverage", "duplicate_share"): 2 / 5,
        ("coverage", "carriers"): 4,  # 1 in f and g, null in f, 5 in f
        ("coverage", "carriers_per_content"): 4 / 3,
        ("distortion", "disagreement"): 2 / 4,  # "cold" read as warm, "warm" as nothing
        ("distortion", "null"): 1 / 5,
        ("distortion", "not_finite"): 0,
        ("distortion", "out_of_bounds"): 2 / 5,
        ("distortion", "invalid"): 3 / 5,
    }
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-14), key
    assert all(value is None for (metric, _), value in found.items() if metric == "mismatch")
    reasons = {(r["metric"], r["statistic"]): r["reason"] for r in measure(data, binding).to_pylist()}
    assert reasons["delay", "negative_rows"].startswith("Warning: 1 rows")
    assert reasons["delay", "as_defined"].startswith("Warning")
    assert reasons["mismatch", "overall"] == "the binding names no target"


def test_reference_time_stands_for_the_record():
    data = pa.table({"at": pa.array([0, 60, None], pa.timestamp("s", "UTC"))})
    found = values(measure(data, Binding(event_time="at", reference_time="1970-01-01T01:01:30+01:00")))
    assert found["delay", "as_defined"] == 30
    assert (found["delay", "max"], found["delay", "mean"], found["delay", "negative_rows"]) == (90, 60, 0)
    found = values(measure(data, Binding(event_time="at", reference_time="1970-01-01T00:00:30Z")))
    assert (found["delay", "as_defined"], found["delay", "max"], found["delay", "negative_rows"]) == (
        -30,
        30,
        1,
    )


def test_nanoseconds_are_exact():
    """Float64 would round a moment of 2023 to 256 ns."""
    first = 1_700_000_000_123_456_789
    data = pa.table(
        {
            "at": pa.array([first, first + 1], pa.timestamp("ns")),
            "seen": pa.array([first, first + 3], pa.timestamp("ns")),
        }
    )
    found = values(measure(data, Binding(event_time="at", record_time="seen")))
    assert found["duration", "span"] == 1e-9
    assert found["sampling_rate", "rate"] == 1e9
    assert found["delay", "max"] == 2e-9
    assert found["delay", "as_defined"] == 2e-9


@pytest.mark.parametrize(
    "role", ["entity", "event_time", "size", "classes", "relation", "content", "carrier"]
)
def test_what_is_not_bound_is_null_with_its_reason(role, table):
    columns = {"entity": "who", "event_time": "at", "size": "large", "classes": "label", "relation": "thread", "content": "x", "carrier": "file"}  # fmt: skip
    result = measure(table(1, 30).select([columns[role]]), Binding(**{role: columns[role]}))
    found = values(result)
    assert found["volume", "rows"] == 30
    needs = {
        "entity": {"scope", "granularity"}, "event_time": {"duration", "sampling_rate"}, "size": {"granularity"},
        "classes": {"variety"}, "relation": {"aggregation"}, "content": {"granularity", "coverage", "distortion"}, "carrier": set(),
    }  # fmt: skip
    known = {metric for (metric, _), value in found.items() if value is not None}
    assert known == {"volume", "granularity"} | needs[role]
    for row in result.to_pylist():
        if row["value"] is None:
            assert row["reason"].startswith("the binding names no"), row


def test_the_binding_is_stored_with_the_numbers(table, full):
    binding = with_target(full, table(1, 20))
    result = measure(table(0, 20), binding)
    assert Binding.from_json(result.schema.metadata[b"raysel.binding"].decode()) == binding


def test_pairs_beyond_int64():
    """Of 8e9 rows with one key there are 3.2e19 pairs; a state is merged until it holds so many."""
    from raysel.gime import merge

    binding = Binding(relation="k")
    state, rows = partial(pa.table({"k": np.zeros(1000, np.int64)}), binding), 1000
    for _ in range(23):
        state, rows = merge(state, state), rows * 2
    found = values(finalize(state))
    assert rows * (rows - 1) // 2 > 2**63
    assert found["aggregation", "pairs"] == float(rows * (rows - 1) // 2)
    assert found["aggregation", "pairs_per_row"] == pytest.approx((rows - 1) / 2, rel=1e-15)
    assert found["volume", "rows"] == rows


@pytest.mark.parametrize(
    "column,bounds,invalid,outside",
    [
        (pa.array([1, 3, 5, None], pa.int32()).cast(pa.decimal128(21, 2)), (2, 4), 3, 2),
        (pa.array([True, False, True, None]), (None, 0.5), 3, 2),
        (pa.array([2**60 + 1, 7, None, 0]), (1, 2**59), 3, 2),
        (pa.array([1.0, math.inf, math.nan, None, 3.0]).dictionary_encode(), (2, None), 4, 1),
    ],
)
def test_bounds_hold_for_numbers_of_every_kind(column, bounds, invalid, outside):
    found = values(measure(pa.table({"x": column}), Binding(bounds={"x": bounds})))
    assert found["distortion", "invalid"] == invalid / len(column)
    assert found["distortion", "out_of_bounds"] == outside / len(column)


@pytest.mark.parametrize(
    "rows",
    [
        pa.array([[1.0, 2.0], [math.nan], [], None, [3.0, math.inf], [None]]),
        pa.array(
            [[1.0, 2.0], [math.nan, 0], [1, None], None, [3.0, math.inf], None], pa.list_(pa.float32(), 2)
        ),
        pa.array([{"a": 1.0}, {"a": math.nan}, {"a": None}, None, {"a": -math.inf}, {"a": 0.0}]),
        pa.array([[[1.0], []], [[0.0], [math.nan]], [], None, [[math.inf]], [None]]),
    ],
    ids=lambda rows: str(rows.type),
)
def test_what_is_not_finite_is_found_inside_vectors(rows):
    for start in range(5):
        here = rows.slice(start)
        found = values(measure(pa.table({"x": here}), Binding(content="x")))
        assert found["distortion", "not_finite"] == sum(start <= at for at in (1, 4)) / len(here)


def test_text_of_record_times_alone_is_of_one_kind_with_itself():
    data = pa.table({"r": ["2024-05-01", None], "e": [1, 2]})
    found = values(measure(data, with_target(Binding(entity="e", record_time="r"), data)))
    assert found["mismatch", "schema"] == 0


def test_entities_without_a_size_are_told():
    data = pa.table({"e": ["a", "b", "b", "c", None], "s": [1.0, 2.0, math.inf, None, 9.0]})
    rows = measure(data, Binding(entity="e", size="s")).to_pylist()
    found = {r["statistic"]: r for r in rows if r["metric"] == "scope"}
    assert found["size"]["value"] == 3
    told = "3 of 5 rows are left out, because they lack an entity or a finite value in 's'"
    assert found["size"]["reason"] == told
    assert found["entities"]["reason"] == "1 of 5 rows are left out, because they lack an entity"


@pytest.mark.parametrize("value", [0.1, [0.1, 0.7]])
def test_a_target_whose_rows_are_all_alike_has_a_spread_of_one(value):
    """The variance of a thousand 0.1 is 2e-34 by rounding, by which any other number would be infinitely far."""
    binding = with_target(Binding(content="x"), pa.table({"x": [value] * 1000}))
    assert binding.target.scale["x"] == (tuple(np.ravel(value).tolist()), 1.0)
    near = pa.table({"x": [(np.array(value) * 1.0001).tolist()] * 9})
    assert values(measure(near, binding))["mismatch", "states"] < 1e-3
    mixed = pa.table({"x": [[0.1, float(i % 2)] for i in range(1000)]})
    assert with_target(Binding(content="x"), mixed).target.scale["x"] == ((0.1, 0.5), math.sqrt(0.125))


def test_no_distance_of_states_is_beyond_the_root_of_two():
    """The mean over 64 frequencies may be: two points half a turn apart in most of them."""
    far = 0
    for at in np.linspace(1, 12, 45):
        binding = with_target(Binding(content="x"), pa.table({"x": [0.0] * 9}))
        rows = measure(pa.table({"x": [float(at)]}), binding).to_pylist()
        found = {r["statistic"]: r for r in rows if r["metric"] == "mismatch"}
        states = found["states"]
        far += states["value"] == math.sqrt(2)
        assert states["value"] <= math.sqrt(2) and states["bound"] <= math.sqrt(2)
        assert found["overall"]["value"] <= 0.5 + 1e-12  # the mean with schema, 0
    assert far
