"""Cut a table into small pieces of similar rows, so that rows can be selected as whole groups are.

The publication drops data outside its thresholds and does not say how rows are selected; this is our own
procedure. Rows that look the same to every limited metric are exchangeable: which of them are taken is drawn
at random, and how many is found by `raysel.gime.select_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.arrays import positions
from raysel.gime import mismatch
from raysel.gime.binding import Binding
from raysel.gime.block import Block, Mask
from raysel.gime.columns import Array, hash_column, not_finite
from raysel.gime.grouped import Codes
from raysel.gime.state import target_view
from raysel.registry import METRICS

PIECES = 256  # of so many of a table each, about: that is how near to the least volume a choice can come
_CLASSES = 32  # that are distinguished; rows of the rarer others are one kind
_BINS = 4


def pieces(
    table: pa.Table,
    binding: Binding,
    limits: Mapping[str, tuple[float | None, float | None]],
    floors: Mapping[Any, int] | None = None,
    seed: int = 0,
) -> pa.Array:
    """Return the name of each row's piece: a dictionary column to group by.

    Rows are told apart only by what the limited metrics depend on: the class; whether the row is the first of
    its entity or content (in a random order), shares a relation key, has a flawed cell, or is of an entity of
    the target; quarters by delay, size, event time and the side of the target that its content lies on. Rows
    that are equal in all of these are shuffled by ``seed`` and cut into pieces of 1/256 of the table, or of
    one row. Floors tell classes apart only if as many rows as the limits require would probably not contain
    them: the selection of a row should not depend on its class without need.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the bound columns.
    binding : Binding
        What the columns mean.
    limits : mapping of str to (float or None, float or None)
        Thresholds, as for `raysel.gime.select_groups`.
    floors : mapping of label to int, optional
        As for `raysel.gime.select_groups`.
    seed : int
        Seed of the order of rows.

    Returns
    -------
    pyarrow.Array
        Names, one per row.
    """
    order = np.random.default_rng(seed).permutation(table.num_rows)
    block = Block(table, binding, None, 1, binding.target.scale if binding.target else None)
    marks = _marks(block, set(limits), _scarce(block, limits, floors or {}), order)
    kinds, kind = np.zeros((1, 0), np.int64), np.zeros(table.num_rows, np.int64)
    if marks:
        kinds, kind = np.unique(np.column_stack([codes for codes, _ in marks]), axis=0, return_inverse=True)
        kind = kind.reshape(-1)
    width = max(-(-table.num_rows // PIECES), 1)
    place = np.empty(table.num_rows, np.int64)
    shuffled = order[np.argsort(kind[order], kind="stable")]
    sizes = np.bincount(kind, minlength=len(kinds))
    place[shuffled] = np.arange(table.num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    number = (
        place * -(-sizes // width)[kind] // np.maximum(sizes, 1)[kind]
    )  # a kind's pieces are of equal size
    told = [
        ", ".join(words[code] for code, (_, words) in zip(codes, marks, strict=True) if words[code])
        for codes in kinds
    ]
    found, code = np.unique(np.column_stack([kind, number]), axis=0, return_inverse=True)
    names = [f"{told[k] or 'rows'}, piece {n + 1}" for k, n in found]
    return pa.DictionaryArray.from_arrays(
        pa.array(code.reshape(-1).astype(np.int32)), pa.array(names, pa.string())
    )


def kind_of(piece: str | None) -> str:
    """Return what the rows of a piece have in common, from its name."""
    return str(piece).rpartition(", piece ")[0]


def _scarce(block: Block, limits: Mapping[str, Any], floors: Mapping[Any, int]) -> list[Any]:
    """Return the classes with floors that a random draw of the least volume would not reach."""
    if len(block.binding.classes) != 1:
        return []
    keys, there = block.key(block.binding.classes)
    least = (limits.get("volume.rows") or (None, None))[0] or 0.0
    counts = {
        label: np.count_nonzero(keys[there] == hash_column(pa.array([label]), "class")[0]) for label in floors
    }
    return [label for label, rows in floors.items() if counts[label] * least < 1.1 * rows * len(keys)]


Mark = tuple[Codes, Sequence[str]]


def _marks(block: Block, limits: set[str], floors: list[Any], order: Codes) -> list[Mark]:
    """Return what the limited metrics depend on in a row: codes, and the words for each code."""
    binding, target = block.binding, target_view(block.binding.target)
    own = any(limit.partition(".")[0] not in METRICS.builtin for limit in limits)

    def on(*names: str) -> bool:
        if own:  # it may depend on anything
            return True
        return any(limit == name or limit.startswith(f"{name}.") for limit in limits for name in names)

    near = "mismatch.overall"
    found: list[Mark] = []
    if binding.classes and (floors or on("variety", "mismatch.labels", "coverage.support_coverage", near)):
        found.append(_classes(block, floors))
    if binding.entity:
        entity, named = block.key(binding.entity)
        if on("scope", "granularity.scope_per_row", "mismatch.entities", near):
            found.append(_either(_first(entity, named, order), "first of its entity"))
        if target is not None and on("mismatch.entities", near) and "entity" in target.parts.keys:
            found.append(
                _either(
                    named & positions(target.keys("entity").hash, entity)[1], "of an entity of the target"
                )
            )
    if binding.content and on("coverage"):
        content = block.key(binding.content)[0]
        found.append(_either(_first(content, np.ones(len(content), bool), order), "first of its content"))
    if on("aggregation"):
        for name in binding.relation:
            there = block.valid(name)
            found.append(_either(_shared(block.hash(name), there), f"shares its {name}"))
    if on("distortion", "granularity.completeness"):
        found.append(_either(_flawed(block), "flawed"))
    if binding.event_time is not None:
        at, there = block.time(binding.event_time)
        if on("duration", "sampling_rate", "mismatch.time", near):
            found.append(_quarters(at, there, "event time"))
        if on("delay") and (delay := _delay(block, at, there)) is not None:
            found.append(_quarters(*delay, "delay"))
    if binding.size is not None and on("granularity.mean_size", "scope.size"):
        size = block.numbers(binding.size)
        found.append(_quarters(size, np.isfinite(size), "size"))
    comparable = block.scale and mismatch.numeric(block.kinds, list(block.scale)) == list(block.scale)
    if comparable and on("mismatch.states", near):
        points = mismatch.features(block, block.scale)
        good = np.logical_and.reduce(np.isfinite(points), axis=1)
        points[~good] = 0.0
        away = points.mean(axis=0)  # from the target's centre, which is 0
        found.append(_quarters((points * away).sum(axis=1), good, "distance on the way to the target"))
    return found


def _either(mask: Mask, words: str) -> Mark:
    return mask.astype(np.int64), ("", words)


def _classes(block: Block, floors: list[Any]) -> Mark:
    names = block.binding.classes
    hashes, there = block.key(names)
    known, first, counts = np.unique(hashes[there], return_index=True, return_counts=True)
    always = [hash_column(pa.array([label]), "class")[0] for label in floors]
    rank = np.lexsort((known, -counts, ~np.isin(known, np.array(always, np.uint64))))
    kept = np.sort(rank[: max(_CLASSES, len(always))])
    rows = np.flatnonzero(there)[first[kept]]
    words = [" ".join(f"{name} {block.table[name][int(row)]}" for name in names) for row in rows]
    place, found = positions(known[kept], hashes)
    return np.where(there & found, place, np.where(there, len(kept), len(kept) + 1)), [
        *words,
        "another class",
        "no class",
    ]


def _first(keys: Array, there: Mask, order: Codes) -> Mask:
    """Return the first row of each key, in a given order."""
    found = np.zeros(len(keys), bool)
    some = order[there[order]]
    found[some[np.unique(keys[some], return_index=True)[1]]] = True
    return found


def _shared(keys: Array, there: Mask) -> Mask:
    _, code, counts = np.unique(keys, return_inverse=True, return_counts=True)
    counts = np.bincount(code.reshape(-1), there, len(counts))
    return there & (counts[code.reshape(-1)] > 1)


def _flawed(block: Block) -> Mask:
    binding = block.binding
    bad = np.zeros(block.table.num_rows, bool)
    for name in dict.fromkeys([*(binding.content or binding.columns), *binding.bounds]):
        bad |= ~block.valid(name) | not_finite(block.table[name])
    for name, (low, high) in binding.bounds.items():
        values = block.numbers(name)
        bad |= (values < (-np.inf if low is None else low)) | (values > (np.inf if high is None else high))
    for name, reference in binding.reference.items():
        bad |= block.valid(reference) & (block.hash(name) != block.hash(reference))
    return bad


def _delay(block: Block, at: Array, there: Mask) -> tuple[Array, Mask] | None:
    if block.binding.record_time is not None:
        seen, written = block.time(block.binding.record_time)
    elif block.binding.reference_time is not None:
        seen, written = np.full(len(at), block.binding.reference_moment()[0]), there
    else:
        return None
    return seen - at, there & written & (seen >= at)


def _quarters(values: Array, there: Mask, what: str) -> Mark:
    words = [f"{name} quarter by {what}" for name in ("first", "second", "third", "last")]
    cuts = np.quantile(values[there], np.arange(1, _BINS) / _BINS) if there.any() else np.zeros(_BINS - 1)
    return np.where(there, np.searchsorted(cuts, values), _BINS), [*words, f"no {what}"]
