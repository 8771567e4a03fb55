"""DynamicSelection: owns the selection state of a run and gives each worker its session."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysel.core.numbers import python_numbers, whole
from raysel.core.storage import local_output
from raysel.dynamic.check import check_policy
from raysel.dynamic.keeper import Keeper, Keepers
from raysel.dynamic.plan import Policy
from raysel.dynamic.shards import cut, spans
from raysel.errors import ConfigError, StateError
from raysel.selection import Selection
from raysel.train.checkpoint_store import CheckpointStore, FolderStore, TrainStore
from raysel.train.communicator import Communicator, TorchCommunicator, TrainCommunicator, joined
from raysel.train.run import Run
from raysel.train.session import Session
from raysel.train.shared_keeper import SharedKeeper

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.train.epoch_log import EpochLog

log = logging.getLogger("raysel")


class DynamicSelection:
    """Select the samples of each epoch by a policy, for one training run.

    Use it as a context manager around ``trainer.fit()``: it starts the actors that keep the state, and
    removes them at the end. Pass it to the workers in ``train_loop_config`` and call :meth:`session` there.
    Without Ray Train, use :meth:`local`.

    Parameters
    ----------
    policy : Policy
        Which samples an epoch trains on: InfoBatch, RepDiv, RoundRobin, ... or one of your own.
    chosen : Selection or int
        The samples to select from: a Selection, or the number of samples n for the ids 0..n-1.
    num_epochs : int
        Number of epochs of the run. A run can be resumed with a larger number: its finished epochs do not change,
        and the other epochs are planned as in a run with the larger number.
    seed : int
        Seed of every random draw of the run.
    max_steps : int, optional
        Stop after this number of optimizer steps, within an epoch if necessary. The progress of a session is
        then the share of the steps or the share of the epochs that are done, whichever is larger.
    shards : int
        Number of actors that share the state. Each keeps a range of samples that begins at a multiple of
        65,536, so there are fewer actors if there are too few samples. One actor is enough for about 10**8
        samples. The plans are the same for any number of shards, also if a checkpoint is resumed with another
        number.
    checkpoints : path, optional
        Folder, shared by all workers, in which ``session.report`` keeps the last two checkpoints, and from which the
        training resumes. By default, Ray Train keeps the checkpoints, and a run of Ray Train can hold only one training.

    Raises
    ------
    ConfigError
        For parameters that the policy, the samples or the number of epochs do not allow.
    DataError
        If the policy has no scores for some samples.

    Examples
    --------
    In a training function of Ray Train, with ``dynamic`` from ``train_loop_config``, the loop is the same as
    here:

    >>> dynamic = raysel.DynamicSelection.local(raysel.RandomSubset(ratio=0.5), 10, num_epochs=2)
    >>> session = dynamic.session()
    >>> data = torch.utils.data.TensorDataset(torch.randn(10, 4), torch.arange(10) % 2)
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for epoch in session.epochs():
    ...     for batch in session.loader(data, batch_size=4):
    ...         inputs, labels = batch.data
    ...         losses = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    ...         optimizer.zero_grad()
    ...         session.loss(batch, losses).backward()
    ...         optimizer.step()
    ...     entry = session.report(state={"model": model, "optimizer": optimizer})
    >>> entry["trained"]
    5
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
        checkpoints: str | Path | None = None,
    ) -> None:
        num_epochs, seed = whole("num_epochs", num_epochs, 1), whole("seed", seed, 0)
        shards = whole("shards", shards, 1)
        if max_steps is not None:
            max_steps = whole("max_steps", max_steps, 1)
        self._ids: Any = None  # None: ids are slots
        self._weights: Any = None
        self._chosen = chosen if isinstance(chosen, Selection) else None  # does not travel to the workers
        if isinstance(chosen, Selection):
            samples, pool_rows, digest = len(chosen), chosen.info.get("pool_rows"), chosen.digest()
            self._ids, self._weights = chosen.ids, chosen.weights
        else:
            if not isinstance(chosen, (int, np.integer)):
                raise ConfigError(_not_chosen(chosen))
            samples = pool_rows = whole("The number of samples", chosen, 1)
            digest = ""
        align = getattr(policy, "for_ids", None)  # what holds scores of samples by id, as RepDiv does
        if align is not None and not isinstance(policy, type):
            policy = align(samples if self._ids is None else self._ids)
        check_policy(policy, samples, num_epochs, seed)
        Keeper(policy, samples, num_epochs, seed)  # raises here, not in an actor, for what cannot be
        for start, stop in spans(samples, shards):
            cut(policy, start, stop, samples)
        self.run = Run(
            python_numbers(policy.parameters()), samples, num_epochs, seed, max_steps, pool_rows, digest
        )
        self._policy, self._shards = policy, shards
        self._keeper: Any = None
        # The ids and weights in the object store, while this is started: every worker gets the references.
        self._shared: tuple[Any, Any] | None = None
        # Where the tasks that read look up the epoch's plan, if any read. Sessions hold the list and not this object, which
        # holds its session: a cycle would keep the worker processes of a DataLoader.
        self._boards: list[Any] = []
        self._local = False
        self._directory = None if checkpoints is None else local_output(checkpoints)
        self.made: Session | None = None
        """The last session of this process."""
        self.epoch_log: EpochLog | None = None
        """Where sessions of this process write what every epoch trained."""

    @classmethod
    def local(
        cls,
        policy: Policy,
        chosen: Selection | int,
        *,
        checkpoints: str | Path | None = None,
        **parameters: Any,
    ) -> DynamicSelection:
        """Make a dynamic selection without a cluster or Ray Train, in one or more PyTorch processes.

        The processes are those that torch.distributed has joined when :meth:`session` is called (torchrun,
        Accelerate, ...). Each makes the same selection, and rank 0 keeps the state.

        Parameters
        ----------
        policy : Policy
            As for the class.
        chosen : Selection or int
            As for the class.
        checkpoints : path, optional
            Directory, shared by all processes, in which ``session.report`` keeps the last checkpoint, and
            from which a new process resumes. Default: no checkpoints.
        **parameters
            ``num_epochs``, ``seed``, ``max_steps`` and ``shards``, as for the class.

        Returns
        -------
        DynamicSelection
            A dynamic selection that is already started.

        Raises
        ------
        ConfigError, DataError
            As for the class.

        Examples
        --------
        >>> policy = raysel.InfoBatch()
        >>> dynamic = raysel.DynamicSelection.local(policy, 10, num_epochs=20, checkpoints="checkpoints")
        >>> dynamic.session().num_epochs
        20
        """
        dynamic = cls(policy, chosen, checkpoints=checkpoints, **parameters)
        run = dynamic.run
        parts = spans(run.samples, dynamic._shards)
        keepers = [
            Keeper(cut(dynamic._policy, a, b, run.samples), b - a, run.num_epochs, run.seed, a, run.samples)
            for a, b in parts
        ]
        dynamic._keeper = keepers[0] if len(keepers) == 1 else Keepers(keepers, parts)
        dynamic._local = True
        return dynamic

    def __enter__(self) -> DynamicSelection:
        if self._keeper is None:
            import ray

            from raysel.dynamic.service import start_keepers

            run = self.run
            # Before the actors, which would be left behind if this failed.
            self._shared = None if self._ids is None else (ray.put(self._ids), ray.put(self._weights))
            self._keeper = start_keepers(self._policy, run.samples, run.num_epochs, run.seed, self._shards)
        return self

    def __exit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        keeper = None if self._local else self._keeper
        if keeper is not None:
            self._keeper = self._shared = None
        started = [*self._boards, *([] if keeper is None else [keeper])]
        self._boards.clear()
        for actors in started:
            try:
                actors.close()
            except Exception as error:
                if raised is None:
                    raise
                # What the caller raised is what went wrong, such as a cluster that is gone.
                log.warning(
                    f"The Ray actors that hold the recorded losses could not be removed ({error}). If the cluster still runs, 'raysel cleanup' removes them."
                )

    def __getstate__(self) -> dict[str, Any]:
        # Workers never plan, so the policy, which may hold an array of all samples, does not travel to them.
        started = {"_policy": None} if self._keeper is not None else {}
        if self._shared is not None:
            started |= {"_ids": None, "_weights": None}
        return {**self.__dict__, "_chosen": None, "made": None, **started}

    def planned(self, dataset: Dataset) -> Dataset:
        """Return ``dataset`` without the rows that the epoch's plan leaves out, for ``session.stream``.

        Rows are left out directly after they are read. Apply expensive transformations to the result, so that they
        do not process rows that are not trained on. The result is lazy. Each epoch executes it again with the plan
        of this epoch; outside an epoch, it cannot be executed. Call this method once per run.

        Parameters
        ----------
        dataset : ray.data.Dataset
            Rows with ``sample_id``.

        Returns
        -------
        ray.data.Dataset
            The planned rows of the current epoch.

        Raises
        ------
        DataError
            If the selection was made from other rows.
        StateError
            If the dynamic selection has not been started.

        Examples
        --------
        >>> with raysel.DynamicSelection.local(raysel.RandomSubset(ratio=0.5), 10, num_epochs=1) as dynamic:
        ...     planned = dynamic.planned(rows)   # rows: 10 rows
        ...     session = dynamic.session()
        ...     for epoch in session.epochs():
        ...         for batch in session.stream(planned, batch_size=4):
        ...             loss = session.loss(batch, torch.ones(len(batch.ids)))
        ...         entry = session.report()
        >>> entry["trained"]
        5
        """
        self._check_started()
        from raysel.train.planned import Board, planned

        if self._chosen is not None:
            self._chosen.check_pool(dataset)
        if not self._boards:
            self._boards.append(Board())
        ids = self._ids if self._shared is None else self._shared[0]
        return planned(dataset, self._boards[0], ids, self.run.samples)

    def session(self) -> Session:
        """Return this worker's session; call it in the training function.

        Returns
        -------
        Session
            A session that begins at the newest complete checkpoint, if there is one.

        Raises
        ------
        StateError
            If the dynamic selection has not been started, or the checkpoint belongs to another run.

        Examples
        --------
        >>> session = raysel.DynamicSelection.local(raysel.InfoBatch(), 10, num_epochs=20).session()
        >>> session.rank, session.world
        (0, 1)
        """
        self._check_started()
        communicator = joined() if self._local else TrainCommunicator()
        if self._directory is not None:
            return self._session(communicator, FolderStore(self._directory))
        return self._session(communicator, CheckpointStore() if self._local else TrainStore())

    def driven(self, found: Path | None = None) -> Session:
        """Return the session for a framework that runs the epochs and keeps the checkpoints.

        Adapters call it. The processes are those that torch.distributed has joined.

        Parameters
        ----------
        found : path, optional
            Directory of the checkpoint to resume from. Default: begin the run.

        Returns
        -------
        Session
            This process's session.

        Raises
        ------
        StateError
            If the dynamic selection has not been started, or the checkpoint belongs to another run.

        Examples
        --------
        >>> session = raysel.DynamicSelection.local(raysel.InfoBatch(), 10, num_epochs=20).driven()
        >>> session.epoch
        0
        """
        self._check_started()
        return self._session(joined(), CheckpointStore(found))

    def _check_started(self) -> None:
        if self._keeper is None:
            raise StateError(
                "The dynamic selection has not been started; use 'with raysel.DynamicSelection(...) as dynamic:' "
                "around trainer.fit(), or DynamicSelection.local(...) without Ray Train."
            )

    def _session(self, communicator: Communicator, store: CheckpointStore) -> Session:
        ids, weights, keeper = self._ids, self._weights, self._keeper
        if self._shared is not None:
            import ray

            ids, weights = ray.get(list(self._shared))
        if self._local and isinstance(communicator, TorchCommunicator):
            keeper = SharedKeeper(keeper, communicator)
        boards = self._boards
        self.made = Session(
            self.run,
            keeper,
            communicator,
            store,
            ids,
            weights,
            lambda: boards[0] if boards else None,
            self.epoch_log,
        )
        return self.made

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        """Return the progress of the run, for a driver to show while workers train.

        Returns
        -------
        (int, dict or None)
            The number of finished epochs, and the summary of the last one.

        Examples
        --------
        >>> raysel.DynamicSelection(raysel.InfoBatch(), 10, num_epochs=20).progress()   # before it is started
        (0, None)
        """
        return (0, None) if self._keeper is None or self._local else self._keeper.progress()


def _not_chosen(value: object) -> str:
    """Return what to write instead of ``value``, which is neither a Selection nor a number of samples."""
    found = f"chosen must be a Selection or the number of samples, got a {type(value).__name__}"
    if (
        isinstance(value, (list, tuple, set, range, pa.Array, pa.ChunkedArray))
        or getattr(value, "ndim", 0) == 1
    ):
        return f"{found}; make a Selection of ids with raysel.Selection.of(ids, info={{'pool_rows': len(dataset)}})."
    if type(value).__module__.startswith("ray."):
        return f"{found}; give rows.count()."
    return f"{found}; give len(dataset)."
