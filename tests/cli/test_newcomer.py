"""The commands methods, init and runs: what they print, and one sentence for what is wrong."""

from __future__ import annotations

import sys

import pytest

from raysel import cli
from raysel.core.storage import write_json
from raysel.workflow.directory import FORMAT
from raysel.workflow.methods import all_methods, one_method
from tests.report.test_tables import results


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


def test_methods(raysel):
    assert raysel("methods") == (0, all_methods() + "\n", "")
    assert raysel("methods", "gio") == (0, one_method("gio") + "\n", "")
    code, out, err = raysel("methods", "goi")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "Did you mean 'gio'?" in err
    assert "the code of this file is then run" in " ".join(raysel("methods", "-h")[1].split())


def test_init(raysel, tmp_path):
    code, out, err = raysel("init")
    assert (code, err) == (0, "") and "classify" in out
    code, out, err = raysel("init", "dynamic", "--out", tmp_path)
    assert (code, err) == (0, "") and f"raysel compare {tmp_path / 'dynamic.yaml'}" in out
    code, out, err = raysel("init", "dynamic", "--out", tmp_path)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "would be overwritten" in err


def test_runs(raysel, tmp_path):
    created = "2026-01-01T00:00:00+00:00"
    write_json(tmp_path / "manifest.json", {"kind": "raysel run", "format": FORMAT, "created": created})
    (tmp_path / "results").mkdir()
    results().save(tmp_path / "results" / "0123.json")
    code, out, err = raysel("runs", tmp_path)
    assert (code, err) == (0, "") and "300 / 1,000" in out
    code, out, err = raysel("runs", tmp_path / "results")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "not a run directory" in err
