"""Measure what dynamic selection costs: planning, losses into one actor, a training step, the change of epoch.

    python benchmarks/dynamic.py [--parts plan shard updates steps turnover]

The output is Markdown tables. Every part runs in its own processes. Planning is one process on one core. ``updates``, ``steps``
and ``turnover`` call a real actor on a local Ray cluster, as the workers of a run do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

PLAN = """
import json, os, re, resource, sys, time
import numpy as np
from raysel.dynamic import FullData, InfoBatch, RandomSubset, SampleState
from raysel.dynamic.shards import cut, spans
name, n, shards = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})  # one core
start, stop = spans(n, shards)[-1]
rng = np.random.default_rng(0)
state = SampleState(rng.standard_exponential(stop - start, dtype=np.float32), np.zeros(stop - start, np.int32))
policy = {
    "mean": lambda: InfoBatch(),
    "quantile": lambda: InfoBatch(threshold=0.5),
    "target": lambda: InfoBatch(target_saving=0.6),
    "classes": lambda: InfoBatch(classes=rng.integers(0, 1000, stop - start, dtype=np.int32)),
    "subset": lambda: RandomSubset(0.5),
}[name]()
def peak(reset=False):
    if os.path.exists("/proc/self/clear_refs"):  # Linux: the peak since it was reset
        if reset:
            open("/proc/self/clear_refs", "w").write("5")
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
InfoBatch().plan(SampleState.empty(1000), epoch=1, num_epochs=10, seed=0)
before, began, work = peak(reset=True), time.perf_counter(), time.process_time()
made = policy.plan_shard(state, start, n, epoch=1, num_epochs=10, seed=0)
sent = None
while True:  # the other shards are taken to have yielded nothing: the same work for this one
    try:
        sent = made.send(sent)
    except StopIteration as stop_:
        plan = stop_.value
        break
seconds, work = time.perf_counter() - began, time.process_time() - work
print(json.dumps({"samples": len(state), "seconds": seconds, "work": work, "peak": peak() - before, "planned": len(plan)}))
"""


def plans(options: argparse.Namespace) -> None:
    names = {
        "mean": "InfoBatch, mean",
        "quantile": "InfoBatch, threshold=0.5",
        "target": "InfoBatch, target_saving=0.6",
        "classes": "InfoBatch, 1,000 classes",
        "subset": "RandomSubset(0.5)",
    }
    rows = []
    for name, title in names.items():
        found = child(name, options.samples, 1)
        rows.append([title, found["seconds"], found["work"], found["peak"] / options.samples, share(found)])
    table(
        f"Plan of {options.samples:,} samples, one core",
        ["policy", "seconds", "CPU seconds", "peak, bytes per sample without the state", "planned"],
        rows,
    )


def shard(options: argparse.Namespace) -> None:
    shards, n = 16, 10 * options.samples
    found = child("mean", n, shards)
    size = found["samples"]
    table(
        f"{n:,} samples in {shards} shards: one shard of it, one core, InfoBatch",
        [
            "samples of the shard",
            "plan, seconds",
            "state, MB",
            "plan, peak MB without the state",
            "states of all shards, GB",
        ],
        [[f"{size:,}", found["seconds"], 8 * size / 1e6, found["peak"] / 1e6, 8 * n / 1e9]],
    )


def child(*words: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, *map(str, words)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def share(found: dict[str, Any]) -> str:
    return f"{100 * found['planned'] / found['samples']:.1f} %"


def updates(options: argparse.Namespace) -> None:
    """Count (id, loss) pairs per second into one actor, sent by two processes in buffers as a session sends them."""
    import ray

    from raysel.dynamic import FullData
    from raysel.dynamic.service import start_keepers

    n, rows = options.updates, []

    @ray.remote(num_cpus=0)
    class Sender:
        def __init__(self, client: Any, attempt: str, half: int) -> None:
            self.client, self.attempt = client, attempt
            self.slots = np.random.default_rng(half).permutation(client.plan(attempt, 0).slots[half::2])
            self.losses = np.ones(len(self.slots), np.float32)

        def send(self, buffer: int) -> float:
            for begin in range(0, len(self.slots), buffer):
                part = slice(begin, begin + buffer)
                self.client.update(self.attempt, 0, self.slots[part], self.losses[part])
            self.client.drain()
            return time.time()

    for buffer in (16_384, 65_536):
        client = start_keepers(FullData(), n, 1, 0)
        client.restore("a")
        senders = [Sender.remote(client, "a", half) for half in range(2)]
        ray.get([sender.send.remote(n) for sender in senders])  # warm: every page of the staging area exists
        worked = client._keepers[0].__ray_call__.remote
        before, rates = ray.get(worked(lambda self: time.process_time())), []
        for _ in range(3):
            began = time.perf_counter()
            ray.get([sender.send.remote(buffer) for sender in senders])
            rates.append(n / (time.perf_counter() - began) / 1e6)
        core = ray.get(worked(lambda self: time.process_time())) - before
        rows.append([f"{buffer:,}", max(rates), statistics.median(rates), 3 * n / core / 1e6])
        client.close()
    table(
        f"Losses into one actor of {n:,} samples from 2 processes",
        [
            "pairs per call",
            "million pairs/s, best of 3",
            "median",
            "million pairs per CPU second of the actor",
        ],
        rows,
    )


def steps(options: argparse.Namespace) -> None:
    """Measure what a session adds to a step of 20 ms: steps with a session and plain steps alternate.

    Between the measurements the host runs a network's layers until the 20 ms are over, as a training step does. The
    garbage collector skips the objects of the imports: its long rounds, which both kinds of steps cause, would be
    counted for whichever step they happen to interrupt.
    """
    import gc

    import torch
    from torch.utils.data import DataLoader, RandomSampler, TensorDataset

    from raysel.dynamic import FullData
    from raysel.dynamic.service import start_keepers
    from raysel.train.checkpoint_store import CheckpointStore
    from raysel.train.communicator import Communicator
    from raysel.train.run import Run
    from raysel.train.session import Session

    n, batch, step = 128_000, 128, 0.020
    data = TensorDataset(torch.randn(n, 16), torch.arange(n))
    client = start_keepers(FullData(), n, 1, 0)
    session = Session(Run({}, n, 1, 0, None, n), client, Communicator(), CheckpointStore(), None, None)
    next(session.epochs())
    selected = iter(session.loader(data, batch_size=batch))
    plain = iter(DataLoader(data, sampler=RandomSampler(data), batch_size=batch))

    layer, hidden = torch.nn.Linear(256, 256), torch.randn(batch, 256)

    def train(until: float) -> None:
        while time.perf_counter() < until:
            torch.relu(layer(hidden)).mean().backward()

    def with_session() -> None:
        made = next(selected)
        session.loss(made, made.data[0].square().mean(1))

    def without() -> None:
        x, _ = next(plain)
        x.square().mean(1).mean()

    gc.collect()
    gc.freeze()
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "session": []}
    for _ in range(session.steps_per_epoch):
        for name, once in (("plain", without), ("session", with_session)):
            began, core = time.perf_counter(), time.thread_time()
            once()
            wall, core = time.perf_counter() - began, time.thread_time() - core
            times[name].append((1e3 * wall, 1e3 * core))
            train(began + step)
    session.report()
    client.close()
    rows = [[name, *np.mean(t, axis=0).tolist(), *np.median(t, axis=0).tolist()] for name, t in times.items()]
    extra = [b - a for a, b in zip(rows[0][1:], rows[1][1:], strict=True)]
    table(
        f"Host time of a step of 20 ms (batch of {batch}, {session.total_steps:,} steps each), ms",
        ["", "mean", "mean, CPU time", "median", "median, CPU time"],
        [*rows, ["added", *extra], ["added, % of the step", *(100 * x / (1e3 * step) for x in extra)]],
    )


def turnover(options: argparse.Namespace) -> None:
    """Time the change from the last loss of an epoch to the first batch of the next, without Ray Train's report."""
    from raysel.dynamic import InfoBatch
    from raysel.dynamic.plan import batches
    from raysel.dynamic.service import start_keepers

    n, rows = options.turnover, []
    for shards in (1, 2):
        client = start_keepers(InfoBatch(), n, 4, 0, shards)
        client.restore("a")
        rng = np.random.default_rng(0)
        for epoch in range(4):
            began = time.perf_counter()
            plan = client.plan("a", epoch)
            planned = time.perf_counter()
            batches(len(plan), 256, 0, 8, 0, epoch)
            ordered = time.perf_counter()
            for part in np.array_split(plan.slots, max(len(plan) // 65_536, 1)):
                client.update("a", epoch, part, rng.standard_exponential(len(part), dtype=np.float32))
            client.drain()
            sent = time.perf_counter()
            client.commit("a", epoch)
            committed = time.perf_counter()
            client.state("a")
            fetched = time.perf_counter()
            if 1 <= epoch <= 2:  # epochs that prune
                times = [committed - sent, planned - began, ordered - planned]
                rows.append([shards, epoch, *times, sum(times), fetched - committed])
        client.close()
    table(
        f"Change of epoch at {n:,} samples, InfoBatch, seconds",
        ["shards", "epoch", "commit", "plan", "order (1 of 8 ranks)", "together", "state for the checkpoint"],
        rows,
    )


def table(title: str, heads: list[str], rows: list[list[Any]]) -> None:
    print(f"\n**{title}**, load {os.getloadavg()[0]:.1f}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        print(
            "| " + " | ".join(f"{x:,.3f}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True
        )


def main() -> None:
    parts = {"plan": plans, "shard": shard, "updates": updates, "steps": steps, "turnover": turnover}
    parser = argparse.ArgumentParser(description="Timings of dynamic selection.")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--samples", type=int, default=10**8, help="to plan")
    parser.add_argument("--updates", type=int, default=2 * 10**7, help="samples whose losses are sent")
    parser.add_argument("--turnover", type=int, default=10**7, help="samples of the epoch that changes")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, load {os.getloadavg()[0]:.1f} at the start"
    )
    for part in options.parts:
        if part in ("updates", "steps", "turnover"):
            import ray

            if not ray.is_initialized():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    object_store_memory=2 * 10**9,
                    logging_level="ERROR",
                )
        parts[part](options)


if __name__ == "__main__":
    main()
