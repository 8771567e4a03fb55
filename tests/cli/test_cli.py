"""The command line: one sentence and a non-zero exit for what is wrong, never a traceback."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from raysel import cli
from raysel.report import Ledger, LedgerEntry
from raysel.report.results import Data, MeasureResults, RunResults
from raysel.version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raysel(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raysel", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(data)], check=True)
    return [x for role in ("pool", "target", "test") for x in ("--set", f"{role}.path={data}/{role}.parquet")]


def test_version_and_help(raysel):
    assert raysel("--version") == (0, f"raysel, version {__version__}\n", "")
    code, out, _ = raysel("-h")
    assert code == 0 and all(
        name in out for name in ("run", "compare", "measure", "validate", "report", "cleanup")
    )


def test_the_installed_command_runs():
    done = subprocess.run([sys.executable, "-m", "raysel.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"raysel, version {__version__}\n")


def test_validate_counts_the_rows_and_starts_nothing(raysel, digits):
    code, out, err = raysel("validate", ROOT / "workflows/quickstart.yaml", *digits)
    assert (code, err) == (0, "")
    checked, *taken, left_out = out.splitlines()
    assert taken[0].startswith("  pool: 1,517 rows in 1 Parquet file of ") and len(taken) == 3
    assert checked.endswith("quickstart.yaml is valid (pool 1,517 rows, target 100 rows, test 180 rows).")
    assert (
        left_out.startswith("Not checked, because --load was not given: train.model: ")
        and "models.py:mlp" in left_out
    )


def test_validate_runs_no_code_unless_it_is_asked_to(raysel, digits, tmp_path):
    (tmp_path / "net.py").write_text("print('this code was run')\ndef make(shape, classes): return 3\n")
    given = [ROOT / "workflows/quickstart.yaml", *digits, "--set", f"train.model={tmp_path}/net.py:make"]
    code, out, _ = raysel("validate", *given)
    assert code == 0 and "this code was run" not in out
    code, out, err = raysel("validate", "--load", *given)
    assert code == 1 and "this code was run" in out
    assert "net.py:make returned a int, not a torch.nn.Module" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "select.bugdet=0.1"], "The key 'select.bugdet' is unknown. Did you mean 'select.budget'?"),
        (["--set", "select.budget=1.5"], "select.budget: 1.5 is not a share in (0, 1]"),
        (["--set", "pool.path=/no/such.parquet"], "pool.path: /no/such.parquet does not exist"),
        (["--set", "nonsense"], "Write key=value"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_what_is_wrong_is_one_sentence(raysel, digits, tmp_path, command, arguments, sentence):
    out = ["--out", tmp_path / "run"] if command == "run" else []
    code, stdout, err = raysel(command, ROOT / "workflows/quickstart.yaml", *digits, *arguments, *out)
    assert code == 1 and stdout == ""
    assert err.startswith("raysel: error: ") and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_unknown_options_and_commands(raysel):
    assert raysel("run")[0] == 2 and raysel("rnu")[0] == 2
    assert "No report can be written from" in raysel("report", "/no/such/run")[2]


def test_a_report_of_a_workflow_file_asks_for_the_directory_of_a_run(raysel, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n")
    code, _, err = raysel("report", file)
    assert code and "give the directory of a finished run" in err and "damaged" not in err
    assert list(tmp_path.iterdir()) == [file]


def test_report_is_made_again_from_the_results(raysel, tmp_path):
    results = RunResults(
        name="tiny",
        created="2026-01-01T00:00:00+00:00",
        raysel="0",
        versions={},
        seed=0,
        config={},
        data=Data(3),
        arms={},
        ledger=Ledger([LedgerEntry("chain", "training", 3, 1)]),
    )
    results.save(tmp_path / "results.json")
    code, out, err = raysel("report", tmp_path)
    assert (code, err) == (0, "") and out == f"Report: {tmp_path / 'report.html'}\n"
    assert "tiny" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("command", ["run", "compare"])
def test_what_is_printed_can_be_less_more_or_json(raysel, monkeypatch, command):
    results = RunResults(
        "tiny",
        "x",
        "0",
        {},
        0,
        {},
        Data(3),
        {},
        Ledger([LedgerEntry("chain", "training", 3, 1)]),
        path="/out",
    )

    def work(*given, progress, **named):
        progress.done("select", "1.0 s  selection")
        progress.log("kept")
        return results

    monkeypatch.setattr(f"raysel.workflow.{command}.{command}", work)
    monkeypatch.setattr("raysel.report.comparison.tables.text", lambda results: results.ledger.text())
    flow = [command, ROOT / "workflows/quickstart.yaml"]
    code, out, err = raysel(*flow)
    assert (code, err) == (0, "  select         1.0 s  selection\n") and "Report: /out/" in out
    code, out, err = raysel(*flow, "--quiet", "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1
    found = json.loads(out)
    assert found["path"] == "/out" and found["ledger"]["entries"][0]["rows"] == 3
    code, out, err = raysel(*flow, "--quiet", "--verbose")
    assert code == 2 and "The options --quiet and --verbose cannot be given together" in err
    logger = logging.getLogger("raysel")
    monkeypatch.setattr(logger, "level", logger.level)
    assert raysel(*flow, "--verbose")[0] == 0 and logger.isEnabledFor(logging.DEBUG)
    logger.setLevel(logging.NOTSET)


def test_a_measurement_is_printed_as_json(raysel, monkeypatch):
    def work(*given, progress, **named):
        progress.done("measure", "1 files read")
        return MeasureResults("tiny", {"pool": ()}, path="/out")

    monkeypatch.setattr("raysel.workflow.measure.measure", work)
    code, out, err = raysel("measure", ROOT / "workflows/quickstart.yaml", "--quiet", "--json")
    assert (code, err) == (0, "") and json.loads(out) | {"path": "/out", "sets": {"pool": []}} == json.loads(
        out
    )


def test_an_address_without_a_cluster_is_said(raysel, digits, tmp_path):
    """In a process of its own: this one may have joined a cluster already."""
    code = "import sys; from raysel.cli import main; sys.argv = ['raysel', *sys.argv[1:]]; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(ROOT / "workflows/quickstart.yaml"), *digits, "--out",
         str(tmp_path / "run"), "--address", "127.0.0.1:1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The Ray cluster at 127.0.0.1:1 cannot be joined" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policies", "full,roundrobim"], "'roundrobim' is unknown. Did you mean 'round_robin'?"),
        (["--seeds", "0"], "give an integer of at least 1"),
        (["--set", "test=null"], "The key 'test' is missing"),
    ],
)
def test_a_comparison_that_cannot_be_is_one_sentence(raysel, digits, tmp_path, arguments, sentence):
    out = ["--out", tmp_path / "run"]
    code, stdout, err = raysel("compare", ROOT / "workflows/quickstart.yaml", *digits, *arguments, *out)
    assert code == 1 and stdout == "" and not (tmp_path / "run").exists()
    assert err.startswith("raysel: error: ") and sentence in err and err.count("\n") == 1
