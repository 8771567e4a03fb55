"""Checkpoints in one process: within an epoch, of other sizes, damaged; always the run that nobody disturbed."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from raysel import DynamicSelection, FullData, InfoBatch, RoundRobin
from raysel.dynamic.plan import CHUNK
from raysel.errors import StateError
from raysel.train import checkpoint
from raysel.train.checkpoint_store import FolderStore
from raysel.train.communicator import Communicator
from raysel.train.session import Session
from tests.train import common
from tests.train.common import Numbers

KEYS = ("epoch", "planned", "trained", "steps", "observed", "nonfinite", "mean_loss", "digest")


class Together(Numbers):
    """Handed out a batch at a time."""

    def __getitems__(self, rows: list[int]) -> list[int]:
        return rows


def loss_of(ids: torch.Tensor, epoch: int) -> torch.Tensor:
    return torch.where(ids % 97 == 5, torch.tensor(math.nan), common.loss_of(ids, epoch))


class Killed(Exception):
    pass


def train(session, n, *, batch_size=16, save_at=(), kill_at=None, marks=None, **options):
    """Losses are a function of id and epoch; checkpoints after the (epoch, step) in ``save_at``."""
    model = torch.nn.Linear(1, 1)
    session.restore({"model": model})
    for epoch in session.epochs():
        for batch in session.loader(Together(n), batch_size=batch_size, **options):
            session.loss(batch, loss_of(batch.data, epoch))
            if marks is not None:
                marks.append((epoch, session.step, session.progress, batch.ids.tolist()))
            if (epoch, session.step) in save_at:
                session.checkpoint(state={"model": model})
            if (epoch, session.step) == kill_at:
                raise Killed
        session.report(state={"model": model})
    return session


def outcome(history, *without):
    return [[entry[key] for key in KEYS if key not in without] for entry in history]


@pytest.mark.parametrize("policy", [InfoBatch(0.6, 0.9), RoundRobin(0.4)], ids=str)
@pytest.mark.parametrize("batch_size", [16, 7, 40])
def test_a_run_goes_on_in_mid_epoch_with_any_batch_size(tmp_path, policy, batch_size):
    def session(place):
        return DynamicSelection.local(policy, 200, num_epochs=5, seed=2, checkpoints=place).session()

    whole = []
    history = train(session(tmp_path / "a"), 200, marks=whole).history
    assert outcome(history) == outcome(
        train(session(tmp_path / "c"), 200, save_at=[(2, 2), (2, 4), (3, 1)]).history
    ), "calling it changes nothing"
    with pytest.raises(Killed):
        train(session(tmp_path / "b"), 200, save_at=[(2, 3)], kill_at=(2, 5))
    rest = []
    resumed = session(tmp_path / "b")
    assert resumed.epoch == 2
    train(resumed, 200, batch_size=batch_size, marks=rest)
    assert outcome(resumed.history, "steps") == outcome(history, "steps")
    before = [mark for mark in whole if mark[:2] <= (2, 3)]
    for epoch in range(2, 5):  # each sample of a plan once, whoever trained on it
        ids = [i for mark in before + rest if mark[0] == epoch for i in mark[3]]
        assert sorted(ids) == sorted(i for mark in whole if mark[0] == epoch for i in mark[3])
    assert rest[0][:2] == (2, 4) and rest[-1][2] == 1.0
    progress = [mark[2] for mark in before + rest]
    assert progress == sorted(progress) and len(set(progress)) == len(progress)
    if batch_size == 16:
        assert before + rest == whole  # the very batches, steps and progress
        assert outcome(resumed.history) == outcome(history)


def test_a_checkpoint_after_the_last_step_of_an_epoch_leaves_nothing_to_train(tmp_path):
    def session():
        return DynamicSelection.local(FullData(), 50, num_epochs=2, checkpoints=tmp_path).session()

    with pytest.raises(Killed):
        train(session(), 50, batch_size=10, save_at=[(0, 5)], kill_at=(0, 5))
    marks = []
    history = train(session(), 50, batch_size=10, marks=marks).history
    assert [m[:2] for m in marks] == [(1, s) for s in range(1, 6)]
    assert [(e["trained"], e["observed"] + e["nonfinite"], e["steps"]) for e in history] == [(50, 50, 5)] * 2


def test_max_steps_counts_the_steps_before_the_checkpoint(tmp_path):
    def session():
        return DynamicSelection.local(
            FullData(), 64, num_epochs=9, max_steps=6, checkpoints=tmp_path
        ).session()

    with pytest.raises(Killed):
        train(session(), 64, save_at=[(1, 1)], kill_at=(1, 1))
    resumed = train(session(), 64)
    assert [e["steps"] for e in resumed.history] == [4, 2] and resumed.progress == 1.0


def weights(place, *, save=None, kill=None, spoil=None, workers=0):
    """Real losses, dropout and momentum; the parameters after the run, None where it was killed."""
    inputs = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(inputs, torch.arange(300) % 3)
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objects = {"model": model, "optimizer": optimizer}
    session = DynamicSelection.local(InfoBatch(), 300, num_epochs=4, checkpoints=place).session()
    session.restore(objects)
    for epoch in session.epochs():
        for batch in session.loader(data, batch_size=32, num_workers=workers):
            x, y = batch.data
            loss = session.loss(batch, F.cross_entropy(model(x), y, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (epoch, session.step) in (save or ()):
                session.checkpoint(state=objects)
            if (epoch, session.step) == kill:
                if spoil:
                    spoil(place)
                return None, session.history
        session.report(state=objects)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), session.history


def test_a_run_that_goes_on_in_mid_epoch_is_bit_equal_in_its_weights(tmp_path):
    whole, history = weights(tmp_path / "a")
    saved, _ = weights(tmp_path / "c", save=[(0, 4), (1, 2), (3, 1)])
    assert torch.equal(saved, whole)
    assert weights(tmp_path / "b", save=[(2, 2), (2, 4)], kill=(2, 5))[0] is None
    assert json.loads((tmp_path / "b" / "last" / "session.json").read_text())["within"]["steps"] == 4
    resumed, again = weights(tmp_path / "b")
    assert torch.equal(resumed, whole) and outcome(again) == outcome(history)


# ---- damage


def spoil(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


FILES = ["objects.pt", "session.json", "selection-0-of-1.arrow", "staged-0-of-1.arrow", "files-0-of-1.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "bit"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_model_included(tmp_path, caplog, name, how):
    whole, history = weights(tmp_path / "a")

    def damage(place):
        spoil(place / "last" / name, "gone" if (how, name) == ("cut", "staged-0-of-1.arrow") else how)

    assert weights(tmp_path / "b", save=[(2, 3)], kill=(2, 4), spoil=damage)[0] is None
    with caplog.at_level(logging.WARNING, logger="raysel"):
        resumed, again = weights(tmp_path / "b")
    said = [record.message for record in caplog.records if record.name == "raysel"]
    assert len(said) == 1 and "last is damaged (" in said[0]
    assert said[0].endswith(
        "The run resumes at epoch 2: the model and the selection state are restored from the checkpoint before the damaged one."
    )
    assert torch.equal(resumed, whole) and outcome(again) == outcome(history)


def test_with_no_whole_checkpoint_it_fails_and_says_so(tmp_path):
    weights(tmp_path, save=[(2, 3)], kill=(2, 4))
    for place in ("last", "before"):
        spoil(tmp_path / place / "objects.pt", "cut")
    with pytest.raises(
        StateError, match=r"damaged \(objects.pt has \d+ bytes instead of \d+\). There is no earlier complete"
    ):
        weights(tmp_path)


# ---- several ranks, which write it together


class Ranks(Communicator):
    """One of several workers, threads of this process."""

    def __init__(self, rank, world, meeting, table) -> None:
        self.rank, self.world, self._meeting, self._table = rank, world, meeting, table

    def broadcast(self, value):
        if self.rank == 0:
            self._table["told"] = value
        self._meeting.wait()
        told = self._table["told"]
        self._meeting.wait()
        return told

    def barrier(self):
        self._meeting.wait()


class OneAtATime:
    """Calls of a keeper from several threads, one at a time as an actor takes them."""

    def __init__(self, keeper) -> None:
        self._keeper, self._lock = keeper, threading.Lock()

    def __getattr__(self, name):
        def call(*args):
            with self._lock:
                return getattr(self._keeper, name)(*args)

        return call


def together(dynamic, directory, world, work):
    """``work(session)`` in every rank; what they answer, or the first error."""
    keeper = OneAtATime(dynamic._keeper)
    meeting, table, answers = threading.Barrier(world, timeout=60), {}, [None] * world

    def one(rank):
        try:
            ranks = Ranks(rank, world, meeting, table)
            answers[rank] = work(Session(dynamic.run, keeper, ranks, FolderStore(directory), None, None))
        except BaseException as error:
            answers[rank] = error
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize(
    ("shards", "world", "later_shards", "later_world"), [(1, 2, 3, 1), (3, 3, 2, 2), (2, 1, 1, 4)]
)
def test_other_numbers_of_shards_and_workers_go_on_in_mid_epoch(
    tmp_path, shards, world, later_shards, later_world
):
    n, size = 2 * CHUNK + 1000, 24_000

    def dynamic(shards):
        return DynamicSelection.local(InfoBatch(0.6), n, num_epochs=3, seed=2, shards=shards)

    alone = train(dynamic(1).session(), n, batch_size=size).history

    def first(session):
        return train(session, n, batch_size=size // world, save_at=[(1, 2)], kill_at=(1, 3))

    def second(session):
        return train(session, n, batch_size=size // later_world).history

    assert all(
        isinstance(a, (Killed, threading.BrokenBarrierError))
        for a in together(dynamic(shards), tmp_path, world, first)
    )
    names = {path.name for path in (tmp_path / "last").iterdir()}
    assert {f"selection-{r}-of-{world}.arrow" for r in range(world)} <= names
    with pa.OSFile(str(tmp_path / "last" / f"selection-0-of-{world}.arrow")) as file:
        assert pa.ipc.open_file(file).read_all().num_rows == (n if world == 1 else CHUNK)
    assert (tmp_path / "last" / f"rng-{world - 1}-of-{world}.pt").exists()
    for history in together(dynamic(later_shards), tmp_path, later_world, second):
        assert outcome(history) == outcome(alone)


def test_more_ranks_than_chunks_of_samples(tmp_path):
    def dynamic():
        return DynamicSelection.local(InfoBatch(), 90, num_epochs=3)

    def kill(session):
        return train(session, 90, batch_size=5, save_at=[(1, 2)], kill_at=(1, 3))

    together(dynamic(), tmp_path, 3, kill)
    spoil(tmp_path / "last" / "rng-2-of-3.pt", "gone")
    alone = train(dynamic().session(), 90, batch_size=15).history
    for history in together(dynamic(), tmp_path, 3, lambda s: train(s, 90, batch_size=5).history):
        assert outcome(history) == outcome(alone)


def test_ranks_may_share_a_directory_and_leave_the_state_to_rank_0(tmp_path):
    n = 2 * CHUNK + 9
    keeper = DynamicSelection.local(FullData(), n, num_epochs=2)._keeper
    keeper.restore("a")
    keeper.update("a", 0, np.arange(5), np.ones(5))
    about = {"run": {"samples": n}, "epoch": 0, "within": {"steps": 1}}
    for rank in (1, 0, 2):
        checkpoint.save(tmp_path, rank, 3, about, {}, keeper, "a", pieces=1)
    read = checkpoint.verified(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.arrow")) == [
        "selection-0-of-1.arrow",
        "staged-0-of-1.arrow",
    ]
    assert checkpoint.StateFiles(tmp_path, read).cut(0, n).digest() == keeper.state("a")[1].digest()
    assert [slots.tolist() for slots, _ in checkpoint.staged(tmp_path, read)] == [list(range(5))]
    spoil(tmp_path / "rng-1-of-3.pt", "bit")
    with pytest.raises(checkpoint.Damaged, match=r"rng-1-of-3\.pt was changed"):
        checkpoint.verified(tmp_path)


def test_ranks_must_call_it_at_the_same_step(tmp_path):
    def work(session):
        return train(session, 90, batch_size=5, save_at=[(0, 2 + session.rank)])

    answers = together(DynamicSelection.local(FullData(), 90, num_epochs=1), tmp_path, 2, work)
    assert any(
        isinstance(a, StateError) and "all ranks must call it at the same step" in str(a) for a in answers
    )


# ---- misuse


def test_a_checkpoint_is_taken_where_a_step_is_over(tmp_path):
    session = DynamicSelection.local(FullData(), 20, num_epochs=1, checkpoints=tmp_path).session()
    with pytest.raises(StateError, match="checkpoint was called outside an epoch"):
        session.checkpoint()
    for epoch in session.epochs():
        with pytest.raises(StateError, match=r"before session\.loss had recorded step 0"):
            session.checkpoint()
        for batch in session.loader(Numbers(20), batch_size=10):
            with pytest.raises(StateError, match=rf"before session\.loss had recorded step {session.step}"):
                session.checkpoint()
            session.loss(batch, loss_of(batch.data, epoch))
            session.checkpoint()
        session.report()


def test_an_epoch_is_visited_in_the_order_it_was_begun_in(tmp_path):
    def session():
        return DynamicSelection.local(FullData(), 40, num_epochs=2, checkpoints=tmp_path).session()

    with pytest.raises(Killed):
        train(session(), 40, shuffle=False, save_at=[(0, 1)], kill_at=(0, 2))
    with pytest.raises(StateError, match="use shuffle=False, as when"):
        train(session(), 40)
    assert len(train(session(), 40, shuffle=False).history) == 2


def test_only_the_state_in_use_is_read(tmp_path):
    n = 2 * CHUNK + 10
    session = DynamicSelection.local(FullData(), n, num_epochs=2, checkpoints=tmp_path).session()
    for epoch in session.epochs():
        if epoch == 1:
            break
        for batch in session.loader(Together(n), batch_size=50_000):
            session.loss(batch, loss_of(batch.data, epoch))
        session.report()
    about = checkpoint.verified(tmp_path / "last")
    files = checkpoint.StateFiles(tmp_path / "last", about)
    whole = session._keeper.state(session._attempt)[1]
    assert len(files) == n and files.cut(0, n).digest() == whole.digest()
    part = files.cut(CHUNK - 5, 2 * CHUNK + 3)
    assert np.array_equal(part.loss, whole.loss[CHUNK - 5 : 2 * CHUNK + 3], equal_nan=True)


# ---- what a review found


class Holds:
    """An object with any state."""

    def __init__(self, **state) -> None:
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def epochs_of(place, objects, count=1):
    session = DynamicSelection.local(FullData(), 12, num_epochs=4, checkpoints=place).session()
    session.restore(objects)
    for epoch in session.epochs():
        for batch in session.loader(Numbers(12), batch_size=4):
            session.loss(batch, loss_of(batch.data, epoch))
        session.report(state=objects)
        if (count := count - 1) == 0:
            return session
    return session


def test_numpy_numbers_in_a_state_come_back_as_numbers(tmp_path):
    epochs_of(tmp_path, {"o": Holds(lr=np.float64(0.25), more=[{"n": np.int32(3)}, (np.bool_(True), "a")])})
    back = Holds()
    assert (
        DynamicSelection.local(FullData(), 12, num_epochs=4, checkpoints=tmp_path)
        .session()
        .restore({"o": back})
    )
    assert back.state == {"lr": 0.25, "more": [{"n": 3}, (True, "a")]} and type(back.state["lr"]) is float


def test_a_state_that_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(StateError, match=r"something other than tensors, numbers and text \(.*pathlib"):
        epochs_of(tmp_path, {"o": Holds(path=tmp_path)})
    assert not (tmp_path / "last").exists()


def test_after_a_fallback_there_is_one_whole_checkpoint_all_the_time(tmp_path, monkeypatch):
    epochs_of(tmp_path, {}, count=2)
    spoil(tmp_path / "last" / "objects.pt", "bit")
    dynamic = DynamicSelection.local(FullData(), 12, num_epochs=4, checkpoints=tmp_path)
    assert dynamic.session().epoch == 1  # went on from the one before, which is the last from here on
    places = FolderStore(tmp_path).places()
    assert [checkpoint.verified(place)["epoch"] for place in places] == [1]
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):  # in the middle of the next save
        epochs_of(tmp_path, {})
    places = FolderStore(tmp_path).places()
    assert [checkpoint.verified(place)["epoch"] for place in places] == [1]


def test_parts_of_two_checkpoints_are_not_taken_for_one(tmp_path):
    n = 2 * CHUNK
    for attempt in ("a", "b"):
        keeper = DynamicSelection.local(FullData(), n, num_epochs=2)._keeper
        keeper.restore(attempt)
        about = {"run": {"samples": n}, "epoch": 0, "within": None}
        for rank in (0, 1) if attempt == "a" else (0,):  # killed before rank 1 wrote its part again
            checkpoint.save(tmp_path, rank, 2, about, {}, keeper, attempt, pieces=2)
        if attempt == "a":
            checkpoint.verified(tmp_path)
    with pytest.raises(checkpoint.Damaged, match="files of rank 1 belong to another checkpoint"):
        checkpoint.verified(tmp_path)
