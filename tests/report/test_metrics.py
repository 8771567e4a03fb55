"""The metrics as people see them: null is said, units stand by, and the same numbers give the same bytes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pyarrow as pa

from raysel.gime import Binding, measure
from raysel.registry import METRICS
from raysel.report import metrics, numbers
from raysel.report.figures.metrics import metric_bars, metrics_png
from raysel.report.page import render
from raysel.report.results import CalibrationCost, Measured, Metric


def typed(table):
    return tuple(Metric(**row) for row in table.to_pylist())


def sets(rows=3000):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "who": rng.integers(0, 20_000, rows),
            "at": pa.array(1_700_000_000 + rng.integers(0, 10**6, rows), pa.timestamp("s")),
            "label": rng.integers(0, 4, rows),
        }
    )
    binding = Binding(entity="who", event_time="at", classes="label", relation="who")
    return {
        "pool": typed(measure(table, binding)),
        "kept & <few>": typed(measure(table.slice(0, 9), binding)),
    }


def words(svg: str) -> list[str]:
    return [
        " ".join("".join(node.itertext()).split())
        for node in ET.fromstring(svg).iter()
        if node.tag.endswith("text")
    ]


def test_a_panel_for_each_metric_with_units_bounds_and_reasons():
    found = sets()
    svg = metric_bars(found)
    texts = words(svg)
    assert svg == metric_bars(sets()) and metric_bars({}) == ""
    for metric in METRICS.builtin:
        assert metric.replace("_", " ") in texts
    assert "3,000 rows" in texts and "9 rows" in texts and texts.count("kept & <few>") == 11
    nulls = sum(t.startswith("null: the binding names no") for t in texts)
    assert nulls == 2 * 4  # delay, coverage, distortion, mismatch; granularity falls back to entities by rows
    assert any("±" in t for t in texts)  # more than 2,048 entities are estimated
    assert metrics_png(found, "name").startswith(b"\x89PNG")


def test_the_table_says_all_statistics():
    found = sets()
    lines = metrics.text(found).splitlines()
    assert len(lines) == 2 + len(found["pool"]) and len({len(line) for line in lines[:1]}) == 1
    row = next(line for line in lines if line.startswith("volume") and " rows " in line)
    assert row.split()[1:4] == ["rows", "3,000", "9"]
    row = next(line for line in lines if "as_defined" in line)
    assert row.split()[2:4] == ["null", "null"] and "the binding names no record_time" in row


def test_the_page_shows_the_largest_groups_and_the_report_the_thresholds(results):
    groups = {f"g{i}": sets(20 + i)["pool"] for i in range(12)}
    page = metrics.page("na<me", sets(), groups)
    assert "Groups: the 8 largest of 12" in page and "na&lt;me" in page and "<script" not in page
    assert list(metrics.largest(groups)) == [f"g{i}" for i in range(4, 12)]
    measured = Measured(
        sets=sets(),
        thresholds={"variety.classes": (3, None), "mismatch.labels": (None, 0.25), "volume.rows": (2, 9)},
        reached={"variety.classes": 4.0, "mismatch.labels": 0.125, "volume.rows": 9.0},
        calibration=CalibrationCost(count=120, rows=50, rows_trained=7000, seconds=12.5),
    )
    page = render(replace(results, metrics=measured))
    assert (
        "Threshold mismatch.labels ≤ 0.25: for the selected rows, mismatch.labels is 0.125." in page
        and "Threshold 3 ≤ variety.classes: for the selected rows, variety.classes is 4." in page
    )
    assert "2 ≤ volume.rows ≤ 9" in page and "7,000 rows in all" in page.replace("\u00a0", " ")
    assert page.index("<h2>Metrics</h2>") < page.index("<h2>Selection</h2>")


def test_numbers_with_units():
    assert [numbers.quantity(v, "s") for v in (0.5, 90, 7200, 259_200, -259_200, None)] == [
        "0.5 s", "90 s", "2 h", "3 d", "-3 d", "n/a",
    ]  # fmt: skip
    assert [numbers.digits(v) for v in (0.12345, 3.0, 1234.5, 12_345_678.0, 0.0)] == [
        "0.1235", "3", "1,234", "1.235e+07", "0",
    ]  # fmt: skip
    assert numbers.quantity(3.0, "rows") == "3 rows" and numbers.quantity(0.5, "share") == "0.5"
