"""Dynamic selection under the Hugging Face Trainer. Accelerate alone needs no adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from raysel.errors import ConfigError, StateError
from raysel.train.driven import Driven
from raysel.train.dynamic import DynamicSelection
from raysel.train.reduce import per_sample

try:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"raysel.train.huggingface needs transformers and accelerate ({error}). Install them with "
        "pip install 'raysel[huggingface]'."
    ) from error

_FOLDER = "raysel"  # within checkpoint-N
_BATCH = "raysel_batch"  # the key under which a training batch carries its Batch


def language_model_losses(
    outputs: Any, labels: torch.Tensor, **ignored: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's cross-entropy and which tokens are predicted, for a causal language model.

    Parameters
    ----------
    outputs : mapping
        Has ``logits`` (B, T, V).
    labels : torch.Tensor, shape (B, T)
        Unshifted; -100 for tokens that are not predicted.

    Returns
    -------
    losses : torch.Tensor, shape (B, T-1)
        In nats, 0 for tokens that are not predicted. A sample's loss is the mean over its predicted tokens,
        see :meth:`Session.loss`.
    mask : torch.Tensor of bool, shape (B, T-1)
        Which tokens are predicted.
    """
    asked = labels[:, 1:] != -100
    # (B, V, T-1): the losses come out as (B, T-1)
    losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return losses, asked


class SelectingTrainer(Trainer):
    """The Hugging Face Trainer with epochs planned by a dynamic selection.

    A learning-rate schedule named in ``args`` follows the run's progress, since epochs differ in length.
    Checkpoints contain the selection next to the model. To use another Trainer, such as SFTTrainer, write
    ``class Mine(SelectingTrainer, SFTTrainer)``.

    Parameters
    ----------
    *args, **kwargs
        As for the Trainer. ``train_dataset`` is map-style. ``compute_loss_func`` is ``(outputs, labels) ->
        losses`` or ``-> (losses, mask)``, as :meth:`Session.loss` takes them, such as
        :func:`language_model_losses`. In ``args``, ``num_train_epochs`` is that of the selection, and
        ``save_strategy`` is "epoch" or "no".
    dynamic : DynamicSelection
        The selection over the rows of ``train_dataset``.

    Raises
    ------
    ConfigError
        For arguments that are in conflict.
    """

    def __init__(self, *arguments: Any, dynamic: DynamicSelection, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.dynamic = dynamic
        self.driven: Driven | None = None
        args, epochs = self.args, dynamic.run.num_epochs
        if self.compute_loss_func is None:
            raise ConfigError(
                "SelectingTrainer: The argument compute_loss_func is missing; give a function of (outputs, labels) that "
                "returns unreduced losses, such as raysel.train.huggingface.language_model_losses."
            )
        if args.num_train_epochs != epochs or args.max_steps > 0:
            raise ConfigError(
                f"SelectingTrainer: The selection plans {epochs} epochs. Set num_train_epochs={epochs} in "
                "TrainingArguments and leave max_steps unset there (give it to DynamicSelection)."
            )
        if str(getattr(args.save_strategy, "value", args.save_strategy)) == "steps":
            raise ConfigError(
                'SelectingTrainer: Set save_strategy="epoch" (or "no") in TrainingArguments; within an epoch, model '
                "and selection state would not match."
            )
        args.ignore_data_skip = True  # an epoch is resumed by its plan, not by skipping batches
        self.loss_is_scaled_for_ga = True
        self.add_callback(_EpochEnd(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *more: Any, **others: Any) -> Any:
        """Train as :meth:`Trainer.train` does.

        The selection resumes from the same checkpoint as the model.
        """
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        place = Path(found) / _FOLDER if found else None
        if place is not None and not place.is_dir():
            raise StateError(
                f"{found} holds no selection state; remove it to resume from the checkpoint before it, or start again."
            )
        world = max(1, self.args.world_size)
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * world
        if self.get_total_train_batch_size(self.args) != rows:
            raise ConfigError(
                "SelectingTrainer: Ranks that share their rows (tensor, context or sequence parallel) are not "
                "supported; use data parallelism, DDP or FSDP."
            )
        self.driven = Driven(self.dynamic, place)
        return super().train(found or resume_from_checkpoint, *more, **others)

    def get_train_dataloader(self) -> Any:
        """Return the batches of the planned epochs."""
        made = super().get_train_dataloader()
        return made if self.driven is None else _Batches(self.driven, made, self)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *more: Any) -> Any:
        # The Trainer would count the step's tokens over all ranks here; session.loss counts rows, known beforehand.
        """Return the batches of one optimizer step."""
        return list(itertools.islice(epoch_iterator, num_batches)), None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **ignored: Any) -> Any:
        """Record the losses of the samples, and return the scalar to differentiate."""
        inputs = dict(inputs)
        batch, labels = inputs.pop(_BATCH, None), inputs.pop("labels", None)
        outputs = model(**inputs)
        answer = self.compute_loss_func(outputs, labels)
        losses, mask = answer if isinstance(answer, tuple) else (answer, None)
        if batch is None or self.driven is None:  # evaluation: samples are reduced as session.loss does it
            loss = per_sample(losses, len(torch.atleast_1d(losses)), mask)[0].mean()
        else:  # the Trainer adds up the gradients of a step's batches and takes the mean over ranks
            loss = self.driven.session.loss(batch, losses, mask) / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # num_training_steps counts every epoch as a full one: the schedule is stretched over those that are taken.
        """Return the learning-rate schedule, over the run's progress."""
        ours = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        driven = self.driven
        if ours and driven is not None and isinstance(scheduler, LambdaLR):

            def stretched(rate: Callable[[Any], float]) -> Callable[[int], float]:
                return lambda step: rate(driven.progress(step) * num_training_steps)

            scheduler.lr_lambdas = [stretched(rate) for rate in scheduler.lr_lambdas]
        return scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and the selection next to it."""
        super().save_model(output_dir, _internal_call)
        # As part of a checkpoint, and before the Trainer completes it and removes older ones.
        if _internal_call and output_dir is not None and self.driven is not None and self.is_in_train:
            self.driven.save(Path(output_dir) / _FOLDER)


class _Batches:
    """The plan's batches, from the dataset and collator that the Trainer prepared, for every epoch."""

    def __init__(self, driven: Driven, made: Any, trainer: SelectingTrainer) -> None:
        self._driven = driven
        self.dataset = made.dataset
        self._accumulate = trainer.args.gradient_accumulation_steps
        self._batch_size = trainer._train_batch_size
        same = (
            "collate_fn num_workers pin_memory timeout worker_init_fn multiprocessing_context prefetch_factor "
            "persistent_workers"
        )
        self._options = {name: getattr(made, name) for name in same.split()}

    def __len__(self) -> int:
        """Return an upper bound.

        The Trainer reads it once for the run, and shorter epochs just end earlier.
        """
        return self._driven.longest(self._batch_size, self._accumulate)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = self._driven.loader(
            self.dataset, batch_size=self._batch_size, accumulate=self._accumulate, **self._options
        )
        for batch in loader:
            yield {**batch.data, _BATCH: replace(batch, data=None)}


class _EpochEnd(TrainerCallback):
    def __init__(self, trainer: SelectingTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        driven = self._trainer.driven
        if driven is not None:
            state.epoch = driven.progress(state.global_step) * driven.session.num_epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        driven = self._trainer.driven
        if driven is not None:
            driven.end_epoch()
            if driven.is_over:
                control.should_training_stop = True
