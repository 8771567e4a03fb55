"""Time GIO against the published package, on 20,000 x 20,000 points, and against the bare matrix product.

    python -m venv /tmp/published && /tmp/published/bin/pip install grad-info-opt
    python benchmarks/gio_speed.py --published /tmp/published/bin/python [--parts published exact assign large]

The output is Markdown tables. Both sides of every ratio are timed in the same run. The published package (jax, pyspark) is
installed in its own environment. Its ``GIOKL.fit`` runs on plain arrays, so no Spark session is started. The package is timed for
a few picks and extrapolated: the time of the first pick plus 99 times the mean of the later ones. This favours the package,
because its time per pick grows with the number of selected rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PICKS = 100
PUBLISHED = """
import json, random, sys, time
import numpy as np, jax.numpy as jnp
from GIO.GIOKL import GIOKL

class Timed(GIOKL):
    def __init__(self):  # without the Spark session, which fit does not use
        self.random_init = False
        self.times = [time.perf_counter()]
    def _get_nearest(self, sample, point):
        found = super()._get_nearest(sample, point)
        found.block_until_ready()
        self.times.append(time.perf_counter())
        return found

data = np.load(sys.argv[1])
random.seed(0)
gio = Timed()
_, kl, _ = gio.fit(jnp.array(data["pool"]), jnp.array(data["target"]), D=jnp.array(data["start"]),
    max_iter=int(sys.argv[2]) - 2, stop_criterion="data_size", v_init=sys.argv[3])
print(json.dumps({"times": np.diff(gio.times).tolist(), "kl": [float(k) for k in kl]}))
"""
EXACT = """
import json, resource, sys, time
import numpy as np
from raysel.gio import exact_select
rng = np.random.default_rng(0)
centres = rng.normal(size=(300, 64)) * 2
pool, target = ((centres[rng.integers(a, 300, 20_000)] + rng.normal(size=(20_000, 64))).astype("f4") for a in (0, 150))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
picks = exact_select(pool, target, 2000)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "kl": picks.kl[-1]}))
"""


def arrays() -> dict[str, np.ndarray]:
    """1,500 centroids and 1,500 target points, 384-D, of length about 1, as sentence embeddings are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 384))
    pool = centres[rng.integers(0, 60, 1500)] + rng.normal(size=(1500, 384))
    target = centres[rng.integers(0, 20, 1500)] + rng.normal(size=(1500, 384))
    start = rng.uniform(-1, 1, size=(20, 384))
    parts = {"pool": pool, "target": target, "start": start}
    return {
        name: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for name, x in parts.items()
    }


def published(options: argparse.Namespace) -> None:
    from raysel.gio import exact_select, gradient_select, kl

    data = arrays()
    pool, target, start = data["pool"], data["target"], data["start"]
    rows: list[list[Any]] = []
    base = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/arrays.npz", **data)  # type: ignore[arg-type]
        for init in ("mean", "jump") if options.published else ():
            command = [options.published, "-c", PUBLISHED, f"{folder}/arrays.npz", str(options.picks), init]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            first, later = found["times"][0], float(np.mean(found["times"][1:]))
            base[init] = first + (PICKS - 1) * later
            rows.append(
                [
                    f"grad-info-opt, `{init}`",
                    base[init],
                    "1",
                    f"{len(found['kl'])} picks: {found['kl'][-1]:.4f}",
                    "-",
                ]
            )
            name = f"{later:.2f} s a pick after the first, {first:.1f} s for the first ({len(found['times'])} picks timed)"
            print(f"published `{init}`: {name}", file=sys.stderr)
            again = gradient_select(pool, target, len(found["kl"]), start, init, stop=None)
            rows[-1][3] += f" (raysel: {again.kl[-1]:.4f})"
    chosen = {}
    runs: list[tuple[str, Any, str]] = [
        (
            f"`gradient_select`, `{init}`",
            lambda init=init: gradient_select(pool, target, PICKS, start, init, stop=None),
            init,
        )
        for init in ("mean", "jump")
    ]
    runs.append(
        ("`exact_select`, average", lambda: exact_select(pool, target, PICKS, "average", start=start), "mean")
    )
    runs.append(("`exact_select`, nearest (default)", lambda: exact_select(pool, target, PICKS), "mean"))
    runs.append(
        (
            "`exact_select`, nearest_mean, k = 5",
            lambda: exact_select(pool, target, PICKS, "nearest_mean"),
            "mean",
        )
    )
    for name, run, against in runs:
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            chosen[name] = run()
            seconds.append(time.perf_counter() - begin)
        took = min(seconds)
        faster = f"{base[against] / took:,.0f}" if against in base else "-"
        rows.append([name, took, faster, f"{kl(target, np.concatenate([start, pool[chosen[name].indices]]), 'average'):.4f}",
                     f"{kl(target, pool[chosen[name].indices]):.2f}"])  # fmt: skip
    table(
        f"{PICKS} picks, K = 1,500, D = 384, 1,500 target points",
        ["", "seconds", "times faster", "published KL, start points included", "k-NN KL of the picks, k = 1"],
        rows,
    )


def exact(_: argparse.Namespace) -> None:
    done = subprocess.run([sys.executable, "-c", EXACT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    matrix = 20_000 * 20_000 * 4 / 2**30
    table(
        "Exact selection of 2,000 of 20,000 against 20,000 target points, D = 64",
        ["seconds", "peak memory of the process", "one float32 distance matrix"],
        [[found["seconds"], f"{found['peak'] / 2**20:.2f} GiB", f"{matrix:.2f} GiB"]],
    )


def assignment(_: argparse.Namespace) -> None:
    from raysel.gio.quantize import assign

    rng = np.random.default_rng(0)
    rows, clusters, d, chunk = 10_000_000, 1500, 64, 100_000
    centroids = rng.normal(size=(clusters, d)).astype(np.float32)
    parts = [rng.normal(size=(chunk, d)).astype(np.float32) for _ in range(4)]
    columns, height = np.ascontiguousarray(centroids.T), 699  # as many rows at a time as `assign` takes
    out = np.empty((height, clusters), np.float32)
    seconds = {"bare": 0.0, "assign": 0.0}
    for at in range(rows // chunk):
        part = parts[at % len(parts)]
        begin = time.perf_counter()
        for start in range(0, chunk, height):
            block = part[start : start + height]
            np.matmul(block, columns, out=out[: len(block)])
        seconds["bare"] += time.perf_counter() - begin
        begin = time.perf_counter()
        assign(part, centroids)
        seconds["assign"] += time.perf_counter() - begin
    table(
        "Nearest of 1,500 centroids for 10^7 rows x 64, in chunks of 100,000",
        ["", "seconds", "rows per second", "rate against the product"],
        [
            [name, took, f"{rows / took:,.0f}", f"{seconds['bare'] / took:.2f}"]
            for name, took in (("bare float32 product", seconds["bare"]), ("`assign`", seconds["assign"]))
        ],
    )


def large(_: argparse.Namespace) -> None:
    from raysel.gio.quantize import assign, fit_centroids

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30_000, 64)).astype(np.float32) * 2
    pool = centres[rng.integers(0, 30_000, 1_000_000)] + rng.normal(size=(1_000_000, 64)).astype(np.float32)
    begin = time.perf_counter()
    centroids = fit_centroids(pool, 20_000)
    fitted = time.perf_counter()
    assign(pool, centroids)
    table(
        "K = 20,000, a million rows x 64",
        ["centroids found", "k-means, seconds", "assignment, seconds"],
        [[f"{len(centroids):,}", fitted - begin, time.perf_counter() - fitted]],
    )


def table(title: str, heads: list[str], rows: list[list[Any]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in rows:
        print(
            "| " + " | ".join(f"{x:,.2f}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True
        )


def main() -> None:
    parts = {"published": published, "exact": exact, "assign": assignment, "large": large}
    parser = argparse.ArgumentParser(description="Timings of GIO.")
    parser.add_argument("--published", type=Path, help="python of an environment with grad-info-opt")
    parser.add_argument("--picks", type=int, default=5, help="picks of the published package to time")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, load {os.getloadavg()[0]:.1f} at the start"
    )
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main()
