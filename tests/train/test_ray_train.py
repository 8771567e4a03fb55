"""Inside real Ray Train workers: equal steps, one trace a sample, and a SIGKILL that changes nothing."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

import raysel
from raysel.errors import StateError

N, EPOCHS = 403, 5


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return i


def loss_of(ids, epoch):
    return ((ids * 2654435761) % 1000).float() / 1000 + 0.01 * epoch


def loop(config):
    import ray.train.torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    session = config["dynamic"].session()
    session.restore({"model": model})
    trace = []
    for epoch in session.epochs():
        for step, batch in enumerate(session.loader(Numbers(), batch_size=32)):
            assert torch.equal(batch.ids[batch.ids >= 0], batch.data[batch.ids >= 0])
            session.loss(batch, loss_of(batch.data, epoch))
            trace.append((epoch, step))
            if config["kill"] and epoch == 2 and step == 3 and session.rank == 1:
                try:
                    os.close(os.open(config["kill"], os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        session.report({"steps_here": len(trace)}, state={"model": model})
    return session.history


def fit(tmp_path, name, kill=None):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with raysel.DynamicSelection(raysel.InfoBatch(), N, num_epochs=EPOCHS, seed=3) as dynamic:
        return (
            TorchTrainer(
                loop,
                train_loop_config={"dynamic": dynamic, "kill": kill},
                scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(
                    name=name, storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=1)
                ),
            )
            .fit()
            .return_value
        )


def undisturbed():
    """The same run in this process, without Ray: what the plans and the state must be."""
    session = raysel.DynamicSelection.local(raysel.InfoBatch(), N, num_epochs=EPOCHS, seed=3).session()
    for epoch in session.epochs():
        for batch in session.loader(Numbers(), batch_size=64):
            session.loss(batch, loss_of(batch.data, epoch))
        session.report()
    return session.history


def test_a_worker_killed_in_mid_epoch_leaves_exactly_one_trace(cluster, tmp_path):
    kill = tmp_path / "killed"
    history = fit(tmp_path, "killed", str(kill))
    assert kill.exists()  # the worker did die
    expected = undisturbed()
    keys = ("epoch", "planned", "trained", "steps", "mean_loss", "nonfinite", "digest")
    assert [[e[k] for k in keys] for e in history] == [[e[k] for k in keys] for e in expected]
    assert [e["epoch"] for e in history] == list(range(EPOCHS)) and history[2]["planned"] < N


def test_the_state_actor_is_fenced_and_removed(cluster):
    import ray

    from raysel.dynamic.service import NAMESPACE

    def alive():
        return [
            a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE
        ]

    with raysel.DynamicSelection(raysel.FullData(), 10, num_epochs=2) as dynamic:
        keeper = dynamic._keeper
        assert f"{keeper.name}-0" in alive()
        with pytest.raises(StateError, match="has not been restored"):
            keeper.plan("a", 0)
        keeper.restore("a")
        assert keeper.plan("a", 0).slots.tolist() == list(range(10))
        keeper.update("a", 0, np.arange(10), np.ones(10, np.float32))
        keeper.drain()
        keeper.restore("b")
        keeper.update("a", 0, np.arange(10), np.ones(10, np.float32))
        with pytest.raises(StateError, match="stale"):
            keeper.drain()
        keeper.plan("b", 0)
        assert keeper.commit("b", 0)["observed"] == 0  # what the stale attempt staged is gone
        actor = ray.get_actor(f"{keeper.name}-0", namespace=NAMESPACE)
        ray.kill(actor, no_restart=False)
        with pytest.raises(StateError, match=r"not been restored|died"):
            for _ in range(200):  # the old process may answer for a moment
                keeper.plan("b", 1)
    assert f"{keeper.name}-0" not in alive()
    with pytest.raises(StateError, match="died"):
        keeper.plan("b", 0)
