"""Write the rows that training reads as memory-mapped arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysel.data.store import write_arrays
from raysel.errors import ConfigError
from raysel.workflow.directory import RunDirectory
from raysel.workflow.footers import check_ids, check_input, check_labels
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Arrays(Step):
    """Pool, test and validation rows as arrays; the classes are the pool's."""

    input: str
    name: str = "arrays"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "rows as arrays, for training"

    def check(self, look: Look) -> None:
        """Check the labels and the model's input column of every role that is trained or scored on."""
        flow = look.workflow
        for role in ("pool", "test", "validation"):
            rows = flow.rows(role)
            if rows is None:
                continue
            if rows.label is None:
                use = "training needs" if role == "pool" else "scoring needs"
                raise ConfigError(
                    f"The key '{role}.label' is missing: {use} the column that holds the class."
                )
        check_input(look, self.input)
        check_labels(look)
        check_ids(look)

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Rows, labels and the input column."""
        roles = self._roles(run)
        labels = {role: run.inputs[role].label for role in roles}
        return {"rows": run.digests(*roles), "labels": labels, "input": self.input}

    def run(self, run: RunDirectory, directory: Path) -> dict[str, Any]:
        """Write a folder of arrays per role."""
        classes = None
        for role in self._roles(run):
            label = str(run.inputs[role].label)
            found = write_arrays(run.read(role), directory / role, self.input, label, classes)
            classes = found if classes is None else classes
        return {"classes": [str(name) for name in classes or ()]}

    def _roles(self, run: RunDirectory) -> list[str]:
        """Return the pool first, since it fixes the classes; the target if validation rows were drawn from it."""
        drawn = [] if run.drawn is None else [run.drawn.role]
        wanted = dict.fromkeys(("pool", "test", "validation", *drawn))
        return [role for role in wanted if role in run.inputs]
