"""Controls: policies that use no losses, with which every policy that does is compared.

They record losses as any other policy does, for the report, but their plans depend only on (n, epoch, seed).
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
    """Train on all samples in every epoch. All weights are 1.

    Examples
    --------
    >>> raysel.FullData().parameters()
    {'policy': 'FullData'}
    """

    title: ClassVar[str] = "full data"

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Return the plan of all samples of this shard."""
        yield from ()  # the plan does not depend on other shards
        check_epoch(epoch, num_epochs)
        return full(len(state), start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the epoch's losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name."""
        return {"policy": type(self).__name__}


@dataclass(frozen=True)
class RandomPrune:
    """Skip as many random samples as InfoBatch, without using losses, and weight the others as InfoBatch does.

    InfoBatch leaves out the share ``prune_ratio`` of the samples with a loss below the mean. This policy leaves
    out every sample with probability r = prune_ratio * share, whatever its loss, and gives the others the weight
    1 / (1 - r). The expected saving is therefore that of InfoBatch. The first epoch, and every epoch from
    floor(num_epochs * delta) on, trains on all samples.

    Parameters
    ----------
    prune_ratio : float
        Probability, in [0, 1), with which the policy InfoBatch would skip a sample with a loss below the mean. This policy
        skips every sample, whatever its loss, with the probability ``prune_ratio * share``.
    share : float
        Share of the samples, in [0, 1], that are assumed to have a loss below the mean: 0.5 if the losses are distributed
        symmetrically, and 0.63 if exponentially.
    delta : float
        Share of the epochs, in [0, 1], in which samples are skipped; the epochs after this share train on all
        samples.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Examples
    --------
    >>> raysel.RandomPrune(prune_ratio=0.4).parameters()
    {'policy': 'RandomPrune', 'prune_ratio': 0.4, 'share': 0.5, 'delta': 0.875}
    """

    prune_ratio: float = 0.5
    share: float = 0.5
    delta: float = 0.875
    title: ClassVar[str] = "random pruning"

    @classmethod
    def at_budget(cls, budget: Budget) -> RandomPrune:
        """Return the policy with the budget's tail and passes; the first epoch takes all the data."""
        pruning = budget.epochs - budget.tail - 1
        spared = budget.rows * budget.epochs - budget.passes
        if spared and spared >= budget.rows * pruning:
            raise ConfigError(
                f"random_prune: A budget of {budget.passes:,} samples is too small, because {budget.tail + 1} of the "
                f"{budget.epochs} epochs train on all rows and need {budget.rows * (budget.tail + 1):,} samples. Raise the budget "
                "(in raysel compare, it is the number of samples that the policy of the workflow back-propagates), let fewer epochs "
                "train on all rows, or leave out this policy."
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
        """Return this shard's part of the plan of ``epoch``, which depends only on (n, epoch, seed)."""
        yield from ()  # the plan does not depend on other shards
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
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the epoch's losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class RandomSubset:
    """Train on a new random subset of the samples in every epoch. All weights are 1.

    Parameters
    ----------
    ratio : float
        Share of the samples per epoch, in (0, 1]; at least one sample is selected.

    Raises
    ------
    ConfigError
        For a ratio that is out of range.

    Examples
    --------
    >>> raysel.RandomSubset(ratio=0.25).parameters()
    {'policy': 'RandomSubset', 'ratio': 0.25}
    """

    ratio: float = 0.5
    title: ClassVar[str] = "random subsets"

    @classmethod
    def at_budget(cls, budget: Budget) -> RandomSubset:
        """Return subsets of equal size in all epochs with the budget's passes, without a tail."""
        return cls(ratio_of(max(round(budget.passes / budget.epochs), 1), budget.rows))

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RandomSubset.ratio", self.ratio, zero=False))

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Return this shard's part of the samples with the lowest draws of ``epoch``."""
        epoch, _ = check_epoch(epoch, num_epochs)
        count = _count(self.ratio, n)
        if count == n:
            return full(len(state), start)
        draws = uniform(seed, epoch, start, start + len(state), purpose=SUBSET)
        return unweighted((yield from lowest(draws, count, start)), start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the epoch's losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class RoundRobin:
    """Train in every epoch on the next part of one random order of all samples. All weights are 1.

    The numbers of epochs that train on two samples differ by at most 1 (RS2 without replacement).

    Parameters
    ----------
    ratio : float
        Share of the samples per epoch, in (0, 1]; at least one sample is selected.
    delta : float
        Share of the epochs, in [0, 1], in which samples are skipped; the epochs after this share train on all
        samples; with 1, there are no such epochs.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    References
    ----------
    Okanovic et al., Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning, ICLR 2024.

    Examples
    --------
    >>> raysel.RoundRobin(ratio=0.5).parameters()
    {'policy': 'RoundRobin', 'ratio': 0.5, 'delta': 1.0}
    """

    ratio: float = 0.5
    delta: float = 1.0
    title: ClassVar[str] = "round robin"

    @classmethod
    def at_budget(cls, budget: Budget) -> RoundRobin:
        """Return the policy with the budget's tail and number of passes."""
        return cls(ratio_of(budget.rows_per_epoch("round_robin"), budget.rows), budget.delta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", fraction("RoundRobin.ratio", self.ratio, zero=False))
        object.__setattr__(self, "delta", fraction("RoundRobin.delta", self.delta))

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Return this shard's samples of part number ``epoch`` of the permutation, which repeats."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        count = _count(self.ratio, n)
        if count == n or annealing(epoch, num_epochs, self.delta):
            return full(len(state), start)
        # The ranks of one set of draws are the permutation. It is the same in all epochs, hence epoch 0.
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
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the epoch's losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}


def _count(ratio: float, n: int) -> int:
    return min(max(part(ratio, n), 1), n)
