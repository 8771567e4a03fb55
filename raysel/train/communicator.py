"""The processes of a run and what they exchange.

A run has one process, the processes that torch.distributed has joined, or the workers of Ray Train.
"""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from raysel.errors import ConfigError, StateError

if dist.is_available():
    # Before there are process groups. If DistributedDataParallel imports it later, its default arguments hold the group
    # of all processes. The threads of the group then survive destroy_process_group, and the process is aborted if one
    # of them releases a tensor while the interpreter ends.
    import torch.distributed.nn.functional  # noqa: F401


class Communicator:
    """A single process: rank 0 of 1."""

    rank, world = 0, 1

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on every rank."""
        return value

    def of_zero(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns on rank 0, on every rank."""
        return self.broadcast(call() if self.rank == 0 else None)

    def barrier(self) -> None:
        """Wait for all ranks."""


class TorchCommunicator(Communicator):
    """The processes of a torch.distributed run (torchrun, Accelerate, ...).

    Messages go over gloo, from and to the CPU: nothing waits for a device.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = gloo_group(dist.get_backend() == "gloo")

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group())
        return values[0]

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

    def gather(self, value: Any) -> list[Any]:
        """Return all values, on rank 0, in the order of the ranks; an empty list elsewhere."""
        values = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._group())
        return values or []

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._group())


class TrainCommunicator(Communicator):
    """The workers of a Ray Train run, which ends all of them if one raises."""

    def __init__(self) -> None:
        import ray.train

        try:
            context = ray.train.get_context()
        except RuntimeError as error:
            raise StateError(
                "session: This process is not a worker of Ray Train; call session() in the training function that the trainer "
                "runs. For a training in this process, use DynamicSelection.local(...)."
            ) from error
        self.rank, self.world = context.get_world_rank(), context.get_world_size()

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0, on every rank."""
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value)

    def barrier(self) -> None:
        """Wait for all ranks."""
        from ray.train.collective import barrier

        barrier()


def joined() -> Communicator:
    """Return the processes that torch.distributed has joined, or this one alone. Every process calls it."""
    initialized = dist.is_available() and dist.is_initialized()
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised > 1 and not initialized:
        raise ConfigError(
            f"session: {promised} processes were started (WORLD_SIZE), but torch.distributed is not initialised, so each "
            "would train on all rows; call torch.distributed.init_process_group, or make the Accelerator, first."
        )
    return TorchCommunicator() if initialized and dist.get_world_size() > 1 else Communicator()


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
