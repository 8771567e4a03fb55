"""The processes of a run as a session sees them: who it is among them, what it says to them, where checkpoints go."""

from __future__ import annotations

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
        """This run's checkpoints, the newest first; asked on rank 0."""
        import ray.train

        newest = ray.train.get_checkpoint()
        if newest is None:
            return
        yield newest
        mode = ray.train.CheckpointConsistencyMode.COMMITTED
        others = ray.train.get_all_reported_checkpoints(
            consistency_mode=mode
        )  # by score, where one was asked for
        for reported in sorted(others, key=lambda one: _age(one.metrics), reverse=True):
            if reported.checkpoint.path != newest.path:
                yield reported.checkpoint

    def without_newer(self, place: Any) -> Any:
        return place  # Ray Train removes what it no longer keeps

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        with place.as_directory() as directory:
            yield Path(directory)

    def of_zero(self, call: Callable[[], Any]) -> Any:
        """What ``call`` answers on rank 0, on every rank; where it raises, Ray Train ends them all."""
        return self.broadcast(call() if self.rank == 0 else None)

    def broadcast(self, value: Any) -> Any:
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value)

    def barrier(self) -> None:
        from ray.train.collective import barrier

        barrier()

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        import ray.train

        with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
            save(Path(directory))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


class LocalRanks:
    """A process alone, with its last two checkpoints in a directory.

    found: the checkpoint to go on from where something else keeps them, and so has no directory here.
    """

    rank, world = 0, 1

    def __init__(self, directory: Path | None, found: Path | None = None) -> None:
        self._directory, self._found = directory, found

    def checkpoints(self) -> Iterable[Any]:
        if self._directory is None:
            return [] if self._found is None else [self._found]
        places = [self._directory / name for name in ("last", "before")]
        return [place for place in places if place.exists()]

    def without_newer(self, place: Any) -> Any:
        """Remove a damaged checkpoint newer than ``place``: the next one that is saved must not replace ``place``."""
        if self._directory is None or place.name == "last":
            return place
        storage.remove(place.with_name("last"))
        return place

    @contextmanager
    def opened(self, place: Any) -> Iterator[Path]:
        yield self._found or place  # each rank its own copy, where something else has handed them out

    def of_zero(self, call: Callable[[], Any]) -> Any:
        return self.broadcast(call() if self.rank == 0 else None)

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        return None

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        if self._directory is None:
            return
        last = self._directory / "last"
        save(storage.stage(last))
        storage.publish(last, self._directory / "before")


def _age(metrics: Mapping[str, Any]) -> tuple[int, int]:
    """(epochs finished, steps of the next) where a checkpoint stands, by what was reported with it."""
    ended = "digest" in metrics
    return (metrics["epoch"] + 1, 0) if ended else (metrics["epoch"], metrics["step"])
