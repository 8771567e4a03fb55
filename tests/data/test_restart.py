"""A run that is killed goes on with what is missing, and two nodes make the bits of one. Each process has its own Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, to_column, to_numpy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
JOB = str(Path(__file__).with_name("job.py"))
ROWS = 12_000


def start(file, directory, nodes=1, *more):
    return subprocess.Popen(
        [sys.executable, JOB, str(file), str(directory), str(nodes), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(re.search(r"embedded (\d+) of 12000", out)[1])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "x.parquet"
    values = np.random.default_rng(0).standard_normal((ROWS, 8), np.float32)
    pq.write_table(pa.table({"x": to_column(values)}), path, row_group_size=1000)
    return path


@pytest.fixture(scope="module")
def undisturbed(file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "v"
    assert finish(start(file, directory)) == ROWS
    return read(directory)


def read(directory):
    table = pa.concat_tables([pq.read_table(p) for p in sorted(directory.glob("part-*"))]).sort_by(ID)
    assert table[ID].to_pylist() == list(range(ROWS))
    return to_numpy(table[EMBEDDING], EMBEDDING)


def test_a_run_killed_in_the_middle_goes_on(file, undisturbed, tmp_path):
    process = start(file, tmp_path / "v")
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "v").glob("part-*"))) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the driver, and the Ray it started
    process.wait()
    time.sleep(1)
    there = len(list((tmp_path / "v").glob("part-*")))
    assert there < 24 and not (tmp_path / "v/_done.json").exists()
    assert finish(start(file, tmp_path / "v")) <= ROWS - (there - 1) * 512
    assert np.array_equal(read(tmp_path / "v"), undisturbed)
    assert finish(start(file, tmp_path / "v")) == 0


def test_the_nodes_that_are_left_do_the_work_of_one_that_is_lost(file, undisturbed, tmp_path):
    assert 0 < finish(start(file, tmp_path / "v", 2, "one")) <= ROWS  # of the lost node, some were written
    assert np.array_equal(read(tmp_path / "v"), undisturbed)


def test_without_a_node_that_is_left_a_sentence_says_what_is_missing(file, undisturbed, tmp_path):
    process = start(file, tmp_path / "v", 2, "last")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(
        r"No embedding worker \(it needs 0\.8 CPU\) started within 10 s: .*; the vectors that are already computed",
        out,
    ), (
        out,
        err,
    )
    assert finish(start(file, tmp_path / "v")) < ROWS
    assert np.array_equal(read(tmp_path / "v"), undisturbed)
