"""Measure how fast rows become vectors, compared with the least work possible; see docs/evidence/speed.md.

    python benchmarks/embed.py text --model FOLDER [--rows 4096]   # MiniLM through Ray, and a plain loop over the model
    python benchmarks/embed.py columns [--rows 200000]             # column and pca:64, and reading alone
    python benchmarks/embed.py memory [--rows 10000 100000 ...]    # the driver's memory while vectors are written
    python benchmarks/embed.py nodes --model FOLDER [--rows 4096]  # one node of one core, and two

The text is glosses of WordNet (apt install wordnet-base). Each arm runs in its own process, with its own Ray cluster if it needs
one. The start-up time is printed separately. Each arm adds one line of JSON to benchmarks/results/embed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "embed.jsonl"
sys.path.insert(0, str(HERE.parent / "workflows"))


def texts(rows: int) -> list[str]:
    from wordnet import SOURCE, glosses

    found, _ = glosses(SOURCE)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:rows]]


def connect(cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    from raysel.cluster.connect import quiet

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1 << 30,
        logging_level="error",
    )
    quiet()


# ---- arms: each prints one JSON line ---------------------------------------------------------------------------


def bare(model: str, rows: int, threads: int) -> dict[str, Any]:
    """The loop one would write by hand: all texts in one call, which sorts them by length."""
    import torch

    began = time.perf_counter()
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu", local_files_only=True)
    encoder.encode(texts(64))
    start = time.perf_counter() - began
    lines = texts(rows)
    began = time.perf_counter()
    encoder.encode(lines, batch_size=32)
    return {"start": start, "seconds": time.perf_counter() - began}


def through_ray(model: str, rows: int, cpus: int, nodes: int = 0) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    import raysel
    from raysel.data.pipeline import compute

    began = time.perf_counter()
    cluster = None
    if nodes:
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    else:
        connect(cpus)
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": texts(rows)}), f"{folder}/t.parquet", row_group_size=4096)
        dataset = raysel.read(f"{folder}/t.parquet")
        embedder = raysel.fit_embedder(f"sentence-transformers:{model}")
        ready = time.perf_counter() - began
        report = compute(dataset, embedder, ["text"], f"{folder}/v")
    return {"start": ready + report.start_seconds, "seconds": report.seconds - report.start_seconds}


def columns(kind: str, rows: int) -> dict[str, Any]:
    """Read rows of 784 uint8 (or 256 float32 for the column) and, but for ``read``, make vectors of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import raysel
    from raysel.data.vectors import to_column

    rng = np.random.default_rng(0)
    pixels = kind.startswith("pixels")
    values = rng.integers(0, 256, (rows, 784), np.uint8) if pixels else rng.random((rows, 256), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"v": to_column(values)}), f"{folder}/t.parquet", row_group_size=8192)
        connect(2)
        dataset = raysel.read(f"{folder}/t.parquet")
        count(dataset)  # starts the workers
        answer: dict[str, Any] = {}
        if kind.endswith("pca"):
            began = time.perf_counter()
            embedder = raysel.fit_embedder("pca:64", dataset, column="v")
            answer["fit"] = time.perf_counter() - began
            count(raysel.embed(dataset.limit(8192), embedder, column="v"))
        best = np.inf
        for _ in range(3):
            data = dataset
            if not kind.endswith("read"):
                made = embedder if kind.endswith("pca") else "column"
                data = raysel.embed(dataset, made, column="v").select_columns(["sample_id", "embedding"])
            began = time.perf_counter()
            count(data)
            best = min(best, time.perf_counter() - began)
        return answer | {"seconds": best}


def count(dataset: Any) -> int:
    """Run a data set to its last row and keep nothing of it."""
    return sum(bundle.num_rows() for bundle in dataset.iter_internal_ref_bundles())


def memory(rows: int) -> dict[str, Any]:
    """Vectors (4,) of a column of numbers, written by tasks; the driver's own memory before and at its most."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import raysel
    from raysel.data.embedders.column import ColumnEmbedder
    from raysel.data.pipeline import compute
    from raysel.data.vectors import to_column

    with tempfile.TemporaryDirectory() as folder:
        with pq.ParquetWriter(
            f"{folder}/t.parquet", pa.schema([("v", pa.fixed_shape_tensor(pa.float32(), [4]))])
        ) as writer:
            for start in range(0, rows, 100_000):
                part = np.zeros((min(100_000, rows - start), 4), np.float32)
                writer.write_table(pa.table({"v": to_column(part)}))
        connect(2)
        compute(raysel.read({"v": np.zeros((10, 4), np.float32)}), ColumnEmbedder(), ["v"], f"{folder}/warm")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = compute(raysel.read(f"{folder}/t.parquet"), ColumnEmbedder(), ["v"], f"{folder}/v")
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"before_mb": before, "most_mb": most, "seconds": report.seconds}


# ---- the commands ----------------------------------------------------------------------------------------------


def arm(name: str, **options: Any) -> dict[str, Any]:
    """Run one arm in a fresh process and keep its line."""
    call = json.dumps([name, options])
    done = subprocess.run(
        [sys.executable, __file__, "arm", call], capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        sys.exit(f"{call} failed:\n{done.stderr[-3000:]}")
    answer = {"arm": name, **options, **json.loads(done.stdout.strip().splitlines()[-1])}
    if "seconds" in answer:
        answer["rows_per_second"] = answer["rows"] / answer["seconds"]
    answer["load"] = os.getloadavg()[0]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as log:
        log.write(json.dumps(answer) + "\n")
    shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in answer.items() if k != "model"}
    print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("text", "nodes", "columns", "memory"):
        command = commands.add_parser(name)
        if name in ("text", "nodes"):
            command.add_argument("--model", required=True, help="folder of a sentence-transformers model")
        if name == "memory":
            command.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
        else:
            command.add_argument("--rows", type=int, default=200_000 if name == "columns" else 4096)
    commands.add_parser("arm").add_argument("call")
    options = parser.parse_args()
    if options.command == "arm":
        name, given = json.loads(options.call)
        print(json.dumps(globals()[name](**given)))
    elif options.command == "text":
        model = str(Path(options.model).resolve())
        slow = arm("bare", model=model, rows=options.rows, threads=2)
        fast = arm("through_ray", model=model, rows=options.rows, cpus=2)
        print(f"through Ray at {fast['rows_per_second'] / slow['rows_per_second']:.0%} of the bare loop")
    elif options.command == "nodes":
        model = str(Path(options.model).resolve())
        one, two = (arm("through_ray", model=model, rows=options.rows, cpus=1, nodes=n) for n in (1, 2))
        print(f"two nodes at {two['rows_per_second'] / one['rows_per_second']:.2f}x one")
    elif options.command == "columns":
        kinds = ("pixels read", "pixels pca", "vectors read", "vectors column")
        rates = {k: arm("columns", kind=k, rows=options.rows)["rows_per_second"] for k in kinds}
        print(f"pca:64 at {rates['pixels pca'] / rates['pixels read']:.2f} of the rate of reading alone")
        print(f"column at {rates['vectors column'] / rates['vectors read']:.2f} of the rate of reading alone")
    else:
        for rows in options.rows:
            arm("memory", rows=rows)


if __name__ == "__main__":
    main()
