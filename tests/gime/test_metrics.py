"""Metrics of a user's own, as functions and as ``file.py:Name``, next to the eleven."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.errors import ConfigError, RayselError
from raysel.gime import Binding, Figure, finalize, measure, merge, partial, select_groups
from raysel.gime.pieces import kind_of, pieces
from raysel.gime.sensitivity import sensitivity
from raysel.registry import METRICS
from raysel.report import metrics as pages
from raysel.report.figures.metrics import metric_bars
from raysel.report.results import Metric
from raysel.workflow import config, steps
from raysel.workflow.load import load_check, unloaded

OWN = """
from raysel.gime import Figure

def evenness(view):
    found = view.keys("classes").entropy(view.count("classed"))
    return [Figure("bits", found, "bits"), Figure("rows_squared", float(view.rows**2), "rows")]
"""
TABLE = pa.table({"c": ["a", "b", "c", "a", "a", "a"], "g": ["x", "x", "x", "y", "y", "z"], "v": [1.0] * 6})
BINDING = Binding(classes="c")


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return "own.py:evenness"


def twice(view):
    return [Figure("rows", 2.0 * view.rows, "rows")]


def test_a_metric_of_ones_own_is_measured_merged_and_shown_as_the_eleven(own):
    found = measure(TABLE, BINDING, metrics=[own, twice]).to_pylist()
    assert [row["metric"] for row in found[-3:]] == ["evenness", "evenness", "twice"]
    assert [row["value"] for row in found[-3:]] == [pytest.approx(1.2516, abs=1e-4), 36.0, 12.0]
    assert [row["bound"] for row in found[-3:]] == [0.0, 0.0, 0.0]
    assert found[:-3] == measure(TABLE, BINDING).to_pylist()
    parts = merge(partial(TABLE[:2], BINDING), partial(TABLE[2:], BINDING))
    assert finalize(parts, [own, twice]).to_pylist() == found
    groups = measure(TABLE, BINDING, "g", [twice]).to_pylist()
    assert [row["value"] for row in groups if row["metric"] == "twice"] == [6.0, 4.0, 2.0]
    sets = {"pool": tuple(Metric(**row) for row in found)}
    assert "evenness" in metric_bars(sets) and "twice" in metric_bars(sets)
    assert "rows_squared" in pages.page("t", sets, {}) and "rows_squared" in pages.text(sets)


def test_thresholds_on_a_metric_of_ones_own_choose_groups_and_pieces(own):
    limits = {"evenness.bits": (1.5, None)}
    choice = select_groups(partial(TABLE, BINDING, "g"), limits, metrics=[own])
    assert choice.groups == ("x",) and choice.reached["evenness.bits"] == pytest.approx(1.585, abs=1e-3)
    names = pieces(TABLE, BINDING, limits)
    assert len({kind_of(name) for name in names.to_pylist()}) == 3  # a piece for each class
    rows = partial(TABLE.append_column("piece", names), BINDING, "piece")
    assert len(select_groups(rows, limits, kind=kind_of, metrics=[own]).groups) == 3
    for wrong in ({"evenness.bit": (1, None)}, {"evennes.bits": (1, None)}):
        with pytest.raises(
            ConfigError, match=r"There is no such statistic \(did you mean 'evenness.bits'\?\)"
        ):
            select_groups(partial(TABLE, BINDING, "g"), wrong, metrics=[own])
    table = pa.table({"c": ["a", "b"] * 40})
    found = sensitivity(
        table, BINDING, lambda part: part["c"].to_pylist().count("a") / 10, mix="c", rows=10, count=60, metrics=[twice, own]
    )  # fmt: skip
    assert {"evenness.bits", "twice.rows"} <= set(found.correlations["statistic"].to_pylist())


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ("own.py:evenness", "metrics: 'own.py:evenness' is not a list of functions"),
        ([3], "metrics: 3 is not a function that takes a raysel.gime.View"),
        (["evennes"], "there is no such name"),
        (["own.py:evennes"], "has no object 'evennes'. Did you mean evenness"),
        ([lambda view: []], "has no name; define the metric with def"),
        ([twice, twice], "There is more than one metric 'twice'"),
        (["volume"], "There is more than one metric 'volume'"),
    ],
)
def test_what_is_no_metric_is_refused(own, metrics, says):
    with pytest.raises(ConfigError, match=says):
        measure(TABLE, BINDING, metrics=metrics)


def returning(found):
    def mine(view):
        return found() if callable(found) else found

    return mine


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            lambda: {}["state x"],
            r"'mine' raised KeyError \('state x'\); a metric can read only what the columns of the binding provide",
        ),
        (None, r"'mine' raised TypeError"),
        ([1.0], "'mine' must return a list of raysel.gime.Figure, but one of the returned elements is 1.0"),
        (
            [Figure("a", "1", "rows")],
            "'mine' returned the value '1' for 'a'; give a float, an Estimate or None",
        ),
        ([], "'mine' must return at least one statistic"),
        ([Figure("a", 1.0, "")] * 2, "each with a name of its own"),
    ],
)
def test_what_a_metric_does_wrong_is_said(found, says):
    with pytest.raises(ConfigError, match=says):
        measure(TABLE, BINDING, metrics=[returning(found)])


def test_a_workflow_names_metrics_of_ones_own(own, tmp_path):
    pq.write_table(TABLE, "pool.parquet")
    (tmp_path / "m.py").write_text(
        "import torch\ndef make(shape, classes): return torch.nn.Linear(1, classes)\n"
    )
    text = """
name: t
pool: {path: pool.parquet, label: c}
gime: {binding: {classes: c}, metrics: ["own.py:evenness"], thresholds: {THRESHOLD: [1.5, null]}}
train: {model: "m.py:make", input: v}
"""

    def flow(threshold, metric="own.py:evenness"):
        (tmp_path / "flow.yaml").write_text(
            text.replace("THRESHOLD", threshold).replace("own.py:evenness", metric)
        )
        return config.load("flow.yaml")

    right = flow("evenness.bits")
    steps.check(right)
    assert f"gime.metrics: {tmp_path}/own.py:evenness" in unloaded(right)
    with pytest.raises(
        ConfigError, match=r"gime: thresholds.varity.classes: There is no such statistic \(did you mean"
    ):
        steps.check(flow("varity.classes"))
    with pytest.raises(ConfigError, match=r"gime.metrics.0: The file .*none.py does not exist"):
        steps.check(flow("evenness.bits", "none.py:evenness"))
    with pytest.raises(
        ConfigError, match=r"gime.thresholds.evenness.bit: There is no such statistic. Did you mean"
    ):
        load_check(flow("evenness.bit"))
    assert list(METRICS.builtin)[:2] == ["volume", "delay"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("by: l", "gime: Column 'l' holds list.*, which cannot define groups"),
        ("days: 7", "gime: by: A window of time needs event_time in the binding"),
        ("days: 1.0e+300", r"gime: days: 1e\+300 days are too long"),
        ("thresholds: {variety.clases: [1, null]}", r"gime: thresholds.variety.clases: There is no such statistic \(did you mean"),
        ("thresholds: {variety.classes: [2, 1]}", "gime: thresholds.variety.classes: The least value 2 is above the greatest, 1"),
        ("target: other", "gime: The target has none of the columns that the binding names as"),
        ("target: typed", "gime: Column 'c' is of type map"),
        ("binding: {entity: c}, floors: {a: 1}", "gime: floors: Floors are minimum numbers of rows per class; name exactly one class column"),
    ],
)  # fmt: skip
def test_a_section_that_no_run_can_use_is_found_before_it(tmp_path, monkeypatch, keys, says):
    monkeypatch.chdir(tmp_path)
    pq.write_table(TABLE.append_column("l", pa.array([[1]] * 6)), "pool.parquet")
    pq.write_table(pa.table({"z": [1]}), "other.parquet")
    pq.write_table(pa.table({"c": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}), "typed.parquet")
    (tmp_path / "m.py").write_text("def make(shape, classes): return None\n")
    target = ""
    if keys.startswith("target"):
        target, keys = f"target: {{path: {keys.partition(': ')[2]}.parquet}}\n", "by: g"
    binding = "" if "binding" in keys else "binding: {classes: c}, "
    (tmp_path / "flow.yaml").write_text(
        f"name: t\npool: {{path: pool.parquet, label: c}}\n{target}gime: {{{binding}{keys}}}\n"
        "train: {model: 'm.py:make', input: v}\n"
    )
    with pytest.raises(RayselError, match=says):
        steps.check(config.load("flow.yaml"))
