"""The processes of a run: this rank, communication between ranks, and where checkpoints are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysel.core import storage


class TrainRanks:
    """The other workers of a Ray Train run."""

    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def checkpoints(self) -> Iterable[Any]:
        """Return this run's checkpoints, the newest first; called on rank 0."""
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

    def without_newer(self, place: Any) -> Any:
        """Return ``place``."""
        return place  # Ray Train removes what it no longer keeps

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint as a local directory."""
        with place.as_directory() as directory:
            yield Path(directory)

    def of_zero(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns on rank 0, on every rank; if it raises, Ray Train ends all of them."""
        return self.broadcast(call() if self.rank == 0 else None)

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on every rank."""
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        from ray.train.collective import barrier

        barrier()

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Report metrics and a checkpoint to Ray Train: every rank writes its part."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
            save(Path(directory))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


class FolderRanks(TrainRanks):
    """The other workers of a Ray Train run that keeps its checkpoints in a folder which all workers share.

    Several trainings, each with a folder of its own, can then follow each other in one run of Ray Train, which itself
    knows only one row of checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._kept = LocalRanks(directory)
        self._last, self._before = directory / "last", directory / "before"

    def checkpoints(self) -> Iterable[Any]:
        """Return the checkpoints in the folder, the newest first."""
        return self._kept.checkpoints()

    def without_newer(self, place: Any) -> Any:
        """Remove a damaged checkpoint newer than ``place``."""
        return self._kept.without_newer(place)

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint's directory."""
        yield place

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Save a checkpoint: every rank writes its part, and then rank 0 gives it its name."""
        save(self.of_zero(lambda: storage.stage(self._last)))
        self.barrier()
        self.of_zero(lambda: storage.publish(self._last, self._before))


class LocalRanks:
    """A single process, with its last two checkpoints in a directory.

    ``found`` is the checkpoint to resume from if something else keeps checkpoints, so that there is no
    directory.
    """

    rank, world = 0, 1

    def __init__(self, directory: Path | None, found: Path | None = None) -> None:
        self._directory, self._found = directory, found

    def checkpoints(self) -> Iterable[Any]:
        """Return the checkpoints, the newest first."""
        if self._directory is None:
            return [] if self._found is None else [self._found]
        places = [self._directory / name for name in ("last", "before")]
        return [place for place in places if os.path.exists(place)]

    def without_newer(self, place: Any) -> Any:
        """Remove a damaged checkpoint newer than ``place``; the next one must not replace ``place``."""
        if self._directory is None or place.name == "last":
            return place
        storage.remove(place.with_name("last"))
        return place

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        """Return a context with the checkpoint's directory."""
        yield self._found or place  # each rank its own copy, where something else has handed them out

    def of_zero(self, call: Callable[[], Any]) -> Any:
        """Return ``call()``."""
        return self.broadcast(call() if self.rank == 0 else None)

    def broadcast(self, value: Any) -> Any:
        """Return ``value``."""
        return value

    def barrier(self) -> None:
        """Do nothing: there is one process."""
        return None

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Save a checkpoint, if there is a directory."""
        if self._directory is None:
            return
        last = self._directory / "last"
        save(storage.stage(last))
        storage.publish(last, self._directory / "before")


def _age(metrics: Mapping[str, Any]) -> tuple[int, int]:
    """Return the position of a checkpoint, (epochs finished, steps of the next), as reported with it."""
    ended = "digest" in metrics
    return (metrics["epoch"] + 1, 0) if ended else (metrics["epoch"], metrics["step"])
