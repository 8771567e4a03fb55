"""The keeper of a run's state: it stages an epoch's losses, commits them once, and refuses stale callers.

The actors on the cluster do just this; here it is without the cluster. The calls of an epoch::

    restore(attempt) -> plan(attempt, e) -> update(attempt, e, slots, losses) ... -> commit(attempt, e)

Every call carries (attempt, epoch). An update only assigns into the epoch's staging area, so repeating one
changes nothing. A commit folds the staging area in once and returns the same when it is repeated. A restore
discards what was staged and excludes every earlier attempt. Whatever failed and was repeated in between, an
epoch is applied once.

A keeper may hold a shard of the samples. Plans are then made in rounds (``plan_round``), in which the shards
exchange whatever depends on all the samples, and a commit has two phases, ``prepare`` on all and then
``fold`` on all. :class:`Keepers` makes the rounds and has the interface of one keeper. Every round and phase
may be repeated, by any number of workers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from raysel.core.numbers import whole
from raysel.dynamic.plan import Plan, Policy, ShardedPolicy, chunk_sums, chunks, mean
from raysel.dynamic.shards import join
from raysel.dynamic.state import Array, SampleState, digest_of, pairs
from raysel.errors import ConfigError, DataError, StateError, first

# Values of a slot in the staging area without a loss.
_WAITING, _NOT_FINITE, _UNPLANNED = np.float32(np.nan), np.float32(np.inf), np.float32(-np.inf)


class _Open(NamedTuple):
    plan: Plan  # its slots are the run's, not counted from the shard's first
    staging: npt.NDArray[np.float32]  # one per slot of the shard


class Outcome(NamedTuple):
    """The result of a shard's epoch; the outcomes of all shards, joined, are the run's.

    Attributes
    ----------
    planned, observed, nonfinite : int
        Numbers of samples.
    sums : list of float
        Sums of the finite losses, one per chunk.
    digests : list of bytes
        Digests of the new state's chunks.
    """

    planned: int
    observed: int
    nonfinite: int
    sums: list[float]
    digests: list[bytes]


def summary(epoch: int, size: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the epoch's entry that a commit returns, from the outcomes of all shards in order."""
    planned, observed, nonfinite, sums, digests = join([tuple(outcome) for outcome in outcomes])
    return {
        "epoch": epoch,
        "planned": planned,
        "observed": observed,
        "nonfinite": nonfinite,
        "mean_loss": mean(sums, observed),
        "digest": digest_of(size, digests),
    }


class Kept(Protocol):
    """A state that can be cut to a shard: a SampleState, or the files of a checkpoint."""

    def __len__(self) -> int: ...

    def cut(self, start: int, stop: int) -> SampleState:
        """Return the state of the slots start..stop."""
        ...


class Keeper:
    """The state of one run, or of the shard start..start+size of it, under one policy; one call at a time.

    It holds 8 bytes per sample, and during an epoch 4 for staging and 12 for each planned one. Until
    :meth:`restore` has been called, every call raises StateError. Slots are those of the run, for every
    shard.

    Parameters
    ----------
    policy : Policy
        The policy, cut to the shard.
    size : int
        Number of samples of this shard.
    num_epochs : int
        Number of epochs of the run.
    seed : int
        Seed of the run.
    start : int
        First slot of the shard.
    total : int, optional
        Number of samples of all shards. Default: ``size``.

    Raises
    ------
    ConfigError
        For a size, number of epochs or seed that is out of range, for a shard under a policy without
        ``plan_shard``, and if the policy's ``check(num_epochs)`` raises it.
    """

    def __init__(
        self,
        policy: Policy,
        size: int,
        num_epochs: int,
        seed: int,
        start: int = 0,
        total: int | None = None,
    ) -> None:
        if not isinstance(policy, Policy):
            raise ConfigError(
                f"A policy needs the methods plan, update and parameters; {type(policy).__name__} lacks at least one."
            )
        self._policy = policy
        self._size = whole("The number of samples", size, 1)
        self._num_epochs = whole("num_epochs", num_epochs, 1)
        self._seed = whole("seed", seed, 0)
        self._start = whole("start", start, 0)
        self._total = self._size if total is None else whole("total", total, self._start + self._size)
        if self._total != self._size and not isinstance(policy, ShardedPolicy):
            raise ConfigError(
                f"{type(policy).__name__} has no method plan_shard, so one shard must plan all samples; use shards=1."
            )
        # Here, on the driver, and not in a worker that plans the first epoch.
        if (check := getattr(policy, "check", None)) is not None:
            check(self._num_epochs)
        self._attempt: str | None = None
        self._past: set[str] = set()
        self._epoch = 0  # the epoch being trained = the number of epochs committed
        self._state = SampleState.empty(0)
        self._open: _Open | None = None
        self._planning: tuple[Generator[Any, Any, Plan], list[Any]] | None = None  # and what it has yielded
        self._ready: tuple[SampleState, Outcome] | None = None  # prepared, not folded in
        self._last: tuple[int, Outcome] | None = None

    def restore(self, attempt: str, epoch: int = 0, state: Kept | None = None) -> None:
        """Start or resume with ``epoch`` committed epochs and the state after them (None for the start).

        From here on only ``attempt`` is accepted, and what was staged is discarded. An attempt that another
        has replaced cannot return.

        Raises
        ------
        StateError
            For such an attempt, for a state of another size, and for an epoch without its state or after the
            last.
        """
        if not isinstance(attempt, str) or not attempt:
            raise StateError(f"The name of an attempt must be a non-empty string, got {attempt!r}.")
        if attempt in self._past:
            raise StateError(
                f"Training attempt {attempt!r} was replaced by {self._attempt!r}, so it can no longer restore "
                "the selection state."
            )
        epoch = whole("The number of committed epochs", epoch, 0)
        if epoch > self._num_epochs:
            raise StateError(
                f"The checkpoint was saved after {epoch} epochs, but the run has only {self._num_epochs}; "
                "give a larger num_epochs."
            )
        if state is None and epoch > 0:
            raise StateError(
                f"Resuming after {epoch} epochs needs the selection state after these epochs; pass it as state."
            )
        if state is not None and len(state) != self._size:
            raise StateError(
                f"The selection state belongs to another data set: it has {len(state)} samples, the run has {self._size}; "
                "resume with the data set that it was saved with."
            )
        if self._attempt is not None and self._attempt != attempt:
            self._past.add(self._attempt)
        self._attempt, self._epoch = attempt, epoch
        self._state = SampleState.empty(self._size) if state is None else state.cut(0, self._size)
        self._open = self._planning = self._ready = self._last = None

    def plan(self, attempt: str, epoch: int) -> Plan:
        """Return the plan of the current epoch, or the part of a shard; it is made once per epoch.

        Raises
        ------
        StateError
            For another attempt or epoch, for a shard whose rounds are not over, and for a policy whose plan
            does not fit the state.
        """
        return self._opened(attempt, epoch).plan

    def plan_round(self, attempt: str, epoch: int, number: int, joined: Any = None) -> tuple[bool, Any]:
        """Run round ``number`` of the plan.

        Return (False, this shard's partial), or (True, None) when its part is made. ``joined`` has the
        partials of all shards of the round before. A round that is repeated returns the same.

        Raises
        ------
        StateError
            As :meth:`plan`, and for a round that is not the next.
        """
        self._current(attempt, epoch)
        if self._planning is None:
            self._planning = self._shards_plan(epoch), []
        generator, yielded = self._planning
        if number < len(yielded):
            return False, yielded[number]
        if self._open is not None and number == len(yielded):
            return True, None
        if number > len(yielded) or self._open is not None:
            raise StateError(
                f"Round {number} of the plan of epoch {epoch} was requested, but round {len(yielded)} is "
                "next; the shards compute a plan together, one round after another."
            )
        try:
            yielded.append(generator.send(joined if number else None))
        except StopIteration as stop:
            self._take(stop.value, epoch)
            return True, None
        except BaseException:
            self._planning = None  # a generator that raised is over: the next caller begins again
            raise
        return False, yielded[number]

    def update(self, attempt: str, epoch: int, slots: Array, losses: Array) -> None:
        """Stage losses of the current epoch.

        The same call again changes nothing, and a later loss replaces an earlier one.

        Parameters
        ----------
        attempt : str
            The attempt that :meth:`restore` has accepted.
        epoch : int
            The current epoch.
        slots : array of int64, shape (k,)
            Planned slots.
        losses : array of float, shape (k,)
            Their losses. One that is not finite is counted, not kept.

        Raises
        ------
        StateError
            For another attempt or epoch.
        DataError
            With nothing staged, for slots that are out of range (including padding, -1) or not in the plan,
            and for a slot given twice with different losses.
        """
        _, staging = self._opened(attempt, epoch)
        slots, losses = pairs(slots, losses, self._size, self._start)
        before = staging[slots]
        unknown = before == _UNPLANNED
        if unknown.any():
            raise DataError(
                f"Losses were given for slots (positions of samples) that are not planned in epoch {epoch}: "
                f"{first((slots[unknown] + self._start).tolist())}."
            )
        self._ready = None
        losses = np.where(np.isfinite(losses), losses, _NOT_FINITE)
        staging[slots] = losses
        clash = staging[slots] != losses
        if clash.any():
            staging[slots] = before
            raise DataError(
                f"Two different losses were given for the same slots (positions of samples) in epoch {epoch}: "
                f"{first((np.unique(slots[clash]) + self._start).tolist())}."
            )

    def drain(self) -> None:
        """Return when every update has been applied; clients of an actor must wait for that."""

    def staged(
        self, attempt: str, epoch: int, start: int = 0, stop: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the slots in start..stop with a staged loss, ascending, and the losses.

        A loss that was not finite is inf. For a checkpoint within the epoch: passed to :meth:`update` after
        :meth:`restore`, they are staged again.
        """
        begin, end = self._within(start, stop)
        staging = self._opened(attempt, epoch).staging[begin:end]
        slots = np.flatnonzero(staging > _UNPLANNED).astype(np.int64, copy=False)  # NaN is not above
        return slots + (begin + self._start), staging[slots]

    def prepare(self, attempt: str, epoch: int) -> Outcome:
        """Run the first phase of a commit: compute the resulting state, and keep it next to the old one.

        A later update invalidates it. Repeated for the epoch just committed, it returns the same.

        Raises
        ------
        StateError
            For another attempt or epoch. Nothing has changed if the policy raises.
        """
        self._admit(attempt)
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        plan, staging = self._opened(attempt, epoch)
        if self._ready is None:
            slots = np.flatnonzero(np.isfinite(staging)).astype(np.int64, copy=False)
            own = Plan(plan.slots - self._start, plan.weights) if self._start else plan
            state = self._policy.update(self._state, own, slots, staging[slots])
            if not isinstance(state, SampleState) or len(state) != self._size:
                name = type(self._policy).__name__
                raise StateError(
                    f"{name}.update must return a SampleState of {self._size} samples; it did not in epoch {epoch}."
                )
            nonfinite = sum(
                int(np.count_nonzero(staging[start:stop] == _NOT_FINITE))
                for start, stop in chunks(self._size)
            )
            sums, observed = chunk_sums(staging)
            self._ready = state, Outcome(len(plan), observed, nonfinite, sums, state.chunk_digests())
        return self._ready[1]

    def fold(self, attempt: str, epoch: int) -> None:
        """Run the second phase of a commit: the prepared state becomes the state, and the next epoch begins.

        Raises
        ------
        StateError
            For another attempt or epoch, and if nothing is prepared.
        """
        self._admit(attempt)
        if self._last is not None and self._last[0] == epoch:
            return
        self._opened(attempt, epoch)
        if self._ready is None:
            raise StateError(
                f"The losses of epoch {epoch} cannot be committed to the selection state yet; call prepare on "
                "all shards first."
            )
        self._state, outcome = self._ready
        self._last = epoch, outcome
        self._epoch += 1
        self._open = self._planning = self._ready = None

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        """Close the current epoch: fold what was staged into the state, once, and begin the next epoch.

        Returns
        -------
        dict
            ``epoch``; ``planned``, ``observed`` and ``nonfinite``: numbers of samples that were planned, had
            a finite loss, and had one that was not finite; ``mean_loss``: the exact mean of the finite
            losses, or None; ``digest`` of the resulting state. Repeated for the epoch just committed, it is
            the same.

        Raises
        ------
        StateError
            For another attempt or epoch. The epoch stays open if the policy raises.
        """
        outcome = self.prepare(attempt, epoch)
        self.fold(attempt, epoch)
        return summary(epoch, self._size, [outcome])

    def state(self, attempt: str, start: int = 0, stop: int | None = None) -> tuple[int, SampleState]:
        """Return the number of committed epochs and the state after them in the slots start..stop."""
        self._admit(attempt)
        return self._epoch, self._state.cut(*self._within(start, stop))

    def progress(self) -> tuple[int, Outcome | None]:
        """Return the number of committed epochs and the outcome of the last one, for any attempt."""
        return self._epoch, None if self._last is None else self._last[1]

    def _within(self, start: int, stop: int | None) -> tuple[int, int]:
        """Return this shard's part of the run's slots start..stop, counted from its own first slot."""
        end = self._size if stop is None else min(stop - self._start, self._size)
        return min(max(start - self._start, 0), self._size), max(end, 0)

    def _admit(self, attempt: str) -> None:
        if self._attempt is None:
            raise StateError("The selection state has not been restored; call restore first.")
        if attempt != self._attempt:
            raise StateError(
                "A newer session of the same DynamicSelection was started, so this one can no longer use the selection state "
                f"(training attempt {attempt!r} was replaced by {self._attempt!r}). Use only the newest session."
            )

    def _current(self, attempt: str, epoch: int) -> None:
        self._admit(attempt)
        if self._epoch == self._num_epochs:
            raise StateError(
                f"Epoch {epoch} cannot be trained, because all {self._num_epochs} epochs of the run are finished."
            )
        if epoch != self._epoch:
            raise StateError(f"Epoch {epoch} is not the current one: epoch {self._epoch} is being trained.")

    def _opened(self, attempt: str, epoch: int) -> _Open:
        self._current(attempt, epoch)
        if self._open is None:
            if self._total != self._size:
                raise StateError(
                    f"Epoch {epoch} has no plan yet, because the shards have not finished computing it "
                    "together."
                )
            number, joined = 0, None
            while not (answer := self.plan_round(attempt, epoch, number, joined))[0]:
                number, joined = number + 1, join([answer[1]])
            assert self._open is not None
        return self._open

    def _shards_plan(self, epoch: int) -> Generator[Any, Any, Plan]:
        policy, state = self._policy, self._state
        run = {"epoch": epoch, "num_epochs": self._num_epochs, "seed": self._seed}
        if self._total == self._size:
            yield from ()
            return policy.plan(state, **run)
        assert isinstance(policy, ShardedPolicy)
        return (yield from policy.plan_shard(state, self._start, self._total, **run))

    def _take(self, plan: Plan, epoch: int) -> None:
        start, stop = self._start, self._start + self._size
        if not isinstance(plan, Plan) or (len(plan) and not start <= plan.slots[0] <= plan.slots[-1] < stop):
            name = type(self._policy).__name__
            where = f"below {stop}" if start == 0 else f"in {start}..{stop - 1}"
            raise StateError(
                f"{name}.plan must return a Plan whose slots (positions of samples) are {where}; it did not "
                f"in epoch {epoch}."
            )
        staging = np.full(self._size, _UNPLANNED)
        staging[plan.slots - start if start else plan.slots] = _WAITING
        self._open = _Open(plan, staging)


class Keepers:
    """The keepers of all shards of a run, with the interface of one keeper.

    ``spans`` has the slots (start, stop) of each, in order. All calls go through :meth:`_all`, which calls
    every shard.
    """

    def __init__(self, keepers: Sequence[Any], spans: Sequence[tuple[int, int]]) -> None:
        self._keepers = list(keepers)
        self._spans = list(spans)
        self._size = self._spans[-1][1]

    def restore(self, attempt: str, epoch: int = 0, state: Kept | None = None) -> None:
        """See :meth:`Keeper.restore`; the parts of ``state`` are cut out one after another."""
        if state is not None and len(state) != self._size:
            raise StateError(
                f"The selection state belongs to another data set: it has {len(state)} samples, the run has {self._size}; "
                "resume with the data set that it was saved with."
            )
        parts = ((None if state is None else state.cut(*span),) for span in self._spans)
        self._all("restore", attempt, epoch, each=parts)

    def plan(self, attempt: str, epoch: int) -> Plan:
        """See :meth:`Keeper.plan`. Any caller makes the rounds; a shard only repeats what it has computed."""
        number, joined = 0, None
        while True:
            answers = self._all("plan_round", attempt, epoch, number, joined)
            done = [over for over, _ in answers]
            if all(done):
                return self._joined(attempt, epoch)
            if any(done):
                raise StateError(
                    f"Some shards finished their plan of epoch {epoch} before others; plan_shard must yield equally often on all shards."
                )
            number, joined = number + 1, join([partial for _, partial in answers])

    def update(self, attempt: str, epoch: int, slots: Array, losses: Array) -> None:
        """See :meth:`Keeper.update`."""
        for shard, here, values in self._split(slots, losses):
            self._keepers[shard].update(attempt, epoch, here, values)

    def drain(self) -> None:
        """See :meth:`Keeper.drain`."""

    def staged(
        self, attempt: str, epoch: int, start: int = 0, stop: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """See :meth:`Keeper.staged`."""
        found = self._all("staged", attempt, epoch, start, stop)
        return np.concatenate([slots for slots, _ in found]), np.concatenate([losses for _, losses in found])

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        """See :meth:`Keeper.commit`; no shard folds its losses in before all have prepared it."""
        outcomes = self._all("prepare", attempt, epoch)
        self._all("fold", attempt, epoch)
        return summary(epoch, self._size, outcomes)

    def state(self, attempt: str, start: int = 0, stop: int | None = None) -> tuple[int, SampleState]:
        """See :meth:`Keeper.state`."""
        found = self._all("state", attempt, start, stop)
        if len({epoch for epoch, _ in found}) > 1:
            raise StateError(
                "The Ray actors that hold the selection state (its shards) have finished different numbers of epochs. Start the "
                "training again, so that all of them are restored from the same checkpoint."
            )
        parts = [part for _, part in found if len(part)]
        if len(parts) == 1:
            return found[0][0], parts[0]
        empty = SampleState.empty(0)
        loss = np.concatenate([part.loss for part in parts] or [empty.loss])
        return found[0][0], SampleState(loss, np.concatenate([p.selected for p in parts] or [empty.selected]))

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        """Return the number of committed epochs and the summary of the last one, for any attempt."""
        found = self._all("progress")
        epoch = min(epochs for epochs, _ in found)
        outcomes = [outcome for epochs, outcome in found if epochs == epoch and outcome is not None]
        return epoch, summary(epoch - 1, self._size, outcomes) if len(outcomes) == len(found) else None

    def _all(self, method: str, *args: Any, each: Iterable[tuple[Any, ...]] | None = None) -> list[Any]:
        """Return what every shard returns, in order; ``each`` has further arguments, one tuple per shard."""
        more = [()] * len(self._keepers) if each is None else each
        return [getattr(k, method)(*args, *its) for k, its in zip(self._keepers, more, strict=True)]

    def _joined(self, attempt: str, epoch: int) -> Plan:
        return join_plans(self._all("plan", attempt, epoch))

    def _split(self, slots: Array, losses: Array) -> Iterable[tuple[int, Array, Array]]:
        """Yield the recorded losses of each shard that has some.

        Those outside all shards go to one of them, which raises.
        """
        slots, losses = np.asarray(slots), np.asarray(losses)
        if len(self._keepers) == 1 or slots.ndim != 1 or slots.shape != losses.shape:
            yield 0, slots, losses
            return
        by_slot = np.argsort(slots, kind="stable")
        slots, losses = slots[by_slot], losses[by_slot]
        cuts = [0, *np.searchsorted(slots, [start for start, _ in self._spans[1:]]).tolist(), len(slots)]
        for shard, (begin, end) in enumerate(pairwise(cuts)):
            if end > begin:
                yield shard, slots[begin:end], losses[begin:end]


def join_plans(parts: Sequence[Plan]) -> Plan:
    """Return the plans of shards in order, concatenated; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return Plan(np.concatenate([p.slots for p in parts]), np.concatenate([p.weights for p in parts]))
