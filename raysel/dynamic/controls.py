"""The controls: policies that look at no loss, without which no claim for one that does can stand.

They record losses like any other policy, for the report, but their plans depend on (n, epoch, seed) alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysel.dynamic.plan import (
    SUBSET,
    WALK,
    Plan,
    annealing,
    below,
    check_epoch,
    chunks,
    fraction,
    full,
    part,
    uniform,
    unweighted,
)
from raysel.dynamic.state import Array, SampleState, observe


@dataclass(frozen=True)
class FullData:
    """Every sample in every epoch, weight 1."""

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """All the data."""
        check_epoch(epoch, num_epochs)
        return full(len(state))

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """See :func:`raysel.dynamic.state.observe`."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name."""
        return {"policy": type(self).__name__}


@dataclass(frozen=True)
class RandomPrune:
    """InfoBatch without the losses: prune at random, weigh up the same way, anneal the same way.

    InfoBatch prunes ``prune_ratio`` of the samples below the mean; ``share`` is what lies below the mean
    (0.5 of symmetric losses, 0.63 of exponential ones). Here each sample is pruned with probability
    r = prune_ratio * share whatever its loss, and the rest weighs 1 / (1 - r), so the expected saving is
    InfoBatch's. The first epoch, and every epoch from floor(num_epochs * delta) on, takes all the data.
    Raises ConfigError for prune_ratio outside [0, 1), share or delta outside [0, 1].
    """

    prune_ratio: float = 0.5
    share: float = 0.5
    delta: float = 0.875

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "prune_ratio", fraction("RandomPrune.prune_ratio", self.prune_ratio, one=False)
        )
        object.__setattr__(self, "share", fraction("RandomPrune.share", self.share))
        object.__setattr__(self, "delta", fraction("RandomPrune.delta", self.delta))

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of ``epoch``, from (n, epoch, seed) alone."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        if epoch == 0 or annealing(epoch, num_epochs, self.delta):
            return full(len(state))
        ratio = self.prune_ratio * self.share
        keep = np.empty(len(state), np.bool_)
        for start, stop in chunks(len(state)):
            np.greater_equal(uniform(seed, epoch, start, stop), below(ratio), out=keep[start:stop])
        slots = unweighted(keep).slots
        return Plan(slots, np.full(len(slots), 1.0 / (1.0 - ratio), np.float32))

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """See :func:`raysel.dynamic.state.observe`."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class RandomSubset:
    """A fresh uniform subset of floor(ratio * n) samples in every epoch (at least one), weight 1.

    Raises ConfigError for a ratio outside (0, 1].
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RandomSubset.ratio", self.ratio, zero=False))

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The samples with the lowest draws of ``epoch``."""
        epoch, _ = check_epoch(epoch, num_epochs)
        n = len(state)
        count = _count(self.ratio, n)
        if count == n:
            return full(n)
        return unweighted(_lowest(uniform(seed, epoch, 0, n, purpose=SUBSET), count))

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """See :func:`raysel.dynamic.state.observe`."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class RoundRobin:
    """RS2 without replacement: walk round one seeded permutation, floor(ratio * n) samples an epoch, weight 1.

    No sample is taken twice more than another. From epoch floor(num_epochs * delta) on, all the data: the
    full-data tail of the policy it is compared with (``delta=1`` for none).
    Raises ConfigError for a ratio outside (0, 1] or delta outside [0, 1].
    """

    ratio: float = 0.5
    delta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RoundRobin.ratio", self.ratio, zero=False))
        object.__setattr__(self, "delta", fraction("RoundRobin.delta", self.delta))

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The next stretch of the walk: ``epoch`` times its length from the start, round the end."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        n = len(state)
        count = _count(self.ratio, n)
        if count == n or annealing(epoch, num_epochs, self.delta):
            return full(n)
        # The ranks of one set of draws are the walk: the run's, whatever the epoch, hence epoch 0.
        draws = uniform(seed, 0, 0, n, purpose=WALK)
        start = epoch * count % n
        stop = start + count
        keep = ~_lowest(draws, start)
        if stop > n:
            keep |= _lowest(draws, stop - n)
        else:
            keep &= _lowest(draws, stop)
        return unweighted(keep)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """See :func:`raysel.dynamic.state.observe`."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


def _count(ratio: float, n: int) -> int:
    return min(max(part(ratio, n), 1), n)


def _lowest(draws: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.bool_]:
    """Marks the ``count`` lowest draws, ties to the lowest slot: exactly ``count`` of them."""
    if count == 0:
        return np.zeros(len(draws), np.bool_)
    last = np.partition(draws, count - 1)[count - 1]
    keep: npt.NDArray[np.bool_] = draws < last
    ties = np.flatnonzero(draws == last)
    keep[ties[: count - np.count_nonzero(keep)]] = True
    return keep
