"""InfoBatch: unbiased dynamic pruning (Qin et al., ICLR 2024, arXiv 2303.04947)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysel.dynamic.plan import (
    Plan,
    annealing,
    below,
    check_epoch,
    chunks,
    fraction,
    full,
    loss_sum,
    mean,
    part,
    uniform,
)
from raysel.dynamic.state import Array, SampleState, observe
from raysel.errors import ConfigError

HIGHEST_RATIO = 0.9  # that a target_saving may ask for: no weight passes 1 / (1 - 0.9) = 10


def prune_below(
    loss: npt.NDArray[np.float32],
    threshold: np.float32,
    ratio: float,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
) -> Plan:
    """The plan of the slots start..start+len(loss): those strictly below the threshold are pruned with
    probability ``ratio`` each, the survivors weigh 1 / (1 - ratio), everything else is kept at weight 1.

    What is not finite (NaN = unseen) is below nothing. The plans of shards, joined in order, are the plan of the whole. Beside the
    12 bytes a kept sample takes, one byte a sample is used while it runs.
    """
    n, bound = len(loss), below(ratio)
    keep = np.empty(n, np.bool_)
    for begin, end in chunks(n):
        draws = uniform(seed, epoch, start + begin, start + end)
        np.logical_not(_low(loss[begin:end], threshold) & (draws < bound), out=keep[begin:end])
    kept = int(np.count_nonzero(keep))
    slots, weights = np.empty(kept, np.int64), np.empty(kept, np.float32)
    survivor, filled = np.float32(1.0 / (1.0 - ratio)), 0
    for begin, end in chunks(n):
        here = np.flatnonzero(keep[begin:end])
        span = slice(filled, filled + len(here))
        np.add(here, start + begin, out=slots[span])
        weights[span] = np.where(_low(loss[begin:end][here], threshold), survivor, np.float32(1.0))
        filled += len(here)
    return Plan(slots, weights)


def _low(loss: npt.NDArray[np.float32], threshold: np.float32) -> npt.NDArray[np.bool_]:
    return (loss < threshold) & (loss > -np.inf)


def _ranked(values: npt.NDArray[np.float32], rank: int) -> np.float32:
    """The value of this rank from below, 0 the lowest; ``values`` is reordered."""
    values.partition(rank)
    value: np.float32 = values[rank]
    return value


def _solve(loss: npt.NDArray[np.float32], threshold: np.float32, wanted: float) -> tuple[np.float32, float]:
    """The threshold and the ratio that prune ``wanted`` (a share of all samples) on average.

    The threshold stays where it is if a ratio up to 0.9 reaches that; else it rises to the lowest one with
    which 0.9 does. Where even all the losses seen are too few, as much as they allow.
    """
    target = wanted * len(loss)
    low = np.count_nonzero(_low(loss, threshold))
    if low * HIGHEST_RATIO < target:
        seen = loss[np.isfinite(loss)]
        enough = min(math.ceil(target / HIGHEST_RATIO), len(seen))
        threshold = np.nextafter(_ranked(seen, enough - 1), np.float32(np.inf))
        low = np.count_nonzero(seen < threshold)
    return threshold, min(target / low, HIGHEST_RATIO)


@dataclass(frozen=True)
class InfoBatch:
    """Prune samples of low loss at random, and weigh the survivors up so that the gradient stays unbiased.

    Of the samples whose last loss is strictly below the mean, each is left out with probability
    ``prune_ratio``; survivors weigh 1 / (1 - prune_ratio). Samples not seen yet are kept at weight 1 and stay
    out of the mean. The first epoch, and every epoch from floor(num_epochs * delta) on, takes all the data at
    weight 1. The threshold looks at raw losses, whatever weights a Selection carries.

    Saves (floor(num_epochs * delta) - 1) / num_epochs * prune_ratio * (share below the mean) of the passes.

    threshold: "mean", or a number q in (0, 1) for the q-quantile of the losses seen.
    target_saving: the share of all passes to save, in the place of ``prune_ratio``, which is then solved from
    the losses seen before every epoch; no weight passes 10, and where that is not enough the threshold rises.
    ema: the share of the old score that a new loss leaves (0 = the last loss alone).

    Raises ConfigError for prune_ratio or ema outside [0, 1), delta outside [0, 1], threshold or target_saving
    outside (0, 1), and, when planning, for a target_saving that num_epochs and delta put out of reach.
    """

    prune_ratio: float = 0.5
    delta: float = 0.875
    threshold: str | float = "mean"
    target_saving: float | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "prune_ratio": fraction("InfoBatch.prune_ratio", self.prune_ratio, one=False),
            "delta": fraction("InfoBatch.delta", self.delta),
            "ema": fraction("InfoBatch.ema", self.ema, one=False),
        }
        if self.target_saving is not None:
            checked["target_saving"] = fraction(
                "InfoBatch.target_saving", self.target_saving, zero=False, one=False
            )
        if self.threshold != "mean":
            checked["threshold"] = fraction(
                'InfoBatch.threshold, unless "mean",', self.threshold, zero=False, one=False
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of ``epoch``; the same call gives the same answer, on any machine and in any order."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        wanted = self._wanted(num_epochs)
        if epoch == 0 or annealing(epoch, num_epochs, self.delta):
            return full(len(state))
        threshold = self._threshold(state)
        if threshold is None:
            return full(len(state))
        ratio = self.prune_ratio
        if wanted is not None:
            threshold, ratio = _solve(state.loss, threshold, wanted)
        return prune_below(state.loss, threshold, ratio, seed=seed, epoch=epoch)

    def _wanted(self, num_epochs: int) -> float | None:
        """The share of the samples that each pruning epoch must leave out, None without a target."""
        if self.target_saving is None:
            return None
        pruning = max(part(self.delta, num_epochs) - 1, 0)  # the first epoch cannot
        reachable = HIGHEST_RATIO * pruning / num_epochs
        if self.target_saving > reachable + 1e-12:
            raise ConfigError(
                f"InfoBatch.target_saving of {self.target_saving:g} is out of reach: {num_epochs} epochs with "
                f"delta {self.delta:g} can save at most {reachable:.4g}; lower it, raise delta or train longer"
            )
        return self.target_saving * num_epochs / pruning

    def _threshold(self, state: SampleState) -> np.float32 | None:
        """The loss below which a sample may be pruned, None when no loss has been seen."""
        if isinstance(self.threshold, float):
            seen = state.loss[np.isfinite(state.loss)]
            return _ranked(seen, part(self.threshold, len(seen))) if len(seen) else None
        average = mean(*loss_sum(state))
        # Losses are float32, so is the threshold: rounding it puts the mean of equal losses exactly on them.
        return None if average is None else np.float32(average)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """The last finite loss (or its moving average) of every sample observed, one more selection for every sample planned."""
        return observe(state, plan.slots, slots, losses, self.ema)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}
