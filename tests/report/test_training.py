"""The results of a training without a workflow: its ledger, and its report from a file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import raysel
from raysel.cli import cli
from raysel.errors import DataError, StateError
from raysel.report.results import RunResults


def trained(chosen, policy=None, epochs=3):
    dynamic = raysel.DynamicSelection.local(policy or raysel.RandomSubset(0.5), chosen, num_epochs=epochs)
    session = dynamic.session()
    for epoch in session.epochs():
        for batch in session.loader(np.arange(40.0), batch_size=4):
            session.loss(batch, torch.ones(len(batch.ids)))
        session.report({"rmse": math.inf if epoch == 1 else 2.0 - epoch, "note": "text", "list": [1]})
    return dynamic


def test_a_plain_training_has_a_ledger_and_a_report(tmp_path):
    dynamic = trained(40)
    results = raysel.training_results(
        dynamic, {"rmse": 0.25, "mae": math.nan}, name="flights", metric="rmse", direction="min"
    )
    history = dynamic.made.history
    (entry,) = results.ledger.entries
    assert (entry.samples_backward, entry.steps, entry.epochs, entry.rows) == (60, 15, 3, 40)
    assert results.ledger.saving_samples("chain") == 0.5 and results.ledger.full_samples == 120
    assert entry.seconds["selection"] == 0.0 and entry.seconds["other"] is None
    assert entry.total_seconds is None
    assert entry.seconds["planning"] + entry.seconds["training"] == pytest.approx(
        sum(e["seconds"] for e in history)
    )
    assert results.score("chain") == 0.25 and results.arms["chain"].metrics["mae"] is None
    assert [epoch.metrics for epoch in results.arms["chain"].epochs] == [
        {"rmse": 2.0},
        {"rmse": None},
        {"rmse": 0.0},
    ]
    assert [epoch.digest for epoch in results.arms["chain"].epochs] == [e["digest"] for e in history]

    file = results.save(tmp_path / "mine.json")
    assert RunResults.load(file) == results
    done = CliRunner().invoke(cli, ["report", str(file)])
    assert done.exit_code == 0 and str(tmp_path / "mine.html") in done.output
    page = (tmp_path / "mine.html").read_text()
    assert "flights" in page and "RMSE" in page and "50" in page
    with pytest.raises(DataError, match="accuracy must be between 0 and 1"):
        raysel.training_results(dynamic, {"accuracy": 3.0})


def test_a_selection_counts_against_its_pool_and_its_cost_is_not_measured():
    chosen = raysel.Selection.of(np.arange(0, 40, 2), info={"pool_rows": 40})
    dynamic = trained(chosen, raysel.FullData(), epochs=2)
    history, dynamic.made = dynamic.made.history, None
    with pytest.raises(StateError, match="No epoch has ended in this process"):
        raysel.training_results(dynamic)
    results = raysel.training_results(dynamic, history=history)
    (entry,) = results.ledger.entries
    assert results.data.pool == 40 and results.ledger.saving_samples("chain") == 0.5
    assert entry.seconds["selection"] is None and results.score("chain") is None
