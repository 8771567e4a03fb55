"""Columns of every Arrow type: their bytes and their plain form."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raysel.core.arrow import plain_values
from raysel.core.budgets import arrow_bytes

TEXT, NUMBERS = pa.array(["a", None, "", "long enough for no view to hold"]), pa.array([1, None, 3, 4])
LISTS = pa.array([[1, 2], None, [], [3]])
COLUMNS = {  # columns by what holds the same values, in as many bytes
    "text": [TEXT, TEXT.cast(pa.string_view()), TEXT.dictionary_encode(), TEXT.cast(pa.large_string())],
    "bytes": [TEXT.cast(pa.binary()), TEXT.cast(pa.binary_view())],
    "runs": [NUMBERS, pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4]), NUMBERS)],
    "runs of text": [TEXT, pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3, 4]), TEXT.cast(pa.string_view()))],
    "lists": [LISTS, pa.array(LISTS.to_pylist(), pa.list_view(pa.int64()))],
    "large lists": [pa.array(LISTS.to_pylist(), kind(pa.int64())) for kind in (pa.large_list, pa.large_list_view)],
    "lists of text": [pa.array([["a"], None, ["b", None], []]), pa.array([["a"], None, ["b", None], []], pa.list_(pa.string_view()))],
    "structs": [pa.array([{"a": "x"}, None, {}, {"a": "y"}]), pa.array([{"a": "x"}, None, {}, {"a": "y"}], pa.struct([("a", pa.string_view())]))],
    "maps": [pa.array([[("a", 1)], None, [], [("b", None), ("c", 3)]], kind) for kind in (
        pa.map_(pa.string(), pa.int64()), pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())])))],
    "unions": [
        pa.UnionArray.from_sparse(pa.array([0, 1, 1, 0], pa.int8()), [NUMBERS, TEXT]),
        pa.UnionArray.from_dense(pa.array([0, 1, 1, 0], pa.int8()), pa.array([0, 0, 1, 1], pa.int32()), [NUMBERS.take([0, 3]), TEXT.take([1, 2])])],
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_the_bytes_of_a_column_depend_on_neither_its_encoding_nor_its_chunks(name):
    found = [arrow_bytes(pa.table({"c": column})) for column in COLUMNS[name]]
    assert found[0] > 0 and found == found[:1] * len(found)
    for column in COLUMNS[name]:
        parts = [arrow_bytes(pa.table({"c": column}).slice(at, 1)) for at in range(len(column))]
        assert sum(parts) == found[0]


def test_the_bytes_of_some_columns():
    tables = [
        pa.table({"a": NUMBERS}), pa.table({"a": TEXT}), pa.table({"a": LISTS}), pa.table({"a": pa.nulls(3)}),
        pa.table({"a": pa.array([[1, 2], None], pa.list_(pa.int8(), 2))}), pa.table({"a": [True, False]}), pa.table({}),
        pa.table({"a": pa.array([None], pa.month_day_nano_interval()), "b": pa.array([1], pa.decimal256(40))}),
    ]  # fmt: skip
    assert [arrow_bytes(table) for table in tables] == [32, 32 + 16, 24 + 16, 0, 2, 2, 0, 16 + 32]


@pytest.mark.parametrize("name", ["text", "bytes", "runs", "runs of text"])
def test_values_of_every_encoding_have_one_plain_form(name):
    for column in COLUMNS[name]:
        chunks = pa.chunked_array([column.slice(1, 2), column.slice(3)])
        assert plain_values(chunks).to_pylist() == COLUMNS[name][0].to_pylist()[1:]
