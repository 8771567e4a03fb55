"""Dynamic selection under PyTorch Lightning: a callback that provides the batches and records the losses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raysel.errors import ConfigError, StateError
from raysel.train.adapters.driven import Driven, check_dynamic
from raysel.train.batch import Batch
from raysel.train.communicator import TorchCommunicator
from raysel.train.dynamic import DynamicSelection
from raysel.train.loader import check_map_style

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
except ImportError as error:
    raise ImportError(
        f"raysel.train.adapters.lightning needs lightning ({error}). Install it with pip install 'raysel[lightning]'."
    ) from error


class Selecting(Callback):
    """A Lightning callback for a run with epochs planned by a dynamic selection.

    Pass it to ``Trainer(callbacks=[selecting], max_epochs=..., reload_dataloaders_every_n_epochs=1)``, pass
    its ``loader`` to ``trainer.fit(model, selecting.loader)``, and return ``selecting.loss(batch, losses)``
    from ``training_step``, where batch is a :class:`Batch`. Checkpoints contain the selection next to the
    model.

    Parameters
    ----------
    dynamic : DynamicSelection
        The selection over the rows of ``dataset``.
    dataset : map-style dataset
        ``dataset[sample_id]`` is the sample.
    batch_size : int
        Rows per batch and device.
    **options
        As for :meth:`Session.loader` (``collate_fn``, ``num_workers``, ...).

    Raises
    ------
    ConfigError
        For arguments of the Trainer that are in conflict with it.
    StateError
        For a checkpoint without the selection.
    """

    def __init__(self, dynamic: DynamicSelection, dataset: Any, *, batch_size: int, **options: Any) -> None:
        check_dynamic(dynamic, "Selecting")
        check_map_style(dataset, "Selecting")
        self.dynamic, self.dataset = dynamic, dataset
        self.loader = _Batches(self)
        self.driven: Driven | None = None
        self._options = {"batch_size": batch_size, **options}
        self._trainer: Trainer | None = None
        self._found: dict[str, torch.Tensor] = {}

    def loss(self, batch: Batch, losses: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Record each sample's loss and return the scalar for training_step, as :meth:`Session.loss` does."""
        return self._opened().session.loss(batch, losses, mask)

    def progress(self, step: int) -> float:
        """Return the share of the run done after ``step`` optimizer steps, in [0, 1], for a LambdaLR."""
        return 0.0 if self.driven is None else self.driven.progress(step)

    # ---- what Lightning calls ----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the Trainer and the module."""
        if stage != "fit":
            return
        for wrong, error in _conflicts(trainer, pl_module, self.dynamic.run.num_epochs):
            if wrong:
                raise error
        self._trainer, self.driven, self._found = trainer, None, {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check that the batch follows the plan."""
        self._opened()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check that losses were recorded."""
        if outputs and not self._opened().noted:  # without outputs, training_step has skipped the batch
            raise StateError(
                "Selecting: training_step recorded no loss for its first batch; let it return selecting.loss(batch, losses), "
                "with one loss per sample."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commit the epoch."""
        driven = self._driven()
        driven.end_epoch()
        if driven.is_over:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the selection state, for the Trainer's checkpoint."""
        if self.driven is None:
            return {}
        if self._trainer is not None and self._trainer.interrupted:
            # Saved while an exception is handled, which must not be hidden, and perhaps on one rank alone.
            return {"interrupted": self.driven.session.epoch}
        with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
            self.driven.save(Path(directory))
            files = {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}
        communicator = self.driven.session.communicator
        if isinstance(communicator, TorchCommunicator):
            # Lightning calls this on every rank and keeps the result of the first.
            files = {name: data for theirs in communicator.gather(files) for name, data in theirs.items()}
        return {
            "files": {
                name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the selection state of the Trainer's checkpoint."""
        if "interrupted" in state_dict:
            raise StateError(
                f"Selecting: The checkpoint was saved when epoch {state_dict['interrupted']} was interrupted, and has no "
                "selection state. Give fit the ckpt_path of a checkpoint that was saved at the end of an epoch."
            )
        self._found = state_dict["files"]

    # ---- inside ------------------------------------------------------------------------------------------

    def _driven(self) -> Driven:
        """Return the session, from the checkpoint that was loaded before the first batches were requested."""
        if self.driven is None:
            trainer = self._trainer
            if trainer is not None and not self._found and (trainer.current_epoch or trainer.global_step):
                raise StateError(
                    f"Selecting: The Trainer resumes at epoch {trainer.current_epoch}, step {trainer.global_step}, "
                    "without a selection state. Give fit a ckpt_path that was saved with Selecting among the "
                    "callbacks, or start again with a new Trainer and no ckpt_path."
                )
            with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
                for name, data in self._found.items():
                    (Path(directory) / name).write_bytes(data.cpu().numpy().tobytes())
                self.driven = Driven(self.dynamic, Path(directory) if self._found else None)
            self._found = {}
        return self.driven

    def _opened(self) -> Driven:
        """Return the session in an epoch; raise StateError if no batch of the plan was requested."""
        if self.driven is None or not self.driven.is_open:
            raise StateError(
                "Selecting: The Trainer trains on batches that do not follow the plan; pass the callback's loader to "
                "trainer.fit(model, selecting.loader), without a datamodule that has a train_dataloader."
            )
        return self.driven

    def _batches(self) -> Any:
        if self._trainer is None:
            raise ConfigError(
                "Selecting: The Trainer that uses selecting.loader does not have the callback; give the callback to the Trainer, "
                "as Trainer(callbacks=[selecting], ...)."
            )
        accumulate = self._trainer.accumulate_grad_batches
        return self._driven().loader(self.dataset, accumulate=accumulate, **self._options)


def _conflicts(trainer: Trainer, module: LightningModule, epochs: int) -> Iterator[tuple[bool, ConfigError]]:
    """Yield an error for what cannot be done, and whether the arguments say it."""
    if not trainer.fast_dev_run:  # a few batches of one epoch, without a checkpoint
        yield (
            trainer.max_epochs != epochs or trainer.max_steps != -1,
            ConfigError(
                f"Selecting: Give the Trainer max_epochs={epochs} and no max_steps; the selection plans {epochs} epochs of "
                "different lengths (give max_steps to DynamicSelection)."
            ),
        )
        yield (
            trainer.limit_train_batches not in (None, 1.0),
            ConfigError(
                "Selecting: Give the Trainer no limit_train_batches and no overfit_batches, because every planned row must be "
                "trained on (to end earlier, give max_steps to DynamicSelection)."
            ),
        )
    yield (
        trainer.reload_dataloaders_every_n_epochs != 1,
        ConfigError(
            "Selecting: Give the Trainer reload_dataloaders_every_n_epochs=1, because the number of samples differs from epoch to epoch."
        ),
    )
    yield (
        not module.automatic_optimization,
        ConfigError(
            "Selecting: Manual optimization is not supported; leave automatic_optimization as it is, or train with "
            "session.loader in a loop of your own."
        ),
    )
    yield (
        any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks),
        ConfigError(
            "Selecting: GradientAccumulationScheduler is not supported, because a step's number of rows is fixed; give the "
            "Trainer accumulate_grad_batches."
        ),
    )
    after_validation = trainer.check_val_every_n_epoch != 1 or trainer.val_check_interval not in (None, 1.0)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and not trainer.fast_dev_run:
            at_end = callback._save_on_train_epoch_end
            within = callback._every_n_train_steps > 0 or callback._train_time_interval is not None
            yield (
                within or not (at_end if at_end is not None else not after_validation),
                ConfigError(
                    "Selecting: With this ModelCheckpoint, the Trainer would save within an epoch, where the model and the "
                    "selection state do not match, or would not save at all. Give the Trainer ModelCheckpoint(save_on_train_epoch_end=True), without every_n_train_steps "
                    "and train_time_interval, or enable_checkpointing=False."
                ),
            )


class _Batches:
    """The current epoch's batches, which Lightning requests in every epoch, and more than once."""

    def __init__(self, selecting: Selecting) -> None:
        self._selecting = selecting

    def __len__(self) -> int:
        return len(self._selecting._batches())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._selecting._batches())
