"""Files of a run directory with any byte changed or cut: one sentence with the file, or the same content."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.store import ColumnStore
from raysel.errors import DataError, RayselError, RunError
from raysel.report.results import RunResults
from raysel.workflow import config
from raysel.workflow.directory import Done, Progress, _finished, open_run, read_table
from tests.data import arrays

ANSWER = {
    "kept": 3,
    "title": "GIO",
    "epochs": [{"loss": 0.25, "digest": "ab"}],
    "metrics": {"accuracy": None},
    "é": float("nan"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory with a finished step; returns the call that reads all of it, and its files."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "y": [0, 1, 0]}), "pool.parquet")
    Path("flow.yaml").write_text(
        "name: t\npool: {path: pool.parquet, label: y}\ntrain: {model: 'm.py:f', input: x}\n"
    )
    flow, step = config.load("flow.yaml"), tmp_path / "run/steps/select-1"
    with open_run(flow, "run", Progress()) as made:
        made.keep(Done(step, ANSWER, 1.5))

    def read():
        with open_run(flow, "run", Progress()) as again:
            done = _finished(step)
            return again.inputs["pool"].digest, repr(None if done is None else (done.answer, done.seconds))

    files = [*Path("run/index").iterdir(), Path("run/manifest.json"), step / "done.json"]
    return read, files


def changed(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    if rng.random() < 0.3:
        return bytes(damaged[: rng.randrange(len(damaged))])
    for _ in range(rng.choice((1, 1, 4, 64))):
        damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), *b'0"{}[],:\\en'))
    return bytes(damaged)


def damage(run, trials: int) -> None:
    read, files = run
    right, rng = read(), random.Random(0)
    for _ in range(trials):
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(changed(content, rng))
        try:
            digest, done = read()
            assert digest == right[0]  # of the rows themselves
            assert done in (right[1], "None")
        except RayselError as error:
            text = str(error)
            assert len(text.splitlines()) == 1 and text.endswith(".") and ("run" in text)
        file.write_bytes(content)
    assert read() == right


def test_damaged_files_of_a_run(run):
    damage(run, 80)


@pytest.mark.slow
def test_many_damaged_files_of_a_run(run):
    damage(run, 1_500)


def test_a_step_without_a_digest_runs_again(run):
    read, files = run
    files[-1].write_text('{"answer": {}, "seconds": 1.0}')
    assert read()[1] == "None"
    for text in ("3", "null", "{", '{"answer": {}, "digest": "x"}', "[" * 100_000):
        files[-1].write_text(text)
        with pytest.raises(
            RunError, match=r"done.json is damaged \(.*\); remove the folder .*select-1 and run again"
        ):
            read()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            errno.EWOULDBLOCK,
            "is in use by another process; wait until that process ends, or choose another --out",
        ),
        (errno.EACCES, "is in use by another process"),
        (errno.ENOSYS, r"file system .*\(Function not implemented\)"),
        (errno.ENOLCK, r"file system .*\(No locks available\)"),
        (errno.EOPNOTSUPP, r"file system .*\(Operation not supported\)"),
    ],
)
def test_a_file_system_without_locks_is_not_another_process(run, monkeypatch, code, says):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RunError, match=says) as caught:
        run[0]()
    assert ("another process" in str(caught.value)) == (code in (errno.EWOULDBLOCK, errno.EACCES))


def test_other_files_of_a_step(tmp_path):
    table = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"x": [1]}), table)
    assert read_table(table).num_rows == 1
    for content in (b"", b"PAR1", table.read_bytes()[:-9]):
        table.write_bytes(content)
        with pytest.raises(RunError, match=r"scores.parquet is damaged \(.*\); remove the folder"):
            read_table(table)
    files = arrays.write(tmp_path, rows=2)
    assert len(ColumnStore(tmp_path)) == 2
    rng = random.Random(0)
    for name in files:
        content = (tmp_path / name).read_bytes()
        tried = [b"", content[:2], b"\x93NUMPY", b"[", b"{}"]
        tried += [changed(content[:60], rng)] if name != "1.bin" else []
        for damaged in tried:
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match=r"The arrays in .* are damaged \(.*\); remove the folder"):
                ColumnStore(tmp_path)
        (tmp_path / name).write_bytes(content)


def test_results_that_are_damaged(tmp_path):
    file = tmp_path / "results.json"
    for content in (b"", b"3", b"[]", b"{}", b"{" * 100_000, b'{"format": 2}', b"\xff", b'{"format": 1e400}'):
        file.write_bytes(content)
        with pytest.raises(
            RunError, match=r"No report can be written from .*results.json: .*run the workflow again"
        ):
            RunResults.load(file)
