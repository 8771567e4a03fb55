"""Rows chosen by pieces satisfy every threshold, are few, and are the same whenever they are asked for."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.errors import ConfigError
from raysel.gime import Binding, measure, partial, pieces, select_groups, with_target
from raysel.gime.pieces import kind_of

LIMITS = {"distortion.invalid": (None, 0.1), "mismatch.labels": (None, 0.1)}


def chosen(table, binding, thresholds, floors=None, seed=0):
    names = pieces(table, binding, thresholds, floors or {}, seed)
    state = partial(table.append_column("piece", names), binding, "piece")
    choice = select_groups(state, thresholds, floors, kind_of)
    kept = np.isin(names.to_numpy(zero_copy_only=False).astype(str), list(choice.groups))
    return table.filter(pa.array(kept)), choice


def figures(table, binding):
    return {f"{r['metric']}.{r['statistic']}": r["value"] for r in measure(table, binding).to_pylist()}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4))
def test_the_rows_cover_what_is_asked_for_and_are_few(seed, entities, classes):
    """Small tables: each piece is one row, and the least number of rows is found by trying all."""
    rng = np.random.default_rng(seed)
    who, label = rng.integers(0, 5, 10), rng.integers(0, 4, 10)
    table = pa.table({"who": who, "label": label})
    binding = Binding(entity="who", classes="label")
    thresholds = {"scope.entities": (entities, None), "variety.classes": (classes, None)}

    def holds(rows):
        return len(set(who[list(rows)])) >= entities and len(set(label[list(rows)])) >= classes

    least = next((n for n in range(1, 11) if any(map(holds, combinations(range(10), n)))), None)
    if least is None:
        with pytest.raises(ConfigError, match="No selection of groups was found"):
            chosen(table, binding, thresholds)
        return
    rows, _ = chosen(table, binding, thresholds)
    found = figures(rows, binding)
    assert found["scope.entities"] >= entities and found["variety.classes"] >= classes
    assert least <= rows.num_rows <= least + 1


def mixed(seed=0, rows=4000):
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.1).astype(int)
    x = pa.array(rng.normal(size=rows) + 2 * label, mask=rng.random(rows) < 0.3)
    at = 1_700_000_000 + rng.integers(0, 10**6, rows)
    table = pa.table(
        {
            "who": rng.integers(0, 300, rows),
            "label": label,
            "x": x,
            "word": rng.integers(0, 2000, rows),
            "at": pa.array(at, pa.timestamp("s", "UTC")),
            "size": rng.random(rows),
        }
    )
    target = pa.table({"who": np.arange(150), "label": [0, 1] * 75, "x": rng.normal(size=150) + 1.5})
    binding = Binding(
        entity="who", classes="label", content=["x", "word"], event_time="at", reference_time="2023-12-01T00:00:00Z", size="size",
    )  # fmt: skip
    return table, with_target(binding, target)


@pytest.mark.parametrize(
    "limits",
    [
        {"mismatch.labels": (None, 0.1)},
        {"granularity.completeness": (0.97, None)},
        {"distortion.invalid": (None, 0.05), "variety.effective_classes": (1.9, None)},
        {"delay.mean": (None, 700_000)},
        {"granularity.mean_size": (0.7, None)},
        {"mismatch.states": (None, 0.3)},
        {"mismatch.entities": (None, 0.3)},
        {"coverage.duplicate_share": (None, 0.001)},
        {"duration.span": (None, 400_000)},
    ],
)
def test_what_a_random_draw_does_not_satisfy_is_satisfied(limits):
    table, binding = mixed()
    thresholds = {"volume.rows": (400, None), **limits}
    drawn = figures(table.take(pa.array(np.random.default_rng(1).choice(4000, 400, False))), binding)
    name = next(iter(limits))
    low, high = limits[name]
    assert drawn[name] < low if low is not None else drawn[name] > high
    rows, _ = chosen(table, binding, thresholds, {1: 30})
    found = figures(rows, binding)
    for name, (low, high) in thresholds.items():
        assert (low is None or found[name] >= low) and (high is None or found[name] <= high), name
    assert rows["label"].to_pylist().count(1) >= 30
    if name not in ("mismatch.entities",):
        assert rows.num_rows < 600


def test_rare_entities_are_found_without_taking_nearly_all_rows():
    """50 entities have 39 rows each, 50 have one: a random draw of 300 rows holds about 57 of them."""
    who = np.random.default_rng(0).permutation(
        np.concatenate([np.repeat(np.arange(50), 39), np.arange(50, 100)])
    )
    rows, _ = chosen(pa.table({"who": who}), Binding(entity="who"), {"scope.entities": (90, None)})
    assert len(set(rows["who"].to_pylist())) >= 90 and rows.num_rows <= 110


def test_the_way_to_a_balance_is_straight():
    """However far above its limit the distance of the labels is, less is better: so hardly a pick is undone."""
    label = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [1700, 100, 100, 100]))
    binding = with_target(Binding(classes="label"), pa.table({"label": [0, 1, 2, 3]}))
    thresholds = {"mismatch.labels": (None, 0.02), "volume.rows": (300, None)}
    rows, choice = chosen(pa.table({"label": label}), binding, thresholds)
    counts = np.bincount(rows["label"].to_numpy())
    assert np.abs(counts / counts.sum() - 0.25).sum() / 2 <= 0.02 and 300 <= counts.sum() <= 330
    undone = [r for r in choice.reasons.values() if r.startswith("the other chosen groups")]
    assert len(undone) <= 3


def test_thresholds_do_not_tie_the_class_to_what_else_is_limited():
    """Old rows are asked for and half the pool: of both classes the same share is old, and floors that are met anyhow change nothing."""
    table, binding = mixed()
    thresholds = {"delay.mean": (1_000_000, None), "volume.rows": (800, None)}
    assert pieces(table, binding, thresholds, {0: 400, 1: 40}).equals(pieces(table, binding, thresholds))
    assert not pieces(table, binding, thresholds, {0: 400, 1: 200}).equals(pieces(table, binding, thresholds))
    rows, _ = chosen(table, binding, thresholds, {0: 400, 1: 40})
    assert 0.07 < np.mean(rows["label"].to_numpy()) < 0.13
    # with the class told apart, kinds are taken in their proportions where the thresholds leave the choice
    rows, _ = chosen(table, binding, thresholds | {"variety.classes": (2, None)})
    at, label = rows["at"].cast(pa.int64()).to_numpy(), rows["label"].to_numpy()
    early = at < np.median(table["at"].cast(pa.int64()).to_numpy())
    assert abs(early[label == 0].mean() - early[label == 1].mean()) < 0.1


def test_a_floor_that_flawed_rows_would_fill_first_is_filled_with_others():
    """Half of the flawed rows are of class 3: those that make up its floor fastest can never be made up for."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 1400)
    seen = pa.array(rng.normal(size=1400), mask=rng.random(1400) < 0.1 * label)
    table, binding = pa.table({"label": label, "seen": seen}), Binding(classes="label", content="seen")
    thresholds = {"granularity.completeness": (0.99, None), "volume.rows": (300, None)}
    rows, _ = chosen(table, binding, thresholds, {3: 60})
    assert rows["seen"].null_count <= 0.01 * rows.num_rows and 300 <= rows.num_rows < 400
    assert rows["label"].to_pylist().count(3) >= 60


def test_every_row_is_in_one_piece_of_like_rows_and_a_seed_decides_which():
    table, binding = mixed()
    names = pieces(table, binding, LIMITS, seed=3)
    texts = names.to_pylist()
    assert all(texts) and max(map(texts.count, set(texts))) <= 16 and len(set(texts)) < 300
    missing = np.array([v is None for v in table["x"].to_pylist()])
    for kind in {kind_of(t) for t in texts}:
        rows = [i for i, t in enumerate(texts) if kind_of(t) == kind]
        assert len({(table["label"][i].as_py(), missing[i]) for i in rows}) == 1
        assert ("flawed" in kind) == missing[rows[0]] and f"label {table['label'][rows[0]]}" in kind
    assert texts == pieces(table, binding, dict(reversed(LIMITS.items())), seed=3).to_pylist()
    assert texts != pieces(table, binding, LIMITS, seed=4).to_pylist()
    assert set(pieces(table, Binding(size="size"), {"volume.rows": (9, None)}).to_pylist()) >= {
        "rows, piece 1"
    }


def test_what_conflicts_among_rows_is_named():
    table, binding = mixed()
    with pytest.raises(
        ConfigError, match=r"found that satisfies granularity\.completeness .* volume\.rows .* together"
    ):
        chosen(table, binding, {"granularity.completeness": (1, None), "volume.rows": (3900, None)})


def test_nothing_to_tell_rows_apart_by():
    for table in (pa.table({"label": pa.nulls(5)}), pa.table({"label": ["a"]})):
        names = pieces(table, Binding(classes="label"), {"variety.classes": (1, None)}, {"a": 1})
        assert len(set(names.to_pylist())) == table.num_rows
