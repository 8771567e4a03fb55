"""Waiting for resources ends, with a sentence that says what is needed, what there is and what is free."""

from __future__ import annotations

import logging

import pytest

from raysel.cluster import wait
from raysel.errors import ResourceError

pytestmark = pytest.mark.usefixtures("cluster")


def test_what_is_ready_is_returned_at_once_and_without_a_warning(caplog):
    limits = []
    assert wait.wait_until(lambda limit: limits.append(limit) or ["it"], "It was not", "Help it", 60) == [
        "it"
    ]
    assert limits == [10.0] and not caplog.records


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


def test_workers_that_do_not_fit_are_refused_at_once_and_others_waited_for(cluster):
    from ray.util.placement_group import placement_group, remove_placement_group

    with pytest.raises(
        ResourceError, match=r"^workers: 3 of 1 CPU cannot be placed: .* enough for 2. Ask for less"
    ):
        wait.wait_for_workers("workers: 3", 3, 1.0, 0.0, "Ask for less")
    with pytest.raises(
        ResourceError, match=r"1 CPU and 0.5 GPU cannot be placed: the cluster has 2 CPU and 0 GPU"
    ):
        wait.wait_for_workers("workers: 1", 1, 1.0, 0.5, "Ask for less")
    held = placement_group([{"CPU": 1}])
    assert held.wait(60)
    with pytest.raises(
        ResourceError, match=r"2 of 1 CPU could not be placed within 0.5 s: 1 of the cluster's 2 CPUs"
    ):
        wait.wait_for_workers("workers: 2", 2, 1.0, 0.0, "Ask for less", 0.5)
    remove_placement_group(held)
    wait.wait_for_workers("workers: 2", 2, 1.0, 0.0, "Ask for less")
