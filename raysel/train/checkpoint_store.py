"""Where the checkpoints of a run are kept, and which of them the run resumes from."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysel.core import storage
from raysel.errors import StateError
from raysel.train import checkpoint

if TYPE_CHECKING:
    from raysel.dynamic.keeper import Keeper, Keepers
    from raysel.train.communicator import Communicator
    from raysel.train.run import Run

log = logging.getLogger("raysel")
Save = Callable[[Path], None]
"""Writes this rank's part of a checkpoint into a directory."""


class CheckpointStore:
    """No checkpoints, except the one to resume from, if a framework that keeps them gives it to every rank."""

    def __init__(self, found: Path | None = None) -> None:
        self._found = found

    def places(self) -> Iterable[Any]:
        """Return the checkpoints, the newest first; called on rank 0."""
        return [] if self._found is None else [self._found]

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint as a local directory."""
        assert self._found is not None  # it is this rank's own copy of what rank 0 found
        yield self._found

    def remove_newer(self, place: Any) -> None:
        """Remove a damaged checkpoint that is newer than ``place``, so that it does not replace ``place``."""

    def report(self, metrics: dict[str, Any], save: Save, communicator: Communicator) -> None:
        """Report metrics and save a checkpoint; every rank calls it."""


class FolderStore(CheckpointStore):
    """The last two checkpoints, in a folder which all ranks share.

    Several trainings, each with a folder of its own, can follow each other in one run of Ray Train, which itself has only
    one series of checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._last, self._before = directory / "last", directory / "before"

    def places(self) -> Iterable[Any]:
        """Return the checkpoints, the newest first; called on rank 0."""
        return [place for place in (self._last, self._before) if os.path.exists(place)]

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint as a local directory."""
        yield place

    def remove_newer(self, place: Any) -> None:
        """Remove a damaged checkpoint that is newer than ``place``, so that it does not replace ``place``."""
        if place == self._before:
            storage.remove(self._last)

    def report(self, metrics: dict[str, Any], save: Save, communicator: Communicator) -> None:
        """Save a checkpoint: every rank writes its part, and then rank 0 gives it its name."""
        save(communicator.of_zero(lambda: storage.stage(self._last)))
        communicator.barrier()
        communicator.of_zero(lambda: storage.publish(self._last, self._before))


class TrainStore(CheckpointStore):
    """The checkpoints that Ray Train keeps."""

    def places(self) -> Iterable[Any]:
        """Return the checkpoints, the newest first; called on rank 0."""
        import ray.train

        newest = ray.train.get_checkpoint()
        if newest is None:
            return
        yield newest
        mode = ray.train.CheckpointConsistencyMode.COMMITTED
        others = ray.train.get_all_reported_checkpoints(
            consistency_mode=mode
        )  # in the order of their scores, if there are any
        for reported in sorted(others, key=lambda one: _age(one.metrics), reverse=True):
            if reported.checkpoint.path != newest.path:
                yield reported.checkpoint

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint as a local directory."""
        with place.as_directory() as directory:
            yield Path(directory)

    def report(self, metrics: dict[str, Any], save: Save, communicator: Communicator) -> None:
        """Report metrics and a checkpoint to Ray Train: every rank writes its part."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
            save(Path(directory))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def restore_newest(
    store: CheckpointStore, run: Run, keeper: Keeper | Keepers, attempt: str
) -> tuple[Any, dict[str, Any]] | None:
    """Restore the selection state from the newest complete checkpoint; called on rank 0.

    Returns the checkpoint's place and the contents of its ``session.json``, or None if there is no checkpoint.
    """
    damaged: list[checkpoint.Damaged] = []
    for place in store.places():
        with store.opened(place) as directory:
            try:
                about = checkpoint.verified(directory)
            except checkpoint.Damaged as error:
                damaged.append(error)
                continue
            run.check(about, directory)
            epoch, within = about["epoch"], about["within"]
            keeper.restore(attempt, epoch, checkpoint.StateFiles(directory, about))
            if within:
                keeper.plan(attempt, epoch)
                for slots, losses in checkpoint.staged(directory, about):
                    keeper.update(attempt, epoch, slots, losses)
                keeper.drain()
        if damaged:
            step = f", step {within['steps']}" if within else ""
            log.warning(
                f"{damaged[0]} The run resumes at epoch {epoch}{step}: the model and the selection state are restored from the checkpoint "
                "before the damaged one."
            )
            store.remove_newer(place)
        return place, about
    if damaged:
        raise StateError(
            f"{damaged[0]} There is no earlier complete checkpoint from which the run could resume; "
            "remove the damaged checkpoint to train from the beginning."
        )
    keeper.restore(attempt)
    return None


def _age(metrics: Mapping[str, Any]) -> tuple[int, int]:
    """Return the position of a checkpoint, (epochs finished, steps of the next), as reported with it."""
    ended = "digest" in metrics
    return (metrics["epoch"] + 1, 0) if ended else (metrics["epoch"], metrics["step"])
