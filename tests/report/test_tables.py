"""The table of the configurations that were run in one directory."""

from __future__ import annotations

from raysel.report.ledger import STAGES, Ledger, LedgerEntry
from raysel.report.results import Arm, Data, RunResults
from raysel.report.tables import runs_text


def results(kept=300, accuracy=0.9, samples=3_000, created="2026-03-14T09:26:53+00:00", full=True):
    def entry(arm, rows, backward, seconds):
        spent = {**dict.fromkeys(STAGES, 0.0), "training": seconds}
        return LedgerEntry(
            arm, arm, rows, 10, samples_backward=backward, seconds=spent, metrics={"accuracy": accuracy}
        )

    entries = [entry("full", 1_000, 10_000, 40.0)] if full else []
    entries.append(entry("chain", kept, samples, 10.0))
    return RunResults(
        name="x",
        created=created,
        raysel="0",
        versions={},
        seed=0,
        config={},
        data=Data(pool=1_000, test=100),
        arms={"chain": Arm("chain", "GIO", kept, (), {"accuracy": accuracy})},
        ledger=Ledger(entries),
    )


def test_a_row_per_configuration_with_what_it_kept_reached_saved_and_changed():
    later = results(kept=200, accuracy=0.8512, samples=2_000, created="2026-03-15T10:00:00+00:00")
    lines = runs_text([(results(), []), (later, [("select.budget", 0.3, 0.2)])]).splitlines()
    assert len(lines) == 5 and set(lines[2]) == {"-"}
    assert lines[1].split("  ")[-1] == "differs from the first in"
    assert lines[3].split() == ["2026-03-14", "09:26", "300", "/", "1,000", "90.0", "%", "70", "%", "75", "%"]
    assert lines[4].split()[:11] == [
        "2026-03-15",
        "10:00",
        "200",
        "/",
        "1,000",
        "85.1",
        "%",
        "80",
        "%",
        "75",
        "%",
    ]
    assert lines[4].endswith("75 %  select.budget 0.3 -> 0.2")
    at = lines[1].index("differs")
    assert lines[4].index("select.budget") == at and lines[1].index("samples") < lines[1].index("time") < at


def test_several_and_long_differences_continue_below_within_100_columns():
    differences = [
        ("pool.path", "/data/" + "a" * 120 + ".parquet", "/data/b.parquet"),
        ("dynamic", {"method": "full"}, {"method": "infobatch", "delta": 0.875}),
        ("validation", None, 0.1),
    ]
    text = runs_text([(results(), []), (results(), differences)])
    assert max(map(len, text.splitlines())) <= 100
    joined = "".join(line.strip() for line in text.splitlines()[4:])
    assert "a" * 120 in joined and joined.endswith("validation null -> 0.1")
    long = runs_text([(results(), []), (results(), [("gime", None, {"by": "x" * 5_000})])])
    assert len(long.splitlines()) < 12 and long.splitlines()[-1].endswith("...")


def test_what_is_missing_is_not_shown_as_a_number():
    alone = results(full=False)
    line = runs_text([(alone, [])]).splitlines()[3]
    assert line.split() == ["2026-03-14", "09:26", "300", "/", "1,000", "90.0", "%", "n/a", "n/a"]
    assert runs_text([]) == "No run has finished in this directory."


def test_a_configuration_that_differs_in_nothing_says_so():
    assert runs_text([(results(), []), (results(), [])]).splitlines()[-1].endswith("  nothing")


def test_when_it_was_run_is_kept_and_does_not_make_results_differ(tmp_path):
    one, other = results(), results(created="2027-01-01T00:00:00+00:00")
    assert one == other
    assert RunResults.load(other.save(tmp_path / "results.json")).created == other.created
