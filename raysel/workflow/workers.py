"""Ray Train workers that start once and train the arms of a run one after another."""

from __future__ import annotations

import gc
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysel.core import storage
from raysel.errors import RunError
from raysel.train import loops
from raysel.train.settings import Train

_WAIT_S = 0.1  # between two looks at the desk


class _Desk:
    """Where the driver leaves the next training and the workers leave its result."""

    def __init__(self) -> None:
        self._tasks: list[list[Any]] = []
        self._answers: list[Any] = []
        self._began: list[float] = []
        self._closed = False

    def __repr__(self) -> str:  # the name of the actor on the dashboard
        return "trainings of a run"

    def put(self, task: list[Any]) -> None:
        self._tasks.append(task)

    def close(self) -> None:
        self._closed = True

    def next(self) -> list[Any] | str:
        """Return the first training without a result (also after a restart of the workers), "wait" or "stop"."""
        if len(self._tasks) > len(self._answers):
            if len(self._began) < len(self._tasks):
                self._began.append(time.time())
            return self._tasks[len(self._answers)]
        return "stop" if self._closed else "wait"

    def answer(self, answer: Any) -> None:
        self._answers.append(answer)

    def found(self, number: int) -> tuple[Any, float] | None:
        """Return the result of a training and when the workers took it up; None if it is not finished."""
        return (self._answers[number], self._began[number]) if number < len(self._answers) else None


def work(config: dict[str, Any]) -> None:
    """Train what lies on the desk until it is closed: the ``train_loop_per_worker`` of the arms."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    desk, first = config["desk"], get_context().get_world_rank() == 0
    while True:
        task: Any = "wait"
        while first and task == "wait":
            task = ray.get(desk.next.remote())
            time.sleep(_WAIT_S if task == "wait" else 0.0)
        task = broadcast_from_rank_zero(task)
        if task == "stop":
            return
        answer = loops.train(ray.get(task[0]))
        if first:
            ray.get(desk.answer.remote(answer))
        gc.collect()  # what the next arm does not need, before it starts


class _Stopped(Exception):
    """The workers ended before a training did; their error is raised in the main thread."""


@dataclass
class Workers:
    """The workers of a run. They start when the first arm has to be trained.

    Attributes
    ----------
    settings : Train
        Number of workers and their resources.
    arms : int
        Number of arms, each of which may fail ``max_failures`` times.
    startup : float
        Seconds in which the workers started; 0 before.
    """

    settings: Train
    arms: int
    _asked: queue.Queue[Path | None] = field(default_factory=queue.Queue)
    _desk: Any = None
    _number: int = 0
    startup: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def started(self) -> bool:
        """Whether the workers are there, and hold their CPUs."""
        return self._desk is not None

    def run(self, arms: Callable[[], None]) -> None:
        """Call ``arms`` in a thread, which trains with :meth:`train`; the workers' errors are raised here.

        Ray Train must run in the main thread, where it handles an interrupt.
        """
        raised: list[BaseException] = []

        def body() -> None:
            try:
                arms()
            except BaseException as error:
                raised.append(error)
            finally:
                self._asked.put(None)
                if self._desk is not None and not self._ended.is_set():
                    self._desk.close.remote()

        thread = threading.Thread(target=body, name="raysel-arms", daemon=True)
        thread.start()
        failed: BaseException | None = None
        try:
            if (place := self._asked.get()) is not None:
                self._fit(place)
        except BaseException as error:  # also an interrupt before the workers were requested
            failed = error
        self._ended.set()
        thread.join()
        if self._desk is not None:
            ray.kill(self._desk)
        for cause in raised:
            if not isinstance(cause, _Stopped):
                raise cause
        if failed is not None:
            raise failed
        if raised:
            raise RunError(
                "The workers ended before the training did; run the workflow again, which resumes it."
            )

    def train(self, config: dict[str, Any], place: Path) -> tuple[dict[str, Any], bool]:
        """Train an arm; return what the loop returned, and whether the workers started for this arm.

        Parameters
        ----------
        config : dict
            Argument of `raysel.train.loops.train`.
        place : path
            Folder for the files of Ray Train, which are removed.
        """
        began, starts = time.time(), self._desk is None
        if starts:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
            self._asked.put(place)
        ray.get(self._desk.put.remote([ray.put(config)]))
        number, self._number = self._number, self._number + 1
        while (found := ray.get(self._desk.found.remote(number))) is None:
            if self._ended.wait(_WAIT_S):
                raise _Stopped
        if starts:
            self.startup = max(0.0, found[1] - began)
        return found[0], starts

    def _fit(self, place: Path) -> None:
        from raysel.workflow.trainer import train_on_workers

        name = f"arms-{uuid.uuid4().hex[:8]}"  # never continued by Ray Train: the arms keep their own checkpoints
        failures = self.settings.max_failures * self.arms
        try:
            train_on_workers(
                work,
                {"desk": self._desk},
                self.settings,
                max_failures=failures,
                name=name,
                storage_path=str(place),
            )
        finally:
            storage.remove(place / name)
