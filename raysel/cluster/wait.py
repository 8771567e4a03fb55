"""Wait for resources of the cluster, but not for ever: Ray itself waits without a limit and without a message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raysel.errors import ResourceError

T = TypeVar("T")
CPU_S = 120.0  # for one task to find a CPU on a cluster that others use too
_WARN_S = 10.0  # until a warning says that something is waited for

logger = logging.getLogger(__name__)


def wait_until(ready: Callable[[float], T], what: str, advice: str, seconds: float) -> T:
    """Wait until ``ready`` returns something true, for ``seconds`` at most; warn after 10 s.

    Parameters
    ----------
    ready : callable
        Waits for up to the number of seconds that it receives. Returns something false if that was not enough.
    what : str
        What has not happened, for the message: ``"No CPU was free"``. It says what is needed.
    advice : str
        What to do about it: the last sentence of the message, without its full stop.
    seconds : float
        The limit.

    Returns
    -------
    object
        What ``ready`` returned.

    Raises
    ------
    ResourceError
        After ``seconds``, with what is needed, what the cluster has and what of it is free.
    """
    done = ready(min(_WARN_S, seconds))
    if not done and seconds > _WARN_S:
        logger.warning(
            f"{what} within {_WARN_S:g} s: {_free()}. raysel waits for up to {seconds:g} s in all."
        )
        done = ready(seconds - _WARN_S)
    if not done:
        raise ResourceError(f"{what} within {seconds:g} s: {_free()}. {advice}.")
    return done


def wait_for_cpu(
    what: str = "No CPU was free",
    advice: str = "Other processes hold the rest: try again later, or free one CPU ('ray status' shows who holds them)",
    seconds: float | None = None,
) -> None:
    """Wait until a task of one CPU has run, outside of any placement group.

    Parameters
    ----------
    what, advice : str
        For the message, see :func:`wait_until`.
    seconds : float, optional
        The limit, two minutes by default.

    Raises
    ------
    ResourceError
        If none has run in that time.
    """
    probe = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="DEFAULT")(_nothing).remote()
    try:
        wait_until(
            lambda limit: ray.wait([probe], timeout=limit, fetch_local=False)[0],
            what,
            advice,
            CPU_S if seconds is None else seconds,
        )
    except ResourceError:
        ray.cancel(probe, force=True)
        raise


def wait_for_workers(
    what: str, workers: int, cpus: float, gpus: float, advice: str, seconds: float = 60.0
) -> None:
    """Wait until Ray Train can place ``workers`` workers at once.

    Parameters
    ----------
    what : str
        The workers in the message, with their number and the workflow's key: ``"train.workers: 2 workers"``.
    workers : int
        Number of workers.
    cpus, gpus : float
        Of each worker.
    advice : str
        What to do if the cluster is too small.
    seconds : float
        How long workers that would fit are waited for.

    Raises
    ------
    ResourceError
        At once if the cluster is too small, after ``seconds`` if others hold too much of it.
    """
    need = f"{what} of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}

    def fit(resources: dict[str, float]) -> int:
        return int(min(resources.get(kind, 0) / amount for kind, amount in bundle.items()) + 1e-9)

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(map(fit, nodes))
    if room < workers:
        have = ray.cluster_resources()
        raise ResourceError(
            f"{need} cannot be placed: the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU on "
            f"{len(nodes)} node(s), which is enough for {room}. {advice}."
        )
    # Reserved as Ray Train will reserve it, so that what is free in pieces does not count; then given back.
    group = placement_group([bundle] * workers)
    try:
        wait_until(group.wait, f"{need} could not be placed", "Try again later, or ask for fewer", seconds)
    finally:
        remove_placement_group(group)


def _nothing() -> None:
    return None


def _free() -> str:
    have, free = ray.cluster_resources(), ray.available_resources()

    def of(kind: str, whose: str) -> str:
        return f"{free.get(kind, 0):g} of {whose} {have.get(kind, 0):g} {kind}s"

    return of("CPU", "the cluster's") + (f" and {of('GPU', 'its')}" if have.get("GPU") else "") + " are free"
