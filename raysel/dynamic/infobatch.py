"""InfoBatch: unbiased dynamic pruning (Qin et al., ICLR 2024, arXiv 2303.04947)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from raysel.dynamic.budget import Budget
from raysel.dynamic.plan import (
    Plan,
    annealing,
    below,
    check_epoch,
    chunk_sums,
    chunks,
    class_sums,
    fraction,
    full,
    mean,
    part,
    uniform,
)
from raysel.dynamic.shards import kth, ordered, plan_whole, values_of
from raysel.dynamic.state import Array, SampleState, frozen, observe
from raysel.errors import ConfigError

HIGHEST_RATIO = 0.9  # that a target_saving may ask for: no weight passes 1 / (1 - 0.9) = 10


def prune_below(
    loss: npt.NDArray[np.float32],
    threshold: np.float32 | npt.NDArray[np.float32],
    ratio: float,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    classes: Array | None = None,
) -> Plan:
    """Plan the slots start..start+len(loss), pruning at random those strictly below the threshold.

    Each of these is left out with probability ``ratio``, and those that stay have the weight 1 / (1 - ratio).
    All other samples are kept at weight 1. The plans of shards, joined in order, are the plan of all samples.
    In addition to the plan (12 bytes per kept sample), one byte per sample is used.

    Parameters
    ----------
    loss : array of float32, shape (m,)
        Last loss per sample. A loss that is not finite (NaN: not seen yet) is not below any threshold.
    threshold : float32, or array of float32, shape (classes,)
        One threshold, or one per class if ``classes`` is given.
    ratio : float
        Probability, in [0, 1), of leaving out.
    seed, epoch : int
        What the draws depend on, together with the slot.
    start : int
        Slot of the first loss.
    classes : array of int, shape (m,), optional
        Class of each sample.

    Returns
    -------
    Plan
        The kept samples and their weights.
    """

    def low(begin: int, end: int, some: Array | slice = slice(None)) -> npt.NDArray[np.bool_]:
        bound = threshold if classes is None else np.asarray(threshold)[classes[begin:end][some]]
        return _low(loss[begin:end][some], bound)

    n, bound = len(loss), below(ratio)
    keep = np.empty(n, np.bool_)
    for begin, end in chunks(n):
        draws = uniform(seed, epoch, start + begin, start + end)
        np.logical_not(low(begin, end) & (draws < bound), out=keep[begin:end])
    kept = int(np.count_nonzero(keep))
    slots, weights = np.empty(kept, np.int64), np.empty(kept, np.float32)
    survivor, filled = np.float32(1.0 / (1.0 - ratio)), 0
    for begin, end in chunks(n):
        here = np.flatnonzero(keep[begin:end])
        span = slice(filled, filled + len(here))
        np.add(here, start + begin, out=slots[span])
        weights[span] = np.where(low(begin, end, here), survivor, np.float32(1.0))
        filled += len(here)
    return Plan(slots, weights)


def _low(
    loss: npt.NDArray[np.float32], threshold: np.float32 | npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    return (loss < threshold) & (loss > -np.inf)


@dataclass(frozen=True)
class InfoBatch:
    """Skip some samples with a low loss, and weight the others so that the expected gradient is that of all samples.

    A sample whose last loss is below the threshold is left out with probability ``prune_ratio``. If it is not
    left out, its weight is 1 / (1 - prune_ratio). Samples without a recorded loss are kept with weight 1 and do
    not count towards the mean. The first epoch, and every epoch from floor(num_epochs * delta) on, trains on all
    samples with weight 1. The threshold is compared with losses that are not multiplied by any weight. The share
    of the training samples that is saved is (floor(num_epochs * delta) - 1) / num_epochs * prune_ratio * (share of the
    losses below the threshold).

    Parameters
    ----------
    prune_ratio : float
        Probability, in [0, 1), with which a sample with a loss below the threshold is skipped in an epoch.
    delta : float
        Share of the epochs, in [0, 1], in which samples are skipped; the epochs after this share train on all
        samples.
    threshold : str or float
        A loss is low if it is below this threshold: ``mean`` for the mean of the last losses of all samples, or a
        number q in (0, 1) for their q-quantile, below which the share q of the losses lies.
    target_saving : float, optional
        Share of the back-propagated samples, in (0, 1), that the run must save compared with training on all
        samples in every epoch. ``prune_ratio`` is then computed before every epoch, so that the run reaches this
        saving. The weights of the samples stay at 10 or below; if the saving cannot be reached in this way, the
        threshold is raised.
    ema : float
        Weight of the old value, in [0, 1), when a new loss of a sample is recorded (exponential moving average). With
        0, only the last loss is kept.
    classes : array of int, shape (pool rows,), optional
        Label of each row of the pool: ``classes[sample_id]``. Each class then has its own threshold, so that
        classes with low losses are not skipped more often than others.

    Raises
    ------
    ConfigError
        For a parameter that is out of range, for classes that are not one integer per sample, and for a
        ``target_saving`` that cannot be reached with ``num_epochs`` and ``delta``.

    References
    ----------
    Qin et al., ICLR 2024, arXiv:2303.04947.

    Examples
    --------
    >>> from raysel.dynamic import SampleState
    >>> losses = np.array([0.1, 0.2, 0.3, 3.0], np.float32)
    >>> state = SampleState(losses, np.ones(4, np.int32))
    >>> plan = raysel.InfoBatch(prune_ratio=0.5).plan(state, epoch=1, num_epochs=20, seed=0)
    >>> 3 in plan.slots   # its loss is above the mean, 0.9
    True
    """

    prune_ratio: float = 0.5
    delta: float = 0.875
    threshold: str | float = "mean"
    target_saving: float | None = None
    ema: float = 0.0
    classes: Any = field(default=None, repr=False, compare=False, metadata={"yaml": False})
    classes_digest: str | None = field(default=None, init=False, repr=False)
    _number: int = field(default=1, init=False, repr=False, compare=False)
    title: ClassVar[str] = "InfoBatch"

    @classmethod
    def at_budget(cls, budget: Budget) -> InfoBatch:
        """Return InfoBatch with the budget's tail and its saving as ``target_saving``."""
        if budget.saving <= 0:
            return cls(prune_ratio=0.0, delta=budget.delta)
        policy = cls(delta=budget.delta, target_saving=budget.saving)
        try:
            policy.check(budget.epochs)
        except ConfigError as error:
            raise ConfigError(
                f"infobatch: To keep to the budget, this control must save {budget.saving:.3g} of the samples, but with "
                f"{budget.epochs} epochs and delta {budget.delta:g}, InfoBatch cannot save so many. Leave infobatch out of the "
                "policies, or let the policy of the workflow skip fewer samples."
            ) from error
        return policy

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
        if self.classes is not None:
            checked["classes"], checked["_number"] = _dense(self.classes)
            checked["classes_digest"] = hashlib.blake2b(checked["classes"].data, digest_size=16).hexdigest()
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def for_ids(self, ids: npt.NDArray[np.int64] | int) -> InfoBatch:
        """Return the policy of a run over these ids.

        Parameters
        ----------
        ids : array of int64, ascending, or int
            The ids; a number n means 0..n-1.

        Returns
        -------
        InfoBatch
            The policy with the classes of these ids, in their order.

        Raises
        ------
        ConfigError
            If an id has no class.

        Examples
        --------
        >>> raysel.InfoBatch(classes=[4, 7, 7]).for_ids(np.array([0, 2])).classes.tolist()
        [0, 1]
        """
        if self.classes is None:
            return self
        count = len(self.classes)
        if isinstance(ids, (int, np.integer)):
            self._check(int(ids))
            return self
        if len(ids) and ids[-1] >= count:
            raise ConfigError(
                f"InfoBatch.classes has {count} entries, but sample_id {ids[-1]} is selected; give one class per row of "
                "the pool, in the order of sample_id."
            )
        return replace(self, classes=self.classes[ids])

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Return this shard's part of the plan of ``epoch``, the same on any machine."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        wanted = self._wanted(num_epochs)
        loss, classes = state.loss, self.classes
        self._check(len(loss))
        if epoch == 0 or annealing(epoch, num_epochs, self.delta):
            return full(len(loss), start)
        threshold = yield from self._threshold(loss)
        ratio = self.prune_ratio
        if wanted is not None:
            threshold, ratio = yield from self._solve(loss, threshold, wanted, n)
        if np.isnan(threshold).all():  # no loss has been seen
            return full(len(loss), start)
        bound = threshold[0] if classes is None else threshold
        return prune_below(loss, bound, ratio, seed=seed, epoch=epoch, start=start, classes=classes)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def shard(self, start: int, stop: int, n: int) -> InfoBatch:
        """Return the same policy for the slots start..stop of n."""
        if self.classes is None:
            return self
        self._check(n)
        part = copy.copy(self)
        object.__setattr__(part, "classes", self.classes[start:stop])
        return part

    def check(self, num_epochs: int) -> None:
        """Raise ConfigError for a ``target_saving`` that ``num_epochs`` epochs cannot reach."""
        self._wanted(num_epochs)

    def _check(self, n: int) -> None:
        """Raise ConfigError unless there is one class for each of ``n`` samples, or none at all."""
        if self.classes is not None and len(self.classes) != n:
            raise ConfigError(
                f"InfoBatch.classes has {len(self.classes)} entries, but there are {n} samples; give one class per sample."
            )

    def _wanted(self, num_epochs: int) -> float | None:
        """Return the share of the samples that each pruning epoch must leave out; None without a target."""
        if self.target_saving is None:
            return None
        pruning = max(part(self.delta, num_epochs) - 1, 0)  # the first epoch cannot
        reachable = HIGHEST_RATIO * pruning / num_epochs
        if self.target_saving > reachable + 1e-12:
            raise ConfigError(
                f"InfoBatch.target_saving of {self.target_saving:g} is out of reach: {num_epochs} epochs with "
                f"delta {self.delta:g} can save at most {reachable:.4g} of the samples. Lower target_saving, "
                "raise delta, or train for more epochs."
            )
        return self.target_saving * num_epochs / pruning

    def _threshold(self, loss: npt.NDArray[np.float32]) -> Generator[Any, Any, npt.NDArray[np.float32]]:
        """Return the losses, one per class, below which a sample may be pruned; NaN without losses."""
        if isinstance(self.threshold, float):
            share = self.threshold
            return (yield from self._ranked(loss, lambda seen: np.array([part(share, int(k)) for k in seen])))
        # Losses are float32, so is the threshold: rounding it puts the mean of equal losses exactly on them.
        if self.classes is None:
            average = mean(*(yield chunk_sums(loss)))
            return np.array([np.nan if average is None else average], np.float32)
        sums, count = yield class_sums(loss, self.classes, self._number)
        means = (mean([s[k] for s in sums], int(count[k])) for k in range(self._number))
        return np.array([np.nan if m is None else m for m in means], np.float32)

    def _ranked(
        self, loss: npt.NDArray[np.float32], rank: Any
    ) -> Generator[Any, Any, npt.NDArray[np.float32]]:
        """Return the loss of this rank among those seen, one per class; NaN if there is none."""
        seen = np.isfinite(loss)
        classes = None if self.classes is None else self.classes[seen]
        key, ties = yield from kth(ordered(loss[seen]), rank, classes, self._number)
        return np.where(ties > 0, values_of(key), np.float32(np.nan))

    def _solve(
        self, loss: npt.NDArray[np.float32], threshold: npt.NDArray[np.float32], wanted: float, n: int
    ) -> Generator[Any, Any, tuple[npt.NDArray[np.float32], float]]:
        """Return the thresholds and the ratio that prune ``wanted`` (a share of all samples) on average.

        The thresholds do not change if a ratio up to 0.9 is enough. Otherwise they rise to the lowest ones at
        which 0.9 is enough, in every class alike. If even all the losses seen are too few, as much as
        possible is pruned.
        """
        classes, number = self.classes, self._number

        def low() -> int:
            bound = threshold[0] if classes is None else threshold[classes]
            return int(np.count_nonzero(_low(loss, bound)))

        def sizes() -> Array:
            return np.array([len(loss)]) if classes is None else np.bincount(classes, minlength=number)

        below_it, size = yield low(), sizes()
        if below_it * HIGHEST_RATIO < wanted * n:
            enough = [math.ceil(wanted * int(k) / HIGHEST_RATIO) for k in size]
            rank = yield from self._ranked(loss, lambda seen: np.minimum(enough, seen) - 1)
            threshold = np.fmax(threshold, np.nextafter(rank, np.float32(np.inf)))
            below_it = yield low()
        return threshold, min(wanted * n / below_it, HIGHEST_RATIO) if below_it else 0.0

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the (averaged) losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses, self.ema)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name and parameters; for the classes, their digest."""
        names = ("prune_ratio", "delta", "threshold", "target_saving", "ema")
        parameters = {"policy": type(self).__name__, **{name: getattr(self, name) for name in names}}
        return parameters if self.classes is None else {**parameters, "classes": self.classes_digest}


def _dense(classes: Any) -> tuple[Array, int]:
    """Return the labels as int32 0..number-1 in ascending order, and their number."""
    given = np.asarray(classes)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ConfigError(
            f"InfoBatch.classes must be a vector of integers, one per sample, got {given.dtype}{list(given.shape)}."
        )
    labels, dense = np.unique(given, return_inverse=True)
    return frozen(dense.astype(np.int32)), max(len(labels), 1)
