"""The validation rows are scored every few optimizer steps, and early stopping and the best weights follow them."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.errors import ConfigError
from raysel.train import loops
from raysel.train.settings import Train
from raysel.train.tasks import Regression
from tests.train.rows import config, linear, stored


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("columns"))


def test_validation_is_scored_every_few_steps(place, tmp_path, monkeypatch):
    """It changes nothing of the training; early stopping and the best weights follow its evaluations."""
    scored, evaluate = [], loops.evaluate

    def evaluates(task, model, data, role, *more):
        found = evaluate(task, model, data, role, *more)
        if role == "validation":
            scored.append((made.made.total_steps + made.made.step, found["rmse"]))
        return found

    monkeypatch.setattr(loops, "evaluate", evaluates)

    def train(folder=None, **settings):
        nonlocal made
        scored.clear()
        given = config(place, Regression("x", "y"), linear, Train(batch_size=5, epochs=3, **settings), folder)
        made = given["dynamic"]
        return loops.train(given)

    made = None
    epochs = train()
    ends = np.cumsum([entry["steps"] for entry in epochs["history"]]).tolist()
    found, last = train(evaluate_every="3 steps"), ends[-1]
    assert [step for step, _ in scored] == sorted({*range(3, last + 1, 3), last}) and ends[0] % 3
    assert [e["digest"] for e in found["history"]] == [e["digest"] for e in epochs["history"]]
    assert found["metrics"] == epochs["metrics"]
    for end, entry in zip(ends, found["history"], strict=True):
        assert entry["rmse"] == [rmse for step, rmse in scored if step <= end][-1]
    steps = sum(entry["steps"] for entry in train(evaluate_every="1 step", accumulate=2)["history"])
    assert [step for step, _ in scored] == list(range(1, steps + 1))

    # A rate so high that the error grows with every step: the weights of the first are the best, and two more are enough.
    grows = dict(learning_rate=3.0, schedule="constant", warmup=0.0, optimizer="SGD", keep="best", patience=2)
    stopped = train(tmp_path, evaluate_every="1 step", **grows)
    assert [step for step, _ in scored] == [1, 2, 3] and scored[0][1] < scored[1][1]
    (entry,) = stopped["history"]
    assert entry["steps"] == 3 and entry["trained"] == 15 and entry["planned"] > 15
    assert stopped["metrics"]["rmse"] < 10 * scored[0][1]


def test_what_is_no_number_of_epochs_or_steps():
    for wrong in ("5", "0 steps", "5 epochs", "-1 steps", "1.5 steps"):
        with pytest.raises(
            ConfigError,
            match=f"evaluate_every: '{wrong}' is neither a number of epochs nor of optimizer steps",
        ):
            Train(evaluate_every=wrong)
