"""The benchmark of a GPU runs through with tiny sizes on CPUs, and says what failed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks/gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    monkeypatch.syspath_prepend(str(FILE.parent))  # for the processes that it starts
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_part_runs_with_tiny_sizes(gpu, cluster, capsys):
    assert gpu.main(["--tiny", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 15 and not any("failed" in row or "left out" in row for row in rows)
    assert "0.00 with a session, 0.00 without" in rows[-1]


def test_a_part_that_fails_is_named_and_the_next_one_runs(gpu, capsys, monkeypatch):
    def fails():
        raise ValueError("out of memory")

    monkeypatch.setattr(gpu, "connect", lambda address: None)
    monkeypatch.setattr(gpu, "parts", lambda *_: iter([("first", fails), ("second", lambda: "fine")]))
    assert gpu.main(["--tiny", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "| first | failed: ValueError: out of memory" in out and "| second | fine" in out
