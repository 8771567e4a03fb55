"""An epoch's plan, and the few exact tools every policy is made of.

A plan is a pure function of (policy, state, epoch, seed): no generator is kept, nothing is drawn while
iterating, and the global random state is neither read nor changed. Two rules make plans independent of
how the samples are sharded:

- random draws belong to a slot (:func:`uniform`): whoever asks for slot i gets the same number;
- sums that decide are taken over fixed chunks of 65,536 slots, each exactly, and joined exactly
  (:func:`chunk_sums`, :func:`mean`), so shards that begin at a multiple of 65,536 cannot move them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raysel.core.sums import exact_sum, partial_sums
from raysel.dynamic.state import CHUNK, Array, SampleState, frozen, whole
from raysel.errors import ConfigError, DataError

# What a stream of draws is for; streams of different purposes are independent.
PRUNE, ORDER, SUBSET, WALK, TIES = 1, 2, 3, 4, 5


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of one epoch: slots int64, ascending, each once; weights float32, finite, not negative.

    The arrays cannot be written to. Raises DataError when they are anything else.
    """

    slots: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, dtype in (("slots", np.int64), ("weights", np.float32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array)
                raise DataError(f"A plan's {name} must be a {np.dtype(dtype)} vector, got {found}.")
            object.__setattr__(self, name, frozen(array))
        if len(self.slots) != len(self.weights):
            raise DataError(
                f"A plan must have one weight per slot; it has {len(self.slots)} slots but {len(self.weights)} weights."
            )
        if len(self.slots) and self.slots[0] < 0:
            raise DataError(f"A plan's slots must be at least 0, got {self.slots[0]}.")
        for start, stop in chunks(len(self.slots)):  # by chunks: no temporary of the plan's own size
            slots, weights = self.slots[max(start - 1, 0) : stop], self.weights[start:stop]
            if not (slots[1:] > slots[:-1]).all():
                raise DataError("A plan's slots must be in ascending order, each sample once.")
            if not (weights >= 0).all() or not np.isfinite(weights).all():
                raise DataError("A plan's weights must be finite and not negative.")

    def __len__(self) -> int:
        return len(self.slots)


@runtime_checkable
class Policy(Protocol):
    """A rule that says which samples an epoch trains on. A new policy is one small class with three methods.

    Make it a frozen dataclass of plain numbers: it is pickled to the cluster and written to the run's
    manifest. All three methods are pure; in particular ``plan`` is asked again after a restart, on
    another machine, and must answer the same to the last bit. Draw with :func:`uniform`, add with
    :func:`mean`, compare ``state.loss`` after a look at ``np.isfinite`` (NaN = not seen yet)::

        @dataclass(frozen=True)
        class HideEasy:                       # KAKURENBO-style: leave out the easiest share of the samples
            share: float = 0.3

            def plan(self, state, *, epoch, num_epochs, seed):
                seen = np.flatnonzero(np.isfinite(state.loss))
                easy = seen[np.argsort(state.loss[seen], kind="stable")[: int(self.share * len(state))]]
                keep = np.ones(len(state), bool)
                keep[easy] = False
                return unweighted(keep)

            def update(self, state, plan, slots, losses):
                return observe(state, plan.slots, slots, losses)

            def parameters(self):
                return {"policy": "HideEasy", "share": self.share}

    That is enough for a state in one place. :class:`ShardedPolicy` says what several shards take.
    """

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """The plan of ``epoch`` (0-based) out of ``num_epochs``."""
        ...

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """The state after the epoch, from all its observations at once; the arguments stay as they were.

        Of a shard, the state, the plan and the slots are the shard's own, counted from 0: what happens to a
        sample may hang on that sample alone.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """What ``json.dumps`` can write: ``"policy"``, the class's name, and every parameter."""
        ...


@runtime_checkable
class ShardedPolicy(Policy, Protocol):
    """A policy whose samples may be kept in several shards: its rule is written once, as a generator.

    ``plan_shard`` knows a shard alone. What hangs on all the samples it yields, a partial, and is sent the
    partials of all shards joined (``raysel.dynamic.shards.join``); the lowest keys and quantiles are found by
    ``lowest`` and ``kth`` from there. ``plan`` is one line over it. Of the policy above::

        def plan_shard(self, state, start, n, *, epoch, num_epochs, seed):
            seen = yield int(np.isfinite(state.loss).sum())
            count = min(int(self.share * n), seen)
            easy = yield from lowest(ordered(state.loss), count, start)   # NaN comes last, so is not reached
            return unweighted(~easy, start)

        def plan(self, state, *, epoch, num_epochs, seed):
            return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    A policy that holds an array of one entry a sample also has ``shard(start, stop, n)``: the same policy with
    its arrays cut to these slots, ConfigError where they are not of length n.
    """

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """The part of the plan that lies in the slots start..start+len(state) of n; its slots count from 0 of n.

        ``start`` is a multiple of 65,536. All shards yield equally often.
        """
        ...


def chunks(n: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) of at most 65,536 that cover 0..n."""
    for begin in range(0, n, CHUNK):
        yield begin, min(begin + CHUNK, n)


# ---- parameters --------------------------------------------------------------------------------------------


def fraction(name: str, value: object, *, zero: bool = True, one: bool = True) -> float:
    """``value`` as a float; raises ConfigError unless it is a number in [0, 1], an end excluded on request."""
    span = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0 or (number == 0.0 and not zero) or (number == 1.0 and not one):
        raise ConfigError(f"{name} must be a number in {span}, got {value!r}.")
    return number


def part(share: float, n: int) -> int:
    """floor(share * n) of the number as it is written: 0.29 of 100 is 29, which in floats would be 28."""
    return math.floor(Fraction(repr(float(share))) * n)


def annealing(epoch: int, num_epochs: int, delta: float) -> bool:
    """True from epoch floor(num_epochs * delta) on: all data, all weights 1 (InfoBatch, section 3.3)."""
    return epoch >= part(delta, num_epochs)


def check_epoch(epoch: int, num_epochs: int) -> tuple[int, int]:
    """Both as ints; raises ConfigError unless 0 <= epoch < num_epochs."""
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
    """The draws of the slots start..stop: uint32[stop - start], uniform over 0..2**32 - 1.

    Draw i of a (seed, epoch, purpose) is the i-th 32-bit word of its Philox 4x64-10 stream (Salmon et al.,
    2011), reached by setting the counter: it does not depend on start, stop or who else has drawn.
    Use ``uniform(...) < below(p)`` for an event of probability p.
    """
    block = start // 8  # one counter value makes 4 words of 64 bits
    words = _philox(seed, epoch, purpose, block).random_raw(-(-(stop - 8 * block) // 2))
    return words.astype("<u8", copy=False).view("<u4")[start - 8 * block : stop - 8 * block]


def below(probability: float) -> np.uint32:
    """The bound that a draw stays below with this probability, to the nearest 2**-32."""
    return np.uint32(min(round(probability * 2**32), 2**32 - 1))


def order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A seeded permutation of 0..n-1, int64: the order in which a loader visits the plan's positions."""
    generator = np.random.Generator(_philox(seed, epoch, ORDER))
    positions = np.arange(whole("The number of samples", n, 0), dtype=np.int64)
    generator.shuffle(positions)
    return positions


# ---- exact sums --------------------------------------------------------------------------------------------


def chunk_sums(values: npt.NDArray[np.float32]) -> tuple[list[float], int]:
    """The sums of the finite values, one per chunk of 65,536, and how many values are finite."""
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
    """:func:`chunk_sums` of each of ``number`` classes: sums float64 (number,), a few a chunk, and counts int64.

    classes: 0..number-1, one per value. Every sum is exact (:func:`raysel.core.sums.partial_sums`), so that adding up all sums
    of a class with ``math.fsum`` gives its correctly rounded sum.
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
    """:func:`chunk_sums` of the losses seen. Of shards at multiples of 65,536: join the lists, add the counts."""
    return chunk_sums(state.loss)


def mean(sums: list[float], count: int) -> float | None:
    """The mean of what :func:`chunk_sums` has summed, None when there was nothing; order does not matter."""
    return math.fsum(sums) / count if count else None


# ---- plans -------------------------------------------------------------------------------------------------


def full(n: int, start: int = 0) -> Plan:
    """Every sample at weight 1, the slots start..start+n: 12 bytes a sample."""
    return Plan(np.arange(start, start + n, dtype=np.int64), np.ones(n, np.float32))


def unweighted(keep: npt.NDArray[np.bool_], start: int = 0) -> Plan:
    """The samples marked in ``keep`` (bool, one per slot from ``start`` on) at weight 1."""
    slots = np.flatnonzero(keep).astype(np.int64, copy=False)
    slots += start
    return Plan(slots, np.ones(len(slots), np.float32))


def steps(n: int, batch_size: int, world: int) -> int:
    """Optimiser steps of an epoch of n planned samples, the same on every rank; batch_size is per rank."""
    return -(-whole("n", n, 0) // (whole("batch_size", batch_size, 1) * whole("world", world, 1)))


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
) -> npt.NDArray[np.int64]:
    """One rank's share of a plan of length n: int64 (steps * accumulate, batch_size) positions, -1 = padding.

    A step is ``accumulate`` batches on each of ``world`` ranks: L = world * accumulate batches. Step s takes
    ``order[skip + s * B * L : skip + (s + 1) * B * L]`` and rank r its r-th B * accumulate rows, so the rows of a step
    depend on B * L alone. The last, short step is spread evenly (its batches differ by at most one row), so that every
    step has all of its batches: one is left with padding only where fewer rows than L remain.
    skip: samples of the order that were trained on already, in batches of whatever size.
    Raises ConfigError for sizes that are not positive, for a rank outside 0..world-1 and a skip outside 0..n.
    """
    if whole("skip", skip, 0) > whole("n", n, 0):
        raise ConfigError(f"skip must not be above the number of planned samples ({n}), got {skip}.")
    lanes = whole("The number of ranks", world, 1) * whole("accumulate", accumulate, 1)
    length, rank = steps(n - skip, batch_size, lanes), whole("rank", rank, 0)
    if rank >= world:
        raise ConfigError(f"rank must be below the number of ranks ({world}), got {rank}.")
    visit = (order(n, seed, epoch) if shuffle else np.arange(n, dtype=np.int64))[skip:]
    mine = np.full((length, accumulate, batch_size), -1, np.int64)
    whole_steps = len(visit) // (batch_size * lanes)
    rows = visit[: whole_steps * batch_size * lanes].reshape(whole_steps, lanes, batch_size)
    mine[:whole_steps] = rows[:, rank * accumulate : (rank + 1) * accumulate]
    if whole_steps < length:
        rest = visit[whole_steps * batch_size * lanes :]
        for part in range(accumulate):
            lane = rank * accumulate + part
            share = rest[lane * len(rest) // lanes : (lane + 1) * len(rest) // lanes]
            mine[-1, part, : len(share)] = share
    return mine.reshape(length * accumulate, batch_size)
