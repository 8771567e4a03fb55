"""Select rows of the pool with the workflow's selectors, one after another, and at random as a control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import raysel
from raysel.core.budgets import budget_rows
from raysel.core.fingerprint import library_versions
from raysel.errors import ConfigError, DataError, RayselError
from raysel.gio.distributed import rows_of_bytes
from raysel.selection import Selection
from raysel.workflow.config import Method
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Select(Step):
    """One selector of ``select:``, applied to the rows that the ones before it have kept."""

    method: Method
    name: str = "select"
    selects: bool = True

    @property
    def about(self) -> str:
        """What the step makes."""
        return f"selection by {self.method.title}"

    def check(self, look: Look) -> None:
        """Check the budget and the columns that built-in selectors name."""
        if uses(self.method, "target") and look.workflow.target is None:
            raise ConfigError(f"The key 'target' is missing: {self.method.where} selects rows for a target.")
        if not self.method.builtin:
            return
        selector = self.method.make()
        budget = getattr(selector, "budget", None)
        known = "pool" in look.counts
        if known and isinstance(budget, (int, float)) and not isinstance(budget, bool):
            try:
                budget_rows(budget, look.counts["pool"])
            except ConfigError as error:
                raise ConfigError(f"{self.method.where}.{error}") from None
        stratify = getattr(selector, "stratify", None)
        if stratify is not None and stratify not in look.schemas["pool"].names:
            raise DataError(
                f"{self.method.where}.stratify: The pool has no column '{stratify}'; its columns are "
                f"{', '.join(sorted(look.schemas['pool'].names))}."
            )

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the selector with its parameters and code, the rows, and the vectors if it uses them."""
        vectors = run.finished["embed"].directory.name if uses(self.method, "vectors") else None
        return {
            "method": self.method.key(),
            "rows": run.digests("pool", "target") if vectors is None else vectors,
            "selected": digest_of(run.rows),
            "validation": run.drawn and run.drawn.key,
            "seed": run.workflow.seed,
            "versions": library_versions("numpy", "scikit-learn"),
        }

    def run(self, run: RunDirectory, directory: Path) -> dict[str, Any]:
        """Save the selection, as one from the complete pool."""
        flow, before = run.workflow, run.rows
        selector = self.method.make(seed=flow.seed)
        run.progress.note(self.title, self.method.title)
        targets = []
        if uses(self.method, "vectors"):
            pool = run.vectors("pool")
            targets = [run.vectors("target")] if uses(self.method, "target") else []
        else:
            pool = run.pool()
            targets = [run.target()] if uses(self.method, "target") else []
        try:
            if uses(self.method, "vectors") and isinstance(getattr(selector, "budget", None), str):
                # A budget in bytes is one of the pool's rows, not of their vectors.
                rows = rows_of_bytes(selector.budget, run.pool(), run.count(run.rows))
                selector = replace(selector, budget=rows)
            chosen = selector.select(pool, *targets)
        except RayselError as error:
            raise type(error)(_placed(self.method.where, str(error))) from error
        if not isinstance(chosen, Selection):
            raise ConfigError(
                f"{self.method.where}: {self.method.spec}.select returned a {type(chosen).__name__}, not a Selection."
            )
        chosen = run.of_the_pool(chosen, before)
        chosen.save(directory / "selection")
        return {"kept": len(chosen), "title": self.method.title}


@dataclass(frozen=True)
class RandomRows(Step):
    """The control: as many random rows of the pool as the workflow has selected."""

    name: str = "random"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "as many random rows, for the control"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Rows, their number and the seed."""
        return {
            "rows": run.digests("pool"),
            "validation": run.drawn and run.drawn.key,
            "count": run.count(run.rows),
            "seed": run.workflow.seed,
        }

    def run(self, run: RunDirectory, directory: Path) -> dict[str, Any]:
        """Save the random selection."""
        pool = run.among(run.base)
        chosen = raysel.Random(run.count(run.rows), seed=run.workflow.seed).select(pool)
        chosen = run.of_the_pool(chosen, run.base)
        chosen.save(directory / "selection")
        return {"kept": len(chosen)}


def uses(method: Method, what: str) -> bool:
    """Whether a selector declares that it uses ``vectors`` or the ``target``; False for code that was not loaded."""
    if not method.builtin and "type" not in method.__dict__:
        return False
    return bool(getattr(method.type, f"uses_{what}", False))


def _placed(where: str, message: str) -> str:
    """Return a selector's message under its configuration path, where it begins with one of its fields."""
    return f"{where}.{message}" if message.startswith("budget:") else message
