"""DynamicSelection: the handle that owns a run's selection state and gives each worker its session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysel.dynamic.keeper import Keeper, Keepers
from raysel.dynamic.plan import Policy
from raysel.dynamic.shards import cut, spans
from raysel.dynamic.state import whole
from raysel.errors import StateError
from raysel.selection import Selection
from raysel.train.processes import ProcessRanks, SharedKeeper, ranks
from raysel.train.ranks import LocalRanks, TrainRanks
from raysel.train.session import Run, Session

if TYPE_CHECKING:
    from ray.data import Dataset


class DynamicSelection:
    """Dynamic selection of training samples by ``policy``, for one run of Ray Train.

    policy: which samples an epoch trains on: InfoBatch, FullData, RoundRobin, ... or your own.
    chosen: the samples to choose among: a Selection, or the number of samples n for ids 0..n-1.
    num_epochs: epochs of the run; policies plan with it. max_steps: stop after so many optimiser steps
        (the last epoch is cut, and progress counts towards it).
    seed: every draw of the run hangs on it.
    shards: actors that share the state, each a range of the samples, cut at multiples of 65,536: fewer where there are
        not so many. One is enough to some 10**8 samples; the plans are the same for any number, also when a
        checkpoint of another number is continued.

    Use it as a context manager around ``trainer.fit()``: on entry it starts the actors that keep the state,
    on exit it removes them. Hand it to the workers in ``train_loop_config`` and call :meth:`session` there.
    """

    def __init__(
        self,
        policy: Policy,
        chosen: Selection | int,
        *,
        num_epochs: int,
        seed: int = 0,
        max_steps: int | None = None,
        shards: int = 1,
    ) -> None:
        if max_steps is not None:
            max_steps = whole("max_steps", max_steps, 1)
        self._ids: Any = None  # None: ids are slots
        self._weights: Any = None
        self._chosen = chosen if isinstance(chosen, Selection) else None  # does not travel to the workers
        if isinstance(chosen, Selection):
            samples, pool_rows, digest = len(chosen), chosen.info.get("pool_rows"), chosen.digest()
            self._ids, self._weights = chosen.ids, chosen.weights
        else:
            samples = pool_rows = whole("the number of samples", chosen, 1)
            digest = ""
        align = getattr(policy, "for_ids", None)  # what holds scores of samples by id, as RepDiv does
        if align is not None:
            policy = align(samples if self._ids is None else self._ids)
        Keeper(policy, samples, num_epochs, seed)  # raises here, not in an actor, for what cannot be
        for start, stop in spans(samples, shards):
            cut(policy, start, stop, samples)
        self.run = Run(policy.parameters(), samples, num_epochs, seed, max_steps, pool_rows, digest)
        self._policy, self._shards = policy, shards
        self._keeper: Any = None
        self._board: Any = None  # where the tasks that read look up the epoch's plan
        self._local = False
        self._directory: Path | None = None

    @classmethod
    def local(
        cls,
        policy: Policy,
        chosen: Selection | int,
        *,
        checkpoints: str | Path | None = None,
        **parameters: Any,
    ) -> DynamicSelection:
        """The same without a cluster and Ray Train: in one plain PyTorch process, or in several.

        Processes are those that torch.distributed has joined when :meth:`session` is called (torchrun, Accelerate,
        ...); each makes the same selection, and rank 0 keeps the state.
        checkpoints: a directory, shared by all, where ``session.report`` keeps the last checkpoint, and from which a
        new process goes on; None keeps nothing.
        """
        dynamic = cls(policy, chosen, **parameters)
        run = dynamic.run
        parts = spans(run.samples, dynamic._shards)
        keepers = [
            Keeper(cut(dynamic._policy, a, b, run.samples), b - a, run.num_epochs, run.seed, a, run.samples)
            for a, b in parts
        ]
        dynamic._keeper = keepers[0] if len(keepers) == 1 else Keepers(keepers, parts)
        dynamic._local = True
        dynamic._directory = None if checkpoints is None else Path(checkpoints)
        return dynamic

    def __enter__(self) -> DynamicSelection:
        if self._keeper is None:
            import ray

            from raysel.dynamic.service import start_keepers

            run = self.run
            self._keeper = start_keepers(self._policy, run.samples, run.num_epochs, run.seed, self._shards)
            if self._ids is not None and isinstance(self._ids, np.ndarray):
                # Once into the object store: the handle travels to every worker.
                self._ids, self._weights = ray.put(self._ids), ray.put(self._weights)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        if not self._local and self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers never plan, so the policy, which may hold an array of all samples, does not travel to them.
        started = {"_policy": None} if self._keeper is not None else {}
        return {**self.__dict__, "_chosen": None, **started}

    def planned(self, dataset: Dataset) -> Dataset:
        """``dataset`` (with ``sample_id``) without the rows that the epoch's plan leaves out: for ``session.stream``.

        Put the costly steps behind it: rows are left out right after they are read, so that nothing decodes, transforms
        or sends them. Lazy; each epoch runs it again, with that epoch's plan, and outside an epoch it
        cannot be run. One per run. DataError if the selection was made from other rows.
        """
        self._check_started()
        from raysel.train.planned import Board, planned

        if self._chosen is not None:
            self._chosen.check_pool(dataset)
        if self._board is None:
            self._board = Board()
        return planned(dataset, self._board, self._ids, self.run.samples)

    def session(self) -> Session:
        """This worker's part of the run; call it in the train loop."""
        self._check_started()
        return self._session(ranks(self._directory) if self._local else TrainRanks())

    def driven(self, found: Path | None = None) -> Session:
        """The session under a framework that runs the epochs and keeps the checkpoints; adapters call it.

        found: the directory to go on from, None to begin. The processes are those that torch.distributed has joined.
        """
        self._check_started()
        return self._session(ranks(None, found))

    def _check_started(self) -> None:
        if self._keeper is None:
            raise StateError(
                "The dynamic selection has not been started; use 'with raysel.DynamicSelection(...) as dynamic:' "
                "around trainer.fit(), or DynamicSelection.local(...) without Ray Train."
            )

    def _session(self, processes: TrainRanks | LocalRanks) -> Session:
        ids, weights, keeper = self._ids, self._weights, self._keeper
        if self._local and isinstance(processes, ProcessRanks):
            keeper = SharedKeeper(keeper, processes)
        if not self._local:
            import ray

            if isinstance(ids, ray.ObjectRef):
                ids, weights = ray.get([ids, weights])
        return Session(self.run, keeper, processes, ids, weights, lambda: self._board)

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        """Committed epochs and the last one's summary, for a driver that watches while workers train."""
        return (0, None) if self._keeper is None or self._local else self._keeper.progress()
