from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysel.errors import DataError, RunError
from raysel.report import STAGES, Ledger, LedgerEntry
from raysel.report.results import RunResults

NONE = dict.fromkeys(STAGES, 0.0)


def entry(arm: str, **given: Any) -> LedgerEntry:
    values: dict[str, Any] = {
        "title": arm,
        "rows": 1000,
        "epochs": 10,
        "samples_forward": 10_000,
        "samples_backward": 10_000,
        "steps": 100,
        "seconds": {**NONE, "training": 50.0},
        "metrics": {"accuracy": 0.9},
    }
    return LedgerEntry(arm, **{**values, **given})


CHAIN = entry(
    "chain",
    samples_backward=3_900,
    seconds={
        "embedding": 2.0,
        "metrics": 0.0,
        "selection": 5.5,
        "planning": 0.5,
        "training": 18.0,
        "other": 2.0,
    },
)


def test_savings_count_everything_that_was_spent() -> None:
    ledger = Ledger([entry("full"), CHAIN])
    assert CHAIN.total_seconds == 28.0
    assert ledger.saving_samples("chain") == pytest.approx(0.61)
    assert ledger.saving_seconds("chain") == pytest.approx(0.44)
    assert ledger.saving_samples("full") == ledger.saving_seconds("full") == 0.0


def test_a_loss_is_shown_as_what_it_is() -> None:
    ledger = Ledger([entry("full"), entry("chain", seconds={**NONE, "selection": 16.0, "training": 40.0})])
    assert ledger.saving_seconds("chain") == pytest.approx(-0.12)
    assert "-12 %" in ledger.text()


def test_nothing_is_guessed_without_a_full_arm_or_a_figure() -> None:
    assert Ledger([CHAIN]).saving_samples("chain") is None
    assert Ledger([CHAIN]).saving_seconds("chain") is None
    assert "n/a" in Ledger([CHAIN]).text()

    left_out = {stage: 1.0 for stage in STAGES if stage != "selection"}
    partial = Ledger([entry("full"), entry("chain", seconds=left_out, samples_backward=None)])
    assert partial.entries[1].total_seconds is None
    assert partial.saving_samples("chain") is None
    assert partial.saving_seconds("chain") is None
    assert partial.saving_samples("nobody") is None

    idle = Ledger([entry("full", samples_backward=0, seconds=NONE), CHAIN])
    assert idle.saving_samples("chain") is None
    assert idle.saving_seconds("chain") is None


def test_round_trip(tmp_path: Path) -> None:
    ledger = Ledger([entry("full"), CHAIN, entry("odd", seconds={"training": None}, metrics={}, steps=None)])
    path = tmp_path / "ledger.json"
    ledger.save(path)
    assert Ledger.load(path) == ledger
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.json"]  # nothing half-written stays
    written = json.loads(path.read_text())
    assert written["entries"][1]["saving_samples"] == pytest.approx(0.61)
    assert written["entries"][1]["total_seconds"] == 28.0


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    with pytest.raises(RunError, match=r"ledger\.json cannot be read"):
        Ledger.load(path)
    for damaged in ('{"entries": [', "[]", '{"entries": [{"arm": "full"}]}', '{"entries": [3]}'):
        path.write_text(damaged)
        with pytest.raises(RunError, match="damaged"):
            Ledger.load(path)
    with pytest.raises(RunError, match=r"ledger\.json cannot be written"):
        Ledger().save(tmp_path / "nowhere" / "ledger.json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": -1}, "rows"),
        ({"steps": 1.5}, "steps"),
        ({"metrics": {"accuracy": 97.1}}, "accuracy must be between 0 and 1"),
        ({"metrics": {"rmse": float("nan")}}, "rmse must be a finite number"),
        ({"metrics": 0.9}, "'metrics' must be a mapping"),
        ({"seconds": {"training": float("inf")}}, "seconds of training"),
        ({"seconds": {"traning": 1.0}}, "traning"),
    ],
)
def test_figures_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        entry("full", **given)


def test_arms_differ() -> None:
    with pytest.raises(DataError, match="full"):
        Ledger([entry("full"), entry("full")])


def test_the_table(results: RunResults) -> None:
    lines = results.ledger.text().splitlines()
    assert max(map(len, lines)) <= 100
    assert [
        word in lines[1] for word in ("rows", "epochs", "steps", "samples", "embed", "select", "plan")
    ] == [True] * 7
    row = next(line for line in lines if line.startswith("GIO + InfoBatch"))
    cells = [
        "430",
        "20",
        "225",
        "6,894",
        "1.3",
        "3.4",
        "0.03",
        "15.7",
        "20.4",
        "76",
        "%",
        "49",
        "%",
        "97.1",
        "%",
    ]
    assert row.split()[3:] == cells
    assert lines[0].endswith("  test") and lines[1].endswith("  acc.")
    assert lines[-2].startswith(
        "Saving: 1 - cost / cost of full pool; a negative saving is an extra cost. Other: start-up,"
    )


def test_the_table_of_a_large_run_is_no_wider() -> None:
    seconds = dict.fromkeys(STAGES, 380_000.25)
    big = {"rows": 10**9, "samples_backward": 3 * 10**11, "steps": 46_000_000, "seconds": seconds}
    title = "Every row there is, in the order it came"
    ledger = Ledger(
        [entry("full", title=title, **big), entry("chain", title="GIO, then GIME", seconds=seconds)]
    )
    text = ledger.text()
    assert max(map(len, text.splitlines())) <= 100
    for word in title.split():
        assert word in text
    assert "300.0G" in text


def test_no_word_of_a_title_is_divided() -> None:
    seconds = dict.fromkeys(STAGES, 38_000.25)
    for title in ("density ratio + k-center + InfoBatch", "SelectsTheRowsThatAreMostLikeTheTarget + RepDiv"):
        ledger = Ledger(
            [
                entry("full", title="full pool", rows=10**6, steps=46_000, seconds=seconds),
                entry("chain", title=title, seconds=seconds),
            ]
        )
        lines = ledger.text().splitlines()
        words = [word for line in lines[4:-2] for word in line.split()]
        assert [word for word in words if word in title.split()] == title.split()


def test_an_empty_ledger_says_so() -> None:
    assert "empty" in Ledger().text()
