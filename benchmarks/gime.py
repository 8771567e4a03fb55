"""Measure the cost of the eleven metrics: microseconds per row, the size of a state, and the time against reading alone.

    python benchmarks/gime.py [--rows 1000000] [--ray]

The output is Markdown tables. Times are CPU seconds on one core, the best of three. The columns are integers, times, floats
and short text with 10^5 entities and 10^6 contents, so that sketches are used. ``--ray`` adds wall-clock seconds of
`raysel.GIME.measure`, and of Ray Data only reading the same columns of the same Parquet files in the same run. It also adds the
largest memory of any process of Ray or of this process, without shared memory, for half of the rows and for all.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.gime import Binding, finalize, merge, partial, with_target

TIMES: dict[str, Any] = {"event_time": "at", "record_time": "seen"}
METRICS: dict[str, dict[str, Any]] = {
    "volume (entropy), distortion (null), coverage (copies)": {"content": ["x", "y", "city"]},
    "delay, duration, sampling rate": TIMES,
    "scope, granularity": {"entity": "who", "size": "area"},
    "sampling rate by entity": {"entity": "who", "event_time": "at"},
    "variety": {"classes": "label"},
    "aggregation": {"relation": "who"},
    "coverage (carriers)": {"content": ["x"], "carrier": "file"},
    "distortion (reference, bounds)": {"reference": {"label": "truth"}, "bounds": {"x": (-4, 4)}},
}
ALL = Binding(
    entity="who",
    size="area",
    classes="label",
    relation="who",
    content=["x", "y", "city"],
    carrier="file",
    reference={"label": "truth"},
    bounds={"x": (-4, 4)},
    **TIMES,
)


def rows(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    happened = 1_700_000_000 * 10**9 + rng.integers(0, 365 * 86_400, count) * 10**9
    cities = pa.array([f"city of number {i}" for i in range(300)])
    return pa.table(
        {
            "who": rng.integers(0, 100_000, count),
            "at": pa.array(happened, pa.timestamp("ns", "UTC")),
            "seen": pa.array(happened + rng.integers(0, 10**5, count) * 10**9, pa.timestamp("ns", "UTC")),
            "area": rng.random(count),
            "label": rng.integers(0, 100, count),
            "truth": rng.integers(0, 100, count),
            "x": rng.normal(size=count),
            "y": rng.normal(size=count).astype(np.float32),
            "city": cities.take(pa.array(rng.integers(0, 300, count))),
            "file": rng.integers(0, 50, count),
        }
    )


def best(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    found = []
    for _ in range(3):
        start = clock()
        function()
        found.append(clock() - start)
    return min(found)


def pure(count: int) -> None:
    table = rows(count)
    aimed = with_target(ALL, rows(20_000, 1))
    print(f"| metric | µs per row | state, kB |\n|---|---|---|\n| {'volume (rows, bytes)'} | "
          f"{_cost(table, Binding(bounds={'area': (None, None)})):.3f} | |")  # fmt: skip
    for name, roles in METRICS.items():
        binding = Binding(**roles)
        print(f"| {name} | {_cost(table, binding):.3f} | {partial(table, binding).nbytes() / 1000:.0f} |")
    states = Binding(content=["x", "y", "city"])
    alone, with_mismatch = _cost(table, states), _cost(table, with_target(states, rows(20_000, 1)))
    print(f"| mismatch (states), in addition to content | {with_mismatch - alone:.3f} | |")
    print(
        f"| **all eleven, no target** | {_cost(table, ALL):.3f} | {partial(table, ALL).nbytes() / 1000:.0f} |"
    )
    print(
        f"| **all eleven, target** | {_cost(table, aimed):.3f} | {partial(table, aimed).nbytes() / 1000:.0f} |"
    )
    one, two = partial(table.slice(0, count // 2), aimed), partial(table.slice(count // 2), aimed)
    print(f"\nmerge of two states {best(lambda: merge(one, two)) * 1e3:.1f} ms, finalize {best(lambda: finalize(one)) * 1e3:.1f} ms; "
          f"by 50 files {_cost(table, aimed, 'file'):.3f} µs per row; state after {count:,} rows {partial(table, aimed).nbytes():,} B, after "
          f"a tenth {partial(table.slice(0, count // 10), aimed).nbytes():,} B")  # fmt: skip


def _cost(table: pa.Table, binding: Binding, by: str | None = None) -> float:
    return best(lambda: partial(table, binding, by)) / table.num_rows * 1e6


def with_ray(count: int) -> None:
    import ray

    import raysel

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        part = min(count, 1_000_000)
        for at in range(count // part):
            pq.write_table(rows(part, at), f"{folder}/{at:04}.parquet")
        gime = raysel.GIME(with_target(ALL, rows(20_000, 1)))

        def read(paths: list[str]) -> None:
            data = ray.data.read_parquet(paths, columns=ALL.columns)
            for _ in data.map_batches(_touch, batch_format="pyarrow", batch_size=None).iter_batches(
                batch_size=None
            ):
                pass

        def measured(paths: list[str]) -> None:
            gime.measure(ray.data.read_parquet(paths))

        print(
            f"\nRay on {int(ray.cluster_resources()['CPU'])} cores\n\n| rows | read only, s | all eleven metrics, s | ratio | memory, MB |\n|---|---|---|---|---|"
        )
        for files in dict.fromkeys((max(count // part // 2, 1), count // part)):
            paths = [f"{folder}/{at:04}.parquet" for at in range(files)]
            reading = best(lambda paths=paths: read(paths), time.perf_counter)  # type: ignore[misc]
            with Watched() as memory:
                measuring = best(lambda paths=paths: measured(paths), time.perf_counter)  # type: ignore[misc]
            print(
                f"| {files * part:,} | {reading:.1f} | {measuring:.1f} | {measuring / reading:.2f} | {memory.most / 1e6:.0f} |"
            )
    ray.shutdown()


class Watched:
    """The most memory that this process or one of Ray's workers held meanwhile: resident, without what is shared."""

    def __enter__(self) -> Watched:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    mine = int(process.name) == os.getpid()
                    if mine or (process / "cmdline").read_bytes().startswith(b"ray::"):
                        resident, shared = (int(n) for n in (process / "statm").read_text().split()[1:3])
                        self.most = max(self.most, (resident - shared) * os.sysconf("SC_PAGE_SIZE"))
                except (OSError, ValueError):  # it ended meanwhile
                    continue


def _touch(table: pa.Table) -> pa.Table:
    return pa.table({"rows": [table.num_rows]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    pure(min(options.rows, 1_000_000))
    if options.ray:
        with_ray(options.rows)
