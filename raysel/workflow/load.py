"""Import everything that a workflow names, and try it on a few rows, before anything expensive starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.data.decode import decode
from raysel.data.embed import as_embedder
from raysel.data.embedders import check_vectors
from raysel.data.rowid import ID, index_parquet, list_files, opened, with_ids
from raysel.data.source import IndexedParquet
from raysel.data.vectors import to_numpy
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError, RayselError
from raysel.workflow.config import Method, Workflow
from raysel.workflow.steps import plan
from raysel.workflow.steps.embed import Embed
from raysel.workflow.steps.train import load_factory, needs_scores

_ROWS = 8


def load_check(workflow: Workflow) -> None:
    """Build every object that the workflow names and run one batch of loss, backward and metric.

    Naming a file or a package in a workflow runs its code: this is where it runs first.

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
    _check_policy(workflow)
    rows = first_rows(workflow)
    if any(isinstance(step, Embed) for step in plan(workflow)):
        _check_embedder(workflow, rows)
    _check_training(workflow, rows)


def first_rows(workflow: Workflow) -> pa.Table:
    """Return the first rows of the pool, with ids."""
    filesystem, files = list_files(workflow.pool.paths)
    index, schema = index_parquet(filesystem, files)
    piece = IndexedParquet(filesystem, index, schema).pieces()[0]
    for one, reader in opened([piece]):
        for batch in reader.iter_batches(_ROWS, row_groups=[one.number]):
            table = pa.Table.from_batches([batch])
            return table if ID in table.column_names else with_ids(table, one.start)
    raise AssertionError("a row group with rows has a batch")


def unloaded(workflow: Workflow) -> list[str]:
    """Return the configuration paths whose code was not run, for ``raysel validate``."""
    methods: list[Method] = [*workflow.select, workflow.dynamic]
    found = [f"{method.where}: {method.spec}" for method in methods if not method.builtin]
    spec = workflow.embed.method.spec
    if not workflow.embed.method.builtin or spec.partition(":")[0] not in ("column", "pca", "hash", "table"):
        found.append(f"embed.embedder: {spec}")
    return [*found, f"train.model: {workflow.train.model}"]


@contextmanager
def _naming(where: str, spec: str) -> Iterator[None]:
    """Turn what the user's code raises into a ConfigError that names the key."""
    try:
        yield
    except RayselError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"{where}: {spec} raised {type(error).__name__}: {line}") from error


def _check_policy(workflow: Workflow) -> None:
    method = workflow.dynamic
    made = method.make(seed=workflow.seed)
    for name in ("plan", "update", "parameters"):
        if not callable(getattr(made, name, None)):
            raise ConfigError(f"dynamic: {method.spec} has no method '{name}', so it is not a policy.")
    if method.builtin:
        return
    with _naming("dynamic", method.spec):
        if needs_scores(workflow):
            ids, zeros = np.arange(_ROWS), np.zeros(_ROWS, np.float32)
            made = made.with_scores(pa.table({ID: ids, "rep": zeros, "div": zeros}))
        if hasattr(made, "for_ids"):
            made = made.for_ids(_ROWS)
        state = SampleState.empty(_ROWS)
        for epoch in range(min(2, workflow.train.epochs)):
            plan = made.plan(state, epoch=epoch, num_epochs=workflow.train.epochs, seed=workflow.seed)
            losses = np.linspace(0.5, 1.5, len(plan), dtype=np.float32)
            state = made.update(state, plan, plan.slots, losses)
        made.parameters()


def _check_embedder(workflow: Workflow, rows: pa.Table) -> None:
    settings = workflow.embed
    made = Embed(settings, ("pool",)).embedder()
    if settings.method.builtin or hasattr(made, "fit"):
        return
    made = as_embedder(made)
    spec = settings.method.spec
    with _naming("embed.embedder", spec):
        few = decode(rows, [settings.column], getattr(made, "takes", "any"), getattr(made, "prepare", None))
        if few.rejected:
            return  # rows without a value are what embed.on_error is for
        check_vectors(made(few.rows), few.ids, made.name)


def _check_training(workflow: Workflow, rows: pa.Table) -> None:
    """One batch through the model: its losses, their gradient, and the metric."""
    import torch
    import torch.nn.functional as F

    train, label = workflow.train, str(workflow.pool.label)
    inputs = to_numpy(rows[train.input], train.input, rows[ID].to_numpy())
    names = rows[label].unique().to_pylist()
    codes = torch.tensor([names.index(name) for name in rows[label].to_pylist()])
    factory = load_factory(train)
    state = torch.random.get_rng_state()
    try:
        with _naming("train.model", train.model):
            model: Any = factory(tuple(inputs.shape[1:]), max(len(names), 2))
            if not isinstance(model, torch.nn.Module):
                raise ConfigError(
                    f"train.model: {train.model} returned a {type(model).__name__}, not a torch.nn.Module."
                )
            logits = model(torch.from_numpy(np.array(inputs)))
            if not isinstance(logits, torch.Tensor) or logits.shape != (len(rows), max(len(names), 2)):
                got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
                raise ConfigError(
                    f"train.model: {train.model} returned {got} for {len(rows)} rows and {max(len(names), 2)} classes; "
                    "it must return one logit per row and class."
                )
            losses = F.cross_entropy(logits, codes, reduction="none")
            losses.mean().backward()
            first = float(losses.detach().mean())
            if (
                not math.isfinite(first) and np.isfinite(inputs).all()
            ):  # what is wrong with rows is said by the steps
                raise ConfigError(
                    f"train.model: the first loss of {train.model} is {first}; check the column "
                    f"'{train.input}' and the model's initial weights."
                )
    finally:
        torch.random.set_rng_state(state)
