"""Columns to arrays and back: every Arrow type that holds vectors, and every sentence for one that does not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raysel.data.vectors import as_matrix, as_vectors, not_finite, to_column, to_numpy
from raysel.errors import DataError

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.uint8, np.int64])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5),
        elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False),
    )
)


@given(ARRAYS)
def test_a_column_gives_back_its_array(values):
    back = to_numpy(to_column(values), "v")
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


@given(ARRAYS, st.integers(1, 5), st.integers(0, 4))
def test_chunks_and_slices_change_nothing(values, height, start):
    whole = to_column(values)
    chunks = pa.chunked_array([whole.slice(i, height) for i in range(0, len(whole), height)], whole.type)
    assert np.array_equal(to_numpy(chunks, "v"), values)
    assert np.array_equal(to_numpy(chunks.slice(start), "v"), values[start:])


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float32()), pa.large_list(pa.float32())]
)
def test_lists(kind):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pa.array(list(values), kind)
    assert np.array_equal(to_numpy(column, "v"), values)
    assert np.array_equal(to_numpy(column.slice(1, 2), "v"), values[1:3])


def test_rays_own_tensor_type():
    from ray.data.extensions import ArrowTensorArray

    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    column = ArrowTensorArray.from_numpy(values)
    assert np.array_equal(to_numpy(column, "v"), values)
    assert np.array_equal(to_numpy(column.slice(2), "v"), values[2:])


def test_no_copy_of_a_tensor_column():
    column = to_column(np.ones((10, 4), np.float32))
    address = column.storage.flatten().buffers()[1].address
    assert to_numpy(column, "v").__array_interface__["data"][0] == address


def test_numbers_become_one_column():
    assert as_matrix(pa.array([1, 2, 3]), "n").tolist() == [[1.0], [2.0], [3.0]]
    assert as_matrix(pa.array([1, 2, 3]), "n").dtype == np.float32


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (
            pa.array([[1.0], [1.0, 2.0], [3.0]]),
            r"different lengths: most have 1 elements, but 1 of 3 rows \(row 1\) has 2",
        ),
        (pa.array([[1.0], None], pa.list_(pa.float64())), r"no value in 1 of 2 rows \(row 1\)"),
        (
            pa.array([[1.0, None]], pa.list_(pa.float64())),
            r"missing elements \(null\) in 1 of 1 rows \(row 0\)",
        ),
        (pa.array([["a", None]]), "holds string, not numbers"),
        (pa.array(["a"]), "holds string, not numbers"),
        (pa.array([["a"]]), "holds string, not numbers"),
        (pa.array([{"a": 1}]), "not numbers"),
    ],
)
def test_columns_that_hold_no_vectors(column, sentence):
    with pytest.raises(DataError, match=sentence):
        as_matrix(column, "v")


def test_rows_are_named_by_id():
    chunks = pa.chunked_array([pa.array([[1.0], [2.0]]), pa.array([[1.0], None], pa.list_(pa.float64()))])
    with pytest.raises(DataError, match=r"sample_id 40"):
        to_numpy(chunks, "v", np.array([10, 20, 30, 40]))


def test_chunks_of_different_widths():
    chunks = pa.chunked_array([pa.array([[1.0]]), pa.array([[1.0, 2.0]])])
    with pytest.raises(DataError, match="different shapes: 1, 2"):
        to_numpy(chunks, "v")


def test_not_finite_finds_rows_and_no_others():
    vectors = np.zeros((5, 3), np.float32)
    vectors[1, 2] = np.nan
    vectors[3] = [np.inf, -np.inf, 0]
    vectors[4] = np.finfo(np.float32).max  # sums to infinity, and is finite
    assert not_finite(vectors).tolist() == [1, 3]


def test_vectors_that_are_vectors_already_are_handed_on():
    vectors = pa.chunked_array([to_column(np.ones((3, 4), np.float32))])
    assert as_vectors(vectors) is vectors
    for other in (np.ones((3, 4)), np.ones((3, 2, 2), np.float32)):
        assert as_vectors(pa.chunked_array([to_column(other)])) is None
    assert as_vectors(pa.chunked_array([[1.0, 2.0]])) is None


def test_lists_of_lists_views_and_runs():
    values = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    nested = pa.array(values.tolist())
    for column in (
        nested,
        nested.cast(pa.list_(pa.list_(pa.float64(), 2), 3)),
        pa.array(values.tolist(), pa.list_view(pa.list_view(pa.float64()))),
        pa.chunked_array([nested.slice(0, 1), nested.slice(1)]),
    ):
        assert np.array_equal(to_numpy(column, "v"), values)
        assert np.array_equal(as_matrix(column, "v"), values.reshape(2, 6))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([5, 7]))
    assert to_numpy(runs, "v").tolist() == [5, 5, 7]
    with pytest.raises(DataError, match=r"1 of 4 rows \(sample_id 9\) has 1"):
        to_numpy(pa.array([[[1, 2], [3, 4]], [[5, 6], [7]]]), "v", np.array([8, 9]))


def test_values_beyond_float32_are_refused_and_infinities_stay():
    assert np.isinf(as_matrix(pa.array([np.inf, 1.0]), "v")[0, 0])
    with pytest.raises(DataError, match=r"beyond the range of float32 in 1 of 3 rows \(sample_id 7\)"):
        as_matrix(pa.array([1.0, 1e300, np.inf]), "v", np.array([6, 7, 8]))
    assert as_matrix(pa.array([2**64 - 1], pa.uint64()), "v")[0, 0] == np.float32(2**64)
