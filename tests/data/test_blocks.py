"""What is asked of every block: order, errors that keep their sentence, checked vectors, samples by id."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import raysel
from raysel.data.blocks import arrow_blocks, gather, map_blocks, vector_blocks
from raysel.data.rowid import ID
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

    monkeypatch.setattr("raysel.data.blocks._ROOM_S", 1.0)
    rows = dataset(cluster, np.ones((2, 2), np.float32), 1)
    everything = placement_group([{"CPU": 2}])
    assert everything.wait(60)
    try:
        with pytest.raises(ResourceError, match=r"No CPU was free within 1 s: 0 of the cluster's 2 are"):
            gather(rows, [ID], "pool")
    finally:
        remove_placement_group(everything)


def test_gather_names_a_missing_column(cluster):
    with pytest.raises(DataError, match="The pool has no column 'w'; its columns are sample_id, v"):
        gather(dataset(cluster, np.ones((2, 2), np.float32), 1), ["w"], "pool")


def test_a_sample_is_the_same_in_any_blocks(cluster):
    vectors = np.random.default_rng(0).standard_normal((500, 3), np.float32)
    first_ids = None
    for blocks in (1, 2, 7):
        held = vector_blocks(dataset(cluster, vectors, blocks), "v", "pool")
        assert (held.rows, held.dimension) == (500, 3)
        ids, got = held.sample(100, seed=3)
        assert 60 < len(ids) < 140
        assert np.array_equal(got, vectors[ids])
        first_ids = ids if first_ids is None else first_ids
        assert np.array_equal(ids, first_ids)
        assert len(held.sample(500, seed=3)[0]) == 500
    assert not np.array_equal(held.sample(100, seed=4)[0], first_ids)


def test_nan_and_infinity_are_counted_and_named(cluster):
    vectors = np.ones((50, 3), np.float32)
    vectors[[4, 30, 31, 49], 1] = [np.nan, np.inf, -np.inf, np.nan]
    with pytest.raises(
        DataError, match=r"NaN or infinite values in 4 of 50 rows \(sample_id 4, 30, 31 and 1 more\)"
    ):
        vector_blocks(dataset(cluster, vectors, 3), "v", "pool")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({ID: [0, 1], "w": [1.0, 2.0]}, "The pool has no column 'v'"),
        ({"v": [1.0, 2.0]}, "The pool has no column 'sample_id'"),
        ({ID: [1, 1], "v": [1.0, 2.0]}, "more than once"),
        ({ID: [0, 1], "v": ["a", "b"]}, "holds string, not numbers"),
        ({ID: [0, 1], "v": [[], []]}, "not numbers|without elements"),
    ],
)
def test_vectors_that_cannot_be_used(cluster, columns, sentence):
    with pytest.raises(DataError, match=sentence):
        vector_blocks(cluster.data.from_arrow(pa.table(columns)), "v", "pool")


def test_blocks_of_different_widths(cluster):
    parts = [pa.table({ID: [i], "v": pa.array([[0.0] * (i + 1)])}) for i in range(2)]
    with pytest.raises(DataError, match="different lengths"):
        vector_blocks(cluster.data.from_arrow(parts), "v", "pool")


def test_read_rows_reach_the_blocks(cluster):
    held = vector_blocks(raysel.read({"v": np.ones((5, 2), np.float32)}), "v", "pool")
    assert held.ids.tolist() == [0, 1, 2, 3, 4]


def test_a_cancelled_task_does_not_leave_torch_imported_by_half():
    """Ray cancels a task by interrupting the main thread; the next task of the process imports torch, too."""
    code = """
import _thread, sys, threading, time
from raysel.data.blocks import import_whole

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
