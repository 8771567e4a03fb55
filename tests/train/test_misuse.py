"""Loops that would mislead: each is answered where it is wrong, with what to write."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray.data
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

import raysel
from raysel import DynamicSelection, FullData, InfoBatch, RandomSubset
from raysel.dynamic.plan import Plan, full
from raysel.dynamic.state import observe
from raysel.errors import ConfigError, DataError, StateError
from raysel.train.session import Session
from tests.train.common import Numbers, loss_of


def some_rows():
    """A Ray Dataset that was never made: nothing may be read from it."""
    rows = ray.data.Dataset.__new__(ray.data.Dataset)
    rows._current_executor = None
    return rows


def train(dynamic, n=8, stop=None, batch_size=4) -> Session:
    session = dynamic.session()
    session.restore({})
    for epoch in session.epochs():
        if epoch == stop:
            break
        for batch in session.loader(Numbers(n), batch_size=batch_size):
            session.loss(batch, loss_of(batch.data, epoch))
        session.report()
    return session


# ---- loops


@pytest.mark.parametrize("policy", [RandomSubset(0.5), InfoBatch()])
def test_an_epoch_without_a_batch_of_the_plan(policy):
    session = DynamicSelection.local(policy, 40, num_epochs=3).session()
    for _ in session.epochs():
        for _ in DataLoader(Numbers(40), batch_size=16, shuffle=True):
            pass
        with pytest.raises(StateError, match=r"No batch of the plan of epoch 0 .* DataLoader of your own"):
            session.report()
        session.loader(Numbers(40), batch_size=16)  # made, and not iterated
        with pytest.raises(StateError, match="No batch of the plan of epoch 0"):
            session.report()
        break


def test_a_session_is_used_once(tmp_path, caplog):
    dynamic = DynamicSelection.local(FullData(), 8, num_epochs=2, checkpoints=tmp_path)
    session = train(dynamic)
    with pytest.raises(
        StateError, match=r"its last epoch, 1, has been trained. Make a new session with dynamic.session"
    ):
        next(session.epochs())
    assert "finished run" not in caplog.text
    again = train(dynamic)  # resumes the finished run
    assert len(again.history) == 2
    assert (
        "finished run (2 of 2 epochs, 4 steps), so there is nothing left to train. Give a larger num_epochs"
        in caplog.text
    )
    session = train(
        DynamicSelection.local(FullData(), 8, num_epochs=3), stop=1
    )  # a cell that was interrupted
    with pytest.raises(StateError, match=r"Epoch 1 of this session ended before session\.report"):
        next(session.epochs())
    fresh = DynamicSelection.local(FullData(), 8, num_epochs=2)
    for _ in range(2):  # without checkpoints a new session starts again
        assert [entry["epoch"] for entry in train(fresh).history] == [0, 1]


def test_epochs_may_be_left_between_two_epochs_and_continued():
    session = DynamicSelection.local(FullData(), 8, num_epochs=3).session()
    for _ in range(3):
        for _ in session.epochs():
            for batch in session.loader(Numbers(8), batch_size=8):
                session.loss(batch, torch.ones(8))
            session.report()
            break
    assert [entry["epoch"] for entry in session.history] == [0, 1, 2]


def test_two_losses_for_a_batch():
    session = DynamicSelection.local(FullData(), 12, num_epochs=1).session()
    for _ in session.epochs():
        for batch in session.loader(Numbers(12), batch_size=4, shuffle=False):
            with pytest.raises(DataError, match=r'reduction="none"'):
                session.loss(batch, torch.tensor(1.0))  # records nothing
            session.loss(batch, torch.ones(4))
            for same in (batch, batch.to("cpu")):
                with pytest.raises(
                    StateError, match=f"second time for one batch .* first sample_id is {batch.ids[0]}"
                ):
                    session.loss(same, torch.full((4,), 2.0))
        assert session.report()["mean_loss"] == 1.0


def test_what_is_given_to_loss_in_place_of_the_batch():
    session = DynamicSelection.local(FullData(), 4, num_epochs=1).session()
    for _ in session.epochs():
        (batch,) = session.loader(Numbers(4), batch_size=4)
        with pytest.raises(
            DataError, match=r"must be the Batch .* got a Tensor; give the batch itself, not batch.data"
        ):
            session.loss(batch.data, torch.ones(4))
        break


@pytest.mark.parametrize("kept", [1, 3])
def test_a_collate_function_that_drops_samples(kept):
    session = DynamicSelection.local(FullData(), 4, num_epochs=1).session()
    for _ in session.epochs():
        for batch in session.loader(
            Numbers(4), batch_size=4, collate_fn=lambda rows: default_collate(rows[:kept])
        ):
            with pytest.raises(DataError, match="collate_fn must keep every sample"):
                session.loss(batch, batch.data.float())
        break


class InOrder(IterableDataset):
    def __iter__(self):
        return iter(range(8))

    def __len__(self):
        return 8


def test_data_that_cannot_be_read_by_number():
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    next(session.epochs())
    for data in (
        InOrder(),
        DataLoader(Numbers(8)),
        iter(range(8)),
        {1, 2},
        some_rows(),
    ):
        with pytest.raises(
            DataError, match=rf"A {type(data).__name__} does not support dataset\[sample_id\].*in a list"
        ):
            session.loader(data, batch_size=2)


def test_data_whose_items_are_not_samples():
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    next(session.epochs())
    for data in (
        pd.DataFrame(np.zeros((8, 8))),  # whose items are its columns
        pd.Series(range(8), index=range(8)[::-1]),  # whose items have labels
        pa.table({str(at): range(8) for at in range(8)}),
        {"x": range(8), "y": range(8)},
    ):
        with pytest.raises(
            DataError, match=rf"^loader: {type(data).__name__}\[sample_id\] returns a column, a part"
        ):
            session.loader(data, batch_size=2)
    assert len(session.loader({at: float(at) for at in range(8)}, batch_size=2)) == 4


def test_options_that_a_data_loader_does_not_take():
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    next(session.epochs())
    for more, sentence in (
        (
            {"num_workers": -1},
            r"loader: The DataLoader does not accept its options \(num_workers option should",
        ),
        ({"workers": 2}, r"does not accept its options \(DataLoader.__init__\(\) got an unexpected"),
        ({"collate_fn": "stack"}, "loader: collate_fn must be a function of a list of samples, got 'stack'"),
    ):
        with pytest.raises(DataError, match=sentence):
            session.loader(Numbers(8), batch_size=2, **more)


@pytest.mark.parametrize(
    "lengths",
    [[1, 2], np.ones((8, 2), int), np.ones(8), ["a"] * 8, [None] * 8],
    ids=["few", "2-d", "float", "text", "none"],
)
def test_lengths_that_are_not_one_number_per_sample(lengths):
    session = DynamicSelection.local(FullData(), 8, num_epochs=1).session()
    next(session.epochs())
    with pytest.raises(
        DataError, match="lengths must be one whole number per sample of the dataset, 8 in all"
    ):
        session.loader(Numbers(8), batch_size=2, lengths=lengths)


def test_an_order_grouped_by_length_resumes_with_the_same_lengths_only(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 100, 50)

    def run(stop=None, lengths=lengths):
        chosen = raysel.Selection.of(np.arange(1, 50), info={"pool_rows": 50})
        session = DynamicSelection.local(
            InfoBatch(), chosen, num_epochs=2, seed=1, checkpoints=tmp_path / "run"
        ).session()
        session.restore({})
        found = []
        for epoch in session.epochs():
            for batch in session.loader(Numbers(50), batch_size=8, lengths=lengths):
                found.append(batch.ids.tolist())
                session.loss(batch, loss_of(batch.data, epoch))
                if (epoch, session.step) == stop:
                    session.checkpoint()
                    return found
            session.report()
        return found

    begun = run((1, 2))
    for other in (None, lengths + 1):
        with pytest.raises(StateError, match="use the same lengths, as when"):
            run(lengths=other)
    both = begun + run(lengths=lengths.astype(np.uint8))
    (tmp_path / "run").rename(tmp_path / "before")
    assert run() == both
    spread = [np.ptp(lengths[ids]) for ids in both if len(ids) == 8]
    assert len(spread) == 12 - 2 and np.mean(spread) < 60 < np.ptp(lengths)


# ---- numbers and arguments


def test_numpy_numbers_are_numbers(tmp_path):
    dynamic = DynamicSelection.local(
        InfoBatch(np.float32(0.5), delta=np.float64(0.75)),
        np.int64(8),
        num_epochs=np.int64(2),
        seed=np.uint8(3),
        max_steps=np.int32(7),
        shards=np.int64(1),
        checkpoints=tmp_path,
    )
    session = dynamic.session()
    session.restore({})
    for epoch in session.epochs():
        for batch in session.loader(
            Numbers(8), batch_size=np.int64(2), accumulate=np.int8(2), shuffle=np.True_
        ):
            session.loss(batch, loss_of(batch.data, epoch))
            session.checkpoint() if session.step == 1 and session.current.noted == 2 else None
        session.report({"rate": np.float32(0.5)})
    assert [entry["steps"] for entry in train(dynamic).history] == [2, 2]


@pytest.mark.parametrize(
    ("chosen", "advice"),
    [
        ([3, 1, 2], r"got a list; make a Selection of ids with raysel.Selection.of\(ids"),
        (np.arange(100_000), "got a ndarray; make a Selection"),
        (torch.arange(3), "got a Tensor; make a Selection"),
        (pd.Series([1, 2]), "got a Series; make a Selection"),
        (pa.chunked_array([[1], [2]]), "got a ChunkedArray; make a Selection"),
        (some_rows(), r"got a Dataset; give rows.count\(\)"),
        (Numbers(3), r"got a Numbers; give len\(dataset\)"),
        (8.0, "got a float"),
        (True, "number of samples must be a whole number"),
        (0, "number of samples must be a whole number"),
    ],
    ids=["list", "array", "tensor", "series", "arrow", "rows", "dataset", "float", "bool", "zero"],
)
def test_what_is_given_as_chosen(chosen, advice):
    with pytest.raises(ConfigError, match=advice) as said:
        DynamicSelection(FullData(), chosen, num_epochs=1)
    assert len(str(said.value)) < 300


# ---- policies of the user's own


@dataclass(frozen=True)
class Own:
    share: float = 0.5

    def plan(self, state, *, epoch, num_epochs, seed):
        return full(len(state))

    def update(self, state, plan, slots, losses):
        return observe(state, plan.slots, slots, losses)

    def parameters(self):
        return {"policy": "Own", **asdict(self)}


@dataclass
class Changeable:
    plan, update, parameters = Own.plan, Own.update, Own.parameters


class NoDataclass:
    plan, update, parameters = Own.plan, Own.update, Own.parameters


@dataclass(frozen=True)
class NoUpdate:
    plan, parameters = Own.plan, Own.parameters


class Empty(Own):
    def plan(self, state, *, epoch, num_epochs, seed):
        seen = np.flatnonzero(np.isfinite(state.loss))  # none has been seen yet
        return Plan(seen, np.ones(len(seen), np.float32))


class Slots(Own):
    def plan(self, state, *, epoch, num_epochs, seed):
        return np.arange(len(state))


class Beyond(Own):
    def plan(self, state, *, epoch, num_epochs, seed):
        return full(len(state), 1)


class Positional(Own):
    def plan(self, state, epoch):
        return full(len(state))


class ShortUpdate(Own):
    def update(self, state, losses):
        return state


class NothingBack(Own):
    def update(self, state, plan, slots, losses):
        observe(state, plan.slots, slots, losses)


class Arrays(Own):
    def parameters(self):
        return {"policy": "Arrays", "scores": np.zeros(3)}


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (InfoBatch, r"The policy is the class InfoBatch; give an instance, such as InfoBatch\(\)"),
        (raysel.RepDiv, "The policy is the class RepDiv"),
        (Own, "The policy is the class Own"),
        ("infobatch", "str has no plan, update, parameters"),
        (NoUpdate(), "NoUpdate has no update"),
        (Changeable(), r"The policy Changeable must be a frozen dataclass.*@dataclass\(frozen=True\)"),
        (NoDataclass(), "The policy NoDataclass must be a frozen dataclass"),
        (Empty(), "Empty.plan returned an empty plan for epoch 0 of 8 samples"),
        (Slots(), "Slots.plan must return a raysel.dynamic.Plan, got a ndarray in epoch 0"),
        (Beyond(), "Beyond.plan returned the slot 8 in epoch 0, but there are 8 samples"),
        (
            Positional(),
            r"Positional.plan must be defined as plan\(self, state, \*, epoch, num_epochs, seed\)",
        ),
        (ShortUpdate(), r"ShortUpdate.update must be defined as update\(self, state, plan, slots, losses\)"),
        (NothingBack(), "NothingBack.update must return a SampleState of 8 samples, got a NoneType"),
        (Arrays(), "Arrays.parameters must return numbers, text, lists and dicts"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_policy(policy, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DynamicSelection(policy, 8, num_epochs=3)


def test_what_a_policys_own_code_raises_is_raised():
    class Broken(Own):
        def plan(self, state, *, epoch, num_epochs, seed):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        DynamicSelection(Broken(), 8, num_epochs=3)


def test_a_policy_may_be_described_by_numpy_numbers(tmp_path):
    def dynamic():
        return DynamicSelection.local(Own(np.float32(0.25)), 8, num_epochs=2, checkpoints=tmp_path)

    assert train(dynamic(), stop=1).epoch == 1
    assert len(train(dynamic()).history) == 2


# ---- more epochs than were asked for at first


@pytest.mark.parametrize(
    "policy", [InfoBatch(0.6, 0.7), RandomSubset(0.5), Own()], ids=lambda p: type(p).__name__
)
def test_a_run_is_continued_with_more_epochs(policy, tmp_path):
    """The finished epochs stay, and each further one is planned as in a run of as many epochs as are now asked for."""

    def dynamic(num_epochs):
        return DynamicSelection.local(policy, 40, num_epochs=num_epochs, seed=3, checkpoints=tmp_path / "run")

    first = train(dynamic(4), 40)
    longer = train(dynamic(9), 40)
    assert longer.history[:4] == first.history and [entry["epoch"] for entry in longer.history] == list(
        range(9)
    )
    assert longer.progress == 1.0
    state = raysel.dynamic.SampleState.empty(40)
    for entry in longer.history:
        epoch = entry["epoch"]
        plan = policy.plan(state, epoch=epoch, num_epochs=4 if epoch < 4 else 9, seed=3)
        state = policy.update(
            state, plan, plan.slots, loss_of(torch.from_numpy(plan.slots.copy()), epoch).numpy()
        )
        assert (entry["planned"], entry["digest"]) == (len(plan), state.digest())
    with pytest.raises(
        StateError, match="a run of 9 epochs, but this run has 5; a run can be continued with more epochs"
    ):
        dynamic(5).session()
    assert len(train(dynamic(9), 40).history) == 9


def test_more_epochs_are_not_asked_for_within_an_epoch(tmp_path):
    def dynamic(num_epochs):
        return DynamicSelection.local(InfoBatch(), 8, num_epochs=num_epochs, checkpoints=tmp_path)

    session = dynamic(2).session()
    for _ in session.epochs():
        for batch in session.loader(Numbers(8), batch_size=4):
            session.loss(batch, torch.ones(4))
            session.checkpoint()
            break
        break
    with pytest.raises(
        StateError,
        match=r"in the middle of epoch 0 of a run of .* Finish this epoch with num_epochs=2, and then resume with num_epochs=5",
    ):
        dynamic(5).session()
    assert len(train(dynamic(2)).history) == 2 and len(train(dynamic(5)).history) == 5


# ---- what a checkpoint holds


def test_objects_without_names(tmp_path):
    model = torch.nn.Linear(2, 2)
    session = DynamicSelection.local(FullData(), 4, num_epochs=1, checkpoints=tmp_path).session()
    with pytest.raises(
        ConfigError,
        match=r"restore: The objects must be a dict of names and values, such as {'model': model}, got a Linear",
    ):
        session.restore(model)
    for _ in session.epochs():
        for batch in session.loader(Numbers(4), batch_size=4):
            session.loss(batch, torch.ones(4))
        with pytest.raises(ConfigError, match=r"report: The metrics must be a dict .* got a float"):
            session.report(0.5)
        with pytest.raises(ConfigError, match=r"report: The state must be a dict .* got a Linear"):
            session.report(state=model)
        with pytest.raises(ConfigError, match=r"checkpoint: The state must be a dict .* got a Linear"):
            session.checkpoint(model)
        session.report()


def test_objects_that_cannot_be_saved_or_restored(tmp_path):
    class Holds:
        def __init__(self, value):
            self.value = value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, saved):
            self.value = saved["value"]

    dynamic = DynamicSelection.local(FullData(), 4, num_epochs=3, checkpoints=tmp_path)
    session = dynamic.session()
    for _ in session.epochs():
        for batch in session.loader(Numbers(4), batch_size=4):
            session.loss(batch, torch.ones(4))
        for state, sentence in (
            ({"epoch": 3}, r"The state's 'epoch' is a int, which has no state_dict\(\)"),
            ({"odd": Holds(lambda: 0)}, "something other than tensors, numbers and text .*lambda"),
            ({"odd": Holds(Numbers(3))}, "something other than tensors, numbers and text .*Numbers"),
        ):
            with pytest.raises(StateError, match=sentence):
                session.checkpoint(state)
        session.report(state={"model": torch.nn.Linear(2, 2), "held": Holds(np.float64(0.5))})
        break
    for model, sentence in (
        (torch.nn.Linear(3, 2), r"The checkpoint's 'model' does not fit the Linear .* \(.*size mismatch"),
        (
            torch.nn.Sequential(torch.nn.Linear(2, 2)),
            "The checkpoint's 'model' does not fit the Sequential .*Missing key",
        ),
        (3, r"restore: 'model' is a int, which has no load_state_dict\(\)"),
    ):
        with pytest.raises(StateError, match=sentence):
            dynamic.session().restore({"model": model, "held": Holds(0)})
    held = Holds(0)
    assert dynamic.session().restore({"model": torch.nn.Linear(2, 2), "held": held}) and held.value == 0.5


def test_an_error_of_rank_0_that_cannot_be_sent_is_described_to_the_other_ranks():
    from raysel.train.communicator import TorchCommunicator, _portable

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}.")

    error = ValueError("plain")
    assert _portable(error) is error and _portable(None) is None
    told = _portable(Odd(1, 2))
    assert isinstance(told, StateError) and str(told) == "Rank 0 raised Odd (1 and 2)."

    class Rank(TorchCommunicator):
        def __init__(self, rank):
            self.rank = rank

        def broadcast(self, value):
            return sent.append(value) or value if self.rank == 0 else sent[-1]

    def fails():
        raise Odd(1, 2)

    sent = []
    with pytest.raises(Odd):
        Rank(0).of_zero(fails)
    with pytest.raises(StateError, match="Rank 0 raised Odd"):
        Rank(1).of_zero(fails)


def test_a_users_exception_is_not_hidden_by_actors_that_cannot_be_removed(caplog):
    class Gone:
        def close(self):
            raise ConnectionError("the cluster is gone")

    dynamic = DynamicSelection(FullData(), 4, num_epochs=1)
    dynamic._keeper, dynamic._boards = Gone(), [Gone()]
    with pytest.raises(ValueError, match="mine"), dynamic:
        raise ValueError("mine")
    assert dynamic._keeper is None and caplog.text.count("could not be removed (the cluster is gone)") == 2


def test_a_dynamic_selection_is_started_again_after_ray_was(monkeypatch):
    """References into the object store end with the Ray that made them."""
    store: list = []

    def put(value):
        store.append(value)
        return ("reference", len(store) - 1)

    class Keepers:
        def close(self):
            pass

    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr("raysel.dynamic.service.start_keepers", lambda *_: Keepers())
    chosen = raysel.Selection.of([3, 5, 8], info={"pool_rows": 10})
    dynamic = DynamicSelection(InfoBatch(), chosen, num_epochs=2)
    for ends in (2, 4):
        with pytest.raises(KeyboardInterrupt), dynamic:
            sent = dynamic.__getstate__()
            assert sent["_ids"] is None and sent["_shared"] == (
                ("reference", ends - 2),
                ("reference", ends - 1),
            )
            assert store[ends - 2].tolist() == [3, 5, 8]
            raise KeyboardInterrupt  # as a cell of a notebook is left
        assert dynamic.__getstate__()["_ids"].tolist() == [3, 5, 8] and len(store) == ends

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "put", fail)
    monkeypatch.setattr("raysel.dynamic.service.start_keepers", lambda *_: pytest.fail("left behind"))
    with pytest.raises(KeyboardInterrupt), dynamic:
        pass
