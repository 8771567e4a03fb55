"""Columns for training: every row at its id, classes coded as the pool has them, nothing changed."""

from __future__ import annotations

import errno
import pickle

import numpy as np
import pyarrow as pa
import pytest

import raysel
from raysel.data.row_index import ID
from raysel.data.store import Column, ColumnStore, classes_of, write_columns
from raysel.errors import DataError, RunError

pytestmark = pytest.mark.usefixtures("cluster")
PIXELS = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
LABELS = ["b", "a", "b", "c", "a"]
TEXTS = ["one", "", "drei", "ééé", "last"]
FILES = [b"\x00\x01", b"", b"abc\x00", b"x", b"yy"]
LISTS = [[1.5], [], [2.0, 3.0], [4.0, 5.0, 6.0], [7.0]]


def pool(**changes):
    return raysel.read({"pixels": PIXELS, "label": LABELS} | changes)


def test_rows_of_every_kind_lie_at_their_ids(tmp_path):
    order = np.array([3, 0, 4, 1, 2])
    table = pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(PIXELS[order].ravel()), 12),
            "label": [LABELS[i] for i in order],
            "text": [TEXTS[i] for i in order],
            "file": [FILES[i] for i in order],
            "list": pa.array([LISTS[i] for i in order], pa.list_(pa.float32())),
            "number": pa.array(order * 0.5),
            ID: order,
        }
    )
    names = ["pixels", "label", "text", "file", "list", "number"]
    rows = raysel.read(table).repartition(2)
    held = write_columns(rows, tmp_path, names, classes={"label": ["a", "b", "c"]}, ragged=True)
    assert held == {
        "pixels": Column("array", "uint8", (12,)),
        "label": Column("array", "int64"),
        "text": Column("text", "uint8"),
        "file": Column("bytes", "uint8"),
        "list": Column("lists", "float32"),
        "number": Column("array", "float64"),
    }
    store = pickle.loads(pickle.dumps(ColumnStore(tmp_path)))
    assert len(store) == 5 and store.columns == held and store.classes == {"label": ["a", "b", "c"]}
    found = store.rows(np.array([4, 0, 3]))
    assert found[ID].tolist() == [4, 0, 3]
    assert np.array_equal(found["pixels"], PIXELS[[4, 0, 3]].reshape(3, 12))
    assert found["label"].tolist() == [0, 1, 2]
    assert found["text"].tolist() == ["last", "one", "ééé"]
    assert found["file"].tolist() == [b"yy", b"\x00\x01", b"x"]
    assert [row.tolist() for row in found["list"]] == [[7.0], [1.5], [4.0, 5.0, 6.0]]
    assert found["number"].tolist() == [2.0, 0.0, 1.5]
    found["number"][:] = 9  # a copy, never the file
    assert store.column("number", np.array([4])).tolist() == [2.0]


def test_a_part_of_the_rows_keeps_their_ids(tmp_path):
    some = raysel.Selection.of([1, 3, 4]).rows(pool(text=TEXTS))
    write_columns(some, tmp_path, ["pixels", "text"], rows=5)
    store = ColumnStore(tmp_path)
    assert len(store) == 5 and store.ids.tolist() == [1, 3, 4]
    found = store.rows(np.array([4, 1]))
    assert np.array_equal(found["pixels"], PIXELS[[4, 1]]) and found["text"].tolist() == ["last", ""]


def test_columns_may_be_stored_under_other_names(tmp_path):
    named = raysel.read({"pixels": PIXELS, "label": np.arange(5) / 2, "kind": LABELS}, label="kind")
    write_columns(
        named, tmp_path, ["pixels", "kind"], classes={"kind": ["c", "b", "a"]}, names={"kind": "label"}
    )
    store = ColumnStore(tmp_path)
    assert store.column("label", np.arange(5)).tolist() == [1, 2, 1, 0, 2]
    assert store.classes == {"label": ["c", "b", "a"]}


def test_classes_are_sorted_and_rows_without_one_are_named():
    assert classes_of(pool(), "label", "pool.label") == ["a", "b", "c"]
    with pytest.raises(
        DataError, match=r"pool.label: 2 rows have no label in column 'label' \(sample_id 1, 3\)"
    ):
        classes_of(raysel.read(pa.table({"label": ["a", None, "b", None]})), "label", "pool.label")


@pytest.mark.parametrize(
    ("changes", "classes", "sentence"),
    [
        ({}, ["a", "b"], "The label c does not occur in the pool"),
        ({"label": ["a", None, "b", None, "a"]}, ["a", "b"], r"2 rows have no label in column 'label' \(sample_id 1, 3\)"),
        ({ID: [0, 1, 2, 3, 9]}, ["a", "b", "c"], r"5 rows, but its column 'sample_id' holds ids up to 9"),
        ({"pixels": ["x", None, "y", None, "z"]}, None, r"Column 'pixels' has no value in 2 rows \(sample_id 1, 3\)"),
        ({"pixels": [{"x": 1}] * 5}, None, "not numbers"),
        ({"pixels": [[["x"]]] * 5}, None, "not numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on(tmp_path, changes, classes, sentence):
    changes = {k: pa.array(v) for k, v in changes.items()}
    base = {"pixels": pa.array(PIXELS.reshape(5, -1).tolist()), "label": pa.array(LABELS)}
    known = {} if classes is None else {"label": classes}
    with pytest.raises(DataError, match=sentence):
        write_columns(raysel.read(pa.table(base | changes)), tmp_path, ["pixels", "label"], classes=known)


def test_rows_that_are_not_finite_are_named_and_written(tmp_path, caplog):
    x = np.ones((6, 2), np.float32)
    x[1, 0], x[4, 1] = np.nan, np.inf
    write_columns(raysel.read({"v": x}), tmp_path, ["v"])
    assert "Column 'v' holds NaN or infinite values in 2 of 6 rows (sample_id 1, 4)." in caplog.text
    assert np.array_equal(ColumnStore(tmp_path).column("v", np.arange(6)), x, equal_nan=True)


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_columns(pool(), tmp_path, ["pixels"])
