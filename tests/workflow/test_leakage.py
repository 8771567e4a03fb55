"""Test rows that are also training rows: counted by copies of the input, or by stored vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.vectors import to_column
from raysel.workflow.config import parse
from raysel.workflow.directory import open_run
from raysel.workflow.steps import Embed, Leakage, Select, plan
from raysel.workflow.steps.leakage import digests


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
    for columns, equal in (
        (["image"], True),
        (["text", "x"], True),
        (["text", "raw"], True),
        (["x"], True),
        (["tokens"], True),
    ):
        found = digests(table, columns)
        assert (found[0] == found[2]) is equal and found[0] != found[1]
        parts = [digests(table.slice(at, 2), columns) for at in (0, 2)]
        assert found == [*parts[0], *parts[1]]
    one, other = digests(pa.table({"a": ["x", "xy"], "b": ["yz", "z"]}), ["a", "b"])
    assert one != other


@pytest.mark.parametrize(
    ("select", "cosine", "rows"), [(None, None, 7), ("nearest", 0.95, 11), ("random", None, 7)]
)
def test_they_are_counted(tmp_path, cluster, select, cosine, rows):
    rng = np.random.default_rng(0)
    pool, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (150, 40))
    test[:7] = pool[10:17]  # copies
    test[7:11] = pool[20:24] + np.float32(0.01)
    for name, vectors in (("pool", pool), ("test", test)):
        table = {"x": to_column(vectors), "label": np.arange(len(vectors)) % 2}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    tree = {
        "name": "leaking",
        "pool": {"path": "pool.parquet", "label": "label"},
        "test": {"path": "test.parquet", "label": "label"},
        "target": "test.parquet",
        "embed": {"column": "x"},
        "select": select and {"method": select, "budget": 1.0},
        "train": {"model": "model.py:make", "input": "x"},
    }
    with open_run(parse(tree, tmp_path), tmp_path / "run") as run:
        steps = [step for step in plan(run.workflow) if isinstance(step, (Embed, Select, Leakage))]
        found = [run.do(step).answer for step in steps][-1]
    assert isinstance(steps[-1], Leakage) and found == {"rows": rows, "cosine": cosine}
