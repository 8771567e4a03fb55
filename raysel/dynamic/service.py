"""The Ray actor that keeps a run's selection state, and the client that workers talk to it through."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import ray

from raysel.dynamic.keeper import Keeper
from raysel.dynamic.plan import Plan, Policy
from raysel.dynamic.state import SampleState
from raysel.errors import RayselError, StateError

NAMESPACE = "raysel"
_IN_FLIGHT = 8  # unanswered updates of one worker before it waits: bounds the actor's queue


class _StateActor(Keeper):
    """A keeper in a process of its own; hands out a plan as one shared object rather than a copy a caller."""

    def plan_ref(self, attempt: str, epoch: int) -> list[ray.ObjectRef]:
        plan = self.plan(attempt, epoch)
        if self._shared is None or self._shared[0] is not plan:
            self._shared = (plan, ray.put(plan))
        return [self._shared[1]]

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        return self._epoch, self._last

    _shared: tuple[Plan, ray.ObjectRef] | None = None


def start_keeper(policy: Policy, size: int, num_epochs: int, seed: int) -> KeeperClient:
    """Start the state actor, detached so that it outlives a restarted worker or driver, and wait until it is up.

    It takes no CPU from training. A restarted actor comes back empty and refuses everything until the next
    attempt restores it. Ray retries none of its calls. Remove it with :meth:`KeeperClient.close`.
    """
    name = f"state-{uuid.uuid4().hex[:12]}"
    actor = (
        ray.remote(_StateActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
        )
        .remote(policy, size, num_epochs, seed)
    )
    ray.get(actor.__ray_ready__.remote())
    return KeeperClient(actor, name)


def cleanup() -> list[str]:
    """Remove every state actor of the cluster, of this and other drivers; returns their names.

    For actors left behind by a driver that was killed; a run that is still training fails by it.
    """
    names = [
        a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE
    ]
    for name in names:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    return names


class KeeperClient:
    """A keeper on the cluster, called as the one in the process: picklable, one per worker.

    ``update`` does not wait for the actor: up to eight are under way, and :meth:`drain` waits for the rest.
    """

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self.name = name
        self._pending: list[ray.ObjectRef] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_actor": self._actor, "name": self.name, "_pending": []}

    def restore(self, attempt: str, epoch: int = 0, state: SampleState | None = None) -> None:
        self._get(self._actor.restore.remote(attempt, epoch, state))

    def plan(self, attempt: str, epoch: int) -> Plan:
        return self._get(self._get(self._actor.plan_ref.remote(attempt, epoch))[0])

    def update(self, attempt: str, epoch: int, slots: np.ndarray, losses: np.ndarray) -> None:
        self._pending.append(self._actor.update.remote(attempt, epoch, slots, losses))
        while len(self._pending) > _IN_FLIGHT:
            self._get(self._pending.pop(0))

    def drain(self) -> None:
        """Wait until every update sent has been taken in; raises what the first that failed raised."""
        while self._pending:
            self._get(self._pending.pop(0))

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        return self._get(self._actor.commit.remote(attempt, epoch))

    def state(self, attempt: str) -> tuple[int, SampleState]:
        return self._get(self._actor.state.remote(attempt))

    def progress(self) -> tuple[int, dict[str, Any] | None]:
        """The number of committed epochs and the summary of the last; for whoever watches, so not fenced."""
        return self._get(self._actor.progress.remote())

    def close(self) -> None:
        """Remove the actor; nothing happens if it is gone already."""
        ray.kill(self._actor)

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RayselError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise StateError(
                f"The selection state's actor '{self.name}' died ({str(error).splitlines()[0]}); "
                "training goes on from the last checkpoint when Ray Train restarts the workers "
                "(FailureConfig(max_failures=...))."
            ) from error
