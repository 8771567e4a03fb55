"""Exact sums: any cut, any order, the same bits; and the components scikit-learn finds."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from raysel.data.principal_components import Grid, Moments, Range, components


def fit(values, parts, count=3):
    span = functools.reduce(operator.add, map(Range.of, parts))
    grid = Grid.over(span)
    moments = functools.reduce(operator.add, (Moments.of(part, grid) for part in parts))
    assert moments.rows == len(values)
    return components(moments, grid, count)


def data(dtype, rows=999, width=12):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, 4)) @ rng.standard_normal((4, width)) + rng.standard_normal(width) * 5
    return (values * 8 + 100).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_the_components_are_those_of_scikit_learn(dtype):
    values = data(dtype)
    mean, found, explained = fit(values, [values])
    known = PCA(3).fit(values.astype(np.float64))
    np.testing.assert_allclose(mean, known.mean_, rtol=1e-5)
    assert explained == pytest.approx(known.explained_variance_ratio_.sum(), rel=1e-5)
    np.testing.assert_allclose(np.abs((found * known.components_).sum(axis=1)), 1, atol=1e-5)
    assert (found[np.arange(3), np.abs(found).argmax(axis=1)] > 0).all()


@given(st.sampled_from([np.float32, np.uint8]), st.lists(st.integers(1, 998), max_size=9), st.randoms())
def test_any_cut_in_any_order_gives_the_same_bits(dtype, cuts, random):
    values = data(dtype)
    parts = [part for part in np.split(values, sorted(cuts)) if len(part)]
    random.shuffle(parts)
    for one, two in zip(fit(values, parts), fit(values, [values]), strict=True):
        assert np.array_equal(one, two)


def test_a_constant_column_and_one_row():
    values = np.full((5, 3), 7, np.float32)
    values[:, 1] = np.arange(5)
    mean, found, explained = fit(values, [values], count=1)
    assert mean.tolist() == [7, 2, 7]
    assert found.tolist() == [[0, 1, 0]]
    assert explained == pytest.approx(1)
    assert fit(values[:1], [values[:1]], count=1)[2] == 1.0


def test_sums_stay_below_what_is_exact():
    for rows in (1, 10**6, 10**10):
        grid = Grid.over(Range(rows, np.zeros(1), np.ones(1), False))
        assert rows * 4**grid.bits < 2**63
        assert grid.bits >= 14
