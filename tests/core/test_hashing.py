from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysel.core.hashing import GOLDEN, hash_ids, hash_integers, mix

MASK = 2**64 - 1
words = st.integers(0, MASK)


def finalizer(x: int) -> int:
    """Steele, Lea & Flood, OOPSLA 2014, figure 14, in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def test_it_is_splitmix64():
    """The first outputs of the generator with the seed 1234567, as its authors' C code prints them."""
    states = np.uint64(1234567) + GOLDEN * np.arange(1, 6, dtype=np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(states).tolist() == expected


@given(st.lists(words, min_size=1))
def test_every_value_is_that_of_python_integers(values):
    array = np.array(values, np.uint64)
    assert mix(array).tolist() == [finalizer(value) for value in values]
    assert array.tolist() == values  # the input is left as it was
    hashed = hash_integers(array).tolist()
    assert hashed == [finalizer((value + int(GOLDEN)) & MASK) for value in values]
    assert hash_integers(array.view(np.int64)).tolist() == hashed


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(-(2**40), 2**40))
def test_draws_are_those_of_python_integers_wherever_they_are_made(ids, seed):
    stream = int(GOLDEN) * (2 * (seed % 2**32) + 1)
    expected = [(finalizer((value + stream) & MASK) >> 11) / 2**53 for value in ids]
    array = np.array(ids, np.int64)
    assert hash_ids(array, seed).tolist() == expected
    assert hash_ids(array[::-1], seed).tolist() == expected[::-1]
    assert hash_ids(array[:1], seed).tolist() == expected[:1]


def test_draws_are_pinned():
    """Rows are sampled by them: another value would select other rows of every data set."""
    ids = np.array([0, 1, 2**40])
    assert hash_ids(ids, 0).tolist() == [0.8833108082136426, 0.5665615751722809, 0.12447268724196459]
    assert hash_ids(ids, 7).tolist() == [0.7082223347395465, 0.43596539982472504, 0.06788502378281924]


def test_draws_are_uniform_and_seeds_independent():
    one, two = (hash_ids(np.arange(100_000), seed) for seed in (0, 1))
    for draws in (one, two):
        assert draws.min() >= 0 and draws.max() < 1
        assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 10_000).max() < 500
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
