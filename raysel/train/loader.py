"""Batches of a map-style data set in the order of a plan, each row with its id inside the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from raysel.errors import DataError


@dataclass
class Batch:
    """What one rank trains on in one step.

    data: what the collate function made of the samples.
    ids: int64 (B,), the samples' ids. The last batch of an epoch is shorter; where fewer rows than ranks remain, a rank
        without one gets a single row of padding, id -1, so that all ranks take equal steps.
    weights: float32 (B,), the plan's weight times the selection's; 0 for padding.
    slots: int64 NumPy (B,), the samples' places in the selection state; -1 for padding, and then the only one.
    share: the rows that count in this step over all ranks, divided by the number of its batches (one a rank, or
        ``accumulate``): what a weighted sum of losses is divided by, so that the mean over batches is the mean over
        rows.
    """

    data: Any
    ids: torch.Tensor
    weights: torch.Tensor
    slots: np.ndarray
    share: float

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on ``device``; ``data`` may nest tuples, lists and dicts of tensors."""
        weights = self.weights.to(device, non_blocking=True)
        return Batch(_to(self.data, device), self.ids, weights, self.slots, self.share)


class WithIds(torch.utils.data.Dataset):
    """A data set that hands out a batch's (ids, samples): the ids travel with them through any look-ahead.

    A batch at a time, not a row: what is done for every row is most of what a session adds to a step.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Any]]:
        return self.__getitems__(np.array([index], np.int64))

    def __getitems__(self, marks: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        many = getattr(self.dataset, "__getitems__", None)
        rows = marks.tolist()
        if rows[0] < 0:  # the one row of a batch that only pads
            rows = [-rows[0] - 1]
        return marks, list(many(rows)) if many else [self.dataset[row] for row in rows]


class Rows(NamedTuple):
    """One batch's rows, looked up before the epoch begins and not in its steps.

    marks: int64, what the data set is asked for: ids, or ``-id - 1`` for the one row of a batch that only pads.
    slots: int64, -1 for padding. weights: float32, 0 for padding.
    """

    marks: np.ndarray
    slots: np.ndarray
    weights: np.ndarray


class EpochOrder(Sampler):
    """The marks of an epoch's batches, each an array: it comes to the data set as it is."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        for row in self.rows:
            yield row.marks


class CollateWithIds:
    """Collates the samples with the user's function and the ids beside them."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, batch: tuple[np.ndarray, list[Any]]) -> tuple[torch.Tensor, Any]:
        marks, samples = batch
        return torch.from_numpy(marks), self.collate(samples)


def data_loader(dataset: Any, order: EpochOrder, collate: Any, **options: Any) -> DataLoader:
    """A torch DataLoader over ``dataset`` that yields (marks, collated samples) in ``order``."""
    taken = sorted(
        {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "dataset"} & set(options)
    )
    if taken:
        raise DataError(
            f"loader: The argument {taken[0]}= cannot be given; the plan decides which rows a batch holds."
        )
    both: Any = CollateWithIds(collate)  # of what WithIds makes, which is no list of samples
    return DataLoader(WithIds(dataset), batch_sampler=order, collate_fn=both, **options)


def without_padding(positions: np.ndarray, last: int = 1) -> list[np.ndarray]:
    """The rows of ``positions`` (batches, B), the ``last`` ones without their padding, but with one row at least.

    Ranks must take equal steps, not equal batches: what only pads would still be computed, and counted by batch
    statistics.
    """
    rows = list(positions)
    for at in range(max(len(rows) - last, 0), len(rows)):
        real = rows[at][rows[at] >= 0]
        rows[at] = real if len(real) else rows[at][:1]
    return rows


def rows_of(positions: np.ndarray, planned: np.ndarray, ids: np.ndarray | None, weights: np.ndarray) -> Rows:
    """The rows at ``positions`` of the planned slots, with their weights; of padding, the plan's first sample.

    ids: by slot, None where they are the slots.
    """
    pads = positions[0] < 0
    slots = planned[:1] if pads else planned[positions]
    # Never the slots' own memory: a loop may write to its ids.
    marks = slots.copy() if ids is None else ids[slots]
    return Rows(-marks - 1, np.array([-1]), weights) if pads else Rows(marks, slots, weights)


def check_length(dataset: Any, ids: np.ndarray, expected: int | None) -> None:
    """DataError unless ``dataset`` can be indexed by every id, and is as long as the pool chosen from."""
    try:
        length = len(dataset)
    except TypeError as error:
        raise DataError(
            f"loader: A {type(dataset).__name__} has no length; give a map-style dataset (len and [])."
        ) from error
    if expected is not None and length != expected:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the selection was made from {expected:,}; "
            "dataset[sample_id] must be the sample with that id."
        )
    if len(ids) and int(ids[-1]) >= length:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the plan contains sample_id {ids[-1]}."
        )


def _to(data: Any, device: torch.device | str) -> Any:
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: _to(value, device) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_to(value, device) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(_to(value, device) for value in data)
    return data
