"""Matrix products that are the exact sums, rounded once: against fractions, and however the rows are cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysel.data.product import _nearest, _nearest_one, project

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**50), max_value=2.0**50)


def exactly(x, w):
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, w, strict=True)), Fraction(0))


def is_nearest(value, exact):
    """Nothing between two neighbours of ``value`` is nearer, ties to the even one."""
    own = abs(Fraction(float(value)) - exact)
    for other in (np.nextafter(value, np.float32(np.inf)), np.nextafter(value, np.float32(-np.inf))):
        distance = abs(Fraction(float(other)) - exact)
        if distance < own or (distance == own and value.view(np.uint32) % 2):
            return False
    return True


def matmul(rows, weights):
    return project(rows, np.zeros(rows.shape[1], np.float32), weights)


@given(st.integers(1, 12).flatmap(lambda d: st.tuples(*[st.lists(floats, min_size=d, max_size=d)] * 2)))
def test_the_exact_sum_rounded_once(pair):
    x, w = (np.array(part, np.float32) for part in pair)
    found = matmul(x[None], w[:, None])
    assert found.dtype == np.float32 and is_nearest(found[0, 0], exactly(x, w))


def test_sums_that_cancel():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 40, 60)).astype(np.float32)
    rows = np.concatenate([x, -x, np.full((40, 1), 1e-9, np.float32)], axis=1)  # the small rest alone remains
    weights = np.concatenate([w[:1].T, w[:1].T, np.ones((1, 1), np.float32)])
    assert (matmul(rows, weights) == np.float32(1e-9)).all()
    assert np.signbit(matmul(np.zeros((3, 2), np.float32), -np.ones((2, 2), np.float32))).sum() == 0


def test_half_way_between_two_floats():
    up = float(np.nextafter(np.float32(1), np.float32(2)))
    half, tiny = (1 + up) / 2, 2.0**-80
    terms = np.array([[half, 0], [half, tiny], [half, -tiny], [-half, -tiny]])
    expected = np.array([1, up, 1, -up], np.float32)  # the first is a tie, to the even one
    assert np.array_equal(_nearest(terms), expected)
    assert np.array_equal([_nearest_one(row) for row in terms], expected)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_sums_near_half_way_are_settled_exactly(d, seed):
    """Terms that add up to a point half way between two floats, or next to it, after much has cancelled."""
    rng = np.random.default_rng(seed)
    some = (
        (rng.standard_normal((8, d)) * 2.0 ** rng.integers(-30, 30, (8, d))).astype(np.float32).astype(float)
    )
    half = 1 + 2.0**-24 + rng.integers(-2, 3, (8, 1)) * 2.0 ** -rng.integers(50, 75, (8, 1)).astype(float)
    rest = rng.integers(-1, 2, (8, 1)) * 2.0**-60
    terms = rng.permuted(np.concatenate([some, -some, half, rest], axis=1), axis=1)
    for found, row in zip(_nearest(terms), terms, strict=True):
        assert is_nearest(found, sum(map(Fraction, row.tolist()), Fraction(0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_rows_of_any_dtype_less_their_mean(dtype):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (300, 9)).astype(dtype)
    mean, weights = rng.standard_normal(9, np.float32), rng.standard_normal((9, 4), np.float32)
    centred = (rows - mean).astype(np.float32)
    found = project(rows, mean, weights)
    assert np.array_equal(found, matmul(centred, weights))
    assert is_nearest(found[0, 0], exactly(centred[0], weights[:, 0]))


@pytest.mark.parametrize("width", [3, 64, 784])
def test_it_does_not_depend_on_the_cut_nor_on_neighbours(width):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, width), np.float32)
    weights = rng.standard_normal((width, 32), np.float32)
    whole = matmul(rows, weights)
    for cut in (1, 37, 256, 999):
        assert np.array_equal(
            np.concatenate([matmul(rows[:cut], weights), matmul(rows[cut:], weights)]), whole
        )
    assert np.array_equal(matmul(rows[::-1], weights), whole[::-1])
    np.testing.assert_allclose(whole, rows @ weights, rtol=1e-3, atol=1e-3)


def test_rows_that_are_not_finite_stay_alone():
    rows = np.ones((4, 3), np.float32)
    rows[1, 0], rows[2, 0] = np.nan, np.inf
    found = matmul(rows, np.ones((3, 2), np.float32))
    assert np.isnan(found[1]).all() and np.isinf(found[2]).all() and (found[[0, 3]] == 3).all()
    assert matmul(rows[:0], np.ones((3, 2), np.float32)).shape == (0, 2)
