"""Steps that all ranks take together, from shares of a stream that differ in length."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from raysel.core.arrays import positions
from raysel.dynamic.plan import Plan, steps
from raysel.errors import ConfigError, DataError, first
from raysel.train.batch import Batch
from raysel.train.communicator import gloo_group
from raysel.train.epoch import Epoch

if TYPE_CHECKING:
    from raysel.train.planned import Arrived, Board


class Counts:
    """The number of rows that every rank has for the next step, exchanged while the present step computes.

    The sum over ranks is computed on the CPU, in its own process group, so it neither waits for a device nor
    interferes with the collectives of DDP or FSDP. A session makes it for its first stream, and waits for a CPU that
    Ray Data can use.
    """

    def __init__(self, rank: int, world: int) -> None:
        from raysel.train.planned import wait_for_cpu

        self._rank, self._world = rank, world
        self.row: dict[str, np.ndarray] | None = None  # a real row, to pad with
        if rank == 0:  # the others wait for it in Ray Data's own barrier or in new_group
            wait_for_cpu()
        if world > 1:
            if not dist.is_initialized():
                raise ConfigError(
                    f"stream: There are {world} workers but no torch.distributed process group; use TorchTrainer."
                )
            self._group = gloo_group()

    def start(self, rows: int, mark: int) -> Callable[[], tuple[np.ndarray, int]]:
        """Start the exchange; return a function that waits for it.

        That function returns the rows per rank, and the sum of marks modulo 2**64.
        """
        told = torch.zeros(self._world + 1, dtype=torch.int64)
        told[self._rank], told[-1] = rows, mark
        work = dist.all_reduce(told, group=self._group(), async_op=True) if self._world > 1 else None

        def wait() -> tuple[np.ndarray, int]:
            if work is not None:
                work.wait()
            return told[:-1].numpy(), int(told[-1])

        return wait

    def add(self, counts: np.ndarray) -> np.ndarray:
        """Return the sum of the ranks' counts, on every rank."""
        told = torch.from_numpy(counts)
        if self._world > 1:
            dist.all_reduce(told, group=self._group())
        return told.numpy()

    def share(self, value: Any, source: int) -> Any:
        """Return ``value`` of rank ``source``, on every rank."""
        if self._world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=source, group=self._group())
        return values[0]


class EpochStream:
    """The batches of one epoch on one rank; iteration counts the session's steps. See ``Session.stream``."""

    def __init__(
        self,
        epoch: Epoch,
        counts: Counts,
        board: Board,
        staged: Callable[[], tuple[np.ndarray, np.ndarray]],
        data: Any,
        batch_size: int,
        shuffle_rows: int | None,
        collate: Callable[[dict[str, np.ndarray]], Any] | None,
    ) -> None:
        self._epoch, self._counts, self._board, self._staged, self._data = epoch, counts, board, staged, data
        left = max(len(epoch.plan) - epoch.skip, 0)
        self._ticket = epoch.take(steps(left, batch_size, epoch.world), shuffle=None)
        self._batch_size, self._shuffle_rows, self._collate = batch_size, shuffle_rows, collate
        self._least = min(2, batch_size)  # rows per batch, since batch statistics need more than one
        self._arrived = np.zeros(len(epoch.plan), np.uint8)  # how often, by position in the plan

    def __iter__(self) -> Iterator[Batch]:
        from raysel.train.planned import CollateRows, arrivals, shuffle_seed

        counts, epoch, plan = self._counts, self._epoch, self._epoch.plan
        epoch.claim(self._ticket)
        rest = plan
        if epoch.rank == 0:  # before Ray Data starts, which waits until all ranks ask for rows
            rest = self._rest()
            self._board.post(rest, epoch.run.samples, shuffle_seed(epoch.run.seed, epoch.number))
        collate = CollateRows(self._collate, self._least)
        seed = shuffle_seed(epoch.run.seed, epoch.number, epoch.rank)
        coming = arrivals(self._data, epoch.world, self._batch_size, self._shuffle_rows, seed, collate)
        came, mark, first = 0, 0, True
        try:
            now = self._next(coming)
            wait = counts.start(*_told(now))
            while epoch.step < epoch.last:
                rows, more = wait()
                together = int(rows.sum())
                if not together:
                    self._check_all(rest, came, mark, counts)
                    return
                came, mark = came + together, mark + more
                if now is not None:
                    counts.row = now[0].row
                if first and not rows.all():  # who starts without a row has none to pad with
                    counts.row = counts.share(counts.row, int(np.flatnonzero(rows)[0]))
                first = False
                following = None
                if epoch.step + 1 < epoch.last:  # no exchange may be under way when the run ends
                    following = self._next(coming) if now is not None else None
                    wait = counts.start(*_told(following))
                trained = min(len(plan), epoch.skip + came)
                epoch.hand_out(epoch.step + 1, trained, trained / len(plan))
                yield self._batch(now, collate, together / epoch.world)
                now = following
        finally:
            coming.close()

    def _next(self, coming: Generator[Arrived, None, None]) -> tuple[Arrived, np.ndarray, np.ndarray] | None:
        """Return the next batch that arrived, the positions of its rows in the plan, and their slots."""
        from raysel.train.planned import places

        arrived = next(coming, None)
        if arrived is None:
            return None
        found = places(self._epoch.ids, arrived.ids)
        np.add.at(self._arrived, found, 1)
        return arrived, found, self._epoch.plan.slots[found]

    def _batch(self, now: tuple[Arrived, np.ndarray, np.ndarray] | None, collate: Any, share: float) -> Batch:
        if now is None:
            ids = found = slots = np.empty(0, np.int64)
            data = collate.pad(self._counts.row)
        else:
            arrived, found, slots = now
            data, ids = arrived.data, arrived.ids
        pads = np.full(max(self._least - len(ids), 0), -1)
        weights = self._epoch.weights_at(np.append(found, pads))
        return Batch(
            data,
            torch.from_numpy(np.append(ids, pads)),
            torch.from_numpy(weights),
            np.append(slots, pads),
            share,
        )

    def _rest(self) -> Plan:
        """Return the part of the plan without losses in the checkpoint."""
        plan = self._epoch.plan
        if not self._epoch.done:
            return plan
        staged, _ = self._staged()
        left = ~np.isin(plan.slots, staged, assume_unique=True)
        return Plan(plan.slots[left], plan.weights[left])

    def _check_all(self, rest: Plan, rows: int, mark: int, counts: Counts) -> None:
        """Raise DataError, on every rank, unless the rows that arrived are those of ``rest``, each once."""
        from raysel.train.planned import marks

        epoch = self._epoch
        right = rows == len(rest) and (mark - marks(rest.slots)) % 2**64 == 0  # of rank 0, which has the rest
        if counts.share(right, 0):
            return
        times = counts.add(self._arrived)
        wanted = counts.share(positions(epoch.plan.slots, rest.slots)[0], 0)
        ids, times = epoch.ids[wanted], times[wanted]
        never, again = ids[times == 0], ids[times > 1]
        said = f"stream: Epoch {epoch.number} planned {len(ids):,} samples, but"
        if len(never):
            raise DataError(
                f"{said} {len(never):,} were not in the stream (sample_id {first(never.tolist())}). A transformation after "
                "dynamic.planned must keep every row. If a row cannot be decoded, return a placeholder and exclude it with "
                "session.loss(batch, losses, mask), or make a selection without this row. If no "
                "transformation drops rows, check that the dataset holds every sample_id."
            )
        raise DataError(
            f"{said} {len(again):,} arrived more than once (sample_id {first(again.tolist())}). The dataset must hold each "
            "sample_id once, and no transformation after dynamic.planned may repeat rows."
        )


def _told(now: tuple[Arrived, np.ndarray, np.ndarray] | None) -> tuple[int, int]:
    from raysel.train.planned import marks

    return (0, 0) if now is None else (len(now[2]), marks(now[2]))
