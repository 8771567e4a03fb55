"""Tables for a terminal, at most 100 columns wide."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from raysel.report import numbers
from raysel.report.results import RunResults

WIDTH = 100
_LINES = 5  # of one difference, which may be a complete section
_ARM = "chain"  # the workflow's own selection and policy


def run_text(results: RunResults) -> str:
    """Return what `raysel run` prints: the ledger; without a training, where the selection is and how to use it."""
    chosen = results.selection
    if not results.only_selects or chosen is None:
        return results.ledger.text()
    folder, pool = f"{results.path}/{chosen.folder}", results.config["pool"]["path"]
    return (
        f"{chosen.method} selected {numbers.count(chosen.kept)} of the {numbers.count(chosen.pool)} pool rows.\n\n"
        f"Selection: {folder}\n"
        f"Use it in Python: raysel.Selection.load({folder!r}).apply(raysel.read({pool!r}))"
    )


def runs_text(runs: Sequence[tuple[RunResults, Sequence[tuple[str, Any, Any]]]]) -> str:
    """Return the table of the configurations that were run in one directory.

    Parameters
    ----------
    runs : sequence of (RunResults, sequence)
        Results, and the keys of the configuration that differ from those of the first run: path, value there, value
        here. See `raysel.workflow.run.runs`.

    Returns
    -------
    str
        One row per configuration: when it was run, the rows it selected from the pool, the reported metric of the workflow's
        own training on the test rows, its savings against training on all data, and the keys that differ. Long
        differences continue below.
    """
    if not runs:
        return "No run has finished in this directory."
    goals = {results.goal for results, _ in runs if results.arms}
    metric = next(iter(goals)).short if len(goals) == 1 else "metric"
    header = ["when (UTC)", "rows selected", metric, "samples", "time", "differs from the first in"]
    cells = [_row(results, named=len(goals) > 1) for results, _ in runs]
    widths = [max(map(len, column)) for column in zip(header[:-1], *cells, strict=True)]
    indent = sum(widths) + 2 * len(widths)
    saving = "- saving ".ljust(widths[3] + widths[4] + 2, "-")
    lines = [" " * (indent - len(saving) - 2) + saving, _joined(header[:-1], widths) + header[-1]]
    lines.append("-" * WIDTH)
    for number, (row, (_, differences)) in enumerate(zip(cells, runs, strict=True)):
        texts = [f"{path} {_value(there)} -> {_value(here)}" for path, there, here in differences]
        if not texts and number:
            texts = ["nothing"]
        parts = [part for text in texts for part in _wrapped(text, WIDTH - indent)] or [""]
        lines.append((_joined(row, widths) + parts[0]).rstrip())
        lines += [" " * indent + part for part in parts[1:]]
    return "\n".join(lines)


def _row(results: RunResults, named: bool) -> list[str]:
    arm, ledger = results.arms.get(_ARM), results.ledger
    kept = arm.rows if arm else results.selection.kept if results.selection else results.data.pool
    when = results.created.replace("T", " ")[:16]
    return [
        when,
        f"{numbers.count(kept)} / {numbers.count(results.data.pool)}",
        (f"{results.goal.short} " if named and arm else "") + results.goal.text(results.score(_ARM)),
        numbers.saving(ledger.saving_samples(_ARM)),
        numbers.saving(ledger.saving_seconds(_ARM)),
    ]


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the first cell on the left, the numbers on the right of their columns."""
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest), ""])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=_LINES, placeholder=" ...")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
