"""Select rows of the pool with the workflow's selectors, one after another, and at random as a control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

import raysel
from raysel.cluster.blocks import gather
from raysel.core.arrays import positions
from raysel.core.budgets import budget_of, budget_rows
from raysel.core.fingerprint import library_versions
from raysel.core.storage import Place
from raysel.data.row_index import ID
from raysel.errors import COLUMNS, ConfigError, DataError, RayselError, first
from raysel.selection import Selection
from raysel.selector_inputs import rows_of_bytes
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
            raise ConfigError(
                f"The key 'target' is missing: the selector under '{self.method.where}' needs a sample of the data that the model "
                "is for; add target: {path: ...}."
            )
        if not self.method.builtin:
            return
        labels = {"label": look.workflow.pool.label} if "per_class" in self.method.parameters else {}
        selector = self.method.make(**labels)
        budget = getattr(selector, "budget", None)
        known = "pool" in look.counts
        if known and isinstance(budget, (int, float)) and not isinstance(budget, bool):
            try:
                budget_rows(budget, look.counts["pool"])
            except ConfigError as error:
                raise ConfigError(f"{self.method.where}.{error}") from None
        for field in ("stratify", "score", "label"):
            column = getattr(selector, field, None)
            if column is not None and column not in look.schemas["pool"].names:
                raise DataError(
                    f"{self.method.where}.{field}: The pool has no column '{column}'; its columns are "
                    f"{first(sorted(look.schemas['pool'].names), COLUMNS)}."
                )

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the selector with its parameters and code, the rows, and the vectors if it uses them."""
        vectors = run.finished["embed"].directory.name if uses(self.method, "vectors") else None
        by_class = "per_class" in self.method.parameters
        roles = ["avoid"] if self._avoids(run) else []
        return {
            "method": self.method.key(),
            "rows": run.digests("pool", "target", *roles) if vectors is None else [vectors, roles],
            "labels": [run.digests("pool", "target"), self._labels(run)] if by_class else None,
            "selected": digest_of(run.rows),
            "validation": run.drawn and run.drawn.key,
            "seed": run.workflow.seed,
            "versions": library_versions("numpy", "scikit-learn"),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Save the selection, as one from the complete pool."""
        before = run.rows
        selector = self._make(run)
        run.progress.note(self.title, self.method.title)
        targets = []
        more: dict[str, Dataset] = {}
        if uses(self.method, "vectors"):
            pool = run.vectors("pool")
            targets = [run.vectors("target")] if uses(self.method, "target") else []
            more = {"avoid": run.vectors("avoid")} if self._avoids(run) else {}
            if getattr(selector, "per_class", None) is not None:
                pool = _with_labels(pool, run.pool(), selector.label, selector.label)
                if selector.per_class == "target":
                    label = run.inputs["target"].label
                    if label is None:
                        raise ConfigError(
                            f"The key 'target.label' is missing: {self.method.where}.per_class needs the class of each target row."
                        )
                    targets = [_with_labels(targets[0], run.target(), label, selector.label)]
        else:
            pool = run.pool()
            targets = [run.target()] if uses(self.method, "target") else []
            more = {"avoid": run.read("avoid")} if self._avoids(run) else {}
        try:
            if uses(self.method, "vectors") and isinstance(getattr(selector, "budget", None), str):
                # A budget in bytes is one of the pool's rows, not of their vectors.
                rows = rows_of_bytes(selector.budget, run.pool(), run.count(run.rows))
                selector = replace(selector, budget=budget_of(rows))
            chosen = selector.select(pool, *targets, **more)
        except RayselError as error:
            raise type(error)(_placed(self.method.where, str(error))) from error
        if not isinstance(chosen, Selection):
            raise ConfigError(
                f"{self.method.where}: {self.method.spec}.select returned a {type(chosen).__name__}, not a Selection."
            )
        chosen = run.of_the_pool(chosen, before)
        chosen.save(directory / "selection")
        return {"kept": len(chosen), "title": self.method.title}

    def _avoids(self, run: RunDirectory) -> bool:
        return run.workflow.avoid is not None and uses(self.method, "avoid")

    def _make(self, run: RunDirectory) -> Any:
        """Return the selector; the classes that it selects by are the labels of the pool."""
        return self.method.make(seed=run.workflow.seed, **self._labels(run))

    def _labels(self, run: RunDirectory) -> dict[str, str | None]:
        return {"label": run.workflow.pool.label} if "per_class" in self.method.parameters else {}


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

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Save the random selection."""
        pool = run.among(run.base)
        chosen = raysel.Random(budget_of(run.count(run.rows)), seed=run.workflow.seed).select(pool)
        chosen = run.of_the_pool(chosen, run.base)
        chosen.save(directory / "selection")
        return {"kept": len(chosen)}


def uses(method: Method, what: str) -> bool:
    """Whether a selector declares that it uses ``vectors``, the ``target`` or the rows to ``avoid``; False for code that was not loaded."""
    if not method.builtin and "type" not in method.__dict__:
        return False
    return bool(getattr(method.type, f"uses_{what}", False))


def _with_labels(vectors: Dataset, rows: Dataset, column: str, name: str) -> Dataset:
    """Return the vectors with the column ``column`` of the rows with the same ids, as ``name``."""
    table = gather(rows, [ID, column], "rows with labels").sort_by(ID)
    shared = ray.put((table[ID].to_numpy(), table[column].combine_chunks()))
    return vectors.map_batches(_join_labels, fn_args=(shared, name), batch_format="pyarrow", batch_size=None)


def _join_labels(table: pa.Table, shared: Any, name: str) -> pa.Table:
    ids, labels = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    return table.append_column(name, labels.take(pa.array(positions(ids, table[ID].to_numpy())[0])))


def _placed(where: str, message: str) -> str:
    """Return a selector's message under its configuration path, where it begins with one of its fields."""
    return f"{where}.{message}" if message.startswith("budget:") else message
