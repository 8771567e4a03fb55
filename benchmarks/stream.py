"""Measure streaming: what it saves if decoding dominates, and how fast it is next to memory-mapped arrays.

    python benchmarks/stream.py [--rows 4000] [--side 512] [--group 400] [--epochs 4]
    python benchmarks/stream.py --step 50 --rows 12800 --side 32 --epochs 2

Rows are JPEG images of ``side`` x ``side`` pixels in Parquet, with ``group`` images per row group. After ``dynamic.planned``,
Pillow decodes them and scales them to 64 x 64. Both arms run in one process on one local cluster, and their epochs alternate.
The first epoch is not counted, because it starts Ray's workers. Training is left out: only the data pipeline is timed. One line
of JSON is added to benchmarks/results/stream.jsonl.

With ``--step``, an epoch of all rows is streamed, and read from memory-mapped arrays, with training steps of this many
milliseconds. The process that trains has one CPU, and Ray Data another one. The arrays hold the encoded images, which this
process decodes; streamed images are decoded by Ray Data.
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


def rates(options: argparse.Namespace) -> None:
    """Print the rows/s of an epoch from arrays and from a stream, with a training step for every batch of 128 rows."""
    import ray
    import torch

    import raysel
    from raysel.cluster.connect import quiet
    from raysel.data.store import ColumnStore, write_columns
    from raysel.train.tasks.inputs import decoded, tensors

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    quiet()
    side = options.side
    layer, hidden = torch.nn.Linear(256, 256), torch.randn(128, 256)

    def prepare(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return decoded(columns, ["image"], side)

    def inputs(columns: dict[str, np.ndarray]) -> torch.Tensor:
        return tensors(columns, ["image"], side, None, 1)

    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place), options.rows, options.side, options.group)
        rows = raysel.read(f"{place}/images.parquet")
        write_columns(rows, f"{place}/arrays", ["image"])
        seconds: dict[str, list[float]] = {"arrays": [], "stream": []}
        sessions = {}
        for name in seconds:
            dynamic = raysel.DynamicSelection.local(
                raysel.FullData(), options.rows, num_epochs=options.epochs + 1
            )
            stream = dynamic.planned(rows).map_batches(prepare, batch_size=256, batch_format="numpy")
            sessions[name] = (dynamic.session(), stream)
        epochs = {name: session.epochs() for name, (session, _) in sessions.items()}
        for epoch in range(options.epochs + 1):
            for name, (session, stream) in sessions.items():
                next(epochs[name])
                began = time.perf_counter()
                if name == "arrays":
                    batches = session.loader(
                        ColumnStore(f"{place}/arrays"),
                        batch_size=128,
                        collate_fn=lambda samples: inputs(samples[0]),
                    )
                else:
                    batches = session.stream(stream, batch_size=128, collate_fn=inputs)
                for batch in batches:
                    until = time.perf_counter() + options.step / 1e3
                    while time.perf_counter() < until:
                        torch.relu(layer(hidden)).mean().backward()
                    session.loss(batch, batch.data.float().flatten(1).mean(1))
                if epoch:
                    seconds[name].append(time.perf_counter() - began)
                session.report()
    rate = {name: options.rows / statistics.median(times) for name, times in seconds.items()}
    print(json.dumps({
        "rows": options.rows, "side": options.side, "step_ms": options.step, "load": round(os.getloadavg()[0], 1),
        **{f"{name}_rows_per_second": round(value) for name, value in rate.items()},
        "ratio": round(rate["stream"] / rate["arrays"], 3),
    }))  # fmt: skip
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--group", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--step", type=float, default=None, help="milliseconds of a training step")
    options = parser.parse_args()
    if options.step is not None:
        rates(options)
        return
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
