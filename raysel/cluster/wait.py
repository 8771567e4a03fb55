"""Wait for resources of the cluster, but not for ever: Ray itself waits without a limit and without a message."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raysel.cluster.errors import name_losses, unwrap_errors
from raysel.errors import ResourceError

T = TypeVar("T")
STARTS = 10  # attempts of Ray Train to start its workers, of a minute each; Ray's own default is no limit
WORKERS_S = 60.0  # for workers that fit, next to other work
CPU_S = 120.0  # for one task to find a CPU on a cluster that others use too
_LOOK_S = 10.0  # between two looks at the nodes
_LACK_S = 300.0  # for a node in place of the only ones that were large enough
GROW_S = 900.0  # for an autoscaler to start a machine and Ray on it
_GROUP = "ray.io/node-group"  # label of the nodes that Ray's cluster launcher and KubeRay have started
_WARN_S = 10.0  # until a warning says that something is waited for

logger = logging.getLogger(__name__)


def may_grow() -> bool:
    """Return whether nodes may join the cluster when tasks need them: the groups of its nodes have names.

    Ray has no public way to see an autoscaler. Those that start one name the group of each node; a cluster that
    was started by hand or on this machine has no groups.
    """
    return any(node["Alive"] and _GROUP in node["Labels"] for node in ray.nodes())


def wait_until(ready: Callable[[float], T], what: str, advice: str, seconds: float) -> T:
    """Wait until ``ready`` returns something true, for ``seconds`` at most; warn after 10 s.

    What waits is a demand that an autoscaler sees. If the cluster may grow, the limit is at least 15 minutes.

    Parameters
    ----------
    ready : callable
        Waits for up to the number of seconds that it receives. Returns something false if that was not enough.
    what : str
        What has not happened, for the message: ``"No CPU was free"``. It says what is needed.
    advice : str
        What to do about it: the last sentence of the message, without its full stop.
    seconds : float
        The limit of a cluster that cannot grow.

    Returns
    -------
    object
        What ``ready`` returned.

    Raises
    ------
    ResourceError
        After the limit, with what is needed, what the cluster has and what of it is free.
    """
    done = ready(min(_WARN_S, seconds))
    grows = not done and may_grow()
    seconds = max(seconds, GROW_S) if grows else seconds
    if not done and seconds > _WARN_S:
        more = ", so that an autoscaler can add nodes" if grows else ""
        logger.warning(
            f"{what} within {_WARN_S:g} s: {_free()}. raysel waits for up to {seconds:g} s in all{more}."
        )
        done = ready(seconds - _WARN_S)
    if not done:
        raise ResourceError(f"{what} within {seconds:g} s: {_free()}. {advice}.")
    return done


def wait_for_cpu(
    what: str = "No CPU was free",
    advice: str = "Other processes use the rest: try again later, or free one CPU ('ray status' shows what uses them)",
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
    what: str, workers: int, cpus: float, gpus: float, advice: str, seconds: float | None = None
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
    seconds : float, optional
        How long workers that would fit are waited for, one minute by default.

    Raises
    ------
    ResourceError
        At once if the cluster is too small and cannot grow, else after the limit of `wait_until`.
    """
    need = f"{what} of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}

    def fit(resources: dict[str, float]) -> int:
        return int(min(resources.get(kind, 0) / amount for kind, amount in bundle.items()) + 1e-9)

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(map(fit, nodes))
    if room < workers and not may_grow():
        have = ray.cluster_resources()
        raise ResourceError(
            f"{need} cannot be placed: the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU on "
            f"{len(nodes)} node(s), which is enough for {room} of them. {advice}."
        )
    # Reserved as Ray Train will reserve it, so that what is free in pieces does not count; then given back.
    group = placement_group([bundle] * workers)
    try:
        again = "Try again later, or use fewer workers" if room >= workers else advice
        wait_until(
            group.wait, f"{need} could not be placed", again, WORKERS_S if seconds is None else seconds
        )
    finally:
        remove_placement_group(group)


class Room:
    """Notices that no node is large enough for a task any more: Ray itself would wait for one for ever.

    Parameters
    ----------
    what : str
        What waits, with an upper-case letter: ``"Embedding"``.
    need : dict of str to float
        Resources of one task, such as ``{"CPU": 1}``.
    """

    def __init__(self, what: str, need: dict[str, float]) -> None:
        self._what, self._need = what, {kind: amount for kind, amount in need.items() if amount}
        self._looked, self._since = time.monotonic(), math.inf

    def check(self) -> None:
        """Warn if no node is large enough; raise ResourceError if that has been so for five minutes.

        If the cluster may grow, 15 minutes.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= n for kind, n in self._need.items()) for node in nodes):
            self._since = math.inf
            return
        lacks = (
            f"no node of the cluster has {' and '.join(f'{n:g} {kind}' for kind, n in self._need.items())}"
        )
        limit = max(_LACK_S, GROW_S) if may_grow() else _LACK_S
        if self._since == math.inf:
            self._since = now
            logger.warning(f"{self._what} waits for up to {limit:g} s for a node, because {lacks} any more.")
        if now - self._since >= limit:
            raise ResourceError(
                f"{self._what} cannot continue: {lacks}. Add a node, and run again: finished results are kept."
            )


def get(refs: Any, what: str = "The computation", need: dict[str, float] | None = None) -> Any:
    """Return ``ray.get(refs)`` of tasks; Ray repeats those of a lost node, but only :class:`Room` ends a wait in vain.

    Parameters
    ----------
    refs : ray.ObjectRef or list of ray.ObjectRef
        Results of tasks.
    what, need
        As for :class:`Room`; by default the tasks need one CPU.

    Raises
    ------
    RayselError
        What a task raised, or ResourceError as :meth:`Room.check`.
    """
    room = Room(what, {"CPU": 1} if need is None else need)
    while True:
        try:
            with name_losses(), unwrap_errors():
                return ray.get(refs, timeout=_LOOK_S)
        except ray.exceptions.GetTimeoutError:
            room.check()


def cancel_queued(tasks: Sequence[ray.ObjectRef]) -> None:
    """Cancel tasks of one CPU that have not begun, given in the order of their submission; the others end by themselves.

    Ray aborts this process if a task happens to end while it is cancelled.
    """
    if not tasks or not ray.is_initialized():
        return
    with contextlib.suppress(Exception):  # what ended the work is the error to raise
        left = ray.wait(list(tasks), num_returns=len(tasks), timeout=0, fetch_local=False)[1]
        for task in left[int(ray.cluster_resources().get("CPU", 1)) :]:
            ray.cancel(task)


def alive() -> set[str]:
    """Return the ids of the nodes of the cluster; none without a cluster."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} if ray.is_initialized() else set()


def lost_since(nodes: set[str]) -> str:
    """Return an addition to a status: how many of the nodes were lost, and which resources are free; "" if none was."""
    lost = len(nodes - alive())
    return f"; {lost} of {len(nodes)} nodes left the cluster, {_free()}" if lost else ""


def _nothing() -> None:
    return None


def _free() -> str:
    have, free = ray.cluster_resources(), ray.available_resources()

    def of(kind: str, whose: str) -> str:
        return f"{free.get(kind, 0):g} of {whose} {have.get(kind, 0):g} {kind}s"

    return of("CPU", "the cluster's") + (f" and {of('GPU', 'its')}" if have.get("GPU") else "") + " are free"
