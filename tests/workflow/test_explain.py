"""What explain prints of a selection, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

import raysel
from raysel.errors import ConfigError, RunError
from raysel.report.results import Arm, Epoch
from raysel.workflow import explain as module
from raysel.workflow.explain import explain
from tests.train.rows import logged


@pytest.fixture
def selection(monkeypatch):
    dropped = pa.table(
        {"sample_id": [1, 2, 4, 5], "score": [0.5, 0.25, None, 0.1], "reason": ["far", "far", "near", "far"]}
    )
    info = {"pool_rows": 6, "score": "closeness"}
    made = raysel.Selection.of([0, 3], score=[2.0, 3.0], reason="close", dropped=dropped, info=info)
    monkeypatch.setattr(module, "_results", lambda run: SimpleNamespace(arms={}, selection=None))
    monkeypatch.setattr(module, "_selection", lambda run, results: made)
    return made


def test_one_row_is_explained_whatever_number_is_given(selection):
    assert explain("run", 3) == "sample_id 3 was selected: close.\n  weight: 1\n  score: 3 (closeness)"
    assert explain("run", 1) == "sample_id 1 was dropped: far.\n  score: 0.5 (closeness)"
    for strange in (6, -1, 2**63, -(2**63) - 1, 10**30):
        with pytest.raises(
            ConfigError, match=rf"No reason is recorded for sample_id {strange}\. Either the pool of 6 rows"
        ):
            explain("run", strange)
    for wrong in ("3", 1.5, True, [3]):
        with pytest.raises(ConfigError, match="sample must be a whole number, got"):
            explain("run", wrong)


def test_examples_of_dropped_rows_are_listed_by_reason(selection):
    assert explain("run", dropped=2).splitlines() == [
        "Dropped: 4 rows",
        "  3  far",
        "    sample_id 1, score 0.5",
        "    sample_id 2, score 0.25",
        "  1  near",
        "    sample_id 4",
    ]
    for wrong in (0, -1, "2", 1.5):
        with pytest.raises(ConfigError, match="dropped must be a whole number of at least 1, got"):
            explain("run", dropped=wrong)
    with pytest.raises(ConfigError, match="The arguments sample and dropped cannot be given together"):
        explain("run", 3, 2)


def test_selectors_that_list_no_dropped_rows(monkeypatch):
    made = raysel.Selection.of([0, 3], info={"pool_rows": 6})
    monkeypatch.setattr(module, "_results", lambda run: SimpleNamespace(arms={}, selection=None))
    monkeypatch.setattr(module, "_selection", lambda run, results: made)
    with pytest.raises(ConfigError, match="does not list the rows that it dropped"):
        explain("run", dropped=3)
    with pytest.raises(ConfigError, match="dropped and the selector does not list"):
        explain("run", 1)


def test_the_epochs_that_trained_a_row_are_listed(monkeypatch, tmp_path):
    epochs = tuple(Epoch(number, 3, 3, 1) for number in range(3))
    arm = Arm("chain", "random + InfoBatch", 3, epochs, folder="steps/train-chain-0")
    for number, ids in enumerate(([0, 3, 4], [3, 4], [4])):
        losses = np.array([0.25 * (number + 1)] * len(ids), np.float32)
        losses[np.array(ids) == 4] = (np.inf, np.nan, 1)[number]
        weights = np.array([1.5] * len(ids), np.float32)
        logged(tmp_path / arm.folder, np.array(ids), losses, number, weights)
    results = SimpleNamespace(arms={"chain": arm}, selection=None)
    monkeypatch.setattr(module, "_results", lambda run: results)
    assert explain(tmp_path, 3) == (
        "sample_id 3 was trained in 2 of the 3 epochs of 'random + InfoBatch':\n"
        "  epoch 0: loss 0.25, weight 1.5\n  epoch 1: loss 0.5, weight 1.5"
    )
    assert explain(tmp_path, 4).splitlines() == [
        "sample_id 4 was trained in 2 of the 3 epochs of 'random + InfoBatch':",
        "  epoch 0: loss inf, weight 1.5",
        "  epoch 1: planned, but no loss was recorded, weight 1.5",
        "  epoch 2: loss 1, weight 1.5",
    ]
    none = "sample_id 9 was trained in none of the 3 epochs of 'random + InfoBatch', or the pool has no such row."
    assert explain(tmp_path, 9) == none
    assert explain(tmp_path, 2**70).startswith(f"sample_id {2**70} was trained in none of")
    for call in ({}, {"dropped": 3}):
        with pytest.raises(RunError, match="has no selection, because it trained on the complete pool"):
            explain(tmp_path, **call)
    made = raysel.Selection.of(
        [3, 5], reason="close", dropped=pa.table({"sample_id": [0], "reason": ["far"]})
    )
    monkeypatch.setattr(module, "_selection", lambda run, results: made)
    assert explain(tmp_path, 0) == "sample_id 0 was dropped: far."
    assert (
        explain(tmp_path, 5)
        .splitlines()[-1]
        .endswith("was trained in 0 of the 3 epochs of 'random + InfoBatch'.")
    )
    assert explain(tmp_path, 3).splitlines()[-1] == "  epoch 1: loss 0.5, weight 1.5"
    outside = tmp_path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (tmp_path / "steps" / "train-chain-1").mkdir()
    (tmp_path / "steps" / "train-chain-1" / "epochs").symlink_to(outside)
    results.arms["chain"] = replace(arm, folder="steps/train-chain-1")
    with pytest.raises(RunError, match="names a folder outside"):
        explain(tmp_path, 3)
    monkeypatch.setattr(module, "_selection", lambda run, results: None)
    results.arms["chain"] = replace(arm, folder="")  # as results of an earlier version have it
    with pytest.raises(RunError, match="has no selection"):
        explain(tmp_path, 3)
    results.arms["chain"] = replace(arm, folder="../elsewhere")
    with pytest.raises(RunError, match="names a folder outside"):
        explain(tmp_path, 3)
