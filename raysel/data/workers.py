"""Tasks and workers that compute vectors: readers decode rows, and workers hold the loaded network."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from raysel.cluster.errors import unwrap_errors
from raysel.cluster.observe import count, task_name
from raysel.cluster.wait import Room, wait_for_cpu, wait_until
from raysel.data import shards
from raysel.data.shards import Stat, Unit, Work
from raysel.data.sources import Job
from raysel.errors import reason_of

_AHEAD = 2  # shards that wait for each worker, so that it never does
_WAIT_S = 120.0  # for the first worker to be placed and to load

logger = logging.getLogger(__name__)

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Resources:
    """Workers and readers that fit the cluster, and the resources of each."""

    workers: int
    worker: dict[str, float]
    readers: int
    reader: dict[str, float]
    device: str

    @classmethod
    def of(cls, device: str | None = None) -> Resources:
        """Return one worker per GPU if there are GPUs, else one per CPU, which leaves a part of it to the readers.

        With the device of an earlier start, at least one worker of this device, even if its node was lost: other devices
        give other vectors.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = max(1, sum(int(node.get("CPU", 0)) for node in nodes))
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if device == "cuda" or (gpus and device is None):
            gpus = max(1, gpus)
            return cls(gpus, {"num_gpus": 1, "num_cpus": 0}, min(cpus, 4 * gpus + 4), {"num_cpus": 1}, "cuda")
        return cls(cpus, {"num_cpus": 0.8}, max(1, cpus // 2), {"num_cpus": 0.1}, "cpu")


class _Worker:
    """Holds a loaded network. It is loaded by a call, since errors at creation would lose their class."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.run: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:  # the name of the actor on the dashboard
        return f"embedding on {self.device}"

    def load(self, work: Work) -> Callable[[Any], Any]:
        if self.run is None:
            self.run = shards.prepare_network(work.embedder, self.device)
        return self.run

    def ready(self, work: Work) -> None:
        self.load(work)

    def shard(self, rows: shards.Rows, work: Work) -> Stat:
        return shards.embed(rows, self.load(work), work)


def _embed_unit(unit: Unit, work: Work, *tables: pa.Table) -> Iterator[Stat]:
    """Do everything of a unit in one task, for embedders with nothing to load."""
    for rows in shards.read(unit, work, *tables):
        yield shards.embed(rows, work.embedder, work)


def run_jobs(jobs: list[Job], work: Work, progress: Progress, device: str) -> float:
    """Do every job; return the seconds until the first worker was ready."""
    held = ray.put(work)
    with unwrap_errors():
        if not hasattr(work.embedder, "load"):
            wait_for_cpu()
            stream = ray.remote(_embed_unit).options(
                name=task_name("vectors"),
                num_cpus=1,
                num_returns="streaming",
                scheduling_strategy="SPREAD",
                max_retries=3,
            )
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            _run_tasks(jobs, held, stream, 2 * cpus, progress)
            return 0.0
        return _run_workers(jobs, held, work, progress, device)


def _run_tasks(jobs: list[Job], work: ray.ObjectRef, stream: Any, most: int, progress: Progress) -> None:
    waiting, streams = deque(jobs), set[Any]()
    room = Room("Embedding", {"CPU": 1})
    while waiting or streams:
        while waiting and len(streams) < most:
            unit, refs = waiting.popleft()
            streams.add(stream.remote(unit, work, *refs))
        for one in ray.wait(list(streams), num_returns=1, timeout=1.0, fetch_local=False)[0]:
            try:
                progress.add(ray.get(next(one)).rows)
            except StopIteration:
                streams.remove(one)
        progress.show()
        room.check()


def _run_workers(jobs: list[Job], held: ray.ObjectRef, work: Work, progress: Progress, device: str) -> float:
    """Stream decoded shards from readers to the workers that hold the network."""
    began = time.monotonic()
    resources = Resources.of(device)
    # Not restarted: calls to a worker that waits for its restart would neither return nor fail.
    make = ray.remote(_Worker).options(**resources.worker, scheduling_strategy="SPREAD", max_restarts=0)
    read = ray.remote(shards.read).options(
        **resources.reader,
        name=task_name("read rows"),
        scheduling_strategy="SPREAD",
        num_returns="streaming",
        max_retries=3,
        _generator_backpressure_num_objects=_AHEAD,
    )
    wanted = sum(len(range(u.low, u.high, work.shard)) - len(u.done) for u, _ in jobs)
    workers = [make.remote(resources.device) for _ in range(min(resources.workers, wanted))]
    try:
        starting = {worker.ready.remote(held): worker for worker in workers}
        ready = wait_until(
            lambda limit: ray.wait(list(starting), num_returns=1, timeout=limit)[0],
            f"No embedding worker (it needs {_described(resources.worker)}) started",
            "Try again later, add a node, or free these resources; the vectors that are already computed are kept",
            _WAIT_S,
        )
        ray.get(ready)  # raises here if the network cannot be loaded
        start = time.monotonic() - began
        progress.start()
        _feed_workers(jobs, held, read, starting, resources, progress)
        return start
    finally:
        for worker in workers:
            ray.kill(worker)


def _described(resources: dict[str, float]) -> str:
    return " and ".join(
        f"{amount:g} {name.removeprefix('num_')[:-1].upper()}" for name, amount in resources.items()
    )


def _feed_workers(
    jobs: list[Job],
    held: ray.ObjectRef,
    read: Any,
    starting: dict[ray.ObjectRef, Any],
    resources: Resources,
    progress: Progress,
) -> None:
    """Feed the workers that are ready; one that is lost is left out, and the others do its shards."""
    waiting, streams = deque(jobs), set[Any]()
    decoded: deque[ray.ObjectRef] = deque()
    busy: dict[ray.ObjectRef, tuple[Any, ray.ObjectRef]] = {}
    loads: dict[Any, int] = {}
    room = Room("Embedding", {"CPU": resources.reader["num_cpus"]})
    while waiting or streams or decoded or busy:
        while waiting and len(streams) < resources.readers:
            unit, refs = waiting.popleft()
            streams.add(read.remote(unit, held, *refs))
        while decoded and min(loads.values(), default=_AHEAD) < _AHEAD:
            worker = min(loads, key=loads.__getitem__)
            loads[worker] += 1
            rows = decoded.popleft()
            busy[worker.shard.options(name=task_name("vectors")).remote(rows, held)] = worker, rows
        more = streams if len(decoded) <= len(loads) else set()
        for ref in ray.wait([*starting, *busy, *more], num_returns=1, timeout=1.0, fetch_local=False)[0]:
            if ref in streams:
                try:
                    decoded.append(next(ref))
                except StopIteration:
                    streams.remove(ref)
                continue
            worker, rows = busy.pop(ref) if ref in busy else (starting.pop(ref), None)
            try:
                found = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                if rows is not None:
                    decoded.appendleft(rows)
                if loads.pop(worker, None) is not None or rows is None:  # once per worker
                    logger.warning(
                        f"A worker that computed vectors was lost ({reason_of(error)}). Other workers, if there are any, compute the vectors of its rows."
                    )
                if not loads:
                    raise
                continue
            if rows is None:
                loads[worker] = 0
            else:
                loads[worker] -= 1
                progress.add(found.rows)
        progress.show()
        room.check()


class Progress:
    """Reports rows done, rows/s and the remaining time to ``watch`` about once per second."""

    def __init__(self, rows: int, watch: Watch | None) -> None:
        self.rows, self.watch, self.done = rows, watch, 0
        self.start()

    def start(self) -> None:
        """Measure the rate from now on."""
        self.began = self.shown = time.monotonic()

    def add(self, rows: int) -> None:
        """Count rows that are done."""
        self.done += rows
        count("raysel_rows_embedded", rows)

    def show(self) -> None:
        """Call ``watch`` if its last call was a second ago."""
        now = time.monotonic()
        if self.watch is None or now - self.shown < 1 or not self.done:
            return
        self.shown = now
        rate = self.done / (now - self.began)
        left = max(0, self.rows - self.done) / rate
        self.watch(f"{self.done:,} of {self.rows:,} rows, {rate:,.0f} rows/s, {_minutes(left)} left")


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"
