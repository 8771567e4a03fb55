"""Check that every node of the cluster sees the same directory, before a step writes there."""

from __future__ import annotations

import time
import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysel.core.object_store import StorePath
from raysel.core.storage import Place, entries, read_bytes, remove, write_text
from raysel.errors import RayselError, ResourceError, RunError, first, reason_of

_REPLY_S = 60.0  # for a node to start a worker process
_APPEAR_S = 5.0  # for a file of another node to appear, on a network file system


def check_shared(directory: Place) -> None:
    """Check that the files of this process in a directory are those of every node, and the reverse.

    Nothing happens on a cluster of one node, and without a cluster. Nodes that an autoscaler adds later are not checked.

    Parameters
    ----------
    directory : Place
        An existing directory, or a folder on an object store, which steps on any node will write to and read from.

    Raises
    ------
    RunError
        With the nodes that cannot read or write there, or that did not reply within a minute.
    ResourceError
        If a node cannot run a task of raysel.
    """
    if not ray.is_initialized():
        return
    here = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here
    }
    if not others:
        return
    name = f".shared-{uuid.uuid4().hex}"  # not seen before, so that no node has cached that it is missing
    ours, limit = directory / name, time.monotonic() + _REPLY_S
    write_text(ours, name)
    try:
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        calls = {
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                directory, name, node
            ): node
            for node in others
        }
        done, silent = ray.wait(
            list(calls), num_returns=len(calls), timeout=max(0.0, limit - time.monotonic())
        )
        faults: dict[str, str] = {}
        for call in done:
            node = calls[call]
            try:
                fault = ray.get(call)
            except ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise ResourceError(
                    f"A task failed on the node {others[node]} ({lines[-1].strip().rstrip('.')}). Check that the node runs, "
                    "and that it has the same version of raysel."
                ) from error
            if not fault and not _appears(directory / f"{name}-{node}", node):
                fault = "files that it writes do not appear on this machine"
            if fault:
                faults[others[node]] = fault
        for call in silent:
            ray.cancel(call, force=True)
            faults[others[calls[call]]] = f"no reply within {_REPLY_S:g} s"
    finally:
        for left in entries(directory):
            if left.startswith(name):
                remove(directory / left)
    if faults:
        nodes = first([f"{node} ({fault})" for node, fault in sorted(faults.items())], 5)
        raise RunError(
            f"{directory} is not shared by all nodes of the cluster: {nodes}. "
            + (
                "Give every node the credentials and the environment variables of the object store"
                if isinstance(directory, StorePath)
                else "Mount the same file system at this path on every node"
            )
            + ", or choose another --out."
        )


def _probe(directory: Place, name: str, node: str) -> str:
    """Return what is wrong on this node, "" if nothing; leaves a file there."""
    try:
        if not _appears(directory / name, name):
            return "files that this machine writes do not appear there"
        write_text(directory / f"{name}-{node}", node)
    except (OSError, RayselError) as error:
        return reason_of(error)
    return ""


def _appears(file: Place, text: str) -> bool:
    """Wait for a file with this text."""
    limit = time.monotonic() + _APPEAR_S
    while True:
        try:
            if read_bytes(file).decode() == text:
                return True
        except FileNotFoundError:
            pass
        if time.monotonic() > limit:
            return False
        time.sleep(0.2)
