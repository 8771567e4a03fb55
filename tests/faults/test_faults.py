"""Real kills on a real cluster: whatever dies, plans and state are those of the run that nobody disturbed.

Each run is a process of its own with its own Ray (``job.py``). With losses that are a function of id and epoch, every
epoch's plan (by its digest) and committed state equal an undisturbed run's, in this process and without Ray; with
real losses and the same number of workers, the weights do too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1800)
JOB = Path(__file__).with_name("job.py")
KEYS = ("epoch", "plan", "planned", "trained", "observed", "mean_loss", "digest")


def job():
    spec = importlib.util.spec_from_file_location("faults_job", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(directory, **options):
    directory.mkdir(exist_ok=True)
    words = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    log = (directory / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, str(JOB), str(directory), *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process, directory):
    try:
        process.wait(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (directory / "log.txt").read_text()[-3000:]
    return json.loads((directory / "result.json").read_text())


def outcome(history, *more):
    return [[entry[key] for key in (*KEYS, *more)] for entry in history]


def kill_driver(process, directory):
    """SIGKILL of the driver, and of the Ray it started, once the run has reached the step."""
    deadline = time.monotonic() + 200
    while not (directory / "struck-driver").exists():
        assert process.poll() is None and time.monotonic() < deadline, (directory / "log.txt").read_text()[
            -3000:
        ]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)


def struck(directory):
    """The faults that happened."""
    return {path.name.removeprefix("struck-") for path in directory.glob("struck-*")}


def newest(directory, name):
    """The file of this name in the newest checkpoint of Ray Train."""
    return max(directory.glob(f"train/run/checkpoint_*/{name}"), key=lambda path: path.parent.name)


@pytest.fixture(scope="module")
def expected():
    history = job().undisturbed(70_000)
    assert len({entry["plan"] for entry in history}) == len(history) - 1  # the first and the last take all
    return history


@pytest.mark.slow
def test_a_worker_is_killed_after_a_checkpoint_in_mid_epoch_and_then_the_actor_of_one_shard(
    tmp_path, expected
):
    found = finish(start(tmp_path, faults="worker actor", save=4), tmp_path)
    assert struck(tmp_path) == {"worker", "actor"} and found["resumed"]
    assert outcome(found["history"], "steps") == outcome(expected, "steps")


@pytest.mark.slow
def test_the_node_that_holds_the_state_is_killed(tmp_path, expected):
    found = finish(start(tmp_path, faults="node", save=4, failures=4), tmp_path)
    assert struck(tmp_path) == {"node"} and found["resumed"]
    assert outcome(found["history"], "steps") == outcome(expected, "steps")


@pytest.mark.slow
def test_the_driver_is_killed_and_the_same_command_goes_on_with_fewer_workers(tmp_path, expected):
    kill_driver(start(tmp_path, faults="driver", save=4), tmp_path)
    about = json.loads(newest(tmp_path, "session.json").read_text())
    assert (about["epoch"], about["within"]["steps"]) == (2, 4)  # what the next one goes on from
    found = finish(start(tmp_path, faults="driver", save=4, workers=1, shards=1), tmp_path)
    assert found["resumed"] and outcome(found["history"], "steps") == outcome(expected, "steps")


@pytest.mark.slow
def test_with_real_losses_the_weights_are_bit_equal_and_a_damaged_checkpoint_gives_way(tmp_path):
    options = {"losses": "real", "n": 6000, "rows": 512}
    whole = finish(start(tmp_path / "whole", **options), tmp_path / "whole")
    place = tmp_path / "killed"
    options |= {"faults": "driver actor", "save": 4}
    kill_driver(start(place, **options), place)
    model = newest(place, "objects.pt")
    about = json.loads(model.with_name("session.json").read_text())
    assert (about["epoch"], about["within"]["steps"]) == (1, 4)
    model.write_bytes(model.read_bytes()[:-100])
    found = finish(start(place, **options), place)
    assert struck(place) == {"driver", "actor"} and found["resumed"]
    said = [line for line in (place / "log.txt").read_text().splitlines() if "The checkpoint " in line]
    assert len(said) == 1 and "The run resumes at epoch 1: the model and" in said[0], said
    assert outcome(found["history"], "steps") == outcome(whole["history"], "steps")
    assert found["weights"] == whole["weights"]


@pytest.mark.slow
def test_what_may_not_be_restarted_fails_soon_and_says_why(tmp_path):
    found = finish(start(tmp_path, faults="actor", failures=0), tmp_path)
    assert "The actor" in found["error"] and "died" in found["error"]
    assert found["seconds"] < 120  # the whole run, Ray Train's start included
