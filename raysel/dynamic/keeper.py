"""The keeper of the one state of a run: stages an epoch's losses, commits them once, refuses stale callers.

This is the whole of what the actor on the cluster does, without the cluster. Life of an epoch::

    restore(attempt) -> plan(attempt, e) -> update(attempt, e, slots, losses) ... -> commit(attempt, e)

Every call carries (attempt, epoch). An update only assigns into the epoch's staging area, so replaying one
changes nothing; a commit folds the staging area in once and answers the same when it is repeated; a restore
forgets what was staged and shuts out every earlier attempt. Whatever died and was replayed in between, an
epoch leaves one trace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raysel.dynamic.plan import Plan, Policy, chunk_sums, chunks, mean
from raysel.dynamic.state import Array, SampleState, pairs, whole
from raysel.errors import ConfigError, DataError, StateError, first

# What a slot of the staging area says when it holds no loss.
_WAITING, _NOT_FINITE, _UNPLANNED = np.float32(np.nan), np.float32(np.inf), np.float32(-np.inf)


class _Open(NamedTuple):
    plan: Plan
    staging: npt.NDArray[np.float32]  # one per slot


class Keeper:
    """The state of one run under one policy; not thread-safe, one call at a time.

    Holds 8 bytes a sample, and during an epoch 4 for staging and 12 for each one planned.
    Refuses everything with a StateError until :meth:`restore` has been called. Raises ConfigError for a
    size, number of epochs or seed that cannot be.
    """

    def __init__(self, policy: Policy, size: int, num_epochs: int, seed: int) -> None:
        if not isinstance(policy, Policy):
            raise ConfigError(
                f"a policy needs plan, update and parameters, {type(policy).__name__} lacks one"
            )
        self._policy = policy
        self._size = whole("the number of samples", size, 1)
        self._num_epochs = whole("num_epochs", num_epochs, 1)
        self._seed = whole("seed", seed, 0)
        self._attempt: str | None = None
        self._past: set[str] = set()
        self._epoch = 0  # the epoch being trained = the number of epochs committed
        self._state = SampleState.empty(0)
        self._open: _Open | None = None
        self._last: dict[str, Any] | None = None

    def restore(self, attempt: str, epoch: int = 0, state: SampleState | None = None) -> None:
        """Start or continue: ``epoch`` epochs are committed, ``state`` is what they left (None = the very start).

        From here on only ``attempt`` is accepted; what was staged is forgotten. An attempt that another has
        replaced cannot come back. Raises StateError for such an attempt, for a state of another size, and
        for an epoch without its state or beyond the last.
        """
        if not isinstance(attempt, str) or not attempt:
            raise StateError(f"an attempt is named by a string that is not empty, got {attempt!r}")
        if attempt in self._past:
            raise StateError(
                f"attempt {attempt!r} has been replaced by {self._attempt!r} and cannot come back"
            )
        epoch = whole("the number of committed epochs", epoch, 0)
        if epoch > self._num_epochs:
            raise StateError(f"the checkpoint has {epoch} epochs, the run only {self._num_epochs}")
        if state is None and epoch > 0:
            raise StateError(f"to continue after {epoch} epochs the state they left is needed")
        if state is not None and len(state) != self._size:
            raise StateError(
                f"the state is of another data set: it has {len(state)} samples, the run has {self._size}"
            )
        if self._attempt is not None and self._attempt != attempt:
            self._past.add(self._attempt)
        self._attempt, self._epoch = attempt, epoch
        self._state = SampleState.empty(self._size) if state is None else state
        self._open = self._last = None

    def plan(self, attempt: str, epoch: int) -> Plan:
        """The plan of the current epoch, made once and kept until the epoch is committed.

        Raises StateError for another attempt or epoch, and for a policy whose plan does not fit the state.
        """
        return self._opened(attempt, epoch).plan

    def update(self, attempt: str, epoch: int, slots: Array, losses: Array) -> None:
        """Stage losses of the current epoch; the same call again changes nothing, a later loss replaces.

        slots: int64, all in the plan. losses: any NumPy float type, one each; one that is not finite is
        counted, not kept. Raises StateError for another attempt or epoch, DataError, with nothing staged, for
        slots out of range (padding, -1, included) or not in the plan, and for a slot given twice with
        different losses.
        """
        plan, staging = self._opened(attempt, epoch)
        slots, losses = pairs(slots, losses, self._size)
        before = staging[slots]
        unknown = before == _UNPLANNED
        if unknown.any():
            raise DataError(
                f"slots that are not among the {len(plan)} planned in epoch {epoch}: "
                f"{first(slots[unknown].tolist())}"
            )
        losses = np.where(np.isfinite(losses), losses, _NOT_FINITE)
        staging[slots] = losses
        clash = staging[slots] != losses
        if clash.any():
            staging[slots] = before
            raise DataError(
                f"slots given twice with different losses in epoch {epoch}: "
                f"{first(np.unique(slots[clash]).tolist())}"
            )

    def staged(self, attempt: str, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """What the current epoch has staged, slots ascending, inf for a loss that was not finite.

        For a checkpoint within the epoch: passed to :meth:`update` after :meth:`restore`, it is staged again.
        """
        staging = self._opened(attempt, epoch).staging
        slots = np.flatnonzero(staging > _UNPLANNED).astype(np.int64, copy=False)  # NaN is not above
        return slots, staging[slots]

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        """Close the current epoch: fold what was staged into the state, once, and go on to the next.

        Answers {epoch, planned, observed, nonfinite: int, mean_loss: float | None, digest: str}: the samples
        planned, those with a finite loss, those whose loss was not finite, the exact mean of the finite ones,
        and the digest of the state that results. Repeated for the epoch just committed, it answers the same.
        Raises StateError for another attempt or epoch; the epoch stays open if the policy raises.
        """
        self._admit(attempt)
        if self._last is not None and self._last["epoch"] == epoch:
            return dict(self._last)
        plan, staging = self._opened(attempt, epoch)
        slots = np.flatnonzero(np.isfinite(staging)).astype(np.int64, copy=False)
        state = self._policy.update(self._state, plan, slots, staging[slots])
        if not isinstance(state, SampleState) or len(state) != self._size:
            name = type(self._policy).__name__
            raise StateError(
                f"{name}.update must answer a SampleState of {self._size} samples in epoch {epoch}"
            )
        nonfinite = sum(
            np.count_nonzero(staging[start:stop] == _NOT_FINITE) for start, stop in chunks(self._size)
        )
        summary = {
            "epoch": self._epoch,
            "planned": len(plan),
            "observed": len(slots),
            "nonfinite": int(nonfinite),
            "mean_loss": mean(*chunk_sums(staging)),
            "digest": state.digest(),
        }
        self._state, self._epoch, self._last = state, self._epoch + 1, summary
        self._open = None
        return dict(summary)

    def state(self, attempt: str) -> tuple[int, SampleState]:
        """The number of committed epochs and the state they left: what goes into a checkpoint."""
        self._admit(attempt)
        return self._epoch, self._state

    def _admit(self, attempt: str) -> None:
        if self._attempt is None:
            raise StateError("the selection state has not been restored: call restore before anything else")
        if attempt != self._attempt:
            raise StateError(f"attempt {attempt!r} is stale: the state belongs to attempt {self._attempt!r}")

    def _opened(self, attempt: str, epoch: int) -> _Open:
        self._admit(attempt)
        if self._epoch == self._num_epochs:
            raise StateError(f"epoch {epoch} cannot be trained: all {self._num_epochs} epochs are committed")
        if epoch != self._epoch:
            raise StateError(f"epoch {epoch} is not the current one: epoch {self._epoch} is being trained")
        if self._open is None:
            plan = self._policy.plan(
                self._state, epoch=self._epoch, num_epochs=self._num_epochs, seed=self._seed
            )
            if not isinstance(plan, Plan) or (len(plan) and plan.slots[-1] >= self._size):
                name = type(self._policy).__name__
                raise StateError(
                    f"{name}.plan must answer a Plan of slots below {self._size} in epoch {epoch}"
                )
            staging = np.full(self._size, _UNPLANNED)
            staging[plan.slots] = _WAITING
            self._open = _Open(plan, staging)
        return self._open
