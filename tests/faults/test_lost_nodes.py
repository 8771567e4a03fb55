"""Nodes are killed while their tasks measure, select and train: the others finish, or a sentence says what is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysel import Selection
from tests.golden import results as golden

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JOB = Path(__file__).with_name("lost_nodes.py")
ROOT = JOB.parents[2]
GROUPS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("digits")
    command = [sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    return place


def lose(data, out, count):
    """What the commands printed, their progress lines, and the selection that is left."""
    process = subprocess.Popen(
        [sys.executable, str(JOB), str(data), str(out), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, lines = process.communicate(timeout=800)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, lines[-5000:]
    said = [json.loads(line) for line in printed.splitlines() if line[:1] in ("[", '"')]
    found = Selection.load(next((out / "run/steps").glob("select-*/selection")))
    expected = json.loads(golden.EXPECTED.read_text())["quickstart"]["selection"]
    assert golden.digest(found.ids) == expected["ids"] and len(found) == expected["rows"]
    return said, lines


def test_the_nodes_that_are_left_finish_every_step(data, tmp_path):
    said, lines = lose(data, tmp_path, 4)
    assert said == [GROUPS, [455, 8]], lines
    assert {path.name for path in tmp_path.glob("struck-*")} == {
        f"struck-{name}" for name in ("measure", "select", "train")
    }
    assert re.search(
        r"train-chain .* min; 1 of 3 nodes left the cluster, [\d.]+ of the cluster's 1 CPUs", lines
    )


def test_without_a_node_that_is_left_a_sentence_says_so_and_the_same_command_resumes(data, tmp_path):
    said, lines = lose(data, tmp_path, 1)
    measured, again, selected, trained, finished = said
    assert re.search(r"lost|no node of the cluster has 1 CPU|waited too long", measured), (measured, lines)
    assert again == GROUPS
    assert selected.startswith("The computation cannot continue: no node of the cluster has 1 CPU."), lines
    assert re.match(r"train: Ray waited too long for the nodes that it needs \(.*\)\. Check", trained)
    assert finished == [455, 8]
    assert re.search(r"embed +reused", lines) and re.search(r"select +reused", lines)
