"""Ready-made training loops, to run as they are or to copy: they read top to bottom and hide nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from raysel.data.store import ArrayDataset


def schedule(progress: float, warmup: float = 0.1) -> float:
    """Learning-rate factor at ``progress`` in [0, 1]: linear warm-up, then a cosine to zero.

    It hangs on progress, not on steps, since dynamic epochs differ in length.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def classify(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Train a classifier on dynamically selected samples: a ``train_loop_per_worker`` for TorchTrainer.

    config: ``dynamic`` (DynamicSelection); ``train`` and ``test`` (directories of ``write_arrays``, test may be
    None); ``model`` (factory(input_shape, classes) -> module); ``batch_size`` (per worker), ``learning_rate``,
    ``momentum``, ``weight_decay``, ``seed``, ``threads``; ``alone``: true in a plain process, where ``dynamic`` is
    ``DynamicSelection.local(...)``. SGD with Nesterov momentum.
    Returns the session's history, ``mean_loss`` and ``accuracy`` of each epoch included. One worker of Ray Train and
    a plain process give the same numbers, to the last bit.
    """
    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])  # the same weights on every rank and in every arm
    train = ArrayDataset(config["train"])
    test = ArrayDataset(config["test"]) if config["test"] else None
    shape = tuple(train.inputs.shape[1:])
    model = config["model"](shape, len(train.classes))
    if config["alone"]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device)
    else:
        import ray.train.torch

        device = ray.train.torch.get_device()
        model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config["learning_rate"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        nesterov=config["momentum"] > 0,
    )

    session = config["dynamic"].session()
    session.restore({"model": model, "optimizer": optimizer})
    for _ in session.epochs():
        model.train()
        for batch in session.loader(train, batch_size=config["batch_size"]):
            for group in optimizer.param_groups:
                group["lr"] = config["learning_rate"] * schedule(session.progress)
            inputs, labels = batch.to(device).data
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            loss = session.loss(batch, losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        began = time.perf_counter()
        accuracy = None if test is None else evaluate(model, test, device, session.rank, session.world)
        metrics = {"accuracy": accuracy, "evaluation_seconds": time.perf_counter() - began}
        session.report(metrics, state={"model": model, "optimizer": optimizer})
    return session.history


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, data: ArrayDataset, device: torch.device, rank: int = 0, world: int = 1
) -> float:
    """Share of ``data`` that the model classifies rightly; each rank scores its part, all get the answer."""
    model.eval()
    bare = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    right = torch.zeros((), dtype=torch.float64)
    for start in range(rank * 512, len(data), world * 512):
        inputs = torch.from_numpy(data.inputs[start : start + 512].copy()).to(device)
        labels = torch.from_numpy(data.labels[start : start + 512]).to(device)
        right += (bare(inputs).argmax(dim=1) == labels).sum().cpu()
    if world > 1:
        right = right.to(device)
        dist.all_reduce(right)
    return float(right) / len(data)
