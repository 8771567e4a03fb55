"""Tools by which a policy plans its part of the samples as if it had all of them.

A policy's ``plan_shard`` is a generator that has the slots start..start+m of n. It yields what must be joined
over all shards, is sent the joined value, and returns its part of the plan. :func:`join` is exact, so the
parts of any number of shards, concatenated, are the plan of all samples to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from raysel.core.numbers import whole
from raysel.dynamic.plan import CHUNK, Plan, Policy, ShardedPolicy
from raysel.dynamic.state import Array
from raysel.errors import ConfigError, StateError

T = TypeVar("T")
_BLOCK = 16 * CHUNK  # keys that are counted at once


def spans(n: int, shards: int) -> list[tuple[int, int]]:
    """Return (start, stop) of each shard of n slots.

    Boundaries are multiples of 65,536, and sizes are as equal as that allows. There are fewer than ``shards``
    if there are fewer chunks of 65,536: no shard is empty.
    """
    whole("shards", shards, 1)
    pieces = -(-n // CHUNK)
    shards = max(min(shards, pieces), 1)
    edges = [i * pieces // shards * CHUNK for i in range(shards)] + [n]
    return list(pairwise(edges))


def cut(policy: Policy, start: int, stop: int, n: int) -> Policy:
    """Return the policy for the shard start..stop of n, with arrays of one entry per sample cut to it.

    Raises
    ------
    ConfigError
        For a part of the samples and a policy that can only plan all of them.
    """
    if (start, stop) != (0, n) and not isinstance(policy, ShardedPolicy):
        raise ConfigError(
            f"{type(policy).__name__} has no method plan_shard, so one shard must plan all samples; use shards=1."
        )
    shard = getattr(policy, "shard", None)
    return policy if shard is None else shard(start, stop, n)


def join(partials: Sequence[Any]) -> Any:
    """Return what the shards, in order, have yielded, as one value.

    Tuples are joined element by element, lists are concatenated, whole numbers and arrays of them are added.
    Floats go in lists, one sum per chunk, and are added by ``mean``: added here, they would depend on the
    order.
    """
    head = partials[0]
    if isinstance(head, tuple):
        return tuple(join(column) for column in zip(*partials, strict=True))
    if isinstance(head, list):
        return [item for partial in partials for item in partial]
    if np.asarray(head).dtype.kind not in "iu":
        raise StateError(
            f"plan_shard yielded a {type(head).__name__}, which cannot be added over the shards exactly. Yield integers, arrays of "
            "integers, or tuples of these. Yield floats only in a list, with one sum per 65,536 consecutive samples, as "
            "raysel.dynamic.plan.loss_sum returns them."
        )
    return sum(partials[1:], start=head)


def together(shards: Sequence[Generator[Any, Any, T]]) -> list[T]:
    """Run the generators of all shards, in order, side by side in this process.

    Return what each has returned.
    """
    sent: Any = None
    while True:
        partials, returned = [], []
        for shard in shards:
            try:
                partials.append(shard.send(sent))
            except StopIteration as stop:
                returned.append(stop.value)
        if returned and partials:
            raise StateError(
                "Some shards finished a plan before others; plan_shard must yield equally often on all shards."
            )
        if returned:
            return returned
        sent = join(partials)


def alone(shard: Generator[Any, Any, T]) -> T:
    """Run the generator of a shard that has all the samples."""
    return together([shard])[0]


# ---- ranks over shards -------------------------------------------------------------------------------------


def ordered(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return uint32 keys that sort as the float32 values do, NaN last; -0.0 is just before 0.0."""
    keys = np.empty(len(values), np.uint32)
    for begin in range(0, len(values), CHUNK):
        part = np.ascontiguousarray(values[begin : begin + CHUNK])
        bits = np.where(np.isnan(part), np.float32(np.nan), part).view(np.uint32)  # one NaN, the positive
        flip = np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
        np.bitwise_xor(bits, flip, out=keys[begin : begin + CHUNK])
    return keys


def values_of(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return the float32 values whose :func:`ordered` keys these are."""
    keys = np.asarray(keys, np.uint32)
    flip = np.where(keys >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return (keys ^ flip).view(np.float32)


def kth(
    keys: npt.NDArray[np.uint32],
    rank: Callable[[Array], Array],
    groups: Array | None = None,
    number: int = 1,
) -> Generator[Array, Array, tuple[Array, Array]]:
    """Find the key of a given rank over all shards, in every group; a generator, for use with ``yield from``.

    A radix select, exact: counts of the high digit over all shards, then of the next digit among the keys
    that share it. One group takes two rounds of 512 KiB, several take four of 2 KiB per group.

    Parameters
    ----------
    keys : array of uint32
        Keys of this shard.
    rank : callable
        Takes the sizes of the groups over all shards, int64 (number,), and returns their ranks, 0 for the
        lowest. A rank outside the group finds nothing.
    groups : array of int, optional
        Group 0..number-1 of each key. Default: all in one group.
    number : int
        Number of groups.

    Returns
    -------
    key : array of uint32, shape (number,)
        The key of that rank.
    ties : array of int64, shape (number,)
        How many of the samples with this key, counted from the first, have that rank or a lower one; 0 if
        nothing was found.
    """
    bits = 16 if number == 1 else 8
    found, left, key = np.ones(number, bool), np.zeros(number, np.int64), np.zeros(number, np.uint32)
    for shift in range(32 - bits, -1, -bits):
        counts = np.zeros(number << bits, np.int64)
        for begin in range(0, len(keys), _BLOCK):
            part = keys[begin : begin + _BLOCK]
            of = None if groups is None else groups[begin : begin + _BLOCK].astype(np.int64, copy=False)
            if shift + bits < 32:
                here = part >> np.uint32(shift + bits) == (key[0] if of is None else key[of])
                part, of = part[here], None if of is None else of[here]
            digit = (part >> np.uint32(shift) & np.uint32((1 << bits) - 1)).astype(np.int64)
            counts += np.bincount(digit if of is None else of << bits | digit, minlength=len(counts))
        everywhere = (yield counts).reshape(number, 1 << bits)
        if shift + bits == 32:
            sizes = everywhere.sum(axis=1)
            left = np.broadcast_to(np.asarray(rank(sizes), np.int64), (number,)).copy()
            found = (left >= 0) & (left < sizes)
            left[~found] = 0
        running = everywhere.cumsum(axis=1)
        bin_ = np.minimum((running <= left[:, None]).sum(axis=1), (1 << bits) - 1)
        left -= np.where(bin_ > 0, np.take_along_axis(running, np.maximum(bin_ - 1, 0)[:, None], 1)[:, 0], 0)
        key = key << np.uint32(bits) | bin_.astype(np.uint32)
    return key, np.where(found, left + 1, 0)


def lowest(
    keys: npt.NDArray[np.uint32],
    count: Callable[[Array], Array] | int,
    start: int,
    groups: Array | None = None,
    number: int = 1,
) -> Generator[Any, Any, npt.NDArray[np.bool_]]:
    """Mark the samples with the ``count`` lowest keys of all shards; ties go to the lowest slot.

    A generator, for use with ``yield from``; see :func:`kth`.

    Parameters
    ----------
    keys : array of uint32
        One per slot of this shard.
    count : int or callable
        Number per group, or a function of the groups' sizes. If it exceeds the size, all are marked.
    start : int
        The first slot of this shard.
    groups : array of int, optional
        As for :func:`kth`.
    number : int
        Number of groups.

    Returns
    -------
    array of bool
        One per slot.
    """
    wanted = count if callable(count) else lambda sizes: np.full(number, count, np.int64)
    last, ties = yield from kth(keys, lambda sizes: np.minimum(wanted(sizes), sizes) - 1, groups, number)
    marks = np.empty(len(keys), bool)
    level = []  # the slots that share the last key, in order
    for begin in range(0, len(keys), CHUNK):
        part = keys[begin : begin + CHUNK]
        if groups is None:
            bound, chosen = last[0], ties[0] > 0
        else:
            of = groups[begin : begin + CHUNK]
            bound, chosen = last[of], ties[of] > 0
        np.logical_and(part < bound, chosen, out=marks[begin : begin + CHUNK])
        level.append(begin + np.flatnonzero((part == bound) & chosen))
    here = np.concatenate(level) if level else np.zeros(0, np.int64)
    of = np.zeros(len(here), np.int64) if groups is None else groups[here].astype(np.int64, copy=False)
    tied = np.bincount(of, minlength=number)
    everywhere = yield [(start, tied)]
    left = ties - sum((t for at, t in everywhere if at < start), start=np.zeros(number, np.int64))
    if groups is None:
        marks[here[: max(int(left[0]), 0)]] = True
        return marks
    by_group = np.argsort(of, kind="stable")
    here, of = here[by_group], of[by_group]
    place = np.arange(len(here)) - np.repeat(np.cumsum(tied) - tied, tied)  # among the group's ties
    marks[here[place < left[of]]] = True
    return marks


def plan_whole(policy: ShardedPolicy, state: Any, *, epoch: int, num_epochs: int, seed: int) -> Plan:
    """Return the plan of all the samples from the policy's ``plan_shard``: the implementation of ``plan``."""
    return alone(policy.plan_shard(state, 0, len(state), epoch=epoch, num_epochs=num_epochs, seed=seed))
