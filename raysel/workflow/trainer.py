"""A run of Ray Train with the workers of a workflow, which ends at the first error that a repetition would only repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

import raysel
from raysel.cluster.errors import own_error, unwrap_errors
from raysel.cluster.wait import STARTS
from raysel.errors import ConfigError, DataError
from raysel.train.settings import Train


class FinalErrors(UserCallback):
    """End the run if a worker finds an error of the data or of the configuration; Ray Train restarts after any other."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error, which Ray Train does not repeat in this place."""
        for raised in worker_exceptions.values():
            error = own_error(raised)
            if isinstance(error, (DataError, ConfigError)):
                raise error


def train_on_workers(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    settings: Train,
    *,
    max_failures: int,
    datasets: dict[str, Any] | None = None,
    **run: Any,
) -> Any:
    """Run a training loop on Ray Train; return what it returns on rank 0.

    Parameters
    ----------
    loop, config
        The training loop and its argument.
    settings : Train
        Number of workers and their resources.
    max_failures : int
        How many times the workers restart.
    datasets : dict, optional
        Ray Datasets that are streamed.
    **run
        Arguments of RunConfig.

    Raises
    ------
    RayselError
        What a worker raised; every other error as Ray Train raises it.
    """
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    workers = settings.workers
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        datasets=datasets,
        dataset_config=raysel.WholeRows(),
        scaling_config=ScalingConfig(
            num_workers=workers if isinstance(workers, int) else (workers[0], workers[1]),
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS),
            callbacks=[FinalErrors()],
            **run,
        ),
    )
    with unwrap_errors():
        return trainer.fit().return_value
