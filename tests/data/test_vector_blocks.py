"""Columns of vectors on the cluster: checked rows, and samples by id."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

import raysel
from raysel.data.row_index import ID
from raysel.data.vector_blocks import vector_blocks
from raysel.data.vectors import to_column
from raysel.errors import DataError

pytestmark = pytest.mark.usefixtures("cluster")


def dataset(cluster, vectors, blocks, ids=None):
    ids = np.arange(len(vectors)) if ids is None else ids
    table = pa.table({ID: ids, "v": to_column(vectors)})
    edges = np.linspace(0, len(vectors), blocks + 1).astype(int)
    return cluster.data.from_arrow([table.slice(a, b - a) for a, b in itertools.pairwise(edges)])


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
    large = np.ones((50, 3), np.float32)
    large[[7, 40], 2] = [3e38, -1e16]
    with pytest.raises(
        DataError, match=r"'v' of the target holds values beyond .* in 2 of 50 rows \(sample_id 7, 40\)"
    ):
        vector_blocks(dataset(cluster, large, 3), "v", "target")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {ID: [0, 1], "w": [1.0, 2.0]},
            "The pool has no column 'v'; .* Compute vectors with raysel.embed first",
        ),
        ({"v": [1.0, 2.0]}, "The pool has no column 'sample_id'"),
        ({ID: [1, 1], "v": [1.0, 2.0]}, "more than once"),
        (
            {ID: [0, 1], "v": ["a", "b"]},
            "vectors of the pool cannot be used. Column 'v' holds string, not numbers",
        ),
        (
            {ID: [3, 7], "v": [[1.0, 2.0], [None, None]]},
            r"vectors of the pool cannot be used. Column 'v' holds vectors with missing elements \(null\) in 1 of 2 rows \(sample_id 7\)",
        ),
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


def test_the_error_of_a_lazy_step_is_one_sentence():
    rows = raysel.read({"v": [[1.0, 2.0], [1.0]], "text": ["a", "b"]})
    vectors = raysel.embed(rows, "column", column="v")
    for use in (
        lambda: vector_blocks(vectors, "embedding", "pool"),
        lambda: raysel.GIO(budget=1.0).select(vectors, vectors),
        lambda: raysel.GIO(budget="10 B").select(vectors, vectors),
        lambda: raysel.fit_embedder("pca:1", vectors, column="embedding"),
        lambda: raysel.GIME(raysel.gime.Binding(classes="text")).aim(vectors),
        lambda: raysel.read(vectors),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert type(caught.value) is DataError and "\n" not in str(caught.value)
