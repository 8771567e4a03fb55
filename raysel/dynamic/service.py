"""The Ray actors that keep a run's selection state, and the client through which workers call them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import ray

from raysel.cluster.errors import unwrap_errors
from raysel.cluster.observe import count
from raysel.cluster.wait import wait_until
from raysel.dynamic.keeper import Keeper, Keepers, Kept, join_plans
from raysel.dynamic.plan import Plan, Policy
from raysel.dynamic.shards import cut, spans
from raysel.errors import StateError

NAMESPACE = "raysel"
_IN_FLIGHT = 8  # pending updates of one worker to one actor before it waits: bounds the actor's queue

# No call waits longer. The longest honest one, the plan or the commit of 10**9 samples in a single actor, takes under
# two minutes, and an actor or a node that has died is said by Ray within about half a minute.
TIMEOUT_S = 300.0
# For an actor to come up, at first or again on another node: Ray Train gives its own workers as long.
START_S = 60.0


class _StateActor(Keeper):
    """A keeper in its own process, which returns a plan as one shared object, not a copy per caller."""

    def plan_ref(self, attempt: str, epoch: int) -> list[ray.ObjectRef]:
        plan = self.plan(attempt, epoch)
        if self._part is None or self._part[0] is not plan:
            ref = ray.put(plan)
            plan = ray.get(ref)  # in the object store, not copied back: the actor keeps no second one
            assert self._open is not None
            self._open = self._open._replace(plan=plan)
            self._part, self._all_of_it = (plan, ref), None
        return [self._part[1]]

    def joined_ref(self, attempt: str, epoch: int, parts: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Return the plan of all shards as one object, which the first shard makes once for all workers."""
        self.plan_ref(attempt, epoch)
        if self._all_of_it is None:
            self._all_of_it = ray.put(join_plans(ray.get(parts, timeout=TIMEOUT_S)))
        return [self._all_of_it]

    _part: tuple[Plan, ray.ObjectRef] | None = None
    _all_of_it: ray.ObjectRef | None = None


def start_keepers(policy: Policy, size: int, num_epochs: int, seed: int, shards: int = 1) -> KeeperClient:
    """Start the actors of the state, one per shard, and wait until they are up.

    They are detached, so that they outlive a restarted worker or driver, and take no CPU from training. A
    restarted actor is empty and refuses every call until the next attempt restores it. Ray retries none of
    their calls. Remove them with :meth:`KeeperClient.close`. There are fewer than ``shards`` if there are
    fewer chunks of 65,536 samples.

    Raises
    ------
    ResourceError
        If they are not up within a minute; none is left behind.
    """
    name, parts = f"state-{uuid.uuid4().hex[:12]}", spans(size, shards)
    make = ray.remote(_StateActor).options
    actors = [
        make(
            name=f"{name}-{i}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
        ).remote(cut(policy, start, stop, size), stop - start, num_epochs, seed, start, size)
        for i, (start, stop) in enumerate(parts)
    ]
    client = KeeperClient(actors, parts, name)
    try:
        up = [actor.__ray_ready__.remote() for actor in actors]
        wait_until(
            lambda limit: len(ray.wait(up, num_returns=len(up), timeout=limit)[0]) == len(up),
            f"The {len(up)} actors of the selection state, which need memory and no CPU, were not up",
            "look at 'ray status' for a node with memory to spare",
            START_S,
        )
        ray.get(up)  # an actor that could not be made raises here
    except BaseException:
        client.close()
        raise
    return client


def cleanup() -> list[str]:
    """Remove every state actor of the cluster, all shards, of this and other drivers; returns their names.

    For actors left behind by a driver that was killed; a run that is still training fails by it.
    """
    names = [
        a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE
    ]
    for name in names:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    return names


class KeeperClient(Keepers):
    """The keepers on the cluster, with the interface of one in the process: picklable, one per worker.

    ``update`` does not wait for the actors: up to eight calls to each may be pending, and :meth:`drain` waits
    for the rest. Any call to an actor that has died or is lost raises StateError within ``TIMEOUT_S``.
    """

    def __init__(self, actors: list[Any], parts: list[tuple[int, int]], name: str) -> None:
        super().__init__(actors, parts)
        self.name = name
        self._pending: list[list[ray.ObjectRef]] = [[] for _ in actors]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pending": [[] for _ in self._keepers]}

    def restore(self, attempt: str, epoch: int = 0, state: Kept | None = None) -> None:
        """See :meth:`Keeper.restore`; waits for an actor that is being restarted after its node died."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return super().restore(attempt, epoch, state)
            except _Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def update(self, attempt: str, epoch: int, slots: np.ndarray, losses: np.ndarray) -> None:
        """See :meth:`Keeper.update`; does not wait."""
        for shard, here, values in self._split(slots, losses):
            pending = self._pending[shard]
            pending.append(self._keepers[shard].update.remote(attempt, epoch, here, values))
            while len(pending) > _IN_FLIGHT:
                self._get(pending.pop(0))

    def commit(self, attempt: str, epoch: int) -> dict[str, Any]:
        """See :meth:`Keeper.commit`; counts the planned and skipped samples in Ray's metrics."""
        found = super().commit(attempt, epoch)
        count("raysel_samples_planned", found["planned"])
        count("raysel_samples_skipped", self._size - found["planned"])
        return found

    def drain(self) -> None:
        """Wait until every update sent has been applied; raise the error of the first that failed."""
        for pending in self._pending:
            while pending:
                self._get(pending.pop(0))

    def close(self) -> None:
        """Remove the actors; do nothing if they have ended already."""
        for actor in self._keepers:
            ray.kill(actor)

    def _all(self, method: str, *args: Any, each: Iterable[tuple[Any, ...]] | None = None) -> list[Any]:
        if each is None:
            return self._get([getattr(actor, method).remote(*args) for actor in self._keepers])
        # What is of one shard alone may be large, so that one is under way at a time.
        calls = zip(self._keepers, each, strict=True)
        return [self._get(getattr(actor, method).remote(*args, *its)) for actor, its in calls]

    def _joined(self, attempt: str, epoch: int) -> Plan:
        parts = [refs[0] for refs in self._all("plan_ref", attempt, epoch)]
        if len(parts) > 1:
            parts = self._get(self._keepers[0].joined_ref.remote(attempt, epoch, parts))
        return self._get(parts[0])

    def _get(self, refs: Any) -> Any:
        try:
            with unwrap_errors():
                return ray.get(refs, timeout=TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, _LOST):
                raise self._lost(error.cause) from error
            raise
        except _LOST as error:
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> StateError:
        if isinstance(error, ray.exceptions.GetTimeoutError):
            what = f"did not respond within {TIMEOUT_S:.0f} s"
        else:
            what = f"died ({str(error).splitlines()[0]})"
        kind = _Unavailable if isinstance(error, ray.exceptions.ActorUnavailableError) else StateError
        return kind(
            f"The actor '{self.name}', which holds the selection state, {what}. Training resumes from the last checkpoint "
            "when Ray Train restarts the workers (FailureConfig(max_failures=...))."
        )


_LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError)


class _Unavailable(StateError):
    """The actor may come back: Ray is restarting it."""
