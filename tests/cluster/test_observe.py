"""What the dashboard and the metrics show of a workflow."""

from __future__ import annotations

import numpy as np
import pytest

import raysel
from raysel.cluster import observe
from raysel.cluster.blocks import arrow_blocks, map_blocks, map_groups
from raysel.data.pipeline import compute
from raysel.dynamic import service
from raysel.workflow.config import Workflow
from raysel.workflow.directory import Progress, RunDirectory
from raysel.workflow.steps.step import Step


@pytest.fixture
def counted(monkeypatch):
    """What was added to each counter, with its step."""
    found: dict[str, list[tuple[float, str]]] = {}

    class Counter:
        def __init__(self, name, description, tag_keys):
            assert description == observe.COUNTERS[name] and tag_keys == ("step",)
            self.name = name

        def inc(self, amount, tags):
            found.setdefault(self.name, []).append((amount, tags["step"]))

    monkeypatch.setattr(observe, "Counter", Counter)
    observe._counter.cache_clear()
    yield found
    observe._counter.cache_clear()


def name_of(tables):
    import ray

    return ray.get_runtime_context().get_task_name()


def test_tasks_are_named_by_the_step_and_what_they_do(cluster):
    blocks = arrow_blocks(raysel.read({"x": np.arange(3)}))
    assert map_blocks(name_of, blocks) == ["name of"]
    with observe.observed("select"):
        assert map_blocks(name_of, blocks) == map_groups(name_of, blocks) == ["select: name of"]
        with observe.observed("embed"):
            assert observe.task_name("read rows") == "embed: read rows"
        assert observe.task_name(lambda: 0) == "select: lambda"


class Two:
    """Twice the values; a network, or a function without anything to load."""

    name = digest = "two"
    takes, tile = "matrix", None

    def __call__(self, rows):
        return rows * 2


class Network(Two):
    digest = "network"

    def load(self, device):
        return lambda rows: rows * 2


class Selects(Step):
    name, about, selects = "select", "selection", True

    def key(self, run):
        return {}

    def run(self, run, folder):
        rows = raysel.read({"x": np.arange(100, dtype=np.float32).reshape(50, 2)})
        for embedder in (Two(), Network()):
            compute(rows, embedder, ["x"], str(folder / embedder.digest))
        raysel.Random(budget=20).select(rows).save(folder / "selection")
        return {}


def test_rows_and_samples_and_seconds_are_counted(cluster, counted, tmp_path):
    RunDirectory(Workflow.__new__(Workflow), tmp_path, Progress()).do(Selects())
    assert counted["raysel_rows_embedded"] == [(50, "select"), (50, "select")]
    assert counted["raysel_rows_selected"] == [(20, "select")]
    [(seconds, step)] = counted["raysel_step_seconds"]
    assert step == "select" and seconds > 0
    client = service.start_keepers(raysel.RandomPrune(delta=1.0), 100, 2, 0)
    try:
        client.restore("a")
        planned = []
        for epoch in range(2):
            planned.append(len(client.plan("a", epoch)))
            client.commit("a", epoch)
    finally:
        client.close()
    assert planned[0] == 100 > planned[1]  # the first epoch skips nothing
    assert counted["raysel_samples_planned"] == [(100, ""), (planned[1], "")]
    assert counted["raysel_samples_skipped"] == [(100 - planned[1], "")]
    assert counted.keys() == observe.COUNTERS.keys()
