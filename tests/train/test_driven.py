"""A session whose epochs a framework drives, and steps of several batches: in one process, without the frameworks."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

from raysel import DynamicSelection, FullData, InfoBatch, RoundRobin, Selection
from raysel.errors import ConfigError, StateError
from raysel.train.adapters.driven import Driven
from tests.train.common import Numbers, loss_of

N, EPOCHS = 53, 5


def selection(policy=None, **more):
    return DynamicSelection.local(policy or InfoBatch(0.6, 0.9), N, num_epochs=EPOCHS, seed=4, **more)


def epoch_of(driven, ahead=1):
    """Train one epoch as a framework would, with ``ahead`` batches fetched before the first is used."""
    waiting = []
    for batch in driven.loader(Numbers(N), batch_size=8):
        waiting.append(batch)
        if len(waiting) > ahead:
            used = waiting.pop(0)
            driven.session.loss(used, loss_of(used.data, driven.session.epoch))
    for used in waiting:
        driven.session.loss(used, loss_of(used.data, driven.session.epoch))
    driven.end_epoch()


def digests(history):
    return [(entry["planned"], entry["trained"], entry["digest"]) for entry in history]


def whole():
    driven = Driven(selection(), None)
    while not driven.is_over:
        epoch_of(driven)
    return driven.session.history


def test_a_driven_run_goes_on_from_what_it_saved(tmp_path):
    driven = Driven(selection(), None)
    for _ in range(2):
        epoch_of(driven, ahead=3)
    driven.save(tmp_path / "selection")
    epoch_of(driven)  # lost with the process
    rest = Driven(selection(), tmp_path / "selection")
    assert not rest.is_open and rest.session.epoch == 2
    while not rest.is_over:
        epoch_of(rest)
    assert digests(rest.session.history) == digests(whole())
    assert list(rest.loader(Numbers(N), batch_size=8)) == []  # nothing is left
    rest.end_epoch()
    assert len(rest.session.history) == EPOCHS


def test_an_epoch_opens_when_its_batches_are_asked_for_and_only_then(tmp_path):
    driven = Driven(selection(), None)
    assert not driven.is_open
    loader = driven.loader(Numbers(N), batch_size=8)
    assert driven.is_open and driven.loader(Numbers(N), batch_size=8) is loader
    driven.end_epoch()  # nothing was trained: it stays open
    assert driven.is_open
    driven.save(tmp_path / "before")
    next(iter(loader))
    with pytest.raises(StateError, match="within epoch 0"):
        driven.save(tmp_path / "within")


def test_progress_is_that_of_the_steps_taken_not_of_the_batches_fetched():
    driven = Driven(selection(RoundRobin(0.5)), None)
    taken, seen = 0, []
    while not driven.is_over:
        for batch in list(driven.loader(Numbers(N), batch_size=8)):  # all fetched ahead
            driven.session.loss(batch, loss_of(batch.data, 0))
            seen.append(driven.progress(taken))
            taken += 1
        seen.append(driven.progress(taken))
        driven.end_epoch()
        assert driven.progress(taken) == pytest.approx(seen[-1])
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 1.0
    cut = Driven(selection(max_steps=10), None)
    assert [cut.progress(step) for step in (0, 5, 10, 20)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(("n", "accumulate", "batch_size"), [(53, 3, 4), (50, 4, 8), (2, 4, 8), (48, 3, 4)])
def test_the_mean_over_the_batches_of_a_step_is_the_weighted_mean_over_its_rows(n, accumulate, batch_size):
    weight = np.linspace(1, 2, n)
    chosen = Selection.of(np.arange(n), weight=weight, info={"pool_rows": N})
    session = DynamicSelection.local(FullData(), chosen, num_epochs=1).session()
    next(session.epochs())
    loader = session.loader(Numbers(N), batch_size=batch_size, accumulate=accumulate)
    rows = batch_size * accumulate
    assert len(loader) == accumulate * session.steps_per_epoch == accumulate * -(-n // rows)
    seen, group, means = [], [], []
    for batch in loader:
        losses = batch.data.float()
        losses[batch.ids < 0] = torch.nan  # what padding computes must not matter
        means.append(session.loss(batch, losses).item())
        group.append(batch.ids[batch.ids >= 0].tolist())
        if len(group) == accumulate:
            ids = np.concatenate(group).astype(int)
            assert np.mean(means) == pytest.approx((weight[ids] * ids).sum() / len(ids), rel=1e-5)
            assert max(map(len, group)) - min(map(len, group)) <= 1
            assert session.step == -(-(len(seen) + len(ids)) // rows)
            seen += ids.tolist()
            group, means = [], []
    assert not group and sorted(seen) == list(range(n))
    assert session.report()["steps"] == -(-n // rows)


def test_steps_hang_on_their_rows_alone_not_on_how_they_are_accumulated():
    def steps_of(accumulate, batch_size):
        session = selection(FullData(), max_steps=3).session()
        next(session.epochs())
        batches = list(session.loader(Numbers(N), batch_size=batch_size, accumulate=accumulate))
        ids = [batch.ids.tolist() for batch in batches]
        groups = [ids[at : at + accumulate] for at in range(0, len(ids), accumulate)]
        return [[i for part in group for i in part] for group in groups]

    assert steps_of(1, 12) == steps_of(3, 4) == steps_of(4, 3) and len(steps_of(3, 4)) == 3
    with pytest.raises(ConfigError, match="accumulate"):
        steps_of(0, 4)


@pytest.mark.parametrize(("name", "needs"), [("huggingface", "transformers"), ("lightning", "lightning")])
def test_an_adapter_without_its_framework_says_what_to_install(monkeypatch, name, needs):
    for loaded in [m for m in sys.modules if m == needs or m.startswith(f"{needs}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, needs, None)
    monkeypatch.delitem(sys.modules, f"raysel.train.adapters.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'raysel\[{name}\]'"):
        importlib.import_module(f"raysel.train.adapters.{name}")
