"""A task trained by the loops ``huggingface`` and ``lightning`` has the plans, states and weights of the built-in loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raysel.errors import ConfigError
from raysel.train import loops
from raysel.train.adapters import frameworks
from raysel.train.epoch_log import mean_losses
from raysel.train.settings import Train
from raysel.train.tasks import Classification
from raysel.workflow.config import parse
from raysel.workflow.steps import train as step
from tests.train.linear_models import module
from tests.train.rows import config, linear, stored

BUILTIN = Train(batch_size=5, epochs=4, optimizer="SGD", schedule="constant", warmup=0.0)
OPTIONS = {
    "huggingface": {
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    },
    "lightning": {"precision": "32-true"},
}
PACKAGES = {"huggingface": "transformers", "lightning": "lightning"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("columns"))


class Fails(Classification):
    """Fails in the last epoch, once."""

    dynamic = None

    def collate(self, rows, generator=None):
        if generator is not None and Fails.dynamic is not None and len(Fails.dynamic.made.history) == 3:
            Fails.dynamic = None
            raise KeyError("interrupted")
        return super().collate(rows, generator)


def given(place, name, folder, task=Classification, **more):
    factory = module if name == "lightning" else linear
    settings = Train(batch_size=5, epochs=4, loop=name, options=OPTIONS[name], **more)
    loop = step.load_loop(settings)
    kept = str(folder / "kept")
    return config(
        place, task("x", "kind"), factory, settings, folder / "model", loop=loop
    ) | {"checkpoints": kept}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_framework_trains_as_the_built_in_loop(place, tmp_path, name):
    pytest.importorskip(PACKAGES[name])
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        wanted = loops.train(
            config(
                place,
                Classification("x", "kind"),
                linear,
                replace(BUILTIN, accumulate=accumulate),
                folder / "own",
                epoch_log=folder / "own-epochs",
            )
        )
        frameworks.check(Train(loop=name, options=OPTIONS[name]))
        found = loops.own(
            given(place, name, folder, accumulate=accumulate) | {"epoch_log": folder / "epochs"}
        )
        count = len(found["history"])
        one, other = (mean_losses(folder / name, count) for name in ("own-epochs", "epochs"))
        assert one["sample_id"].equals(other["sample_id"])
        np.testing.assert_allclose(one["loss"].to_numpy(), other["loss"].to_numpy(), rtol=1e-4)
        keys = ("epoch", "planned", "trained", "steps", "digest")
        assert [[e[k] for k in keys] for e in found["history"]] == [
            [e[k] for k in keys] for e in wanted["history"]
        ]
        assert any(entry["trained"] < 24 for entry in found["history"])
        for one, other in zip(found["history"], wanted["history"], strict=True):
            assert one["accuracy"] == other["accuracy"] and one["mean_loss"] == pytest.approx(
                other["mean_loss"]
            )
        assert found["metrics"] == wanted["metrics"] and found["goal"] == wanted["goal"]
        saved = load_file(folder / "model" / "model.safetensors")
        hand = load_file(folder / "own" / "model.safetensors")
        for one, other in zip(sorted(saved), sorted(hand), strict=True):
            torch.testing.assert_close(saved[one], hand[other], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_framework_resumes_from_its_last_checkpoint(place, tmp_path, name):
    pytest.importorskip(PACKAGES[name])
    losses = {"epoch_log": tmp_path / "epochs"}
    whole = loops.own(given(place, name, tmp_path / "whole") | losses)
    wanted = mean_losses(losses["epoch_log"], len(whole["history"]))
    parts = given(place, name, tmp_path / "parts", task=Fails) | losses
    Fails.dynamic = parts["dynamic"]
    with pytest.raises(KeyError, match="interrupted"):
        loops.own(parts)
    trained: list = []

    class Counts(Fails):
        def losses(self, model, batch):
            trained.append(len(batch[1]))
            return super().losses(model, batch)

    again = loops.own(given(place, name, tmp_path / "parts", task=Counts) | losses)
    assert mean_losses(losses["epoch_log"], len(again["history"])).equals(wanted)
    assert [e["digest"] for e in again["history"]] == [e["digest"] for e in whole["history"]]
    assert [e["accuracy"] for e in again["history"]] == [e["accuracy"] for e in whole["history"]]
    assert again["metrics"] == whole["metrics"]
    if name == "huggingface":
        assert sum(trained) == whole["history"][-1]["trained"]
    first, second = (
        load_file(tmp_path / part / "model" / "model.safetensors") for part in ("whole", "parts")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_options_of_a_framework_are_checked_before_the_training(name):
    pytest.importorskip(PACKAGES[name])
    frameworks.check(Train(loop=name, options=OPTIONS[name]))
    for options, says in (
        ({"no_such_argument": 1}, r"train\.options: .* cannot be made with these options .*no_such_argument"),
        ({"max_epochs": 3, "num_train_epochs": 3}, r"give train\.epochs instead"),
    ):
        with pytest.raises(ConfigError, match=says):
            frameworks.check(Train(loop=name, options=options))
    if name == "lightning":
        frameworks.check_model(name, module((3,), 2))
        with pytest.raises(ConfigError, match="needs a LightningModule, but the model is a Linear"):
            frameworks.check_model(name, linear((3,), 2))


# ---- what needs no framework -------------------------------------------------------------------------------------

TREE = {"name": "one", "pool": {"path": "x.parquet", "label": "y"}}


def flow(**train):
    return parse({**TREE, "train": {"model": "models.py:mlp", "input": "x", **train}}, "/here")


def test_settings_that_a_framework_does_not_read_are_refused(monkeypatch):
    step.check_settings(flow(loop="huggingface", options={"learning_rate": 1e-4}, accumulate=2))
    for train, says in (
        ({"learning_rate": 0.01}, r"train\.learning_rate: The loop huggingface .* of TrainingArguments"),
        ({"precision": "bf16"}, r"train\.precision: The loop huggingface does not read"),
        ({"track": "tensorboard"}, r"train\.track: The loop huggingface does not read"),
        ({"data": "stream"}, r"train\.data: The loop huggingface cannot train on streamed rows"),
    ):
        with pytest.raises(ConfigError, match=says):
            step.check_settings(flow(loop="huggingface", **train))
    with pytest.raises(ConfigError, match=r"train\.clip: A training loop of your own does not receive"):
        step.check_settings(flow(loop="mine.py:loop", clip=1.0, learning_rate=0.01))
    with pytest.raises(ConfigError, match="Did you mean 'huggingface'"):
        step.load_loop(Train(loop="hugingface"))
    assert step.framework(Train(loop="lightning")) and not step.framework(Train(loop="mine.py:loop"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lightning needs the package lightning; .* 'raysel\[lightning\]'"):
        frameworks.check(Train(loop="lightning"))
    with pytest.raises(ConfigError, match=r"train\.options\.max_epochs: .*; give train\.epochs instead"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        frameworks.check(Train(loop="lightning", options={"max_epochs": 3}))
