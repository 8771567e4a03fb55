"""The mean losses over the epochs, of complete and of resumed runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

import raysel
from raysel.train.loops import MeanLosses

N, EPOCHS = 40, 5


def trained(folder, stop, policy):
    """Train up to the epoch ``stop``; the loss is a function of the sample and the epoch."""
    dynamic = raysel.DynamicSelection.local(policy, N, num_epochs=EPOCHS, checkpoints=folder)
    session, mean = dynamic.session(), MeanLosses()
    session.restore({"losses": mean})
    mean.add(session)
    for epoch in session.epochs():
        for batch in session.loader(torch.arange(N), batch_size=8):
            losses = batch.data.float() + 10.0 * epoch
            losses[batch.data == 7] = torch.nan
            session.loss(batch, losses)
        session.report(state={"losses": mean})
        mean.add(session)
        if epoch + 1 == stop:
            break
    return mean.table(session)


def test_a_resumed_run_has_the_mean_of_an_uninterrupted_one(tmp_path):
    for name, policy in (("full", raysel.FullData()), ("some", raysel.RandomSubset(0.5))):
        whole = trained(tmp_path / f"{name}-whole", EPOCHS, policy)
        for stop in (1, 3, EPOCHS):
            trained(tmp_path / f"{name}-{stop}", stop, policy)
            again = trained(tmp_path / f"{name}-{stop}", EPOCHS, policy)
            np.testing.assert_array_equal(again["loss"].to_numpy(), whole["loss"].to_numpy())
    full = trained(tmp_path / "again", EPOCHS, raysel.FullData())
    ids = np.arange(N)
    assert full["sample_id"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(full["loss"].to_numpy(), np.where(ids == 7, np.nan, ids + 20.0))


def test_an_epoch_counts_once_and_on_rank_0():
    given = [[1.0, np.nan], [3.0, 5.0]]
    session = SimpleNamespace(rank=0, epoch=0)
    session.losses = lambda: table_of(given[session.epoch - 1])
    mean, other = MeanLosses(), MeanLosses()
    for session.epoch in (0, 1, 1, 2, 2):
        mean.add(session)
        other.add(SimpleNamespace(rank=1, epoch=session.epoch))
    assert mean.table(session)["loss"].to_pylist() == pytest.approx([2.0, 5.0])
    assert other.epochs == 0


def table_of(values):

    return pa.table({"sample_id": np.arange(len(values)), "loss": np.array(values, np.float32)})
