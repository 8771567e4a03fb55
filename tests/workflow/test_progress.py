"""What a run writes while it works: a line per finished step, and one per minute within long steps."""

from __future__ import annotations

import io
import time

import pytest

from raysel.workflow import directory
from raysel.workflow.directory import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_step_that_takes_long_is_written_again_and_again_with_the_nodes_that_left(stream, monkeypatch):
    monkeypatch.setattr(directory, "_REPEAT_S", 0.02)
    monkeypatch.setattr(directory, "alive", lambda: {"a", "b"})
    monkeypatch.setattr(directory, "lost_since", lambda nodes: f"; lost of {sorted(nodes)}")
    progress, log = Progress(stream()), []
    progress.log = log.append
    with progress.running("select"):
        progress.note("select", "selection by GIO ...")
        while "selection by GIO, 0 min" not in progress._stream.getvalue():
            time.sleep(0.01)
        progress.note("select", "second part")
        while "second part, 0 min" not in progress._stream.getvalue():
            time.sleep(0.01)
    progress.done("select", "    1.0 s  selection by GIO")
    text = progress._stream.getvalue()
    assert "  select         second part, 0 min; lost of ['a', 'b']" in text
    assert text.count("\n") == (1 if stream is Terminal else len(text.splitlines()))
    assert text.endswith("  select             1.0 s  selection by GIO\n")
    assert log[-1] == "select             1.0 s  selection by GIO"
    Progress(quiet := stream(), quiet=True).done("select", "1.0 s")
    assert not quiet.getvalue()
