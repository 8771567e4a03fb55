"""Train several policies over several seeds at the budget that the workflow's own policy spends, and compare them.

The workflow's policy is trained first, seed by seed; what it back-propagates is the budget of every control with the
same seed. Each (policy, seed) is one process with one thread, a Ray task that runs ``raysel.train.loops.classify``
without Ray Train, in batches as large as those of all the workflow's workers together. A finished one is kept in
the run directory, which is the one that ``raysel run`` uses: called again, only what is missing is trained.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

import raysel
from raysel.cluster.errors import unwrap_errors
from raysel.dynamic.plan import Policy, part
from raysel.errors import ConfigError, RunError
from raysel.files import write_text
from raysel.report import comparison
from raysel.selection import Selection
from raysel.workflow import steps
from raysel.workflow.config import METHODS, Factors, Workflow, factors_of
from raysel.workflow.run import (
    DONE,
    DYNAMICS,
    Choice,
    Progress,
    RunDirectory,
    arrays,
    choose,
    open_run,
    versions,
)

POLICIES = ("full", "full-equal-steps", "random", "roundrobin", "infobatch")
_NAMES = {"random_prune": "random", "random_subset": "random-subset", "round_robin": "roundrobin"}
_METHODS = {_NAMES.get(method, method): method for method in METHODS}
_EQUAL_STEPS = "full-equal-steps"


@dataclass(frozen=True)
class Budget:
    """What the workflow's policy spent with one seed.

    rows: samples it chose among. epochs: of the run. passes: samples back-propagated. delta: its full-data tail
    begins at epoch floor(epochs * delta); 1 for none.
    """

    rows: int
    epochs: int
    passes: int
    delta: float

    @property
    def tail(self) -> int:
        """Epochs on all the data at the end."""
        return self.epochs - part(self.delta, self.epochs)

    @property
    def saving(self) -> float:
        """The share of all passes that was left out."""
        return 1 - self.passes / (self.rows * self.epochs)


@dataclass(frozen=True)
class _Cell:
    """One policy with one seed. max_steps: where training stops, None for the end of the epochs."""

    name: str
    seed: int
    rule: Policy
    epochs: int
    max_steps: int | None = None


def compare(
    workflow: Workflow,
    policies: Sequence[str] = POLICIES,
    seeds: int = 3,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every policy with ``seeds`` seeds, from the workflow's on, and return what compare.json holds.

    policies: names of controls and methods; the workflow's own policy is always among them. out: the run directory,
    by default ``runs/NAME``; leaves compare.json, compare.md, compare.png and compare.html there. Ray must be up
    (see ``raysel.workflow.run.connect``). ConfigError for an unknown policy, for no seed, for a workflow without test
    rows or without a dynamic policy, and for a budget that a control cannot reach; RunError as ``raysel run``.
    """
    counts = check(workflow, policies, seeds)
    steps.check_room(1, 1.0, workflow.train.gpus_per_worker)
    with open_run(workflow, out, progress) as this:
        own, names = _names(workflow, policies)
        choice = choose(this, counts["pool"], _factors(workflow, names))
        rows = choice.rows
        data, _ = arrays(this)
        tried = [workflow.seed + number for number in range(seeds)]
        found = _train(this, choice, data, own, names, tried)
        results = {
            "name": workflow.name,
            "created": this.created,
            "raysel": raysel.__version__,
            "versions": versions(),
            "seeds": tried,
            "config": workflow.model_dump(mode="json"),
            "data": {
                "pool": counts["pool"],
                "rows": len(rows) if isinstance(rows, Selection) else rows,
                "test": counts["test"],
            },
            "own": own,
            "policies": {name: _about(name, own, found[name]) for name in names},
        }
        write(results, this.out)
    return results


def check(workflow: Workflow, policies: Sequence[str], seeds: int) -> dict[str, int]:
    """What can be said before Ray starts; the rows by role. Raises as :func:`compare`."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"seeds: {seeds!r}; a comparison needs at least one, and three to show a spread.")
    _, names = _names(workflow, policies)
    if workflow.test is None:
        raise ConfigError("The key 'test' is missing: a comparison needs rows to score the policies on.")
    if workflow.dynamic.method == "full":
        raise ConfigError(
            "The key 'dynamic' names no policy that saves anything, so there is no budget to compare at; "
            "give one, for example with --set dynamic.method=infobatch."
        )
    return steps.check(workflow, _factors(workflow, names))


def _factors(workflow: Workflow, names: list[str]) -> Factors | None:
    """How samples are scored: as the workflow says, else by the defaults where RepDiv is one of the policies."""
    return factors_of(workflow.dynamic) or (Factors() if "repdiv" in names else None)


def write(results: dict[str, Any], directory: Path) -> None:
    """The comparison as JSON, Markdown, PNG and one HTML page in ``directory``."""
    steps.write_json(directory / "compare.json", results)
    write_text(directory / "compare.md", comparison.markdown(results))
    comparison.write_png(results, directory / "compare.png")
    write_text(directory / "compare.html", comparison.render(results))


# ---- policies and their budgets ------------------------------------------------------------------------------


def _names(workflow: Workflow, policies: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the workflow's own policy and all names in the order asked for, each once."""
    known = {_bare(name): name for name in (*_METHODS, _EQUAL_STEPS)}
    known |= {_bare(method): name for name, method in _METHODS.items()}
    names: list[str] = []
    for given in policies:
        name = known.get(_bare(given))
        if name is None:
            close = difflib.get_close_matches(_bare(given), known, n=1, cutoff=0.5)
            hint = (
                f"did you mean '{known[close[0]]}'?"
                if close
                else f"known are {', '.join(dict.fromkeys(known.values()))}."
            )
            raise ConfigError(f"policies: '{given}' is not known; {hint}")
        if name not in names:
            names.append(name)
    if not names:
        raise ConfigError(f"policies: none is named; known are {', '.join(dict.fromkeys(known.values()))}.")
    own = next(name for name, method in _METHODS.items() if method == workflow.dynamic.method)
    return own, names if own in names else [*names, own]


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").strip()


def _random(budget: Budget) -> Policy:
    """The same rescale and tail; InfoBatch's first epoch, on all the data, included."""
    pruning = budget.epochs - budget.tail - 1
    spared = budget.rows * budget.epochs - budget.passes
    if spared and spared >= budget.rows * pruning:
        raise ConfigError(
            f"random: its first epoch and the last {budget.tail} take all the data, so it spends more than "
            f"{budget.rows * (budget.tail + 1):,} passes and cannot be held to {budget.passes:,}."
        )
    return raysel.RandomPrune(spared / (budget.rows * pruning) if spared else 0.0, 1.0, budget.delta)


def _roundrobin(budget: Budget) -> Policy:
    return raysel.RoundRobin(_walked("roundrobin", budget), budget.delta)


def _walked(name: str, budget: Budget) -> float:
    """The share of the rows that each epoch before the tail takes."""
    walking = budget.epochs - budget.tail
    count = round((budget.passes - budget.rows * budget.tail) / walking) if walking else budget.rows
    if count < 1:
        raise ConfigError(
            f"{name}: the last {budget.tail} epochs take all the data, so it spends more than "
            f"{budget.rows * budget.tail:,} passes and cannot be held to {budget.passes:,}."
        )
    return _ratio(count, budget.rows)


def _subset(budget: Budget) -> Policy:
    """RandomSubset has no tail on all the data: all epochs are of equal size."""
    return raysel.RandomSubset(_ratio(max(round(budget.passes / budget.epochs), 1), budget.rows))


def _infobatch(budget: Budget) -> Policy:
    if budget.saving <= 0:
        return raysel.InfoBatch(prune_ratio=0.0, delta=budget.delta)
    rule = raysel.InfoBatch(delta=budget.delta, target_saving=budget.saving)
    try:
        rule.plan(raysel.dynamic.SampleState.empty(1), epoch=0, num_epochs=budget.epochs, seed=0)
    except ConfigError as error:
        raise ConfigError(f"infobatch: {error}.") from None
    return rule


def _repdiv(budget: Budget, scores: pa.Table | None) -> Policy:
    """RepDiv with the same tail."""
    return raysel.RepDiv(scores, ratio=_walked("repdiv", budget), tail=budget.tail / budget.epochs)


def _delta(rule: Policy, epochs: int) -> float:
    """Where the rule's tail on all the data begins, as a share of which policies make that epoch: they round down."""
    if isinstance(rule, raysel.RepDiv):
        return _ratio(epochs - rule.tail_epochs(epochs), epochs)
    return getattr(rule, "delta", 1.0)


def _ratio(count: int, rows: int) -> float:
    """A share of which the policies make ``count`` of ``rows``: they round down, so it lies in the middle."""
    return 1.0 if count >= rows else (count + 0.5) / rows


_HELD: dict[str, Callable[[Budget], Policy]] = {
    "random": _random,
    "roundrobin": _roundrobin,
    "random-subset": _subset,
    "infobatch": _infobatch,
}


def _about(name: str, own: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What compare.json holds of a policy. ``budget``: sets it, is held to it, or spends what it spends (free)."""
    titles = {"full": "full data", _EQUAL_STEPS: "full data at equal steps"}
    title = titles.get(name) or DYNAMICS.get(_METHODS[name], name)
    held = name in (_EQUAL_STEPS, "repdiv") or name in _HELD
    return {"title": title, "budget": "sets" if name == own else "held" if held else "free", "cells": answers}


# ---- training ------------------------------------------------------------------------------------------------


def _train(
    this: RunDirectory, choice: Choice, data: Path, own: str, names: list[str], seeds: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Every policy's answers, one a seed; the workflow's own policy goes first, others by what it spent."""
    flow, rows, scores = this.workflow, choice.rows, choice.scores
    settings = steps.loop_config(flow, data)
    settings |= {"batch_size": flow.train.batch_size * flow.train.workers, "threads": 1, "alone": True}
    own_rule, epochs = steps.policy(flow.dynamic, scores), flow.train.epochs
    samples = len(rows) if isinstance(rows, Selection) else rows

    def controls(answer: dict[str, Any], seed: int) -> Iterator[_Cell]:
        passes, taken = (sum(epoch[key] for epoch in answer["epochs"]) for key in ("trained", "steps"))
        budget = Budget(samples, epochs, passes, _delta(own_rule, epochs))
        for name in names:
            if name == _EQUAL_STEPS:
                rounds = steps.epochs_for(samples, settings["batch_size"], taken)
                yield _Cell(name, seed, raysel.FullData(), rounds, taken)
            elif name == "repdiv" and name != own:
                yield _Cell(name, seed, _repdiv(budget, scores), epochs)
            elif name != own and name in _HELD:
                yield _Cell(name, seed, _HELD[name](budget), epochs)

    todo = [_Cell(own, seed, own_rule, epochs) for seed in seeds]
    for name in names:
        if name not in (own, _EQUAL_STEPS, "repdiv", *_HELD):  # at its defaults, whatever that spends
            method = _METHODS[name]
            free = steps.policy(METHODS[method](method=method))
            todo += [_Cell(name, seed, free, epochs) for seed in seeds]
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    total, reused = len(names) * len(seeds), 0

    def finish(cell: _Cell, answer: dict[str, Any]) -> None:
        found[cell.name][cell.seed] = answer
        if cell.name == own:
            todo.extend(controls(answer, cell.seed))

    key: list[Any] = [flow.key("pool", "test", "train"), steps.model_digest(flow.train.model), this.digests]
    key.append(rows.digest() if isinstance(rows, Selection) else rows)
    work = _cell.options(num_gpus=flow.train.gpus_per_worker)
    shared = ray.put((settings, rows))
    running: dict[Any, tuple[_Cell, Path]] = {}
    try:
        while todo or running:
            while todo:
                cell = todo.pop(0)
                about = [cell.rule.parameters(), cell.seed, cell.epochs, cell.max_steps]
                directory, answer = this.place(f"cell-{cell.name}-{cell.seed}", [*key, *about])
                if answer is None:
                    running[work.remote(shared, cell)] = (cell, directory)
                else:
                    reused += 1
                    finish(cell, answer)
            if running:
                ready = ray.wait(list(running))[0][0]
                cell, directory = running.pop(ready)
                answer = _get(ready, cell)
                directory.mkdir(parents=True, exist_ok=True)
                steps.write_json(directory / DONE, answer)
                finish(cell, answer)
                trained = sum(map(len, found.values()))
                ended = f"{answer['epochs'][-1]['accuracy']:.1%} after {answer['seconds']:.1f} s"
                this.progress.done("compare", f"{trained}/{total}  {cell.name}, seed {cell.seed}: {ended}")
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
    if reused:
        this.progress.done("compare", f"{reused} of {total} reused")
    return {name: [found[name][seed] for seed in seeds] for name in names}


@ray.remote(num_cpus=1)
def _cell(shared: tuple[dict[str, Any], Selection | int], cell: _Cell) -> dict[str, Any]:
    """Train one policy with one seed in this process; what done.json of the cell holds."""
    from raysel.train.loops import classify

    began = time.perf_counter()
    settings, rows = shared
    dynamic = raysel.DynamicSelection.local(
        cell.rule, rows, num_epochs=cell.epochs, seed=cell.seed, max_steps=cell.max_steps
    )
    history = classify({**settings, "dynamic": dynamic, "seed": cell.seed})
    return {
        "seed": cell.seed,
        "policy": cell.rule.parameters(),
        "max_steps": cell.max_steps,
        "epochs": history,
        "seconds": time.perf_counter() - began,
    }


def _get(ref: Any, cell: _Cell) -> dict[str, Any]:
    try:
        with unwrap_errors():
            answer: dict[str, Any] = ray.get(ref)
        return answer
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise RunError(
            f"{cell.name}, seed {cell.seed}: its process died ({str(error).splitlines()[0]}); "
            "call again to train what is missing."
        ) from error
