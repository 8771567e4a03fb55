"""A run that something happens to, in a process of its own: ``python job.py DIRECTORY --faults worker ...``.

Losses are a function of id and epoch, or a small network's. A fault strikes once, in epoch 2 at step 6 on the last
rank; of two faults, the first strikes in epoch 1. Ray Train then resumes the run, and the process writes
``result.json``. The same command resumes the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import torch
import torch.nn.functional as F

import raysel

EPOCHS, SEED, ROWS_A_STEP, STRIKE = 4, 3, 8192, 6


class Rows(torch.utils.data.Dataset):
    """(id, features, label), the same in every process; the rows are gathered when a batch is made of them."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 8, generator=generator)
        self.y = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, rows: list[int]):
        ids = torch.tensor(rows)
        return ids, self.x[ids], self.y[ids]


def function(ids: torch.Tensor, epoch: int) -> torch.Tensor:
    return ((ids * 2654435761) % 1000).float() / 1000 + 0.01 * epoch


def digest(*arrays) -> str:
    made = hashlib.blake2b(digest_size=8)
    for array in arrays:
        made.update(bytes(memoryview(array).cast("B")))
    return made.hexdigest()


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 3))


def train(session, config, model, strike=lambda epoch: None):
    """The loop itself, the same with and without Ray; returns the history and the digest of the weights."""
    torch.manual_seed(7 + session.rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objects = {"model": model, "optimizer": optimizer}
    session.restore(objects)
    data = Rows(config["n"])
    for epoch in session.epochs():
        plan = digest(session.plan.slots, session.plan.weights)
        for batch in session.loader(
            data, batch_size=config["rows"] // session.world, collate_fn=data.collate
        ):
            ids, x, y = batch.data
            if config["losses"] == "real":
                loss = session.loss(batch, F.cross_entropy(model(x), y, reduction="none"))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                session.loss(batch, function(ids, epoch))
            if config["save"] and session.step == config["save"]:
                session.checkpoint(state=objects)
            if session.step == STRIKE and session.rank == session.world - 1:
                strike(epoch)
        session.report({"plan": plan}, state=objects)
    weights = digest(*(p.detach().numpy() for p in model.parameters()))
    return {"history": session.history, "weights": weights}


def undisturbed(n: int, rows: int = ROWS_A_STEP):
    """The run in this process, without Ray and without anything that happens to it."""
    dynamic = raysel.DynamicSelection.local(raysel.InfoBatch(), n, num_epochs=EPOCHS, seed=SEED)
    config = {"n": n, "rows": rows, "losses": "function", "save": 0}
    return train(dynamic.session(), config, network())["history"]


def loop(config):
    import ray.train.torch

    faults = config["faults"]
    at = dict(zip(range(3 - len(faults), 3), faults, strict=True))  # the epoch of each

    def strike(epoch):
        if (fault := at.get(epoch)) is None:
            return
        marker = Path(config["directory"]) / f"struck-{fault}"
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        if fault == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "actor":
            os.kill(config["pids"][-1], signal.SIGKILL)
        else:  # somebody outside strikes
            while not marker.with_name("done").exists():
                time.sleep(0.1)

    torch.manual_seed(1)  # the same weights on every rank
    model = ray.train.torch.prepare_model(network())
    result = train(config["dynamic"].session(), config, model, strike)
    return {**result, "resumed": ray.train.get_checkpoint() is not None}


def fit(config, dynamic):
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    pids = [ray.get(a.__ray_call__.remote(lambda self: os.getpid())) for a in dynamic._keeper._keepers]
    began = time.monotonic()
    try:
        result = TorchTrainer(
            loop,
            train_loop_config={**config, "dynamic": dynamic, "pids": pids},
            scaling_config=ScalingConfig(num_workers=config["workers"], resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name="run",
                storage_path=f"{config['directory']}/train",
                failure_config=FailureConfig(max_failures=config["failures"]),
            ),
        ).fit()
        answer = {**result.return_value, "path": result.path}
    except ray.train.TrainingFailedError as error:
        answer = {"error": str(error)}
    answer["seconds"] = time.monotonic() - began
    (Path(config["directory"]) / "result.json").write_text(json.dumps(answer))


def on_one_machine(config):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20)
    with selection(config) as dynamic:
        fit(config, dynamic)
    left = [a for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "raysel"]
    assert not left, left


def on_nodes(config):
    """A head that only coordinates and two nodes; the one that holds a shard of the state is taken away."""
    import ray
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    head = {
        "num_cpus": 0,
        "object_store_memory": 200 * 2**20,
        "_system_config": quick,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20) for _ in range(2)]
    by_id = {node.node_id: node for node in nodes}
    ray.init(address=cluster.address)
    lost = None
    while lost is None:  # Ray puts an actor that needs nothing anywhere; the head cannot be taken away
        dynamic = selection(config)
        dynamic.__enter__()
        where = [
            ray.get(a.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
            for a in dynamic._keeper._keepers
        ]
        lost = next((by_id[node] for node in where if node in by_id), None)
        if lost is None:
            dynamic.__exit__(None, None, None)
    training = threading.Thread(target=fit, args=(config, dynamic))
    training.start()
    marker = Path(config["directory"]) / "struck-node"
    while not marker.exists() and training.is_alive():
        time.sleep(0.1)
    cluster.remove_node(lost, allow_graceful=False)  # from the main thread: Cluster asks for it
    marker.with_name("done").touch()
    training.join()
    dynamic.__exit__(None, None, None)
    ray.shutdown()
    cluster.shutdown()


def selection(config):
    return raysel.DynamicSelection(
        raysel.InfoBatch(), config["n"], num_epochs=EPOCHS, seed=SEED, shards=config["shards"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--faults", nargs="+", default=[], choices=["worker", "actor", "node", "driver"])
    parser.add_argument("--losses", choices=["function", "real"], default="function")
    parser.add_argument("--n", type=int, default=70_000)
    parser.add_argument("--rows", type=int, default=ROWS_A_STEP)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--save", type=int, default=0, help="a checkpoint after this step of every epoch")
    parser.add_argument("--failures", type=int, default=2)
    given = vars(parser.parse_args())
    on_nodes(given) if "node" in given["faults"] else on_one_machine(given)
    sys.exit(0)
