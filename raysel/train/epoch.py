"""One epoch on one rank: what was taken of its plan, handed out, noted and trained."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysel.core.arrays import positions
from raysel.dynamic.plan import Plan
from raysel.errors import StateError
from raysel.train.batch import Batch
from raysel.train.reduce import per_sample
from raysel.train.run import Run


@dataclass(eq=False)
class Epoch:
    """The position of a rank in an epoch, which a source of batches advances, and the losses noted so far."""

    number: int
    plan: Plan
    ids: np.ndarray  # of the planned samples
    weights: np.ndarray  # of the plan, times those of the selection
    run: Run
    rank: int
    world: int
    total_steps: int  # of all earlier epochs
    began: float  # when the plan was requested (time.perf_counter)
    midway: dict[str, Any] | None  # a checkpoint's position within this epoch, as position returned it
    rng: dict[str, Any] | None  # random generators to set when the rest of the epoch begins

    def __post_init__(self) -> None:
        earlier = self.midway or {"trained": 0, "share": 0.0, "steps": 0, "seconds": 0, "planning_seconds": 0}
        self.skip: int = earlier["trained"]  # samples and steps that earlier processes have trained
        self.done: int = earlier["steps"]
        most = self.run.max_steps
        self.last = np.inf if most is None else most - self.total_steps  # the step that ends the run
        self.step, self.steps = self.done, 0
        self.trained, self.share = self.skip, earlier["share"]  # samples over all ranks, and their share
        self.handed = self.noted = 0  # batches returned, and those whose losses were recorded
        self.accumulate = 1  # batches of an optimizer step on this rank
        self._order: tuple[bool | None, str | None] = (True, None)  # as take has it
        # Of the last source; not the source itself: a cycle would be freed by the collector, in whatever order, and torch
        # then waits five seconds for each worker process of a DataLoader.
        self._ticket: object | None = None
        self._slots: list[np.ndarray] = []
        self._losses: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.waiting = 0  # losses in them
        self._heads: set[int] = set()  # the first slot of every batch with recorded losses
        self.planning: float = earlier["planning_seconds"] + time.perf_counter() - self.began
        self.began -= earlier["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began, those of earlier processes included."""
        return time.perf_counter() - self.began

    def take(
        self, steps: int, shuffle: bool | None, grouped: str | None = None, accumulate: int = 1
    ) -> object:
        """Begin a source with this number of steps, which replaces earlier ones; return its ticket.

        ``shuffle`` is None for Ray Data's order, and ``grouped`` a digest of the lengths by which the order is grouped.
        Raise StateError if the epoch was begun in another order, and the source cannot leave out its samples.
        """
        order = (shuffle, grouped)
        begun, groups = (self.midway["shuffle"], self.midway["grouped"]) if self.midway else order
        if shuffle is not None and (begun, groups) != order:
            how = "session.stream" if begun is None else f"shuffle={begun}"
            if begun is not None and groups != grouped:
                how = "the same lengths" if groups else "no lengths"
            raise StateError(
                f"loader: The training resumes in the middle of epoch {self.number}, so the order of its samples must not change; "
                f"use {how}, as when the epoch was started."
            )
        self.steps, self._ticket = int(min(self.last, self.done + steps)), object()
        self._order, self.accumulate = order, accumulate
        return self._ticket

    def claim(self, ticket: object) -> None:
        """Raise StateError unless the source with ``ticket`` may be iterated now, for the first time."""
        if self._ticket is not ticket:
            raise StateError(
                "This loader is no longer valid, because a later call created another loader for the epoch; iterate over the later "
                "loader."
            )
        if self.step != self.done:
            raise StateError(
                f"The batches of epoch {self.number} were iterated before; each epoch can be iterated only once."
            )

    def weights_at(self, places: np.ndarray) -> np.ndarray:
        """Return the weights at these positions in the plan, 0 for padding, which has the position -1."""
        return np.where(places >= 0, self.weights[places], np.float32(0.0))

    def hand_out(self, step: int, trained: int, share: float) -> None:
        """Count a batch of this step, after which this many samples and this share of the epoch are trained."""
        self.step, self.trained, self.share = step, trained, share
        self.handed += 1

    def note(self, batch: Batch, losses: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Record the losses of a batch and return the scalar to differentiate; see ``Session.loss``."""
        values, counts = per_sample(losses, len(batch.slots), mask)
        weights, slots = batch.weights, batch.slots
        head = int(slots[0])
        if head in self._heads:
            raise StateError(
                f"session.loss was called a second time for one batch of epoch {self.number} (its first sample_id is "
                f"{int(batch.ids[0])}). Call it once per batch; add further terms to the losses, or to the scalar that "
                "session.loss returned."
            )
        if head >= 0:  # batches of padding alone are all alike
            self._heads.add(head)
        if weights.dtype != torch.float32:  # a framework of low precision rounds what it finds in a batch
            place, found = positions(self.plan.slots, slots)
            weights = torch.from_numpy(self.weights_at(np.where(found, place, -1)))
        if weights.device != values.device:
            weights = weights.to(values.device, non_blocking=True)
        noted = values.detach()
        # A copy, since the loop may write over its own.
        noted = noted.clone() if noted.dtype == torch.float32 else noted.to(torch.float32)
        if slots[-1] >= 0:
            weighted = weights * values
        else:  # with padding, which is neither noted nor differentiated, not even times zero, which keeps a NaN
            rows = torch.from_numpy(slots >= 0).to(values.device, non_blocking=True)
            weighted = torch.where(rows, weights * values, torch.zeros_like(values))
        self._slots.append(slots)
        self._losses.append((noted, counts))
        self.waiting += len(slots)
        self.noted += 1
        return weighted.mean() if batch.share == len(slots) else weighted.sum() / batch.share

    def drain(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the (slots, losses) noted since the last call; None if there are none."""
        if not self._slots:
            return None
        slots = np.concatenate(self._slots)
        losses = torch.cat([noted for noted, _ in self._losses]).cpu().numpy()  # the one wait for the device
        counts = slots >= 0  # what only pads is not noted, nor a sample in which nothing counted
        if any(mask is not None for _, mask in self._losses):
            masks = [torch.ones_like(n, dtype=torch.bool) if m is None else m for n, m in self._losses]
            counts &= torch.cat(masks).cpu().numpy()
        self._slots, self._losses, self.waiting = [], [], 0
        return (slots[counts], losses[counts]) if counts.any() else None

    def position(self) -> dict[str, Any]:
        """Return the position, for a checkpoint within the epoch."""
        return {
            "trained": self.trained,
            "share": self.share,
            "steps": self.step,
            "shuffle": self._order[0],
            "grouped": self._order[1],
            "seconds": self.seconds,
            "planning_seconds": self.planning,
        }
