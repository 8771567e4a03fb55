"""Why a run selected or dropped a row, and in which epochs it was trained: what ``raysel explain`` prints."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.numbers import whole
from raysel.core.storage import Place, exists, output
from raysel.data.row_index import ID
from raysel.errors import ConfigError, RunError
from raysel.report.results import Arm, RunResults
from raysel.selection import Selection
from raysel.train.epoch_log import EPOCHS, sample_epochs
from raysel.workflow.directory import manifest

_EXAMPLES = 5  # ids per reason


def explain(run: str | os.PathLike[str], sample: int | None = None, dropped: int | None = None) -> str:
    """Return why a row of the pool was selected or dropped and when it was trained, or how many rows had which reason.

    Parameters
    ----------
    run : path
        Directory of a finished run. Of several configurations that were run there, the last one counts.
    sample : int, optional
        ``sample_id`` of the row. The workflow's own training, not a control, is shown with each epoch that trained
        the row, its loss there and its weight. Default: all reasons, with the number of rows and some ids for each.
    dropped : int, optional
        Instead, list this number of dropped rows for each reason, with their file and score.

    Returns
    -------
    str
        A few lines of text.

    Raises
    ------
    RunError
        If the directory is not a run's, a file is damaged, or the last run has no selection; with ``sample``, if it also
        has no record of its training.
    ConfigError
        If a selection has no such row, and for arguments that are no whole numbers.
    """
    if sample is not None and dropped is not None:
        raise ConfigError(
            "explain: The arguments sample and dropped cannot be given together; remove one of them."
        )
    if dropped is not None:
        dropped = whole("dropped", dropped, 1)
    if sample is not None:
        sample = whole("sample", sample)
    place = output(run)
    results = _results(place)
    selection = _selection(place, results)
    if sample is not None:
        arm = results.arms.get("chain")
        lines = [] if selection is None else _sample(selection, sample)
        lines += _trained(place, arm, sample, selection) if arm is not None and arm.folder else []
        if lines:
            return "\n".join(lines)
    if selection is None:
        raise RunError(f"The last run in {place} has no selection, because it trained on the complete pool.")
    return _reasons(selection) if dropped is None else _dropped(selection, dropped)


def _results(run: Place) -> RunResults:
    if manifest(run) is None or not exists(run / "results.json"):
        raise RunError(
            f"{run} is not the directory of a finished run; give one that 'raysel run' has written."
        )
    return RunResults.load(run / "results.json")


def _selection(run: Place, results: RunResults) -> Selection | None:
    """Return the selection of the run, None if it trained on the complete pool."""
    chosen = results.selection
    if chosen is None or not chosen.folder:
        return None
    return Selection.load(_inside(run, chosen.folder, r"steps/(?!\.)[^/]+/selection"))


def _inside(run: Place, name: str, pattern: str) -> Place:
    """Return a folder of the run that its results name; raise RunError if the name or a link leads out of the run."""
    folder = run / name
    inside = not isinstance(run, Path) or Path(folder).resolve().is_relative_to(run.resolve())
    if not inside or not re.fullmatch(pattern, name):
        raise RunError(
            f"{run / 'results.json'} is damaged: it names a folder outside of {run}; run the workflow again."
        )
    return folder


def _trained(run: Place, arm: Arm, sample: int, selection: Selection | None) -> list[str]:
    """Return lines about the epochs of the workflow's own training that trained a row; none for a row that was dropped."""
    if selection is not None and sample not in selection.ids:
        return []
    epochs = len(arm.epochs)
    folder = _inside(run, f"{arm.folder}/{EPOCHS}", rf"steps/(?!\.)[^/]+/{EPOCHS}")
    found = sample_epochs(folder, epochs, sample)
    trained = sum(not math.isnan(loss) for _, loss, _ in found)
    if not found and selection is None:
        return [
            f"sample_id {sample} was trained in none of the {epochs} epochs of '{arm.title}', or the pool has no such row."
        ]
    lines = [
        f"sample_id {sample} was trained in {trained} of the {epochs} epochs of '{arm.title}'{':' if found else '.'}"
    ]
    for epoch, loss, weight in found:
        told = "planned, but no loss was recorded" if math.isnan(loss) else f"loss {_short(loss)}"
        lines.append(f"  epoch {epoch}: {told}, weight {_short(weight)}")
    return lines


def _sample(selection: Selection, sample: int) -> list[str]:
    for what, table in (("was selected", selection.table), ("was dropped", selection.dropped)):
        if table is None:
            continue
        found = table.take(np.flatnonzero(table[ID].to_numpy() == sample)).to_pylist()
        if found:
            row = {name: value for name, value in found[0].items() if name not in (ID, "reason")}
            lines = [f"sample_id {sample} {what}: {found[0]['reason']}."]
            lines += [f"  file: {place}" for place in _place(selection, sample)]
            if (meaning := selection.info.get("score")) and row.get("score") is not None:
                row["score"] = f"{_short(row['score'])} ({meaning})"
            return [*lines, *(f"  {name}: {_short(value)}" for name, value in row.items())]
    rows = selection.info.get("pool_rows")
    raise ConfigError(
        f"No reason is recorded for sample_id {sample}. Either the pool{f' of {rows:,} rows' if rows else ''} has no row with this id, or the "
        "row was dropped and the selector does not list the rows that it dropped."
    )


def _place(selection: Selection, sample: int) -> list[str]:
    """Return the file of a row and its number there, if they are known."""
    start = 0
    for file in selection.pool.files if selection.pool is not None else ():
        if sample < start + file.rows:
            return [f"{file.name}, row {sample - start} (counted from 0)"]
        start += file.rows
    return []


def _dropped(selection: Selection, count: int) -> str:
    """List the first ``count`` dropped rows of each reason."""
    table = selection.dropped
    if table is None:
        raise ConfigError("dropped: The selector does not list the rows that it dropped.")
    if not table.num_rows:
        return "Dropped: 0 rows"
    coded = pc.dictionary_encode(table["reason"].cast(pa.string())).combine_chunks()
    codes, lines = coded.indices.to_numpy(), [f"Dropped: {table.num_rows:,} rows"]
    rows = np.bincount(codes)
    for code in np.argsort(-rows, kind="stable").tolist():
        lines.append(f"  {rows[code]:,}  {coded.dictionary[code]}")
        for row in table.take(np.flatnonzero(codes == code)[:count]).to_pylist():
            values = [
                f"{name} {_short(value)}"
                for name, value in row.items()
                if value is not None and name not in (ID, "reason")
            ]
            lines.append("    " + ", ".join([f"{ID} {row[ID]}", *_place(selection, row[ID]), *values]))
    return "\n".join(lines)


def _reasons(selection: Selection) -> str:
    lines = []
    for what, table in (("Selected", selection.table), ("Dropped", selection.dropped)):
        if table is None:
            lines.append("Dropped rows: the selector does not list them.")
            continue
        lines.append(f"{what}: {table.num_rows:,} rows")
        reasons = table["reason"].to_pylist()
        ids = table[ID].to_numpy()
        for reason, rows in Counter(reasons).most_common(20):
            some = ids[np.array([one == reason for one in reasons])][:_EXAMPLES]
            lines.append(
                f"  {rows:,}  {reason} (sample_id {', '.join(map(str, some))}{', ...' if rows > len(some) else ''})"
            )
        if len(set(reasons)) > 20:
            lines.append(f"  and {len(set(reasons)) - 20:,} further reasons")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


__all__ = ["explain"]
