"""`raysel measure`: the metrics of a workflow's pool and its groups, kept, and carried on when files are added.

DIR/
  index.json              the files that were measured
  sets.arrow, groups.arrow    the states: what is kept of them
  sets.parquet, groups.parquet, metrics.html, metrics.png, groups.png
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import raysel
from raysel.core.storage import write_text
from raysel.data.rowid import RowIndex, index_parquet, list_files
from raysel.errors import ConfigError, DataError, StateError
from raysel.gime import State, finalize, merge
from raysel.report import metrics
from raysel.workflow import steps
from raysel.workflow.config import Workflow
from raysel.workflow.run import Progress

_STATES = {"sets": "sets.arrow", "groups": "groups.arrow"}


def measure(
    workflow: Workflow, out: str | os.PathLike[str] | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure the pool, its groups and the target, and return ``sets`` and ``groups``: names to rows of `raysel.gime.measure`.

    out: by default ``runs/NAME-measure``. What an earlier call measured there with the same binding, grouping and target is not read again: only
    files that came since are. Ray must be up (see ``raysel.workflow.run.connect``). ConfigError for a workflow without metrics,
    DataError if a file that was measured changed or is gone.
    """
    if workflow.gime is None:
        raise ConfigError("The key 'gime' is missing: it says what the columns mean to the metrics.")
    steps.check(workflow)
    directory = Path(out) if out is not None else Path("runs") / f"{workflow.name}-measure"
    directory.mkdir(parents=True, exist_ok=True)
    progress = progress or Progress()
    paths = [workflow.pool.path] if isinstance(workflow.pool.path, str) else workflow.pool.path
    filesystem, files = list_files(paths)
    _, schema = index_parquet(filesystem, files)
    rule = steps.gime(workflow, schema)
    if workflow.target is not None:
        rule = rule.aim(raysel.read(workflow.target.path))
    by = steps.groups(workflow)
    wanted = {"sets": None, **({} if by is None else {"groups": by})}

    kept = {name: _kept(directory / _STATES[name], rule.binding, group) for name, group in wanted.items()}
    known = None
    if (directory / "index.json").exists() and all(state is not None for state in kept.values()):
        known = RowIndex.load(directory / "index.json")
    try:
        index, _ = index_parquet(filesystem, files, known)
    except DataError as error:
        raise DataError(f"pool.path: {error} Or remove {directory} to measure everything anew.") from None
    new = index.files[len(known.files) if known else 0 :]
    if new:
        rows = raysel.read([_uri(paths, file.path) for file in new])
        for name, group in wanted.items():
            progress.note(name, "...")
            found, before = rule.state(rows, group), kept[name]
            kept[name] = found if known is None or before is None else merge(before, found)
    reused = f", {len(known.files)} not read again" if known else ""
    progress.done("measure", f"{len(new)} file(s) read{reused}")

    states = {name: state for name, state in kept.items() if state is not None}
    (directory / "index.json").unlink(missing_ok=True)  # what is half written is measured anew
    for name, state in states.items():
        state.save(directory / _STATES[name])
    index.save(directory / "index.json")
    sets = {"pool": finalize(states["sets"])}
    if workflow.target is not None:
        sets["target"] = rule.measure(raysel.read(workflow.target.path))
    pq.write_table(steps.side_by_side(sets), directory / "sets.parquet")
    results: dict[str, Any] = {
        "sets": {name: table.to_pylist() for name, table in sets.items()},
        "groups": {},
    }
    if "groups" in states:
        table = finalize(states["groups"])
        pq.write_table(table.replace_schema_metadata(None), directory / "groups.parquet")
        for row in table.to_pylist():
            results["groups"].setdefault("null" if row["group"] is None else row["group"], []).append(row)
        metrics.write_png(
            metrics.largest(results["groups"]), f"{workflow.name}: groups", directory / "groups.png"
        )
    metrics.write_png(results["sets"], workflow.name, directory / "metrics.png")
    write_text(directory / "metrics.html", metrics.page(workflow.name, results["sets"], results["groups"]))
    return results


def _kept(path: Path, binding: raysel.gime.Binding, by: Any) -> State | None:
    """An earlier state of the same meaning, None if there is none."""
    if not path.exists():
        return None
    try:
        state = State.load(path)
    except StateError as error:
        raise StateError(f"{error} (remove {path.parent} and all files are read anew)") from None
    return state if (state.binding, state.by) == (binding, by) else None


def _uri(paths: list[str], file: str) -> str:
    """A file as `raysel.read` takes it: under the scheme of what it was listed from."""
    scheme, found, _ = paths[0].partition("://")
    return f"{scheme}://{file}" if found else file
