"""Arrays for training: every row at its id, labels coded by the pool's classes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import raysel
from raysel.data.row_index import ID
from raysel.data.store import ArrayDataset, write_arrays
from raysel.errors import DataError

pytestmark = pytest.mark.usefixtures("cluster")
PIXELS = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
LABELS = ["b", "a", "b", "c", "a"]


def pool(**changes):
    return raysel.read({"pixels": PIXELS, "label": LABELS} | changes)


def test_rows_lie_at_their_ids(tmp_path):
    order = np.array([3, 0, 4, 1, 2])
    shuffled = {"pixels": PIXELS[order], "label": [LABELS[i] for i in order], ID: order}
    assert write_arrays(raysel.read(shuffled), tmp_path, "pixels", "label") == ["a", "b", "c"]
    data = ArrayDataset(tmp_path)
    assert len(data) == 5
    assert np.array_equal(data.inputs, PIXELS)
    assert data.labels.tolist() == [1, 0, 1, 2, 0]
    row, code = data[3]
    assert torch.equal(row, torch.from_numpy(PIXELS[3])) and code == 2
    batch = pickle.loads(pickle.dumps(data)).__getitems__([4, 0])
    assert [code for _, code in batch] == [0, 1]
    assert torch.equal(batch[0][0], torch.from_numpy(PIXELS[4]))


def test_the_label_has_any_name(tmp_path):
    named = raysel.read({"pixels": PIXELS, "label": np.arange(5) / 2, "kind": LABELS}, label="kind")
    assert write_arrays(named, tmp_path, "pixels", "kind") == ["a", "b", "c"]
    assert ArrayDataset(tmp_path).labels.tolist() == [1, 0, 1, 2, 0]


def test_a_test_set_uses_the_pools_classes(tmp_path):
    write_arrays(pool(), tmp_path, "pixels", "label", ["c", "b", "a"])
    assert ArrayDataset(tmp_path).labels.tolist() == [1, 2, 1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "classes", "sentence"),
    [
        ({}, ["a", "b"], "The label c does not occur in the pool"),
        (
            {"label": ["a", None, "b", None, "a"]},
            None,
            r"2 rows have no label in column 'label' \(sample_id 1, 3\)",
        ),
        ({ID: [0, 1, 2, 3, 9]}, None, r"5 rows but ids up to 9"),
        ({"pixels": ["x"] * 5}, None, "not numbers"),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, changes, classes, sentence):
    import pyarrow as pa

    changes = {k: pa.array(v) for k, v in changes.items()}
    base = {"pixels": pa.array(PIXELS.reshape(5, -1).tolist()), "label": pa.array(LABELS)}
    with pytest.raises(DataError, match=sentence):
        write_arrays(raysel.read(pa.table(base | changes)), tmp_path, "pixels", "label", classes)


def test_rows_that_are_not_finite_are_named_and_written(tmp_path, caplog):
    x = np.ones((6, 2), np.float32)
    x[1, 0], x[4, 1] = np.nan, np.inf
    write_arrays(raysel.read({"v": x, "label": [0, 1] * 3}), tmp_path, "v", "label")
    assert "Column 'v' holds NaN or infinite values in 2 of 6 rows (sample_id 1, 4)." in caplog.text
    assert np.array_equal(ArrayDataset(tmp_path).inputs, x, equal_nan=True)
