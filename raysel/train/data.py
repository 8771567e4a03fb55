"""Rows of a training as its loop gets them: batches of the epoch's plan, and rows to score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raysel.core.storage import Place
from raysel.data.row_index import ID
from raysel.data.store import ColumnStore
from raysel.train.tasks.task import Facts

if TYPE_CHECKING:
    from raysel.train.batch import Batch
    from raysel.train.session import Session

Collate = Callable[[Mapping[str, np.ndarray], torch.Generator | None], Any]
"""Makes a batch of columns; see `raysel.train.tasks.Task.collate`."""


class TrainingData:
    """Rows of the pool to train on, and rows of the validation and test data to score.

    Attributes
    ----------
    facts : Facts
        What the columns hold, and the classes.
    pool : ColumnStore or None
        The rows as a map-style dataset; None if they are streamed.
    """

    def __init__(
        self,
        facts: Facts,
        pool: Place | None,
        validation: Place | None = None,
        test: Place | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.facts, self._seed = facts, seed
        self.pool = None if pool is None else ColumnStore(pool)
        self._scored = {
            name: ColumnStore(place) for name, place in (("validation", validation), ("test", test)) if place
        }

    def batches(
        self, session: Session, collate: Collate, *, batch_size: int, accumulate: int = 1
    ) -> Iterable[Batch]:
        """Return this rank's batches of the current epoch, from files or from Ray Data; see ``Session.loader``.

        Parameters
        ----------
        session : Session
            The session, within an epoch.
        collate : callable
            Makes ``data`` of a batch's columns and a torch.Generator that is seeded by the run's seed, the epoch and the
            batch's first id.
        batch_size, accumulate : int
            Rows per batch, and batches per optimizer step.
        """
        made = self._collate(collate, session.epoch)
        if self.pool is not None:
            return session.loader(
                self.pool, batch_size=batch_size, accumulate=accumulate, collate_fn=made.of_samples
            )
        return session.stream("train", batch_size=batch_size, collate_fn=made.of_columns)

    def collated(self, samples: list[dict[str, np.ndarray]], collate: Collate, epoch: int) -> Any:
        """Return what ``collate`` makes of the samples of a batch of ``pool`` in an epoch, as :meth:`batches` does."""
        return self._collate(collate, epoch).of_samples(samples)

    def _collate(self, collate: Collate, epoch: int) -> _Collate:
        return _Collate(collate, self._seed, epoch, self.facts.classes)

    def has(self, role: str) -> bool:
        """Return whether there are "validation" or "test" rows."""
        return role in self._scored

    def scored(
        self, role: str, collate: Collate, *, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Any, bool]]:
        """Yield this rank's batches of the "validation" or "test" rows, as many as every other rank gets.

        Yields
        ------
        (object, bool)
            What ``collate`` made, and whether the batch counts: a rank that has no rows left gets rows that do not.
        """
        store = self._scored[role]
        ids = store.ids
        for start in range(0, len(ids), batch_size * world):
            mine = ids[start + rank * batch_size : start + (rank + 1) * batch_size]
            counts = bool(len(mine))
            yield collate(store.rows(mine if counts else ids[:1]), None), counts


class _Collate:
    """A collate function of columns for the loader and for the stream."""

    def __init__(self, collate: Collate, seed: int, epoch: int, classes: Mapping[str, Any]) -> None:
        self._collate, self._seed, self._epoch, self._classes = collate, seed, epoch, classes

    def of_samples(self, samples: list[dict[str, np.ndarray]]) -> Any:
        """Collate what :class:`ColumnStore` returns for a batch: the columns of all its rows."""
        (rows,) = samples
        return self._made(rows)

    def of_columns(self, columns: dict[str, np.ndarray]) -> Any:
        """Collate the columns of Ray Data, in which a class is not yet a code."""
        rows = dict(columns)
        for name, known in self._classes.items():
            codes = {value: number for number, value in enumerate(known)}
            rows[name] = np.array([codes[value] for value in rows[name].tolist()], np.int64)
        return self._made(rows)

    def _made(self, rows: Mapping[str, np.ndarray]) -> Any:
        drawn = np.random.SeedSequence(self._seed, spawn_key=(self._epoch, int(rows[ID][0])))
        generator = torch.Generator().manual_seed(int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        return self._collate(rows, generator)
