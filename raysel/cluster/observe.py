"""What Ray's dashboard and metrics show of a workflow: tasks named by step, counters of rows, and seconds by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter

COUNTERS = {
    "raysel_rows_embedded": "Rows for which a vector was computed.",
    "raysel_rows_selected": "Rows that a step of a workflow selected.",
    "raysel_samples_planned": "Samples in the plans of finished epochs.",
    "raysel_samples_skipped": "Samples that the plans of finished epochs left out.",
    "raysel_step_seconds": "Seconds that steps of a workflow took.",
}
_step: ContextVar[str] = ContextVar("step", default="")


@contextmanager
def observed(step: str) -> Iterator[None]:
    """Name the tasks of a block of code by a step of a workflow, and count its seconds."""
    before, began = _step.set(step), time.monotonic()
    try:
        yield
    finally:
        count("raysel_step_seconds", time.monotonic() - began)
        _step.reset(before)


def task_name(what: str | Callable[..., Any]) -> str:
    """Return a name for the dashboard: the step that runs, and what a task does or the name of its function."""
    text = what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)
    text = text.strip("_<>").replace("_", " ")
    return f"{_step.get()}: {text}" if _step.get() else text


def count(name: str, amount: float) -> None:
    """Add to a counter of COUNTERS, with the step that runs as its tag. Nothing is counted without a cluster."""
    if amount > 0 and ray.is_initialized():
        _counter(name).inc(amount, {"step": _step.get()})


@cache
def _counter(name: str) -> Counter:
    return Counter(name, COUNTERS[name], tag_keys=("step",))
