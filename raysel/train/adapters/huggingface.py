"""Dynamic selection under the Hugging Face Trainer. Accelerate alone needs no adapter."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import RandomSampler, SequentialSampler

from raysel.errors import ConfigError, DataError, StateError, first, reason_of
from raysel.train.adapters.driven import Driven, check_dynamic
from raysel.train.batch import Batch
from raysel.train.dynamic import DynamicSelection
from raysel.train.loader import check_map_style
from raysel.train.reduce import per_sample

try:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        f"raysel.train.adapters.huggingface needs transformers and accelerate ({error}). Install them with "
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
    if labels is None:
        raise DataError(
            "language_model_losses: The batch has no labels; give a data collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False)."
        )
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
        :func:`language_model_losses`. ``labels`` is a tuple if ``args.label_names`` has several names. In
        ``args``, ``num_train_epochs`` is that of the selection, and a checkpoint is saved at the end of an
        epoch (``save_strategy``). With ``train_sampling_strategy="group_by_length"`` the samples of each plan
        are visited in groups of similar lengths.
    dynamic : DynamicSelection
        The selection over the rows of ``train_dataset``.

    Raises
    ------
    ConfigError
        For arguments that are in conflict, and for an order of rows that cannot be honoured within a plan.
    DataError
        For a ``train_dataset`` that is not map-style, and for labels that a batch does not have.
    StateError
        For a checkpoint without the selection, and in the first step if its losses were not recorded.
    """

    def __init__(self, *arguments: Any, dynamic: DynamicSelection, **more: Any) -> None:
        given = inspect.signature(super().__init__).bind_partial(*arguments, **more).arguments
        dataset = given.get("train_dataset", more.get("train_dataset"))
        if dataset is not None:  # checked before the Trainer, which requires max_steps for other data
            check_map_style(dataset, "SelectingTrainer")
        check_dynamic(dynamic, "SelectingTrainer")
        super().__init__(*arguments, **more)
        self.dynamic = dynamic
        self._found: Path | None = None  # the selection in the checkpoint to resume from
        self._batch: Batch | None = None  # of the training step under way
        self.driven: Driven | None = None
        args, epochs = self.args, dynamic.run.num_epochs
        if self.compute_loss_func is None:
            raise ConfigError(
                "SelectingTrainer: The argument compute_loss_func is missing; give a function of (outputs, labels) that "
                "returns unreduced losses, such as raysel.train.adapters.huggingface.language_model_losses."
            )
        try:
            inspect.signature(self.compute_loss_func).bind(None, None)
        except TypeError as refused:
            raise ConfigError(
                "SelectingTrainer: The function compute_loss_func must accept exactly the arguments "
                f"(outputs, labels), but cannot be called with them ({reason_of(refused)})."
            ) from refused
        except ValueError:  # a function of C has no signature
            pass
        if args.num_train_epochs != epochs or args.max_steps > 0:
            raise ConfigError(
                f"SelectingTrainer: The selection plans {epochs} epochs. Set num_train_epochs={epochs} in TrainingArguments and "
                "leave max_steps unset there. To limit the number of steps, give max_steps to DynamicSelection."
            )
        for wrong, error in _conflicts(args):
            if wrong:
                raise error
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
        if found and not Path(found).is_dir():
            raise StateError(f"There is no checkpoint {found} to resume from.")
        if place is not None and not place.is_dir():
            raise StateError(
                f"{found} holds no selection state; remove this folder to resume from the checkpoint before "
                "it, or train from the beginning."
            )
        world = max(1, self.args.world_size)
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * world
        if self.get_total_train_batch_size(self.args) != rows:
            raise ConfigError(
                "SelectingTrainer: Ranks that share their rows (tensor, context or sequence parallel) are not "
                "supported; use data parallelism, DDP or FSDP."
            )
        self._found = place
        return super().train(found or resume_from_checkpoint, *more, **others)

    def _inner_training_loop(self, *arguments: Any, **more: Any) -> Any:
        # auto_find_batch_size calls it again, with fewer rows, after a batch that did not fit.
        self.driven = Driven(self.dynamic, self._found)
        return super()._inner_training_loop(*arguments, **more)

    def get_train_dataloader(self) -> Any:
        """Return the batches of the planned epochs."""
        made = super().get_train_dataloader()
        return made if self.driven is None else _Batches(self.driven, made, self)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *more: Any) -> Any:
        # The Trainer would count the step's tokens over all ranks here; session.loss counts rows, known beforehand.
        """Return the batches of one optimizer step."""
        return list(itertools.islice(epoch_iterator, num_batches)), None

    def training_step(self, model: Any, inputs: Any, *more: Any, **others: Any) -> Any:
        """Train on a batch of the plan as :meth:`Trainer.training_step` does."""
        inputs = dict(inputs)
        self._batch = inputs.pop(_BATCH, None)
        if self._batch is None or self.driven is None:
            raise StateError(
                f"SelectingTrainer: {type(self).__name__} trains on batches that do not follow the plan. If you override "
                "get_train_dataloader, return the batches of super().get_train_dataloader()."
            )
        before = self.driven.noted
        try:
            loss = super().training_step(model, inputs, *more, **others)
        finally:
            self._batch = None
        if self.driven.noted == before:
            raise StateError(
                f"SelectingTrainer: {type(self).__name__}.compute_loss overrides the method that records each "
                "sample's loss. Move it into the argument compute_loss_func, a function of (outputs, labels) "
                "that returns unreduced losses, or return what super().compute_loss(model, inputs) returns."
            )
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **ignored: Any) -> Any:
        """Record the losses of the samples, and return the scalar to differentiate."""
        answer, outputs = self.sample_losses(model, dict(inputs))
        if isinstance(answer, tuple) and len(answer) != 2:
            raise DataError(
                f"SelectingTrainer: compute_loss_func returned {len(answer)} values; return the losses, or the losses and their "
                "mask."
            )
        losses, mask = answer if isinstance(answer, tuple) else (answer, None)
        if (
            self._batch is None or self.driven is None
        ):  # evaluation: samples are reduced as session.loss does it
            loss = per_sample(losses, len(torch.atleast_1d(losses)), mask)[0].mean()
        else:  # the Trainer adds up the gradients of a step's batches and takes the mean over ranks
            loss = self.driven.session.loss(self._batch, losses, mask) / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def sample_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Return what ``compute_loss_func`` returns for a batch, and the outputs of the model."""
        labels = self._labels(inputs)
        outputs = model(**inputs)
        return self.compute_loss_func(outputs, labels), outputs

    def _labels(self, inputs: dict[str, Any]) -> Any:
        """Take the labels out of the inputs: those of ``label_names``, one tensor or a tuple of several."""
        names = self.args.label_names
        if names is None:
            names = ["labels"] if "labels" in inputs else self.label_names
            if not all(name in inputs for name in names):
                return None
        missing = [name for name in names if name not in inputs]
        if missing:
            raise DataError(
                f"SelectingTrainer: label_names names {first(missing)}, but the batch has {first(inputs, 9)}; correct "
                "label_names in TrainingArguments, or the columns of the dataset."
            )
        labels = tuple(inputs.pop(name) for name in names)
        return labels[0] if len(labels) == 1 else labels or None

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
        self._order = _order(made, type(trainer).__name__)
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
            self.dataset,
            batch_size=self._batch_size,
            accumulate=self._accumulate,
            **self._order,
            **self._options,
        )
        for batch in loader:
            if not isinstance(batch.data, Mapping):
                raise DataError(
                    f"SelectingTrainer: The data collator returned a {type(batch.data).__name__}; it must return a dict of the "
                    "model's arguments."
                )
            yield {**batch.data, _BATCH: replace(batch, data=None)}


def _conflicts(args: TrainingArguments) -> Iterator[tuple[bool, ConfigError]]:
    """Yield an error for what cannot be done, and whether the arguments say it."""
    save, evaluate = (
        str(getattr(value, "value", value)) for value in (args.save_strategy, args.eval_strategy)
    )
    yield (
        save == "steps",
        ConfigError(
            'SelectingTrainer: Set save_strategy="epoch" (or "no") in TrainingArguments, because the model and the selection '
            "state match only at the end of an epoch."
        ),
    )
    yield (
        save == "best" and evaluate == "steps",
        ConfigError(
            'SelectingTrainer: Set eval_strategy="epoch" together with save_strategy="best" in TrainingArguments, because the '
            "model and the selection state match only at the end of an epoch."
        ),
    )
    yield (
        getattr(args, "enable_jit_checkpoint", False),
        ConfigError(
            "SelectingTrainer: Leave enable_jit_checkpoint unset in TrainingArguments, because the model and the selection "
            "state match only at the end of an epoch."
        ),
    )
    strategy = getattr(args, "train_sampling_strategy", "random")
    yield (
        strategy not in ("random", "sequential", "group_by_length"),
        ConfigError(
            f'SelectingTrainer: The plan cannot be visited in the order of train_sampling_strategy="{strategy}"; use "random", '
            '"sequential" or "group_by_length" in TrainingArguments.'
        ),
    )
    yield (
        bool(args.label_smoothing_factor),
        ConfigError(
            "SelectingTrainer: Leave label_smoothing_factor unset in TrainingArguments, because the losses are those of "
            "compute_loss_func; smooth the labels there, for example with F.cross_entropy(..., label_smoothing=0.1)."
        ),
    )
    yield (
        args.dataloader_drop_last,
        ConfigError(
            "SelectingTrainer: Leave dataloader_drop_last unset in TrainingArguments, because every planned row must be "
            "trained on. There is no batch of one row that would have to be dropped."
        ),
    )
    yield (
        args.data_seed is not None,
        ConfigError(
            "SelectingTrainer: Leave data_seed unset in TrainingArguments and give the seed to "
            "DynamicSelection, which orders the rows at random."
        ),
    )
    yield (
        bool(getattr(args.accelerator_config, "split_batches", False)),
        ConfigError(
            "SelectingTrainer: Leave split_batches unset in accelerator_config; per_device_train_batch_size is the number of "
            "rows per device."
        ),
    )


def _order(made: Any, name: str) -> dict[str, Any]:
    """Return the arguments of Session.loader for the order of the Trainer's own loader."""
    sampler = made
    while (
        getattr(sampler, "batch_sampler", None) is not None
    ):  # a loader, and what Accelerate puts around a sampler
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", sampler)
    if isinstance(sampler, LengthGroupedSampler):
        return {"lengths": list(sampler.lengths)}
    if (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(made.dataset)
    ):
        return {}
    if isinstance(sampler, SequentialSampler):
        return {"shuffle": False}
    raise ConfigError(
        f"SelectingTrainer: {name} reads its rows with a {type(sampler).__name__}, but the rows of an epoch are "
        "those of its plan; remove the override of _get_train_sampler or get_train_dataloader."
    )


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
