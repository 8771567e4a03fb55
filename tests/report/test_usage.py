from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.errors import DataError
from raysel.report.usage import gini, total_variation

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=40).map(np.array)


@settings(deadline=None)
@given(COUNTS)
def test_they_are_what_their_definitions_say(counts):
    total = counts.sum()
    if total == 0:
        assert gini(counts) == total_variation(counts) == 0
        return
    pairs = np.abs(counts[:, None] - counts[None, :]).sum()  # the mean difference, halved, over the mean
    assert gini(counts) == pytest.approx(pairs / (2 * len(counts) * total), abs=1e-12)
    shares = counts / total
    assert total_variation(counts) == pytest.approx(np.maximum(shares - 1 / len(counts), 0).sum(), abs=1e-12)


def test_equal_use_is_0_and_one_sample_for_all_is_near_1():
    assert gini(np.full(7, 3)) == total_variation(np.full(7, 3)) == 0
    one = np.array([0] * 99 + [5])
    assert gini(one) == pytest.approx(0.99) == total_variation(one)


def test_gradients_lie_within_the_bound():
    rng = np.random.default_rng(0)
    counts, gradients = rng.integers(0, 9, 60), rng.normal(size=(60, 5))
    bias = np.linalg.norm(counts @ gradients / counts.sum() - gradients.mean(axis=0))
    assert bias <= 2 * np.linalg.norm(gradients, axis=1).max() * total_variation(counts)


@pytest.mark.parametrize(
    "wrong", [np.array([-1, 2]), np.array([0.5]), np.array([], int), np.ones((2, 2), int)]
)
def test_what_is_no_count_is_refused(wrong):
    with pytest.raises(DataError, match="one whole number from 0 up a sample"):
        gini(wrong)
