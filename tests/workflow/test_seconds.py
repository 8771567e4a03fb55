"""A step that is resumed counts the seconds of the interrupted attempts whose work it uses."""

from __future__ import annotations

import os

import pytest

from raysel.workflow.config import Workflow
from raysel.workflow.directory import Progress, RunDirectory
from raysel.workflow.steps.step import Step


class Shards(Step):
    """Writes one file per attempt and is interrupted twice."""

    name = "shards"
    about = "writing"
    resumable = ("written",)

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps

    def key(self, run):
        return {"keeps": self.keeps}

    def run(self, run, directory):
        folder = directory / ("written" if self.keeps else "other")
        folder.mkdir(exist_ok=True)
        count = len(list(folder.iterdir()))
        file = folder / str(count)
        file.write_text("")
        started = os.stat(directory / "started.json").st_mtime
        os.utime(file, (started + 100, started + 100))  # an attempt that took 100 s
        os.utime(
            directory / "key.json", (started + 1000, started + 1000)
        )  # and files that nothing resumes from
        if count < 2 and self.keeps:
            raise KeyboardInterrupt
        return {"files": count + 1}


@pytest.mark.parametrize("keeps", [True, False])
def test_the_seconds_of_attempts_that_are_resumed_count(tmp_path, keeps):
    run = RunDirectory(Workflow.__new__(Workflow), tmp_path, Progress())
    step = Shards(keeps)
    if keeps:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run.do(step)
    done = run.do(step)
    assert done.answer == {"files": 3 if keeps else 1}
    assert (200 if keeps else 0) <= done.seconds < (210 if keeps else 10)
    assert run.do(step).seconds == done.seconds  # reused


def test_an_attempt_that_left_nothing_does_not_count(tmp_path):
    run = RunDirectory(Workflow.__new__(Workflow), tmp_path, Progress())

    class Fails(Shards):
        def run(self, run, directory):
            started = os.stat(directory / "started.json").st_mtime
            os.utime(directory / "key.json", (started + 1000, started + 1000))
            if self.keeps:
                raise KeyboardInterrupt
            return {}

    step = Fails(True)
    with pytest.raises(KeyboardInterrupt):
        run.do(step)
    step.keeps = False
    step.key = lambda run: {"keeps": True}
    assert run.do(step).seconds < 10
