"""The keeper of several processes under torch.distributed, without Ray: it is on rank 0."""

from __future__ import annotations

import numpy as np

from raysel.dynamic.keeper import Keeper, Keepers
from raysel.dynamic.plan import Plan
from raysel.train.communicator import TorchCommunicator


class SharedKeeper:
    """The keeper of rank 0, called by every rank: plans are sent when an epoch begins, losses when it ends.

    Nothing is sent in between: a rank holds 12 bytes for each sample of its own share of the epoch until
    then. Every rank makes the same calls of :meth:`plan` and :meth:`drain`, and every rank raises what rank
    0's keeper raises. ``own`` is the keeper inside, for the calls that rank 0 makes alone.
    """

    def __init__(self, own: Keeper | Keepers, communicator: TorchCommunicator) -> None:
        self.own, self._communicator = own, communicator
        self._held: list[tuple[str, int, np.ndarray, np.ndarray]] = []

    def plan(self, attempt: str, epoch: int) -> Plan:
        """See :meth:`Keeper.plan`."""
        self._held = []
        return self._communicator.of_zero(lambda: self.own.plan(attempt, epoch))

    def update(self, attempt: str, epoch: int, slots: np.ndarray, losses: np.ndarray) -> None:
        """See :meth:`Keeper.update`; nothing is sent before :meth:`drain`."""
        self._held.append((attempt, epoch, slots, losses))

    def drain(self) -> None:
        """Pass every rank's losses to the keeper."""
        held, self._held = self._held, []
        everyones = self._communicator.gather(held)

        def take() -> None:
            for theirs in everyones:
                for update in theirs:
                    self.own.update(*update)

        self._communicator.of_zero(take)
