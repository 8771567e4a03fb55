"""Write the rows that training reads as memory-mapped files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raysel.core.storage import Place, make_folder
from raysel.data.node_cache import cache_folder
from raysel.data.store import Column, classes_of, column_of, write_columns
from raysel.errors import ConfigError
from raysel.registry import LOOPS
from raysel.selection import Selection
from raysel.train.tasks.task import Facts
from raysel.workflow.config import Method, Workflow
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.footers import check_column, check_ids, check_labels, held, trained_roles
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Arrays(Step):
    """Columns of the rows that some arm trains on, and of the rows that are scored; the classes are the pool's."""

    task: Method
    name: str = "arrays"
    version: ClassVar[int] = 2

    @property
    def about(self) -> str:
        """What the step makes."""
        return "rows as arrays, for training"

    def check(self, look: Look) -> None:
        """Check the labels and the task's columns of every role that is trained or scored on."""
        flow = look.workflow
        if not loaded(self.task):
            return
        task = made(flow)
        for role in trained_roles(look):
            columns: dict[str, Column] = {}
            for name in task.columns:
                key = "train.input" if name in _names(getattr(task, "input", ())) else "train.task"
                if name == flow.pool.label and name not in _names(getattr(task, "input", ())):
                    check_label(look, role, task)
                    if class_column(task) != name:
                        columns[name] = held(look, role, str(getattr(flow, role).label), f"{role}.label")
                else:
                    columns[name] = check_column(look, role, name, key)
            if hasattr(task, "check_columns"):
                task.check_columns(columns)
        if class_column(task) is not None and class_column(task) == flow.pool.label:
            check_labels(look)
        check_ids(look)

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return what the rows hold, and which rows of the pool are written."""
        return {**self.content(run), "trained": None if streams(run) else digest_of(trained(run))}

    def content(self, run: RunDirectory) -> dict[str, Any]:
        """Return what decides the values that a training reads, whichever rows are written."""
        task, roles = made(run.workflow), self._roles(run)
        return {
            "rows": run.digests("pool", *roles),
            "labels": {role: run.inputs[role].label for role in roles},
            "columns": list(task.columns),
            "classes": class_column(task),
            "streams": streams(run),
            "validation": run.drawn and run.drawn.key,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Write a folder of arrays per role; return the classes and what the columns hold."""
        task = made(run.workflow)
        column = class_column(task)
        known = {} if column is None else {column: classes_of(run.read("pool"), column, "pool.label")}
        columns = self._write(run, directory, "pool", list(task.columns), known)
        if run.drawn is not None:
            self._write(run, directory, "validation", list(task.columns), known)
        for role in ("test", "validation"):
            if role in run.inputs:
                self._write(run, directory, role, list(task.columns), known)
        return {
            "classes": [str(name) for name in known.get(column or "", ())],
            "known": known,
            "columns": {
                name: {"kind": held.kind, "dtype": held.dtype, "shape": list(held.shape)}
                for name, held in columns.items()
            },
        }

    def _roles(self, run: RunDirectory) -> list[str]:
        drawn = [] if run.drawn is None else [run.drawn.role]
        wanted = dict.fromkeys(("pool", "test", "validation", *drawn))
        return [role for role in wanted if role in run.inputs]

    def _write(
        self, run: RunDirectory, directory: Place, role: str, columns: list[str], known: dict[str, list[Any]]
    ) -> dict[str, Column]:
        """Write the rows of a role, under the pool's name of the label."""
        source = run.drawn.role if role == "validation" and run.drawn is not None else role
        label, own = run.inputs["pool"].label, run.inputs[source].label
        stored = {str(own): str(label)} if label in columns and own != label else {}
        there = [str(own) if name == label else name for name in columns]
        if role == "validation" and run.drawn is not None:
            rows = Selection.of(run.drawn.ids).rows(run.read(source))
            count: int | None = run.inputs[source].count
        elif role == "pool":
            if streams(run):
                return few_columns(run, columns, known)
            rows = run.among(trained(run), there)
            count = None if trained(run) is None else run.inputs["pool"].count
        else:
            rows, count = run.read(role), None
        classes = {str(own) if name == label else name: values for name, values in known.items()}
        ragged = bool(getattr(made(run.workflow), "ragged", False))
        return write_columns(
            rows, directory / role, there, rows=count, classes=classes, names=stored, ragged=ragged
        )


def loaded(task: Method) -> bool:
    """Return whether the class of a task is known without running code that the workflow names."""
    return task.builtin or "type" in task.__dict__


def made(workflow: Workflow) -> Any:
    """Return the task with its fields. Raises ConfigError for fields that do not fit."""
    return workflow.task.make()


def class_column(task: Any) -> str | None:
    """Return the name of the task's column of classes."""
    field = getattr(task, "classes", None)
    return None if field is None else str(getattr(task, field))


def inputs(workflow: Workflow) -> list[str]:
    """Return the columns that the model receives."""
    task = made(workflow)
    named = [name for name in _names(getattr(task, "input", ())) if name in task.columns]
    return named or [name for name in task.columns if name not in (class_column(task), workflow.pool.label)]


def trained(run: RunDirectory) -> Selection | None:
    """Return the rows of the pool that some arm trains on; None for all."""
    if "full" in run.workflow.controls or run.rows is None:
        return run.base
    if "random" not in run.finished:
        return run.rows
    random = Selection.load(run.finished["random"].directory / "selection")
    return Selection.of(np.union1d(run.rows.ids, random.ids))


def streams(run: RunDirectory) -> bool:
    """Return whether the training rows are streamed with Ray Data instead of being written."""
    settings = run.workflow.train
    if settings.data != "auto":
        return settings.data == "stream"
    if settings.elastic or settings.loop in LOOPS.builtin:  # which read rows by their ids
        return False
    return size(run) > _disk(run) // 2


def _disk(run: RunDirectory) -> int:
    """Return the free bytes where the files would be: those from an object store are copied to each node."""
    place = run.out if isinstance(run.out, Path) else cache_folder()
    make_folder(place)
    return shutil.disk_usage(place).free


def size(run: RunDirectory) -> int:
    """Return about how many bytes the training rows fill, by the footers of the pool's Parquet files."""
    task, entry = made(run.workflow), run.inputs["pool"]
    whole = sum(piece.bytes for piece in entry.index.pieces())  # as if all columns were as wide
    share = run.count(trained(run)) / max(1, entry.count) * len(task.columns) / max(1, len(entry.schema))
    return int(whole * share)


def check_label(look: Look, role: str, task: Any) -> None:
    """Raise ConfigError unless the role names its label column."""
    rows = look.workflow.rows(role)
    if rows is not None and rows.label is None:
        use = "training needs" if role == "pool" else "scoring needs"
        what = "class" if class_column(task) is not None else "number to predict"
        raise ConfigError(f"The key '{role}.label' is missing: {use} the column that holds the {what}.")


def facts(run: RunDirectory, factory: Any) -> Facts:
    """Return what the task gets to know about the rows."""
    answer = run.finished["arrays"].answer
    columns = {
        name: Column(held["kind"], held["dtype"], tuple(held["shape"]))
        for name, held in answer["columns"].items()
    }
    return Facts(columns, answer["known"], factory)


def few_columns(run: RunDirectory, columns: list[str], known: dict[str, list[Any]]) -> dict[str, Column]:
    """Return what the columns of the pool hold, from its first rows."""
    table = next(
        iter(run.read("pool").select_columns(columns).iter_batches(batch_size=8, batch_format="pyarrow"))
    )
    return {
        name: Column("array", "int64") if name in known else column_of(table[name], name) for name in columns
    }


def _names(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
