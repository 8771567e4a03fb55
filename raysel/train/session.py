"""A worker's part of a run: epochs that resume, batches with ids, and losses recorded per sample."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from raysel.core.numbers import whole
from raysel.dynamic.plan import Plan, batches, step_sizes, steps
from raysel.errors import ConfigError, DataError, StateError
from raysel.train import checkpoint
from raysel.train.loader import Batch, EpochOrder, Rows, check_length, data_loader, rows_of, without_padding
from raysel.train.objects import load_state_dicts
from raysel.train.reduce import per_sample
from raysel.train.stream import EpochStream, Streams

if TYPE_CHECKING:
    from raysel.dynamic.keeper import Keeper, Keepers
    from raysel.train.planned import Board
    from raysel.train.processes import SharedKeeper
    from raysel.train.ranks import LocalRanks, TrainRanks

log = logging.getLogger("raysel")
_BUFFER = 65_536  # (id, loss) pairs a worker gathers before it sends them: a call costs more than its bytes


@dataclass(frozen=True)
class Run:
    """What is fixed for a complete run.

    Attributes
    ----------
    policy : dict
        The policy's parameters.
    samples : int
        Number of samples that the policy selects from.
    num_epochs, seed : int
        Number of epochs, and the seed of all draws.
    max_steps : int or None
        Greatest number of optimizer steps.
    pool_rows : int or None
        Length that the training data must have; None if it is not known.
    chosen : str
        Digest of the samples' ids and weights.
    """

    policy: dict[str, Any]
    samples: int
    num_epochs: int
    seed: int
    max_steps: int | None
    pool_rows: int | None
    chosen: str = ""


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
    plan : Plan or None
        The samples of the current epoch; None outside an epoch.
    step : int
        Steps taken in the current epoch.
    steps_per_epoch : int
        Steps of the current epoch, known before the first one; from :meth:`stream` the least possible number.
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
        ranks: TrainRanks | LocalRanks,
        ids: np.ndarray | None,
        weights: np.ndarray | None,
        board: Callable[[], Board | None] = lambda: None,
    ) -> None:
        self._run = run
        self._keeper = keeper
        self._ranks = ranks
        self._ids, self._weights = ids, weights
        self.rank, self.world = ranks.rank, ranks.world
        self.num_epochs = run.num_epochs
        self.epoch = 0
        self.step = 0
        self.steps_per_epoch = 0
        self.total_steps = 0
        self.history: list[dict[str, Any]] = []
        self.plan: Plan | None = None
        self._shuffle: bool | None = True  # None: Ray Data's order
        self._grouped: str | None = None  # digest of the lengths by which the epoch's order is grouped
        self._trained = 0  # samples of the current epoch in the steps taken, over all ranks
        self._within = 0.0  # how much of the current epoch is done
        self._accumulate = 1  # batches of an optimizer step on this rank
        # Of the last loader or stream; not the object itself: a cycle would be freed by the collector, in whatever order,
        # and torch then waits five seconds for each worker process of a DataLoader.
        self._ticket: object | None = None
        self._streams = Streams(self.rank, self.world, board)
        self._kept: tuple[tuple[Any, ...], EpochOrder, DataLoader] | None = None  # its arguments
        self._slots: list[np.ndarray] = []
        self._gathered = 0  # pairs in them
        self._losses: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._recorded: set[int] = set()  # the first slot of every batch of the epoch with recorded losses
        self._open = False
        self._planning = 0.0
        self._started = 0.0
        self._attempt = ""
        self._place: Any = None  # the checkpoint that this run resumes from
        self._midway: dict[str, Any] | None = None  # its position within an epoch
        self._skip = self._done = 0  # samples and steps of the epoch that earlier processes have trained
        self._handed = self._noted = 0  # batches returned, and those whose losses were recorded
        self._rng: Any = None  # to be set when the epoch is resumed
        self._resuming = self._resume()
        self._restored = not self._resuming
        self._begun = False  # whether this session has trained an epoch

    # ---- the epoch's life --------------------------------------------------------------------------------

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
        if not self._resuming:
            return False
        with self._ranks.opened(self._place) as directory:
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
        if self._open:
            raise StateError(
                f"Epoch {self.epoch} of this session ended before session.report was called, so the model may have been trained on "
                f"a part of it. {again}"
            )
        if self._begun and self._is_over():
            raise StateError(
                f"This session is over: its last epoch, {self.epoch - 1}, has been trained. {again}"
            )
        while not self._is_over():
            self._begin()
            yield self.epoch
            if self._open:
                raise StateError(
                    f"Epoch {self.epoch} ended without session.report(...), so its losses would be lost; call it in every epoch."
                )

    def _is_over(self) -> bool:
        return self.epoch >= self.num_epochs or self.total_steps >= (self._run.max_steps or np.inf)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]. Use it for learning-rate schedules, since epochs differ in length."""
        share = (self.epoch + self._within) / self.num_epochs
        if self._run.max_steps is not None:  # whichever of the two ends the run
            share = max(share, (self.total_steps + self.step) / self._run.max_steps)
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
    ) -> _EpochLoader:
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
        plan = self._current("loader")
        batch_size = whole("loader: batch_size", batch_size, 1)
        accumulate = whole("loader: accumulate", accumulate, 1)
        wanted = (batch_size, collate_fn, sorted(options.items(), key=lambda item: item[0]))
        if self._kept is None or self._kept[0][0] is not dataset or self._kept[0][1:] != wanted:
            self._kept = None  # whose worker processes end, before others start
            pool = self._run.pool_rows
            last = np.array([self._run.samples - 1])
            check_length(dataset, last if self._ids is None else self._ids, pool)
            order = EpochOrder()
            loader = data_loader(dataset, order, collate_fn, **options)
            self._kept = ((dataset, *wanted), order, loader)
        _, order, loader = self._kept
        began = time.perf_counter()
        shuffle, grouped = bool(shuffle), None
        if lengths is not None:
            ids = plan.slots if self._ids is None else self._ids[plan.slots]
            lengths = _lengths(lengths, len(dataset))[ids]
            grouped = hashlib.blake2b(lengths, digest_size=16).hexdigest()
        if self._midway and (self._midway["shuffle"], self._midway.get("grouped")) != (shuffle, grouped):
            begun = self._midway["shuffle"]
            how = "session.stream" if begun is None else f"shuffle={begun}"
            if begun is not None and self._midway.get("grouped") != grouped:
                how = "other lengths, or none" if grouped else "lengths"
            raise StateError(
                f"loader: Epoch {self.epoch} was started with {how} and resumes within the epoch; "
                f"use {how} again, because the order of the samples must not change within an epoch."
            )
        run = self._run
        positions = batches(
            len(plan),
            batch_size,
            self.rank,
            self.world,
            run.seed,
            self.epoch,
            shuffle,
            self._skip,
            accumulate,
            lengths,
        )
        positions = positions[: int(min(self._steps_left() * accumulate, len(positions)))]
        mine = without_padding(positions)
        rows = [rows_of(one, plan.slots, self._ids, self._weights_of(plan, one)) for one in mine]
        order.rows = rows
        self._planning += time.perf_counter() - began
        self._shuffle, self._grouped, self._accumulate = shuffle, grouped, accumulate
        self.steps_per_epoch = self._done + len(rows) // accumulate
        self._ticket = object()
        return _EpochLoader(self, loader, rows, plan, batch_size * accumulate * self.world, accumulate)

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
        plan = self._current("stream")
        batch_size = whole("stream: batch_size", batch_size, 1)
        if local_shuffle_buffer_size is not None:
            local_shuffle_buffer_size = whole(
                "stream: local_shuffle_buffer_size", local_shuffle_buffer_size, 1
            )
        least = self._done + steps(max(len(plan) - self._skip, 0), batch_size, self.world)
        self._ticket, self._shuffle, self._grouped, self._accumulate = object(), None, None, 1
        self.steps_per_epoch = int(min(self._done + self._steps_left(), least))
        return EpochStream(self, self._streams, plan, data, batch_size, local_shuffle_buffer_size, collate_fn)

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
        self._current("loss")
        if not isinstance(batch, Batch):
            raise DataError(
                f"loss: The first argument must be the Batch that session.loader or session.stream returned, got a "
                f"{type(batch).__name__}; give the batch itself, not batch.data."
            )
        values, counts = per_sample(losses, len(batch.slots), mask)
        weights, slots = batch.weights, batch.slots
        head = int(slots[0])
        if head in self._recorded:
            raise StateError(
                f"session.loss was called a second time for one batch of epoch {self.epoch} (its first sample_id is "
                f"{int(batch.ids[0])}). Call it once per batch; add further terms to the losses, or to the scalar that it "
                "returned."
            )
        if head >= 0:  # batches of padding alone are all alike
            self._recorded.add(head)
        if weights.device != values.device:
            weights = weights.to(values.device, non_blocking=True)
        noted = values.detach()
        # A copy, since the loop may write over its own.
        noted = noted.clone() if noted.dtype == torch.float32 else noted.to(torch.float32)
        if slots[-1] >= 0:
            weighted = weights * values
        else:  # with padding, which is neither noted nor differentiated, not even times zero, which keeps a NaN
            rows = torch.from_numpy(slots >= 0).to(values.device, non_blocking=True)
            weighted = torch.where(rows, weights * values, torch.zeros_like(values))
        self._slots.append(slots)
        self._losses.append((noted, counts))
        self._gathered += len(slots)
        if self._gathered >= _BUFFER:
            self._send()
        self._noted += 1
        return weighted.mean() if batch.share == len(slots) else weighted.sum() / batch.share

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
        plan = self._current("report")
        _check_named("report: The metrics", metrics)
        _check_named("report: The state", state)
        mine = _checked(metrics or {})
        if not self.step:
            raise StateError(
                f"No batch of the plan of epoch {self.epoch} was used, so the epoch cannot be reported. Iterate over "
                "session.loader(dataset, batch_size=...) or session.stream(...); a DataLoader of your own does not follow the plan."
            )
        self._send()
        began = time.perf_counter()
        self._keeper.drain()
        self._ranks.barrier()  # every rank's losses are in
        summary = self._ranks.of_zero(lambda: self._keeper.commit(self._attempt, self.epoch))
        self._planning += time.perf_counter() - began
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
            "planned": len(plan),
            "trained": self._trained,
            "steps": self.step,
            "observed": summary["observed"],
            "nonfinite": summary["nonfinite"],
            "mean_loss": summary["mean_loss"],
            "seconds": time.perf_counter() - self._started,
            "planning_seconds": self._planning,
            "digest": summary["digest"],
            **mine,
        }
        self.history.append(entry)
        self.total_steps += self.step
        self.epoch += 1
        self._open, self._begun, self.plan, self.step, self.steps_per_epoch = False, True, None, 0, 0
        self._trained, self._within = 0, 0.0
        self._midway = self._rng = None
        if self._is_over():
            self._kept = None
        self._ranks.report(entry, lambda directory: self._save(directory, state or {}, None))
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
        self._current("checkpoint")
        _check_named("checkpoint: The state", state)
        if self._ticket is None or self._noted != self._handed or self._noted % self._accumulate:
            raise StateError(
                f"session.checkpoint was called in epoch {self.epoch} before session.loss had recorded step {self.step}; "
                "call it inside the loop over session.loader, after the optimizer's step, and with no batch fetched ahead."
            )
        where = self.epoch, self.step
        if (told := self._ranks.broadcast(where)) != where:
            raise StateError(
                f"session.checkpoint was called at (epoch, step) {where} on rank {self.rank}, but at {told} on rank 0; "
                "all ranks must call it at the same step."
            )
        self._send()
        self._keeper.drain()
        self._ranks.barrier()  # every rank's losses are in; no rank continues before all have saved
        within = {
            "trained": self._trained,
            "share": self._within,
            "steps": self.step,
            "shuffle": self._shuffle,
            "grouped": self._grouped,
            "seconds": time.perf_counter() - self._started,
            "planning_seconds": self._planning,
        }
        metrics = {"epoch": self.epoch, "step": self.step, "trained": within["trained"]}
        self._ranks.report(metrics, lambda directory: self._save(directory, state or {}, within))

    # ---- inside ------------------------------------------------------------------------------------------

    def _resume(self) -> bool:
        """Start this attempt from the newest complete checkpoint; return whether there was one."""

        def find() -> tuple[str, Any, tuple[int, int, dict[str, Any] | None] | None]:
            attempt = uuid.uuid4().hex
            place, about = self._newest(attempt)
            if about is None:
                self._keeper.restore(attempt)
                return attempt, None, None
            # Not the history, which grows: every rank reads it where it restores.
            return attempt, place, (about["epoch"], about["total_steps"], about["within"])

        self._attempt, self._place, stands = self._ranks.of_zero(find)
        if stands is None:
            return False
        self.epoch, self.total_steps, self._midway = stands
        if self._is_over() and self.rank == 0:
            log.warning(
                f"The checkpoint is that of a finished run ({self.epoch} of {self.num_epochs} epochs, {self.total_steps} steps), "
                "so there is nothing left to train. Give a larger num_epochs to train further, or use another place for "
                "checkpoints to start again."
            )
        return True

    def _newest(self, attempt: str) -> tuple[Any, dict[str, Any] | None]:
        """Restore the selection state from the newest complete checkpoint; return it and its description."""
        from raysel.train.processes import SharedKeeper

        damaged: list[checkpoint.Damaged] = []
        for place in self._ranks.checkpoints():
            with self._ranks.opened(place) as directory:
                try:
                    about = checkpoint.verified(directory)
                except checkpoint.Damaged as error:
                    damaged.append(error)
                    continue
                mine = json.loads(
                    json.dumps(self._about())
                )  # as the checkpoint holds it: a tuple is a list there
                saved = about["run"]["num_epochs"]
                if saved < mine["num_epochs"] and about["within"]:
                    raise StateError(
                        f"The checkpoint {directory} lies within epoch {about['epoch']}, which was planned for a run of {saved} "
                        f"epochs. Finish this epoch with num_epochs={saved}, and then resume with num_epochs={mine['num_epochs']}."
                    )
                if saved > mine["num_epochs"]:
                    raise StateError(
                        f"The checkpoint {directory} belongs to a run of {saved} epochs, but this run has "
                        f"{mine['num_epochs']}; a run can be continued with more epochs, not with fewer."
                    )
                other = [key for key in mine if key != "num_epochs" and about["run"].get(key) != mine[key]]
                if other:
                    raise StateError(
                        f"The checkpoint {directory} belongs to another run: its {other[0]} is "
                        f"{about['run'].get(other[0])}, but that of this run is {mine[other[0]]}."
                    )
                # Rank 0 is alone here: of a keeper that the ranks call together, it takes the one inside.
                keeper = self._keeper.own if isinstance(self._keeper, SharedKeeper) else self._keeper
                epoch = about["epoch"]
                keeper.restore(attempt, epoch, checkpoint.StateFiles(directory, about))
                if about["within"]:
                    keeper.plan(attempt, epoch)
                    for slots, losses in checkpoint.staged(directory, about):
                        keeper.update(attempt, epoch, slots, losses)
                    keeper.drain()
            if damaged:
                step = f", step {about['within']['steps']}" if about["within"] else ""
                log.warning(
                    f"{damaged[0]} The run resumes from the checkpoint before the damaged one, which also holds the model, at epoch {epoch}{step}."
                )
                place = self._ranks.without_newer(place)
            return place, about
        if damaged:
            raise StateError(
                f"{damaged[0]} There is no earlier complete checkpoint from which the run could resume; "
                "remove the damaged checkpoint to train from the beginning."
            )
        return None, None

    def _about(self) -> dict[str, Any]:
        return {
            "policy": self._run.policy,
            "samples": self._run.samples,
            "num_epochs": self.num_epochs,
            "seed": self._run.seed,
            "max_steps": self._run.max_steps,
            "chosen": self._run.chosen,
        }

    def _begin(self) -> None:
        began = time.perf_counter()
        self.plan = self._keeper.plan(self._attempt, self.epoch)
        self._started, self._planning = began, time.perf_counter() - began
        if len(self.plan) == 0:
            raise StateError(
                f"The policy planned no samples for epoch {self.epoch}; a policy must plan at least one sample per epoch."
            )
        self._skip = self._done = 0
        if self._midway:
            self._skip, self._done = self._midway["trained"], self._midway["steps"]
            self._started -= self._midway["seconds"]
            self._planning += self._midway["planning_seconds"]
        self._slots, self._losses, self.step, self._open = [], [], self._done, True
        self._recorded = set()
        self._gathered = 0
        self._ticket, self._handed, self._noted, self._trained = None, 0, 0, self._skip
        self._within = self._midway["share"] if self._midway else 0.0

    def _current(self, caller: str) -> Plan:
        if not self._open or self.plan is None:
            raise StateError(
                f"session.{caller} was called outside an epoch; call it inside the loop over session.epochs()."
            )
        return self.plan

    def _claim(self, ticket: object, plan: Plan) -> None:
        """Raise StateError unless the batches with ``ticket`` may be iterated now, for the first time."""
        if self.plan is not plan or self._ticket is not ticket:
            raise StateError(
                "This loader was replaced by a later one, or its epoch is over; call session.loader again."
            )
        if self.step != self._done:
            raise StateError(
                f"The batches of epoch {self.epoch} were iterated before; each epoch can be iterated only once."
            )

    def _send(self) -> None:
        if not self._slots:
            return
        slots = np.concatenate(self._slots)
        losses = torch.cat([noted for noted, _ in self._losses]).cpu().numpy()  # the one wait for the device
        counts = slots >= 0  # what only pads is not noted, nor a sample in which nothing counted
        if any(mask is not None for _, mask in self._losses):
            masks = [torch.ones_like(n, dtype=torch.bool) if m is None else m for n, m in self._losses]
            counts &= torch.cat(masks).cpu().numpy()
        self._slots, self._losses, self._gathered = [], [], 0
        if counts.any():
            self._keeper.update(self._attempt, self.epoch, slots[counts], losses[counts])

    def _steps_left(self) -> float:
        max_steps = self._run.max_steps
        return np.inf if max_steps is None else max_steps - self.total_steps - self._done

    def _save(self, directory: Path, objects: Mapping[str, Any], within: dict[str, Any] | None) -> None:
        about = {
            "run": self._about(),
            "epoch": self.epoch,
            "total_steps": self.total_steps,
            "history": self.history,
            "within": within,
        }
        checkpoint.save(directory, self.rank, self.world, about, objects, self._keeper, self._attempt)

    def _weights_of(self, plan: Plan, positions: np.ndarray) -> np.ndarray:
        weights = plan.weights[positions]
        if self._weights is not None:
            weights = weights * self._weights[plan.slots[positions]]
        return np.where(positions >= 0, weights, np.float32(0.0))


class _EpochLoader:
    """The batches of one epoch on one rank; iteration counts the session's steps."""

    def __init__(
        self,
        session: Session,
        loader: DataLoader,
        rows: list[Rows],
        plan: Plan,
        step_rows: int,
        accumulate: int,
    ) -> None:
        self._session, self._loader, self._rows = session, loader, rows
        self._plan, self._step_rows, self._accumulate = plan, step_rows, accumulate
        self._sizes = step_sizes(len(plan) - session._skip, step_rows).tolist()
        self._ticket = session._ticket

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        session, step_rows, accumulate = self._session, self._step_rows, self._accumulate
        session._claim(self._ticket, self._plan)
        # Steps of an earlier process count in steps of today's size: with the same size, as what they were.
        before = session._skip / step_rows
        all_steps, lanes = before + len(self) // accumulate, session.world * accumulate
        batches = iter(self._loader)
        if session._rng is not None:
            # In mid-epoch: making the iterator drew what the epoch's start had drawn.
            checkpoint.set_rng(session._rng)
        for index, (ids, data) in enumerate(batches):
            rows, step = self._rows[index], index // accumulate
            if ids.numpy().tobytes() != rows.marks.tobytes():  # a tenth of array_equal's time
                raise StateError(
                    "The DataLoader returned batches in another order than requested; "
                    "do not set the option in_order of the DataLoader."
                )
            if rows.slots[-1] < 0:
                ids = torch.where(ids < 0, -1, ids)
            session.step, session._handed = session._done + step + 1, index + 1
            if index % accumulate == 0:
                session._trained += self._sizes[step]
            session._within = (before + step + 1) / all_steps
            share = self._sizes[step] / lanes
            yield Batch(data, ids, torch.from_numpy(rows.weights), rows.slots, share)


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


def _lengths(lengths: Any, rows: int) -> np.ndarray:
    """Return the lengths as an array; raise DataError unless there is one whole number per row."""
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != rows:
        raise DataError(
            f"loader: The lengths must be one whole number per sample of the dataset, {rows:,} in all, got "
            f"{found.dtype}{list(found.shape)}."
        )
    return found.astype(np.int64)
