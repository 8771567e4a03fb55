"""Find raysel's own error inside the errors that Ray wraps around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raysel.errors import RayselError


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
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        item = queue.pop(0)
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        # Ray makes a class that is both its own and ours, whose text holds a traceback; its cause is the real one.
        if isinstance(item, RayselError) and not hasattr(item, "cause"):
            lines = str(item).splitlines()  # Ray Data adds lines of advice to what it passes on
            return item if len(lines) < 2 else type(item)(lines[0])
        queue += [getattr(item, "cause", None), item.__cause__]
        queue += [*getattr(item, "worker_failures", {}).values(), getattr(item, "controller_failure", None)]
    return None


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
