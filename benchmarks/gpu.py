"""Train every built-in task on a GPU, in each number format, compiled and under DDP; embed and select there; count synchronisations.

    python benchmarks/gpu.py [--tiny] [--device cpu]

The output is a Markdown table. With the sizes for a GPU it takes at most 8 minutes on one; ``--tiny`` has sizes for a test on CPUs.
A part that fails is written to the table with its error, the parts after it run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import raysel
from raysel.cluster.connect import connect
from raysel.data.embedders.network import runner
from raysel.data.store import ColumnStore, write_columns
from raysel.gio import exact_select, gradient_select
from raysel.train import loops
from raysel.train.optimizers import load_optimizer, load_schedule
from raysel.train.settings import Train
from raysel.train.tasks import Classification, Facts, LanguageModel, Regression, Segmentation

CLASSES, BUDGET = 10, 8 * 60


@dataclasses.dataclass(frozen=True)
class Sizes:
    rows: int = 20_000
    side: int = 64
    width: int = 128
    length: int = 128
    batch: int = 256
    epochs: int = 3
    steps: int = 50
    pool: int = 50_000
    dimensions: int = 384
    chosen: int = 500


TINY = Sizes(
    rows=48, side=8, width=8, length=8, batch=16, epochs=2, steps=3, pool=100, dimensions=8, chosen=20
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    sizes, device = TINY if options.tiny else Sizes(), options.device
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, raysel {raysel.__version__}\n")
    print("| part | result | GPU memory (GB) | seconds |\n|---|---|---|---|", flush=True)
    connect("local")
    failed, began = 0, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
        for title, part in parts(Path(folder), sizes, device):
            start = time.perf_counter()
            if start - began > BUDGET:
                print(f"| {title} | left out, because the time is over | | |")
                failed += 1
                continue
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            try:
                result = part()
            except Exception as error:
                failed += 1
                result = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                traceback.print_exc()
            memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if device == "cuda" else ""
            print(f"| {title} | {result} | {memory} | {time.perf_counter() - start:.1f} |", flush=True)
    return 1 if failed else 0


def parts(folder: Path, sizes: Sizes, device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    write(folder, sizes)
    images = Classification("image", "kind"), convolutions(sizes.width)
    tasks = {
        "classification": images,
        "regression": (Regression("image", "number"), convolutions(sizes.width)),
        "language model": (LanguageModel("text", max_length=sizes.length), transformer(sizes.width)),
        "segmentation": (Segmentation("image", "mask", num_classes=CLASSES), pixelwise(sizes.width)),
    }
    for name, task in tasks.items():
        yield name, lambda task=task: trained(folder, task, settings(sizes))
    for precision in ("bf16", "fp16"):
        for name in ("classification", "language model"):
            yield (
                f"{name}, {precision}",
                lambda p=precision, n=name: trained(folder, tasks[n], settings(sizes, precision=p)),
            )
    yield "classification, compiled", lambda: trained(folder, images, settings(sizes, compile=True))
    yield (
        "classification, bf16, accumulated and clipped",
        lambda: trained(folder, images, settings(sizes, precision="bf16", accumulate=2, clip=1.0)),
    )
    yield "classification, DDP, 2 ranks on one device", lambda: distributed(folder, sizes, device)
    yield "embedder, a network", lambda: embedded(sizes, device)
    yield "GIO, exact", lambda: selected(sizes, device, exact=True)
    yield "GIO, gradient", lambda: selected(sizes, device, exact=False)
    yield "device synchronisations per step", lambda: synchronisations(sizes, device)


# ---- rows and models ---------------------------------------------------------------------------------------------


def write(folder: Path, sizes: Sizes) -> None:
    rng, n = np.random.default_rng(0), sizes.rows
    kinds = rng.integers(0, CLASSES, n)
    image = (
        rng.integers(0, 64, (n, 3, sizes.side, sizes.side), dtype=np.uint8)
        + (kinds * 16).astype(np.uint8)[:, None, None, None]
    )
    columns = {
        "image": image.astype(np.float32) / 255,
        "kind": np.array([f"{kind}" for kind in kinds]),
        "number": kinds.astype(np.float32),
        "mask": np.broadcast_to(kinds[:, None, None], (n, sizes.side, sizes.side)).astype(np.uint8),
        "text": np.array([f"{kind} " * (sizes.length // 4 + kind) for kind in kinds]),
    }
    known = {"kind": [f"{kind}" for kind in range(CLASSES)]}
    rows = raysel.read(columns)
    for role, count in (("pool", None), ("test", n)):
        chosen = rows if count is None else raysel.Selection.of(np.arange(0, n, 10)).rows(rows)
        write_columns(chosen, folder / role, list(columns), classes=known, rows=count)


def convolutions(width: int) -> Callable[[Any, int], nn.Module]:
    def made(shape: Any, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(shape[0], width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs),
        )  # fmt: skip

    return made


def pixelwise(width: int) -> Callable[[Any, int], nn.Module]:
    def made(shape: Any, classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(shape[0], width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    return made


class Transformer(nn.Module):
    def __init__(self, codes: int, length: int, width: int) -> None:
        super().__init__()
        self.codes, self.places = nn.Embedding(codes, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, 0.0, batch_first=True)
        self.layers, self.head = (
            nn.TransformerEncoder(layer, 4, enable_nested_tensor=False),
            nn.Linear(width, codes),
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        count = input_ids.shape[1]
        later = torch.ones(count, count, dtype=torch.bool, device=input_ids.device).triu(1)
        found = self.codes(input_ids) + self.places.weight[:count]
        return self.head(self.layers(found, mask=later))


def transformer(width: int) -> Callable[[int, int], nn.Module]:
    return lambda codes, length: Transformer(codes, length, width)


def settings(sizes: Sizes, **more: Any) -> Train:
    return Train(epochs=sizes.epochs, batch_size=sizes.batch, optimizer="AdamW", learning_rate=1e-3, **more)


# ---- parts -------------------------------------------------------------------------------------------------------


def trained(folder: Path, task: tuple[Any, Any], used: Train) -> str:
    store = ColumnStore(folder / "pool")
    dynamic = raysel.DynamicSelection.local(raysel.InfoBatch(), len(store), num_epochs=used.epochs)
    found = loops.train(
        {
            "dynamic": dynamic,
            "data": {
                "facts": Facts(store.columns, store.classes, task[1]),
                "pool": folder / "pool",
                "test": folder / "test",
            },
            "task": task[0],
            "settings": used,
            "optimizer": load_optimizer(used.optimizer, used.learning_rate),
            "schedule": load_schedule(used.schedule),
            "seed": 0,
            "threads": torch.get_num_threads(),
            "model_folder": None,
            "alone": True,
        }
    )
    last = found["history"][-1]  # the first epoch compiles and warms up
    value = found["metrics"][task[0].metric]
    assert last["nonfinite"] == 0 and value is not None and math.isfinite(value), found
    return f"{last['trained'] / last['seconds']:,.0f} rows/s, {task[0].metric} {value:.4g}"


def distributed(folder: Path, sizes: Sizes, device: str) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, folder, sizes, device), nprocs=2)
    return (folder / "ddp.txt").read_text()


def _rank(rank: int, port: int, folder: Path, sizes: Sizes, device: str) -> None:
    """One rank: NCCL refuses two ranks on one GPU, so gloo connects them."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    store = ColumnStore(folder / "pool")
    task = Classification("image", "kind")
    facts = Facts(store.columns, store.classes, convolutions(sizes.width))
    model = nn.parallel.DistributedDataParallel(task.model(facts).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    dynamic = raysel.DynamicSelection.local(raysel.InfoBatch(), len(store), num_epochs=sizes.epochs)
    session = dynamic.session()
    for _ in session.epochs():
        for batch in session.loader(
            store, batch_size=sizes.batch // 2, collate_fn=lambda samples: task.collate(samples[0])
        ):
            batch = batch.to(torch.device(device))
            session.loss(batch, task.losses(model, batch.data)).backward()
            optimizer.step()
            optimizer.zero_grad()
        session.report()
    last = session.history[-1]
    same = model.module.state_dict()["8.weight"].double().sum().reshape(1).cpu()
    both = [torch.zeros_like(same) for _ in range(2)]
    dist.all_gather(both, same)
    assert torch.equal(*both), "The ranks have different weights."
    if rank == 0:
        text = f"{last['trained'] / last['seconds']:,.0f} rows/s, loss {last['mean_loss']:.4g}"
        (folder / "ddp.txt").write_text(text)
    # If it were freed after the group, torch could wait for a thread that waits for the interpreter's lock.
    del model
    dist.destroy_process_group()


def embedded(sizes: Sizes, device: str) -> str:
    model = convolutions(sizes.width)((3, sizes.side, sizes.side), sizes.dimensions)
    rows = np.random.default_rng(0).random((sizes.rows, 3, sizes.side, sizes.side), dtype=np.float32)
    on_cpu = runner(model, "cpu")(rows[: sizes.batch])
    run = runner(model, device)
    run(rows[: sizes.batch])
    began = time.perf_counter()
    vectors = np.concatenate([run(rows[at : at + sizes.batch]) for at in range(0, len(rows), sizes.batch)])
    seconds = time.perf_counter() - began
    away = float(np.abs(vectors[: sizes.batch] - on_cpu).max())
    assert vectors.shape == (sizes.rows, sizes.dimensions) and away < 1e-2, away
    return f"{len(rows) / seconds:,.0f} rows/s, at most {away:.1e} from the CPU's"


def selected(sizes: Sizes, device: str, *, exact: bool) -> str:
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(sizes.pool, sizes.dimensions)).astype(np.float32)
    target = rng.normal(1.5, 0.5, (sizes.chosen, sizes.dimensions)).astype(np.float32)
    select = exact_select if exact else gradient_select
    few = pool[: max(100, sizes.pool // 10)] if exact else pool
    count = sizes.chosen // 5
    seconds, chosen = {}, {}
    for where in dict.fromkeys(("cpu", device)):
        began = time.perf_counter()
        chosen[where] = select(few, target, count, k=5, device=where)
        seconds[where] = time.perf_counter() - began
    assert len(chosen[device]) and len(chosen["cpu"]), "No row was selected."
    same = np.mean(np.isin(chosen[device].indices, chosen["cpu"].indices))
    return f"{seconds[device]:.2f} s, on the CPU {seconds['cpu']:.2f} s; {same:.0%} of the rows are the same"


def synchronisations(sizes: Sizes, device: str) -> str:
    """Steps with a session, and the same steps without one, in torch's mode that warns of every synchronisation."""
    inputs = torch.randn(sizes.steps * sizes.batch, 32)
    labels = torch.randint(0, CLASSES, (len(inputs),))
    data = torch.utils.data.TensorDataset(inputs, labels)
    counts = {}
    for name in ("without", "with"):
        dynamic = raysel.DynamicSelection.local(raysel.FullData(), len(inputs), num_epochs=1)
        session = dynamic.session()
        model = nn.Linear(32, CLASSES).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in session.epochs():
            counts[name] = 0
            for batch in session.loader(data, batch_size=sizes.batch, pin_memory=device == "cuda"):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    _synchronisation("warn", device)
                    moved = batch.to(torch.device(device))
                    x, y = moved.data
                    losses = F.cross_entropy(model(x), y, reduction="none")
                    loss = session.loss(moved, losses) if name == "with" else losses.mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    _synchronisation("default", device)
                counts[name] += sum("synchroniz" in str(one.message) for one in caught)
                if name == "without":  # an epoch without recorded losses cannot be reported
                    session.loss(batch.to(torch.device(device)), losses.detach())
            session.report()
    each = {name: count / sizes.steps for name, count in counts.items()}
    assert counts["with"] <= counts["without"], counts
    return f"{each['with']:.2f} with a session, {each['without']:.2f} without"


def _synchronisation(mode: str, device: str) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


if __name__ == "__main__":
    sys.exit(main())
