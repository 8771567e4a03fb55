"""`raysel submit`: run a workflow as a job of a Ray cluster, follow it, and attach to it again.

Only the workflow and the files of code that it names are sent. The id of a job is a digest of these and the number of the
attempt: Ray refuses an id that was used once, also after the job has ended.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import http.client
import json
import logging
import os
import platform
import re
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import raysel
from raysel.cluster.connect import token_mode
from raysel.core.storage import output
from raysel.errors import ConfigError, ResourceError, first, reason_of
from raysel.workflow import config, yaml_file

STOPPED = 143  # exit code for a job that was stopped, as of a process that was
VERSION = "RAYSEL_SUBMITTED_BY"
_OLDEST = {"Ray": (2, 59), "Python": (3, 10)}  # that raysel runs on
_HOME = re.compile(r"~[\w.-]*(/|$)")
_REPLY_S = 10.0
_FILE = "workflow.yaml"
_HERE = Path(
    "/@parent/@folder"
)  # stands for the folder of the workflow, to find what is named relative to it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job of a cluster.

    Attributes
    ----------
    id : str
        The id by which Ray names it.
    out : str
        Its run directory.
    attached : bool
        Whether it ran already.
    """

    id: str
    out: str
    attached: bool


def submit(
    workflow: str | os.PathLike[str],
    address: str,
    out: str | os.PathLike[str],
    *,
    overrides: list[str] | None = None,
    runtime_env: str | os.PathLike[str] | None = None,
) -> Job:
    """Start a workflow as a job, or find the job of the same workflow that is still running.

    A job of the same workflow that has ended is followed by the next attempt, which resumes in the same directory.

    Parameters
    ----------
    workflow : path
        The workflow file. Files of code that it names must be in its folder or below.
    address : str
        Of the dashboard of the cluster: ``http://HEAD:8265``.
    out : path or URI
        The run directory: a path on the cluster, or a URI.
    overrides : list of str, optional
        As in `raysel.workflow.config.load`.
    runtime_env : path, optional
        A YAML file with a runtime environment of Ray, such as packages and environment variables.

    Raises
    ------
    ConfigError
        For a workflow that is wrong, or names files that the cluster cannot see.
    ResourceError
        If the cluster cannot be reached, or refuses the job.
    """
    config.load(workflow, overrides)
    tree = config.read(workflow, overrides)
    files = _files(tree, Path(workflow).resolve().parent)
    place = output(out)
    if os.fspath(out).startswith("~") or (isinstance(place, Path) and not place.is_absolute()):
        raise ConfigError(
            f"--out {out}: A job needs a permanent directory that all nodes can read and write; give a URI such as "
            "s3://bucket/run, or an absolute path of a shared file system."
        )
    environment = _environment(runtime_env)
    command = ["python", "-m", "raysel.cli", "run", _FILE, "--out", str(place)]
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    about = [text, command, environment, {name: _digest(file) for name, file in files.items()}]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    client = _client(address)
    with _ask(address), _packed(text, files) as folder:
        _compare_versions(client, address)
        attempt, running = _attempt(client, f"raysel-{digest}")
        name = f"raysel-{digest}-{attempt}"
        if not running:
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=name,
                runtime_env={**environment, "working_dir": str(folder)},
                metadata={"raysel": str(tree.get("name", ""))},
            )
    return Job(name, str(place), running)


def follow(address: str, job: str, write: Callable[[str], None]) -> int:
    """Write the log of a job as it grows, until the job ends; return its exit code, 143 if it was stopped.

    Raises
    ------
    ResourceError
        If the connection is lost. The job continues.
    """
    client = _client(address)
    shown = 0

    async def tail() -> None:
        nonlocal shown
        seen = 0
        async for text in client.tail_job_logs(job):  # from its beginning
            seen += len(text)
            if seen > shown:
                write(text[-(seen - shown) :])
                shown = seen

    with _ask(address):
        while True:
            try:
                asyncio.run(tail())
            except Exception:  # the connection was lost; the status below tells whether it can be made again
                time.sleep(1.0)
            info = client.get_job_info(job)
            if info.status.is_terminal():
                break
    if info.status == "STOPPED":
        return STOPPED
    if info.status == "FAILED" and info.driver_exit_code is None:  # it never started
        write(f"{info.message}\n")
    return 0 if info.status == "SUCCEEDED" else info.driver_exit_code or 1


# ---- what is sent --------------------------------------------------------------------------------------------


def _files(tree: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Return the files of code in the folder of the workflow that it names, by their relative names.

    Raises
    ------
    ConfigError
        For a relative path of anything else, which is on this machine only, and for code that is missing.
    """
    found: dict[str, Path] = {}
    for key, text in _texts(tree, ""):
        if _HOME.match(text):
            raise ConfigError(
                f"{key}: {text} is in your home folder, which may be another folder on the cluster; give a URI such as "
                "s3://bucket/data, or an absolute path that exists on all nodes."
            )
    for key, text in _texts(config.absolute(copy.deepcopy(tree), _HERE), ""):
        if str(_HERE.parent) not in text:
            continue
        place, code, _ = text[text.index(str(_HERE.parent)) :].partition(".py:")
        given = os.path.relpath(place, _HERE) + (".py" if code else "")
        if not code:
            raise ConfigError(
                f"{key}: {given} is a path on this machine, which the cluster cannot read; give a URI such as "
                "s3://bucket/data, or an absolute path that exists on all nodes."
            )
        if given.startswith(".."):
            raise ConfigError(
                f"{key}: {given} is outside of the folder of the workflow, but only files in this folder are sent to the cluster; "
                "move the file there."
            )
        if not (folder / given).is_file():
            raise ConfigError(f"{key}: The file {folder / given} does not exist.")
        found[given] = folder / given
    return found


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _texts(part, f"{key}.{name}" if key else str(name))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _packed(text: str, files: dict[str, Path]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raysel-") as made:
        folder = Path(made)
        (folder / _FILE).write_text(text, encoding="utf-8")
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        yield folder


def _environment(file: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return the runtime environment of the job, with this raysel if it is a checkout, else with its version to compare."""
    found = {} if file is None else yaml_file.read(file)
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is not a runtime environment; write a mapping such as 'pip: [timm]'.")
    if "working_dir" in found:
        raise ConfigError(f"{file}: The key 'working_dir' is set by raysel; leave it out.")
    for key, kind, example in (
        ("env_vars", dict, "mapping, for example 'env_vars: {A: b}'"),
        ("py_modules", list, "list, for example 'py_modules: [s3://bucket/module.zip]'"),
    ):
        if not isinstance(found.get(key) or kind(), kind):
            raise ConfigError(f"{file}: The value of '{key}' has the wrong type; it must be a {example}.")
    variables = {**(found.get("env_vars") or {}), VERSION: raysel.__version__}
    if not _installed():
        found = {**found, "py_modules": [*(found.get("py_modules") or []), str(Path(raysel.__file__).parent)]}
    return {**found, "env_vars": variables}


def _installed() -> bool:
    """Return whether raysel was installed as a package, which the cluster can install too, and is no checkout."""
    return Path(raysel.__file__).resolve().parents[1].name in ("site-packages", "dist-packages")


def check_version() -> None:
    """Raise ConfigError within a job that was submitted by another version of raysel."""
    theirs = os.environ.get(VERSION, raysel.__version__)
    if theirs != raysel.__version__:
        raise ConfigError(
            f"The job was submitted by raysel {theirs}, and the cluster has raysel {raysel.__version__}; install the same version "
            "on both."
        )


# ---- the cluster ---------------------------------------------------------------------------------------------


def _attempt(client: Any, prefix: str) -> tuple[int, bool]:
    """Return the number of the newest attempt if it is running, else that of the next one."""
    jobs = {job.submission_id: job for job in client.list_jobs() if job.submission_id}
    attempt = 1
    while (job := jobs.get(f"{prefix}-{attempt}")) is not None:
        if not job.status.is_terminal():
            return attempt, True
        attempt += 1
    return attempt, False


def _client(address: str) -> Any:
    """Return Ray's client for jobs. Raises ResourceError within 15 seconds if the cluster cannot be reached."""
    if not re.fullmatch(r"https?://[!-~]+", address):
        raise ConfigError(
            f"--address {first([address])}: Jobs are submitted to the dashboard of a cluster; give http://HEAD:8265."
        )
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=_REPLY_S):
            pass
    except urllib.error.HTTPError:  # it is there; whether it is Ray, and what is wrong, is said below
        pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = reason_of(getattr(error, "reason", None) or error)
        raise ResourceError(
            f"The Ray cluster at {address} cannot be reached: {why}. Check the address, and that its dashboard runs there."
        ) from error
    with _ask(address, f"The server at {address} is not the dashboard of a Ray cluster", "Check the address"):
        token_mode()
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise _missing() from error
        for name in (
            "dashboard.modules.dashboard_sdk",
            "dashboard.modules.job.sdk",
            "_private.runtime_env.packaging",
        ):
            logging.getLogger(f"ray.{name}").setLevel(
                logging.WARNING
            )  # they say what is uploaded, and when a log ends
        return JobSubmissionClient(address)


def _compare_versions(client: Any, address: str) -> None:
    """Raise ConfigError for versions on the cluster on which raysel does not run; warn of others than here."""
    import ray

    try:  # Ray has no public way to ask; without it, the job itself says what is wrong
        found = client._do_request("GET", "/api/v0/cluster_metadata").json()["data"]
        theirs = {"Ray": str(found["rayVersion"]), "Python": str(found["pythonVersion"])}
    except (AttributeError, LookupError, TypeError, ValueError):
        return
    ours = {"Ray": ray.__version__, "Python": platform.python_version()}
    text = " and ".join(f"{name} {version}" for name, version in theirs.items())
    for name, oldest in _OLDEST.items():
        if tuple(map(int, re.findall(r"\d+", theirs[name])[:2])) < oldest:
            raise ConfigError(
                f"The cluster at {address} runs {text}, but raysel needs {name} {'.'.join(map(str, oldest))} or newer; update the "
                "cluster."
            )
    if theirs != ours:
        here = " and ".join(f"{name} {version}" for name, version in ours.items())
        logger.warning(
            f"The cluster at {address} runs {text}, but this machine has {here}. The job runs with the versions of the cluster."
        )


def _missing() -> ConfigError:
    return ConfigError(
        "The packages for 'raysel submit' are not installed; install them with: pip install 'raysel[cluster]'."
    )


@contextmanager
def _ask(address: str, failed: str = "", advice: str = "") -> Iterator[None]:
    """Raise ResourceError, with what has failed and what to do, for what Ray's client raises."""
    import ray

    failed = failed or f"The request to the Ray cluster at {address} failed"
    advice = advice or "If a job runs there, it continues; enter the same command to attach to it again"

    try:
        yield
    except (ConfigError, ResourceError):
        raise
    except ray.exceptions.AuthenticationError as error:
        raise ResourceError(
            f"The Ray cluster at {address} requires a token, but this machine has no token or a wrong one. Copy the cluster's "
            "token to ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to the file that holds it."
        ) from error
    except Exception as error:  # of requests, of Ray, and of the server
        if "ray[default]" in str(error):
            raise _missing() from error
        raise ResourceError(f"{failed}: {reason_of(error)}. {advice}.") from error
