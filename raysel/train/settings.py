"""Settings of a training: the keys of a workflow under ``train``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from raysel.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]


def _sgd() -> dict[str, Any]:
    return {"method": "SGD", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Train:
    """Model to train, and settings of its training on Ray Train.

    Attributes
    ----------
    task : str or mapping
        What is trained: ``classification``, ``regression``, ``language_model``, ``segmentation``, or ``file.py:Name`` for a
        task of your own. To set parameters of the task, give a mapping: its key ``method`` names the task.
    model : str, optional
        Function that returns the model, named as ``file.py:factory`` (relative to the folder of the workflow file) or
        ``package.module:factory``. The code of this file or module is run. The arguments of the function depend on the
        task, such as ``(shape, classes)`` for classification: the shape of an input and the number of classes.
    input : str or list of str, optional
        Column with the input of the model, or several columns.
    loop : str, optional
        What trains the task in place of the built-in loop: ``huggingface`` (the Trainer of Hugging Face), ``lightning``, or
        a training loop of your own, named as ``file.py:function``; see the guide "A training loop of your own".
    options : mapping
        With ``loop: huggingface``, arguments of TrainingArguments; with ``loop: lightning``, arguments of the Trainer; with a
        training loop of your own, anything that the loop reads.
    epochs : int
        Number of epochs.
    batch_size : int
        Number of rows per worker in each forward pass.
    accumulate : int
        Number of batches per worker whose gradients are added before one optimizer step.
    learning_rate : float
        Highest learning rate, which is reached after the warm-up.
    optimizer : str or mapping
        Optimizer of torch.optim (``AdamW``), or ``package.module:Class``. To pass arguments, give a mapping: its key
        ``method`` names the optimizer.
    schedule : str
        How the learning rate changes after the warm-up: ``cosine``, ``linear``, ``constant``, or ``file.py:function`` for
        a function of your own. It receives a number that grows from 0 at the end of the warm-up to 1 at the end of the
        training, and returns the factor by which the learning rate is multiplied.
    warmup : float
        Share of the training during which the learning rate rises linearly.
    clip : float, optional
        Largest norm that the gradient may have; a gradient with a larger norm is scaled down to this norm.
    precision : {"fp32", "bf16", "fp16"}
        Number format of the forward pass. With bf16 and fp16, weights and optimizer stay in fp32.
    compile : bool
        Whether the model is compiled with torch.compile.
    parallel : {"ddp", "fsdp"}
        Whether each worker holds the complete model (ddp) or a part of it (fsdp).
    data : {"auto", "arrays", "stream"}
        How training rows reach the workers: ``arrays`` writes them once as memory-mapped files into the run directory;
        ``stream`` reads the rows with Ray Data, on the CPUs that the workers leave free, and decodes only those that the epoch
        trains on; ``auto`` uses arrays if they fill less than half of the free disk space.
    evaluate_every : int or str
        Number of epochs between two evaluations of the validation rows, or of optimizer steps as text: ``500 steps``. The
        validation rows are also scored at the end. An epoch reports the metrics of its last evaluation.
    patience : int, optional
        Stop the training, also within an epoch, if the metric on the validation rows has not become better in this number of
        evaluations.
    keep : {"last", "best"}
        Weights that are tested and saved: the last ones, or those with the best metric on the validation rows.
    track : str, mapping or list of them, optional
        Where the first worker (rank 0) writes the loss, metrics, samples and seconds of every epoch: ``tensorboard``, ``mlflow``, ``wandb``, or
        ``file.py:Name`` for a tracker of your own. To pass arguments, give a mapping: its key ``method`` names the tracker.
        Nothing is sent over the network by default. Nothing is written for a training whose result is reused from an earlier
        run.
    workers : int or list of two int
        Number of Ray Train workers. With two numbers, such as ``[1, 4]``, the training is elastic: it uses as many workers,
        from the first number to the second, as the cluster can place, and continues with another number from its last
        checkpoint when nodes fail or join. Fewer workers add the gradients of more batches, so that an optimizer step uses
        as many rows as with all workers.
    cpus_per_worker : float
        CPUs per worker.
    gpus_per_worker : float
        GPUs per worker; 0 for training on CPUs.
    max_failures : int
        How many times the training may restart from its last checkpoint after a failure. After an error in the data or
        in the configuration, the training ends without a restart.
    version : str, optional
        Text that identifies the code of the model, the task and the loop. Give a version if this code cannot be hashed or
        reads files, and change the version whenever the code or these files change.
    """

    task: str | dict[str, Any] = "classification"
    model: str | None = None
    input: str | list[str] | None = None
    loop: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    epochs: Positive = 20
    batch_size: Positive = 128
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    optimizer: str | dict[str, Any] = field(default_factory=_sgd)
    schedule: str = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    data: Literal["auto", "arrays", "stream"] = "auto"
    evaluate_every: Positive | str = 1
    patience: Positive | None = None
    keep: Literal["last", "best"] = "last"
    track: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    workers: Positive | list[int] = 2
    cpus_per_worker: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_failures: Annotated[int, Field(ge=0)] = 2
    version: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.evaluate_every, str) and not re.fullmatch(
            "[1-9][0-9]* steps?", self.evaluate_every
        ):
            raise ConfigError(
                f"evaluate_every: '{self.evaluate_every}' is neither a number of epochs nor of optimizer steps; give a number of "
                "epochs, such as 2, or of steps, such as '500 steps'."
            )

        if isinstance(self.workers, list) and not (
            len(self.workers) == 2 and 1 <= self.workers[0] <= self.workers[1]
        ):
            raise ConfigError(
                f"workers: {self.workers} is neither one number of workers nor a smallest and a largest one; give a number, or a list such "
                "as [1, 4]."
            )

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the training."""
        return isinstance(self.workers, list)

    @property
    def fewest_workers(self) -> int:
        """Number of workers without which the training does not start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Number of workers with which the training starts if the cluster can place them."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def batches(self, world: int) -> tuple[int, int]:
        """Return the rows per batch and the batches per optimizer step of each of ``world`` workers.

        A step has as many rows as with all workers; if its batches cannot be divided among fewer workers, less than a row
        more per batch.
        """
        lanes = self.most_workers * self.accumulate
        accumulate = -(-lanes // world)
        return -(-self.batch_size * lanes // (world * accumulate)), accumulate

    def evaluates_after_epoch(self, epoch: int) -> bool:
        """Return whether the validation rows are scored at the end of this epoch, 0-based."""
        return isinstance(self.evaluate_every, int) and (epoch + 1) % self.evaluate_every == 0

    def evaluates_after_step(self, steps: int) -> bool:
        """Return whether the validation rows are scored after this number of optimizer steps of the run."""
        every = self.evaluate_every
        return isinstance(every, str) and steps % int(every.split()[0]) == 0
