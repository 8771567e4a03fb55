"""The session in one plain process: every loss finds its sample, and a resumed run is the undisturbed one."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysel import DynamicSelection, FullData, InfoBatch, RoundRobin, Selection
from raysel.dynamic.keeper import Keeper
from raysel.errors import ConfigError, DataError, StateError
from raysel.train import checkpoint
from raysel.train.checkpoint_store import CheckpointStore
from raysel.train.communicator import Communicator
from raysel.train.session import Session
from tests.train.common import Numbers, Ranks, loss_of


class Pairs(Numbers):
    """``dataset[i]`` is (i as a float, i)."""

    def __getitem__(self, i: int) -> tuple[float, int]:
        return float(i), super().__getitem__(i)


def train(dynamic, n, *, batch_size=16, stop=None, check=None, **options):
    """Train on losses that are a function of id and epoch; returns the session."""
    session = dynamic.session()
    model = torch.nn.Linear(1, 1)
    session.restore({"model": model})
    for epoch in session.epochs():
        if epoch == stop:
            return session
        for batch in session.loader(Pairs(n), batch_size=batch_size, **options):
            value, number = batch.data
            real = batch.ids >= 0
            assert torch.equal(batch.ids[real], number[real]) and torch.equal(value.long(), number)
            session.loss(batch, loss_of(number, epoch))
            if check:
                check(session, batch, epoch)
        session.report({}, state={"model": model})
    return session


@pytest.mark.parametrize("workers", [0, 2])
def test_every_loss_reaches_its_own_sample(workers):
    dynamic = DynamicSelection.local(InfoBatch(), 100, num_epochs=4, seed=5)
    train(dynamic, 100, num_workers=workers, persistent_workers=workers > 0)
    keeper: Keeper = dynamic._keeper
    _, state = keeper.state(keeper._attempt)
    # Replayed by hand from the plans: the last epoch in which each sample was planned gives its loss.
    expected = np.full(100, np.nan, np.float32)
    replay = Keeper(InfoBatch(), 100, 4, 5)
    replay.restore("a")
    for epoch in range(4):
        slots = replay.plan("a", epoch).slots
        expected[slots] = loss_of(torch.from_numpy(slots.copy()), epoch).numpy()
        replay.update("a", epoch, slots, expected[slots])
        replay.commit("a", epoch)
    assert np.array_equal(state.loss, expected)


def test_a_selections_ids_and_weights_ride_in_the_batch():
    chosen = Selection.of(
        np.array([3, 40, 41, 77, 90]), weight=np.array([1, 2, 3, 4, 5.0]), info={"pool_rows": 100}
    )
    seen = {}

    def check(session, batch, epoch):
        for i, w, s in zip(batch.ids.tolist(), batch.weights.tolist(), batch.slots.tolist(), strict=True):
            seen[i] = (w, s)

    dynamic = DynamicSelection.local(FullData(), chosen, num_epochs=1)
    train(dynamic, 100, batch_size=3, check=check)
    assert seen == {3: (1, 0), 40: (2, 1), 41: (3, 2), 77: (4, 3), 90: (5, 4)}


@pytest.mark.parametrize(
    ("n", "world", "batch_size"), [(7, 2, 3), (13, 4, 2), (5, 4, 1), (64, 2, 16), (3, 4, 8)]
)
def test_the_mean_over_ranks_is_the_mean_over_the_rows_that_count(n, world, batch_size):
    dynamic, told = DynamicSelection.local(FullData(), n, num_epochs=1), []
    sessions = [
        Session(dynamic.run, dynamic._keeper, Ranks(r, world, told), CheckpointStore(), None, None)
        for r in range(world)
    ]
    loaders = []
    for session in sessions:
        next(session.epochs())
        loaders.append(session.loader(Pairs(n), batch_size=batch_size))
    assert len({len(loader) for loader in loaders}) == 1
    seen = []
    for together in zip(*loaders, strict=True):
        means, rows = [], []
        for session, batch in zip(sessions, together, strict=True):
            losses = batch.data[0].float().clone()
            losses[batch.ids < 0] = math.nan  # what padding computes must not matter
            losses.requires_grad_()
            scalar = session.loss(batch, losses)
            scalar.backward()
            assert torch.isfinite(losses.grad).all()
            real = int((batch.ids >= 0).sum())
            assert len(batch.ids) == min(max(real, 2), batch_size) and (batch.ids[:real] >= 0).all()
            means.append(scalar.item())
            rows += batch.ids[batch.ids >= 0].tolist()
        assert np.mean(means) == pytest.approx(np.mean(rows))
        seen += rows
    assert sorted(seen) == list(range(n))


def test_low_precision_losses_are_taken_and_other_shapes_are_not():
    dynamic = DynamicSelection.local(FullData(), 12, num_epochs=1)
    session = dynamic.session()
    for _ in session.epochs():
        dtypes = [torch.bfloat16, torch.float16, torch.float64]
        for batch, dtype in zip(session.loader(Pairs(12), batch_size=4), dtypes, strict=True):
            for wrong in (torch.tensor(1.0), torch.ones(2, 4), torch.ones(3), torch.ones(0), 1.0):
                with pytest.raises(DataError, match='reduction="none"'):
                    session.loss(batch, wrong)
            assert session.loss(batch, torch.ones(4, dtype=dtype)).item() == 1.0
        session.report()


@pytest.mark.parametrize("policy", [InfoBatch(0.6, 0.9), RoundRobin(0.4)])
def test_a_run_killed_and_resumed_is_the_undisturbed_run(tmp_path, policy):
    def dynamic(place):
        return DynamicSelection.local(policy, 200, num_epochs=6, seed=2, checkpoints=place)

    whole = train(dynamic(tmp_path / "a"), 200).history
    assert train(dynamic(tmp_path / "b"), 200, stop=3).epoch == 3  # killed in epoch 3, its losses half sent
    rest = train(dynamic(tmp_path / "b"), 200)
    keys = ("epoch", "planned", "trained", "steps", "mean_loss", "digest")
    assert [[e[k] for k in keys] for e in rest.history] == [[e[k] for k in keys] for e in whole]
    assert train(dynamic(tmp_path / "b"), 200).epoch == 6  # a finished run trains nothing more


def test_a_resumed_run_is_bit_equal_in_its_weights_too(tmp_path):
    inputs, labels = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3
    data = torch.utils.data.TensorDataset(inputs, labels)

    def run(place, stop=None):
        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        session = DynamicSelection.local(InfoBatch(), 300, num_epochs=5, checkpoints=place).session()
        session.restore({"model": model, "optimizer": optimizer})
        for epoch in session.epochs():
            if epoch == stop:
                return None
            for batch in session.loader(data, batch_size=32):
                x, y = batch.data
                loss = session.loss(batch, F.cross_entropy(model(x), y, reduction="none"))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            session.report(state={"model": model, "optimizer": optimizer})
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = run(tmp_path / "a")
    assert run(tmp_path / "b", stop=2) is None
    assert torch.equal(run(tmp_path / "b"), whole)


def test_progress_runs_from_0_to_1_and_steps_are_known_before_the_epoch():
    marks = []
    dynamic = DynamicSelection.local(RoundRobin(0.5), 64, num_epochs=3)
    session = dynamic.session()
    for _ in session.epochs():
        loader = session.loader(Pairs(64), batch_size=8)
        assert len(loader) == session.steps_per_epoch == 4
        for batch in loader:
            marks.append(session.progress)
            session.loss(batch, torch.ones(8))
        session.report()
    assert marks == pytest.approx(np.arange(1, 13) / 12) and session.progress == 1.0


def test_max_steps_cuts_the_last_epoch():
    dynamic = DynamicSelection.local(FullData(), 64, num_epochs=9, max_steps=10)
    session = train(dynamic, 64, batch_size=16)
    assert [e["steps"] for e in session.history] == [4, 4, 2]
    assert [e["trained"] for e in session.history] == [64, 64, 32] and session.progress == 1.0


def save_once(tmp_path, chosen=50, policy=None, **more):
    """One epoch of a run that keeps its checkpoint in ``tmp_path``; returns a maker of the same run."""

    def make(chosen=chosen, **other):
        return DynamicSelection.local(
            policy or FullData(), chosen, checkpoints=tmp_path, **{"num_epochs": 2, **more, **other}
        )

    dynamic = make()
    model = torch.nn.Linear(1, 1)
    session = dynamic.session()
    for epoch in session.epochs():
        if epoch == 1:
            break
        for batch in session.loader(Pairs(100 if isinstance(chosen, Selection) else chosen), batch_size=10):
            session.loss(batch, loss_of(batch.data[1], epoch))
        session.report(state={"model": model})
    return make


def test_a_checkpoint_of_another_selection_is_refused(tmp_path):
    def some(start, weight):
        return Selection.of(np.arange(start, start + 50), weight=weight, info={"pool_rows": 100})

    make = save_once(tmp_path, some(0, 1.0))
    assert make(some(0, 1.0)).session().epoch == 1
    for other in (some(50, 1.0), some(0, 2.0)):
        with pytest.raises(StateError, match="another run: its chosen"):
            make(other).session()
    with pytest.raises(StateError, match="another run: its max_steps"):
        make(some(0, 1.0), max_steps=3).session()


@dataclass(frozen=True)
class Pair(FullData):
    span: tuple[float, float] = (0.1, 0.2)

    def parameters(self):
        return {"policy": "Pair", "span": self.span}


def test_a_policy_whose_parameters_are_not_quite_json_resumes(tmp_path):
    assert save_once(tmp_path, policy=Pair())().session().epoch == 1


def test_a_process_killed_while_it_saved_goes_on_from_the_checkpoint_before(tmp_path):
    make = save_once(tmp_path)
    (tmp_path / "last").rename(tmp_path / "before")
    (tmp_path / ".partial").mkdir()
    assert make().session().epoch == 1


@pytest.mark.parametrize(
    "name", ["objects.pt", "session.json", "selection-0-of-1.arrow", "rng-0-of-1.pt", "files-0-of-1.json"]
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_said(tmp_path, name, damage):
    make = save_once(tmp_path)
    path = tmp_path / "last" / name
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        StateError, match=r"The checkpoint .* is damaged \(.*There is no earlier complete checkpoint"
    ):
        make().session()


def test_metrics_are_checked_before_the_epoch_is_committed():
    session = DynamicSelection.local(FullData(), 4, num_epochs=1).session()
    for _ in session.epochs():
        for batch in session.loader(Pairs(4), batch_size=4):
            session.loss(batch, torch.ones(4))
        with pytest.raises(ConfigError, match="'steps' is reserved by the session"):
            session.report({"steps": 3})
        with pytest.raises(ConfigError, match="'curve' is a ndarray"):
            session.report({"curve": np.zeros(3)})
        entry = session.report({"loss": torch.tensor(0.5), "lr": np.float32(0.25)})
    assert (entry["loss"], entry["lr"], entry["mean_loss"], entry["observed"]) == (0.5, 0.25, 1.0, 4)


def test_an_epoch_without_a_noted_loss_is_said():
    session = DynamicSelection.local(InfoBatch(), 4, num_epochs=1).session()
    for _ in session.epochs():
        list(session.loader(Pairs(4), batch_size=2))
        with pytest.raises(StateError, match=r"call session.loss\(batch, losses\)"):
            session.report()
        break


def test_a_loader_that_was_replaced_is_refused():
    session = DynamicSelection.local(FullData(), 64, num_epochs=1).session()
    for _ in session.epochs():
        first = session.loader(Pairs(64), batch_size=16)
        second = session.loader(Pairs(64), batch_size=32)
        with pytest.raises(StateError, match="no longer valid"):
            next(iter(first))
        for batch in second:
            assert session.loss(batch, torch.ones(32)).item() == 1.0
        session.report()


def test_all_of_the_random_state_is_restored():
    random.gauss(0, 1)  # keeps a second value for the next call
    saved = checkpoint.get_rng()
    following = random.gauss(0, 1), torch.rand(2).tolist(), np.random.rand()  # noqa: NPY002
    checkpoint.set_rng(saved)
    assert (random.gauss(0, 1), torch.rand(2).tolist(), np.random.rand()) == following  # noqa: NPY002


def test_global_random_state_is_left_alone():
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    train(DynamicSelection.local(InfoBatch(), 50, num_epochs=2), 50)
    # DataLoader itself draws one seed an epoch from torch; nothing else does.
    assert random.getstate() == before[1] and np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_misuse_gets_one_sentence(tmp_path):
    dynamic = DynamicSelection.local(FullData(), 8, num_epochs=2, checkpoints=tmp_path)
    session = dynamic.session()
    with pytest.raises(StateError, match=r"loader was called outside an epoch"):
        session.loader(Pairs(8), batch_size=2)
    for epoch in session.epochs():
        for data, sentence in (
            (Pairs(7), "has 7 samples, but 'chosen' of DynamicSelection is the number 8"),
            (iter([]), "A list_iterator does not support dataset\\[sample_id\\]"),
        ):
            with pytest.raises(DataError, match=sentence):
                session.loader(data, batch_size=2)
        for size in (0, True, 2.0):
            with pytest.raises(ConfigError, match="batch_size"):
                session.loader(Pairs(8), batch_size=size)
        with pytest.raises(DataError, match="sampler= cannot be given"):
            session.loader(Pairs(8), batch_size=2, sampler=None)
        loader = session.loader(Pairs(8), batch_size=2)
        for batch in loader:
            session.loss(batch, torch.ones(2))
        with pytest.raises(StateError, match="were iterated before"):
            list(loader)
        session.report()
        if epoch == 0:
            break
    fresh = dynamic.session()
    with pytest.raises(StateError, match="the model was not restored"):
        next(fresh.epochs())
    with pytest.raises(StateError, match="checkpoint holds nothing, but restore was called with model"):
        fresh.restore({"model": torch.nn.Linear(1, 1)})
    with pytest.raises(StateError, match="another run: its seed is 0, but that of this run is 1"):
        DynamicSelection.local(FullData(), 8, num_epochs=2, seed=1, checkpoints=tmp_path).session()
    (tmp_path / "last" / "selection-0-of-1.arrow").write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(StateError, match="damaged"):
        dynamic.session()
    forgetful = DynamicSelection.local(FullData(), 8, num_epochs=2).session().epochs()
    next(forgetful)
    with pytest.raises(StateError, match=r"ended without session\.report"):
        next(forgetful)
    with pytest.raises(StateError, match="has not been started"):
        DynamicSelection(FullData(), 8, num_epochs=2).session()
    on_a_cluster = DynamicSelection(FullData(), 8, num_epochs=2)
    on_a_cluster._keeper = object()  # as if it was started
    with pytest.raises(StateError, match=r"not a worker of Ray Train; .*use DynamicSelection\.local"):
        on_a_cluster.session()
    with pytest.raises(ConfigError, match="num_epochs"):
        DynamicSelection(FullData(), 8, num_epochs=0)
    with pytest.raises(ConfigError, match="max_steps"):
        DynamicSelection(FullData(), 8, num_epochs=1, max_steps=0)


def test_a_loop_may_write_over_its_losses_and_its_ids():
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    for _ in session.epochs():
        for batch in session.loader(Pairs(8), batch_size=4):
            losses = torch.ones(4)
            batch.ids.zero_()
            session.loss(batch, losses)
            losses.zero_()
        entry = session.report()
    assert entry["mean_loss"] == 1.0 and entry["observed"] == 8


def test_ranks_are_told_little_however_long_the_history(tmp_path, monkeypatch):
    def dynamic():
        return DynamicSelection.local(FullData(), 8, num_epochs=40, checkpoints=tmp_path)

    begun, told = train(dynamic(), 8, stop=30), []
    monkeypatch.setattr(
        Communicator, "broadcast", lambda self, value: told.append(pickle.dumps(value)) or value
    )
    resumed = train(dynamic(), 8, stop=31)
    assert len(begun.history) == 30 and resumed.history[:30] == begun.history and len(resumed.history) == 31
    assert told and max(map(len, told)) < 1000  # beyond which Ray Train warns


def test_progress_ends_at_1_whichever_ends_the_run():
    for steps, epochs in ((1000, 3), (5, 3)):
        session = DynamicSelection.local(FullData(), 8, num_epochs=epochs, max_steps=steps).session()
        seen = []
        for _ in session.epochs():
            for batch in session.loader(Pairs(8), batch_size=4):
                session.loss(batch, torch.ones(4))
                seen.append(session.progress)
            session.report()
        assert seen == sorted(seen) and seen[0] < 0.5 and seen[-1] == 1.0


def test_losses_that_are_not_finite_are_said(caplog):
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    for _ in session.epochs():
        for batch in session.loader(Pairs(8), batch_size=4):
            session.loss(batch, torch.where(batch.ids == 3, torch.nan, 1.0))
        assert session.report()["nonfinite"] == 1
    assert "1 samples of epoch 0 had a loss that is not finite" in caplog.text


def test_processes_that_nobody_joined_are_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started"):
        DynamicSelection.local(FullData(), 8, num_epochs=1).session()
