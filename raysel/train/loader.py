"""Batches of a map-style dataset in the order of a plan, with the id of each row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from raysel.errors import DataError, reason_of, shown

_OF_COLUMNS = ("pandas", "polars", "pyarrow")  # packages whose objects are columns, or have labels


@dataclass
class Batch:
    """The rows that one rank trains on in one step.

    Attributes
    ----------
    data : object
        What the collate function returned for the samples.
    ids : torch.Tensor of int64, shape (B,)
        Ids of the samples. The last batch of an epoch is shorter. A rank for which fewer than two rows remain
        has two all the same, of which the last or both are padding, id -1 (one row for a batch size of 1): all
        ranks take equally many steps, and batch statistics need more than one row.
    weights : torch.Tensor of float32, shape (B,)
        Weight of the plan times weight of the selection; 0 for padding.
    slots : array of int64, shape (B,)
        Positions of the samples in the selection state. -1 for padding, which comes last.
    share : float
        Number of rows that count in this step over all ranks, divided by the number of its batches (one per
        rank, or ``accumulate``). A weighted sum of losses is divided by it, so that the mean over batches is
        the mean over rows.
    """

    data: Any
    ids: torch.Tensor
    weights: torch.Tensor
    slots: np.ndarray
    share: float

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device.

        Parameters
        ----------
        device : torch.device or str
            The device.

        Returns
        -------
        Batch
            ``data`` may be tensors, objects with a method ``to``, and nested tuples, lists, mappings and
            dataclasses of these; anything else is left as it is. ``ids`` stay on the CPU.
        """
        weights = self.weights.to(device, non_blocking=True)
        return Batch(moved(self.data, device), self.ids, weights, self.slots, self.share)


class WithIds(torch.utils.data.Dataset):
    """A dataset that returns the (ids, samples) of a batch, so that prefetching cannot separate them.

    It works by batches, not rows, because work per row is most of what a session adds to a step.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Any]]:
        return self.__getitems__(np.array([index], np.int64))

    def __getitems__(self, marks: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        many = getattr(self.dataset, "__getitems__", None)
        rows = np.where(marks < 0, -marks - 1, marks).tolist()
        return marks, list(many(rows)) if many else [self.dataset[row] for row in rows]


class Rows(NamedTuple):
    """The rows of one batch, looked up before the epoch begins and not in its steps.

    Attributes
    ----------
    marks : array of int64
        Indices for the dataset: ids, or ``-id - 1`` for padding.
    slots : array of int64
        -1 for padding.
    weights : array of float32
        0 for padding.
    """

    marks: np.ndarray
    slots: np.ndarray
    weights: np.ndarray


class EpochOrder(Sampler):
    """The marks of an epoch's batches, one array per batch, which the dataset receives unchanged."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        for row in self.rows:
            yield row.marks


class CollateWithIds:
    """Collate the samples with the user's function, and keep the ids next to them."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, batch: tuple[np.ndarray, list[Any]]) -> tuple[torch.Tensor, Any]:
        """Return the ids and the collated samples."""
        marks, samples = batch
        return torch.from_numpy(marks), self.collate(samples)


def data_loader(dataset: Any, order: EpochOrder, collate: Any, **options: Any) -> DataLoader:
    """Return a torch DataLoader over ``dataset`` that yields (marks, collated samples) in ``order``."""
    taken = sorted(
        {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "dataset"} & set(options)
    )
    if taken:
        raise DataError(
            f"loader: The argument {taken[0]}= cannot be given, because the plan decides which samples are in each batch. Remove it."
        )
    if collate is not None and not callable(collate):
        raise DataError(f"loader: collate_fn must be a function of a list of samples, got {shown(collate)}.")
    both: Any = CollateWithIds(collate)  # of what WithIds makes, which is no list of samples
    try:
        return DataLoader(WithIds(dataset), batch_sampler=order, collate_fn=both, **options)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"loader: The DataLoader does not accept its options ({reason_of(error)})."
        ) from error


def without_padding(positions: np.ndarray) -> list[np.ndarray]:
    """Return the rows of ``positions`` (batches, B) without padding, as far as two rows remain in each.

    Ranks must take equally many steps, but need not have equal batches: padding would still be computed, and
    counted by batch statistics, which cannot be computed from a single row.
    """
    rows, least = list(positions), min(2, positions.shape[1])
    for at in np.flatnonzero(positions[:, -1] < 0).tolist():  # padding comes last
        rows[at] = rows[at][: max(least, int((rows[at] >= 0).sum()))]
    return rows


def rows_of(positions: np.ndarray, planned: np.ndarray, ids: np.ndarray | None, weights: np.ndarray) -> Rows:
    """Return the rows at ``positions`` of the planned slots; padding reads the plan's first sample.

    ``ids`` are by slot, None if they are the slots.
    """
    pads = positions < 0
    slots = planned[np.maximum(positions, 0)]
    # Never the slots' own memory: a loop may write to its ids.
    marks = slots.copy() if ids is None else ids[slots]
    if pads[-1]:  # padding comes last
        marks, slots = np.where(pads, -marks - 1, marks), np.where(pads, -1, slots)
    return Rows(marks, slots, weights)


def check_map_style(dataset: Any, where: str) -> int:
    """Return the length of a map-style dataset; raise DataError, which begins with ``where``, for anything else."""
    kind = type(dataset)
    columns = kind.__module__.partition(".")[0] in _OF_COLUMNS
    if columns or (isinstance(dataset, Mapping) and 0 not in dataset):
        raise DataError(
            f"{where}: {kind.__name__}[sample_id] is not the sample with that id, but a column, a part or a value by a label; give "
            "a list of the rows, or a torch Dataset whose __getitem__ returns the row at a position."
        )
    indexed = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    if indexed and not isinstance(dataset, torch.utils.data.IterableDataset):
        try:
            return len(dataset)
        except (TypeError, NotImplementedError):
            pass
    raise DataError(
        f"{where}: A {type(dataset).__name__} does not support dataset[sample_id], by which the samples of the "
        "plan are read. Give a map-style dataset, which has len() and [sample_id]. If your rows can only be read in order, "
        "collect them in a list, or write them to files and use raysel.read and session.stream."
    )


def check_length(dataset: Any, ids: np.ndarray, expected: int | None) -> None:
    """Raise DataError unless ``dataset`` can be indexed by every id and is as long as the pool."""
    length = check_map_style(dataset, "loader")
    if expected is not None and length != expected:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the selection was made from {expected:,}; "
            "dataset[sample_id] must be the sample with that id."
        )
    if len(ids) and int(ids[-1]) >= length:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the plan contains sample_id {ids[-1]}."
        )


def moved(data: Any, device: torch.device | str) -> Any:
    """Return tensors, and what is nested in tuples, lists, mappings and dataclasses, on a device; see :meth:`Batch.to`."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if callable(getattr(data, "to", None)) and not isinstance(data, type):
        return data.to(device)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(moved(value, device) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(moved(value, device) for value in data)
    if isinstance(data, MutableMapping):
        copied = copy.copy(data)  # keeps its class, and whatever else it holds
        for key, value in data.items():
            copied[key] = moved(value, device)
        return copied
    if isinstance(data, Mapping):
        return {key: moved(value, device) for key, value in data.items()}
    if is_dataclass(data) and not isinstance(data, type):
        other = copy.copy(data)
        for field in fields(data):
            object.__setattr__(other, field.name, moved(getattr(data, field.name), device))
        return other
    return data
