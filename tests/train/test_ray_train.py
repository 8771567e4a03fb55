"""Inside real Ray Train workers: equal steps, one trace a sample, and a SIGKILL that changes nothing."""

from __future__ import annotations

import os
import pickle
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import raysel
from raysel.dynamic.plan import full
from raysel.errors import ConfigError, StateError
from tests.train.common import Numbers, loss_of

N, EPOCHS = 403, 5


def loop(config):
    import ray.train.torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(1, 1))
    session = config["dynamic"].session()
    session.restore({"model": model})
    trace = []
    for epoch in session.epochs():
        for step, batch in enumerate(session.loader(Numbers(N), batch_size=32)):
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
        for batch in session.loader(Numbers(N), batch_size=64):
            session.loss(batch, loss_of(batch.data, epoch))
        session.report()
    return session.history


@pytest.mark.slow  # two fits of Ray Train
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
        with pytest.raises(StateError, match="was replaced by 'b'"):
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


def test_shards_on_the_cluster_are_the_keeper_of_one_process(cluster, monkeypatch):
    import ray

    from raysel.dynamic import service
    from raysel.dynamic.keeper import Keeper
    from raysel.dynamic.plan import CHUNK

    n, policy = 2 * CHUNK + 7, raysel.InfoBatch(threshold=0.4)
    alone = Keeper(policy, n, 3, 1)
    alone.restore("a")
    client = service.start_keepers(policy, n, 3, 1, shards=9)  # as many as there are chunks
    try:
        pids = ray.get([a.__ray_call__.remote(lambda self: os.getpid()) for a in client._keepers])
        assert len(set(pids)) == 3 and os.getpid() not in pids
        client.restore("a")
        workers = [pickle.loads(pickle.dumps(client)) for _ in range(2)]
        for epoch in range(2):
            plans = [w.plan("a", epoch) for w in workers]
            expected = alone.plan("a", epoch)
            assert all(np.array_equal(p.slots, expected.slots) for p in plans)
            assert all(np.array_equal(p.weights, expected.weights) for p in plans)
            shuffled = np.random.default_rng(epoch).permutation(expected.slots)
            losses = loss_of(torch.from_numpy(shuffled), epoch).numpy()
            alone.update("a", epoch, shuffled, losses)
            for w, part in zip(workers, np.array_split(np.arange(len(shuffled)), 2), strict=True):
                for some in np.array_split(part, 30):  # more than may be under way
                    w.update("a", epoch, shuffled[some], losses[some])
            for w in workers:
                w.drain()
            assert all(
                np.array_equal(a, b)
                for a, b in zip(client.staged("a", epoch), alone.staged("a", epoch), strict=True)
            )
            assert client.commit("a", epoch) == alone.commit("a", epoch) == client.progress()[1]
        (epoch, kept), part = alone.state("a"), client.state("a", CHUNK - 3, CHUNK + 9)[1]
        assert client.state("a")[1].digest() == kept.digest()
        assert part.digest() == kept.cut(CHUNK - 3, CHUNK + 9).digest()

        # One shard dies: nothing works until all are restored, which waits for the actor to be back.
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(StateError, match=r"died|not been restored"):
            for _ in range(100):
                client.plan("a", 2)
                time.sleep(0.1)
        client.restore("b", epoch, kept)
        alone.restore("b", epoch, kept)
        assert np.array_equal(client.plan("b", 2).slots, alone.plan("b", 2).slots)

        # One shard hangs: that is said, too.
        os.kill(pids[0], signal.SIGSTOP)
        monkeypatch.setattr(service, "TIMEOUT_S", 2.0)
        with pytest.raises(
            StateError, match=r"did not respond within 2 s. Training resumes from the last checkpoint"
        ):
            client.commit("b", 2)
        os.kill(pids[0], signal.SIGCONT)
        assert sum(name.startswith(client.name) for name in service.cleanup()) == 3
    finally:
        client.close()


def test_shards_need_a_policy_that_can_plan_them():
    @dataclass(frozen=True)
    class Whole:
        update, parameters = raysel.FullData.update, raysel.FullData.parameters

        def plan(self, state, *, epoch, num_epochs, seed):
            return full(len(state))

    raysel.DynamicSelection(Whole(), 200_000, num_epochs=1)
    with pytest.raises(ConfigError, match=r"Whole has no method plan_shard.* use shards=1"):
        raysel.DynamicSelection(Whole(), 200_000, num_epochs=1, shards=2)
    with pytest.raises(ConfigError, match="shards must be a whole number"):
        raysel.DynamicSelection(raysel.FullData(), 10, num_epochs=1, shards=0)
    with pytest.raises(ConfigError, match="classes has 3 entries, but there are 4 samples"):
        raysel.DynamicSelection(raysel.InfoBatch(classes=[0, 1, 1]), 4, num_epochs=1)
