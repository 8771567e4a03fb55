"""The mean losses over the epochs, of complete and of resumed runs, in a loop and under a framework."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raysel
from raysel.train import loops
from raysel.train.adapters.driven import Driven
from raysel.train.mean_losses import MeanLosses
from raysel.train.settings import Train
from raysel.train.tasks import Classification
from tests.train.rows import config, linear, stored

N, EPOCHS = 40, 5


def losses_of(session, batch):
    losses = batch.data.float() + 10.0 * session.epoch
    losses[batch.data == 7] = torch.nan
    return losses


def started(policy, folder=None):
    dynamic = raysel.DynamicSelection.local(policy, N, num_epochs=EPOCHS, checkpoints=folder)
    dynamic.mean_losses = MeanLosses()
    return dynamic


def in_a_loop(folder, stop, policy):
    """Train up to the epoch ``stop``; the loss is a function of the sample and the epoch."""
    session = started(policy, folder).session()
    session.restore({"position": Position()})
    for epoch in session.epochs():
        for batch in session.loader(torch.arange(N), batch_size=8):
            session.loss(batch, losses_of(session, batch))
        session.report(state={"position": Position()})
        if epoch + 1 == stop:
            break
    return session.mean_losses.table(session)


def under_a_framework(folder, stop, policy):
    """Train as the adapters of frameworks do, which keep the checkpoints themselves."""
    driven = Driven(started(policy), folder if folder.is_dir() else None)
    while not driven.is_over:
        for batch in driven.loader(torch.arange(N), batch_size=8):
            driven.session.loss(batch, losses_of(driven.session, batch))
        driven.end_epoch()
        driven.save(folder)
        if driven.session.epoch == stop:
            break
    return driven.session.mean_losses.table(driven.session)


class Position:
    """An object of the user with a state, which is saved next to the mean losses."""

    def state_dict(self):
        return {"position": 1}

    def load_state_dict(self, state):
        assert state == {"position": 1}


@pytest.mark.parametrize("train", [in_a_loop, under_a_framework])
def test_a_resumed_run_has_the_mean_of_an_uninterrupted_one(tmp_path, train):
    for name, policy in (("full", raysel.FullData()), ("some", raysel.RandomSubset(0.5))):
        whole = train(tmp_path / f"{name}-whole", EPOCHS, policy)
        for stop in (1, 3, EPOCHS):
            train(tmp_path / f"{name}-{stop}", stop, policy)
            again = train(tmp_path / f"{name}-{stop}", EPOCHS, policy)
            np.testing.assert_array_equal(again["loss"].to_numpy(), whole["loss"].to_numpy())
    full = train(tmp_path / "again", EPOCHS, raysel.FullData())
    ids = np.arange(N)
    assert full["sample_id"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(full["loss"].to_numpy(), np.where(ids == 7, np.nan, ids + 20.0))


def test_a_checkpoint_without_mean_losses_begins_them_and_one_with_them_suits_a_session_without(tmp_path):
    policy = raysel.FullData()
    plain = raysel.DynamicSelection.local(policy, N, num_epochs=EPOCHS, checkpoints=tmp_path).session()
    for _ in plain.epochs():
        for batch in plain.loader(torch.arange(N), batch_size=8):
            plain.loss(batch, losses_of(plain, batch))
        plain.report(state={"position": Position()})
        if plain.epoch == 3:
            break
    full = in_a_loop(tmp_path, EPOCHS, policy)
    ids = np.arange(N)
    np.testing.assert_allclose(full["loss"].to_numpy(), np.where(ids == 7, np.nan, ids + 35.0))
    again = raysel.DynamicSelection.local(policy, N, num_epochs=EPOCHS, checkpoints=tmp_path).session()
    assert again.restore({"position": Position()}) and again.mean_losses is None


def test_a_loop_of_the_user_writes_the_mean_over_the_epochs(tmp_path):
    place = stored(tmp_path)
    ids = np.arange(24)

    def loop(given):
        session = given["dynamic"].session()
        for _ in session.epochs():
            for batch in given["data"].batches(session, given["task"].collate, batch_size=5, accumulate=1):
                session.loss(batch, torch.as_tensor(batch.ids) + 10.0 * session.epoch)
            session.report()
        return {"accuracy": 0.5}

    settings = Train(batch_size=5, epochs=4, loop="mine.py:loop")
    made = config(
        place, Classification("x", "kind"), linear, settings, loop=loop, losses=tmp_path / "own.parquet"
    )
    made["dynamic"] = raysel.DynamicSelection.local(raysel.FullData(), 24, num_epochs=4)
    loops.own(made)
    found = pq.read_table(tmp_path / "own.parquet")
    assert found["sample_id"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(found["loss"].to_numpy(), ids + 15.0)


def test_an_epoch_counts_once_and_on_rank_0():
    given = [[1.0, np.nan], [3.0, 5.0]]
    session = SimpleNamespace(rank=0, epoch=0)
    session.losses = lambda: table_of(given[session.epoch - 1])
    mean, other = MeanLosses(), MeanLosses()
    assert np.isnan(mean.table(session)["loss"].to_numpy()).all()
    for session.epoch in (0, 1, 1, 2, 2):
        mean.add(session)
        other.add(SimpleNamespace(rank=1, epoch=session.epoch))
    assert mean.table(session)["loss"].to_pylist() == pytest.approx([2.0, 5.0])
    assert other.epochs == 0


def table_of(values):
    return pa.table({"sample_id": np.arange(len(values)), "loss": np.array(values, np.float32)})
