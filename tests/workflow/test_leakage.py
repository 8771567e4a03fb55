"""Test rows that are also training rows: counted by copies of the input, or by stored vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.data.content import row_digests
from raysel.data.vectors import to_column
from raysel.workflow.config import parse
from raysel.workflow.directory import open_run
from raysel.workflow.steps import Embed, Leakage, Select, plan


def test_rows_with_equal_values_have_equal_digests():
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(16, dtype=np.uint8).reshape(4, 2, 2) % 8)
    table = pa.table(
        {
            "image": images,
            "text": ["a", "bc", "a", "b"],
            "raw": [b"c", b"", b"c", b"c"],
            "x": [1.0, 2.0, 1.0, 1.0],
            "tokens": [[1, 2], [3], [1, 2], []],
        }
    )
    for columns in (["image"], ["text", "x"], ["text", "raw"], ["x"], ["tokens"]):
        found = row_digests(table, columns)
        assert found[0] == found[2] and found[0] != found[1]
        for cut in (1, 2, 3):  # a list column holds lists of one length in some blocks
            parts = [row_digests(table.slice(0, cut), columns), row_digests(table.slice(cut), columns)]
            assert (found == np.concatenate(parts)).all()
    assert (
        len(set(row_digests(table, ["tokens"]))) == 3 and len(set(row_digests(table, ["text", "raw"]))) == 3
    )
    one, other = row_digests(pa.table({"a": ["x", "xy"], "b": ["yz", "z"]}), ["a", "b"])
    assert one != other


def test_they_are_counted(tmp_path, cluster):
    rng = np.random.default_rng(0)
    pool, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (150, 40))
    test[:7] = pool[10:17]  # copies
    test[6] = test[5]
    test[7:11] = pool[20:24] + np.float32(0.01)
    bad = test.copy()
    bad[20, 3] = np.nan
    for name, vectors in (("pool", pool), ("test", test), ("bad", bad)):
        group = np.arange(len(vectors)) % 2
        table = {"x": to_column(vectors), "label": group, "group": group + (name != "pool")}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet", row_group_size=30)
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    nearest, random = {"method": "nearest", "budget": 1.0}, {"method": "random", "budget": 60}
    for number, (select, tested, inputs, cosine, rows) in enumerate(
        (
            (None, "test", "x", None, 7),
            (None, "test", ["x", "group"], None, 1),  # a copy of a row with the same group
            ([nearest, random], "test", "x", 0.95, None),
            ([nearest, random], "bad", "x", None, None),  # the vectors cannot be compared
        )
    ):
        tree = {
            "name": "leaking",
            "pool": {"path": "pool.parquet", "label": "label"},
            "test": {"path": f"{tested}.parquet", "label": "label"},
            "target": "test.parquet",
            "embed": {"column": "x"},
            "select": select,
            "train": {"model": "model.py:make", "input": inputs},
        }
        with open_run(parse(tree, tmp_path), tmp_path / f"run{number}") as run:
            steps = [step for step in plan(run.workflow) if isinstance(step, (Embed, Select, Leakage))]
            found = [run.do(step).answer for step in steps][-1]
            if rows is None:
                there = [10, 11, 12, 13, 14, 15, 15] + ([20, 21, 22, 23] if cosine else [])
                rows = int(np.isin(there, run.rows.ids).sum())
                assert len(run.rows) == 60 and rows < len(there)
        assert isinstance(steps[-1], Leakage) and found == {"rows": rows, "cosine": cosine}


def test_a_few_rows_are_read_from_their_row_groups_alone(tmp_path, cluster):
    stored = np.random.default_rng(0).permutation(90)
    for name, ids in (("positions", {}), ("stored", {"sample_id": stored})):
        table = pa.table({"text": [f"row {i}" for i in range(90)], "label": ["a"] * 90, **ids})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=10)
        tree = {
            "name": "few",
            "pool": {"path": f"{name}.parquet", "label": "label"},
            "test": {"path": f"{name}.parquet", "label": "label"},
            "train": {"model": "model.py:make", "input": "text"},
        }
        with open_run(parse(tree, tmp_path), tmp_path / f"run-{name}") as run:
            found = run.some_rows("pool", np.array([3, 41, 42, 89]), ["text"])
        rows = {3, 41, 42, 89} if not ids else {int(np.flatnonzero(stored == i)[0]) for i in (3, 41, 42, 89)}
        assert sorted(found["sample_id"].to_pylist()) == [3, 41, 42, 89]
        assert set(found["text"].to_pylist()) == {f"row {i}" for i in rows}
