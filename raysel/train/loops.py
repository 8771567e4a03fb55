"""The training loop of workflows, to run as it is or to copy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raysel.core import storage
from raysel.errors import RunError
from raysel.train.batch import Batch, moved
from raysel.train.data import TrainingData
from raysel.train.epoch_log import EpochLog
from raysel.train.objects import load_state_dicts, state_dicts
from raysel.train.optimizers import schedule
from raysel.train.trackers import Tracking

if TYPE_CHECKING:
    from raysel.train.dynamic import DynamicSelection

WEIGHTS = "model.safetensors"


def train(config: dict[str, Any]) -> dict[str, Any]:
    """Train a task on dynamically selected samples, as the ``train_loop_per_worker`` of a TorchTrainer.

    One worker of Ray Train and a plain process return the same numbers, to the last bit.

    Parameters
    ----------
    config : dict
        ``dynamic`` (DynamicSelection), ``data`` (arguments of TrainingData), ``task`` (Task), ``settings`` (Train),
        ``optimizer`` and ``schedule`` (what their names stand for), ``seed``, ``threads``; ``model_folder`` (where the
        trained model is saved, or None); ``epoch_log`` (the folder for what every epoch trained), if any; ``trackers`` and ``training`` (see `raysel.train.trackers`), if any; ``alone``:
        true in a plain process, where ``dynamic`` is ``DynamicSelection.local(...)``.

    Returns
    -------
    dict
        ``history`` is that of the session, with the ``metrics`` on the validation rows per epoch. ``metrics`` are those
        on the test rows, which are scored once, after the last epoch. Both are empty without such rows. ``goal`` has the
        ``metric`` of the task and its ``direction``.
    """
    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])  # the same weights on every rank and in every arm
    task, settings = config["task"], config["settings"]
    data = TrainingData(**config["data"], seed=config["seed"])
    model, device = _placed(task.model(data.facts), settings, config["alone"])
    optimizer = config["optimizer"](model.parameters())
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    best = Best(task.direction)
    objects: dict[str, Any] = {"model": model, "optimizer": optimizer}
    objects |= {"scaler": scaler} if settings.precision == "fp16" else {}
    objects |= {"best": best} if settings.keep == "best" or settings.patience else {}

    session = _logged(config).session()
    session.restore(objects)
    tracking = Tracking(config.get("trackers", ()), config.get("training"), session)
    batch_size, accumulate = settings.batches(settings.most_workers if config["alone"] else session.world)
    validated, patience = data.has("validation"), settings.patience or math.inf
    metrics: dict[str, float | None] = {}  # of the last evaluation in the epoch
    scored, seconds = 0, 0.0  # the run's optimizer steps before it, and what the epoch's evaluations took

    def validate(steps: int) -> None:
        nonlocal metrics, scored, seconds
        began = time.perf_counter()
        metrics = evaluate(task, model, data, "validation", settings, device, session.rank, session.world)
        if "best" in objects:
            best.offer(session.epoch, metrics[task.metric], model, weights=settings.keep == "best")
        model.train()
        scored, seconds = steps, seconds + time.perf_counter() - began

    for epoch in session.epochs():
        if best.waited >= patience:  # before the attempt that this one resumes ended
            break
        model.train()
        metrics, seconds = {}, 0.0
        batches = data.batches(session, task.collate, batch_size=batch_size, accumulate=accumulate)
        for number, batch in enumerate(batches, start=1):
            is_step = number % accumulate == 0
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(
                    session.progress, settings.warmup, config["schedule"]
                )
            with nullcontext() if is_step else _unsynchronised(model):
                with _precision(settings.precision, device):
                    found = task.losses(model, batch.to(device).data)
                loss = _mean(session, batch, found) / accumulate
                scaler.scale(loss).backward()
            if is_step:
                if settings.clip is not None:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                steps = session.total_steps + session.step
                if validated and settings.evaluates_after_step(steps):
                    validate(steps)
                    if best.waited >= patience:
                        break
        steps = session.total_steps + session.step
        ends = session.progress >= 1 and scored < steps
        if validated and (settings.evaluates_after_epoch(epoch) or ends):
            validate(steps)
        tracking.epoch(session.report({**metrics, "evaluation_seconds": seconds}, state=objects))
        if best.waited >= patience:
            break
    if settings.keep == "best":
        best.restore(model, session.world)
    tested = data.has("test")
    metrics = (
        evaluate(task, model, data, "test", settings, device, session.rank, session.world) if tested else {}
    )
    tracking.close(metrics)
    if config["model_folder"] is not None:
        save_model(model, config["model_folder"], session.rank)
    return {"history": session.history, "metrics": metrics, "goal": goal_of(task)}


def own(config: dict[str, Any]) -> dict[str, Any]:
    """Run a training loop of the user's own, and return what :func:`train` returns.

    Raises
    ------
    RunError
        If the loop did not use a session, ended within an epoch, or did not return the metric of the task.
    """
    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])
    settings, dynamic = config["settings"], _logged(config)
    data = TrainingData(**config["data"], seed=config["seed"])
    given = {"dynamic": dynamic, "data": data, "task": config["task"], "options": settings.options}
    given |= {
        name: getattr(settings, name) for name in ("epochs", "batch_size", "accumulate", "learning_rate")
    }
    given |= {"seed": config["seed"], "model_folder": config["model_folder"]}
    returned = config["loop"]({**given, "checkpoints": config.get("checkpoints")})
    session, name = dynamic.made, settings.loop
    if session is None:
        raise RunError(
            f"train.loop: {name} trained without a session, so it did not follow the plans of the policy; "
            "call config['dynamic'].session()."
        )
    if session.plan is not None or not session.history:
        raise RunError(
            f"train.loop: {name} returned within epoch {session.epoch}; call session.report() at the end of every epoch."
        )
    if not isinstance(returned, Mapping):
        raise RunError(
            f"train.loop: {name} returned a {type(returned).__name__}; return a dict with the metrics on the test rows, or "
            "an empty dict if the workflow has no test rows."
        )
    if data.has("test") and config["task"].metric not in returned:
        raise RunError(
            f"train.loop: {name} returned no metric '{config['task'].metric}', but this is the metric of the task; return it, "
            "computed on the test rows."
        )
    metrics = {key: _finite(value) for key, value in returned.items()}
    return {"history": session.history, "metrics": metrics, "goal": goal_of(config["task"])}


def _logged(config: dict[str, Any]) -> DynamicSelection:
    """Return the dynamic selection, whose sessions write what every epoch trained if there is a folder for it."""
    dynamic: DynamicSelection = config["dynamic"]
    if config.get("epoch_log") is not None:
        dynamic.epoch_log = EpochLog(config["epoch_log"])
    return dynamic


def goal_of(task: Any) -> dict[str, str]:
    """Return the metric that a task reports and its direction."""
    return {"metric": task.metric, "direction": task.direction}


@torch.no_grad()
def evaluate(
    task: Any,
    model: torch.nn.Module,
    data: TrainingData,
    role: str,
    settings: Any,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float | None]:
    """Return the task's metrics on the "validation" or "test" rows; None for one that is not finite.

    Each rank scores its part and all ranks get the result.
    """
    model.eval()
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    total: dict[str, torch.Tensor] = {}
    size = max(settings.batch_size, 64)
    for batch, counts in data.scored(role, task.collate, batch_size=size, rank=rank, world=world):
        with _precision(settings.precision, device):
            sums = task.sums(bare, moved(batch, device))
        for name, value in sums.items():
            value = value.detach().cpu().double() * counts
            total[name] = total[name] + value if name in total else value
    if world > 1:
        for name in sorted(total):
            there = total[name].to(device)
            dist.all_reduce(there)
            total[name] = there.cpu()
    return {name: _finite(value) for name, value in task.metrics(total).items()}


class Best:
    """The best value of the metric so far, and the weights that reached it; part of every checkpoint."""

    def __init__(self, direction: str) -> None:
        self._sign = 1.0 if direction == "max" else -1.0
        self.epoch, self.score, self.waited = -1, -math.inf, 0
        self._weights: dict[str, Any] = {}

    def offer(self, epoch: int, value: float | None, model: torch.nn.Module, weights: bool) -> None:
        """Compare the value after an epoch. Every rank calls it; the first of equal values stays."""
        score = -math.inf if value is None else self._sign * value
        if self.epoch >= 0 and score <= self.score:
            self.waited += 1
            return
        self.epoch, self.score, self.waited = epoch, score, 0
        if weights:
            found = state_dicts({"model": model})["model"]
            self._weights = {name: value.detach().cpu().clone() for name, value in found.items()}

    def restore(self, model: torch.nn.Module, world: int) -> None:
        """Give the model its best weights, which rank 0 has, if there are any. Every rank calls it."""
        if self.epoch < 0:
            return
        told = [self._weights]
        if world > 1:
            dist.broadcast_object_list(told, src=0)
        load_state_dicts({"model": model}, {"model": told[0]})

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        numbers = {"epoch": self.epoch, "score": self.score, "waited": self.waited}
        return {**numbers, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything over."""
        self.epoch, self.score, self.waited = state["epoch"], state["score"], state["waited"]
        self._weights = dict(state["weights"])


def save_model(model: torch.nn.Module, folder: str | os.PathLike[str], rank: int) -> None:
    """Save the trained model in ``folder``, from rank 0; every rank calls it.

    A model of Hugging Face is saved with ``save_pretrained``, another one's weights as ``model.safetensors``.
    """
    weights = state_dicts({"model": model})["model"]
    if rank != 0:
        return
    bare: Any = model.module if isinstance(model, DistributedDataParallel) else model
    with storage.filled(folder) as place:
        if callable(getattr(bare, "save_pretrained", None)):
            bare.save_pretrained(place, state_dict=weights)
        else:
            plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
            storage.write_bytes(place / WEIGHTS, safetensors.torch.save(plain))


def _placed(model: torch.nn.Module, settings: Any, alone: bool) -> tuple[torch.nn.Module, torch.device]:
    """Return the model on its device, wrapped for several workers, and the device."""
    if alone:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device)
    else:
        import ray.train.torch

        device = ray.train.torch.get_device()
        if settings.parallel == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (dist.get_world_size(),))
            fully_shard(model.to(device), mesh=mesh)
        else:
            model = ray.train.torch.prepare_model(model)
    if settings.compile:
        model.compile()
    return model, device


def _precision(name: str, device: torch.device) -> Any:
    if name == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if name == "bf16" else torch.float16)


def _unsynchronised(model: torch.nn.Module) -> Any:
    """Return a context in which gradients stay on each rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _mean(session: Any, batch: Batch, losses: Any) -> torch.Tensor:
    """Record the losses of a task, with or without a mask."""
    found: torch.Tensor = (
        session.loss(batch, *losses) if isinstance(losses, tuple) else session.loss(batch, losses)
    )
    return found


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
