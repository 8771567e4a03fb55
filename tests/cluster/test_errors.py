"""Our own error comes out of what Ray wraps it in, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raysel.cluster.errors import is_lost, name_losses, own_error, unwrap_errors
from raysel.errors import DataError, RunError, StateError


def test_our_own_error_is_found_inside_what_ray_wraps_it_in():
    class Wrapped(DataError):
        def __init__(self, cause):
            super().__init__("a traceback of many lines")
            self.cause = cause

    inner = DataError("the sentence.")
    assert own_error(Wrapped(inner)) is inner
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: Wrapped(inner)}
    assert own_error(outer) is inner
    assert own_error(KeyError("bug")) is None
    assert str(own_error(DataError("the sentence.\nadvice of Ray"))) == "the sentence."


def test_what_was_lost_with_a_node_is_one_sentence():
    from ray import exceptions as of_ray
    from ray.data.exceptions import ExecutionTimeoutError

    lost = of_ray.NodeDiedError("The node died.\nmore")
    trained = RuntimeError("training failed")
    trained.worker_failures = {0: ValueError("connection reset"), 1: lost}
    started = RuntimeError("the controller failed")
    started.controller_failure = type("WorkerGroupStartupTimeoutError", (Exception,), {})("After 60 s. Why")
    for error, words in (
        (lost, r"^select: A process or node of the cluster was lost \(The node died\)\. Check the nodes"),
        (
            trained,
            r"was lost \(The node died\)\. .* run the same command again: finished results are reused\.$",
        ),
        (of_ray.RayTaskError("f", "", lost), r"was lost \(The node died\)"),
        (of_ray.ActorDiedError(), r"was lost \(The actor died"),
        (
            ExecutionTimeoutError("No progress.\nmore"),
            r"Ray waited too long for the nodes .* \(No progress\)",
        ),
        (started, r"Ray waited too long for the nodes that it needs \(After 60 s\. Why\)"),
    ):
        with pytest.raises(RunError, match=words), name_losses("select"):
            raise error
        plain = words.replace("^select: ", "^")
        plain = plain.replace("run the same command again: finished results are reused", "try again")
        with pytest.raises(RunError, match=plain) as caught, name_losses(), unwrap_errors():
            raise error
        with pytest.raises(RunError, match=words), name_losses("select"):
            raise caught.value
    assert is_lost(trained) and not is_lost(started)
    for error in (ValueError("bug"), DataError("ours."), of_ray.RayTaskError("f", "", ValueError("bug"))):
        with pytest.raises(type(error)) as caught, name_losses("select"):
            raise error
        assert caught.value is error and not is_lost(error)


def test_what_is_not_of_ray_passes_unchanged():
    before = KeyError("bug")
    before.__cause__ = DataError("an earlier one")
    with pytest.raises(KeyError, match="bug") as caught, unwrap_errors():
        raise before
    assert caught.value is before


def test_an_error_of_an_earlier_attempt_is_not_taken_for_the_cause():
    """A caller that handles our error and tries again has it as the context of the next one."""
    import ray.exceptions

    def second():
        raise ray.exceptions.GetTimeoutError("of the second")

    with pytest.raises(ray.exceptions.GetTimeoutError) as caught, unwrap_errors():
        try:
            raise StateError("of the first attempt")
        except StateError:
            second()
    assert isinstance(caught.value.__context__, StateError)


@pytest.mark.parametrize("in_actor", [False, True])
def test_errors_of_tasks_and_actors_arrive_as_themselves(cluster, in_actor):
    class Worker:
        def fail(self, error):
            raise error

    def call(error):
        if in_actor:
            actor = cluster.remote(num_cpus=0)(Worker).remote()
            return cluster.get(actor.fail.remote(error))
        return cluster.get(cluster.remote(num_cpus=1)(lambda e: Worker().fail(e)).remote(error))

    with pytest.raises(DataError, match=r"^this row$") as caught, unwrap_errors():
        call(DataError("this row\nand advice"))
    assert type(caught.value) is DataError and caught.value.__suppress_context__
    with pytest.raises(cluster.exceptions.RayTaskError), unwrap_errors():
        call(ZeroDivisionError("a bug"))


def test_an_error_of_ray_train_is_searched(cluster):
    from ray.train import TrainingFailedError

    failed = TrainingFailedError("2 workers failed")
    failed.worker_failures = {1: StateError("stale")}
    with pytest.raises(StateError, match=r"^stale$"), unwrap_errors():
        raise failed


ENDED = """
import ray, raysel
from raysel.errors import RunError

def start():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")

start()
rows = raysel.read({"embedding": [[0.0], [1.0]]})
ray.shutdown()
start()
for call in (
    lambda: raysel.Random(0.5).select(rows),
    lambda: raysel.embed(rows, "column", column="embedding", on_error="drop"),
):
    try:
        call()
    except RunError as error:
        print(error)
"""


@pytest.mark.slow
def test_rows_of_a_session_that_has_ended():
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, timeout=240)
    assert (
        done.stdout.splitlines() == ["The rows belong to a Ray session that has ended; read them again."] * 2
    ), done.stderr[-2000:]
