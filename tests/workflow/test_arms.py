"""The arms of a run share workers that start once, and are what they are when each has its own."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from raysel.errors import ConfigError, DataError, RunError, StateError
from raysel.report.ledger import Ledger
from raysel.workflow import config, steps
from raysel.workflow.run import run
from raysel.workflow.steps import train
from tests.workflow.test_reuse import rows

FLOW = """
name: arms
pool: {path: pool.parquet, label: kind}
test: {path: test.parquet, label: kind}
select: {method: random, budget: 0.5}
dynamic: {method: infobatch}
train: {model: "model.py:make", input: v, epochs: 3, batch_size: 16, workers: 1}
controls: [random, full]
"""

TASK = """
import os, signal
from pathlib import Path
from raysel.errors import DataError
from raysel.train.tasks import Classification

class Dies(Classification):
    def metrics(self, sums):
        file, kinds = Path(FILE), KINDS
        calls = file.read_text() if file.exists() else ""
        file.write_text(calls + "x")
        if len(calls) in kinds:
            if kinds[len(calls)] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise kinds[len(calls)]("of the task")
        return super().metrics(sums)
"""
KEYS = ("epoch", "planned", "trained", "steps", "loss", "digest", "metrics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("arms")
    pq.write_table(rows(200, 0), place / "pool.parquet")
    pq.write_table(rows(60, 1), place / "test.parquet")
    (place / "flow.yaml").write_text(FLOW)
    (place / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    return place


def flow(folder, task="classification", **changes):
    found = config.load(folder / "flow.yaml", [f"train.task={task}"])
    return replace(found, train=replace(found.train, **changes))


def outcome(results):
    return {
        name: ([{key: getattr(epoch, key) for key in KEYS} for epoch in arm.epochs], arm.metrics)
        for name, arm in results.arms.items()
    }


def weights(place):
    found = {
        path.parent.parent.name.split("-")[1]: load_file(path)
        for path in place.glob("steps/train-*/model/*.safetensors")
    }
    return {arm: {name: value.tolist() for name, value in held.items()} for arm, held in found.items()}


@pytest.fixture(scope="module")
def alone(cluster, folder, tmp_path_factory):
    """Results and weights where each arm has workers of its own."""
    place = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "Workers", lambda *_: None)
        results = run(flow(folder), place)
    assert all(entry.seconds["start-up"] == 0 for entry in results.ledger.entries)
    return outcome(results), weights(place)


@pytest.mark.slow
def test_arms_in_one_run_of_ray_train_are_those_of_three(cluster, folder, alone, tmp_path, monkeypatch):
    results = run(flow(folder), tmp_path / "run")
    assert (outcome(results), weights(tmp_path / "run")) == alone
    starts = {entry.seconds["start-up"] for entry in results.ledger.entries}
    assert len(starts) == 1 and starts.pop() > 0
    full = results.ledger.entry("full")
    assert full.total_seconds > full.seconds["start-up"]  # counted in each arm, though one has waited
    assert "once; each total includes it" in " ".join(results.ledger.text().split())
    assert Ledger.load(tmp_path / "run" / "ledger.json") == results.ledger
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert run(flow(folder), tmp_path / "run") == results  # what is finished needs no workers


@pytest.mark.slow
def test_elastic_workers_train_as_many_rows_per_step_as_all_of_them(cluster, folder, alone, tmp_path):
    """Of four workers the cluster can place two, which take 16 rows per step, as the single worker does."""
    results = run(flow(folder, workers=[1, 4], batch_size=4), tmp_path / "run")
    wanted = alone[0]
    for name, arm in results.arms.items():
        epochs, metrics = wanted[name]
        if name != "chain":  # which plans by losses, and these differ in their last bits
            assert [(e.trained, e.steps) for e in arm.epochs] == [(e["trained"], e["steps"]) for e in epochs]
        assert arm.epochs[0].loss == pytest.approx(epochs[0]["loss"], rel=1e-4)
        assert arm.metrics == pytest.approx(metrics, abs=0.05)


def task(folder, kinds):
    """Write a task that fails when its metrics are computed: once before the run, and at the end of each arm."""
    file = folder / "dies.py"
    file.write_text(TASK.replace("FILE", repr(str(folder / "calls"))).replace("KINDS", kinds))
    return file


@pytest.mark.slow
def test_an_arm_whose_worker_is_killed_goes_on_alone(cluster, folder, alone, tmp_path, capsys):
    file = task(tmp_path, "{2: 'kill'}")
    results = run(flow(folder, f"{file}:Dies", max_failures=1, version="1"), tmp_path / "run")
    assert (outcome(results), weights(tmp_path / "run")) == alone
    assert (tmp_path / "calls").read_text() == "xxxxx"  # of four ends one was repeated


@pytest.mark.slow
def test_arms_before_one_that_fails_are_finished(cluster, folder, alone, tmp_path, capsys):
    file = task(tmp_path, "{3: ValueError}")
    with pytest.raises(Exception, match="of the task"):
        run(flow(folder, f"{file}:Dies", max_failures=0, version="1"), tmp_path / "run")
    done = {path.parent.name.split("-")[1] for path in (tmp_path / "run").glob("steps/train-*/done.json")}
    assert done == {"chain", "random"}
    capsys.readouterr()
    results = run(flow(folder, f"{file}:Dies", max_failures=0, version="1"), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.split()[0].startswith("train-")]
    assert [line.split()[0] for line in said if line.endswith("reused")] == ["train-chain", "train-random"]
    assert (outcome(results), weights(tmp_path / "run")) == alone


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_an_error_of_the_data_is_not_repeated(cluster, folder, tmp_path, monkeypatch, together):
    if not together:
        monkeypatch.setattr(steps, "Workers", lambda *_: None)
    file = task(tmp_path, "{1: DataError, 2: DataError}")
    with pytest.raises(DataError, match="of the task"):
        run(flow(folder, f"{file}:Dies", max_failures=3, version="1"), tmp_path / "run")
    assert (tmp_path / "calls").read_text() == "xx"  # once before the run, and once in it


def test_errors_of_the_data_and_the_configuration_are_final():
    from raysel.workflow.trainer import FinalErrors

    def after(*errors):
        FinalErrors().after_exception(None, dict(enumerate(errors)))

    for kind in (DataError, ConfigError):
        wrapped = RuntimeError("worker 1")
        wrapped.__cause__ = kind("Row 3 is damaged.")
        for errors in ((kind("Row 3 is damaged."),), (ConnectionError("peer"), wrapped)):
            with pytest.raises(kind, match=r"^Row 3 is damaged\.$"):
                after(*errors)
    after(
        ValueError("x"),
        StateError("The actor was restarted."),
        RunError("A server is away."),
        ConnectionError(),
    )
