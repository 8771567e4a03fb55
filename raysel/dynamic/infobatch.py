"""InfoBatch: unbiased dynamic pruning (Qin et al., ICLR 2024, arXiv 2303.04947)."""

from __future__ import annotations

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
    uniform,
)
from raysel.dynamic.state import Array, SampleState, observe


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
        part = slice(filled, filled + len(here))
        np.add(here, start + begin, out=slots[part])
        weights[part] = np.where(_low(loss[begin:end][here], threshold), survivor, np.float32(1.0))
        filled += len(here)
    return Plan(slots, weights)


def _low(loss: npt.NDArray[np.float32], threshold: np.float32) -> npt.NDArray[np.bool_]:
    return (loss < threshold) & (loss > -np.inf)


@dataclass(frozen=True)
class InfoBatch:
    """Prune samples of low loss at random, and weigh the survivors up so that the gradient stays unbiased.

    Of the samples whose last loss is strictly below the mean, each is left out with probability
    ``prune_ratio``; survivors weigh 1 / (1 - prune_ratio). Samples not seen yet are kept at weight 1 and stay
    out of the mean. The first epoch, and every epoch from floor(num_epochs * delta) on, takes all the data at
    weight 1. The threshold looks at raw losses, whatever weights a Selection carries.

    Saves (floor(num_epochs * delta) - 1) / num_epochs * prune_ratio * (share below the mean) of the passes.
    Raises ConfigError for prune_ratio outside [0, 1) or delta outside [0, 1].
    """

    prune_ratio: float = 0.5
    delta: float = 0.875

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "prune_ratio", fraction("InfoBatch.prune_ratio", self.prune_ratio, one=False)
        )
        object.__setattr__(self, "delta", fraction("InfoBatch.delta", self.delta))

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of ``epoch``; the same call gives the same answer, on any machine and in any order."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        if epoch == 0 or annealing(epoch, num_epochs, self.delta):
            return full(len(state))
        average = mean(*loss_sum(state))
        if average is None:
            return full(len(state))
        # Losses are float32, so is the threshold: rounding it puts the mean of equal losses exactly on them.
        return prune_below(state.loss, np.float32(average), self.prune_ratio, seed=seed, epoch=epoch)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """The last finite loss of every sample observed, and one more selection for every sample planned."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """The policy's name and parameters."""
        return {"policy": type(self).__name__, **asdict(self)}
