"""Join a Ray cluster, or start one on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysel.errors import ResourceError, first, reason_of

_TOKEN_FILE = Path("~/.ray/auth_token")  # where Ray itself keeps and looks for it
_TOKEN = re.compile(
    r"[!-~]([ -~]*[!-~])?"
)  # what can be sent in a header; Ray aborts the process for anything else
_CONNECT_S = 5.0  # for a connection to the port of the cluster
_REPLY_S = 9.0  # for the cluster to say its versions and nodes, once connected
_IMPORT_S = 120.0  # for Ray to be loaded, perhaps from a slow network disk
_JOB = "submit the workflow with 'raysel submit WORKFLOW --address http://HEAD:8265 --out DIR'"


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
        Within 15 seconds, if there is no cluster at the address, this machine is not one of its nodes, the token is
        missing or wrong, or the cluster runs another version of Ray or Python.
    """
    _set_defaults()
    import ray

    if ray.is_initialized():
        return
    where = _where(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if where == "local":
        _token(where)  # raises for a file that Ray would abort for
        options |= {"include_dashboard": False}
    else:
        _check(where)
        token_mode()
    try:
        ray.init(address=where, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise _cannot(where, reason_of(error)) from error
    quiet()


@contextmanager
def ray_for_code(address: str | None) -> Iterator[None]:
    """Decide which Ray is used by code of the user that calls Ray inside the block.

    Ray itself would join the cluster of RAY_ADDRESS or of the last ``ray start``, and wait for minutes if that cluster is
    gone. Here such code uses the cluster at ``address``, which is joined first, or starts Ray on this machine.

    Parameters
    ----------
    address : str, optional
        As for :func:`connect`.

    Raises
    ------
    ResourceError
        As :func:`connect` does.
    """
    _set_defaults()
    if _where(address) != "local":
        connect(address)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = "local"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before


def _set_defaults() -> None:
    """Set what must be set before Ray starts, unless it is set."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")


def _where(address: str | None) -> str:
    """Return the address to join; as for Ray, RAY_ADDRESS also stands for ``auto``."""
    given = os.environ.get("RAY_ADDRESS") if address in (None, "", "auto") else None
    return given or address or "local"


def _cannot(where: str, why: str, advice: str = "Check the address and that Ray runs there") -> ResourceError:
    what = "Ray cannot be started" if where == "local" else f"The Ray cluster at {where} cannot be joined"
    return ResourceError(f"{what}: {why}. {advice}.")


def _check(where: str) -> None:
    """Raise ResourceError if the cluster cannot be joined. Ray itself would try for minutes or abort the process."""
    scheme, colon, _ = where.partition("://")
    if colon and scheme == "ray":
        raise ResourceError(
            f"The address {where} is for Ray Client, which raysel does not support. Instead, {_JOB}."
        )
    if colon and scheme in ("http", "https"):
        raise ResourceError(
            f"The address {where} is an address of the Ray dashboard. Give HOST:PORT of the head node (its port is 6379 by default), "
            f"or {_JOB}."
        )
    host, _, port = where.rpartition(":")
    if where != "auto":
        if colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ResourceError(
                f"{where!r} is not the address of a Ray cluster. Give 'auto', 'local' or HOST:PORT, such as 10.0.0.1:6379."
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            raise _cannot(where, reason_of(error)) from error

    token = _token(where)
    found = _look(where, token is not None)
    if not found:
        return
    where = found.get("address", where) if where == "auto" else where
    if "error" in found:
        if found["error"] == "AuthenticationError":
            mode = os.environ.get("RAY_AUTH_MODE", "")
            if mode.lower() not in ("", "token"):
                raise _cannot(
                    where, f"it requires a token, but RAY_AUTH_MODE is {mode!r}", "Unset RAY_AUTH_MODE"
                )
            raise _cannot(
                where,
                "it requires a token, and "
                + (
                    "no token was found on this machine"
                    if token is None
                    else f"the token in {token} is not that of the cluster"
                ),
                f"Copy the cluster's token to {_TOKEN_FILE}, or set RAY_AUTH_TOKEN_PATH to the file that holds it",
            )
        raise _cannot(where, reason_of(Exception(found["text"])))
    ours = (_ray_version(), ".".join(map(str, sys.version_info[:3])))
    theirs = (found["ray"], found["python"])
    if all(theirs) and _matched(*theirs) != _matched(*ours):
        raise _cannot(
            where,
            f"it runs Ray {theirs[0]} and Python {theirs[1]}, but this process runs Ray {ours[0]} and Python {ours[1]}",
            "Install the same versions on the cluster and on this machine",
        )
    if not found["here"]:
        raise _cannot(
            where,
            f"this machine is not one of its nodes ({first(found['nodes'])})",
            f"Run the command on one of these nodes, or {_JOB}",
        )


def _look(where: str, with_token: bool) -> dict[str, Any]:
    """Return what the cluster says of itself, to a process that Ray's native code may abort.

    Empty if this version of Ray has no such interface: then only joining it will tell.
    """
    source = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", source, where, str(_REPLY_S)],
            env={**os.environ, "PYTHONPATH": path, **({"RAY_AUTH_MODE": "token"} if with_token else {})},
            capture_output=True,
            text=True,
            timeout=_IMPORT_S,
        )
    except subprocess.TimeoutExpired:
        return {"error": "TimeoutError", "text": f"Ray could not be imported within {_IMPORT_S:g} s"}
    if done.returncode == -signal.SIGALRM:
        return {
            "error": "TimeoutError",
            "text": f"there was no reply from a Ray cluster within {_REPLY_S:g} s",
        }
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": "RuntimeError", "text": f"Ray ended with exit code {done.returncode} ({said})"}


def _ray_version() -> str:
    import ray

    return ray.__version__


def _matched(ray: str, python: str) -> tuple[str, str]:
    """Return the parts of the versions that must be the same, as Ray compares them."""
    minor = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor"
    return ray, python.rpartition(".")[0] if minor else python


def _token(where: str) -> str | None:
    """Return where the token is that Ray will use: the name of the variable or of the file. None without one.

    Raises
    ------
    ResourceError
        For a token that Ray would abort the process for: it is required and missing, or it cannot be sent.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode not in ("", "token"):
        return None
    text, place = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "the environment variable RAY_AUTH_TOKEN"
    if not text:
        given = os.environ.get("RAY_AUTH_TOKEN_PATH")
        file = Path(given or _TOKEN_FILE).expanduser()
        place = str(file)
        try:
            text = file.read_bytes().decode("latin-1").strip() if given or file.exists() else ""
        except OSError as error:
            raise _cannot(
                where,
                f"the file of the token, {place}, cannot be read ({reason_of(error)})",
                "Make it readable, or set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token",
            ) from error
        if not text and given:
            raise _cannot(
                where,
                f"RAY_AUTH_TOKEN_PATH is {given}, which is empty",
                "Set it to the file that holds the cluster's token",
            )
    if not text:
        if mode == "token" and where != "local":  # for a cluster of its own, Ray makes one
            raise _cannot(
                where,
                f"RAY_AUTH_MODE is 'token', but RAY_AUTH_TOKEN is not set and {place} holds no token",
                "Set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token",
            )
        return None
    if not _TOKEN.fullmatch(text):
        raise _cannot(
            where,
            f"the token in {place} holds a line break or another character that no token has",
            "Write the token of the cluster there again",
        )
    return place


def token_mode() -> None:
    """Switch token authentication on where there is a token: Ray does so by itself only at the address ``auto``."""
    if "RAY_AUTH_MODE" in os.environ or _token("auto") is None:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    try:
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")  # Ray has read the variable when it was imported
    except (ImportError, AttributeError):
        return  # a later Ray may have its own way


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
