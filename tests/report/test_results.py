"""Results come back from their files as they were saved, and any other file is refused with a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysel.errors import RunError
from raysel.report.results import (
    CalibrationCost,
    Cell,
    ComparedPolicy,
    CompareResults,
    Data,
    Epoch,
    Extremes,
    Measured,
    MeasureResults,
    Metric,
    PolicyUse,
    RunResults,
    Scored,
    ShownRow,
    Usage,
    statistic,
)

METRICS = (
    Metric("volume", "rows", 12.0, "rows"),
    Metric("variety", "classes", 3.5, bound=0.25),
    Metric("delay", "mean", None, reason="the binding names no record_time"),
)
COMPARED = CompareResults(
    name="compared",
    created="2026-01-02T03:04:05+00:00",
    raysel="0.1",
    versions={"python": "3"},
    seeds=(3, 4),
    config={"train": {"epochs": 2}, "select": [None, 1, 0.5, True]},
    data=Data(pool=10, test=5, validation=2, validation_from="pool", classes=("a", "b")),
    rows=8,
    epochs=2,
    batch_size=4,
    own="infobatch",
    policies={
        "infobatch": ComparedPolicy(
            "InfoBatch",
            "sets",
            (
                Cell(
                    3,
                    {"policy": "InfoBatch", "prune_ratio": 0.5},
                    (Epoch(0, 8, 8, 2, metrics={"accuracy": 0.5}),),
                    {"accuracy": 0.6},
                ),
                Cell(
                    4,
                    {"policy": "InfoBatch"},
                    (Epoch(0, 8, 6, 2, loss=0.1),),
                    {"accuracy": 0.8},
                    max_steps=7,
                    seconds=1.5,
                ),
            ),
        )
    },
    trusted=("pool",),
)
MEASURED = MeasureResults("measured", sets={"pool": METRICS}, groups={"a": METRICS[:1], "null": METRICS[1:]})


def complete(results: RunResults) -> RunResults:
    """The sample with every part that a run may have."""
    shown = ShownRow(7, times=2, text="words")
    return replace(
        results,
        inputs={"pool": "1f", "test": "2e"},
        trusted=("pool", "test"),
        metrics=Measured(
            sets={"pool": METRICS, "kept": METRICS},
            thresholds={"variety.classes": (3.0, None), "volume.rows": (None, 9.0)},
            reached={"variety.classes": 3.5, "volume.rows": 9.0},
            calibration=CalibrationCost(count=120, rows=50, rows_trained=7000, seconds=12.5),
        ),
        usage=Usage(
            scored=Scored(samples=40, units=64, live_units=60, active=7.5, classes=3),
            rare_units=6,
            unexplained=0.125,
            policies=(PolicyUse("RepDiv", 0.2, 0.1, ((1, 30), (3, 10)), (0.5, 1.0)),),
            alpha=(0.9, 0.5),
            extremes=Extremes("a", most=(shown,), least=(ShownRow(1, times=0, image="aGk="),)),
        ),
    )


@pytest.mark.parametrize("kind", [RunResults, CompareResults, MeasureResults])
def test_each_kind_comes_back_equal_with_its_directory(
    kind: Any, results: RunResults, tmp_path: Path
) -> None:
    saved = {RunResults: complete(results), CompareResults: COMPARED, MeasureResults: MEASURED}[kind]
    path = saved.save(tmp_path / "results.json")
    assert path == tmp_path / "results.json" and [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = kind.load(path)
    assert loaded == saved and type(loaded) is kind
    assert loaded.path == str(tmp_path.resolve())
    written = json.loads(path.read_text())
    assert written["format"] == 3 and "path" not in written  # a moved directory keeps its results
    assert loaded.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_notebook_shows_one_line(results: RunResults) -> None:
    assert repr(results) == f"<RunResults of {results.name!r} in {results.path!r}>"


def test_the_optional_parts_may_be_absent(results: RunResults, tmp_path: Path) -> None:
    bare = replace(results, selection=None, metrics=None, usage=None, arms={})
    assert RunResults.load(bare.save(tmp_path / "results.json")) == bare


def test_a_number_that_json_lacks_comes_back_as_none(results: RunResults, tmp_path: Path) -> None:
    selection, full = results.selection, results.arms["full"]
    assert selection is not None
    curve = replace(selection.curve, kl=(math.inf, *selection.curve.kl[1:]))
    epochs = (replace(full.epochs[0], loss=math.nan), *full.epochs[1:])
    saved = replace(
        results,
        selection=replace(selection, curve=curve),
        arms={**results.arms, "full": replace(full, epochs=epochs)},
    )
    loaded = RunResults.load(saved.save(tmp_path / "results.json"))
    assert loaded.selection is not None
    assert loaded.selection.curve.kl == (None, *selection.curve.kl[1:])
    assert [epoch.loss for epoch in loaded.arms["full"].epochs] == [
        None,
        *(epoch.loss for epoch in full.epochs[1:]),
    ]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"No report can be written from .*results\.json \(No such file.*finished run"
    ):
        RunResults.load(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"name": "a", "ledger": {"entries": []}}', "format 1, but this version of raysel reads format 3"),
        ('{"name": "a", "ledger": {"entries": [{"arm": "full"}]}}', "the file has format 1"),
        ('{"format": 2}', "the file has format 2"),
        ('{"format": 3}', ": name is damaged"),
        ('{"format": "two"}', ": format is damaged"),
        ('{"name": "a", "led', ": the file is damaged"),
        ("[]", ": the file is damaged"),
        ("", ": the file is damaged"),
    ],
)
def test_what_is_no_file_of_this_format_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    for kind in (RunResults, CompareResults, MeasureResults):
        with pytest.raises(RunError, match="run the workflow again") as refused:
            kind.load(path)
        assert str(refused.value).startswith(f"No report can be written from {path}: ") and says in str(
            refused.value
        )


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("arms", "full", "epochs", 3, "trained"), "many", "arms.full.epochs.3.trained is damaged"),
        (("data", "pool"), 1.5, "data.pool is damaged"),
        (("ledger", "entries", 0, "metrics", "accuracy"), 97.6, "accuracy must be between 0 and 1"),
        (
            ("ledger", "entries", 1, "arm"),
            "full",
            "ledger is damaged (The ledger has more than one entry for the arm full; give each arm, which is one training of the run, one entry);",
        ),
        (("selection", "curve", "rows"), None, "selection.curve.rows is damaged"),
    ],
)
def test_a_damaged_field_is_named(
    place: tuple[Any, ...], value: Any, says: str, results: RunResults, tmp_path: Path
) -> None:
    path = results.save(tmp_path / "results.json")
    content = json.loads(path.read_text())
    *outer, last = place
    inner = content
    for key in outer:
        inner = inner[key]
    assert last in inner or isinstance(last, int)
    inner[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="No report can be written from") as refused:
        RunResults.load(path)
    assert says in str(refused.value)


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = MEASURED.save(tmp_path / "measure.json")
    with pytest.raises(RunError, match="created is damaged"):
        RunResults.load(path)
    with pytest.raises(RunError, match="sets is damaged"):
        MeasureResults.load(COMPARED.save(tmp_path / "compare.json"))


def test_a_statistic_is_found_by_its_two_names() -> None:
    assert statistic(METRICS, "variety", "classes") is METRICS[1]
    assert statistic(METRICS, "volume", "classes") is None and statistic((), "volume", "rows") is None
