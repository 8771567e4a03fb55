"""Labels, ids and inputs that a run would stumble over: found by `validate` where footers suffice, else before Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.listing import warn
from raysel.data.vectors import to_column
from raysel.errors import DataError, RayselError
from raysel.workflow import config, steps
from raysel.workflow.load import load_check

FLOW = """
name: t
pool: {path: pool, label: y}
test: {path: test.parquet, label: y}
train: {model: "m.py:make", input: x, workers: 1}
"""
X = to_column(np.zeros((6, 4), np.float32))
GOOD = {"x": X, "y": [0, 1] * 3}
TEXT = {"x": X, "y": ["a", "b"] * 3}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text("import torch\ndef make(shape, classes): return torch.nn.Linear(4, classes)\n")
    Path("pool").mkdir()

    def write(pool=GOOD, test=GOOD, flow=FLOW, **options):
        for name, columns in {"pool/a": pool, "pool/b": pool, "test": test}.items():
            pq.write_table(
                columns if isinstance(columns, pa.Table) else pa.table(columns), f"{name}.parquet", **options
            )
        Path("flow.yaml").write_text(flow)
        return config.load("flow.yaml")

    return write


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pool": {**GOOD, "y": [0, None] * 3}}, "pool.label: 6 rows have no label in column 'y'; label or drop them first."),
        ({"test": {**GOOD, "y": [0, None] * 3}}, "test.label: 3 rows have no label in column 'y'; label or drop them first."),
        ({"test": {**GOOD, "y": pa.nulls(6, pa.int64())}}, "test.label: 6 rows have no label"),
        ({"test": {**GOOD, "y": [0, 7] * 3}}, "test.label: The label 7 in column 'y' does not occur in the pool, whose labels are 0 to 1"),
        ({"test": {**GOOD, "y": [-1, 0] * 3}}, "test.label: The label -1 in column 'y' does not occur in the pool"),
        ({"test": TEXT}, "test.label: Column 'y' holds text, but the labels of the pool are integers; store both with the same type."),
        ({"pool": TEXT}, "test.label: Column 'y' holds integers, but the labels of the pool are text"),
        ({"test": {**GOOD, "y": [True, False] * 3}}, "test.label: Column 'y' holds booleans, but the labels of the pool are integers"),
        ({"test": {**GOOD, "y": [0.0, 1.0] * 3}}, "test.label: The label column 'y' of the files of test.path holds double"),
        ({"test": {**GOOD, "sample_id": np.arange(6) * 10}}, "test.path: Column 'sample_id' holds ids from 0 to 50, but there are 6 rows."),
        ({"test": {**GOOD, "sample_id": np.arange(6) + 1}}, "test.path: Column 'sample_id' holds ids from 1 to 6, but there are 6 rows."),
        ({"test": {**GOOD, "sample_id": list("abcdef")}}, "test.path: Column 'sample_id' holds string, but ids must be integers"),
        ({"test": {**GOOD, "sample_id": np.arange(6.0)}}, "test.path: Column 'sample_id' holds double, but ids must be integers"),
        ({"pool": {**GOOD, "x": ["a"] * 6}}, "train.input: Column 'x' holds text; store numbers, or give"),
        ({"test": {**GOOD, "x": [[["a"]]] * 6}}, "train.input: Column 'x' holds string, not numbers"),
        ({"pool": {**GOOD, "x": [b"a"] * 6}}, "train.input: Column 'x' holds encoded images"),
        ({"flow": FLOW.replace("input: x", "input: y")}, "train.input: Column 'y' holds the labels that the model is to learn"),
        ({"pool": {**GOOD, "sample_id": np.arange(6)}, "test": {**GOOD, "sample_id": np.arange(6)},
          "flow": FLOW.replace("input: x", "input: sample_id")}, "train.input: Column 'sample_id' holds the ids of the rows"),
        ({"test": {**GOOD, "sample_id": np.arange(6)}, "flow": FLOW.replace("test.parquet, label: y", "test.parquet, label: sample_id")},
         "test.label: 'sample_id' holds the ids of the rows, so every row would be a class of its own; name the column with the class."),
    ],
)  # fmt: skip
def test_footers_show_what_no_training_can_use(write, given, says):
    with pytest.raises(RayselError) as caught:
        steps.check(write(**given))
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pool": {**GOOD, "y": [0, 2] * 3}}, "test.label: The label 1 in column 'y' does not occur in the pool, whose classes are 0, 2"),
        ({"pool": TEXT, "test": {**TEXT, "y": ["a", "c"] * 3}}, "test.label: The label c in column 'y' does not occur in the pool"),
        ({"pool": TEXT, "test": {**TEXT, "y": ["a", None] * 3}, "write_statistics": False}, "test.label: 3 rows have no label in column 'y'"),
        ({"test": {**GOOD, "y": [0, 7] * 3}, "write_statistics": False}, "test.label: The label 7 in column 'y' does not occur"),
    ],
)  # fmt: skip
def test_labels_that_footers_do_not_show_are_read_before_anything_starts(write, given, says):
    flow = write(**given)
    steps.check(flow)
    with pytest.raises(RayselError) as caught:
        load_check(flow)
    assert str(caught.value).startswith(says)


def test_blank_labels_are_none_and_odd_ones_are_said(write, caplog):
    blank = {**TEXT, "y": pa.array(["a", "", "b", " ", None, "a"]).dictionary_encode()}
    with pytest.raises(
        DataError, match=r"^pool.label: 6 rows have no label in column 'y' \(sample_id 1, 3, 4 and 3 more\)"
    ):
        load_check(write(blank, TEXT, write_statistics=False))
    warn.cache_clear()
    flow = write({**TEXT, "y": ["cat", "Cat ", "NA", "N/A", "a", "A"]}, {**TEXT, "y": ["cat", "a", "A"] * 2})
    load_check(flow)
    assert caplog.messages == [
        "pool.label: The text 'N/A', 'NA' in column 'y' counts as a class like any other; if it stands for a missing label, drop these rows.",
        "pool.label: 'Cat ' and 'cat' in column 'y' are two classes, although they differ only in spaces or in upper and lower case.",
    ]
    with pytest.raises(
        DataError,
        match=r"The label cat in column 'y' does not occur in the pool, whose classes are b, 'cat '",
    ):
        load_check(write({**TEXT, "y": ["cat ", "b"] * 3}, {**TEXT, "y": ["cat", "b"] * 3}))


def test_labels_that_the_first_rows_of_a_text_file_lack(write):
    flow = write(
        flow=FLOW.replace("path: pool,", "path: pool.csv,").replace("path: test.parquet", "path: test.jsonl")
    )
    Path("test.jsonl").write_text('{"x": 1, "y": 0}')
    for text, says in (
        ("x,y\n", "pool.path: There are no rows in "),
        ("x,y\n1,\n2,0\n", "pool.label: 1 rows have no label in column 'y' (sample_id 0)"),
        ("x,y\n1,\n2,\n", "pool.label: The label column 'y' of the files of pool.path holds null"),
    ):
        Path("pool.csv").write_text(text)
        with pytest.raises(DataError) as caught:
            steps.check(flow)
            load_check(flow)
        assert str(caught.value).startswith(says)


def test_labels_that_can_be_used_pass(write):
    narrow = {**GOOD, "y": pa.array([0, 1] * 3, pa.int8())}
    words = {**TEXT, "y": pa.array(["a", "b"] * 3).dictionary_encode()}
    for pool, test in ((GOOD, GOOD), (GOOD, narrow), (narrow, GOOD), (TEXT, words), (words, TEXT)):
        flow = write(pool, test)
        steps.check(flow)
        load_check(flow)
    numbered = {**GOOD, "sample_id": np.arange(6)[::-1]}
    steps.check(write(test=numbered))
    steps.check(write(test=numbered, write_statistics=False))
    steps.check(write(test={**GOOD, "x": [[0.0, 1.0]] * 6}, pool={**GOOD, "x": np.arange(6)}))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (to_column(np.zeros((6, 5), np.float32)), "holds float32 of shape (5,), but the pool's holds float32 of shape (4,)"),
        (to_column(np.zeros((6, 4), np.int64)), "holds int64 of shape (4,), but the pool's holds float32 of shape (4,)"),
        (pa.array([[1.0] * 4] * 6), "holds float64 of shape (4,), but the pool's holds float32 of shape (4,)"),
    ],
)  # fmt: skip
def test_inputs_that_the_model_cannot_take_are_found_before_it_is_trained(write, x, words):
    with pytest.raises(DataError) as caught:
        load_check(write(test={**GOOD, "x": x}))
    assert str(caught.value).startswith(f"test.path: Column 'x' {words}, and the model cannot take both (")
    flow = write(test={**GOOD, "x": x})
    Path("m.py").write_text(
        "import torch\nclass Sums(torch.nn.Linear):\n    def forward(self, x): return super().forward(x.float().sum(1, True))\n"
        "def make(shape, classes): return Sums(1, classes)\n"
    )
    load_check(flow)


def test_classes_can_be_the_names_of_directories(write):
    flow = write(flow=FLOW.replace("path: pool,", "path: parts,"))
    for label in (0, 1):
        Path(f"parts/y={label}").mkdir(parents=True)
        pq.write_table(pa.table({"x": X}), f"parts/y={label}/a.parquet")
    assert steps.check(flow).counts["pool"] == 12
    load_check(flow)
