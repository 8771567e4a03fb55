"""What every epoch trained, of complete and of resumed runs, in a loop and under a framework; the mean losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raysel
from raysel.errors import RunError
from raysel.train import loops
from raysel.train.adapters.driven import Driven
from raysel.train.epoch_log import EPOCHS, EpochLog, mean_losses, sample_epochs
from raysel.train.settings import Train
from raysel.train.tasks import Classification
from tests.train.rows import config, linear, logged, stored

N, EPOCH_COUNT = 40, 5


def losses_of(session, batch):
    losses = batch.data.float() + 10.0 * session.epoch
    losses[batch.data == 7] = torch.nan
    return losses


def started(policy, folder, checkpoints=None):
    dynamic = raysel.DynamicSelection.local(policy, N, num_epochs=EPOCH_COUNT, checkpoints=checkpoints)
    dynamic.epoch_log = EpochLog(folder / EPOCHS)
    return dynamic


def in_a_loop(folder, stop, policy):
    """Train up to the epoch ``stop``; the loss is a function of the sample and the epoch."""
    session = started(policy, folder, folder / "checkpoints").session()
    session.restore({"position": Position()})
    for epoch in session.epochs():
        for batch in session.loader(torch.arange(N), batch_size=8):
            session.loss(batch, losses_of(session, batch))
        session.report(state={"position": Position()})
        if epoch + 1 == stop:
            break


def under_a_framework(folder, stop, policy):
    """Train as the adapters of frameworks do, which keep the checkpoints themselves."""
    saved = folder / "checkpoints"
    driven = Driven(started(policy, folder), saved if saved.is_dir() else None)
    while not driven.is_over:
        for batch in driven.loader(torch.arange(N), batch_size=8):
            driven.session.loss(batch, losses_of(driven.session, batch))
        driven.end_epoch()
        driven.save(saved)
        if driven.session.epoch == stop:
            break


class Position:
    """An object of the user with a state."""

    def state_dict(self):
        return {"position": 1}

    def load_state_dict(self, state):
        assert state == {"position": 1}


@pytest.mark.parametrize("train", [in_a_loop, under_a_framework])
def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(tmp_path, train):
    for name, policy in (("full", raysel.FullData()), ("some", raysel.RandomSubset(0.5))):
        whole = tmp_path / f"{name}-whole"
        train(whole, EPOCH_COUNT, policy)
        for stop in (1, 3, EPOCH_COUNT):
            again = tmp_path / f"{name}-{stop}"
            train(again, stop, policy)
            train(again, EPOCH_COUNT, policy)
            for file in sorted((whole / EPOCHS).iterdir()):
                assert (again / EPOCHS / file.name).read_bytes() == file.read_bytes()
            assert len(list((again / EPOCHS).iterdir())) == EPOCH_COUNT
    found = mean_losses(tmp_path / "full-whole" / EPOCHS, EPOCH_COUNT)
    ids = np.arange(N)
    assert found["sample_id"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(found["loss"].to_numpy(), np.where(ids == 7, np.nan, ids + 20.0))


def test_the_log_has_the_plan_the_losses_and_the_weights(tmp_path):
    chosen = raysel.Selection.of(np.arange(0, 2 * N, 2), weight=np.linspace(1, 2, N, dtype=np.float32))
    dynamic = raysel.DynamicSelection.local(raysel.InfoBatch(0.5, 1.0), chosen, num_epochs=4, seed=1)
    dynamic.epoch_log = EpochLog(tmp_path)
    session, trained = dynamic.session(), {}
    for epoch in session.epochs():
        for batch in session.loader(torch.arange(2 * N), batch_size=8):
            losses = batch.data.float() * (epoch + 1)
            session.loss(batch, losses)
            rows = zip(batch.ids.tolist(), losses.tolist(), batch.weights.tolist(), strict=True)
            for sample, loss, weight in rows:
                trained.setdefault(sample, []).append((epoch, loss, weight))
        session.report()
    for sample in range(2 * N):
        assert sample_epochs(tmp_path, 4, sample) == trained.get(sample, [])
    assert any(len(epochs) < 4 for epochs in trained.values())


def test_a_loop_of_the_user_is_logged(tmp_path):
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
    folder = tmp_path / "own"
    made = config(place, Classification("x", "kind"), linear, settings, loop=loop, epoch_log=folder)
    made["dynamic"] = raysel.DynamicSelection.local(raysel.FullData(), 24, num_epochs=4)
    loops.own(made)
    found = mean_losses(folder, 4)
    assert found["sample_id"].to_pylist() == ids.tolist()
    np.testing.assert_allclose(found["loss"].to_numpy(), ids + 15.0)


@given(st.lists(st.dictionaries(st.integers(0, 9), st.sampled_from([0.5, 1.0, 4.0, np.inf])), max_size=6))
def test_the_mean_is_that_of_the_last_losses(tmp_path_factory, epochs):
    folder = tmp_path_factory.mktemp("log")
    for number, losses in enumerate(epochs):
        ids = np.array(sorted(losses), np.int64)
        logged(folder, ids, np.array([losses[i] for i in ids.tolist()], np.float32), number)
    table = mean_losses(folder / EPOCHS, len(epochs))
    assert table["sample_id"].to_pylist() == sorted({i for losses in epochs for i in losses})
    for row in table.to_pylist():
        last, seen = np.nan, []
        for losses in epochs:
            given_loss = losses.get(row["sample_id"], np.nan)
            last = given_loss if np.isfinite(given_loss) else last
            seen += [last] if np.isfinite(last) else []
        assert row["loss"] == pytest.approx(np.mean(seen) if seen else np.nan, nan_ok=True)


def test_a_missing_or_damaged_file_is_one_sentence(tmp_path):
    logged(tmp_path, np.arange(3), np.ones(3, np.float32))
    with pytest.raises(RunError, match=r"epoch-00001.parquet cannot be read .*which samples epoch 1 trained"):
        mean_losses(tmp_path / EPOCHS, 2)
    (tmp_path / EPOCHS / "epoch-00000.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=r"epoch-00000.parquet cannot be read .*remove the folder"):
        sample_epochs(tmp_path / EPOCHS, 1, 2)
