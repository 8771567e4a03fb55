"""The complete examples of the guides on tasks and loops of one's own: `raysel validate --load` accepts them, and they run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raysel
from raysel.workflow import config, steps
from raysel.workflow.load import load_check

ROOT = Path(__file__).resolve().parents[2]
SAVED = re.compile(
    r"Save the following [^`]+ as\s`mine/([\w.]+)`:\n\n(?:<!-- .*? -->\n)?```\w+\n(.*?)^```$", re.S | re.M
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    there = tmp_path_factory.mktemp("guides") / "workflows"
    place = there.parent / "mine"
    there.mkdir()
    place.mkdir()
    shutil.copy(ROOT / "workflows/models.py", there)
    command = [sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(there / "data/digits")]
    subprocess.run(command, check=True, capture_output=True)
    for guide in ("own-task", "own-loop"):
        saved = SAVED.findall((ROOT / f"docs/guides/{guide}.md").read_text(encoding="utf-8"))
        assert len(saved) == 2
        for name, text in saved:
            (place / name).write_text(text)
    return place


@pytest.mark.parametrize("name", ["denoise", "two_rates"])
def test_an_example_is_valid(folder, name):
    flow = config.load(folder / f"{name}.yaml")
    found = steps.check(flow)
    load_check(flow)
    steps.check(flow, found=found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "better"), [("denoise", "rmse", 0.2), ("two_rates", "accuracy", 0.5)]
)
def test_an_example_runs(cluster, folder, name, metric, better):
    results = raysel.run(config.load(folder / f"{name}.yaml"), out=folder / "run")
    assert list(results.arms) == ["full", "chain"]
    for arm in results.arms.values():
        value = arm.metrics[metric]
        assert value < better if metric == "rmse" else value > better
