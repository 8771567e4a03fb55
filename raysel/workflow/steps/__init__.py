"""Steps of a workflow, one file each, and the order in which a workflow runs them."""

from __future__ import annotations

from pathlib import Path

from raysel.errors import ConfigError
from raysel.workflow.config import Workflow
from raysel.workflow.footers import check_id_types
from raysel.workflow.inputs import Look, has_classes, look
from raysel.workflow.steps.arrays import Arrays
from raysel.workflow.steps.classes import Classes
from raysel.workflow.steps.embed import Embed
from raysel.workflow.steps.factors import Factors
from raysel.workflow.steps.gallery import Gallery
from raysel.workflow.steps.labels import Labels
from raysel.workflow.steps.leakage import Leakage
from raysel.workflow.steps.measure import Measure
from raysel.workflow.steps.select import RandomRows, Select, uses
from raysel.workflow.steps.step import Step
from raysel.workflow.steps.train import (
    Train,
    check_output,
    check_reading,
    check_room,
    framework,
    needs_scores,
)
from raysel.workflow.steps.usage import Usage
from raysel.workflow.validation import draw_ids, drawn_role
from raysel.workflow.workers import Workers


def choosing(workflow: Workflow, scores: bool = False) -> list[Step]:
    """Return the steps up to the rows that are trained on, with their scores if a policy needs them."""
    steps: list[Step] = []
    scores = scores or needs_scores(workflow)
    if workflow.gime is not None:
        steps.append(Measure(workflow.gime))
    on_vectors = [method for method in workflow.select if uses(method, "vectors")]
    roles = ["pool"]
    if any(uses(method, "target") for method in on_vectors):
        roles.append("target")
    if workflow.avoid is not None and any(uses(method, "avoid") for method in on_vectors):
        roles.append("avoid")
    if scores or on_vectors:
        steps.append(Embed(workflow.embed, tuple(roles)))
    for number, method in enumerate(workflow.select):
        steps.append(Select(method, f"select-{number + 1}" if number else "select"))
    if scores:
        steps.append(Factors(workflow.factors))
    return steps


def arrays(workflow: Workflow) -> Arrays:
    """Return the step that writes what training reads."""
    return Arrays(workflow.task)


def plan(workflow: Workflow) -> list[Step]:
    """Every step of a run, in order."""
    steps = choosing(workflow)
    selects = any(step.selects for step in steps)
    if "random" in workflow.controls:
        steps.append(RandomRows())
    if selects and workflow.pool.label is not None and has_classes(workflow):
        steps.append(Classes())
    if selects:
        steps.append(Gallery())
    if not workflow.trains:
        return steps
    steps.append(arrays(workflow))
    if workflow.test is not None:
        steps.append(Leakage(workflow.embed if any(isinstance(step, Embed) for step in steps) else None))
    # The chain comes first, since the random control takes as many steps as it did.
    arms = ["chain", *(arm for arm in ("random", "full") if arm in workflow.controls)]
    workers = Workers(workflow.train, len(arms)) if workflow.train.loop is None else None
    steps += [Train(arm, workflow.train, workers) for arm in arms]
    if any(isinstance(step, Factors) for step in steps):
        steps.append(Usage())
    if any(isinstance(step, Embed) for step in steps) and has_classes(workflow):
        steps.append(Labels())
    return steps


def check(workflow: Workflow, scores: bool = False, found: Look | None = None) -> Look:
    """Check what can be said without starting Ray and without running code that the workflow names.

    Parameters
    ----------
    scores : bool
        Whether a policy next to the workflow's own needs scores.
    found : Look, optional
        What an earlier call returned: the footers are not read again.

    Returns
    -------
    Look
        Schemas and numbers of rows by role, from Parquet footers.

    Raises
    ------
    DataError, ConfigError
        With the workflow's key.
    """
    found = found or look(workflow)
    for where, named in named_files(workflow).items():
        if not Path(named.rpartition(":")[0]).is_file():
            raise ConfigError(f"{where}: The file {named.rpartition(':')[0]} does not exist.")
    for key, spec in (("model", workflow.train.model), ("loop", workflow.train.loop)):
        if spec is not None and ":" not in spec and not (key == "loop" and framework(workflow.train)):
            raise ConfigError(
                f"train.{key}: '{spec}' does not name a function; write file.py:function or module:function."
            )
    if (role := drawn_role(workflow)) in found.counts:
        assert role is not None
        draw_ids(workflow, role, found.counts[role])
    loaded = all(method.builtin or "type" in method.__dict__ for method in workflow.select)
    if workflow.avoid is not None and loaded and not any(uses(method, "avoid") for method in workflow.select):
        raise ConfigError(
            "The key 'avoid' has no effect, because no selector under 'select' uses rows to avoid; remove it, or select by gio, "
            "density_ratio or nearest."
        )
    check_id_types(found)
    steps = choosing(workflow, scores) + plan(workflow) if scores else plan(workflow)
    for step in steps:
        step.check(found)
    return found


def named_files(workflow: Workflow) -> dict[str, str]:
    """``file.py:Name`` by configuration path, for every file of code that the workflow names."""
    methods = [*workflow.select, workflow.dynamic, workflow.embed.method]
    named = {
        method.where: method.spec.removeprefix("torch:").removesuffix(":penultimate") for method in methods
    }
    train = workflow.train
    optimizer = train.optimizer if isinstance(train.optimizer, str) else train.optimizer.get("method", "")
    named |= {
        "train.task": workflow.task.spec,
        "train.schedule": train.schedule,
        "train.optimizer": str(optimizer),
    }
    named |= {f"train.{key}": spec for key, spec in (("model", train.model), ("loop", train.loop)) if spec}
    own = workflow.gime.metrics if workflow.gime is not None else []
    named |= {f"gime.metrics.{at}": spec for at, spec in enumerate(own)}
    return {where: spec for where, spec in named.items() if ".py:" in spec}


__all__ = [
    "Arrays",
    "Classes",
    "Embed",
    "Factors",
    "Gallery",
    "Labels",
    "Leakage",
    "Measure",
    "RandomRows",
    "Select",
    "Step",
    "Train",
    "Usage",
    "arrays",
    "check",
    "check_output",
    "check_reading",
    "check_room",
    "choosing",
    "plan",
]
