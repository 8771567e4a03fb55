"""Run a workflow in a run directory: a loop over its steps, of which finished ones are reused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import raysel
from raysel.cluster.connect import connect, ray_for_code
from raysel.cluster.errors import name_losses
from raysel.core.storage import Place, entries, is_folder, output
from raysel.errors import RunError
from raysel.report import page
from raysel.report.ledger import STAGES, Ledger, LedgerEntry
from raysel.report.results import (
    Arm,
    CalibrationCost,
    Chosen,
    ClassCount,
    Curve,
    Data,
    Epoch,
    Extremes,
    Goal,
    LabelCheck,
    Leaked,
    Measured,
    Metric,
    PolicyUse,
    ReasonShown,
    RunResults,
    Scored,
    ShownLabel,
    ShownRow,
    Usage,
)
from raysel.report.tables import run_text
from raysel.workflow import config, steps
from raysel.workflow.config import Workflow, difference, digest
from raysel.workflow.directory import Done, Progress, RunDirectory, manifest, now, open_run, versions
from raysel.workflow.inputs import seen
from raysel.workflow.load import load_check

__all__ = ["Progress", "RunDirectory", "connect", "open_run", "report", "run", "runs", "versions"]


def run(
    workflow: Workflow | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    fresh: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
) -> RunResults:
    """Run a workflow. Without the key ``train``, it only selects rows.

    Parameters
    ----------
    workflow : Workflow or path
        A workflow file, or the object that `raysel.workflow.config.load` returned for it.
    out : path or URI, optional
        The run directory, by default ``runs/NAME``; it can be on an object store, as ``s3://bucket/runs``. Steps
        that an earlier run finished there with the same settings, code and data are not run again.
    fresh : bool
        Remove the results of earlier runs from the directory.
    address : str, optional
        Ray cluster to join if Ray is not connected yet; by default that of RAY_ADDRESS, or a new one on this
        machine.
    progress : Progress, optional
        Where progress is shown; by default on stderr.

    Returns
    -------
    RunResults
        What the report shows; ``path`` is the run directory.

    Raises
    ------
    ConfigError, DataError
        For a workflow or rows that cannot be used.
    RunError
        If the directory is not a run directory, or a node of the cluster cannot read it.
    ResourceError
        If the cluster cannot be joined, or cannot place the workers.

    Examples
    --------
    >>> results = raysel.run("workflow.yaml", out="run")   # the tiny workflow that doctests share
    >>> list(results.arms)
    ['chain']
    """
    flow = config.open_workflow(workflow)
    found = steps.check(flow)
    with ray_for_code(address):
        load_check(flow)
        steps.check(flow, found=found)  # the code that is loaded now says what it needs
    connect(address)
    train = flow.train
    if flow.trains:
        steps.check_room(train.fewest_workers, train.cpus_per_worker, train.gpus_per_worker)
        if train.data == "stream":
            steps.check_reading(train)
    with open_run(flow, out, progress, fresh=fresh) as this:
        steps.check_output(flow, this.out)
        if not found.exact:
            steps.check(flow, found=seen(found, this.inputs))  # with the rows that were only now counted
        _do(this, steps.plan(flow))
        left = results(this)
        left.save(this.out / "results" / f"{digest(left.config)}.json")
        left.save(this.out / "results.json")
        left.ledger.save(this.out / "ledger.json")
        report(this.out)
        this.progress.log(run_text(left))
    return left


def _do(run: RunDirectory, todo: list[steps.Step]) -> None:
    """Run the steps in their order; those that train share workers if they can."""
    arms = [step for step in todo if isinstance(step, steps.Train)]

    def train() -> None:
        for arm in arms:
            run.do(arm)

    for step in todo:
        if not isinstance(step, steps.Train) or step.workers is None:
            run.do(step)
        elif step is arms[0]:
            with name_losses("train"):
                step.workers.run(train)


def report(directory: str | os.PathLike[str]) -> Place:
    """Write ``report.html`` of a finished run from its ``results.json``. Raises RunError if there is none.

    Of a JSON file with saved results, write the report next to it, as ``FILE.html``.
    """
    if os.path.isfile(directory):
        if Path(directory).suffix != ".json":
            raise RunError(
                f"No report can be written from {directory}: the file has no results; give the directory of a finished run, "
                "such as runs/NAME, or a JSON file with saved results."
            )
        return page.write(RunResults.load(directory), Path(directory).with_suffix(".html"))
    place = output(directory)
    return page.write(RunResults.load(place / "results.json"), place / "report.html")


def runs(directory: str | os.PathLike[str]) -> list[tuple[RunResults, list[tuple[str, Any, Any]]]]:
    """Results of every configuration that was run in a directory, oldest first.

    Returns
    -------
    list of (RunResults, list)
        The second part names the keys that differ from the first run's: path, value there, value here.

    Raises
    ------
    RunError
        If the directory is not a run's.
    """
    place = output(directory)
    if manifest(place) is None:
        raise RunError(f"{place} is not a run directory; give one that 'raysel run' has written.")
    there = {name: entry for name, entry in entries(place / "results").items() if name.endswith(".json")}
    files = sorted((name for name in there if name[0] != "."), key=lambda name: there[name].mtime_ns)
    found = [RunResults.load(place / "results" / name) for name in files]
    return [
        (one, difference(found[0].config, one.config) if one.config != found[0].config else [])
        for one in found
    ]


# ---- what a run found ----------------------------------------------------------------------------------------


def results(run: RunDirectory) -> RunResults:
    """Collect the results of a run's steps."""
    flow = run.workflow
    order = [name for name in ("full", "random", "chain") if f"train-{name}" in run.finished]
    arms = {name: arm(name, run.finished[f"train-{name}"]) for name in order}
    goal = Goal(**run.finished[f"train-{order[0]}"].answer["goal"]) if order else Goal()
    return RunResults(
        name=flow.name,
        created=now(),
        raysel=raysel.__version__,
        versions=versions(),
        seed=flow.seed,
        config=flow.describe(),
        data=data(run),
        inputs={role: entry.digest for role, entry in run.inputs.items()},
        trusted=trusted(run),
        selection=_chosen(run),
        metrics=measured(run),
        usage=_usage(run),
        arms=arms,
        ledger=Ledger(
            [_entry(run, arms[name], run.finished[f"train-{name}"]) for name in order],
            goal=goal,
            full_samples=run.count(run.base) * flow.train.epochs if order else None,
        ),
        goal=goal,
        labels=_labels(run),
        leaked=Leaked(**leaked) if (leaked := _answer(run, "leakage")) else None,
        path=str(run.out),
    )


def data(run: RunDirectory) -> Data:
    """Return the number of rows per role."""
    counts = {role: entry.count for role, entry in run.inputs.items()}
    if run.drawn is not None:
        counts[run.drawn.role] -= len(run.drawn.ids)
        counts["validation"] = len(run.drawn.ids)
    return Data(
        **counts,
        classes=tuple(_answer(run, "arrays").get("classes", ())),
        validation_from=None if run.drawn is None else run.drawn.role,
    )


def trusted(run: RunDirectory) -> tuple[str, ...]:
    """Return the roles whose files were compared by size and modification time."""
    return tuple(role for role, entry in run.inputs.items() if entry.rows.trust == "mtime")


def arm(name: str, done: Done) -> Arm:
    """Return the results of one training."""
    answer = done.answer
    epochs = tuple(Epoch(**epoch) for epoch in answer["epochs"])
    folder = f"steps/{done.directory.name}"
    return Arm(name, answer["title"], answer["rows"], epochs, answer["metrics"], folder)


def measured(run: RunDirectory) -> Measured | None:
    """Return the metrics; None if the run has no such step."""
    if "gime" not in run.finished:
        return None
    answer = run.finished["gime"].answer
    cost = answer.get("calibration")
    names = ("count", "rows", "rows_trained", "seconds")
    return Measured(
        sets={name: tuple(Metric(**row) for row in rows) for name, rows in answer["sets"].items()},
        thresholds={name: tuple(ends) for name, ends in answer.get("thresholds", {}).items()},
        reached=answer.get("reached", {}),
        calibration=None if cost is None else CalibrationCost(**{name: cost[name] for name in names}),
    )


def _steps_of_choosing(run: RunDirectory) -> dict[str, list[Done]]:
    """Return the finished steps of each stage of the selection."""

    def of(*names: str) -> list[Done]:
        return [done for name, done in run.finished.items() if name.startswith(names)]

    return {"metrics": of("gime", "factors"), "embedding": of("embed"), "selection": of("select")}


def _chosen(run: RunDirectory) -> Chosen | None:
    folder = _folder(run)
    if not folder or run.rows is None:
        return None
    infos, here = [], run.rows.info
    while here:
        infos.append(here)
        here = here.get("before", {})
    curve = run.rows.info.get("curve", {"rows": (), "kl": ()})
    return Chosen(
        method=", then ".join(info["method"] for info in reversed(infos) if info.get("method")),
        kept=len(run.rows),
        pool=run.count(run.base),
        curve=Curve(tuple(curve["rows"]), tuple(curve["kl"])),
        classes=tuple(ClassCount(**entry) for entry in _answer(run, "classes").get("classes", ())),
        folder=folder,
        notes=tuple(str(note) for info in reversed(infos) for note in info.get("notes", ())),
        reasons=tuple(
            ReasonShown(
                one["reason"], one["kept"], one["rows"], tuple(ShownRow(**row) for row in one["samples"])
            )
            for one in _answer(run, "gallery").get("reasons", ())
        ),
    )


def _labels(run: RunDirectory) -> LabelCheck | None:
    answer = _answer(run, "labels")
    return (
        LabelCheck(**answer | {"samples": tuple(ShownLabel(**one) for one in answer["samples"])})
        if answer
        else None
    )


def _answer(run: RunDirectory, step: str) -> dict[str, Any]:
    """Return the answer of a step; empty if the run has no such step."""
    return run.finished[step].answer if step in run.finished else {}


def _folder(run: RunDirectory) -> str:
    """Return the folder of the last step that selected rows, in the run directory."""
    made = [done.directory for done in run.finished.values() if is_folder(done.directory / "selection")]
    made = [folder for folder in made if not folder.name.startswith("random-")]
    return f"steps/{made[-1].name}/selection" if made else ""


def _usage(run: RunDirectory) -> Usage | None:
    if "usage" not in run.finished:
        return None
    found, answer = run.finished["factors"].answer, run.finished["usage"].answer
    scored = {name: found["scored"][name] for name in ("samples", "units", "live_units", "active", "classes")}
    shown = answer.get("extremes")
    return Usage(
        scored=Scored(**scored),
        rare_units=found["rare_units"],
        unexplained=found["unexplained"],
        policies=tuple(
            PolicyUse(p["title"], p["gini"], p["variation"], tuple(map(tuple, p["times"])), tuple(p["rare"]))
            for p in answer.get("policies", ())
        ),
        alpha=tuple(answer.get("alpha", ())),
        extremes=None
        if shown is None
        else Extremes(
            shown["label"],
            tuple(ShownRow(**sample) for sample in shown["most"]),
            tuple(ShownRow(**sample) for sample in shown["least"]),
        ),
    )


def _entry(run: RunDirectory, arm: Arm, done: Done) -> LedgerEntry:
    """Return the costs of an arm: a control is only drawn, the chain also pays for its selection."""
    planning = sum(epoch.planning_seconds for epoch in arm.epochs)
    evaluation = sum(epoch.evaluation_seconds for epoch in arm.epochs)
    training = sum(epoch.seconds for epoch in arm.epochs) - planning - evaluation
    passes = sum(epoch.trained for epoch in arm.epochs)
    choosing: dict[str, list[Done]] = {"embedding": [], "metrics": [], "selection": []}
    proxy = 0
    if arm.name == "chain":
        choosing = _steps_of_choosing(run)
        found = measured(run)
        proxy = 0 if found is None or found.calibration is None else found.calibration.rows_trained
    elif arm.name == "random":
        choosing["selection"] = [run.finished["random"]]
    start = done.answer[
        "startup"
    ]  # of the workers, which every arm would need, but which one arm has waited for
    waited = start if done.answer["started"] else 0.0
    return LedgerEntry(
        arm=arm.name,
        title=arm.title,
        rows=arm.rows,
        epochs=len(arm.epochs),
        samples_forward=passes,
        samples_backward=passes,
        samples_proxy=proxy,
        steps=sum(epoch.steps for epoch in arm.epochs),
        seconds={
            **{stage: sum(step.seconds for step in made) for stage, made in choosing.items()},
            "start-up": start,
            "planning": planning,
            "training": training,
            # All the rest of the arm's wall time: evaluation, checkpoints, epochs done twice, the start of its own workers.
            "other": max(0.0, done.seconds - waited - planning - training),
        },
        metrics=arm.metrics,
        reused=tuple(stage for stage in STAGES if any(step.reused for step in choosing.get(stage, [done]))),
    )
