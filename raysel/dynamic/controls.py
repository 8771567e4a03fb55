"""The controls: policies that look at no loss, without which no claim for one that does can stand.

They record losses like any other policy, for the report, but their plans depend on (n, epoch, seed) alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from raysel.dynamic.budget import Budget, ratio_of
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
from raysel.dynamic.shards import lowest, plan_whole
from raysel.dynamic.state import Array, SampleState, observe
from raysel.errors import ConfigError


@dataclass(frozen=True)
class FullData:
    """Every sample in every epoch, weight 1."""

    title: ClassVar[str] = "full data"

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """All the data."""
        yield from ()  # nothing hangs on the other shards
        check_epoch(epoch, num_epochs)
        return full(len(state), start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of all the samples; see :meth:`plan_shard`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

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
    title: ClassVar[str] = "random pruning"

    @classmethod
    def at_budget(cls, budget: Budget) -> RandomPrune:
        """The same rescale and tail at the same number of passes; the first epoch takes all the data."""
        pruning = budget.epochs - budget.tail - 1
        spared = budget.rows * budget.epochs - budget.passes
        if spared and spared >= budget.rows * pruning:
            raise ConfigError(
                f"random_prune: its first epoch and the last {budget.tail} take all the data, so it spends more than "
                f"{budget.rows * (budget.tail + 1):,} passes and cannot be held to {budget.passes:,}."
            )
        return cls(spared / (budget.rows * pruning) if spared else 0.0, 1.0, budget.delta)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "prune_ratio", fraction("RandomPrune.prune_ratio", self.prune_ratio, one=False)
        )
        object.__setattr__(self, "share", fraction("RandomPrune.share", self.share))
        object.__setattr__(self, "delta", fraction("RandomPrune.delta", self.delta))

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """The plan of ``epoch``, from (n, epoch, seed) alone."""
        yield from ()  # nothing hangs on the other shards
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        if epoch == 0 or annealing(epoch, num_epochs, self.delta):
            return full(len(state), start)
        ratio = self.prune_ratio * self.share
        keep = np.empty(len(state), np.bool_)
        for begin, end in chunks(len(state)):
            draws = uniform(seed, epoch, start + begin, start + end)
            np.greater_equal(draws, below(ratio), out=keep[begin:end])
        slots = unweighted(keep, start).slots
        return Plan(slots, np.full(len(slots), 1.0 / (1.0 - ratio), np.float32))

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of all the samples; see :meth:`plan_shard`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

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
    title: ClassVar[str] = "random subsets"

    @classmethod
    def at_budget(cls, budget: Budget) -> RandomSubset:
        """Subsets of equal size in all epochs, at the same number of passes; there is no tail on all the data."""
        return cls(ratio_of(max(round(budget.passes / budget.epochs), 1), budget.rows))

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RandomSubset.ratio", self.ratio, zero=False))

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """The samples with the lowest draws of ``epoch``."""
        epoch, _ = check_epoch(epoch, num_epochs)
        count = _count(self.ratio, n)
        if count == n:
            return full(len(state), start)
        draws = uniform(seed, epoch, start, start + len(state), purpose=SUBSET)
        return unweighted((yield from lowest(draws, count, start)), start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of all the samples; see :meth:`plan_shard`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

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
    title: ClassVar[str] = "round robin"

    @classmethod
    def at_budget(cls, budget: Budget) -> RoundRobin:
        """The same tail at the same number of passes."""
        return cls(ratio_of(budget.rows_per_epoch("round_robin"), budget.rows), budget.delta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RoundRobin.ratio", self.ratio, zero=False))
        object.__setattr__(self, "delta", fraction("RoundRobin.delta", self.delta))

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """The next stretch of the walk: ``epoch`` times its length from the start, round the end."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        count = _count(self.ratio, n)
        if count == n or annealing(epoch, num_epochs, self.delta):
            return full(len(state), start)
        # The ranks of one set of draws are the walk: the run's, whatever the epoch, hence epoch 0.
        draws = uniform(seed, 0, start, start + len(state), purpose=WALK)
        first = epoch * count % n
        last = first + count
        keep = ~(yield from lowest(draws, first, start))
        if last > n:
            keep |= yield from lowest(draws, last - n, start)
        else:
            keep &= yield from lowest(draws, last, start)
        return unweighted(keep, start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of all the samples; see :meth:`plan_shard`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """See :func:`raysel.dynamic.state.observe`."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


def _count(ratio: float, n: int) -> int:
    return min(max(part(ratio, n), 1), n)
