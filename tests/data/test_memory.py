"""Rows in memory: the values that they hold, or one sentence; without Ray."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import io
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from raysel.data.decode import decode
from raysel.data.memory import as_table
from raysel.data.row_index import ID
from raysel.data.vectors import to_numpy
from raysel.errors import DataError

UTC = datetime.timezone.utc
DAY = datetime.date(2020, 1, 1)
NOON = datetime.datetime(2020, 1, 1, 12)
NANO = pd.Timestamp("2020-01-01 00:00:00.000000001")
NAN = float("nan")
Pair = collections.namedtuple("Pair", "x y")


def values(source):
    return as_table({"a": source})["a"].to_pylist()


def stored(values, **options):
    return pd.array(values, **options)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ([b"ab\0\0", b"abcd"], None),
        (["a\0", "b", "a\0b"], None),
        (np.array([b"ab", b"abcd", b"a\0b"]), [b"ab", b"abcd", b"a\0b"]),
        (np.array(["ab", "abcd", "a\0b"]), ["ab", "abcd", "a\0b"]),
        (np.array(["a", "b"], np.dtypes.StringDType()), ["a", "b"]),
        (np.array([b"ab\0\0"], "V4"), [b"ab\0\0"]),
        ([2**63 + 1, 5], None),
        (np.array([2**64 - 1, 5], np.uint64), [2**64 - 1, 5]),
        ([2**60 + 1, None], None),
        (pa.array([2**60 + 1, None]), [2**60 + 1, None]),
        (stored([2**60 + 1, None], dtype="Int64"), [2**60 + 1, None]),
        (stored([2**64 - 1, None], dtype="UInt64"), [2**64 - 1, None]),
        (stored([True, None], dtype="boolean"), [True, None]),
        (stored(["x", None], dtype="string"), ["x", None]),
        (pd.Series(["x", None]), ["x", None]),
        (pd.Series([2**60 + 1, None], dtype=object), [2**60 + 1, None]),
        (pd.Categorical(["x", None, "y"]), ["x", None, "y"]),
        (pd.Series(pd.Categorical([2**60 + 1, None])), [2**60 + 1, None]),
        (pd.arrays.SparseArray([0, 0, 7]), [0, 0, 7]),
        (
            pd.Series([1.5, NAN]),
            [1.5, None],
        ),  # pandas' mark of a missing value, as in a Parquet file of pandas
        (["x", pd.NA, None], ["x", None, None]),
        (["x", NAN], ["x", None]),
        ([pd.NaT, pd.Timestamp("2020-01-01")], [None, pd.Timestamp(2020, 1, 1)]),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), [1.0, None]),
        (np.ma.masked_array([2**60 + 1, 2], [0, 1]), [2**60 + 1, None]),
        (np.ma.masked_array(["x", "y"], [1, 0]), [None, "y"]),
        (np.array([1, 2], ">i4"), [1, 2]),
        (np.array(["x", "y"], ">U1"), ["x", "y"]),
        (np.array([NOON], ">M8[us]"), [NOON]),
        (np.arange(10)[::-3], [9, 6, 3, 0]),
        (np.array(["2020"], "M8[Y]"), [DAY]),
        (np.array(["2020-01", "NaT"], "M8[M]"), [DAY, None]),
        (np.array(["2020-01-01T12"], "M8[h]"), [NOON]),
        (np.array([5], "m8[h]"), [datetime.timedelta(hours=5)]),
        ([np.datetime64("2020-01-01", "us")], [datetime.datetime(2020, 1, 1)]),
        ([NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=UTC)], None),
        ([decimal.Decimal("1.10"), decimal.Decimal("2"), None], None),
        ([DAY, None], None),
        ([datetime.time(1, 2)], None),
        ([True, False, None], None),
        ([np.bool_(True), False], [True, False]),
        ([np.float32(0.5), 1], [0.5, 1.0]),
        ([enum.IntEnum("E", "a b").b], [2]),
        ([[1, 2], [3]], None),
        ([["a"], None, []], None),
        ([{"x": 1}, {"y": "z"}], [{"x": 1, "y": None}, {"x": None, "y": "z"}]),
        ([np.array([1, 2]), np.array([3])], [[1, 2], [3]]),
        ([torch.tensor([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
        (torch.tensor([2**60 + 1]), [2**60 + 1]),
        ([torch.tensor(2**60 + 1), torch.tensor(3)], [2**60 + 1, 3]),
        (torch.tensor([1.5, -2.0], dtype=torch.bfloat16, requires_grad=True), [1.5, -2.0]),
        (range(3), [0, 1, 2]),
        ((1, 2), [1, 2]),
        (pa.chunked_array([["x"], ["y"]]), ["x", "y"]),
        (pd.Index([3, 4]), [3, 4]),
        (np.array([[True, False]]), [[True, False]]),
        (np.array([["x", "y"]]), [["x", "y"]]),
        (np.array([["2020", "2021"]], "M8[D]"), [[DAY, datetime.date(2021, 1, 1)]]),
        (np.array([1.5, None, NAN], object), [1.5, None, NAN]),
        ([2**60 + 1, 2.0**60], "refused"),
    ],
)
def test_a_column_holds_the_values_that_it_was_given(source, wanted):
    if wanted == "refused":
        with pytest.raises(DataError):
            values(source)
        return
    wanted = list(source) if wanted is None else wanted
    got = values(source)
    assert list(map(type, got)) == list(map(type, wanted))
    assert got == wanted or repr(got) == repr(wanted)  # NaN is equal to nothing


def test_nan_is_a_number_beside_numbers_and_nanoseconds_stay():
    assert np.isnan(values([1.5, NAN, None])[1]) and values([1.5, NAN, None])[2] is None
    assert np.isnan(values(np.array([1.5, NAN]))[1])
    assert values([NANO, NOON]) == [NANO, pd.Timestamp(NOON)]
    assert values(pd.Series([NANO, None], dtype=object)) == [NANO, None]
    assert values([pd.Timedelta(1, "ns")]) == [pd.Timedelta(1, "ns")]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([1, "x"], "holds values of several types: int in row 0, str in row 1"),
        (pd.Series([1, "x", None], dtype=object), "holds values of several types"),
        (["x", b"y"], r"several types: text \('x'\) and bytes"),
        ([["x"], [b"y"]], r"several types: text \('x'\) and bytes"),
        ([{"y": False}, {"y": NAN}], "several types: a truth value .* and a number"),
        ([[False], [NAN]], "several types: a truth value .* and a number"),
        ([{"k": "x"}, {"k": b"y"}], r"several types: text \('x'\) and bytes"),
        ([1.5, True], "several types: a number .* and a truth value"),
        ([DAY, NOON], "several types: a date .* and a time "),
        ([NOON, NOON.replace(tzinfo=UTC)], "several types: a time .* and a time with a zone"),
        ([2**70], "integers beyond 64 bits"),
        ([2**60 + 1, 0.5], r"integers beyond 2\*\*53 and numbers with a fraction, in rows 0 and 1"),
        ([2**63 + 1, -1], "integers beyond 64 bits"),
        ([True, 2], "several types: bool in row 0, int in row 1"),
        ([object()], "holds a value of type object in row 0, which Arrow cannot store"),
        (["x", object()], "holds a value of type object in row 1"),
        ([1 + 2j], "holds a value of type complex in row 0"),
        (["ok", "lone \ud83d"], "holds a value of type str in row 1"),
        (np.array([1 + 2j]), "holds complex128 numbers"),
        (np.array([1], np.longdouble), "holds float128 numbers|cannot be read"),
        (np.zeros((3, 0)), "has rows without elements"),
        (np.array(5), "holds a single value"),
        (5, "is of type int; give an array or a list"),
        ("text", "is of type str; give an array or a list"),
        ({1, 2}, "is of type set; give"),
        ({0: 1}, "is of type dict; give"),
        (pd.DataFrame({"x": [1]}), "is of type DataFrame; give"),
        (np.array([(1, 2.0)], [("x", "i4"), ("y", "f4")]), "holds records"),
        (
            np.ma.masked_array(np.ones((2, 2)), [[0, 0], [0, 1]]),
            "masked elements inside its rows .first in row 1",
        ),
        (np.array([2**40], "M8[D]"), "which Arrow cannot store exactly"),
        (np.array([1], "m8[Y]"), "which Arrow cannot store exactly"),
        (np.array([1], "M8[as]"), "which Arrow cannot store exactly"),
        ([[NANO]], "pandas timestamps inside lists or dicts"),
        ([{"x": NANO}], "pandas timestamps inside lists or dicts"),
        (pd.period_range("2020", periods=2, freq="M"), "holds pandas periods"),
        (pd.interval_range(0, 2), "holds pandas intervals"),
        (pd.Categorical([1, "x"]), "cannot be read"),
        ([np.zeros((2, 2)), np.zeros((3, 3))], r"holds a value of type ndarray of shape \(2, 2\) in row 0"),
        ([torch.zeros(2, 2), torch.zeros(3, 3)], r"holds a value of type ndarray of shape \(2, 2\) in row 0"),
        (torch.zeros(2, dtype=torch.complex64), "holds complex64 numbers"),
        (torch.zeros(2, device="meta"), "cannot be read"),
        (torch.eye(2).to_sparse(), "cannot be read"),
    ],
)
def test_what_a_column_cannot_hold_is_one_sentence(source, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        values(source)
    assert str(caught.value).startswith("Column 'a' ") and str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3, 4]],
        [[[0.5, 1.0]], [[1.5, 2.0]]],
        np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)],
        torch.arange(6).reshape(3, 2),
        [torch.ones(2, 3), torch.zeros(2, 3)],
        np.ma.masked_array(np.ones((2, 2)), False),
    ],
)
def test_rows_of_one_shape_are_tensors(rows):
    column = as_table({"a": rows})["a"]
    assert isinstance(column.type, pa.FixedShapeTensorType)
    got, known = to_numpy(column, "a"), np.array([np.asarray(row) for row in rows])
    assert got.dtype == known.dtype.newbyteorder("=") and np.array_equal(got, known)


# ---- tables ----------------------------------------------------------------------------------------------------------


class Stream:
    """What polars, duckdb and others offer."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Batch:
    def __init__(self, batch):
        self.batch = batch

    def __arrow_c_array__(self, requested_schema=None):
        return self.batch.__arrow_c_array__(requested_schema)


def views():
    kind = pa.list_view(pa.string_view())
    return pa.table(
        {
            "text": pa.array(["a", None, "c", "d"], pa.string_view()),
            "bytes": pa.array([b"a", b"", None, b"d"], pa.binary_view()),
            "lists": pa.array([["a"], None, ["b", None], []], kind),
            "nested": pa.array([[["a"]], None, [None], []], pa.list_(kind)),
            "pairs": pa.array([[["a"], ["b"]], None, [None, []], [["c"], None]], pa.list_(kind, 2)),
            "struct": pa.array(
                [{"x": "a"}, None, {"x": None}, {"x": "d"}], pa.struct([("x", pa.string_view())])
            ),
            "map": pa.array([[("k", "v")], None, [], []], pa.map_(pa.string_view(), pa.string_view())),
            "runs": pa.RunEndEncodedArray.from_arrays(
                pa.array([2, 4], pa.int32()), pa.array(["a", None], pa.string_view())
            ),
            "classes": pa.DictionaryArray.from_arrays(
                pa.array([0, 1, None, 0], pa.int8()), pa.array(["a", "b"], pa.string_view())
            ),
            "flags": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None, 1], pa.int8())),
            "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", None, "{}", "[]"])),
        }
    )


def test_views_encodings_and_extensions_become_plain_types_with_the_same_values():
    table = views()
    for source in (table, table.slice(1), pa.concat_tables([table, table.slice(2)])):
        got = as_table(source)
        got.validate(full=True)
        assert got.to_pylist() == source.to_pylist()
    kinds = [str(kind) for kind in as_table(table).schema.types]
    assert not any(word in kind for kind in kinds for word in ("view", "run_end", "extension"))
    ids = pa.table({"a": pa.array([uuid.UUID(int=1), None], pa.uuid())})
    assert as_table(ids)["a"].to_pylist() == [uuid.UUID(int=1).bytes, None]


def test_whatever_speaks_arrow_is_a_table():
    table = pa.table({"x": [1, 2**60 + 1], "text": pa.array(["a", None], pa.string_view())})
    batch = table.to_batches()[0]
    for source in (
        table,
        batch,
        table.to_reader(),
        Stream(table),
        Batch(batch),
        {"x": Stream(table["x"]), "text": Batch(batch["text"])},
    ):
        assert as_table(source).to_pylist() == table.to_pylist()
    assert as_table(Stream(table["text"]))["data"].to_pylist() == ["a", None]
    named = pa.table({"x": [1]}, metadata={"pandas": "{}"}).cast(
        pa.schema([pa.field("x", pa.int64(), False)])
    )
    assert as_table(named).schema == pa.schema([("x", pa.int64())]) and not as_table(named).schema.metadata


def raises():
    yield pa.record_batch({"x": [1]})
    raise OSError("the line is down")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({0: [1, 2]}, "A column has the name 0 of type int; the names of columns must be text"),
        ({}, "There are no columns to read"),
        ({"a": [1, 2], "b": [1]}, "The columns have different lengths"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "has more than one column 'a'"),
        (pd.DataFrame({"a": [1]}, index=pd.Index([5], name="a")), "has more than one column 'a'"),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])),
            "several levels",
        ),
        (pd.DataFrame([[1, 2]]), "A column has the name 0"),
        (pd.DataFrame({"a": [1, "x", None]}), "Column 'a' holds values of several types"),
        (
            pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]),
            "Column 'a' occurs more than once",
        ),
        (
            pa.table({"a": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}),
            "Column 'a' holds values of several types",
        ),
        (
            pa.RecordBatchReader.from_batches(pa.schema([("x", pa.int64())]), raises()),
            r"Rows cannot be read from this RecordBatchReader \(.*the line is down",
        ),
        (Batch(pa.array([1])), "Rows cannot be read from this Batch"),
        (
            pa.table({"a": pa.array([b"\xff"]).view(pa.string())}),
            "Rows cannot be read from this Table .*UTF8",
        ),
        (object(), "Rows cannot be read from the type object; give a path"),
        ([1, 2], "Rows cannot be read from the type list; give a path"),
        ([], "There are no rows"),
        ([{"a": 1}, {"a": "x"}], "Column 'a' holds values of several types"),
        ([{0: 1}], "A column has the name 0"),
        (np.array(3), "Column 'data' holds a single value"),
    ],
)
def test_what_cannot_be_a_table_is_one_sentence(source, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        as_table(source)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_arrays_records_dicts_and_frames():
    assert as_table(np.arange(3))["data"].to_pylist() == [0, 1, 2]
    assert as_table(torch.eye(2)).column_names == ["data"]
    records = np.array([(1, b"x", (2, 3))], [("a", ">i4"), ("b", "S2"), ("c", "f4", (2,))])
    table = as_table(records)
    assert (table["a"].to_pylist(), table["b"].to_pylist()) == ([1], [b"x"])
    assert to_numpy(table["c"], "c").tolist() == [[2.0, 3.0]]
    assert as_table([{"a": 1}, {"b": "x"}]).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["u", "v"], name="key"))
    assert as_table(frame).to_pylist() == [{"key": "u", "x": 1}, {"key": "v", "x": 2}]
    assert as_table(frame.rename_axis(None)).to_pylist() == [{"x": 1}, {"x": 2}]
    levels = frame.set_index("x", append=True).assign(z=5)
    assert as_table(levels).column_names == ["key", "x", "z"]


def test_integers_of_polars_that_arrow_lacks():
    class Frame:  # without the package
        def __init__(self):
            self.schema = {"a": "Int64", "b": "Int128"}

        def __arrow_c_stream__(self, requested=None):
            raise AssertionError

    Frame.__module__ = "polars.dataframe"
    with pytest.raises(DataError, match=r"^Column 'b' holds Int128 integers, which Arrow cannot store"):
        as_table(Frame())


def test_a_transform_of_hugging_face_is_said_not_to_be_applied(caplog):
    class Dataset:
        num_rows, format = 1, {"type": "custom"}

        def with_format(self, kind):
            return pa.table({"a": [1]})

    Dataset.__module__ = "datasets.arrow_dataset"
    assert as_table(Dataset()).to_pylist() == [{"a": 1}]
    assert "raysel reads the stored rows of this Dataset and does not apply its transform." in caplog.text


def test_one_long_text_takes_the_memory_of_its_characters():
    import tracemalloc

    texts = ["short"] * 1000 + ["x" * 200_000]
    tracemalloc.start()
    try:
        assert len(as_table({"text": texts, "label": [0] * len(texts)})) == 1001
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20  # an array of equally wide rows would be 800 MB


# ---- data sets -------------------------------------------------------------------------------------------------------


class Items(torch.utils.data.Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([1])


def test_items_of_a_data_set():
    table = as_table(Items((torch.zeros(2), 3), (torch.ones(2), 2**60 + 1)))
    assert to_numpy(table["data"], "data").tolist() == [[0, 0], [1, 1]]
    assert table["target"].to_pylist() == [3, 2**60 + 1]
    assert as_table(Items(Pair(1, "a"), Pair(2, "b"))).to_pylist() == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
    assert as_table(Items(collections.UserDict(x=1))).to_pylist() == [{"x": 1}]
    assert as_table(Items(b"a\0", b"b"))["data"].to_pylist() == [b"a\0", b"b"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Items(1, KeyError("gone")), r"Item 1 of the Items cannot be read \(KeyError: 'gone'\)"),
        (Items(1, (1, 2)), r"have different fields: item 1 has \['data', 'target'\], item 0 has \['data'\]"),
        (Items(), "The Items has no rows"),
        (Items({0: 1}), "A column has the name 0"),
        (Items({"x": 1}, {"x": "a"}), "Column 'x' holds values of several types"),
        (Streamed(), "This Streamed is streamed, so the number and the order of its rows are not fixed"),
        ((row for row in [{"x": 1}]), "This generator is streamed"),
        (torch.utils.data.DataLoader(Items(1)), "This DataLoader is streamed"),
    ],
)
def test_data_sets_that_cannot_be_read(source, sentence):
    with pytest.raises(DataError, match=sentence):
        as_table(source)


def picture(mode, size=(4, 3)):
    image = Image.effect_noise(size, 60)
    return (
        image.convert(mode)
        if mode != "I;16"
        else Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 999)
    )


def test_images_of_one_kind_are_pixels_and_others_files_that_keep_all_of_them():
    same = [picture("RGB"), picture("RGB")]
    got = to_numpy(as_table({"a": same})["a"], "a")
    assert np.array_equal(got, np.stack([np.asarray(image) for image in same]))
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]
    some = [picture(mode) for mode in modes] + [picture("RGB", (9, 2)), None]
    files = as_table({"a": some})["a"].to_pylist()
    assert files[-1] is None
    for image, data in zip(some[:-1], files[:-1], strict=True):
        again = Image.open(io.BytesIO(data))
        assert again.mode == image.mode and np.array_equal(np.asarray(again), np.asarray(image))
        assert again.convert("RGBA").tobytes() == image.convert("RGBA").tobytes() or image.mode in (
            "I",
            "F",
            "I;16",
        )
    table = as_table({ID: np.arange(len(some)), "a": some})
    assert len(decode(table, ["a"], "images").rows) >= 9
    with pytest.raises(
        DataError, match="holds a value of type int in row 1 that cannot be stored as an image"
    ):
        values([same[0], 3])
    broken = Image.open(io.BytesIO(files[4][:60]))
    with pytest.raises(DataError, match=r"in row 1 that cannot be stored as an image"):
        values([same[0], broken])
