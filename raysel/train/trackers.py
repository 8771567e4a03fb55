"""Trackers: rank 0 writes loss, metrics and samples of every epoch for TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from raysel.core import storage
from raysel.errors import ConfigError, RunError, reason_of
from raysel.train.session import RESERVED, Session

Log = Callable[[Mapping[str, float], int], None]
"""Writes values by name, for an epoch."""


@dataclass(frozen=True)
class Training:
    """The training that is tracked.

    Attributes
    ----------
    workflow, arm : str
        Names of the workflow and of the arm.
    folder, run : Path
        Folder of the arm's step, and the run directory. The name of the folder identifies the training.
    pool, rows : int
        Number of rows of the pool, and of those that the policy selects from.
    """

    workflow: str
    arm: str
    folder: Path
    run: Path
    pool: int
    rows: int


class Tracker(Protocol):
    """Where the course of a training is written. A class of your own has this method."""

    def open(self, training: Training) -> AbstractContextManager[Log]:
        """Return a context with the function that writes values.

        What an earlier attempt of the same training wrote is removed: all its epochs are written again.
        """


@dataclass(frozen=True)
class TensorBoard:
    """Write event files into the folder ``tensorboard`` of the arm's step. Show them with ``tensorboard --logdir RUN``."""

    needs: ClassVar[str] = "tensorboardX"

    @contextmanager
    def open(self, training: Training) -> Iterator[Log]:
        """Return a context with the function that writes values."""
        from tensorboardX import SummaryWriter

        folder = training.folder / "tensorboard"
        storage.remove(folder)
        with SummaryWriter(str(folder)) as writer:

            def log(values: Mapping[str, float], epoch: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)
                writer.flush()

            yield log


@dataclass(frozen=True)
class MLflow:
    """Write a run of MLflow per arm, in an experiment with the name of the workflow.

    Parameters
    ----------
    uri : str, optional
        Tracking server or store. By default, it is the database ``mlflow.db`` of the run directory, which ``mlflow ui
        --backend-store-uri sqlite:///RUN/mlflow.db`` shows.
    """

    uri: str | None = None
    needs: ClassVar[str] = "mlflow"

    @contextmanager
    def open(self, training: Training) -> Iterator[Log]:
        """Return a context with the function that writes values."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.uri or f"sqlite:///{training.run.resolve() / 'mlflow.db'}")
        found = client.get_experiment_by_name(training.workflow)
        experiment = found.experiment_id if found else client.create_experiment(training.workflow)
        mark = training.folder.name
        for earlier in client.search_runs([experiment], f"tags.`raysel.step` = '{mark}'"):
            client.delete_run(earlier.info.run_id)
        tags = {"raysel.step": mark, "mlflow.runName": training.arm}
        made = client.create_run(experiment, tags=tags).info.run_id

        def log(values: Mapping[str, float], epoch: int) -> None:
            for name, value in values.items():
                client.log_metric(made, name, value, step=epoch)

        yield log
        client.set_terminated(made)


@dataclass(frozen=True)
class WandB:
    """Write a run of Weights & Biases per arm.

    Parameters
    ----------
    mode : {"offline", "online"}
        Whether the run is written to the folder ``wandb`` of the arm's step, for ``wandb sync``, or also sent to the server.
    project : str, optional
        Name of the project. By default, it is the name of the workflow.
    """

    mode: Literal["offline", "online"] = "offline"
    project: str | None = None
    needs: ClassVar[str] = "wandb"

    @contextmanager
    def open(self, training: Training) -> Iterator[Log]:
        """Return a context with the function that writes values."""
        import wandb

        storage.remove(training.folder / "wandb")
        run = wandb.init(
            project=self.project or training.workflow,
            name=training.arm,
            id=training.folder.name,
            dir=str(training.folder),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
        yield lambda values, epoch: run.log(dict(values), step=epoch)
        run.finish()


def check_installed(tracker: Any, name: str) -> None:
    """Raise ConfigError if the package of a built-in tracker is missing."""
    needs = getattr(tracker, "needs", None)
    if needs is not None and importlib.util.find_spec(needs) is None:
        raise ConfigError(
            f"train.track: The tracker {name} needs the package {needs}; install it with pip install {needs}."
        )
    if not callable(getattr(tracker, "open", None)):
        raise ConfigError(f"train.track: {name} has no method 'open(training)', so it is not a tracker.")
    try:
        inspect.signature(tracker.open).bind(None)
    except TypeError:
        raise ConfigError(
            f"train.track: The method 'open' of {name} cannot be called with one argument, the training."
        ) from None


class Tracking:
    """What the training loop writes to the trackers, on rank 0; without trackers nothing.

    Parameters
    ----------
    trackers : sequence of Tracker
        The trackers.
    training : Training
        The training.
    session : Session
        Its session, restored. The epochs of its history are written first.
    """

    def __init__(self, trackers: Sequence[Tracker], training: Training | None, session: Session) -> None:
        self._training, self._session = training, session
        self._open = ExitStack()
        self._logs: list[tuple[str, Log]] = []
        for tracker in trackers if session.rank == 0 else ():
            name = type(tracker).__name__
            assert training is not None  # is given together with trackers
            with _naming(name):
                self._logs.append((name, self._open.enter_context(tracker.open(training))))
        for entry in session.history:
            self.epoch(entry)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Write an entry of the session's history."""
        if self._training is None:
            return
        trained = entry["trained"]
        self._write(
            {
                "loss": entry["mean_loss"],
                "planned": entry["planned"],
                "trained": trained,
                "skipped": self._training.rows - trained,
                "saved": 1 - trained / self._training.pool,
                "seconds": entry["seconds"],
                **{f"validation/{name}": value for name, value in entry.items() if name not in _OWN},
            },
            entry["epoch"],
        )

    def close(self, metrics: Mapping[str, float | None]) -> None:
        """Write the metrics on the test rows, and close the trackers."""
        last = self._session.history[-1]["epoch"] if self._session.history else 0
        self._write({f"test/{name}": value for name, value in metrics.items()}, last)
        with _naming("closing"):
            self._open.close()

    def _write(self, values: Mapping[str, float | None], epoch: int) -> None:
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        for name, log in self._logs:
            with _naming(name):
                log(numbers, epoch)


_OWN = RESERVED | {"evaluation_seconds"}


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what a tracker raises into a RunError that names it."""
    try:
        yield
    except Exception as error:  # a library, a server or code of the user's own
        raise RunError(
            f"train.track: The tracker {name} raised {type(error).__name__} ({reason_of(error)}). Fix the cause, or remove the "
            "tracker from train.track."
        ) from error
