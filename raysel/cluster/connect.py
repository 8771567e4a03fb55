"""Join a Ray cluster, or start one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from raysel.errors import ResourceError

_TOKEN_FILE = Path("~/.ray/auth_token")  # where Ray itself keeps and looks for it


def connect(address: str | None = None) -> None:
    """Join the Ray cluster at ``address``, or start one on this machine; nothing if Ray is up already.

    Sets what has to be set before Ray starts: no usage statistics, no re-running of workers under uv, a short poll
    interval of Ray Train's controller, since a report waits for it, and token authentication where a token is found.

    Parameters
    ----------
    address : str, optional
        ``auto``, ``local``, or ``host:port``. By default RAY_ADDRESS, as inside a job, or else ``local``.

    Raises
    ------
    ResourceError
        If there is no cluster at the address, or no token for it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if ray.is_initialized():
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if where == "local":
        options |= {"include_dashboard": False}
    else:
        _authenticate(where)
    try:
        host, _, port = where.rpartition("://")[2].rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=where, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise ResourceError(
            f"The Ray cluster at {where} cannot be joined ({str(error).splitlines()[0]}); check the address and that Ray runs there."
        ) from error
    quiet()


def _authenticate(where: str) -> None:
    """Switch token authentication on where there is a token: without one it aborts the process instead of raising."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    if os.environ.get("RAY_AUTH_TOKEN") or (file.is_file() and file.stat().st_size):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # clients do not pick the token up by themselves
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ResourceError(
            f"The Ray cluster at {where} cannot be joined: RAY_AUTH_MODE is 'token', but RAY_AUTH_TOKEN is not set and "
            f"{file} holds no token. Set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token."
        )


def quiet() -> None:
    """Silence the progress bars and notices of Ray Data and Ray Train: a workflow prints its own lines."""
    import ray.data
    import ray.train  # makes the loggers that are silenced below

    # Ray Data logs the traceback of an error that it also raises; the raised one is reported in a sentence.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
