"""Train several policies with several seeds at the budget of the workflow's own policy, and compare them.

The workflow's policy is trained first, seed by seed. The number of samples that it back-propagates is the
budget of every control with the same seed. Each (policy, seed) is one process with one thread: a Ray task
that runs the training loop without Ray Train, in batches as large as those of all the
workflow's workers together. Finished trainings are kept in the run directory, which is the one that ``raysel
run`` uses, and are not repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

import raysel
from raysel.cluster.connect import connect, ray_for_code
from raysel.cluster.errors import own_error
from raysel.cluster.wait import Room
from raysel.core.numbers import plain
from raysel.core.registry import nearest
from raysel.core.storage import Place, write_text
from raysel.dynamic.budget import Budget, tail_delta
from raysel.dynamic.plan import Policy
from raysel.errors import ConfigError, RunError, shown
from raysel.registry import POLICIES
from raysel.report.comparison import page as comparison_page
from raysel.report.comparison.tables import markdown, text
from raysel.report.results import Cell as CellResult
from raysel.report.results import ComparedPolicy, CompareResults, Epoch, Goal
from raysel.workflow import config, steps
from raysel.workflow.config import Method, Workflow
from raysel.workflow.directory import Done, Progress, RunDirectory, now, open_run, versions
from raysel.workflow.inputs import Look, seen
from raysel.workflow.load import load_check
from raysel.workflow.run import data, trusted
from raysel.workflow.steps.cell import Cell, train_cell
from raysel.workflow.steps.factors import scores
from raysel.workflow.steps.train import epochs_for, loop_config, policy, policy_code

EQUAL_STEPS = "full_equal_steps"
CONTROLS = ("full", EQUAL_STEPS, "random_prune", "round_robin", "infobatch")
"""Policies that a comparison trains by default."""


def compare(
    workflow: Workflow | str | os.PathLike[str],
    policies: Sequence[str] = CONTROLS,
    seeds: int = 3,
    out: str | os.PathLike[str] | None = None,
    *,
    fresh: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
) -> CompareResults:
    """Train the policy of a workflow and other policies with several seeds, and compare their metrics on the test rows.

    The other policies have a budget: the number of samples that the policy of the workflow trained on with the same seed.

    Parameters
    ----------
    workflow : Workflow or path
        As in `raysel.run`.
    policies : sequence of str
        Names of policies, ``full_equal_steps``, or ``file.py:Name``. The workflow's own policy is always
        among them.
    seeds : int
        Number of seeds per policy, counting up from the workflow's seed.
    out : path, optional
        The run directory, by default ``runs/NAME``. ``compare.json``, ``.md``, ``.png`` and ``.html`` are
        written there.
    fresh : bool
        Remove the results of earlier runs from the directory.
    address : str, optional
        As in `raysel.run`.
    progress : Progress, optional
        Where progress is shown; by default on stderr.

    Returns
    -------
    CompareResults
        The contents of ``compare.json``; ``path`` is the run directory.

    Raises
    ------
    ConfigError
        For an unknown policy, no seed, a workflow without test rows or without a dynamic policy, and a budget
        that a control cannot reach.
    RunError
        As in `raysel.run`.

    Examples
    --------
    >>> raysel.compare("workflow.yaml", ["infobach"])   # a name is checked before anything is trained
    Traceback (most recent call last):
        ...
    raysel.errors.ConfigError: policies: 'infobach' is unknown. Did you mean 'infobatch'?
    """
    flow = config.open_workflow(workflow)
    if not flow.trains:
        raise ConfigError("The key 'train' is missing: a comparison trains a model with each policy.")
    flow = replace(
        flow, train=replace(flow.train, data="arrays")
    )  # which every process of one core reads at once
    seeds = plain(seeds)
    found = check(flow, policies, seeds)
    own, names = policy_names(flow, policies)
    methods = {name: _method(name) for name in names if name not in (own, EQUAL_STEPS)}
    with ray_for_code(address):
        load_check(flow, list(methods.values()))
        check(flow, policies, seeds, found)
    connect(address)
    steps.check_room(1, 1.0, flow.train.gpus_per_worker)
    with open_run(flow, out, progress, fresh=fresh) as run:
        if not found.exact:
            check(flow, policies, seeds, seen(found, run.inputs))
        for step in [*steps.choosing(flow, _needs_scores(names, methods)), steps.arrays(flow)]:
            run.do(step)
        tried = [flow.seed + number for number in range(seeds)]
        with run.progress.running("compare"):
            cells = _train(run, own, names, methods, tried)
        results = CompareResults(
            name=flow.name,
            created=now(),
            raysel=raysel.__version__,
            versions=versions(),
            seeds=tuple(tried),
            config=flow.describe(),
            data=data(run),
            rows=run.count(run.rows),
            epochs=flow.train.epochs,
            batch_size=flow.train.batch_size * flow.train.most_workers,
            own=own,
            policies={name: _compared(name, own, flow, methods, cells[name]) for name in names},
            trusted=trusted(run),
            goal=Goal(**cells[own][0].answer["goal"]),
            path=str(run.out),
        )
        write(results, run.out)
        run.progress.log(text(results))
    return results


def check(workflow: Workflow, policies: Sequence[str], seeds: int, found: Look | None = None) -> Look:
    """Check what can be checked before Ray starts; raise as :func:`compare` does."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(
            f"seeds: {shown(seeds)} is not a number of seeds; give an integer of at least 1. To get standard deviations, give "
            "several seeds, for example 3."
        )
    own, names = policy_names(workflow, policies)
    if workflow.test is None:
        raise ConfigError("The key 'test' is missing: a comparison needs test rows to score the policies on.")
    if workflow.dynamic.spec == "full":
        raise ConfigError(
            "dynamic: The policy is 'full', which trains on all samples in every epoch. In a comparison, the controls train on "
            "as many samples as this policy, so it must be one that skips samples; name another policy, for example with "
            "--set dynamic.method=infobatch."
        )
    builtin = {name: _method(name) for name in names if name in POLICIES.builtin and name != own}
    return steps.check(workflow, _needs_scores(names, builtin), found)


def write(results: CompareResults, directory: Place) -> None:
    """Write the comparison as JSON, Markdown, PNG and one HTML page."""
    results.save(directory / "compare.json")
    write_text(directory / "compare.md", markdown(results))
    comparison_page.write_png(results, directory / "compare.png")
    write_text(directory / "compare.html", comparison_page.render(results))


# ---- policies ------------------------------------------------------------------------------------------------


def policy_names(workflow: Workflow, policies: Sequence[str]) -> tuple[str, list[str]]:
    """Return the workflow's own policy, and all policies in the given order, each once.

    Spellings of a name that differ in case, hyphens and underscores are the same.
    """
    if isinstance(policies, str) or not isinstance(policies, Sequence):
        raise ConfigError(
            f"policies: {shown(policies)} is not a list of names; write a list such as ['full', 'random_prune']."
        )
    known = {_bare(name): name for name in (*POLICIES.names(), EQUAL_STEPS)}
    names: list[str] = []
    for given in policies:
        if not isinstance(given, str):
            raise ConfigError(
                f"policies: {shown(given)} is not the name of a policy; write a name such as 'infobatch', or file.py:Name."
            )
        name = _absolute(given) if ":" in given else known.get(_bare(given))
        if name is None:
            raise ConfigError(f"policies: '{given}' is unknown. {nearest(given, known.values())}")
        if name not in names:
            names.append(name)
    own = workflow.dynamic.spec
    return own, names if own in names else [*names, own]


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").strip()


def _absolute(spec: str) -> str:
    """``file.py:Name`` with the file made absolute, as the workflow's own policy has it."""
    file, found, name = spec.partition(".py:")
    return f"{os.path.abspath(os.path.expanduser(file))}.py:{name}" if found else spec


def _method(name: str) -> Method:
    return Method.of({"method": name}, POLICIES, f"policies.{name}")


def _needs_scores(names: Sequence[str], methods: dict[str, Method]) -> bool:
    return any(getattr(methods[name].type, "needs_scores", False) for name in names if name in methods)


def _compared(
    name: str, own: str, workflow: Workflow, methods: dict[str, Method], cells: list[Done]
) -> ComparedPolicy:
    if name == own:
        title, budget = workflow.dynamic.title, "sets"
    elif name == EQUAL_STEPS:
        title, budget = "full data at equal steps", "held"
    else:
        title = methods[name].title
        budget = "held" if hasattr(methods[name].type, "at_budget") else "free"
    return ComparedPolicy(title, budget, tuple(map(_cell, cells)))


def _cell(done: Done) -> CellResult:
    answer = done.answer
    return CellResult(
        seed=answer["seed"],
        policy=answer["policy"],
        epochs=tuple(Epoch(**epoch) for epoch in answer["epochs"]),
        metrics=answer["metrics"],
        max_steps=answer["max_steps"],
        seconds=done.seconds,
    )


# ---- training ------------------------------------------------------------------------------------------------


def _train(
    run: RunDirectory, own: str, names: list[str], methods: dict[str, Method], seeds: list[int]
) -> dict[str, list[Done]]:
    """Every policy's cells, one per seed; the workflow's own policy comes first, the others spend what it spent."""
    flow, epochs = run.workflow, run.workflow.train.epochs
    batch = flow.train.batch_size * flow.train.most_workers
    settings = loop_config(run) | {"threads": 1, "alone": True}
    settings["settings"] = replace(flow.train, batch_size=batch)
    samples, own_policy, table = run.count(run.rows), policy(run), scores(run)

    def scored(made: Any) -> Policy:
        needs = table is not None and getattr(type(made), "needs_scores", False)
        return made.with_scores(table) if needs else made

    def controls(answer: dict[str, Any], seed: int) -> Iterator[Cell]:
        passes, taken = (sum(epoch[key] for epoch in answer["epochs"]) for key in ("trained", "steps"))
        budget = Budget(samples, epochs, passes, tail_delta(own_policy, epochs))
        for name in names:
            if name == EQUAL_STEPS:
                rounds = epochs_for(samples, batch * flow.train.accumulate, taken)
                yield Cell(name, seed, raysel.FullData(), rounds, taken)
            elif name != own and hasattr(methods[name].type, "at_budget"):
                made = scored(methods[name].type.at_budget(budget))
                yield Cell(name, seed, made, epochs, code=policy_code(run, methods[name]))

    todo = [Cell(own, seed, own_policy, epochs, code=policy_code(run, flow.dynamic)) for seed in seeds]
    for name, method in methods.items():
        if not hasattr(method.type, "at_budget"):  # at its defaults, whatever that spends
            made = scored(method.make())
            todo += [Cell(name, seed, made, epochs, code=policy_code(run, method)) for seed in seeds]
    found: dict[str, dict[int, Done]] = {name: {} for name in names}
    total, reused = len(names) * len(seeds), 0

    def finish(cell: Cell, done: Done) -> None:
        found[cell.policy_name][cell.seed] = done
        if cell.policy_name == own:
            todo.extend(controls(done.answer, cell.seed))

    shared = ray.put((settings, samples if run.rows is None else run.rows))
    running: dict[Any, tuple[Cell, Place]] = {}
    gpus = flow.train.gpus_per_worker
    room = Room("The comparison", {"CPU": 1, "GPU": gpus})
    try:
        while todo or running:
            while todo:
                cell = todo.pop(0)
                directory, _, done = run.place(cell)
                if done is None:
                    name = f"compare: {cell.policy_name}, seed {cell.seed}"
                    running[train_cell.options(name=name, num_gpus=gpus).remote(shared, cell)] = (
                        cell,
                        directory,
                    )
                else:
                    reused += 1
                    finish(cell, done)
            run.progress.note("compare", f"{sum(map(len, found.values()))} of {total} trainings")
            for ready in ray.wait(list(running), timeout=10.0)[0] if running else ():
                cell, directory = running.pop(ready)
                answer, seconds = _get(ready, cell)
                done = Done(directory, answer, seconds)
                run.keep(done)
                finish(cell, done)
                trained = sum(map(len, found.values()))
                goal = Goal(**answer["goal"])
                ended = f"{goal.label} {goal.text(goal.value(answer['metrics']))}, {seconds:.1f} s"
                name = cell.policy_name
                run.progress.done("compare", f"{trained} of {total}: {name}, seed {cell.seed}, {ended}")
            room.check()
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
    if reused:
        run.progress.done("compare", f"{reused} of {total} trainings were finished before and are reused")
    return {name: [found[name][seed] for seed in seeds] for name in names}


def _get(ref: Any, cell: Cell) -> tuple[dict[str, Any], float]:
    try:
        found: tuple[dict[str, Any], float] = ray.get(ref)
        return found
    except ray.exceptions.RayTaskError as error:
        if (ours := own_error(error)) is not None:
            raise ours from None
        raise
    except ray.exceptions.RayError as error:
        raise RunError(
            f"The process that trained {cell.policy_name} with seed {cell.seed} died ({str(error).splitlines()[0]}); "
            "run the comparison again, which reuses the finished trainings."
        ) from error
