"""Random values in memory: a column holds exactly what it was given, or an error says why not; without Ray."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raysel.data.memory import as_table
from raysel.data.vectors import to_numpy
from raysel.errors import DataError

ZONES = st.sampled_from([None, datetime.timezone.utc])
SCALARS = (
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(st.characters(), max_size=4),
    st.binary(max_size=4),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    st.dates(),
    st.datetimes(timezones=ZONES),
    st.timedeltas(max_value=datetime.timedelta(10**5), min_value=datetime.timedelta(-(10**5))),
    st.times(),
    st.sampled_from(
        [np.int8(3), np.uint64(2**64 - 1), np.float32(0.1), np.bool_(True), np.str_("x"), np.bytes_(b"y")]
    ),
    st.sampled_from([pd.NA, pd.NaT, pd.Timestamp(1, unit="ns"), pd.Timedelta(1, "ns"), object(), 1j]),
)


def columns(depth: int = 2):
    """Lists of one kind of value, or of two, with and without missing ones, plain and nested."""
    some = st.lists(st.sampled_from(SCALARS), min_size=1, max_size=2).map(lambda kinds: st.one_of(*kinds))
    plain = some.flatmap(lambda values: st.lists(st.one_of(values, st.none()), min_size=1, max_size=6))
    if not depth:
        return plain
    inner = columns(depth - 1)
    nested = st.lists(st.one_of(inner, st.none()), min_size=1, max_size=4)
    structs = st.lists(
        st.dictionaries(st.sampled_from("xy"), some.flatmap(lambda v: v)), min_size=1, max_size=4
    )
    return st.one_of(plain, nested, structs)


def same(got, given) -> bool:
    """Whether a value is the one that was given: a number may have another type, a missing one another mark."""
    if isinstance(given, (list, tuple, np.ndarray)):
        return isinstance(got, list) and len(got) == len(given) and all(map(same, got, given))
    if isinstance(given, dict):
        # Arrow gives all structs of a column the same fields.
        return isinstance(got, dict) and all(same(value, given.get(key)) for key, value in got.items())
    if given is None or given is pd.NA or given is pd.NaT:
        return got is None
    if isinstance(given, (float, np.floating)) and math.isnan(given):
        return got is None or math.isnan(got)
    for kinds in ((str,), (bytes,), (bool, np.bool_), (datetime.datetime,), (datetime.timedelta,)):
        if isinstance(given, kinds) or isinstance(got, kinds):
            return isinstance(given, kinds) and isinstance(got, kinds) and got == given
    return bool(got == given)


def check(values) -> None:
    try:
        column = as_table({"a": values})["a"]
    except DataError as error:
        assert str(error).startswith("Column 'a' ") and str(error).endswith(".") and "\n" not in str(error)
        return
    tensors = isinstance(column.type, pa.FixedShapeTensorType)  # whose own lists are flat
    got = to_numpy(column, "a").tolist() if tensors else column.to_pylist()
    assert len(got) == len(values) and all(map(same, got, values)), (values, got)


@given(columns())
def test_lists(values):
    check(values)
    check(pd.Series(values, dtype=object))


@given(
    st.one_of(
        hnp.arrays(
            st.one_of(
                hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3), hnp.byte_string_dtypes(max_len=3)
            ),
            st.integers(1, 4),
        ),
        hnp.arrays(hnp.integer_dtypes(endianness="?"), hnp.array_shapes(min_dims=2, max_dims=4, max_side=3)),
    )
)
def test_arrays(values):
    try:
        got = as_table(values)["data"]
    except DataError as error:
        assert str(error).startswith("Column 'data' ") and "\n" not in str(error)
        return
    if values.ndim > 1:
        assert np.array_equal(np.array(got.to_pylist()).reshape(values.shape), values)
    elif values.dtype.kind in "mM":
        again = got.to_numpy().astype(values.dtype)
        assert np.array_equal(np.isnat(again), np.isnat(values))
        assert np.array_equal(again[~np.isnat(again)], values[~np.isnat(values)])
    else:
        assert all(map(same, got.to_pylist(), values.tolist()))


@pytest.mark.slow
@settings(max_examples=4_000, deadline=None)
@given(columns(3))
def test_many_lists(values):
    check(values)
