"""`raysel measure`: the metrics of a workflow's pool and its groups, kept, and extended when files are added.

::

    DIR/
      index.json              the files that were measured
      inputs/                 files that are not Parquet, as Parquet
      sets.arrow, groups.arrow    their states, which are merged with those of new files
      measure.json, sets.parquet, groups.parquet, metrics.html, metrics.png, groups.png
  log.txt                 what the commands wrote, with the time of each line
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

import raysel
from raysel.cluster.connect import connect
from raysel.cluster.errors import name_losses
from raysel.cluster.shared import check_shared
from raysel.core.storage import Place, exists, make_folder, output, remove, write_table, write_text
from raysel.data.datasource import parquet_dataset
from raysel.data.row_index import RowIndex
from raysel.errors import ConfigError, DataError, StateError
from raysel.gime import State, finalize, merge
from raysel.report import metrics as pages
from raysel.report.results import MeasureResults, Metric
from raysel.workflow import config, steps
from raysel.workflow.config import Gime, Workflow
from raysel.workflow.directory import Progress
from raysel.workflow.inputs import Input, numbered
from raysel.workflow.lock import alone
from raysel.workflow.log import LOG, logged
from raysel.workflow.steps.measure import groups, metrics, side_by_side

_STATES = {"sets": "sets.arrow", "groups": "groups.arrow"}


def measure(
    workflow: Workflow | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> MeasureResults:
    """Measure the pool of a workflow, its groups and the target.

    Parameters
    ----------
    workflow : Workflow or path
        As in `raysel.run`.
    out : path, optional
        By default ``runs/NAME-measure``. Files that an earlier call measured there with the same binding,
        grouping and target are not read again; only files that were added later are read.
    address : str, optional
        As in `raysel.run`.
    progress : Progress, optional
        Where progress is shown; by default on stderr.

    Returns
    -------
    MeasureResults
        Metrics by set and by group; ``path`` is the directory.

    Raises
    ------
    ConfigError
        For a workflow without the key ``gime``.
    DataError
        If a file that was measured has changed or is missing.
    RunError
        If another process works in the directory, or a node of the cluster cannot read it.

    Examples
    --------
    >>> results = raysel.measure("workflow.yaml", out="measured")   # the tiny workflow that doctests share
    >>> list(results.sets)
    ['pool']
    """
    flow = config.open_workflow(workflow)
    if flow.gime is None:
        raise ConfigError(
            "The key 'gime' is missing: it declares which columns the metrics use, and what each of them means."
        )
    steps.check(flow)
    connect(address)
    directory = (Path("runs") / f"{flow.name}-measure" if out is None else output(out)).resolve()
    progress = progress or Progress()
    make_folder(directory)
    with ExitStack() as held:
        held.enter_context(alone(directory, lambda text: progress.done("waiting", text)))
        log = held.enter_context(logged(directory / LOG))
        log.write(f"raysel {raysel.__version__}")
        progress.log = log.write
        check_shared(directory)
        results = _measure(flow, flow.gime, directory, progress)
        progress.log(pages.text(results.sets))
    return results


def _measure(flow: Workflow, gime: Gime, directory: Place, progress: Progress) -> MeasureResults:
    target = None if flow.target is None else raysel.read(flow.target.paths, encoding=flow.target.encoding)
    place = directory / "inputs"

    def pool(known: RowIndex | None) -> Input:
        try:
            return numbered(
                "pool", flow.pool, place, known, lambda text: progress.note("pool", text), again=False
            )
        except DataError as error:
            advice = "" if known is None else f" Or remove {directory} to measure everything again."
            raise DataError(f"pool.path: {error}{advice}") from None

    found = pool(None)
    rule = metrics(gime, found.schema)
    if target is not None:
        rule = rule.aim(target)
    by = groups(gime)
    wanted = {"sets": None, **({} if by is None else {"groups": by})}

    kept = {name: _kept(directory / _STATES[name], rule.binding, group) for name, group in wanted.items()}
    known = None
    if exists(directory / "index.json") and all(state is not None for state in kept.values()):
        known = RowIndex.load(directory / "index.json")
        found = pool(known)
    index = found.index
    for sentence in found.sentences():
        progress.done("pool", sentence)
    new = index.files[len(known.files) if known else 0 :]
    if new:
        rows = parquet_dataset(replace(index, files=new))
        for name, group in wanted.items():
            progress.note(name, "metrics ...")
            with name_losses(name), progress.running(name):
                state, before = rule.state(rows, group), kept[name]
            kept[name] = state if known is None or before is None else merge(before, state)
    reused = f", {len(known.files)} reused" if known else ""
    progress.done("measure", f"{len(new)} files read{reused}")

    states = {name: state for name, state in kept.items() if state is not None}
    remove(directory / "index.json")  # what is half written is measured again
    for name, state in states.items():
        state.save(directory / _STATES[name])
    index.save(directory / "index.json")
    sets = {"pool": finalize(states["sets"], rule.metrics)}
    if target is not None:
        with name_losses("target"):
            sets["target"] = rule.measure(target)
    write_table(directory / "sets.parquet", side_by_side(sets))
    by_group: dict[str, list[Metric]] = {}
    if "groups" in states:
        table = finalize(states["groups"], rule.metrics)
        write_table(directory / "groups.parquet", table.replace_schema_metadata(None))
        for row in table.to_pylist():
            group = row.pop("group")
            by_group.setdefault("null" if group is None else group, []).append(Metric(**row))
    results = MeasureResults(
        name=flow.name,
        sets={name: _metrics(table) for name, table in sets.items()},
        groups={name: tuple(rows) for name, rows in by_group.items()},
        path=str(directory),
    )
    results.save(directory / "measure.json")
    if results.groups:
        pages.write_png(pages.largest(results.groups), f"{flow.name}: groups", directory / "groups.png")
    pages.write_png(results.sets, flow.name, directory / "metrics.png")
    write_text(directory / "metrics.html", pages.page(flow.name, results.sets, results.groups))
    return results


def _metrics(table: pa.Table) -> tuple[Metric, ...]:
    return tuple(Metric(**row) for row in table.to_pylist())


def _kept(path: Place, binding: raysel.gime.Binding, by: Any) -> State | None:
    """Return an earlier state with the same binding and grouping; None if there is none."""
    if not exists(path):
        return None
    try:
        state = State.load(path)
    except StateError as error:
        raise StateError(f"{error} Remove {path.parent} to read all files again.") from None
    return state if (state.binding, state.by) == (binding, by) else None
