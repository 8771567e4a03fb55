"""Measure what streaming saves if decoding dominates: an epoch with half of the samples pruned against a full epoch.

    python benchmarks/stream.py [--rows 4000] [--side 512] [--group 400] [--epochs 4]

Rows are JPEG images of ``side`` x ``side`` pixels in Parquet, with ``group`` images per row group. After ``dynamic.planned``,
Pillow decodes them and scales them to 64 x 64. Both arms run in one process on one local cluster, and their epochs alternate.
The first epoch is not counted, because it starts Ray's workers. Training is left out: only the data pipeline is timed. One line
of JSON is added to benchmarks/results/stream.jsonl.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

RESULTS = Path(__file__).resolve().parent / "results" / "stream.jsonl"


def write_images(place: Path, rows: int, side: int, group: int) -> None:
    """Blurred noise, so that JPEG has something to do."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draw = np.random.default_rng(0)
    encoded = []
    for _ in range(64):  # as many different ones are enough: decoding does not remember
        coarse = Image.fromarray(draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        target = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
        encoded.append(target.getvalue())
    table = pa.table({"image": pa.array([encoded[i % 64] for i in range(rows)], pa.binary())})
    pq.write_table(table, place / "images.parquet", row_group_size=group)


def decode(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from PIL import Image

    small = [Image.open(io.BytesIO(image)).convert("RGB").resize((64, 64)) for image in columns["image"]]
    return {"sample_id": columns["sample_id"], "pixels": np.stack([np.asarray(image) for image in small])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--group", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    load = os.getloadavg()[0]

    import ray
    import torch

    import raysel
    from raysel.cluster.connect import quiet

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    quiet()
    policies = {"full": raysel.FullData(), "half": raysel.RoundRobin(0.5)}
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place), options.rows, options.side, options.group)
        rows = raysel.read(place)
        arms = {}
        for name, policy in policies.items():
            dynamic = raysel.DynamicSelection.local(policy, options.rows, num_epochs=options.epochs + 1)
            session = dynamic.session()
            arms[name] = (
                session,
                session.epochs(),
                dynamic.planned(rows).map_batches(decode, batch_size=None),
            )
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        samples: dict[str, int] = {}
        for epoch in range(options.epochs + 1):
            for name, (session, epochs, stream) in arms.items():
                next(epochs)
                began = time.perf_counter()
                for batch in session.stream(stream, batch_size=64, local_shuffle_buffer_size=256):
                    session.loss(batch, torch.zeros(len(batch.ids)))
                samples[name] = session.report()["trained"]
                if epoch:
                    seconds[name].append(time.perf_counter() - began)
    line = {
        "rows": options.rows,
        "side": options.side,
        "group": options.group,
        "cpus": ray.cluster_resources()["CPU"],
        "load_before": round(load, 1),
        "full_samples": samples["full"],
        "half_samples": samples["half"],
        "full_seconds": round(statistics.median(seconds["full"]), 2),
        "half_seconds": round(statistics.median(seconds["half"]), 2),
        "ratio": round(
            statistics.median(h / f for h, f in zip(seconds["half"], seconds["full"], strict=True)), 3
        ),
        "ratios": [round(h / f, 3) for h, f in zip(seconds["half"], seconds["full"], strict=True)],
    }
    print(json.dumps(line))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as sink:
        sink.write(json.dumps(line) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
