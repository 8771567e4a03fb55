from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.core.sums import as_float, exact_sum, exact_sums, partial_sums

finite = st.floats(allow_nan=False, allow_infinity=False)


def rounded(values) -> float:
    """The exact sum in fractions, rounded once."""
    try:
        return float(sum(map(Fraction, values), Fraction(0)))
    except OverflowError:
        return math.inf if sum(map(Fraction, values), Fraction(0)) > 0 else -math.inf


@given(st.lists(finite, max_size=40))
@settings(deadline=None)
def test_the_sum_is_rounded_once(values):
    assert exact_sum(np.array(values, np.float64)) == rounded(values)


@given(st.lists(st.one_of(finite, st.sampled_from([1e308, -1e308, 5e-324, 2.0**900])), max_size=40))
@settings(deadline=None)
def test_what_cancels_leaves_the_rest(values):
    rest = [1.0, 2.0**-60]
    assert exact_sum(np.array([*values, *rest, *(-value for value in values)])) == sum(rest)


@pytest.mark.parametrize("scale", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_values_in_any_order_and_any_blocks(scale, dtype):
    rng = np.random.default_rng(int(scale))
    values = (rng.normal(size=70_000) * np.exp(np.clip(rng.normal(size=70_000) * scale, -90, 80))).astype(
        dtype
    )
    assert exact_sum(values) == exact_sum(rng.permutation(values)) == math.fsum(values)
    group = rng.integers(0, 3, len(values))
    whole = exact_sums(group, values.astype(np.float64), 3)
    parts = [exact_sums(group[i::7], values[i::7].astype(np.float64), 3) for i in range(7)]
    assert whole == [sum(part[g] for part in parts) for g in range(3)]
    assert [as_float(total) for total in whole] == [exact_sum(values[group == g]) for g in range(3)]


@pytest.mark.parametrize("top", [0.1, 1.0, -1.0, 1.0 - 2.0**-53, -(2.0 - 2.0**-52), 5e-324])
@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 65_536])
def test_as_many_equal_values_as_are_cut_at_one_place(top, count):
    """Where the parts that are added are as large as they can be, and their sum nearest to what a float holds."""
    values = np.full(count, top)
    assert exact_sum(values) == math.fsum(values)
    assert Fraction(exact_sums(None, values, 1)[0], 1 << 1130) == Fraction(top) * count


def test_partial_sums_are_exact_and_leave_the_values_alone():
    rng = np.random.default_rng(0)
    values = 10.0 ** rng.uniform(-200, 200, 5000) * rng.choice([-1, 1], 5000)
    before, group = values.copy(), rng.integers(0, 4, 5000)
    parts = list(partial_sums(group, values, 4))
    assert (values == before).all()
    for g in range(4):
        exact = sum(map(Fraction, values[group == g].tolist()), Fraction(0))
        assert sum((Fraction(part[g]) for part in parts), Fraction(0)) == exact
    assert list(partial_sums(None, np.zeros(9), 1)) == [] == list(partial_sums(group[:0], values[:0], 4))


def test_values_that_are_not_finite_and_sums_beyond_float64():
    assert exact_sum(np.array([])) == 0.0
    assert exact_sum(np.array([1.0, np.inf])) == math.inf
    assert math.isnan(exact_sum(np.array([np.nan, 1.0]))) and math.isnan(exact_sum(np.array([1.0, np.nan])))
    assert exact_sum(np.array([1e308, 1e308])) == math.inf and exact_sum(np.array([-1e308] * 2)) == -math.inf
    assert exact_sum(np.array([1e308, 1e308, -1e308])) == 1e308
    assert exact_sum(np.arange(5)) == 10.0
    assert as_float(exact_sums(None, np.array([1.0, 2.0]), 1)[0], 3) == 1.0
