"""Hashes of values, whatever they come in; bytes, numbers and times of Arrow's types."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.core.arrow import plain_values
from raysel.core.budgets import arrow_bytes
from raysel.data.vectors import to_column
from raysel.gime.columns import coded, hash_column, hash_rows, numbers, row_bytes, times


def hashes(values, kind=None):
    return hash_column(pa.array(values, kind), "c").tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(max_size=40) | st.none() | st.text(min_size=200, max_size=400), max_size=20),
    st.integers(0, 20),
)
def test_text_is_its_bytes(values, start):
    found = hashes(values, pa.string())
    for at, value in enumerate(values):  # alone, among others, and in a slice
        assert hashes([value], pa.string()) == [found[at]]
    assert hash_column(pa.array(values, pa.string()).slice(start), "c").tolist() == found[start:]
    assert hash_column(pa.array(values, pa.large_string()), "c").tolist() == found
    assert hash_column(pa.array(values, pa.string()).dictionary_encode(), "c").tolist() == found
    assert len(set(found)) == len(set(values))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, None, -5, 3] * 50, pa.int8()),
        pa.array([2**63 - 1, 2**63 - 3, None] * 50, pa.int64()),
        pa.array([-(2**63), -(2**63) + 7] * 50, pa.int64()),
        pa.array([2**63 - 1, 2**63 + 1, 2**64 - 1] * 50, pa.uint64()),
        pa.array([True, None, False] * 50),
        pa.array(["a", None, "", "longer than eight bytes"] * 50),
        pa.array([b"a", None, b""] * 50, pa.large_binary()),
        pa.array(["a", "b", None] * 50).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2] * 9, pa.int8()), pa.array(["a", None, "a"])),
    ],
    ids=lambda values: str(values.type),
)
@pytest.mark.parametrize("start", [0, 2])
def test_values_that_repeat_have_the_hashes_of_values_that_do_not(values, start):
    """Whether a block's values are few is not seen in their hashes, or states of two blocks could not be merged."""
    values = values.slice(start)
    few = coded(values, "c")
    alone = [hash_rows(pa.array([v.as_py()], plain_values(values).type), "c")[0] for v in values]
    assert hash_column(values, "c").tolist() == alone
    if values.type != pa.uint64():  # of which those beyond int64 are no codes
        assert few is not None and few.rows.tolist() == alone and len(few.hashes) < 20


def test_dictionaries_that_arrow_cannot_join_or_take_from():
    """Chunks with dictionaries of their own, with a null among the values, too many for their index, of views."""
    make = pa.DictionaryArray.from_arrays
    nulls = [make(pa.array([0, 1, 2]), pa.array(values)) for values in (["a", None, "b"], ["b", "c", None])]
    many = [
        make(pa.array(range(100), pa.int8()), pa.array([f"{k} {i}" for i in range(100)])) for k in range(2)
    ]
    for chunks in (nulls, many):
        expected = hashes([value for chunk in chunks for value in chunk.dictionary_decode().to_pylist()])
        assert hash_column(pa.chunked_array(chunks), "c").tolist() == expected
    views = make(pa.array([1, 0, None, 1]), pa.array(["a", "longer than a view holds"], pa.string_view()))
    assert hash_column(views, "c").tolist() == hashes(
        ["longer than a view holds", "a", None, "longer than a view holds"]
    )
    assert plain_values(views).to_pylist() == [
        "longer than a view holds",
        "a",
        None,
        "longer than a view holds",
    ]
    wide = make(pa.array([5, 3, None]), pa.array([f"value {i}" for i in range(9)]))  # more values than rows
    assert coded(wide, "c") is None and hash_column(wide, "c").tolist() == hashes(
        ["value 5", "value 3", None]
    )


def test_what_does_not_repeat_has_no_codes():
    assert coded(pa.array([f"text {i}" for i in range(3000)]), "c") is None
    assert coded(pa.array(np.arange(3000) * 10**6), "c") is None
    assert coded(pa.array([0.5, 0.5]), "c") is None
    assert coded(pa.array([None, None], pa.int64()), "c") is None
    assert coded(pa.array([], pa.string()), "c") is None


def test_near_texts_differ():
    words = [
        "",
        "\0",
        "\0\0",
        "a",
        "a\0",
        "a" * 8,
        "a" * 9,
        "a" * 16,
        "b" + "a" * 15,
        "a" * 8 + "b" * 8,
        "b" * 8 + "a" * 8,
    ]
    assert len(set(hashes(words))) == len(words)
    many = [f"customer {i:07d} of region {i % 7}" for i in range(50_000)]
    assert len(set(hashes(many))) == len(many)
    bits = np.unpackbits(np.array(hashes(many), np.uint64).view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert abs(bits - 0.5).max() < 0.015


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**53), 2**53) | st.integers(-128, 127), max_size=20))
def test_a_number_is_one_value_in_any_type(values):
    found = hashes(values, pa.int64())
    assert hashes([float(v) for v in values], pa.float64()) == found
    small = [v for v in values if -128 <= v < 128]
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.float32()):
        assert hashes(small, kind) == [h for h, v in zip(found, values, strict=True) if v in small]
    assert len(set(found)) == len(set(values))


def test_special_floats():
    one, two, three, four, five = hashes([0.0, -0.0, float("nan"), np.float64("nan") * -1, None])
    assert one == two == hashes([0])[0] and three == four and len({one, three, five}) == 3
    assert hashes([0.1], pa.float64()) != hashes([0.1], pa.float32())  # they are different numbers
    values = np.random.default_rng(0).normal(size=50_000)
    assert len(set(hashes(values))) == len(set(values))
    assert len(set(hashes([1e300, -1e300, 2.0**62, 2.0**63, float("inf"), -float("inf")]))) == 6


TYPES = [
    (pa.bool_(), [True, False, None]),
    (pa.uint64(), [0, 2**64 - 1, None]),
    (pa.float16(), [np.float16(0.5), np.float16(2), None]),
    (pa.decimal128(9, 2), [decimal.Decimal("1.50"), decimal.Decimal("-2.25"), None]),
    (pa.binary(), [b"", b"ab", None]),
    (pa.binary(3), [b"abc", b"abd", None]),
    (pa.timestamp("us", "Asia/Tokyo"), [0, 1, None]),
    (pa.date32(), [dt.date(2024, 1, 1), dt.date(1969, 1, 1), None]),
    (pa.date64(), [dt.date(2024, 1, 1), dt.date(1969, 1, 1), None]),
    (pa.time32("s"), [dt.time(1), dt.time(2), None]),
    (pa.time64("us"), [dt.time(1), dt.time(2), None]),
    (pa.duration("s"), [1, 2, None]),
    (pa.list_(pa.int64(), 2), [[1, 2], [2, 1], None]),
    (pa.list_(pa.string()), [["a", None], ["a"], None]),
    (pa.large_list(pa.float32()), [[0.5], [], None]),
    (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": "x"}, {"a": 1, "b": None}, None]),
    (pa.string_view(), ["a", "a longer text than twelve", None]),
]


@pytest.mark.parametrize("kind,values", TYPES, ids=lambda v: str(v) if isinstance(v, pa.DataType) else "")
def test_every_type_is_hashed_and_weighed(kind, values):
    array = pa.array(values, kind)
    found = hash_column(array, "c")
    assert len(set(found.tolist())) == 3
    assert hash_column(pa.chunked_array([array, array.slice(1)]), "c").tolist() == [*found, *found[1:]]
    assert hash_column(array.slice(2), "c").tolist() == found[2:].tolist()
    if not pa.types.is_string_view(kind):
        assert int(row_bytes(pa.chunked_array([array]), "c").sum()) == arrow_bytes(pa.table({"c": array}))


def test_moments_are_one_value_in_any_unit():
    moment = dt.datetime(2024, 5, 1, 12, tzinfo=dt.timezone.utc)
    found = {
        hashes([moment], pa.timestamp(unit, zone))[0]
        for unit in ("s", "ms", "us", "ns")
        for zone in ("UTC", "Asia/Tokyo")
    }
    assert len(found) == 1
    assert hashes([dt.date(2024, 5, 1)]) == hashes([dt.datetime(2024, 5, 1)])


def test_tensors_are_their_elements():
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor, plain_list = to_column(vectors), pa.array(vectors.tolist())
    assert hash_column(tensor, "c").tolist() == hash_column(plain_list, "c").tolist()
    assert (numbers(pa.chunked_array([tensor]), "c") == vectors).all()
    assert int(row_bytes(pa.chunked_array([tensor]), "c").sum()) == 48
    with_null = pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float64(), 2))
    assert np.isnan(numbers(pa.chunked_array([with_null]), "c")).tolist() == [
        [False, False],
        [True, True],
        [False, True],
    ]


def test_times_in_every_form():
    second = 1_714_564_800
    for values, zone in (
        (pa.array([second, None], pa.timestamp("s")), "time without zone"),
        (pa.array([second * 10**6, None], pa.timestamp("us", "Europe/Paris")), "time with zone"),
        (pa.array(["2024-05-01T12:00:00", None]), "time without zone"),
        (pa.array(["2024-05-01T14:00:00+02:00", None]), "time with zone"),
    ):
        found, there, kind = times(pa.chunked_array([values]), "c", 0)
        assert (found[0], there.tolist(), kind) == (second * 10**9, [True, False], zone)
    days, _, kind = times(pa.chunked_array([pa.array([dt.date(2024, 5, 1)])]), "c", 0)
    assert (days[0], kind) == (second * 10**9 - 12 * 3600 * 10**9, "time without zone")


def test_no_chunks():
    for kind in (pa.string(), pa.int64(), pa.list_(pa.int64()), pa.null(), pa.timestamp("s")):
        none = pa.chunked_array([], kind)
        assert len(plain_values(none)) == len(hash_column(none, "c")) == len(row_bytes(none, "c")) == 0


def test_integers_beyond_float64_are_rounded_numbers():
    for kind, value in ((pa.int64(), 2**53 + 1), (pa.int64(), -(2**63)), (pa.uint64(), 2**64 - 1)):
        found = numbers(pa.chunked_array([pa.array([value, None], kind)]), "c")
        assert found[0] == float(value) and np.isnan(found[1])
    vectors = pa.array([[2**53 + 1, 0]], pa.list_(pa.int64()))
    assert numbers(pa.chunked_array([vectors]), "c").tolist() == [[2.0**53, 0.0]]


def test_uint64_beyond_int64_is_no_negative_number():
    for value in (2**63, 2**64 - 1):
        assert hashes([value], pa.uint64()) != hashes([value - 2**64], pa.int64())
    assert hashes([2**63 - 1, 0], pa.uint64()) == hashes([2**63 - 1, 0], pa.int64())
    assert len(set(hashes([2**63, 2**64 - 1, 2**63 + 1, 0], pa.uint64()))) == 4


@pytest.mark.parametrize("view", [pa.string_view(), pa.binary_view()], ids=str)
def test_views_are_measured_as_what_they_view(view, monkeypatch):
    from raysel.gime import Binding, measure

    words = ["a", "a longer text than twelve", None, "a"]
    values = words if view == pa.string_view() else [w and w.encode() for w in words]
    large = pa.large_string() if view == pa.string_view() else pa.large_binary()
    binding = Binding(entity="x", classes="x", relation="x", content="x", carrier="x", reference={"x": "y"})
    one, other = (
        pa.table({"x": pa.array(values, of), "y": pa.array(values, of), "g": [1, 1, 2, 2]})
        for of in (view, large)
    )
    for by in (None, "g", "x"):
        assert measure(one, binding, by).equals(measure(other, binding, by))
    assert plain_values(pa.array(values, view)).type == large


def test_text_that_no_one_array_of_32_bit_offsets_holds(monkeypatch):
    """Two gigabytes would take long: here Arrow says of shorter text what it says of that."""
    parts = pa.chunked_array([pa.array(["a", None]), pa.array(["word"])])

    class Long:
        def combine_chunks(self):
            return parts

    monkeypatch.setattr(pa, "ChunkedArray", (pa.ChunkedArray, Long))
    found = plain_values(Long())
    assert found.type == pa.large_string() and found.to_pylist() == ["a", None, "word"]
    assert hash_column(Long(), "c").tolist() == hashes(["a", None, "word"])
