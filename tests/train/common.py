"""What the tests of training share: samples that know who they are, losses that say whose they are, ranks in a process."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see raysel.train.communicator


class Numbers(torch.utils.data.Dataset):
    """``dataset[i]`` is i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        assert 0 <= i < self.n
        return i


def loss_of(ids: torch.Tensor, epoch: int) -> torch.Tensor:
    """A function of id and epoch, so that whoever trains, and however often, notes the same."""
    return ((ids * 2654435761) % 1000).float() / 1000 + 0.01 * epoch


class Ranks:
    """Workers in one process: what rank 0 broadcasts, the others, asked later, are told."""

    def __init__(self, rank: int, world: int, told: list) -> None:
        self.rank, self.world, self._told = rank, world, told

    def of_zero(self, call):
        return self.broadcast(call() if self.rank == 0 else None)

    def broadcast(self, value):
        if self.rank == 0:
            self._told.append(value)
        return self._told[-1]

    def barrier(self):
        pass


def leave(survivors: int = 0) -> None:
    """End the process groups of a process that is about to exit, and check that no more of their threads survive.

    The process is aborted if a thread of gloo releases a tensor while the interpreter ends.
    """
    gc.collect()  # what is no longer used may hold a group
    dist.destroy_process_group()
    threads = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").glob("*")]
    assert sum("gloo_runloop" in name for name in threads) <= survivors, threads
