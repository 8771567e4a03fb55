"""Roles of rows: choices read validation rows, and test rows change nothing but the test metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.data.vectors import to_column
from raysel.errors import ConfigError
from raysel.workflow import config, steps
from raysel.workflow.compare import compare
from raysel.workflow.directory import open_run

FLOW = """
name: small
pool: {path: pool.parquet, label: kind}
target: {path: target.parquet, label: aim}
test: {path: test.parquet, label: kind}
dynamic: {method: random_subset}
train: {model: "model.py:make", input: v, epochs: 2, batch_size: 32, workers: 1}
"""


def rows(count, seed, label="kind"):
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % 3
    v = (rng.normal(size=(count, 4)) + 2 * kind[:, None]).astype(np.float32)
    return pa.table({"v": to_column(v), label: kind})


@pytest.fixture
def folder(tmp_path):
    pq.write_table(rows(300, 0), tmp_path / "pool.parquet", row_group_size=70)
    pq.write_table(rows(80, 1, "aim"), tmp_path / "target.parquet")
    pq.write_table(rows(90, 2), tmp_path / "test.parquet")
    pq.write_table(rows(45, 3), tmp_path / "validation.parquet")
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    return tmp_path


def flow(folder, *changes):
    return config.load(folder / "flow.yaml", list(changes))


def ids(dataset):
    return sorted(row["sample_id"] for row in dataset.select_columns(["sample_id"]).take_all())


def test_a_share_is_drawn_from_a_target_with_labels_and_taken_out_of_it(cluster, folder):
    with open_run(flow(folder, "validation=0.25"), folder / "run") as run:
        assert run.drawn.role == "target" and run.rows is None
        taken = run.drawn.ids.tolist()
        assert 8 < len(taken) < 32 and ids(run.target()) == sorted(set(range(80)) - set(taken))
        assert ids(raysel.Selection.of(run.drawn.ids).rows(run.read("target"))) == taken
    with open_run(flow(folder, "validation=0.25"), folder / "again") as run:
        assert run.drawn.ids.tolist() == taken
    with open_run(flow(folder, "validation=0.25", "seed=1"), folder / "other") as run:
        assert run.drawn.ids.tolist() != taken


def test_a_share_is_drawn_from_the_pool_where_the_target_has_no_labels(cluster, folder):
    for number, change in enumerate(("target.label=null", "target=null")):
        with open_run(flow(folder, "validation=0.3", change), folder / f"run{number}") as run:
            assert run.drawn.role == "pool" and 60 < len(run.drawn.ids) < 120
            rest = sorted(set(range(300)) - set(run.drawn.ids.tolist()))
            assert ids(run.pool()) == rest == run.base.ids.tolist() and run.count(run.rows) == len(rest)
            # A selector hashes the same ids, and is not to choose by the same draw.
            lowest = raysel.Random(len(run.drawn.ids), seed=0).select(run.read("pool")).ids
            assert len(np.intersect1d(lowest, run.drawn.ids)) < 0.5 * len(lowest)


def test_without_the_key_no_row_is_taken(cluster, folder):
    with open_run(flow(folder), folder / "run") as run:
        assert run.drawn is None and run.base is None and ids(run.target()) == list(range(80))


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_a_share_that_leaves_no_row_is_refused(cluster, folder, share):
    with (
        pytest.raises(ConfigError, match=r"validation: The share .* of the 80 rows of target.path"),
        open_run(flow(folder, f"validation={share}"), folder / "run"),
    ):
        pass


def test_every_row_that_is_trained_on_is_no_validation_row(cluster, folder):
    """The chain, the random control and the full pool."""
    changes = (
        "validation=0.3",
        "target=null",
        "select={method: random, budget: 100}",
        "controls=[random, full]",
    )
    with open_run(flow(folder, *changes), folder / "run") as run:
        for step in steps.plan(run.workflow)[:-3]:
            run.do(step)
        trains = [step for step in steps.plan(run.workflow) if isinstance(step, steps.Train)]
        run.finished["train-chain"] = replace(run.finished["arrays"], answer={"epochs": [{"steps": 3}]})
        for step in trains:
            _, chosen, _ = step._task(run)
            assert not np.isin(chosen.ids, run.drawn.ids).any()
        assert [step.arm for step in trains] == ["chain", "random", "full"]
        assert len(trains[0]._task(run)[1]) == len(trains[1]._task(run)[1]) == 100
        assert len(trains[2]._task(run)[1]) == 300 - len(run.drawn.ids)
        dropped = run.rows.dropped.to_pylist()
        reasons = {row["sample_id"]: row["reason"] for row in dropped}
        assert {reasons[i] for i in run.drawn.ids.tolist()} == {"validation row"} and len(dropped) == 200


def accuracies(results):
    return {
        name: ([epoch.metrics.get("accuracy") for epoch in cell.epochs], cell.metrics["accuracy"])
        for name, policy in results.policies.items()
        for cell in policy.cells
    }


def without_accuracy(results):
    """Everything that was trained, without seconds and test metrics."""
    return {
        name: [
            (e.planned, e.trained, e.steps, e.loss, e.digest, e.metrics)
            for cell in policy.cells
            for e in cell.epochs
        ]
        for name, policy in results.policies.items()
    }


def test_changing_test_labels_changes_the_test_metric_alone(cluster, folder):
    """With validation rows of each kind; their accuracy is that of every epoch."""
    given = {
        "none": [],
        "path": [f"validation={{path: {folder}/validation.parquet, label: kind}}"],
        "target": ["validation=0.3"],
        "pool": ["validation=0.3", "target=null"],
    }
    policies = ("full",)
    before = {name: compare(flow(folder, *more), policies, 1, folder / name) for name, more in given.items()}
    test = pq.read_table(folder / "test.parquet")
    turned = (test["kind"].to_numpy() + 1) % 3
    pq.write_table(test.set_column(1, "kind", [turned]), folder / "test.parquet")
    for name, more in given.items():
        after = compare(flow(folder, *more), policies, 1, folder / f"{name} again")
        assert without_accuracy(after) == without_accuracy(before[name])
        for policy, (curve, end) in accuracies(after).items():
            assert end < 0.5 < accuracies(before[name])[policy][1]
            if name == "none":
                assert curve == [None, None]
            else:
                assert curve == accuracies(before[name])[policy][0] and curve[-1] > 0.5
    counts = {
        name: (r.data.pool, r.data.target, r.data.validation, r.data.validation_from)
        for name, r in before.items()
    }
    assert counts["none"] == (300, 80, 0, None) and counts["path"] == (300, 80, 45, None)
    assert counts["target"][0] == 300 and sum(counts["target"][1:3]) == 80 and counts["target"][3] == "target"
    assert counts["pool"][0] + counts["pool"][2] == 300 and counts["pool"][3] == "pool"
    # All policies of a comparison train on the same rows, none of which is a validation row.
    assert before["pool"].rows == counts["pool"][0]
    assert "validation rows" in (folder / "target" / "compare.html").read_text()
