"""The keeper: fences, replays, and exactly one trace of every epoch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.dynamic import FullData, InfoBatch, Plan, SampleState
from raysel.dynamic.keeper import Keeper
from raysel.errors import ConfigError, DataError, StateError

N, EPOCHS = 400, 6


def keeper(policy: object = None, *, attempt: str | None = "a", size: int = N) -> Keeper:
    made = Keeper(policy or InfoBatch(), size=size, num_epochs=EPOCHS, seed=3)
    if attempt:
        made.restore(attempt)
    return made


def losses(slots: np.ndarray, epoch: int) -> np.ndarray:
    return (np.sin(slots * 12.9898 + epoch) + 1.5).astype(np.float32)


def train(made: Keeper, attempt: str, epoch: int, parts: int = 3) -> dict:
    for slots in np.array_split(made.plan(attempt, epoch).slots, parts):
        made.update(attempt, epoch, slots, losses(slots, epoch))
    return made.commit(attempt, epoch)


def undisturbed() -> list[dict]:
    made = keeper()
    return [train(made, "a", epoch) for epoch in range(EPOCHS)]


def test_an_epoch_worked_by_hand():
    made = keeper(FullData(), size=4)
    assert made.plan("a", 0).slots.tolist() == [0, 1, 2, 3]
    made.update("a", 0, np.array([2, 0]), np.array([0.5, 1.5]))
    made.update("a", 0, np.array([3]), np.array([np.nan]))
    summary = made.commit("a", 0)
    epoch, state = made.state("a")
    assert summary == {
        "epoch": 0,
        "planned": 4,
        "observed": 2,
        "nonfinite": 1,
        "mean_loss": 1.0,
        "digest": state.digest(),
    }
    assert epoch == 1 and state.selected.tolist() == [1, 1, 1, 1]
    assert np.array_equal(state.loss, np.float32([1.5, np.nan, 0.5, np.nan]), equal_nan=True)


# ---- fences


def calls() -> dict:
    return {
        "plan": lambda k, a, e: k.plan(a, e),
        "update": lambda k, a, e: k.update(a, e, np.array([0]), np.array([1.0])),
        "staged": lambda k, a, e: k.staged(a, e),
        "commit": lambda k, a, e: k.commit(a, e),
        "state": lambda k, a, e: k.state(a),
    }


@pytest.mark.parametrize("call", calls())
def test_nothing_works_before_restore(call):
    with pytest.raises(StateError, match="not been restored"):
        calls()[call](keeper(attempt=None), "a", 0)


@pytest.mark.parametrize("call", calls())
def test_an_earlier_attempt_is_refused(call):
    made = keeper()
    made.restore("b")
    with pytest.raises(StateError, match="attempt 'a' was replaced by 'b'"):
        calls()[call](made, "a", 0)


@pytest.mark.parametrize("call", [c for c in calls() if c != "state"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_another_epoch_is_refused(call, epoch):
    made = keeper()
    train(made, "a", 0)
    if call == "commit" and epoch == 0:
        return  # the one call that may be repeated
    with pytest.raises(StateError, match=f"Epoch {epoch} is not the current one: epoch 1 is being trained"):
        calls()[call](made, "a", epoch)


def test_after_the_last_epoch_there_is_nothing_to_plan():
    made = keeper()
    for epoch in range(EPOCHS):
        summary = train(made, "a", epoch)
    with pytest.raises(StateError, match="all 6 epochs of the run are finished"):
        made.plan("a", EPOCHS)
    assert made.commit("a", EPOCHS - 1) == summary and made.state("a")[0] == EPOCHS


def test_a_replaced_attempt_cannot_come_back():
    made = keeper()
    made.restore("b")
    with pytest.raises(StateError, match="replaced by 'b', so it can no longer restore"):
        made.restore("a")
    made.restore("b")  # the current one may: it starts over


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("b", 2), "needs the selection state after these epochs"),
        (("b", 1, SampleState.empty(N + 1)), "another data set: it has 401 samples, the run has 400"),
        (("b", EPOCHS + 1, SampleState.empty(N)), "7 epochs, but the run has only 6"),
        (("",), "name of an attempt must be a non-empty string"),
        ((None,), "name of an attempt must be a non-empty string"),
    ],
)
def test_restore_refuses_what_does_not_fit_and_stays_as_it_was(args, sentence):
    made = keeper()
    with pytest.raises(StateError, match=sentence):
        made.restore(*args)
    assert made.commit("a", 0)["epoch"] == 0


@pytest.mark.parametrize("wrong", [{"size": 0}, {"num_epochs": 0}, {"seed": -1}, {"policy": object()}])
def test_construction_is_checked(wrong):
    with pytest.raises(ConfigError):
        Keeper(**{"policy": FullData(), "size": 4, "num_epochs": 2, "seed": 0, **wrong})


def test_restore_forgets_what_was_staged():
    made = keeper(FullData())
    made.update("a", 0, np.array([1, 2]), np.array([1.0, np.nan]))
    for attempt in ("a", "b"):
        made.restore(attempt)
        assert made.staged(attempt, 0)[0].size == 0
    summary = made.commit("b", 0)
    assert (summary["observed"], summary["nonfinite"]) == (0, 0)
    assert np.isnan(made.state("b")[1].loss).all()


# ---- replays


def test_the_plan_is_made_once_an_epoch():
    made = keeper()
    assert made.plan("a", 0) is made.plan("a", 0)


@given(st.lists(st.integers(0, 7), max_size=25), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_replays_in_any_order_leave_one_trace(again, rnd):
    made, expected = keeper(), undisturbed()
    for epoch in range(3):
        parts = np.array_split(made.plan("a", epoch).slots, 8)
        order = [*range(8), *again]
        rnd.shuffle(order)
        for i in order:
            made.update("a", epoch, parts[i], losses(parts[i], epoch))
        assert made.commit("a", epoch) == expected[epoch] == made.commit("a", epoch)


@pytest.mark.parametrize("dies_in", range(EPOCHS))
@pytest.mark.parametrize("after", ["update", "commit"])
def test_a_run_that_dies_and_resumes_leaves_the_same_state(dies_in, after):
    expected, made, checkpoint = undisturbed(), keeper(), (0, None)
    for epoch in range(dies_in):
        train(made, "a", epoch)
        checkpoint = (made.state("a")[0], made.state("a")[1].to_arrow())
    slots = made.plan("a", dies_in).slots[::2]
    made.update("a", dies_in, slots, np.full(len(slots), 99.0))  # losses that nobody may see again
    if after == "commit":
        made.commit("a", dies_in)  # committed here, but the checkpoint with it was lost
    epoch, table = checkpoint
    made.restore("b", epoch, None if table is None else SampleState.from_arrow(table))
    assert [train(made, "b", e, parts=5) for e in range(epoch, EPOCHS)] == expected[epoch:]


def test_a_checkpoint_within_an_epoch_carries_what_was_staged():
    made = keeper()
    train(made, "a", 0)
    slots = made.plan("a", 1).slots
    half, values = slots[:100], losses(slots, 1)
    made.update("a", 1, half, np.where(np.arange(100) == 7, np.nan, values[:100]))
    (epoch, state), (at, staged) = made.state("a"), made.staged("a", 1)
    assert np.array_equal(at, half) and np.isinf(staged[7]) and np.isfinite(np.delete(staged, 7)).all()
    other = keeper(attempt=None)
    other.restore("b", epoch, state)
    other.update("b", 1, at, staged)
    for k, attempt in ((made, "a"), (other, "b")):
        k.update(attempt, 1, slots[100:], values[100:])
    assert made.commit("a", 1) == other.commit("b", 1)


def test_losses_that_are_not_finite_are_counted_once_however_often_they_come():
    made = keeper(FullData())
    for _ in range(3):
        made.update("a", 0, np.arange(4), np.array([np.nan, np.inf, -np.inf, 1.0]))
    summary = made.commit("a", 0)
    assert (summary["nonfinite"], summary["observed"], summary["mean_loss"]) == (3, 1, 1.0)


def test_a_later_loss_replaces_also_one_that_was_not_finite():
    made = keeper(FullData())
    made.update("a", 0, np.array([0, 1]), np.array([np.nan, 1.0]))
    made.update("a", 0, np.array([0, 1]), np.array([2.0, np.nan]))
    summary = made.commit("a", 0)
    assert (summary["nonfinite"], summary["observed"], summary["mean_loss"]) == (1, 1, 2.0)


def test_an_epoch_in_which_nothing_was_observed():
    summary = keeper().commit("a", 0)
    assert summary["observed"] == 0 and summary["mean_loss"] is None and summary["planned"] == N


def test_the_mean_loss_is_exact():
    made = keeper(FullData(), size=100_000)
    made.update("a", 0, np.arange(100_000), np.full(100_000, 0.1, np.float32))
    assert made.commit("a", 0)["mean_loss"] == float(np.float32(0.1))


def test_a_summary_is_the_callers_own():
    made = keeper()
    for _ in range(2):
        made.commit("a", 0)["planned"] = 7
    assert made.commit("a", 0)["planned"] == N


# ---- bad input


@pytest.mark.parametrize(
    ("slots", "values", "sentence"),
    [
        ([5, N, N + 1], [1.0] * 3, "outside 0..399: 400, 401"),
        ([5, -1], [1.0] * 2, "padding"),
        ([5, 6], [1.0], "with one loss per slot"),
        ([5.0], [1.0], "integer type"),
        ([5, 6, 5], [1.0, 1.0, 2.0], "Two different losses were given for the same slots .* in epoch 0: 5.$"),
        ([5, 6, 5], [1.0, 1.0, np.nan], "Two different losses were given"),
    ],
)
def test_bad_observations_are_refused_whole(slots, values, sentence):
    made = keeper()
    made.update("a", 0, np.array([5, 9]), np.array([0.5, 0.5]))
    with pytest.raises(DataError, match=sentence):
        made.update("a", 0, np.array(slots), np.array(values))
    assert made.staged("a", 0)[0].tolist() == [5, 9] and made.staged("a", 0)[1].tolist() == [0.5, 0.5]


def test_the_same_slot_twice_with_the_same_loss_is_one_observation():
    made = keeper()
    made.update("a", 0, np.array([5, 5, 6, 6]), np.array([1.0, 1.0, np.nan, np.inf]))
    summary = made.commit("a", 0)
    assert (summary["observed"], summary["nonfinite"]) == (1, 1)


def test_a_slot_that_is_not_planned_is_refused():
    made = keeper()
    train(made, "a", 0)
    left_out = np.setdiff1d(np.arange(N), made.plan("a", 1).slots)
    assert len(left_out) > 50
    with pytest.raises(DataError, match=f"not planned in epoch 1: {left_out[0]}, "):
        made.update("a", 1, left_out, np.ones(len(left_out)))
    assert made.commit("a", 1)["observed"] == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arguments_may_be_read_only_and_stay_as_they_are(dtype):
    made = keeper()
    slots, values = np.arange(4), np.array([1.0, np.nan, 2.0, np.inf], dtype)
    slots.flags.writeable = values.flags.writeable = False
    made.update("a", 0, slots, values)
    assert np.isnan(values[1]) and made.commit("a", 0)["mean_loss"] == 1.5


class Wrong(FullData):
    """A policy whose plan or update answers nonsense, on request."""

    def __init__(self, plan: object = None, update: object = None) -> None:
        object.__setattr__(self, "_answers", (plan, update))

    def plan(self, state, *, epoch, num_epochs, seed):
        return self._answers[0] or super().plan(state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state, plan, slots, losses):
        if isinstance(self._answers[1], Exception):
            raise self._answers[1]
        return self._answers[1]


def test_a_policy_that_answers_nonsense_is_named():
    beyond = Plan(np.array([0, N]), np.ones(2, np.float32))
    for answer in (beyond, [0, 1]):
        with pytest.raises(
            StateError,
            match=r"Wrong\.plan must return a Plan whose slots \(positions of samples\) are below 400",
        ):
            keeper(Wrong(plan=answer)).plan("a", 0)
    for answer in (None, SampleState.empty(N + 1)):
        with pytest.raises(StateError, match=r"Wrong\.update must return a SampleState of 400"):
            keeper(Wrong(update=answer)).commit("a", 0)


def test_a_commit_that_fails_leaves_the_epoch_open():
    made = keeper(Wrong(update=ValueError("no")))
    made.update("a", 0, np.array([1]), np.array([1.0]))
    with pytest.raises(ValueError, match="no"):
        made.commit("a", 0)
    assert made.staged("a", 0)[0].tolist() == [1] and made.state("a")[0] == 0


def test_infobatch_through_the_keeper_prunes_what_it_should():
    made = keeper()
    summaries = [train(made, "a", epoch) for epoch in range(EPOCHS)]
    planned = [s["planned"] for s in summaries]
    assert planned[0] == planned[5] == N and all(0.6 * N < p < 0.95 * N for p in planned[1:5])
    assert made.state("a")[1].selected.sum() == sum(planned)
    assert all(math.isfinite(s["mean_loss"]) and s["observed"] == s["planned"] for s in summaries)
