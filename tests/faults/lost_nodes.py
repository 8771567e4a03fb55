"""A process of its own that loses nodes while it measures, selects and trains: ``python lost_nodes.py DATA OUT NODES``.

The head has no CPU, and every other node has one. A task of ``measure`` and of ``select``, and the workers of a training,
are killed with their node. With ``NODES`` = 1 no node is left then; a new one is added, and the same command is repeated.
Every command prints one line of JSON: its error, or what it found.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}

import ray
from ray.cluster_utils import Cluster

import raysel
from raysel.cluster import blocks, connect, wait
from raysel.errors import RayselError
from raysel.workflow import config, directory, workers

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


MODEL = """
import pathlib, time
import ray, torch

class Slow(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

    def forward(self, images):
        if self.training:
            time.sleep(0.1)
            pathlib.Path({mark!r}).write_text(ray.get_runtime_context().get_node_id())
        return self.layers(images)
"""


def doomed(function, mark, package=""):
    """Return ``function``, whose first call for a package writes its node to ``mark`` and waits to be killed with it."""

    def called(*given):  # pickled by value, since it is of the main module
        if package and not given[0].__module__.startswith(package):
            return function(*given)
        try:
            descriptor = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return function(*given)
        os.write(descriptor, ray.get_runtime_context().get_node_id().encode())
        os.close(descriptor)
        time.sleep(300)

    return called


def main(data: Path, out: Path, count: int) -> None:
    head = {"num_cpus": 0, "object_store_memory": 150 << 20, "include_dashboard": False}
    head["_system_config"] = QUICK
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = []

    def add() -> None:
        nodes.append(cluster.add_node(num_cpus=1, object_store_memory=150 << 20))

    for _ in range(count):
        add()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    connect.quiet()
    wait._LOOK_S, wait._LACK_S, workers.STARTS, directory._REPEAT_S = 1.0, 4.0, 1, 2.0

    def measure() -> object:
        blocks._answers = doomed(answer, str(out / "struck-measure"))
        return sorted(
            raysel.measure(flow(gime={"binding": {"classes": "label"}, "by": "label"}), out / "m").groups
        )

    def run() -> object:
        blocks._call = doomed(call, str(out / "struck-select"), "raysel.gio")
        found = raysel.run(flow(), out / "run")
        return [found.selection.kept, len(found.arms["chain"].epochs)]

    def flow(**more):
        tree = {"controls": [], **more}
        tree |= {f"{role}.path": str(data / f"{role}.parquet") for role in ("pool", "target", "test")}
        tree |= {"train.cpus_per_worker": 0.5, "train.epochs": 8, "train.model": str(out / "m.py:Slow")}
        tree["train.version"] = "1"
        settings = [f"{key}={json.dumps(value)}" for key, value in tree.items()]
        return config.load(ROOT / "workflows/quickstart.yaml", settings)

    def task_of(name: str):
        """Return the node on which a task of a step waits for its end; None before."""
        mark = out / f"struck-{name}"
        found = mark.read_text() if mark.exists() else ""
        return next((node for node in nodes if node.node_id == found), None)

    def training():
        """Return the node on which the workers of the training are; None before their first checkpoint."""
        saved = any((out / "run/steps").glob("train-chain-*/checkpoints/*"))
        return task_of("train") if saved else None

    def do(work, *faults) -> None:
        """Work in a thread, and kill the nodes that ``faults`` return from the main thread, as Ray wants it."""

        def body() -> None:
            try:
                said: object = work()
            except RayselError as error:
                said = str(error)
            print(json.dumps(said), flush=True)

        thread = threading.Thread(target=body)
        thread.start()
        for fault in faults:
            while thread.is_alive() and (node := fault()) is None:
                time.sleep(0.1)
            if thread.is_alive():
                nodes.remove(node)
                cluster.remove_node(node, allow_graceful=False)
        thread.join()
        while not nodes:
            add()

    (out / "m.py").write_text(MODEL.format(mark=str(out / "struck-train")))
    call, answer = blocks._call, blocks._answers
    do(measure, lambda: task_of("measure"))
    if count == 1:
        do(measure)
        do(run, lambda: task_of("select"))
        do(run, training)
        do(run)
    else:
        do(run, lambda: task_of("select"), training)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
