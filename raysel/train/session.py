"""A worker's part of a run: epochs that resume, batches with ids, and losses recorded per sample."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from raysel.core.numbers import whole
from raysel.data.row_index import ID
from raysel.dynamic.plan import Plan
from raysel.errors import ConfigError, DataError, StateError
from raysel.train import checkpoint
from raysel.train.batch import Batch
from raysel.train.checkpoint_store import restore_newest
from raysel.train.epoch import Epoch
from raysel.train.loader import EpochLoader, check_length, checked_lengths, data_loader
from raysel.train.objects import load_state_dicts
from raysel.train.shared_keeper import SharedKeeper
from raysel.train.stream import Counts, EpochStream

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from raysel.dynamic.keeper import Keeper, Keepers
    from raysel.train.checkpoint_store import CheckpointStore, Save
    from raysel.train.communicator import Communicator
    from raysel.train.epoch_log import EpochLog
    from raysel.train.planned import Board
    from raysel.train.run import Run

log = logging.getLogger("raysel")
_BUFFER = 65_536  # (id, loss) pairs a worker gathers before it sends them: a call costs more than its bytes


class Session:
    """One worker's view of a run. Every rank makes the same calls in the same order.

    ``DynamicSelection.session`` returns it.

    Attributes
    ----------
    rank, world : int
        This worker, and the number of workers.
    epoch : int
        The current epoch, 0-based.
    num_epochs : int
        Number of epochs of the run.
    current : Epoch or None
        The current epoch; None outside an epoch.
    total_steps : int
        Steps of all finished epochs.
    history : list of dict
        One entry per finished epoch, as :meth:`report` returns it; :meth:`restore` reads those of the
        checkpoint.

    Examples
    --------
    >>> session = raysel.DynamicSelection.local(raysel.FullData(), 10, num_epochs=2).session()
    >>> data = torch.arange(10.0)
    >>> for epoch in session.epochs():
    ...     for batch in session.loader(data, batch_size=4):
    ...         mean = session.loss(batch, batch.data)   # the loss of a sample is here its value
    ...     entry = session.report()
    >>> entry["mean_loss"], entry["steps"]
    (4.5, 3)
    """

    def __init__(
        self,
        run: Run,
        keeper: Keeper | Keepers | SharedKeeper,
        communicator: Communicator,
        store: CheckpointStore,
        ids: np.ndarray | None,
        weights: np.ndarray | None,
        board: Callable[[], Board | None] = lambda: None,
        epoch_log: EpochLog | None = None,
    ) -> None:
        self.run = run
        self._keeper, self._pieces = keeper, communicator.world
        if isinstance(keeper, SharedKeeper):  # and for the calls that rank 0 makes alone, its own
            keeper, self._pieces = keeper.own, 1
        self._own = keeper
        self.communicator, self._store = communicator, store
        self._ids, self._weights = ids, weights
        self.rank, self.world = communicator.rank, communicator.world
        self.num_epochs = run.num_epochs
        self.epoch = 0
        self.total_steps = 0
        self.history: list[dict[str, Any]] = []
        self.current: Epoch | None = None  # the open epoch
        self._loader: tuple[Any, Any, dict[str, Any], DataLoader] | None = None  # what it was made of, and it
        self._board, self._epoch_log = board, epoch_log
        self._counts: Counts | None = None  # of the streams
        self._midway: dict[str, Any] | None = None  # the checkpoint's position within an epoch
        self._rng: Any = None  # to be set when the epoch is resumed
        self._attempt, self._place = self._resume()
        self._restored = self._place is None  # the checkpoint that this run resumes from
        self._begun = False  # whether this session has trained an epoch

    # ---- the epoch's life --------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan | None:
        """The samples of the current epoch; None outside an epoch."""
        return None if self.current is None else self.current.plan

    @property
    def step(self) -> int:
        """Steps taken in the current epoch."""
        return 0 if self.current is None else self.current.step

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the current epoch, known before the first one; from :meth:`stream` the least possible number."""
        return 0 if self.current is None else self.current.steps

    def restore(self, objects: Mapping[str, Any]) -> bool:
        """Restore the checkpoint into ``objects``.

        Call it before :meth:`epochs`. On a fresh start it does nothing. It also restores ``history``, and
        this rank's random generators if the number of workers is the same.

        Parameters
        ----------
        objects : mapping of str to object
            Model, optimizer, scheduler ..., each with ``load_state_dict``, under the names that were given to
            :meth:`report` and :meth:`checkpoint`.

        Returns
        -------
        bool
            Whether there was a checkpoint.

        Raises
        ------
        StateError
            If the checkpoint has other names.
        """
        _check_named("restore: The objects", objects)
        if self._place is None:
            return False
        with self._store.opened(self._place) as directory:
            saved = checkpoint.objects(directory)
            rng = checkpoint.rng(directory, self.rank, self.world)
            history = checkpoint.history(directory)
        missing = sorted(set(saved) ^ set(objects))
        if missing:
            raise StateError(
                f"The checkpoint holds {', '.join(sorted(saved)) or 'nothing'}, but restore was called with "
                f"{', '.join(sorted(objects)) or 'nothing'}; give the same names to restore and report."
            )
        load_state_dicts(objects, saved)
        if rng is not None:
            checkpoint.set_rng(rng)
            self._rng = rng if self._midway else None
        self.history, self._restored = history, True
        return True

    def epochs(self) -> Iterator[int]:
        """Yield the epochs still to train, 0-based, from the checkpoint on; each ends with :meth:`report`.

        Yields
        ------
        int
            The epoch.

        Raises
        ------
        StateError
            If a checkpoint was not restored, an epoch ended without :meth:`report`, or this session has
            trained its last epoch before.
        """
        if not self._restored:
            raise StateError(
                f"The run resumes at epoch {self.epoch}, but the model was not restored; call "
                "session.restore({'model': model, ...}) before session.epochs()."
            )
        again = (
            "Make a new session with dynamic.session() to train again, from the checkpoint if there is one."
        )
        if self.current is not None:
            raise StateError(
                f"Epoch {self.epoch} of this session ended before session.report was called, so the model may have been trained on "
                f"only some of its batches. {again}"
            )
        if self._begun and self.is_over:
            raise StateError(
                f"This session is over: its last epoch, {self.epoch - 1}, has been trained. {again}"
            )
        while not self.is_over:
            self._begin()
            yield self.epoch
            if self.current is not None:
                raise StateError(
                    f"Epoch {self.epoch} ended without session.report(...), so its losses would be lost; call it in every epoch."
                )

    @property
    def is_over(self) -> bool:
        """Whether the run's last epoch has ended."""
        return self.epoch >= self.num_epochs or self.total_steps >= (self.run.max_steps or np.inf)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]. Use it for learning-rate schedules, since epochs differ in length."""
        share = (self.epoch + (self.current.share if self.current else 0.0)) / self.num_epochs
        if self.run.max_steps is not None:  # whichever of the two ends the run
            share = max(share, (self.total_steps + self.step) / self.run.max_steps)
        return min(1.0, share)

    def loader(
        self,
        dataset: Any,
        *,
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        shuffle: bool = True,
        accumulate: int = 1,
        lengths: Any = None,
        **options: Any,
    ) -> EpochLoader:
        """Return this rank's batches of the current epoch, from a map-style dataset.

        All ranks have the same number of batches, ``len()`` of what is returned, which is a multiple of
        ``accumulate``. Only the batches of the last step may be shorter, all of them evenly. No batch has a
        single row, because batch statistics need two: if one row remained for the last step, the step before
        it has one row less, and a rank with fewer than two rows gets rows of padding.

        A plan is trained on once: only the last loader of an epoch may be iterated. A checkpoint within an
        epoch does not restore what worker processes (``num_workers``) have drawn at random, and no checkpoint
        does so for ``persistent_workers``; everything else is restored.

        Parameters
        ----------
        dataset : map-style dataset
            ``dataset[sample_id]`` is the sample.
        batch_size : int
            Rows per batch.
        collate_fn : callable, optional
            Makes ``data`` of a list of samples. Default: torch's ``default_collate``.
        shuffle : bool
            Whether rows are visited in a random order, drawn per epoch.
        accumulate : int
            Batches per rank whose gradients make one optimizer step; step with their mean.
        lengths : sequence of int, optional
            Length of each sample of ``dataset``, by sample_id. Batches then hold samples of similar lengths,
            so that less is padded. The order still depends only on the plan, the seed and the epoch.
        **options
            Passed to torch's DataLoader (``num_workers``, ``pin_memory``, ``persistent_workers``, ...).

        Returns
        -------
        iterable of Batch
            Batches with ``data``, ``ids`` and ``weights``.

        Raises
        ------
        StateError
            Outside an epoch, and if an epoch is resumed in another order than it was begun with.
        DataError
            If ``dataset`` is not map-style or has another length than the pool, or if ``lengths`` are not one
            whole number per sample.
        ConfigError
            For a number of rows that is not positive.
        """
        epoch = self._current("loader")
        batch_size = whole("loader: batch_size", batch_size, 1)
        accumulate = whole("loader: accumulate", accumulate, 1)
        check_length(dataset, self._ids, self.run.pool_rows)
        kept = self._loader
        if kept is None or kept[0] is not dataset or kept[1:3] != (collate_fn, options):
            kept = self._loader = None  # whose worker processes end, before others start
            kept = (dataset, collate_fn, options, data_loader(dataset, collate_fn, **options))
            self._loader = kept
        if lengths is not None:
            lengths = checked_lengths(lengths, len(dataset))
        return EpochLoader(epoch, kept[3], batch_size, bool(shuffle), accumulate, lengths)

    def stream(
        self,
        data: Any = "train",
        *,
        batch_size: int,
        local_shuffle_buffer_size: int | None = None,
        collate_fn: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> EpochStream:
        """Return this rank's batches of the current epoch, from a Ray Dataset.

        Ranks take equally many steps; a rank without further rows has a single row of padding, id -1, weight
        0. The number of steps is known only at the end: ``steps_per_epoch`` is the number for equal shares,
        the least possible, and :attr:`progress` counts samples. Reading needs a CPU that Ray Train's workers
        leave free.

        Parameters
        ----------
        data : str or ray.data.Dataset
            What was made of ``dynamic.planned(...)``: its name in ``datasets=`` of TorchTrainer (with
            ``dataset_config=raysel.WholeRows()``, which drops no row), or without Ray Train the Dataset
            itself.
        batch_size : int
            Rows per rank and step.
        local_shuffle_buffer_size : int, optional
            Number of rows from which a rank draws its batches, seeded by the run's seed, the epoch and the
            rank.
        collate_fn : callable, optional
            Makes ``data`` of a batch's columns (name -> array), in another thread. Default: numbers become
            tensors, and other columns stay arrays.

        Returns
        -------
        iterable of Batch
            Batches as from :meth:`loader`.

        Raises
        ------
        ResourceError
            If no CPU is free after two minutes.
        DataError
            For rows that are not planned, and at the end of the epoch unless every planned row arrived
            exactly once.
        StateError
            Outside an epoch, and without ``dynamic.planned(...)``.
        ConfigError
            For a number of rows that is not positive.
        """
        epoch = self._current("stream")
        batch_size = whole("stream: batch_size", batch_size, 1)
        if local_shuffle_buffer_size is not None:
            local_shuffle_buffer_size = whole(
                "stream: local_shuffle_buffer_size", local_shuffle_buffer_size, 1
            )
        board = self._board()  # read now: in a plain process the session may be older
        if board is None:
            raise StateError(
                "session.stream needs a dataset that the plan filters; make it with dynamic.planned(dataset) "
                "before trainer.fit()."
            )
        if self._counts is None:
            self._counts = Counts(self.rank, self.world)
        staged = partial(self._own.staged, self._attempt, epoch.number)
        return EpochStream(
            epoch, self._counts, board, staged, data, batch_size, local_shuffle_buffer_size, collate_fn
        )

    def loss(self, batch: Batch, losses: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Record each sample's loss and return the scalar to differentiate: the weighted mean of the rows.

        The mean of the returned scalars over the step's batches, those of all ranks (which DDP and FSDP
        compute) and those accumulated, is ``sum(weight * loss) / rows`` over all rows of the step. Nothing is
        copied from the device here, and nothing is changed in place. Every sample counts the same, however
        many elements it has. The mean over all tokens of a batch, with which many language models are
        trained, would give a long text more weight than a short one.

        Parameters
        ----------
        batch : Batch
            The batch that the losses belong to.
        losses : torch.Tensor, shape (B,), (B, T), (B, H, W), ...
            Losses from a criterion with ``reduction="none"``, of any float dtype. They are reduced to one
            number per sample, the mean over the elements that count.
        mask : torch.Tensor, shape of ``losses``, optional
            Which elements count: bool, or weights of at least 0 (``labels != -100``). A sample in which no
            element counts is a row of loss 0: it has no gradient, and no loss is recorded for it. Default:
            all elements.

        Returns
        -------
        torch.Tensor, shape ()
            The scalar to call ``backward()`` on.

        Raises
        ------
        DataError
            For another shape, in particular a scalar.
        StateError
            Outside an epoch, and for a batch whose losses were recorded before.
        """
        epoch = self._current("loss")
        if not isinstance(batch, Batch):
            raise DataError(
                f"loss: The first argument must be the Batch that session.loader or session.stream returned, got a "
                f"{type(batch).__name__}; give the batch itself, not batch.data."
            )
        scalar = epoch.note(batch, losses, mask)
        if epoch.waiting >= _BUFFER:
            self._send(epoch)
        return scalar

    def report(
        self, metrics: Mapping[str, Any] | None = None, state: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """End the epoch: commit its losses, and save ``state`` and the selection state in one checkpoint.

        Every rank calls it, once per epoch.

        Parameters
        ----------
        metrics : mapping of str to number, optional
            Values of this epoch that JSON can hold. They are kept in ``history`` and passed to
            ``ray.train.report`` (those of rank 0), next to the session's own: ``epoch``, ``planned``,
            ``trained``, ``steps``, ``observed``, ``nonfinite``, ``mean_loss``, ``seconds``,
            ``planning_seconds``, ``digest``.
        state : mapping of str to object, optional
            Objects with ``state_dict`` to save. Default: save only the selection state.

        Returns
        -------
        dict
            The epoch's entry of ``history``.

        Raises
        ------
        StateError
            Outside an epoch, if no batch of the plan was used, and if no loss of the epoch was recorded.
        ConfigError
            For a metric with a name of the session's own, or a value that JSON cannot hold.
        """
        epoch = self._current("report")
        _check_named("report: The metrics", metrics)
        _check_named("report: The state", state)
        mine = _checked(metrics or {})
        if not epoch.step:
            raise StateError(
                f"No batch of the plan of epoch {self.epoch} was used, so the epoch cannot be reported. Iterate over "
                "session.loader(dataset, batch_size=...) or session.stream(...); a DataLoader of your own does not follow the plan."
            )
        self._send(epoch)  # which waits for the device, and is not planning
        began = time.perf_counter()
        self._flush(epoch)
        logged = 0.0 if self._epoch_log is None else self.communicator.of_zero(lambda: self._log(epoch))
        summary = self.communicator.of_zero(lambda: self._own.commit(self._attempt, self.epoch))
        epoch.planning += time.perf_counter() - began - logged
        if not summary["observed"] and not summary["nonfinite"]:
            raise StateError(
                f"No loss of epoch {self.epoch} was recorded; call session.loss(batch, losses) for every batch."
            )
        if summary["nonfinite"] and self.rank == 0:
            log.warning(
                f"{summary['nonfinite']:,} samples of epoch {self.epoch} had a loss that is not finite; the selection keeps "
                "their earlier losses. Skip the optimizer's step where the loss is not finite, or the model becomes unusable."
            )
        entry = {
            "epoch": self.epoch,
            "planned": len(epoch.plan),
            "trained": epoch.trained,
            "steps": epoch.step,
            "observed": summary["observed"],
            "nonfinite": summary["nonfinite"],
            "mean_loss": summary["mean_loss"],
            "seconds": epoch.seconds,
            "planning_seconds": epoch.planning,
            "digest": summary["digest"],
            **mine,
        }
        self.history.append(entry)
        self.total_steps += epoch.step
        self.epoch += 1
        self.current, self._begun = None, True
        self._midway = self._rng = None
        if self.is_over:
            self._loader = None  # ends its worker processes
        self._store.report(entry, self._saving(state, None), self.communicator)
        return entry

    def checkpoint(self, state: Mapping[str, Any] | None = None) -> None:
        """Save a checkpoint within the epoch, so that a run that fails later resumes after this step.

        Also saved are the position in the epoch, the losses recorded so far and every rank's random
        generators. Every rank calls it at the same step, after :meth:`loss` and the optimizer's step. It
        costs as much as a ``ray.train.report``, so call it every few minutes, not every few steps. What is
        trained or planned afterwards does not depend on whether it was called.

        Parameters
        ----------
        state : mapping of str to object, optional
            Objects with ``state_dict``, under the same names as for :meth:`report`.

        Raises
        ------
        StateError
            Outside an epoch, before the loss of the current batch is recorded, and if the ranks are at
            different steps.
        """
        epoch = self._current("checkpoint")
        _check_named("checkpoint: The state", state)
        if not epoch.handed or epoch.noted != epoch.handed or epoch.noted % epoch.accumulate:
            raise StateError(
                f"session.checkpoint was called in epoch {self.epoch} before session.loss had recorded step {self.step}; "
                "call it inside the loop over session.loader, after the optimizer's step and before the next batch is requested."
            )
        where = self.epoch, self.step
        if (told := self.communicator.broadcast(where)) != where:
            raise StateError(
                f"session.checkpoint was called at (epoch, step) {where} on rank {self.rank}, but at {told} on rank 0; "
                "all ranks must call it at the same step."
            )
        self._flush(epoch)
        within = epoch.position()
        metrics = {"epoch": self.epoch, "step": self.step, "trained": within["trained"]}
        self._store.report(metrics, self._saving(state, within), self.communicator)

    def save(self, directory: Path) -> None:
        """Write the selection state after the finished epochs, for a framework that keeps the checkpoints.

        Every rank calls it.

        Parameters
        ----------
        directory : Path
            Where this rank writes its part.
        """
        self._saving(None, None)(directory)

    def losses(self) -> pa.Table:
        """Return the last loss of every sample, to find samples that the model does not learn.

        Call it between epochs or after the last one, on rank 0: in other processes without Ray there is no state.

        Returns
        -------
        pyarrow.Table
            ``sample_id`` (int64, ascending) and ``loss`` (float32); NaN for a sample without a finite loss so far.

        Examples
        --------
        >>> session = raysel.DynamicSelection.local(raysel.FullData(), 10, num_epochs=2).session()
        >>> session.losses().num_rows
        10
        """
        _, state = self._own.state(self._attempt)
        ids = np.arange(len(state), dtype=np.int64) if self._ids is None else self._ids
        return pa.table({ID: ids, "loss": state.loss})

    # ---- inside ------------------------------------------------------------------------------------------

    def _resume(self) -> tuple[str, Any]:
        """Start an attempt from the newest complete checkpoint; return its name, and the place of the checkpoint, if any."""

        def find() -> tuple[str, Any, tuple[int, int, dict[str, Any] | None] | None]:
            attempt = uuid.uuid4().hex
            found = restore_newest(self._store, self.run, self._own, attempt)
            if found is None:
                return attempt, None, None
            # Not the history, which grows: every rank reads it where it restores.
            place, about = found
            return attempt, place, (about["epoch"], about["total_steps"], about["within"])

        attempt, place, stands = self.communicator.of_zero(find)
        if stands is not None:
            self.epoch, self.total_steps, self._midway = stands
        if self.is_over and self.rank == 0:
            log.warning(
                f"The checkpoint is that of a finished run ({self.epoch} of {self.num_epochs} epochs, {self.total_steps} steps), "
                "so there is nothing left to train. Give a larger num_epochs to train further, or use another place for "
                "checkpoints to start again."
            )
        return attempt, place

    def _begin(self) -> None:
        began = time.perf_counter()
        plan = self._keeper.plan(self._attempt, self.epoch)
        if len(plan) == 0:
            raise StateError(
                f"The policy planned no samples for epoch {self.epoch}; a policy must plan at least one sample per epoch."
            )
        self.current = Epoch(
            number=self.epoch,
            plan=plan,
            ids=plan.slots if self._ids is None else self._ids[plan.slots],
            weights=plan.weights if self._weights is None else plan.weights * self._weights[plan.slots],
            run=self.run,
            rank=self.rank,
            world=self.world,
            total_steps=self.total_steps,
            began=began,
            midway=self._midway,
            rng=self._rng,
        )

    def _current(self, caller: str) -> Epoch:
        if self.current is None:
            raise StateError(
                f"session.{caller} was called outside an epoch; call it inside the loop over session.epochs()."
            )
        return self.current

    def _send(self, epoch: Epoch) -> None:
        if (noted := epoch.drain()) is not None:
            self._keeper.update(self._attempt, epoch.number, *noted)

    def _log(self, epoch: Epoch) -> float:
        """Write what the epoch trained; return the seconds that it took."""
        began = time.perf_counter()
        assert self._epoch_log is not None
        self._epoch_log.write(epoch, *self._own.staged(self._attempt, epoch.number))
        return time.perf_counter() - began

    def _flush(self, epoch: Epoch) -> None:
        """Return when the losses of every rank are in the keeper; every rank calls it."""
        self._send(epoch)
        self._keeper.drain()
        self.communicator.barrier()

    def _saving(self, objects: Mapping[str, Any] | None, within: dict[str, Any] | None) -> Save:
        """Return a function that writes this rank's part of a checkpoint into a directory."""
        about = {
            "run": self.run.identity(),
            "epoch": self.epoch,
            "total_steps": self.total_steps,
            "history": self.history,
            "within": within,
        }
        mine = (
            self.rank,
            self.world,
            about,
            objects or {},
            self._own,
            self._attempt,
            self._pieces,
        )
        return lambda directory: checkpoint.save(directory, *mine)


RESERVED = frozenset(
    [
        "epoch",
        "planned",
        "trained",
        "steps",
        "observed",
        "nonfinite",
        "mean_loss",
        "seconds",
        "planning_seconds",
        "digest",
    ]
)


def _check_named(where: str, value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} must be a dict of names and values, such as {{'model': model}}, got a {type(value).__name__}."
        )


def _checked(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's metrics as JSON holds them."""
    taken = sorted(RESERVED & set(metrics))
    if taken:
        raise ConfigError(
            f"report: The metric name '{taken[0]}' is reserved by the session; use another name."
        )
    plain = {}
    for name, value in metrics.items():
        single = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        plain[name] = value.item() if single else value
        try:
            json.dumps(plain[name])
        except (TypeError, ValueError):
            raise ConfigError(
                f"report: The metric '{name}' is a {type(value).__name__}, which JSON cannot hold; give a number."
            ) from None
    return plain
