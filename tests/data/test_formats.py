"""Files as people have them: every format's values as they are stored, what is left out said, and errors with the file."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
import sys
import tarfile
import types
import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from raysel.core.storage import resolve
from raysel.data.convert import convert
from raysel.data.formats.images import list_images
from raysel.data.formats.parquet import read_pieces
from raysel.data.listing import list_source
from raysel.data.row_index import index_parquet
from raysel.errors import DataError


def table(*sources, encoding=None):
    """All rows, as one table whose parts had the same schema, without Ray."""
    listing = list_source(sources, encoding)
    if listing.format.is_parquet:
        index = index_parquet(listing)
        parts = [part for _, part in read_pieces(index.pieces(), index.schema.names)]
        schema = index.schema
    else:
        schema = listing.unified.schema
        parts = [part for file in listing.files for part in listing.tables(file, schema)]
    assert all(part.schema.equals(schema) for part in parts)
    return pa.concat_tables([schema.empty_table(), *parts])


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def kinds_of(found):
    return {field.name: str(field.type) for field in found.schema}


def refused(*sources, encoding=None):
    with pytest.raises(DataError) as caught:
        table(*sources, encoding=encoding)
    return str(caught.value)


# ---- CSV -----------------------------------------------------------------------------------------------------


def test_csv_values_keep_their_digits(tmp_path):
    text = (
        "id,zip,day,big,exact,share,flag,none,mixed,sign,bigger\n"
        "1,007,2020-01-01,9223372036854775808,9007199254740993,0.50,true,NA,1,+1,99999999999999999999\n"
        "2,10115,2021-05-06,1,-2,nan,False,,1.5,2,1\n"
        " 3 ,,x,2,3,1e5,TRUE,null,,3,1\n"
    )
    found = table(write(tmp_path / "a.csv", text))
    assert kinds_of(found) == {
        **{
            "id": "int64",
            "zip": "string",
            "day": "string",
            "big": "uint64",
            "exact": "int64",
            "share": "double",
        },
        **{"flag": "bool", "none": "null", "mixed": "double", "sign": "double", "bigger": "string"},
    }
    assert found["id"].to_pylist() == [1, 2, 3] and found["zip"].to_pylist() == ["007", "10115", ""]
    assert found["big"].to_pylist() == [2**63, 1, 2] and found["exact"].to_pylist() == [2**53 + 1, -2, 3]
    assert found["share"].to_pylist() == [0.5, None, 1e5] and found["flag"].to_pylist() == [True, False, True]
    assert found["mixed"].to_pylist() == [1.0, 1.5, None]
    assert found["bigger"].to_pylist() == ["99999999999999999999", "1", "1"]
    # An integer that a double would round stays as it is written, with decimal numbers in the column or in another file.
    assert table(write(tmp_path / "b.csv", f"x\n{2**53 + 1}\n0.5\n"))["x"].to_pylist() == [
        str(2**53 + 1),
        "0.5",
    ]
    first = write(tmp_path / "c/1.csv", f"x,y,z,u\n{2**53 + 1},1,5,{2**63}\n")
    second = write(tmp_path / "c/2.csv", "x,y,w,u\n0.5,0.5,a,1\n")
    assert table(first, second).to_pylist() == [
        {"x": str(2**53 + 1), "y": 1.0, "z": 5, "u": 2**63, "w": None},
        {"x": "0.5", "y": 0.5, "z": None, "u": 1, "w": "a"},
    ]


@pytest.mark.parametrize(
    ("values", "kind", "fitting"),
    [
        ([1, 2**53 - 1, -(2**53) + 1], "int64", ["int64", "double"]),
        ([0, 2**53 - 1], "int64", ["int64", "uint64", "double"]),
        ([2**53], "int64", ["int64", "uint64"]),
        ([-(2**53)], "int64", ["int64"]),
        ([2**63 - 1, -(2**63)], "int64", ["int64"]),
        ([2**63, 2**64 - 1], "uint64", ["uint64"]),
        ([-1, 2**63], "string", []),
        ([2**64], "string", []),
        ([1, 0.5], "double", ["double"]),
        ([0.5, 1], "double", ["double"]),
        ([2**53, 0.5], "string", []),
        ([1e300, "inf", "-Infinity"], "double", ["double"]),
        (["1e400"], "string", []),
        (["true", 1], "string", []),
        ([1, "true"], "string", []),
        (["+1"], "double", ["double"]),
        ([1, "01"], "string", []),
        ([1, "1,5"], "string", []),
    ],
)
def test_types_that_values_of_a_csv_fit(values, kind, fitting, tmp_path, monkeypatch):
    """However the values are cut into blocks: here together, and one per block."""
    for block in (1 << 20, 16):
        monkeypatch.setattr("raysel.data.formats.csv._BLOCK", block)
        text = "x,y\n" + "".join(f'"{value}",..........\n' for value in values)
        field = list_source([write(tmp_path / f"{block}.csv", text)]).format.schema(
            list_source([tmp_path / f"{block}.csv"]).files[0]
        )[0]
        assert str(field.type) == kind and sorted(field.metadata or {}) == sorted(map(str.encode, fitting))


@pytest.mark.parametrize(
    ("name", "one", "other"), [("a.csv", "x\n1\n2\n", "x\n1\nb\n"), ("a.jsonl", '{"x":1}\n', '{"x":""}')]
)
def test_columns_of_a_text_file_are_inferred_once_until_it_changes(name, one, other, tmp_path, monkeypatch):
    read = []
    kind = type(list_source([write(tmp_path / name, one)]).format)
    rows = "_batches" if name == "a.csv" else "_rows"
    original = getattr(kind, rows)
    monkeypatch.setattr(kind, rows, lambda *a: read.append(a) or original(*a))

    def found():
        return str(list_source([tmp_path / name]).unified.schema.field("x").type)

    assert found() == found() == "int64" and len(read) == 2  # written so recently that a change may not show
    monkeypatch.setattr("raysel.core.fingerprint.files._SETTLED_NS", 0)
    assert found() == found() == "int64" and len(read) == 3
    write(tmp_path / name, other)
    assert found() == found() == "string" and len(read) == 4

    def changing(*a):
        read.append(a)
        yield from original(*a)
        write(tmp_path / name, other)

    write(tmp_path / name, one)
    monkeypatch.setattr(kind, rows, changing)
    assert found() == "int64" and found() == "string"


def test_a_csv_that_ends_within_quotes_is_refused_whichever_columns_are_read(tmp_path):
    listing = list_source([write(tmp_path / "a.csv", 'x,y,z\n1,2,"a\nb\nc')])
    with pytest.raises(DataError, match="ends within a quoted value"):
        list(listing.tables(listing.files[0], pa.schema([("x", pa.int64())])))


def test_csv_of_any_layout(tmp_path, monkeypatch):
    monkeypatch.setattr("raysel.data.formats.csv._BLOCK", 1 << 10)
    quoted = "".join(f'{i},"a {i}, b\nsecond ""line""",{i % 2}\n' for i in range(1000))
    long = "x" * 100_000
    sources = {
        "newlines within quotes, over several blocks": ("id,text,label\n" + quoted, 1000),
        "a line longer than a block": (f"id,text\n1,{long}\n2,b\n", 2),
        "a carriage return at each end": ("id,text\r\n1,a\r\n2,b\r\n", 2),
        "carriage returns alone": ("id,text\r1,a\r2,b\r", 2),
        "semicolons": ("id;text\n1;2,5\n", 1),
        "no newline at the end": ("id,text\n1,a", 1),
        "a byte order mark": ("\ufeffid,text\n1,a\n", 1),
        "quotes within a value": ('id,text\n1,5" pipe\n2,"x\ny"\n', 2),
        "a header with a newline": ('id,"te\nxt"\n1,a\n', 1),
    }
    for at, (what, (text, rows)) in enumerate(sources.items()):
        found = table(write(tmp_path / f"{at}.csv", text))
        assert (len(found), found.column_names[0], str(found["id"].type)) == (rows, "id", "int64"), what
    last = table(tmp_path / "0.csv").slice(999).to_pylist()[0]
    assert last == {"id": 999, "text": 'a 999, b\nsecond "line"', "label": 1}
    assert table(tmp_path / "1.csv")["text"].to_pylist() == [long, "b"]
    assert table(tmp_path / "4.csv").to_pylist() == [{"id": 1, "text": "2,5"}]
    assert table(write(tmp_path / "t.tsv", "id\ttext\n1\ta,b\n"))["text"].to_pylist() == ["a,b"]


def test_csv_that_cannot_be_read(tmp_path):
    for name, content, words in (
        ("ragged", "a,b\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        ("empty", "", "Empty CSV file"),
        ("twice", "a,a\n1,2\n", "several columns named 'a'"),
        ("open", 'a,b\n1,"x\ny\n2,z\n', "ends within a quoted value that begins with 'x"),
        ("cut.csv", gzip.compress(b"a\n1\n" * 100)[:20], "not a readable CSV file"),
    ):
        path = write(tmp_path / (f"{name}.csv" if "." not in name else f"{name}.gz"), content)
        message = refused(path)
        assert words in message and path.name in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "text,label\ncafé,a\n"),
        ("h.csv", "größe,label\n1,a\n"),
        ("t.jsonl", '{"text":"café"}\n'),
        ("k.json", '[{"größe":1}]'),
    ],
)
def test_another_encoding_is_said_and_can_be_given(tmp_path, name, text):
    path = write(tmp_path / name, text.encode("latin-1"))
    assert f"{name} is not text in UTF-8; name its encoding, for example encoding='latin-1'" in refused(path)
    assert "Python has no encoding 'nonsense'" in refused(path, encoding="nonsense")
    found = table(path, encoding="latin-1")
    assert (
        len(found) == 1
        and found.column_names[0] in ("text", "größe")
        and "é" in str([*found.to_pylist(), "é"])
    )
    wide = write(tmp_path / f"wide-{name}", text.encode("utf-16"))
    assert table(wide, encoding="utf-16").equals(found)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "p.parquet")
    assert "encoding: " in refused(tmp_path / "p.parquet", encoding="latin-1")


# ---- JSON ----------------------------------------------------------------------------------------------------


def test_compressed_text_and_other_encodings_are_told_apart(tmp_path):
    packed = gzip.compress(b"a\n1\n")
    assert "a.csv is compressed; rename it to end in .gz" in refused(write(tmp_path / "a.csv", packed))
    assert "a.jsonl is compressed; rename it to end in .gz" in refused(write(tmp_path / "a.jsonl", packed))
    wide = write(tmp_path / "b.csv", "a,b\n1,é\n".encode("utf-16"))
    assert "for example encoding='utf-16'" in refused(wide)
    rows = pa.table({"x": [1, 2]})
    feather.write_feather(rows, str(tmp_path / "c.feather"))
    plain = (tmp_path / "c.feather").read_bytes()
    assert table(write(tmp_path / "c.feather.gz", gzip.compress(plain))).equals(rows)
    assert table(write(tmp_path / "d.gz", gzip.compress(b'{"x": 1}\n{"x": 2}'))).equals(rows)
    for codec, suffix in (("zstd", "zst"), ("lz4", "lz4")):
        packed = pa.compress(b"x\n1\n2\n", codec=codec, asbytes=True)
        assert table(write(tmp_path / f"e.csv.{suffix}", packed)).equals(rows)


def test_json_values_are_those_that_are_written(tmp_path, caplog, monkeypatch):
    for name in ("_PART", "_CHARACTERS", "_ENTRIES"):  # many small tables
        monkeypatch.setattr(f"raysel.data.formats.json_lines.{name}", 1)
    lines = [
        {
            "id": 0,
            "list": [None, 1],
            "day": "2020-01-01",
            "big": 2**64 - 1,
            "n": 1,
            "nested": {"a": 1},
            "late": None,
        },
        {
            "id": 2**53 + 1,
            "list": [2, 3],
            "day": "2021-05-06",
            "big": 1,
            "n": 2.5,
            "nested": {"b": "x"},
            "new": True,
        },
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    for name, content in (
        ("a.jsonl", text),
        ("b.ndjson", text.replace("\n\n", "\r\n") + "\r\n"),
        ("c.json", "\ufeff" + text),
        ("d.json", json.dumps(lines, indent=1)),
        ("e.jsonl.gz", gzip.compress(text.encode())),
        ("no-suffix", text),
    ):
        found = table(write(tmp_path / name, content))
        expected = [{**dict.fromkeys(("late", "new")), **line} for line in lines]
        expected[0]["nested"], expected[1]["nested"] = {"a": 1, "b": None}, {"a": None, "b": "x"}
        assert [dict(sorted(row.items())) for row in found.to_pylist()] == [
            dict(sorted(row.items())) for row in expected
        ]
    for at, (one, other) in enumerate(((1, 0.5), (1, 2**63), (2**53 + 1, 0.5), (-1, 2**63))):
        write(tmp_path / f"{at}/1.jsonl", json.dumps({"n": one}))
        write(tmp_path / f"{at}/2.jsonl", json.dumps({"n": other}))
        if at < 2:
            assert table(tmp_path / f"{at}")["n"].to_pylist() == [one, other]
        else:
            assert "1.jsonl" in refused(tmp_path / f"{at}")
    broken = table(write(tmp_path / "half.jsonl", '{"text":"ok"}\n{"text":"lone \\ud83d"}\n'))
    assert broken["text"].to_pylist() == ["ok", "lone \ufffd"]
    assert "Line 2 of" in caplog.text and "(half of a surrogate pair) in column 'text'" in caplog.text
    long = [{"text": "é" * 999, "n": i} for i in range(3)]  # lines longer than what is read at once
    path = write(tmp_path / "long.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in long))
    assert table(path).to_pylist() == long


def test_json_that_cannot_be_read(tmp_path):
    for at, (content, words) in enumerate(
        (
            ('{"a":1}\n{"a":"x"}\n', "Column 'a' of {} holds an integer in line 1 and text in line 2"),
            ('{"a":1}\n{"a":', "Line 2 of {} is not JSON"),
            ('{"a":1}\n[1]\n', "Line 2 of {} holds a list"),
            (
                '{"a":{"0":1,"1":2},"b":{"0":"x","1":"y"}}',
                "{} holds a complete table in one JSON object; write one object per row",
            ),
            ("[1, 2]", "{} is one array, and its entry 0 is an integer"),
            ('{"a":1,"a":2}\n', "Line 1 of {} is not JSON (The name 'a' occurs more than once"),
            (f'{{"a":{2**70}}}\n', "Column 'a' of {} holds integers that do not all fit one 64-bit type"),
            (f'{{"a":{2**53 + 1}}}\n{{"a":0.5}}\n', "Column 'a' of {} "),
            ("[" * 100_000, "{} is not a readable JSON file"),
        )
    ):
        path = write(tmp_path / f"{at}.jsonl", content)
        assert words.format(path) in refused(path)


# ---- Arrow, NumPy, WebDataset ----------------------------------------------------------------------------------


def test_arrow_as_file_stream_and_feather(tmp_path):
    rows = pa.table(
        {
            "x": [1, 2],
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "view": pa.array(["c", "d"], pa.string_view()),
        }
    )
    for name, open_writer in (
        ("file.arrow", pa.ipc.new_file),
        ("stream.arrow", pa.ipc.new_stream),
        ("stream", pa.ipc.new_stream),
    ):
        with open_writer(str(tmp_path / name), rows.schema) as writer:
            writer.write_table(rows)
        assert table(tmp_path / name).to_pylist() == rows.to_pylist()
    feather.write_feather(rows.select(["x"]), str(tmp_path / "f.feather"))
    assert table(tmp_path / "f.feather")["x"].to_pylist() == [1, 2]
    assert "junk.arrow is not a readable Arrow file" in refused(write(tmp_path / "junk.arrow", b"junk" * 9))


def saved_dataset(folder, splits=()):
    """A directory as ``datasets.Dataset.save_to_disk`` writes it."""
    names = [f"data-0000{at}-of-00002.arrow" for at in range(2)]
    for at, name in enumerate(names):
        write(folder / name, b"")
        rows = pa.table({"text": [f"{at} a", f"{at} b"], "label": [0, at]})
        with pa.ipc.new_stream(str(folder / name), rows.schema) as writer:
            writer.write_table(rows)
    write(folder / "state.json", json.dumps({"_data_files": [{"filename": name} for name in names]}))
    write(folder / "dataset_info.json", "{}")
    return folder


def test_a_directory_that_hugging_face_saved(tmp_path):
    folder = saved_dataset(tmp_path / "both/train")
    assert table(folder)["text"].to_pylist() == ["0 a", "0 b", "1 a", "1 b"]
    write(tmp_path / "both/dataset_dict.json", '{"splits": ["train", "test"]}')
    assert f"holds the splits train, test; read one of them: {tmp_path}/both/train." in refused(
        tmp_path / "both"
    )
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "state.json lists files that do not exist: data-00001-of-00002.arrow" in refused(folder)


def test_numpy_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    assert table(tmp_path / "a.npy")["data"].to_pylist() == [[0, 1], [2, 3], [4, 5]]
    np.savez(tmp_path / "b.npz", x=np.arange(2), y=np.array(["p", "q"]))
    assert table(tmp_path / "b.npz").to_pylist() == [{"x": 0, "y": "p"}, {"x": 1, "y": "q"}]
    np.save(tmp_path / "o.npy", np.array([{}, 1], dtype=object))
    assert "o.npy is not a readable .npy file (Object arrays" in refused(tmp_path / "o.npy")
    assert "c.npy is not a NumPy file" in refused(write(tmp_path / "c.npy", "no"))
    np.savez(tmp_path / "none.npz")
    assert "none.npz is an archive without arrays" in refused(tmp_path / "none.npz")


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_webdataset(tmp_path):
    members = [
        ("a/0.jpg", b"x"),
        ("a/0.cls", b"3"),
        ("a/1.jpg", b"y"),
        ("._1.jpg", b"?"),
        ("a/1.seg.png", b"z"),
        ("2.txt", "é".encode()),
    ]
    expected = [
        {"__key__": "a/0", "cls": 3, "jpg": b"x", "seg.png": None, "txt": None},
        {"__key__": "a/1", "cls": None, "jpg": b"y", "seg.png": b"z", "txt": None},
        {"__key__": "2", "cls": None, "jpg": None, "seg.png": None, "txt": "é"},
    ]
    whole = tar(tmp_path / "a.tar", members)
    for path in (
        whole,
        tar(tmp_path / "b.tgz", members, "w:gz"),
        tar(tmp_path / "c.tar.gz", members, "w:gz"),
    ):
        assert table(path).to_pylist() == expected
    assert "named 0 are not next to each other" in refused(
        tar(tmp_path / "d.tar", [("0.jpg", b""), ("1.jpg", b""), ("0.cls", b"")])
    )
    assert "The member 0.cls of" in refused(tar(tmp_path / "e.tar", [("0.cls", b"cat")]))
    assert "has no suffix" in refused(tar(tmp_path / "f.tar", [("README", b"")]))
    raw = whole.read_bytes()
    for size in (512 * 3, 512 * 4, 512 * 4 + 100):  # between members and within one
        assert "cut.tar" in refused(write(tmp_path / "cut.tar", raw[:size]))


# ---- Parquet: schemas that agree -------------------------------------------------------------------------------


def column(values, kind=None):
    return pa.table({"x": pa.array(values, kind)})


AGREE = {
    "nullable": (
        pa.table({"x": [1]}, schema=pa.schema([pa.field("x", pa.int64(), nullable=False)])),
        column([2]),
        "int64",
    ),
    "no values": (column([None], pa.null()), column(["a"]), "string"),
    "large text": (column(["a"], pa.large_string()), column(["b"]), "large_string"),
    "text views": (column(["a"], pa.string_view()), column(["b"]), "large_string"),
    "dictionary": (pa.table({"x": pa.array(["a"]).dictionary_encode()}), column(["b"]), "string"),
    "integers": (column([1], pa.int32()), column([2**40]), "int64"),
    "signed and unsigned": (column([1], pa.uint32()), column([-2], pa.int8()), "int64"),
    "large and not negative": (column([2**64 - 1], pa.uint64()), column([1]), "uint64"),
    "floats": (column([1.5], pa.float32()), column([2.5]), "double"),
    "integers that fit a double": (column([1]), column([2.5]), "double"),
    "small integers and floats": (column([1], pa.int16()), column([2.5], pa.float32()), "float"),
    "no rows": (column([], pa.float64()), column(["a"]), "string"),
    "bytes": (column([b"ab"], pa.binary(2)), column([b"c"], pa.large_binary()), "large_binary"),
    "lists": (column([[1]], pa.list_(pa.int32(), 1)), column([[1, 2]]), "list<item: int64>"),
    "structs": (column([{"a": 1}]), column([{"b": "x", "a": 2}]), "struct<a: int64, b: string>"),
    "lists of structs": (
        column([[{"a": 1}]]),
        column([[{"b": 2.0}]]),
        "list<item: struct<a: int64, b: double>>",
    ),
    "times": (
        column([1], pa.timestamp("ms", "UTC")),
        column([1], pa.timestamp("us", "UTC")),
        "timestamp[us, tz=UTC]",
    ),
    "decimals": (column([1], pa.decimal128(5, 2)), column([1], pa.decimal128(9, 4)), "decimal128(9, 4)"),
}


@pytest.mark.parametrize("name", AGREE)
def test_schemas_that_agree_are_unified_exactly(tmp_path, name):
    one, other, kind = AGREE[name]
    for order in ((one, other), (other, one)):
        pq.write_table(order[0], tmp_path / "0.parquet", use_compliant_nested_type=False)
        pq.write_table(order[1], tmp_path / "1.parquet")
        found = table(tmp_path)
        assert str(found["x"].type) == kind or sorted(kind) == sorted(str(found["x"].type))
        values = [value for part in order for value in part["x"].to_pylist()]
        missing = {"a": None, "b": None}
        full = [
            missing | v
            if isinstance(v, dict)
            else [missing | i if isinstance(i, dict) else i for i in v]
            if isinstance(v, list)
            else v
            for v in values
        ]
        assert found["x"].to_pylist() in (values, full)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (column(["a"]), column([1])),
        (column([2**53 + 1]), column([2.5])),
        (column([1], pa.uint64()), column([-1])),
        (column([True]), column([1])),
        (column([1], pa.timestamp("us", "UTC")), column([1], pa.timestamp("us"))),
        (column([[1]]), column([1])),
        (column([{"a": 1}]), column([{"a": "x"}])),
    ],
)
def test_schemas_that_cannot_be_unified_are_refused_with_both_files(tmp_path, one, other):
    pq.write_table(one, tmp_path / "0.parquet")
    pq.write_table(other, tmp_path / "1.parquet")
    message = refused(tmp_path)
    kinds = [kind for kind in (one["x"].type, other["x"].type) if not pa.types.is_nested(kind)]
    assert all(
        part in message for part in ("Column 'x' holds", "0.parquet", "1.parquet", *map(str, kinds))
    ), message


def test_order_and_missing_columns(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"c": [1.5], "a": [2]}), tmp_path / "1.parquet")
    index = index_parquet(list_source([tmp_path]))
    assert table(tmp_path).to_pylist() == [{"a": 1, "b": "x", "c": None}, {"a": 2, "b": None, "c": 1.5}]
    assert [note.partition(" (")[0] for note in index.notes] == [
        "Column 'b' is missing in 1 of 2 files",
        "Column 'c' is missing in 1 of 2 files",
    ]
    for columns in (["c"], ["b", "a"]):  # under a projection, too, and in parts of a row group
        for rows in (None, 1):
            parts = [part for _, part in read_pieces(index.pieces(), columns, rows)]
            assert pa.concat_tables(parts).to_pylist() == table(tmp_path).select(columns).to_pylist()
    required = pa.schema([pa.field("a", pa.int64()), pa.field("d", pa.int64(), nullable=False)])
    pq.write_table(pa.table({"a": [1], "d": [1]}, schema=required), tmp_path / "2.parquet")
    assert "requires a value in column 'd' of every row, but" in refused(tmp_path)
    pq.write_table(pa.table({"z": [1]}), tmp_path / "2.parquet")
    assert "have no column in common" in refused(tmp_path)


def test_a_file_that_was_replaced_is_not_read_with_the_old_ids(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "y": ["a", "b"]}), tmp_path / "a.parquet")
    index = index_parquet(list_source([tmp_path]))
    pq.write_table(pa.table({"x": [3, 4]}), tmp_path / "a.parquet")  # as many rows, and a column less
    with pytest.raises(DataError, match=r"a\.parquet has changed since the ids of its rows were recorded"):
        list(read_pieces(index.pieces(), ["x", "y"]))


def test_the_range_of_a_pandas_index_is_said_not_to_be_read(tmp_path):
    frame = pd.DataFrame({"id": [1, 2], "x": ["a", "b"]})
    frame.set_index("id").to_parquet(tmp_path / "a.parquet")
    (note,) = index_parquet(list_source([tmp_path])).notes
    assert note.startswith("The index 'id' of a pandas frame is not read, because ")
    for other in (frame, frame.set_index("x"), frame.set_index([[5, 9]])):
        other.to_parquet(tmp_path / "a.parquet")
        assert not index_parquet(list_source([tmp_path])).notes


def test_damaged_pages_are_found_with_the_row_group(tmp_path):
    rows = pa.table({"x": np.random.default_rng(0).random(50_000).round(3), "text": ["é" * 3] * 50_000})
    for name, at, options in (
        ("zstd", 20_000, {"compression": "zstd"}),
        ("sums", 20_000, {"compression": "none", "use_dictionary": False, "write_page_checksum": True}),
        ("text", None, {"compression": "none", "use_dictionary": False}),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(rows, path, row_group_size=25_000, **options)
        raw = bytearray(path.read_bytes())
        wrong = b"\xff" * (1 if at is None else 60)
        text = "ééé".encode()  # also in the statistics before the values
        at = raw.index(text, raw.index(text) + 999) if at is None else at
        raw[at : at + len(wrong)] = wrong
        path.write_bytes(raw)
        message = refused(path)
        assert f"Row group 0 of {path} cannot be read (" in message, message


def test_timestamps_of_96_bits_do_not_wrap_around(tmp_path):
    for year, right in ((2020, True), (3000, False), (1500, False)):
        moments = pa.array([datetime.datetime(year, 1, 1), None], pa.timestamp("us"))
        rows = pa.table({"t": moments, "x": [1, 2]})
        pq.write_table(rows, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
        if right:
            assert (
                table(tmp_path / "a.parquet")["t"].cast(pa.timestamp("us")).to_pylist() == moments.to_pylist()
            )
        else:
            assert "Column 't' of row group 0 of" in refused(tmp_path / "a.parquet")
    index = index_parquet(list_source([tmp_path]))
    assert [part["x"].to_pylist() for _, part in read_pieces(index.pieces(), ["x"])] == [[1, 2]]


def test_a_row_group_that_fits_no_array_is_read_in_parts(tmp_path, monkeypatch):
    rows = pa.table({"list": [[str(i)] * (i % 3) for i in range(9000)]})
    pq.write_table(rows, tmp_path / "a.parquet")

    def too_large(self, *_, **__):
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", too_large)
    assert table(tmp_path / "a.parquet").to_pylist() == rows.to_pylist()


# ---- which files, and what is left out -------------------------------------------------------------------------


def test_partition_directories_become_columns(tmp_path):
    for year, month, city in ((2024, "01", "a%20b"), (2025, "12", "__HIVE_DEFAULT_PARTITION__")):
        write(tmp_path / f"d/year={year}/month={month}/city={city}/a.parquet", "")
        pq.write_table(
            pa.table({"x": [year]}), tmp_path / f"d/year={year}/month={month}/city={city}/a.parquet"
        )
    write(tmp_path / "d/_SUCCESS", "")
    found = table(tmp_path / "d")
    expected = [
        {"x": 2024, "year": 2024, "month": 1, "city": "a b"},
        {"x": 2025, "year": 2025, "month": 12, "city": None},
    ]
    assert found.to_pylist() == expected and kinds_of(found) == {
        "x": "int64",
        "year": "int32",
        "month": "int32",
        "city": "string",
    }
    import pyarrow.dataset as dataset

    assert dataset.dataset(tmp_path / "d", partitioning="hive").to_table().to_pylist() == expected
    for pattern in ("d/*/*/*/a.parquet", "d/**/*.parquet", "d/year=202?", "d/year=202[45]"):
        assert table(f"{tmp_path}/{pattern}").to_pylist() == expected
    assert not list_source([tmp_path / "d"]).left_out
    one = index_parquet(list_source([tmp_path / "d/year=2024"]))
    assert "year" not in one.schema.names  # which is above what was named
    before = index_parquet(list_source([tmp_path / "d"])).digest
    (tmp_path / "d/year=2025").rename(tmp_path / "d/year=2026")
    assert index_parquet(list_source([tmp_path / "d"])).digest != before
    write(tmp_path / "c/k=1/a.csv", "x,k\n5,7\n")  # what the file stores is kept
    write(tmp_path / "c/k=2/a.csv", "x\n6\n")
    assert table(tmp_path / "c").to_pylist() == [{"x": 5, "k": 7}, {"x": 6, "k": 2}]


def test_names_and_places(tmp_path):
    rows = pa.table({"x": [1, 2]})
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (
        "a.PARQUET",
        "a.pq",
        "no-suffix",
        "v1.2/a.parquet",
        "out.csv/part-0.parquet",
        "plain/part-0",
        f"{nfd}/a.parquet",
        "a b/x.parquet",
    ):
        write(tmp_path / name, "")
        pq.write_table(rows, tmp_path / name)
    for source in ("v1.2\\a.parquet", "a.PARQUET", "a.pq", "no-suffix", "v1.2", "out.csv", "plain", nfc, nfd):
        assert table(tmp_path / source).equals(rows), source
    for uri in (
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b/x.parquet",
        f"file:{tmp_path}/a b",
        f"FILE://{tmp_path}/a%20b/*.parquet",
    ):
        assert table(uri).equals(rows), uri
    for uri, words in (
        ("file://elsewhere/x", "names the machine 'elsewhere'"),
        (f"file://{tmp_path}/a.pq?x=1", "is not the URI of a local file"),
        ("nothing://x/y", "nothing://x/y cannot be opened"),
        (f"{tmp_path}/none*", "No file matches the pattern"),
        (f"{tmp_path}/none", "none does not exist."),
        (str(write(tmp_path / "what", "hello")), "is recognised neither by its name"),
        (str(write(tmp_path / "p.parquet.gz", gzip.compress(b"x"))), "is a compressed Parquet file"),
    ):
        message = refused(uri)
        assert words in message and "\n" not in message
    from raysel.data.files import File

    assert File(None, "b/x.PARQUET").suffix == ".parquet" and File(None, "b/x.csv.gz").suffix == ".csv"
    place = resolve("s3://b/pool%20a/x.parquet?endpoint_override=http://localhost:9&region=eu")
    assert place[1] == "b/pool a/x.parquet" and place[0].region == "eu"


def test_odd_entries_of_a_directory(tmp_path):
    write(tmp_path / "d/a.csv", "x\n1\n")
    (tmp_path / "d/sub").mkdir()
    (tmp_path / "d/sub/loop").symlink_to("..")
    (tmp_path / "else").mkdir()
    write(tmp_path / "else/b.csv", "x\n2\n")
    (tmp_path / "d/linked").symlink_to("../else")
    assert table(tmp_path / "d")["x"].to_pylist() == [1, 2]  # once, and what is behind a link
    (tmp_path / "d/gone.csv").symlink_to("nowhere.csv")
    assert "gone.csv is not a readable CSV file" in refused(tmp_path / "d")
    os.mkfifo(tmp_path / "fifo.csv")
    assert "fifo.csv is neither a file nor a directory" in refused(tmp_path / "fifo.csv")
    with open(os.fsencode(tmp_path / "else") + b"/\xff.csv", "w"):
        assert "The name b'\\xff.csv' in" in refused(tmp_path / "else")
    assert "The path to read is empty" in refused("")
    assert "a.tar is not a readable tar archive, or is empty." in refused(write(tmp_path / "a.tar", ""))


def test_a_zip_of_something_else_is_not_taken_for_arrays(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "rows.csv.zip", "w") as archive:
        archive.writestr("rows.csv", "x\n1\n")
    assert "rows.csv.zip is compressed in a way that raysel does not read; unpack it" in refused(
        tmp_path / "rows.csv.zip"
    )
    with zipfile.ZipFile(tmp_path / "rows", "w") as archive:
        archive.writestr("rows.csv", "x\n1\n")
    assert "is recognised neither by its name" in refused(tmp_path / "rows")
    np.savez(tmp_path / "b.npz", x=np.arange(2))
    assert table((tmp_path / "b.npz").rename(tmp_path / "arrays")).to_pylist() == [{"x": 0}, {"x": 1}]


def test_what_is_not_read_is_counted_and_named(tmp_path):
    pq.write_table(pa.table({"x": [1]}), write(tmp_path / "p/a.parquet", ""))
    for name in (
        "_b.parquet",
        ".c.parquet",
        "_tmp/d.parquet",
        "notes.txt",
        "e.csv",
        "_SUCCESS",
        ".a.parquet.crc",
        "_metadata",
    ):
        write(tmp_path / "p" / name, "")
    assert list_source([tmp_path / "p"]).left_out == (
        f"{tmp_path}/p: 3 files are not read, because a part of the name begins with '.' or '_' (.c.parquet, _b.parquet, _tmp/d.parquet).",
        f"{tmp_path}/p: 2 files are not read, because the directory is read as Parquet (e.csv, notes.txt).",
    )
    for name in ("cat/_DSC0001.JPG", "cat/DSC_0002.JPG", "dog/x.jfif", "dog/y.tar", ".hidden/z.jpg"):
        write(tmp_path / "photos" / name, "x")
    listing = list_source([tmp_path / "photos"])
    assert list_images(listing.filesystem, listing.files[0].path)["path"].to_pylist() == [
        "cat/DSC_0002.JPG",
        "cat/_DSC0001.JPG",
        "dog/x.jfif",
    ]
    assert listing.left_out == (
        f"{tmp_path}/photos: 2 files are not read, because the directory is read as images (.hidden/z.jpg, dog/y.tar).",
    )
    write(tmp_path / "two/a.csv", "x\n1\n")
    write(tmp_path / "two/b.jsonl", '{"x": 1}\n')
    assert "holds files of several formats (a.csv is CSV, b.jsonl is JSON)" in refused(tmp_path / "two")
    for name, words in (("x.txt", "Its files are x.txt."), ("_x.csv", "or '_' are not read (_x.csv).")):
        message = refused(write(tmp_path / f"none-{name}/{name}", "").parent)
        assert "holds no file of a format that raysel reads (.parquet, " in message and message.endswith(
            words
        )


def test_a_directory_that_is_named_is_read_also_if_its_name_begins_with_a_dot(tmp_path):
    place = tmp_path / ".cache" / "_rows"
    place.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1, 2]}), place / "a.parquet")
    write(tmp_path / ".texts/b.csv", "x\n3\n")
    assert table(place)["x"].to_pylist() == table(place / "a.parquet")["x"].to_pylist() == [1, 2]
    assert (
        table(tmp_path / ".texts")["x"].to_pylist()
        == table(tmp_path / ".texts/*.csv")["x"].to_pylist()
        == [3]
    )


def test_labels_match_names_in_any_unicode_form_and_with_backslashes(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write(tmp_path / nfd / "a.jpg", "x")
    for line in (f"{nfc}/a.jpg", f"{nfd}\\a.jpg", f"./{nfc}/a.jpg"):
        write(tmp_path / "labels.csv", f"path,label\n{line},1\n")
        assert list_images(*resolve(tmp_path))["label"].to_pylist() == [1]
    write(tmp_path / "labels.csv", "päth,label\na.jpg,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.csv is not text in UTF-8"):
        list_images(*resolve(tmp_path))


def test_delta(tmp_path, monkeypatch):
    deltalake = pytest.importorskip("deltalake", reason="needs the extra raysel[delta]")
    place = str(tmp_path / "t")
    deltalake.write_deltalake(place, pa.table({"x": [3, 4], "p": [1, 2]}), partition_by=["p"])
    deltalake.write_deltalake(
        place, pa.table({"x": [5], "p": [1], "z": [1.5]}), mode="append", schema_mode="merge"
    )
    deltalake.DeltaTable(place).delete("x = 3")
    found = table(place).sort_by("x")
    assert (
        found.to_pylist() == [{"x": 4, "z": None, "p": 2}, {"x": 5, "z": 1.5, "p": 1}]
        and str(found["p"].type) == "int64"
    )
    log = tmp_path / "t/_delta_log/00000000000000000000.json"
    features = '"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]'
    log.write_text(log.read_text().replace('"minReaderVersion":1,"minWriterVersion":2', features))
    assert (
        "uses the feature deletionVectors, which stores the marks of deleted rows in separate files"
        in refused(place)
    )


def test_delta_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    write(tmp_path / "_delta_log/0.json", "{}")
    assert "the package deltalake is not installed; install raysel[delta]" in refused(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/pool?endpoint_override=http://127.0.0.1:9&region=us-east-1",
        "gs://anonymous@bucket/pool?endpoint_override=127.0.0.1:9&scheme=http",
    ],
)
def test_an_object_store_that_cannot_be_reached(uri):
    message = refused(uri)
    assert message.startswith(f"{uri} cannot be read (") and "\n" not in message and message.endswith(").")


def test_a_file_system_of_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/bucket/data/year=2024/a.parquet", "wb") as sink:
        pq.write_table(pa.table({"x": [1, 2]}), sink)
    with memory.open("/bucket/a.csv", "wb") as sink:
        sink.write(b"x\n1\n2\n")
    try:
        assert table("memory://bucket/data").to_pylist() == [{"x": 1, "year": 2024}, {"x": 2, "year": 2024}]
        assert table("memory://bucket/*.csv")["x"].to_pylist() == [1, 2]
        first, again = (convert(list_source(["memory://bucket/*.csv"]), tmp_path / "out") for _ in range(2))
        assert (first.written, again.written) == (1, 0) and first.digests == again.digests
        assert "memory://bucket/none does not exist" in refused("memory://bucket/none")
    finally:
        memory.rm("/bucket", recursive=True)


def test_hugging_face_hub(monkeypatch, tmp_path):
    """``hf://`` with a package whose file system is one in memory: no network."""
    from fsspec.implementations.memory import MemoryFileSystem

    class HfFileSystem(MemoryFileSystem):
        protocol = "hf"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("hf://"))

    known = sys.modules["fsspec.registry"]._registry
    with HfFileSystem().open("/datasets/me/data/train/0.parquet", "wb") as sink:
        pq.write_table(pa.table({"x": [1, 2]}), sink)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfFileSystem=HfFileSystem))
    try:
        assert table("hf://datasets/me/data/train")["x"].to_pylist() == [1, 2]
        assert table("hf://datasets/me/data/**/*.parquet")["x"].to_pylist() == [1, 2]
    finally:
        known.pop("hf", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "hf://datasets/me/data cannot be opened, because the package for it" in refused(
        "hf://datasets/me/data"
    )


def test_a_format_of_a_package(monkeypatch, tmp_path):
    from raysel.core.registry import Registry
    from raysel.data import listing
    from raysel.data.formats.format import Format

    class Words(Format):
        name, suffixes = "words", (".words",)

        def schema(self, file, encoding=None, sample=False):
            return pa.schema([("word", pa.string())])

        def tables(self, file, schema, encoding=None):
            with file.stream() as stream:
                yield pa.table({"word": stream.read().decode().split()})

    point = types.SimpleNamespace(load=lambda: Words, value="words")
    monkeypatch.setattr(Registry, "_plugins", lambda self: {"words": point} if self.kind == "formats" else {})
    listing.formats.cache_clear()
    try:
        for name, text in (("k=1/a.words", "a b"), ("k=2/b.words.gz", gzip.compress(b"c"))):
            write(tmp_path / name, text)
        assert table(tmp_path).to_pylist() == [
            {"word": "a", "k": 1},
            {"word": "b", "k": 1},
            {"word": "c", "k": 2},
        ]
    finally:
        listing.formats.cache_clear()


def test_many_files_are_listed_in_moderate_time(tmp_path):
    from raysel.data.files import Folder
    from raysel.data.listing import _of_folder

    names = tuple(sorted(f"k={at % 10}/{at}.csv" for at in range(50_000)))
    form, files, left = _of_folder(Folder(pa.fs.LocalFileSystem(), str(tmp_path), names))
    assert form.name == "CSV" and len(files) == 50_000 and not left
