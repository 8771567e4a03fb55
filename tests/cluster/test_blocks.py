"""Functions of every block: the order of the results, errors of one sentence, named columns."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.cluster.blocks import arrow_blocks, gather, map_blocks, stream_blocks
from raysel.data.row_index import ID
from raysel.data.vectors import to_column
from raysel.errors import DataError, ResourceError

pytestmark = pytest.mark.usefixtures("cluster")


def dataset(cluster, vectors, blocks, ids=None):
    ids = np.arange(len(vectors)) if ids is None else ids
    table = pa.table({ID: ids, "v": to_column(vectors)})
    edges = np.linspace(0, len(vectors), blocks + 1).astype(int)
    return cluster.data.from_arrow([table.slice(a, b - a) for a, b in itertools.pairwise(edges)])


def test_answers_come_in_the_order_of_the_blocks(cluster):
    refs = arrow_blocks(dataset(cluster, np.ones((70, 2), np.float32), 7))
    assert map_blocks(lambda t, k: t[ID][0].as_py() * k, refs, 2) == [0, 20, 40, 60, 80, 100, 120]


def test_an_error_keeps_its_class_and_sentence(cluster):
    def fail(table):
        raise DataError("this row")

    with pytest.raises(DataError, match=r"^this row$"):
        map_blocks(fail, arrow_blocks(dataset(cluster, np.ones((2, 2), np.float32), 1)))


def test_a_full_cluster_is_said_and_not_waited_for(cluster, monkeypatch):
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr("raysel.cluster.wait.CPU_S", 1.0)
    rows = dataset(cluster, np.ones((2, 2), np.float32), 1)
    everything = placement_group([{"CPU": 2}])
    assert everything.wait(60)
    try:
        with pytest.raises(
            ResourceError,
            match=r"No CPU was free within 1 s: 0 of the cluster's 2 CPUs are free. Other processes use the rest",
        ):
            gather(rows, [ID], "pool")
    finally:
        remove_placement_group(everything)


def test_gather_names_a_missing_column(cluster):
    with pytest.raises(DataError, match="The pool has no column 'w'; its columns are sample_id, v"):
        gather(dataset(cluster, np.ones((2, 2), np.float32), 1), ["w"], "pool")


def test_a_cancelled_task_does_not_leave_torch_imported_by_half():
    """Ray cancels a task by interrupting the main thread; the next task of the process imports torch, too."""
    code = """
import _thread, sys, threading, time
from raysel.cluster.blocks import import_whole

def interrupt():
    while "torch._C" not in sys.modules:
        time.sleep(0.001)
    time.sleep(0.05)
    _thread.interrupt_main()

threading.Thread(target=interrupt, daemon=True).start()
try:
    import_whole("torch")  # with a plain import the last line raises
    time.sleep(10)
except KeyboardInterrupt:
    pass
print(import_whole("torch").ones(3).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "3.0", done.stderr


def test_blocks_come_in_the_order_of_the_data_set_and_not_in_that_of_their_completion(cluster):
    """Ids of a Ray Dataset of the user's own are numbered in this order."""

    def slow_first(batch):
        time.sleep(1.5 if batch["id"][0] == 0 else 0)
        return batch

    dataset = cluster.data.range(12, override_num_blocks=6).map_batches(slow_first)
    found = [table["id"].to_pylist() for table in cluster.get(arrow_blocks(dataset))]
    assert [number for block in found for number in block] == list(range(12))
    assert dataset.context.execution_options.preserve_order is False


@pytest.fixture
def files(tmp_path):
    """Twelve row groups in three files; x is ten times the id."""
    for part in range(3):
        rows = pa.table({"x": np.arange(20 * part, 20 * part + 20) * 10, "y": np.zeros(20)})
        pq.write_table(rows, tmp_path / f"{part}.parquet", row_group_size=5)
    return raysel.read(tmp_path)


def test_plain_files_are_read_in_their_order_without_ray_data(cluster, files, monkeypatch):
    named = files.rename_columns({"x": "z"}).select_columns(["z", ID])
    monkeypatch.setattr(cluster.data.Dataset, "iter_batches", None)  # a step of Ray Data would fail
    monkeypatch.setattr(cluster.data.Dataset, "materialize", None)
    parts = list(
        stream_blocks(
            named, ["z"], "pool", lambda table, k: (table.column_names, table["z"][0].as_py() + k), 1
        )
    )
    assert parts == [(["z"], 50 * group + 1) for group in range(12)]
    assert gather(named, [ID, "z"], "pool").to_pydict() == {ID: list(range(60)), "z": list(range(0, 600, 10))}
    sums = list(stream_blocks(named, [ID], "pool", len, combine=lambda a, b: a + b))
    assert sum(sums) == 60 and len(sums) <= 12
    with pytest.raises(DataError, match="The pool has no column 'w'; its columns are z, sample_id"):
        list(stream_blocks(named, ["w"], "pool", len))


def test_a_large_row_group_is_given_in_parts(cluster, files, monkeypatch):
    from raysel.cluster import blocks

    shared = ({"x": "x"}, lambda table: table["x"].to_pylist(), (), None)
    monkeypatch.setattr(blocks, "_TABLE_BYTES", 27)  # three numbers, and their marks of missing ones
    source, _ = blocks.source_columns(files)
    parts = [part for read in source.reads(["x"], 2) for part in blocks._answers(read, shared)]
    assert [len(part) for part in parts] == [3, 2] * 12 and list(itertools.chain(*parts)) == list(
        range(0, 600, 10)
    )


def test_a_failure_among_many_reads_is_one_sentence_and_the_next_pass_works(cluster, files):
    def fail(table):
        if table["x"][0].as_py() == 100:
            raise DataError("this row")
        return len(table)

    with pytest.raises(DataError, match=r"^this row$"):
        list(stream_blocks(files, ["x"], "pool", fail))
    assert sum(stream_blocks(files, ["x"], "pool", len)) == 60
