"""Find raysel's own error inside the errors that Ray wraps around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raysel.errors import RayselError, RunError, reason_of


def own_error(error: BaseException) -> RayselError | None:
    """Return the error that raysel raised in a task, an actor or a Ray Train worker.

    Parameters
    ----------
    error : BaseException
        What Ray raised. Its causes are searched, and the failures of the workers of Ray Train's
        ``TrainingFailedError``.

    Returns
    -------
    RayselError or None
        The error itself, with its first line as the message. None if raysel raised none.
    """
    for item in _causes(error):
        # Ray makes a class that is both its own and ours, whose text holds a traceback; its cause is the real one.
        if isinstance(item, RayselError) and not hasattr(item, "cause"):
            lines = str(item).splitlines()  # Ray Data adds lines of advice to what it passes on
            return item if len(lines) < 2 else type(item)(lines[0])
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what Ray wrapped in it, the nearest first."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        queue += [getattr(item, "cause", None), item.__cause__]
        queue += [*getattr(item, "worker_failures", {}).values(), getattr(item, "controller_failure", None)]


def is_lost(error: BaseException) -> bool:
    """Return whether Ray raised it since a process, a node or an object of the cluster was lost; the work can be repeated."""
    return _loss(error) is not None


def _loss(error: BaseException) -> BaseException | None:
    from ray import exceptions as of_ray

    kinds = (
        of_ray.RayActorError,
        of_ray.ObjectLostError,
        of_ray.WorkerCrashedError,
        of_ray.OutOfMemoryError,
        of_ray.NodeDiedError,
        of_ray.LocalRayletDiedError,
        of_ray.TaskUnschedulableError,
        of_ray.ActorUnschedulableError,
    )
    return next((item for item in _causes(error) if isinstance(item, kinds)), None)


@contextmanager
def name_losses(what: str = "") -> Iterator[None]:
    """Raise RunError if work was lost with a process, a node or a session of Ray, or Ray waited too long for nodes.

    Parameters
    ----------
    what : str, optional
        The step of a workflow, which the message begins with. What a step has finished is reused.

    Raises
    ------
    RunError
        In place of an error of Ray that says so, or of this function without a step.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RayselError) and not str(error).startswith((_LOST, _LATE)):
            raise
        if any(_ENDED in str(item) for item in _causes(error) if isinstance(item, ValueError)):
            raise RunError(
                f"{what}{': ' if what else ''}The rows belong to a Ray session that has ended; read them again."
            ) from error
        if (lost := _loss(error)) is not None:
            text = f"{_LOST} ({reason_of(lost)})"
        else:
            late = next((item for item in _causes(error) if type(item).__name__ in _WAITED), None)
            if late is None:
                raise
            text = f"{_LATE} ({reason_of(late)})"
        again = "run the same command again: finished results are reused" if what else "try again"
        raise RunError(
            f"{what}{': ' if what else ''}{text}. Check the nodes and their memory, and {again}."
        ) from error


_ENDED = "Ray object whose owner is unknown"  # of a Dataset that was made before ray.shutdown()
_LOST = "A process or node of the cluster was lost"
_LATE = "Ray waited too long for the nodes that it needs"
_WAITED = (  # of Ray Data and Ray Train; the second has no public name
    "ExecutionTimeoutError",
    "WorkerGroupStartupTimeoutError",
    "WorkerGroupStartupFailedError",
)


@contextmanager
def unwrap_errors() -> Iterator[None]:
    """Raise raysel's own errors as they were raised on the cluster; every other error passes unchanged.

    Raises
    ------
    RayselError
        In place of an error of Ray that was caused by it.

    Examples
    --------
    >>> import ray
    >>> @ray.remote
    ... def fail():
    ...     raise raysel.errors.DataError("Column 'x' is missing.")
    >>> with unwrap_errors():
    ...     ray.get(fail.remote())   # one line in place of Ray's traceback
    Traceback (most recent call last):
        ...
    raysel.errors.DataError: Column 'x' is missing.
    """
    try:
        yield
    except Exception as error:
        import ray.exceptions  # here, so that the command line can use own_error without loading Ray

        of_train = hasattr(error, "worker_failures") or hasattr(error, "controller_failure")
        if not of_train and not isinstance(error, ray.exceptions.RayError):
            raise
        if (ours := own_error(error)) is None:
            raise
        raise ours from None
