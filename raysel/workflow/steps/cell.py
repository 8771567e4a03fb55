"""Train one policy with one seed for a comparison, in one process without Ray Train."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import ray

import raysel
from raysel.core.storage import Place
from raysel.dynamic.plan import Policy
from raysel.selection import Selection
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.steps.step import Step
from raysel.workflow.steps.train import answer_of, loop, train_key


@dataclass(frozen=True)
class Cell(Step):
    """One policy with one seed.

    Attributes
    ----------
    policy_name, seed, policy, epochs
        What is trained.
    max_steps : int, optional
        Steps after which training stops; None for the end of the epochs.
    code : JSON types
        Key of a policy whose code is the user's own.
    """

    policy_name: str
    seed: int
    policy: Policy
    epochs: int
    max_steps: int | None = None
    code: Any = None
    version: ClassVar[int] = 2

    @property
    def name(self) -> str:  # type: ignore[override]
        """``cell-POLICY-SEED``."""
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.policy_name.rpartition("/")[2])
        return f"cell-{plain[-60:]}-{self.seed}"

    @property
    def about(self) -> str:
        """What the step makes."""
        return f"training with {self.policy_name}, seed {self.seed}"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Policy, rows, number of epochs and steps, and seed."""
        return {
            **train_key(run),
            "policy": self.policy.parameters(),
            "code": self.code,
            "rows": digest_of(run.rows),
            "seed": self.seed,
            "epochs": self.epochs,
            "max_steps": self.max_steps,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Cells run as Ray tasks, many at once: see :func:`train_cell`."""
        raise NotImplementedError


@ray.remote(num_cpus=1)
def train_cell(shared: tuple[dict[str, Any], Selection | int], cell: Cell) -> tuple[dict[str, Any], float]:
    """Return the answer of a cell, and the seconds that it took."""
    began = time.perf_counter()
    settings, rows = shared
    dynamic = raysel.DynamicSelection.local(
        cell.policy, rows, num_epochs=cell.epochs, seed=cell.seed, max_steps=cell.max_steps
    )
    trained = loop(settings["settings"])({**settings, "dynamic": dynamic, "seed": cell.seed})
    answer = {
        "seed": cell.seed,
        "policy": cell.policy.parameters(),
        "max_steps": cell.max_steps,
        **answer_of(trained),
    }
    return answer, time.perf_counter() - began
