from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysel.core.arrays import positions

small = st.integers(-20, 20)


@given(st.sets(small), st.lists(small))
def test_positions_are_those_of_a_search_one_by_one(there, wanted):
    ascending = np.array(sorted(there), np.int64)
    places, found = positions(ascending, np.array(wanted, np.int64))
    assert found.tolist() == [value in there for value in wanted]
    listed = ascending.tolist()
    assert places[found].tolist() == [listed.index(value) for value in wanted if value in there]
    assert places.dtype == np.int64 and ((places >= 0) & (places < max(len(there), 1))).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float32])
def test_nothing_is_found_in_an_empty_array_and_nothing_is_wanted(dtype):
    empty, some = np.empty(0, dtype), np.array([3, 1], dtype)
    assert [part.tolist() for part in positions(empty, some)] == [[0, 0], [False, False]]
    for ascending in (empty, some[::-1]):
        assert [len(part) for part in positions(ascending, empty)] == [0, 0]


def test_hashes_beyond_int64_are_found():
    hashes = np.array([1, 2**63, 2**64 - 1], np.uint64)
    places, found = positions(hashes, np.array([2**64 - 1, 2**64 - 2, 2**63], np.uint64))
    assert found.tolist() == [True, False, True] and places[found].tolist() == [2, 1]


def test_the_first_of_equal_values_is_found():
    assert positions(np.array([1, 4, 4, 4, 9]), np.array([4]))[0].tolist() == [1]
