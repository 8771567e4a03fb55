"""An epoch's plan, the interface of policies, and the exact tools that policies are made of.

A plan is a pure function of (policy, state, epoch, seed). No random generator is kept, nothing is drawn
during iteration, and the global random state is neither read nor changed. Two rules make plans independent of
how the samples are sharded:

- Random draws belong to a slot (:func:`uniform`): slot i always has the same draw.
- Sums that decide are taken exactly over fixed chunks of 65,536 slots and joined exactly (:func:`chunk_sums`,
  :func:`mean`), so shards that begin at a multiple of 65,536 cannot change them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raysel.core.numbers import whole
from raysel.core.sums import exact_sum, partial_sums
from raysel.dynamic.state import CHUNK, Array, SampleState, frozen
from raysel.errors import ConfigError, DataError, shown

# What a stream of draws is for; streams of different purposes are independent.
PRUNE, ORDER, SUBSET, WALK, TIES = 1, 2, 3, 4, 5
_GROUPED = 4_096  # positions that are sorted by length at once


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of one epoch and their weights.

    Parameters
    ----------
    slots : array of int64, shape (m,)
        Positions of the samples in the state: ascending, each once. The array becomes read-only.
    weights : array of float32, shape (m,)
        Weight of each sample: finite, not negative. The array becomes read-only.

    Raises
    ------
    DataError
        If an array has another type, length or content.

    Examples
    --------
    >>> plan = raysel.dynamic.Plan(np.array([0, 2]), np.ones(2, np.float32))
    >>> len(plan)
    2
    """

    slots: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, dtype in (("slots", np.int64), ("weights", np.float32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                of = f" of {array.dtype}" if isinstance(array, np.ndarray) else ""
                raise DataError(
                    f"A plan's {name} must be a one-dimensional {np.dtype(dtype)} array, not {shown(array)}{of}."
                )
            object.__setattr__(self, name, frozen(array))
        if len(self.slots) != len(self.weights):
            raise DataError(
                f"A plan must have one weight per slot, but it has {len(self.slots)} slots and {len(self.weights)} weights. A slot is the "
                "position of a sample."
            )
        if len(self.slots) and self.slots[0] < 0:
            raise DataError(
                "A plan's slots must be at least 0, because they are positions of samples, counted from 0; it has the slot "
                f"{self.slots[0]}."
            )
        for start, stop in chunks(len(self.slots)):  # by chunks: no temporary of the plan's own size
            slots, weights = self.slots[max(start - 1, 0) : stop], self.weights[start:stop]
            if not (slots[1:] > slots[:-1]).all():
                raise DataError(
                    "A plan's slots must be in ascending order and without repeats; a slot is the position of a "
                    "sample."
                )
            if not (weights >= 0).all() or not np.isfinite(weights).all():
                raise DataError("A plan's weights must be finite and not negative.")

    def __len__(self) -> int:
        return len(self.slots)


@runtime_checkable
class Policy(Protocol):
    """Interface of a policy: which samples an epoch trains on.

    A policy is a frozen dataclass of plain numbers: it is pickled to the cluster and written to the run's
    manifest. Its three methods are pure. ``plan`` is called again after a restart, on another machine, and
    must return the same bits. Draw with :func:`uniform` and add with :func:`mean`. A sample that has not been
    seen has the loss NaN, so compare losses only where ``np.isfinite`` holds. These methods are enough for a
    state in one shard; :class:`ShardedPolicy` adds what several shards need.

    More methods are optional: ``check(num_epochs)`` raises ConfigError if the parameters do not fit the
    number of epochs, ``at_budget(budget)`` (a class method) returns the policy that spends a
    :class:`raysel.dynamic.budget.Budget`, and ``for_ids(ids)`` returns the policy with its arrays in the
    order of a run's slots.

    Examples
    --------
    >>> from dataclasses import asdict, dataclass
    >>> from raysel.dynamic.plan import unweighted
    >>> from raysel.dynamic.state import observe
    >>> @dataclass(frozen=True)
    ... class HideEasy:   # leave out the samples with the lowest losses, as KAKURENBO does
    ...     share: float = 0.3
    ...
    ...     def plan(self, state, *, epoch, num_epochs, seed):
    ...         seen = np.flatnonzero(np.isfinite(state.loss))
    ...         easy = seen[np.argsort(state.loss[seen], kind="stable")[: int(self.share * len(state))]]
    ...         keep = np.ones(len(state), bool)
    ...         keep[easy] = False
    ...         return unweighted(keep)
    ...
    ...     def update(self, state, plan, slots, losses):
    ...         return observe(state, plan.slots, slots, losses)
    ...
    ...     def parameters(self):
    ...         return {"policy": "HideEasy", **asdict(self)}
    >>> isinstance(HideEasy(), raysel.dynamic.Policy)
    True
    """

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """Return the plan of an epoch.

        Parameters
        ----------
        state : SampleState
            The state after all earlier epochs; of a shard, the shard's own.
        epoch : int
            Epoch, 0-based.
        num_epochs : int
            Number of epochs of the run.
        seed : int
            Seed of the run.

        Returns
        -------
        Plan
            The slots to train on and their weights.
        """
        ...

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state after an epoch; the arguments are not changed.

        Parameters
        ----------
        state : SampleState
            The state before the epoch.
        plan : Plan
            The plan of the epoch.
        slots : array of int64, shape (k,)
            Slots for which a loss was recorded.
        losses : array of float, shape (k,)
            The loss of each.

        Returns
        -------
        SampleState
            The new state. The arguments may be those of one shard, with slots counted from 0, so the state of
            a sample may depend only on that sample.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """Return the class's name as ``"policy"``, and every parameter.

        Returns
        -------
        dict
            Values that ``json.dumps`` can write.
        """
        ...


@runtime_checkable
class ShardedPolicy(Policy, Protocol):
    """Interface of a policy whose samples may be kept in several shards.

    The rule is written once, as a generator that has only one shard. It yields a partial result for whatever
    depends on all the samples, and receives the partial results of all shards joined
    (:func:`raysel.dynamic.shards.join`). The lowest keys and quantiles over all shards are computed by
    :func:`raysel.dynamic.shards.lowest` and :func:`raysel.dynamic.shards.kth`. ``plan`` is one line that
    calls :func:`raysel.dynamic.shards.plan_whole`. For the example of :class:`Policy`::

        def plan_shard(self, state, start, n, *, epoch, num_epochs, seed):
            seen = yield int(np.isfinite(state.loss).sum())
            count = min(int(self.share * n), seen)
            easy = yield from lowest(ordered(state.loss), count, start)   # NaN is last, so it is not reached
            return unweighted(~easy, start)

        def plan(self, state, *, epoch, num_epochs, seed):
            return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    A policy that holds an array with one entry per sample also has ``shard(start, stop, n)``, which returns
    the same policy with its arrays cut to these slots, and raises ConfigError if they are not of length n.
    """

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Yield partial results, and return this shard's part of the plan.

        All shards yield equally often.

        Parameters
        ----------
        state : SampleState
            The state of this shard.
        start : int
            Slot of the shard's first sample, a multiple of 65,536.
        n : int
            Number of samples of all shards.
        epoch : int
            Epoch, 0-based.
        num_epochs : int
            Number of epochs of the run.
        seed : int
            Seed of the run.

        Yields
        ------
        object
            A partial result: tuples, lists, whole numbers and arrays of them.

        Returns
        -------
        Plan
            The planned slots in start..start+len(state), counted from 0 of all n, and their weights.
        """
        ...


def chunks(n: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive (start, stop) of at most 65,536 that cover 0..n."""
    for begin in range(0, n, CHUNK):
        yield begin, min(begin + CHUNK, n)


# ---- parameters --------------------------------------------------------------------------------------------


def fraction(name: str, value: object, *, zero: bool = True, one: bool = True) -> float:
    """Return ``value`` as a float; raise ConfigError unless it lies in [0, 1] (an end may be excluded)."""
    span = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0 or (number == 0.0 and not zero) or (number == 1.0 and not one):
        raise ConfigError(f"{name} must be a number in {span}, got {value!r}.")
    return number


def part(share: float, n: int) -> int:
    """Return floor(share * n) of the number as written: 0.29 of 100 is 29, but 28 in floats."""
    return math.floor(Fraction(repr(float(share))) * n)


def annealing(epoch: int, num_epochs: int, delta: float) -> bool:
    """Return True from epoch floor(num_epochs * delta) on: all data at weight 1 (InfoBatch, 3.3)."""
    return epoch >= part(delta, num_epochs)


def check_epoch(epoch: int, num_epochs: int) -> tuple[int, int]:
    """Return both as ints; raise ConfigError unless 0 <= epoch < num_epochs."""
    num_epochs, epoch = whole("num_epochs", num_epochs, 1), whole("epoch", epoch, 0)
    if epoch >= num_epochs:
        raise ConfigError(
            f"epoch must be below num_epochs ({num_epochs}; the first epoch is 0), got {epoch}."
        )
    return epoch, num_epochs


# ---- random draws ------------------------------------------------------------------------------------------


def _philox(seed: int, epoch: int, purpose: int, block: int = 0) -> np.random.Philox:
    seed, epoch = whole("seed", seed, 0), whole("epoch", epoch, 0)
    key = np.random.SeedSequence(seed, spawn_key=(purpose, epoch)).generate_state(2, np.uint64)
    return np.random.Philox(key=key, counter=block)


def uniform(seed: int, epoch: int, start: int, stop: int, *, purpose: int = PRUNE) -> npt.NDArray[np.uint32]:
    """Return the draws of the slots start..stop: uint32 (stop - start,), uniform over 0..2**32 - 1.

    Draw i of a (seed, epoch, purpose) is the i-th 32-bit word of its Philox 4x64-10 stream (Salmon et al.,
    2011), reached by setting the counter: it does not depend on start, stop or other draws.
    Use ``uniform(...) < below(p)`` for an event of probability p.
    """
    block = start // 8  # one counter value makes 4 words of 64 bits
    words = _philox(seed, epoch, purpose, block).random_raw(-(-(stop - 8 * block) // 2))
    return words.astype("<u8", copy=False).view("<u4")[start - 8 * block : stop - 8 * block]


def below(probability: float) -> np.uint32:
    """Return the bound that a draw is below with this probability, to the nearest 2**-32."""
    return np.uint32(min(round(probability * 2**32), 2**32 - 1))


def order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a seeded permutation of 0..n-1, int64: the order of the plan's positions in a loader."""
    generator = np.random.Generator(_philox(seed, epoch, ORDER))
    positions = np.arange(whole("The number of samples", n, 0), dtype=np.int64)
    generator.shuffle(positions)
    return positions


# ---- exact sums --------------------------------------------------------------------------------------------


def chunk_sums(values: npt.NDArray[np.float32]) -> tuple[list[float], int]:
    """Return the sums of the finite values, one per chunk of 65,536, and the number of finite values."""
    sums, count = [], 0
    for start, stop in chunks(len(values)):
        chunk = values[start:stop]
        finite = np.isfinite(chunk)
        found = int(np.count_nonzero(finite))
        sums.append(exact_sum(chunk if found == len(chunk) else chunk[finite]))
        count += found
    return sums, count


def class_sums(
    values: npt.NDArray[np.float32], classes: Array, number: int
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.int64]]:
    """Return :func:`chunk_sums` per class: sums float64 (number,), a few per chunk, and counts int64.

    ``classes`` has a code 0..number-1 per value. Every sum is exact (:func:`raysel.core.sums.partial_sums`),
    so that adding all sums of a class with ``math.fsum`` returns its correctly rounded sum.
    """
    sums: list[npt.NDArray[np.float64]] = []
    count = np.zeros(number, np.int64)
    for start, stop in chunks(len(values)):
        finite = np.isfinite(values[start:stop])
        of = classes[start:stop][finite]
        count += np.bincount(of, minlength=number)
        sums += partial_sums(of, values[start:stop][finite], number)
    return sums, count


def loss_sum(state: SampleState) -> tuple[list[float], int]:
    """Return :func:`chunk_sums` of the losses seen.

    For shards that begin at multiples of 65,536, join the lists and add the counts.
    """
    return chunk_sums(state.loss)


def mean(sums: list[float], count: int) -> float | None:
    """Return the mean of what :func:`chunk_sums` has summed, in any order; None if there was nothing."""
    return math.fsum(sums) / count if count else None


# ---- plans -------------------------------------------------------------------------------------------------


def full(n: int, start: int = 0) -> Plan:
    """Return the plan of every sample at weight 1, the slots start..start+n: 12 bytes per sample."""
    return Plan(np.arange(start, start + n, dtype=np.int64), np.ones(n, np.float32))


def unweighted(keep: npt.NDArray[np.bool_], start: int = 0) -> Plan:
    """Return the samples marked in ``keep`` (bool, one per slot from ``start`` on) at weight 1."""
    slots = np.flatnonzero(keep).astype(np.int64, copy=False)
    slots += start
    return Plan(slots, np.ones(len(slots), np.float32))


def steps(n: int, batch_size: int, world: int) -> int:
    """Return the optimizer steps of an epoch of n planned samples, which are the same on every rank."""
    return len(step_sizes(n, whole("batch_size", batch_size, 1) * whole("world", world, 1)))


def step_sizes(n: int, rows: int) -> npt.NDArray[np.int64]:
    """Return the rows of each step of n samples, over all ranks and accumulated batches; at most ``rows``.

    All steps but the last are full. If a single row remained for the last step, it takes another one from the
    step before it, because batch statistics cannot be computed from one row. The sizes of the steps that
    remain depend only on the rows that remain, so that an epoch can be resumed after any step.
    """
    sizes = np.full(-(-whole("n", n, 0) // rows), rows, np.int64)
    if n % rows:
        sizes[-1] = n % rows
    if n % rows == 1 and len(sizes) > 1 and rows > 2:
        sizes[-2:] = rows - 1, 2
    return sizes


def length_grouped(visit: npt.NDArray[np.int64], lengths: Array) -> npt.NDArray[np.int64]:
    """Return the positions ``visit`` in an order in which neighbours have similar lengths.

    Parts of ``visit`` (a quarter of it, at most 4,096 positions) are sorted by length, alternately from the
    longest and from the shortest, so that batches across two parts have similar lengths too. The order
    depends on no batch size and no number of ranks.

    Parameters
    ----------
    visit : array of int64
        Positions in the plan, in a random order.
    lengths : array
        Length of the sample at each position of the plan.
    """
    part = max(1, min(_GROUPED, len(visit) // 4))
    grouped = visit.copy()
    for number, start in enumerate(range(0, len(visit), part)):
        some = visit[start : start + part]
        longest_first = np.argsort(-lengths[some], kind="stable")
        grouped[start : start + part] = some[longest_first if number % 2 == 0 else longest_first[::-1]]
    return grouped


def batches(
    n: int,
    batch_size: int,
    rank: int,
    world: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    skip: int = 0,
    accumulate: int = 1,
    lengths: Array | None = None,
) -> npt.NDArray[np.int64]:
    """Return one rank's share of a plan of length n: positions per batch, -1 for padding.

    A step is ``accumulate`` batches on each of ``world`` ranks: L = world * accumulate batches. Step s takes
    the next rows of the order, as many as :func:`step_sizes` says, and rank r takes its r-th part of them, so
    the rows of a step depend only on B * L. A step that is not full is spread evenly (its batches differ by
    at most one row), so that every step has all of its batches: a batch has only padding if fewer than L rows
    remain.

    Parameters
    ----------
    n : int
        Number of planned samples.
    batch_size : int
        Rows per batch.
    rank, world : int
        This rank, and the number of ranks.
    seed, epoch : int
        What the order depends on.
    shuffle : bool
        Whether rows are visited in a random order.
    skip : int
        Samples of the order that were already trained on, in batches of any size.
    accumulate : int
        Batches per rank and optimizer step.
    lengths : array, shape (n,), optional
        Length of each planned sample, for an order in which neighbours have similar lengths.

    Returns
    -------
    array of int64, shape (steps * accumulate, batch_size)
        Positions in the plan.

    Raises
    ------
    ConfigError
        For sizes that are not positive, a rank outside 0..world-1 and a skip outside 0..n.
    """
    if whole("skip", skip, 0) > whole("n", n, 0):
        raise ConfigError(f"skip must not be above the number of planned samples ({n}), got {skip}.")
    lanes = whole("The number of ranks", world, 1) * whole("accumulate", accumulate, 1)
    sizes, rank = step_sizes(n - skip, whole("batch_size", batch_size, 1) * lanes), whole("rank", rank, 0)
    if rank >= world:
        raise ConfigError(f"rank must be below the number of ranks ({world}), got {rank}.")
    visit = order(n, seed, epoch) if shuffle else np.arange(n, dtype=np.int64)
    if lengths is not None:
        visit = length_grouped(visit, lengths)
    visit = visit[skip:]
    mine = np.full((len(sizes), accumulate, batch_size), -1, np.int64)
    full_steps = int(np.count_nonzero(sizes == batch_size * lanes))
    done = full_steps * batch_size * lanes
    rows = visit[:done].reshape(full_steps, lanes, batch_size)
    mine[:full_steps] = rows[:, rank * accumulate : (rank + 1) * accumulate]
    for step, size in enumerate(sizes[full_steps:].tolist(), start=full_steps):
        rest, done = visit[done : done + size], done + size
        for part in range(accumulate):
            lane = rank * accumulate + part
            share = rest[lane * size // lanes : (lane + 1) * size // lanes]
            mine[step, part, : len(share)] = share
    return mine.reshape(len(sizes) * accumulate, batch_size)
