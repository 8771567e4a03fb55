"""Rows per class against a division by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raysel
from raysel.core.parameters import build
from raysel.errors import ConfigError
from raysel.quotas import Quotas, check_per_class, divide, quotas_of


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(0, 100),
)
def test_the_division(classes, count):
    sizes, shares = (np.array(column) for column in zip(*classes, strict=True))
    shares = shares.astype(np.float64)
    if sizes[shares > 0].sum() < count:
        with pytest.raises(ConfigError, match="only"):
            divide(sizes, shares, count)
        return
    rows = divide(sizes, shares, count)
    assert rows.sum() == count and (rows <= sizes).all() and not rows[shares == 0].any()
    open_ = rows < sizes
    for i in np.flatnonzero(open_):
        for j in np.flatnonzero(shares):  # nobody has a row more than a class that could have given it
            assert rows[j] <= (rows[i] + 1) * shares[j] / max(shares[i], 1e-9) + 1 or shares[i] == 0


def test_divisions_by_hand():
    assert divide(np.array([10, 10, 10]), np.ones(3), 10).tolist() == [4, 3, 3]
    assert divide(np.array([2, 10, 10]), np.ones(3), 12).tolist() == [2, 5, 5]
    assert divide(np.array([100, 10]), np.array([100.0, 10.0]), 11).tolist() == [10, 1]
    assert divide(np.array([5, 9, 9]), np.array([0.5, 0.0, 0.5]), 8).tolist() == [4, 0, 4]


def test_every_class_gives_its_rows():
    quotas = Quotas(np.array([0, 1, 0, 1, 0]), np.array([1, 2]), ["a", "b"])
    assert quotas.take(lambda free, count: free[:count], np.array([1, 2, 3, 4])).tolist() == [1, 2, 3]


@pytest.mark.parametrize("shares", [{"a": -1.0}, {"a": 0.0}, {"a": float("nan")}, {}])
def test_shares_that_cannot_be_used(shares):
    with pytest.raises(ConfigError, match="per_class"):
        check_per_class(shares)


def test_classes_may_be_given_as_numbers_and_as_text():
    for shares in ({0: 1.0, 1: 3.0}, {"0": 1.0, "1": 3}):
        for selector in (raysel.Nearest, raysel.KCenter, raysel.Random):
            assert selector(5, per_class=shares, label="y").per_class == shares
        assert raysel.ByScore(5, "s", per_class=shares, label="y").per_class == shares
    made = build(raysel.Nearest, {"budget": 5, "per_class": {0: 1.0, "ham": 2}})
    assert {str(name): share for name, share in made.per_class.items()} == {"0": 1.0, "ham": 2.0}
    for wrong in ({1.5: 1}, {None: 1}, {("a",): 1}):
        with pytest.raises(ConfigError, match=r"^per_class: "):
            raysel.Nearest(5, per_class=wrong, label="y")


def test_the_column_of_the_classes_is_needed():
    with pytest.raises(ConfigError, match="label"):
        quotas_of("uniform", None, None, None, np.arange(3), 2, np.zeros(3, bool))
