"""Training loops that run a task of a workflow under the Hugging Face Trainer or the Lightning Trainer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysel.errors import ConfigError, reason_of
from raysel.train.loops import evaluate, save_model
from raysel.train.settings import Train

OPTIONS = {
    "huggingface": "TrainingArguments of transformers",
    "lightning": "the Trainer of Lightning",
}
"""What ``train.options`` are the arguments of, by the name of the loop."""

_ELSEWHERE = {
    "num_train_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "accumulate_grad_batches": "train.accumulate",
    "seed": "seed",
    "devices": "train.workers",
}
_SET = {
    "huggingface": (
        "output_dir num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps seed use_cpu "
        "eval_strategy save_strategy save_only_model remove_unused_columns dataloader_persistent_workers"
    ),
    "lightning": (
        "max_epochs max_steps max_time accumulate_grad_batches reload_dataloaders_every_n_epochs callbacks enable_checkpointing "
        "default_root_dir devices num_nodes strategy plugins"
    ),
}


def check(settings: Train) -> None:
    """Raise ConfigError for a missing package, and for options that the framework does not take."""
    name = str(settings.loop)
    for package in ("transformers", "accelerate") if name == "huggingface" else ("lightning",):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"train.loop: {name} needs the package {package}; install it with pip install 'raysel[{name}]'."
            )
    for option in settings.options:
        if option in _SET[name].split():
            instead = f"give {_ELSEWHERE[option]} instead" if option in _ELSEWHERE else "remove it"
            raise ConfigError(f"train.options.{option}: This argument is set by raysel; {instead}.")
    try:
        with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
            _made(name, settings.options, folder)
    except Exception as error:  # of the framework
        raise ConfigError(
            f"train.options: {OPTIONS[name]} cannot be made with these options ({reason_of(error)}); correct or remove the option."
        ) from error


def check_model(name: str, model: torch.nn.Module) -> None:
    """Raise ConfigError unless the framework can train the model."""
    if name == "lightning":
        from lightning.pytorch import LightningModule

        if not isinstance(model, LightningModule):
            raise ConfigError(
                f"train.model: The loop lightning needs a LightningModule, but the model is a {type(model).__name__}."
            )


def _made(name: str, options: Mapping[str, Any], folder: str) -> Any:
    """Make what takes the options."""
    if name == "huggingface":
        return _arguments(options, output_dir=folder)
    from lightning.pytorch import Trainer

    return Trainer(**{"logger": False, **options}, default_root_dir=folder, devices=1)


def huggingface(config: dict[str, Any]) -> dict[str, float | None]:
    """Train a task with the Hugging Face Trainer, as a training loop of a workflow.

    Model, batches, losses and metrics are those of the task. ``train.options`` are arguments of TrainingArguments, by default
    those of transformers.

    Parameters
    ----------
    config : dict
        As for any training loop of a workflow.

    Returns
    -------
    dict
        The task's metrics on the test rows.
    """
    from raysel.train.adapters.huggingface import SelectingTrainer

    task, data, dynamic = config["task"], config["data"], config["dynamic"]
    score = _scores(config)

    class TaskTrainer(SelectingTrainer):
        """Computes losses and metrics as the task does."""

        def sample_losses(self, model: Any, inputs: Any) -> tuple[Any, Any]:
            return task.losses(model, inputs["batch"]), None

        def evaluate(self, *ignored: Any, metric_key_prefix: str = "eval", **more: Any) -> dict[str, Any]:
            found = score("validation", self.model, self.args.device)
            dynamic.made.history[-1].update(found)
            named = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
            self.log({name: value for name, value in named.items() if value is not None})
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
            return named

    def collated(samples: Any) -> dict[str, Any]:
        return {"batch": data.collated(samples, task.collate, dynamic.made.epoch)}

    place, scored = config["checkpoints"], data.has("validation")
    with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
        trainer = TaskTrainer(
            task.model(data.facts),
            _arguments(
                config["options"],
                output_dir=str(place or folder),
                num_train_epochs=dynamic.run.num_epochs,
                per_device_train_batch_size=config["batch_size"],
                gradient_accumulation_steps=config["accumulate"],
                seed=config["seed"] % 2**32,
                eval_strategy="epoch" if scored else "no",
                save_strategy="epoch" if place else "no",
            ),
            train_dataset=data.pool,
            eval_dataset=data.pool if scored else None,  # which rows are scored is up to evaluate
            data_collator=collated,
            compute_loss_func=task.losses,
            dynamic=dynamic,
        )
        trainer.train(resume_from_checkpoint=_newest(place, "checkpoint-*/trainer_state.json"))
        metrics = score("test", trainer.model, trainer.args.device)
        if config["model_folder"] is not None:
            save_model(trainer.model, Path(config["model_folder"]), trainer.args.process_index)
    return metrics


def _arguments(options: Mapping[str, Any], **more: Any) -> Any:
    from transformers import TrainingArguments

    quiet = {"report_to": "none", "disable_tqdm": True, "save_total_limit": 2}
    return TrainingArguments(
        **{**quiet, **options, **more}, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False
    )


def _newest(place: str | None, pattern: str) -> str | None:
    """Return the newest complete checkpoint, whose folder holds a file that is written last."""
    found = [] if place is None else [file.parent for file in Path(place).glob(pattern)]
    return str(max(found, key=lambda folder: int(folder.name.rpartition("-")[2]))) if found else None


def lightning(config: dict[str, Any]) -> dict[str, float | None]:
    """Train a task with the Lightning Trainer, as a training loop of a workflow.

    The model of the task is a LightningModule. Its attribute ``selecting`` is the callback with which ``training_step``
    records the losses of a batch; ``batch.data`` is what the task's ``collate`` made. The metrics are those of the task.
    ``train.options`` are arguments of the Trainer.

    Parameters
    ----------
    config : dict
        As for any training loop of a workflow.

    Returns
    -------
    dict
        The task's metrics on the test rows.
    """
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from raysel.train.adapters.lightning import Selecting

    task, data, dynamic = config["task"], config["data"], config["dynamic"]
    score = _scores(config)
    module: Any = task.model(data.facts)

    def collated(samples: Any) -> Any:
        return data.collated(samples, task.collate, dynamic.made.epoch)

    class Scores(Callback):
        """Scores the validation rows after each epoch, once Selecting has committed it."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            training = [part for part in pl_module.modules() if part.training]
            found = score("validation", pl_module, pl_module.device)
            for part in training:
                part.training = True
            dynamic.made.history[-1].update(found)
            pl_module.log_dict({f"validation_{k}": v for k, v in found.items() if v is not None})

    selecting = Selecting(dynamic, data.pool, batch_size=config["batch_size"], collate_fn=collated)
    module.selecting = selecting
    callbacks: list[Any] = [selecting, *([Scores()] if data.has("validation") else [])]
    place = config["checkpoints"]
    if place is not None:
        callbacks.append(ModelCheckpoint(place, save_last=True, save_on_train_epoch_end=True))
    workers: dict[str, Any] = {"devices": 1}
    if dist.is_initialized() and dist.get_world_size() > 1:
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

        workers = {"devices": "auto", "strategy": RayDDPStrategy(), "plugins": [RayLightningEnvironment()]}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory(prefix="raysel-") as folder:
        trainer = Trainer(
            **{**quiet, **config["options"]},
            **workers,
            max_epochs=dynamic.run.num_epochs,
            reload_dataloaders_every_n_epochs=1,
            accumulate_grad_batches=config["accumulate"],
            callbacks=callbacks,
            enable_checkpointing=place is not None,
            default_root_dir=folder,
        )
        last = Path(place or folder) / "last.ckpt"
        trainer.fit(module, selecting.loader, ckpt_path=str(last) if last.exists() else None)
        metrics = score("test", module, module.device)
        if config["model_folder"] is not None:
            save_model(module, Path(config["model_folder"]), trainer.global_rank)
    return metrics


def _scores(config: Mapping[str, Any]) -> Callable[..., dict[str, float | None]]:
    """Return a function of role, model and device that computes the task's metrics on the rows of the role, if any."""
    settings = Train(batch_size=config["batch_size"])

    def score(role: str, model: Any, device: Any) -> dict[str, float | None]:
        session, data = config["dynamic"].made, config["data"]
        if not data.has(role):
            return {}
        return evaluate(config["task"], model, data, role, settings, device, session.rank, session.world)

    return score
