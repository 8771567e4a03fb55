"""Sessions of several processes under torch.distributed, without Ray Train: one keeper, on rank 0."""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from raysel.core import storage
from raysel.dynamic.keeper import Keeper, Keepers, Kept
from raysel.dynamic.plan import Plan
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError, StateError
from raysel.train.ranks import LocalRanks

if dist.is_available():
    # Before there are process groups. If DistributedDataParallel imports it later, its default arguments hold the group
    # of all processes. The threads of the group then survive destroy_process_group, and the process is aborted if one
    # of them releases a tensor while the interpreter ends.
    import torch.distributed.nn.functional  # noqa: F401


def ranks(directory: Path | None, found: Path | None = None) -> LocalRanks:
    """Return the processes that torch.distributed has joined, or this one alone. Every process calls it."""
    joined = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised > 1 and not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            f"session: {promised} processes were started (WORLD_SIZE), but torch.distributed is not initialised, so each "
            "would train on all rows; call torch.distributed.init_process_group, or make the Accelerator, first."
        )
    return ProcessRanks(directory, found) if joined else LocalRanks(directory, found)


class ProcessRanks(LocalRanks):
    """The processes of a torch.distributed run (torchrun, Accelerate, ...), with checkpoints in a directory.

    Messages go over gloo, from and to the CPU: nothing waits for a device.
    """

    def __init__(self, directory: Path | None, found: Path | None = None) -> None:
        super().__init__(directory, found)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = gloo_group(dist.get_backend() == "gloo")

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on every rank."""
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self._group())
        return told[0]

    def gather(self, value: Any) -> list[Any]:
        """Return all values, on rank 0, in the order of the ranks; an empty list elsewhere."""
        values = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._group())
        return values or []

    def of_zero(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns on rank 0, on every rank.

        What it raises there is raised on every rank.
        """
        answer, mine = None, None
        if self.rank == 0:
            try:
                answer = call()
            except Exception as raised:
                mine = raised
        answer, error = self.broadcast((answer, _portable(mine)))
        if error is not None:
            raise mine or error
        return answer

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group())

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Save a checkpoint: every rank writes its part."""
        if self._directory is None:
            return
        last, before = self._directory / "last", self._directory / "before"
        save(self.of_zero(lambda: storage.stage(last)))
        self.barrier()
        self.of_zero(lambda: storage.publish(last, before))


def gloo_group(default: bool = False) -> Callable[[], Any]:
    """Return a function that returns a gloo group of all processes, new or the ``default`` group.

    Only torch.distributed holds the group, so that destroy_process_group ends its threads.
    """
    return (lambda: None) if default else weakref.ref(dist.new_group(backend="gloo"))


def _portable(error: Exception | None) -> Exception | None:
    """Return the error, or a StateError with its text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StateError(f"Rank 0 raised {type(error).__name__} ({str(error).rstrip('.')}).")
    return error


class SharedKeeper:
    """The keeper of rank 0, called by every rank: plans are sent when an epoch begins, losses when it ends.

    Nothing is sent in between: a rank holds 12 bytes for each sample of its own share of the epoch until
    then. Every rank makes the same calls of :meth:`plan` and :meth:`drain`, and every rank raises what rank
    0's keeper raises. ``own`` is the keeper inside, for calls that rank 0 makes alone.
    """

    for_all_ranks = False

    def __init__(self, own: Keeper | Keepers, ranks: ProcessRanks) -> None:
        self.own, self._ranks = own, ranks
        self._held: list[tuple[str, int, np.ndarray, np.ndarray]] = []

    def restore(self, attempt: str, epoch: int = 0, state: Kept | None = None) -> None:
        """See :meth:`Keeper.restore`."""
        self.own.restore(attempt, epoch, state)

    def plan(self, attempt: str, epoch: int) -> Plan:
        """See :meth:`Keeper.plan`."""
        self._held = []
        return self._ranks.of_zero(lambda: self.own.plan(attempt, epoch))

    def update(self, attempt: str, epoch: int, slots: np.ndarray, losses: np.ndarray) -> None:
        """See :meth:`Keeper.update`; nothing is sent before :meth:`drain`."""
        self._held.append((attempt, epoch, slots, losses))

    def drain(self) -> None:
        """Pass every rank's losses to the keeper."""
        held, self._held = self._held, []
        everyones = self._ranks.gather(held)

        def take() -> None:
            for theirs in everyones:
                for update in theirs:
                    self.own.update(*update)

        self._ranks.of_zero(take)

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        """See :meth:`Keeper.commit`."""
        return self.own.commit(attempt, epoch)

    def state(self, attempt: str, start: int = 0, stop: int | None = None) -> tuple[int, SampleState]:
        """See :meth:`Keeper.state`."""
        return self.own.state(attempt, start, stop)

    def staged(
        self, attempt: str, epoch: int, start: int = 0, stop: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Keeper.staged`."""
        return self.own.staged(attempt, epoch, start, stop)
