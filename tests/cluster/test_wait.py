"""Waiting for resources ends, with a sentence that says what is needed, what there is and what is free."""

from __future__ import annotations

import logging
import time

import pytest

from raysel.cluster import wait
from raysel.errors import ResourceError
from raysel.train.settings import Train
from raysel.workflow.steps import train

pytestmark = pytest.mark.usefixtures("cluster")


def test_what_is_ready_is_returned_at_once_and_without_a_warning(caplog):
    limits = []
    assert wait.wait_until(lambda limit: limits.append(limit) or ["it"], "It was not", "Help it", 60) == [
        "it"
    ]
    assert limits == [10.0] and not caplog.records


@pytest.mark.usefixtures("idle")
def test_waiting_warns_once_and_ends_after_the_limit(caplog):
    limits = []
    with caplog.at_level(logging.WARNING), pytest.raises(ResourceError) as caught:
        wait.wait_until(limits.append, "No such thing came up", "Bring it up", 60)
    assert limits == [10.0, 50.0]
    assert (
        str(caught.value)
        == "No such thing came up within 60 s: 2 of the cluster's 2 CPUs are free. Bring it up."
    )
    assert len(caplog.records) == 1 and "for up to 60 s in all" in caplog.text
    limits.clear()
    with pytest.raises(ResourceError, match="within 1 s"):
        wait.wait_until(limits.append, "No such thing came up", "Bring it up", 1)
    assert limits == [1]


@pytest.mark.usefixtures("idle")
def test_workers_that_do_not_fit_are_refused_at_once_and_others_waited_for():
    from ray.util.placement_group import placement_group, remove_placement_group

    with pytest.raises(
        ResourceError, match=r"^workers: 3 of 1 CPU cannot be placed: .* enough for 2 of them. Ask for less"
    ):
        wait.wait_for_workers("workers: 3", 3, 1.0, 0.0, "Ask for less")
    with pytest.raises(
        ResourceError, match=r"1 CPU and 0.5 GPU cannot be placed: the cluster has 2 CPU and 0 GPU"
    ):
        wait.wait_for_workers("workers: 1", 1, 1.0, 0.5, "Ask for less")
    held = placement_group([{"CPU": 1}])
    assert held.wait(60)
    try:
        with pytest.raises(
            ResourceError, match=r"2 of 1 CPU could not be placed within 0.5 s: 1 of the cluster's 2 CPUs"
        ):
            wait.wait_for_workers("workers: 2", 2, 1.0, 0.0, "Ask for less", 0.5)
    finally:
        remove_placement_group(held)
    wait.wait_for_workers("workers: 2", 2, 1.0, 0.0, "Ask for less")


def test_nodes_that_an_autoscaler_can_add_are_waited_for(monkeypatch, caplog):
    nodes = [{"Alive": True, "Labels": {}, "Resources": {"CPU": 2.0}}]
    monkeypatch.setattr(wait.ray, "nodes", lambda: nodes)
    assert not wait.may_grow()
    nodes.append({"Alive": False, "Labels": {"ray.io/node-group": "gpu"}, "Resources": {"CPU": 2.0}})
    assert not wait.may_grow()
    nodes[1]["Alive"] = True
    assert wait.may_grow()
    limits = []
    with pytest.raises(ResourceError, match=r"^It was not within 900 s: .* Help it\.$"):
        wait.wait_until(limits.append, "It was not", "Help it", 60)
    assert limits == [10.0, 890.0]
    assert caplog.messages[-1].endswith(
        "raysel waits for up to 900 s in all, so that an autoscaler can add nodes."
    )
    monkeypatch.setattr(wait, "GROW_S", 0.7)
    with pytest.raises(
        ResourceError, match=r"^workers: 5 of 1 CPU could not be placed within 0\.7 s: .* Ask for less\.$"
    ):
        wait.wait_for_workers("workers: 5", 5, 1.0, 0.0, "Ask for less", 0.5)
    settings = Train(data="stream", workers=2, model="m:f", input="x")
    train.check_reading(settings)
    nodes.pop()
    with pytest.raises(ResourceError, match="less than one CPU is left to read"):
        train.check_reading(settings)


def test_no_node_that_is_large_enough_is_waited_for_and_then_named(monkeypatch, caplog):
    nodes = [
        {"Alive": True, "Labels": {}, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Labels": {}, "Resources": {"GPU": 1.0}},
    ]
    monkeypatch.setattr(wait.ray, "nodes", lambda: nodes)
    clock = [0.0]
    monkeypatch.setattr(wait.time, "monotonic", lambda: clock[0])
    enough, lost = wait.Room("Embedding", {"CPU": 1}), wait.Room("Embedding", {"GPU": 1, "CPU": 0})

    def check(*times):
        for clock[0] in times:
            enough.check()
            lost.check()

    check(5)
    assert not caplog.records
    check(11, 22, 310)
    said = "Embedding waits for up to 300 s for a node, because no node of the cluster has 1 GPU any more."
    assert [record.message for record in caplog.records] == [said]
    nodes[1]["Alive"] = True
    check(321)
    nodes[1]["Alive"] = False
    check(332, 400, 631)
    assert [record.message for record in caplog.records] == [said, said]
    with pytest.raises(
        ResourceError,
        match=r"^Embedding cannot continue: no node of the cluster has 1 GPU\. Add a node, and run again",
    ):
        check(642)


def test_results_are_fetched_as_errors_come_and_a_wait_in_vain_ends(cluster, monkeypatch):
    monkeypatch.setattr(wait, "_LOOK_S", 0.2)
    monkeypatch.setattr(wait, "_LACK_S", 1.0)

    def fail(seconds):
        time.sleep(seconds)
        raise ResourceError("The sentence.")

    task = cluster.remote(num_cpus=0)(fail)
    with pytest.raises(ResourceError, match=r"^The sentence\.$"):
        wait.get([task.remote(30.0), task.remote(0.5)])
    assert wait.get([cluster.put(1), cluster.put(2)]) == [1, 2] and wait.get(cluster.put(3)) == 3
    never = cluster.remote(num_gpus=64)(fail).remote(0.0)
    with pytest.raises(ResourceError, match=r"^Scoring cannot continue: no node of the cluster has 64 GPU\."):
        wait.get(never, "Scoring", {"GPU": 64})
    cluster.cancel(never)


def test_only_tasks_that_have_not_begun_are_cancelled(cluster):
    """Ray aborts the process that cancels a task at the moment of its end."""
    sleep = cluster.remote(num_cpus=1)(lambda: time.sleep(1.0))
    tasks = [sleep.remote() for _ in range(8)]
    cluster.wait(tasks, num_returns=1)
    wait.cancel_queued(tasks)
    ended = []
    for task in tasks:
        try:
            ended.append(cluster.get(task) is None)
        except cluster.exceptions.TaskCancelledError:
            ended.append(False)
    assert all(ended[:2]) and not any(ended[-4:])
    wait.cancel_queued([])


def test_nodes_that_left_are_part_of_the_status(monkeypatch):
    monkeypatch.setattr(wait, "alive", lambda: {"a"})
    monkeypatch.setattr(wait, "_free", lambda: "1 of the cluster's 1 CPUs are free")
    assert wait.lost_since({"a"}) == "" == wait.lost_since(set())
    assert (
        wait.lost_since({"a", "b"}) == "; 1 of 2 nodes left the cluster, 1 of the cluster's 1 CPUs are free"
    )
