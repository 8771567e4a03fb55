"""Training loops to run as they are or to copy."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from raysel.data.store import ArrayDataset


def schedule(progress: float, warmup: float = 0.1) -> float:
    """Return the learning-rate factor at ``progress`` in [0, 1]: linear warm-up, then a cosine to zero.

    It depends on progress, not on steps, since dynamic epochs differ in length.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def classify(config: dict[str, Any]) -> dict[str, Any]:
    """Train a classifier in the workers of a TorchTrainer, in each epoch on the samples that the policy selects.

    Pass it as ``train_loop_per_worker``. It uses SGD with Nesterov momentum. One worker of Ray Train and a plain process return the same numbers, to the last bit.

    Parameters
    ----------
    config : dict
        ``dynamic`` (DynamicSelection); ``train`` (a directory of `raysel.data.store.write_arrays`), ``test`` and
        ``validation`` (such directories or None) and ``validation_ids`` (rows of it, None for all); ``model``
        (``factory(input_shape, classes) -> module``); ``batch_size`` (per worker), ``learning_rate``, ``momentum``,
        ``weight_decay``, ``seed``, ``threads``; ``alone``: true in a plain process, where ``dynamic`` is
        ``DynamicSelection.local(...)``.

    Returns
    -------
    dict
        ``history`` is that of the session, with ``metrics`` on the validation rows per epoch. ``metrics`` are on the
        test rows, which are scored once, after the last epoch. Both hold the ``accuracy``, and are empty without such
        rows. ``goal`` has the ``metric`` to report and its ``direction``, "max" or "min".
    """
    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])  # the same weights on every rank and in every arm
    train = ArrayDataset(config["train"])
    validation = ArrayDataset(config["validation"]) if config["validation"] else None
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
        metrics = {}
        if validation is not None:
            ids = config["validation_ids"]
            metrics["accuracy"] = evaluate(model, validation, device, session.rank, session.world, ids)
        spent = time.perf_counter() - began
        session.report(
            {"metrics": metrics, "evaluation_seconds": spent}, state={"model": model, "optimizer": optimizer}
        )
    test = ArrayDataset(config["test"]) if config["test"] else None
    metrics = {} if test is None else {"accuracy": evaluate(model, test, device, session.rank, session.world)}
    goal = {"metric": "accuracy", "direction": "max"}
    return {"history": session.history, "metrics": metrics, "goal": goal}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    data: ArrayDataset,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    ids: np.ndarray | None = None,
) -> float:
    """Return the share of rows that the model classifies correctly.

    Each rank scores its part and all ranks get the result.

    Parameters
    ----------
    ids : numpy.ndarray, optional
        Rows to score, by their ids; by default all of ``data``.
    """
    model.eval()
    bare = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    rows = np.arange(len(data)) if ids is None else ids
    right = torch.zeros((), dtype=torch.float64)
    for start in range(rank * 512, len(rows), world * 512):
        these = rows[start : start + 512]
        inputs = torch.from_numpy(data.inputs[these]).to(device)
        labels = torch.from_numpy(data.labels[these]).to(device)
        right += (bare(inputs).argmax(dim=1) == labels).sum().cpu()
    if world > 1:
        right = right.to(device)
        dist.all_reduce(right)
    return float(right) / len(rows)
