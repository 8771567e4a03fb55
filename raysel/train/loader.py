"""Batches of a map-style dataset in the order of a plan, with the id of each row."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from raysel.dynamic.plan import batches, step_sizes
from raysel.errors import DataError, StateError, reason_of, shown
from raysel.train.batch import Batch
from raysel.train.checkpoint import set_rng
from raysel.train.epoch import Epoch

_OF_COLUMNS = ("pandas", "polars", "pyarrow")  # packages whose objects are columns, or have labels


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
        padded = marks[-1] < 0  # padding comes last
        rows = (np.where(marks < 0, -marks - 1, marks) if padded else marks).tolist()
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

    def __call__(self, batch: tuple[np.ndarray, list[Any]]) -> tuple[np.ndarray, Any]:
        """Return the marks and the collated samples."""
        marks, samples = batch
        return marks, self.collate(samples)


class EpochLoader:
    """The batches of one epoch on one rank, from a map-style dataset. See ``Session.loader``.

    ``loader`` is what :func:`data_loader` returned.
    """

    def __init__(
        self,
        epoch: Epoch,
        loader: DataLoader,
        batch_size: int,
        shuffle: bool,
        accumulate: int,
        lengths: np.ndarray | None,
    ) -> None:
        began = time.perf_counter()
        plan, grouped = epoch.plan, None
        if lengths is not None:
            lengths = lengths[epoch.ids]
            grouped = hashlib.blake2b(lengths.tobytes(), digest_size=16).hexdigest()
        where = batches(
            len(plan),
            batch_size,
            epoch.rank,
            epoch.world,
            epoch.run.seed,
            epoch.number,
            shuffle,
            epoch.skip,
            accumulate,
            lengths,
        )
        where = where[: int(min((epoch.last - epoch.done) * accumulate, len(where)))]
        self._ticket = epoch.take(len(where) // accumulate, shuffle, grouped, accumulate)
        self._rows = rows_of(epoch, where)
        self._epoch, self._loader = epoch, loader
        self._accumulate, self._lanes = accumulate, accumulate * epoch.world
        self._step_rows = batch_size * self._lanes
        self._sizes = step_sizes(len(plan) - epoch.skip, self._step_rows).tolist()
        epoch.planning += time.perf_counter() - began

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        epoch, accumulate = self._epoch, self._accumulate
        epoch.claim(self._ticket)
        # Steps of an earlier process count in steps of today's size: with the same size, as what they were.
        before, trained = epoch.skip / self._step_rows, epoch.skip
        all_steps = before + len(self) // accumulate
        order: Any = self._loader.batch_sampler
        order.rows = self._rows
        arriving = iter(self._loader)
        if epoch.rng is not None:
            # In mid-epoch: making the iterator drew what the epoch's start had drawn.
            set_rng(epoch.rng)
        for index, (marks, data) in enumerate(arriving):
            rows, step = self._rows[index], index // accumulate
            # From a worker process a copy arrives. Comparing bytes takes a tenth of array_equal's time.
            if marks is not rows.marks and marks.tobytes() != rows.marks.tobytes():
                raise StateError(
                    "The DataLoader returned batches in another order than requested; "
                    "do not set the option in_order of the DataLoader."
                )
            ids = torch.from_numpy(marks if rows.slots[-1] >= 0 else np.where(rows.slots < 0, -1, marks))
            if index % accumulate == 0:
                trained += self._sizes[step]
            epoch.hand_out(epoch.done + step + 1, trained, (before + step + 1) / all_steps)
            share = self._sizes[step] / self._lanes
            yield Batch(data, ids, torch.from_numpy(rows.weights), rows.slots, share)


def data_loader(dataset: Any, collate: Any, **options: Any) -> DataLoader:
    """Return a torch DataLoader over ``dataset`` that yields (marks, collated samples) in an EpochOrder."""
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
        return DataLoader(WithIds(dataset), batch_sampler=EpochOrder(), collate_fn=both, **options)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"loader: The DataLoader does not accept its options ({reason_of(error)})."
        ) from error


def rows_of(epoch: Epoch, positions: np.ndarray) -> list[Rows]:
    """Return the rows of each batch at ``positions`` (batches, B) of the plan, with the padding that is needed.

    Ranks must take equally many steps, but need not have equal batches: padding would still be computed, and
    counted by batch statistics, which cannot be computed from a single row. Padding reads the plan's first sample.
    """
    pads, least = positions < 0, min(2, positions.shape[1])
    marks, slots, weights = epoch.ids[positions], epoch.plan.slots[positions], epoch.weights[positions]
    marks[pads], slots[pads], weights[pads] = -epoch.ids[0] - 1, -1, 0
    found = [Rows(*row) for row in zip(marks, slots, weights, strict=True)]
    for at in np.flatnonzero(pads[:, -1]).tolist():  # padding comes last
        count = max(least, int((slots[at] >= 0).sum()))
        found[at] = Rows(*(part[:count] for part in found[at]))
    return found


def check_map_style(dataset: Any, where: str) -> int:
    """Return the length of a map-style dataset; raise DataError, which begins with ``where``, for anything else."""
    kind = type(dataset)
    columns = kind.__module__.partition(".")[0] in _OF_COLUMNS
    if columns or (isinstance(dataset, Mapping) and 0 not in dataset):
        raise DataError(
            f"{where}: {kind.__name__}[sample_id] returns a column, a part of the data or a value with a label, not the sample "
            "with that id. Give a list of the rows, or a torch Dataset whose __getitem__ returns the row at a position."
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


def check_length(dataset: Any, ids: np.ndarray | None, expected: int | None) -> None:
    """Raise DataError unless ``dataset`` can be indexed by every id, if there are ids, and is as long as the pool."""
    length = check_map_style(dataset, "loader")
    if ids is None and length != expected:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but 'chosen' of DynamicSelection is the number {expected:,}; give "
            "len(dataset), or a Selection to train on some of the samples only."
        )
    if expected is not None and length != expected:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the selection was made from {expected:,}; give the dataset "
            "with the rows that were selected from, in which dataset[sample_id] is the sample with that id."
        )
    if ids is not None and len(ids) and int(ids[-1]) >= length:
        raise DataError(
            f"loader: The dataset has {length:,} samples, but the plan contains sample_id {ids[-1]}; give the dataset that the "
            "ids belong to, in which dataset[sample_id] is the sample with that id."
        )


def checked_lengths(lengths: Any, rows: int) -> np.ndarray:
    """Return the lengths as an array; raise DataError unless there is one whole number per row."""
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != rows:
        raise DataError(
            f"loader: The lengths must be one whole number per sample of the dataset, {rows:,} in all, got "
            f"{found.dtype}{list(found.shape)}."
        )
    return found.astype(np.int64)
