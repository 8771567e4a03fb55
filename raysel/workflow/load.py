"""Import everything that a workflow names, and try it on a few rows, before anything expensive starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.registry import nearest
from raysel.data.decode import decode
from raysel.data.embedders.build import as_embedder, named_embedder
from raysel.data.embedders.embedder import check_vectors
from raysel.data.row_index import ID
from raysel.data.vectors import to_numpy
from raysel.dynamic.check import check_policy
from raysel.errors import ConfigError, DataError, RayselError, first, reason_of
from raysel.gime import measure
from raysel.registry import TASKS
from raysel.train.loops import classify
from raysel.workflow.config import Gime, Method, Workflow
from raysel.workflow.footers import trained_roles
from raysel.workflow.inputs import Look, look
from raysel.workflow.steps import plan
from raysel.workflow.steps.embed import Embed
from raysel.workflow.steps.train import load_factory, load_loop, model_code

_ROWS = 8
_SAMPLES = 100_000  # that a policy is tried on, at most


def load_check(workflow: Workflow, policies: Sequence[Method] = ()) -> None:
    """Build every object that the workflow names and run one batch of loss, backward and metric.

    Naming a file or a package in a workflow runs its code: this is where it runs first.

    Parameters
    ----------
    policies : sequence of Method
        Policies that are trained next to the workflow's own.

    Raises
    ------
    ConfigError
        With the workflow's key, and what the code raised.
    DataError
        For rows that cannot be used.
    """
    for method in workflow.select:
        selector = method.make(seed=workflow.seed)
        if not callable(getattr(selector, "select", None)):
            raise ConfigError(
                f"{method.where}: {method.spec} has no method 'select(pool, target)', so it is not a selector."
            )
        method.key()  # raises for what cannot be fingerprinted
    found = look(workflow)
    rows, (labels, count) = _sample(found, "pool"), _labels(found)
    if workflow.gime is not None and workflow.gime.metrics:
        _check_metrics(workflow.gime, rows)
    for method in (workflow.dynamic, *policies):
        _check_policy(method, workflow, min(count, _SAMPLES))
    for step in plan(workflow):
        if isinstance(step, Embed):
            _check_embedder(step, rows)
    loop = load_loop(workflow.train)
    if loop is classify:  # what another loop does with a batch is its own
        _check_training(found, rows, labels)


def unloaded(workflow: Workflow) -> list[str]:
    """Return the configuration paths whose code was not run, for ``raysel validate``."""
    methods: list[Method] = [*workflow.select, workflow.dynamic]
    found = [f"{method.where}: {method.spec}" for method in methods if not method.builtin]
    method = workflow.embed.method
    if not method.builtin or hasattr(named_embedder(method.spec), "open"):
        found.append(f"embed.embedder: {method.spec}")
    if workflow.gime is not None:
        found += [f"gime.metrics: {spec}" for spec in workflow.gime.metrics]
    if workflow.train.task not in TASKS.builtin:
        found.append(f"train.task: {workflow.train.task}")
    return [*found, f"train.model: {workflow.train.model}"]


def _sample(found: Look, role: str) -> pa.Table:
    """Return a few rows of a role with ids, at least two."""
    parts: list[pa.Table] = []
    for table in found.scan(role, rows=_ROWS):
        parts.append(table)
        if sum(map(len, parts)) >= _ROWS:
            break
    if not sum(map(len, parts)):
        raise DataError(f"{role}.path: There are no rows in {found.listings[role].where}.")
    rows = pa.concat_tables(parts).slice(0, _ROWS)
    return pa.concat_tables([rows, rows]) if len(rows) == 1 else rows


def _labels(found: Look) -> tuple[list[Any], int]:
    """Return all labels of the pool, sorted, and its number of rows; read the labels of every role that has a use for them.

    Raises DataError for rows without a label, and for labels that the pool lacks.
    """
    known: list[Any] = []
    count = 0
    for role in trained_roles(found):
        label = str(getattr(found.workflow, role).label)
        labels: set[Any] = set()
        rows, missing = 0, list[int]()
        for table in found.scan(role, [label], 1 << 20):
            labels.update(table[label].unique().to_pylist())
            missing += table[ID].filter(table[label].is_null()).to_pylist()
            rows += len(table)
        if missing:
            raise DataError(
                f"{role}.label: {len(missing):,} rows have no label in column '{label}' (sample_id {first(missing)}); label or drop "
                "them first."
            )
        ordered = sorted(labels, key=lambda value: (str(type(value)), value))
        if role == "pool":
            known, count = ordered, rows
        elif strange := [each for each in ordered if each not in set(known)]:
            raise DataError(
                f"{role}.label: The label {first(strange)} in column '{label}' does not occur in the pool, whose classes are "
                f"{first(known, 10)}; add rows of that class to the pool, or drop it."
            )
    return known, count


@contextmanager
def _naming(where: str, spec: str) -> Iterator[None]:
    """Turn what the user's code raises into a ConfigError that names the key."""
    try:
        yield
    except RayselError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"{where}: {spec} raised {type(error).__name__} ({line.rstrip('.') or 'no message'})."
        ) from error


def _check_policy(method: Method, workflow: Workflow, count: int) -> None:
    made = method.make(seed=workflow.seed)
    if method.builtin:
        return
    method.key()
    with _naming(method.where, method.spec):
        if getattr(method.type, "needs_scores", False):
            zeros = np.zeros(count, np.float32)
            made = made.with_scores(pa.table({ID: np.arange(count), "rep": zeros, "div": zeros}))
        if hasattr(made, "for_ids"):
            made = made.for_ids(count)
        try:
            check_policy(made, count, workflow.train.epochs, workflow.seed)
        except ConfigError as error:
            raise ConfigError(f"{method.where}: {error}") from None


def _check_metrics(settings: Gime, rows: pa.Table) -> None:
    """Measure a few rows by the metrics of the user's own, and look for the statistics that thresholds name."""
    try:
        found = measure(rows, settings.binding, metrics=settings.metrics)
    except ConfigError as error:
        raise ConfigError(f"gime.{error}") from error
    known = {f"{row['metric']}.{row['statistic']}" for row in found.to_pylist()}
    for name in settings.thresholds:
        if name not in known:
            raise ConfigError(f"gime.thresholds.{name}: There is no such metric. {nearest(name, known)}")


def _check_embedder(step: Embed, rows: pa.Table) -> None:
    """Embed a few rows, where nothing has to be learned from all of them first."""
    settings, made = step.settings, step.embedder()
    spec = settings.method.spec
    if settings.column not in rows.column_names:
        return  # the step's own check says which columns there are
    first = rows[settings.column][0].as_py()
    if isinstance(first, list):
        step.check_width(made, np.size(first))
    if hasattr(made, "fit"):
        return
    embedder = as_embedder(made)
    with _naming("embed.embedder", spec):
        few = decode(
            rows, [settings.column], getattr(embedder, "takes", "any"), getattr(embedder, "prepare", None)
        )
        if few.rejected:
            return  # what happens to rows without a value is up to embed.on_error
        check_vectors(embedder(few.rows), few.ids, embedder.name)


def _check_training(found: Look, rows: pa.Table, labels: list[Any]) -> None:
    """One batch through the model: its losses, their gradient, and the metric; and inputs of another kind than the pool's."""
    import torch
    import torch.nn.functional as F

    workflow = found.workflow
    train, label = workflow.train, str(workflow.pool.label)
    inputs = to_numpy(rows[train.input], train.input, rows[ID].to_numpy())
    code = {name: number for number, name in enumerate(labels)}
    codes = torch.tensor([code.get(name, 0) for name in rows[label].to_pylist()])
    factory = load_factory(train)
    model_code(train)
    state = torch.random.get_rng_state()
    try:
        with _naming("train.model", train.model):
            model: Any = factory(tuple(inputs.shape[1:]), len(labels))
            if not isinstance(model, torch.nn.Module):
                raise ConfigError(
                    f"train.model: {train.model} returned a {type(model).__name__}, not a torch.nn.Module."
                )
            logits = model(torch.from_numpy(np.array(inputs)))
            if not isinstance(logits, torch.Tensor) or logits.shape != (len(rows), len(labels)):
                got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
                raise ConfigError(
                    f"train.model: {train.model} returned {got} for {len(rows)} rows and {len(labels)} classes; "
                    "it must return one logit per row and class."
                )
            losses = F.cross_entropy(logits, codes, reduction="none")
            losses.mean().backward()
            first = float(losses.detach().mean())
            # What is wrong with rows is said by the steps that read them all.
            if not math.isfinite(first) and np.isfinite(inputs).all():
                raise ConfigError(
                    f"train.model: The first loss of {train.model} is {first}; check the column "
                    f"'{train.input}' and the model's initial weights."
                )
            model.eval()
            for role in trained_roles(found):
                if role != "pool":
                    _check_other_inputs(found, role, model, inputs)
    finally:
        torch.random.set_rng_state(state)


def _check_other_inputs(found: Look, role: str, model: Any, inputs: np.ndarray) -> None:
    """Raise DataError if the model fails on a role whose inputs have another shape or type than the pool's."""
    import torch

    column, rows = found.workflow.train.input, _sample(found, role)
    own = to_numpy(rows[column], column, rows[ID].to_numpy())
    if (own.shape[1:], own.dtype) == (inputs.shape[1:], inputs.dtype):
        return
    try:
        with torch.no_grad():
            model(torch.from_numpy(np.array(own)))
    except Exception as error:  # of the model's code
        kinds = [f"{array.dtype} of shape {tuple(array.shape[1:])}" for array in (own, inputs)]
        raise DataError(
            f"{role}.path: Column '{column}' holds {kinds[0]}, but the pool's holds {kinds[1]}, and the model cannot take "
            f"both ({reason_of(error)}); write the columns with one type."
        ) from error
