"""The basis of every adapter: a session under a framework with its own epoch loop and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysel.dynamic.plan import steps
from raysel.errors import ConfigError, StateError, shown
from raysel.train.dynamic import DynamicSelection


def check_dynamic(dynamic: Any, where: str) -> None:
    """Raise ConfigError, which begins with ``where``, for anything but a DynamicSelection."""
    if not isinstance(dynamic, DynamicSelection):
        raise ConfigError(
            f"{where}: The argument dynamic must be a DynamicSelection, got {shown(dynamic)}; give for example "
            "DynamicSelection(InfoBatch(), len(dataset), num_epochs=20)."
        )


class Driven:
    """One run's session: an epoch opens when its batches are requested and ends when the framework ends it.

    ``found`` is the directory of a checkpoint that :meth:`save` wrote, None to begin. Every rank makes the
    same calls.
    """

    def __init__(self, dynamic: DynamicSelection, found: Path | None) -> None:
        self.session = dynamic.driven(found)
        self.session.restore({})
        self._epochs = self.session.epochs()
        self._loader: tuple[Any, Any] = (None, [])  # the plan it is of, and the epoch's batches

    @property
    def is_open(self) -> bool:
        """Whether an epoch is open."""
        return self.session.plan is not None

    @property
    def is_over(self) -> bool:
        """Whether the run's last epoch has ended."""
        return not self.is_open and self.session.is_over

    @property
    def noted(self) -> int:
        """Number of batches of the open epoch whose losses were recorded."""
        return 0 if self.session.current is None else self.session.current.noted

    def loader(self, dataset: Any, **options: Any) -> Any:
        """Return the batches of the open epoch, or of the next epoch if none is open.

        This is an empty list when the run is over. Parameters are those of :meth:`Session.loader`. Within an
        epoch, every call returns the same object.
        """
        if not self.is_open and next(self._epochs, None) is None:
            return []
        plan = self.session.plan
        if self._loader[0] is not plan:
            self._loader = (plan, self.session.loader(dataset, **options))
        return self._loader[1]

    def end_epoch(self) -> None:
        """Commit the open epoch, if batches of it have been trained on."""
        if self.is_open and self.session.step:
            self._loader = (None, [])
            self.session.report()

    def progress(self, step: int) -> float:
        """Return :attr:`Session.progress` after ``step`` optimizer steps, whatever has been prefetched."""
        session, run = self.session, self.session.run
        within = (step - session.total_steps) / session.steps_per_epoch if session.steps_per_epoch else 0.0
        share = (session.epoch + min(1.0, max(0.0, within))) / session.num_epochs
        if run.max_steps is not None:  # whichever of the two ends the run
            share = max(share, step / run.max_steps)
        return min(1.0, share)

    def longest(self, batch_size: int, accumulate: int) -> int:
        """Return the batches per rank in an epoch that leaves nothing out."""
        return accumulate * steps(self.session.run.samples, batch_size, accumulate * self.session.world)

    def save(self, directory: Path) -> None:
        """Write the selection state next to the model's.

        Every rank calls it. Raise StateError within an epoch.
        """
        if self.is_open and self.session.step:
            raise StateError(
                f"A checkpoint was requested within epoch {self.session.epoch}, but the model and the selection state match only "
                "at the end of an epoch; save at the end of epochs (Lightning: ModelCheckpoint(save_on_train_epoch_end=True), "
                'Trainer: save_strategy="epoch").'
            )
        directory.mkdir(parents=True, exist_ok=True)
        self.session.save(directory)
