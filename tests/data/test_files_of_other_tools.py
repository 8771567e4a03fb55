"""Files as spreadsheets, Spark, NumPy and hand-written scripts leave them: their exact values, or a sentence."""

from __future__ import annotations

import datetime
import gzip
import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.decode import decode
from raysel.data.formats.parquet import read_pieces
from raysel.data.listing import list_source, warn
from raysel.data.row_index import index_parquet
from tests.data.test_formats import refused, table, tar, write


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("\ufeffsep=;\r\na;b\r\n1;2,5\r\n", [{"a": 1, "b": "2,5"}]),  # Excel names the delimiter
        ("sep=,\na,b\n1,2\n", [{"a": 1, "b": 2}]),
        ("sep=|\n", None),
        ('"last, first";age\n"Doe, J";3\n', [{"last, first": "Doe, J", "age": 3}]),
        ('"a";"b,c"\n"1";"2"\n', [{"a": 1, "b,c": 2}]),
        ("a|b\n1|x,y\n", [{"a": 1, "b": "x,y"}]),
        ('"a,x"\tb\n1\t2\n', [{"a,x": 1, "b": 2}]),
        ("a,b", []),
        ("a,b\n", []),
        ("a\n1e400\n1\n", [{"a": "1e400"}, {"a": "1"}]),  # no double holds it
        ("a\n1e300\n-inf\n", [{"a": 1e300}, {"a": -np.inf}]),
    ],
)
def test_layouts_of_csv(tmp_path, text, rows):
    path = write(tmp_path / "a.csv", text)
    if rows is None:
        assert "a.csv is not a readable CSV file" in refused(path)
    else:
        assert table(path).to_pylist() == rows


def test_tabs_come_first_in_a_file_of_tabs(tmp_path):
    assert table(write(tmp_path / "a.tsv", "a,x\tb\n1\t2\n")).to_pylist() == [{"a,x": 1, "b": 2}]
    assert table(write(tmp_path / "b.tsv", "a,x\n1,2\n")).to_pylist() == [{"a": 1, "x": 2}]


def test_other_files_that_are_named_csv(tmp_path):
    pq.write_table(pa.table({"x": range(999)}), tmp_path / "p.csv")
    assert "p.csv is Parquet; rename it to end in .parquet." in refused(tmp_path / "p.csv")
    with pa.ipc.new_file(str(tmp_path / "a.jsonl"), pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [255]}))
    assert "a.jsonl is Arrow; rename it to end in .arrow." in refused(tmp_path / "a.jsonl")
    sheet = write(tmp_path / "sheet.csv", b"PK\x03\x04\x14\x00\x06\x00\xff\xfe\n1")
    assert "is a zip archive, as the files of spreadsheets are" in refused(sheet)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"


def test_files_that_git_lfs_has_not_fetched(tmp_path):
    names = [
        "a.csv",
        "b.csv.gz",
        "c.jsonl",
        "d.json.gz",
        "e.parquet",
        "f.arrow",
        "g.npy",
        "h.npz",
        "i.tar",
        "j.tar.gz",
    ]
    for name in names:
        file = write(tmp_path / name, POINTER)
        assert (
            refused(file)
            == f"{file} is only a pointer of Git LFS, not the file itself; fetch the file with 'git lfs pull'."
        )
    packed = write(tmp_path / "k.csv.gz", gzip.compress(POINTER))
    assert "fetch the file with 'git lfs pull'" in refused(packed)
    image = write(tmp_path / "l.png", POINTER)
    for column in (pa.array([POINTER]), pa.array([str(image)]), pa.array([{"bytes": POINTER, "path": "p"}])):
        rows = pa.table({"sample_id": [7], "image": column})
        reason = decode(rows, ["image"], "images").rejected[7]
        assert reason.endswith("(Git LFS has not fetched the image; run 'git lfs pull')")


@pytest.mark.parametrize("name", ["rot13", "base64", "nonsense", "", 8])
def test_names_that_are_no_encoding(tmp_path, name):
    assert "Python has no encoding" in refused(write(tmp_path / "a.csv", "a\n1\n"), encoding=name)


@pytest.mark.parametrize(
    "values",
    [
        ("1.5", "true"),
        ("true", "1.5"),
        ("[1.5, true]", "null"),
        ("[1.5]", "[false]"),
        ('{"b": 1.5}', '{"b": false}'),
        ('[{"b": [1.5]}, null]', '[{"b": [true]}]'),
    ],
)
def test_truth_values_in_json_do_not_become_numbers(tmp_path, values):
    rows = "\n".join(f'{{"a": {value}}}' for value in values)
    assert "Column 'a' of" in refused(write(tmp_path / "a.jsonl", rows))


def test_halves_of_surrogate_pairs_in_names_keep_their_values(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", '{"\\ud800": 1, "b": {"\\udfff": 2}}\n{"b": null}\n')
    assert table(path).to_pylist() == [{"\ufffd": 1, "b": {"\ufffd": 2}}, {"\ufffd": None, "b": None}]
    assert "The name of a column of" in caplog.text
    assert "occurs more than once" in refused(write(tmp_path / "b.jsonl", '{"\\ud800": 1, "\\ud801": 2}\n'))


def test_all_streams_of_a_file_are_read(tmp_path):
    def stream(values, name="x"):
        sink = io.BytesIO()
        column = pa.array(values).dictionary_encode()
        with pa.ipc.new_stream(sink, pa.schema([(name, column.type)])) as writer:
            writer.write_table(pa.table({name: column}))
        return sink.getvalue()

    both = write(tmp_path / "both.arrows", stream(["a", "b"]) + stream(["c", "a"]))
    assert table(both)["x"].to_pylist() == ["a", "b", "c", "a"]
    assert table(write(tmp_path / "open.arrows", stream(["a"])[:-8]))["x"].to_pylist() == ["a"]
    other = write(tmp_path / "other.arrows", stream(["a"]) + stream(["a"], "y"))
    assert "contains several Arrow streams with different columns" in refused(other)
    assert "junk.arrows is not a readable Arrow file" in refused(
        write(tmp_path / "junk.arrows", stream(["a"]) + b"junk" * 9)
    )


def test_a_second_array_in_a_file_is_not_lost(tmp_path):
    with open(tmp_path / "two.npy", "wb") as file:
        np.save(file, np.arange(3))
        np.save(file, np.arange(3))
    assert "two.npy holds more data after its first array" in refused(tmp_path / "two.npy")


@pytest.mark.parametrize("year", [1600, 2020, 3000])
@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        (pa.list_(pa.timestamp("us")), lambda moment: [moment, None]),
        (pa.struct([("a", pa.int64()), ("b", pa.timestamp("us"))]), lambda moment: {"a": 1, "b": moment}),
        (pa.map_(pa.string(), pa.timestamp("us")), lambda moment: [("k", moment)]),
        (pa.list_(pa.struct([("b", pa.timestamp("us"))])), lambda moment: [{"b": moment}]),
    ],
)
def test_timestamps_of_96_bits_within_other_values(tmp_path, year, kind, wrap):
    rows = pa.table({"t": pa.array([None, wrap(datetime.datetime(year, 1, 1))], kind)})
    pq.write_table(rows, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    if year == 2020:
        assert len(table(tmp_path / "a.parquet")) == 2
    else:
        assert "Column 't' of row group 0 of" in refused(tmp_path / "a.parquet")


def test_values_of_directories_alone_have_the_rows_of_the_files(tmp_path):
    for year in (2024, 2025):
        write(tmp_path / f"d/year={year}/a.parquet", "")
        pq.write_table(pa.table({"x": range(10)}), tmp_path / f"d/year={year}/a.parquet", row_group_size=4)
    index = index_parquet(list_source([tmp_path / "d"]))
    for rows in (None, 1, 3, 4, 1000):
        parts = [part for _, part in read_pieces(index.pieces(), ["year"], rows)]
        assert pa.concat_tables(parts)["year"].to_pylist() == [2024] * 10 + [2025] * 10
        assert max(map(len, parts)) <= (rows or 4)
    write(tmp_path / "twice/k=1/k=2/a.parquet", (tmp_path / "d/year=2024/a.parquet").read_bytes())
    assert "k=1/k=2 has two directories named k=..., so column 'k' would have" in refused(tmp_path / "twice")


def test_times_that_the_common_type_cannot_hold(tmp_path):
    for at, (unit, moment) in enumerate((("ns", 0), ("us", datetime.datetime(3000, 1, 1)))):
        pq.write_table(pa.table({"t": pa.array([moment], pa.timestamp(unit))}), tmp_path / f"{at}.parquet")
    assert "1.parquet cannot be converted to the types that raysel determined from all files" in refused(
        tmp_path
    )


def test_lists_of_classes_that_do_not_match_the_images(tmp_path, caplog):
    write(tmp_path / "a.png", "x")
    for lines, words in (
        ("a.png,1\na.png,2\n", "lists a.png with two classes; keep only one row for this image"),
        ("A.png,1\n", "has no class for 1 images (a.png)"),
        ("", "has no class for 1 images (a.png)"),
    ):
        write(tmp_path / "labels.csv", f"path,label\n{lines}")
        assert words in refused(tmp_path)
    write(tmp_path / "labels.csv", "path,label\na.png,größe\n".encode("latin-1"))
    assert refused(tmp_path).endswith("labels.csv is not text in UTF-8; save it in that encoding.")
    write(tmp_path / "labels.csv", "path;label\r\na.png;1\r\n./a.png;1\r\nb.png;2\r\n")
    assert table(tmp_path).select(["path", "label"]).to_pylist() == [{"path": "a.png", "label": 1}]
    assert "labels.csv lists 1 image that the directory does not hold (b.png)." in caplog.text


def test_arrays_of_one_shape_are_unified_in_width(tmp_path):
    for at, dtype in enumerate((np.float32, np.float64, np.float16)):
        np.save(tmp_path / f"{at}.npy", np.full((2, 3), at + 0.5, dtype))
    found = table(tmp_path)
    assert found["data"].type == pa.fixed_shape_tensor(pa.float64(), (3,))
    assert found["data"].to_pylist() == [[at + 0.5] * 3 for at in (0, 0, 1, 1, 2, 2)]
    for at, array in enumerate(
        (np.zeros((2, 4)), np.zeros((2, 3, 1)), np.zeros(2), np.zeros((2, 3), np.int64))
    ):
        write(tmp_path / f"other{at}/0.npy", (tmp_path / "0.npy").read_bytes())
        np.save(tmp_path / f"other{at}/1.npy", array)
        assert "no type represents the values of both exactly" in refused(tmp_path / f"other{at}")


def test_tables_whose_files_hold_old_rows(tmp_path):
    for name, inside in (("Hudi", ".hoodie/hoodie.properties"), ("Iceberg", "metadata/v1.metadata.json")):
        write(tmp_path / name / inside, "{}")
        pq.write_table(pa.table({"x": [1]}), write(tmp_path / name / "data/a.parquet", ""))
        assert f"is a table of {name}, whose files also hold rows" in refused(tmp_path / name)


def test_links_in_archives_and_patterns_that_are_none(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            entry = tarfile.TarInfo("1.txt")
            entry.type, entry.linkname = kind, "0.txt"
            archive.addfile(entry)
        assert "The member 1.txt of" in refused(tmp_path / "a.tar")
    assert "cannot be read (bad character range" in refused(f"{tmp_path}/[z-a].csv")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x\n1\n\n3\n", [1, None, 3]),  # as duckdb and polars write a missing value
        ("x\r\n\r\n3\r\n", [None, 3]),
        ('x\n1\n""\n', [1, None]),  # as pandas writes it
        ("x\na\n\nb", ["a", "", "b"]),
        ("x,y\n1,2\n\n3,4\n", [1, 3]),  # no row of two columns is blank
    ],
)
def test_a_blank_line_of_one_column_is_a_row(tmp_path, text, values):
    assert table(write(tmp_path / "a.csv", text))["x"].to_pylist() == values


def test_a_header_that_is_blank(tmp_path):
    for text in ("\nx\n1\n", "  \nx,y\n1,2\n", "\r\nx;y\r\n1;2\r\n"):
        assert refused(write(tmp_path / "a.csv", text)).endswith(
            "a.csv is blank; it must hold the names of the columns."
        )


def test_numbers_that_no_double_holds(tmp_path):
    assert refused(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": [-1e999]}\n')).endswith(
        "a.jsonl holds the number -1e999, which is too large for a 64-bit float; write it as text."
    )
    assert "holds the number 1e400" in refused(write(tmp_path / "b.json", '[{"a": 1e400}]'))
    path = write(tmp_path / "c.jsonl", '{"a": -Infinity}\n{"a": 1e308}\n{"a": 1e-400}\n')
    assert table(path)["a"].to_pylist() == [-np.inf, 1e308, 0.0]


def test_values_within_lists_and_objects_are_named_with_their_lines(tmp_path):
    for text, words in (
        (
            '{"a": [1]}\n{"a": null}\n\n{"a": [2, "x"]}',
            "holds an integer in line 1 and text in line 4 at a[]",
        ),
        ('{"a": {"b": [1]}}\n{"a": {"b": 1}}', "holds a list in line 1 and an integer in line 2 at a.b"),
        ('[{"a": [{"b": true}]},\n {"a": [{"b": "x"}]}]', "a truth value in entry 0 and text in entry 1 at"),
        ('{"a": [1, 9007199254740993]}\n{"a": [0.5]}', "an integer in line 1 and a decimal number in line 2"),
    ):
        path = write(tmp_path / "a.jsonl", text)
        message = refused(path)
        assert message.startswith(f"Column 'a' of {path} holds") and words in message


def test_objects_that_take_several_lines(tmp_path):
    one = write(tmp_path / "d/0.json", '{\n  "a": 1,\n  "b": {\n    "c": [1, 2]\n  }\n}')
    write(tmp_path / "d/1.json", '\n{"a": 2,\n "b": null}\n\n{\n"a": 3\n}\n{"a": 4}\n')
    assert table(one).to_pylist() == [{"a": 1, "b": {"c": [1, 2]}}]
    assert table(tmp_path / "d")["a"].to_pylist() == [1, 2, 3, 4]
    assert "Line 4 of" in refused(write(tmp_path / "a.json", '{\n"a": 1\n}\n{"a": }\n'))
    assert "Line 5 of" in refused(write(tmp_path / "b.json", '\n{\n"a": 1\n}\n7\n'))
    assert "Line 1 of" in refused(write(tmp_path / "d.json", '{"a": 1} {"a": 2}\n'))


def test_tables_that_are_one_object(tmp_path):
    for text in (
        '{"columns": ["a"], "index": [0], "data": [[1]]}',
        '{"schema": {"fields": []}, "data": []}',
        '{"a":\n{"0": 1, "1": 2}}',
        '{"0": {"a": 1, "b": "x"}, "1": {"a": 2, "b": "y"}}',
        '{"0": 1.5, "1": null, "2": 2}',
    ):
        assert "holds a complete table in one JSON object" in refused(write(tmp_path / "a.json", text))
    assert len(table(write(tmp_path / "a.json", '{"schema": null, "data": []}'))) == 1


def test_a_file_is_read_once(tmp_path):
    for other in ("a.csv.gz", "a.csv.zst"):
        write(tmp_path / other / "a.csv", "x\n1\n")
        write(tmp_path / other / other, "")
        assert "have the same name except for the suffix of the compression" in refused(tmp_path / other)
        assert "would be read twice" in refused(f"{tmp_path}/{other}/*")
    write(tmp_path / "d/a.csv", "x\n1\n")
    write(tmp_path / "d/sub/a.csv", "x\n2\n")  # another file of the same name
    (tmp_path / "d/0.csv").symlink_to("a.csv")
    assert "d/0.csv is a link to the same file as" in refused(tmp_path / "d")
    assert "is a link to the same file" in refused(tmp_path / "d/a.csv", tmp_path / "d/0.csv")
    assert table(tmp_path / "d/0.csv", tmp_path / "d/sub")["x"].to_pylist() == [1, 2]
    (tmp_path / "d/0.csv").unlink()
    (tmp_path / "d/linked").symlink_to("sub")
    assert "is a link to the same file as" in refused(tmp_path / "d")
    (tmp_path / "d/linked").unlink()
    (tmp_path / "d/b.csv").hardlink_to(tmp_path / "d/a.csv")
    assert "is a link to the same file as" in refused(tmp_path / "d")


def test_images_that_are_links_are_said(tmp_path, caplog):
    write(tmp_path / "cat/a.png", "x")
    (tmp_path / "cat/b.png").symlink_to("a.png")
    assert table(tmp_path)["path"].to_pylist() == ["cat/a.png", "cat/b.png"]
    assert "1 image is a link to an image that is read too (cat/b.png)" in caplog.text


def test_pipes_and_sockets_are_not_read_and_said(tmp_path):
    write(tmp_path / "d/a.csv", "x\n1\n")
    os.mkfifo(tmp_path / "d/b.csv")
    (tmp_path / "d/c.csv").symlink_to("b.csv")
    assert table(tmp_path / "d")["x"].to_pylist() == [1]
    assert list_source([tmp_path / "d"]).left_out == (
        f"{tmp_path}/d: 2 files are not read, because pipes, sockets and devices hold no rows (b.csv, c.csv).",
    )
    assert "d/b.csv is neither a file nor a directory" in refused(f"{tmp_path}/d/*.csv")
    write(tmp_path / "p/cat/a.png", "x")
    os.mkfifo(tmp_path / "p/cat/b.png")
    assert table(tmp_path / "p")["path"].to_pylist() == ["cat/a.png"]
    assert "pipes, sockets and devices" in list_source([tmp_path / "p"]).left_out[0]


def test_members_of_archives_that_are_not_read_are_said(tmp_path, caplog):
    names = (".x/0.jpg", ".1.txt", "._2.jpg", ".DS_Store", "3.jpg")
    place = tar(tmp_path / "a.tar", [(name, b"x") for name in names])
    assert table(place)["__key__"].to_pylist() == ["3"]
    assert caplog.messages == [
        f"{place}: 2 members are not read, because a part of the name begins with '.', or the member is not a file (.x/0.jpg, .1.txt)."
    ]


def test_integers_of_archives_that_do_not_fit(tmp_path):
    for text in (b"9223372036854775808", b"1.5", b"", b"x", b"\xff"):
        place = tar(tmp_path / "a.tar", [("0.cls", b"-9223372036854775808"), ("1.cls", text)])
        assert refused(place) == f"The member 1.cls of {place} is not an integer of at most 64 bits."


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train/cat/x.png", "test/cat/y.png"), "(test, train); read one of them ({}/test)"),
        (("Train/cat/x.png", "Train/dog/y.png"), "(Train); read one of them ({}/Train)"),
        (("val/x.png", "train/y.png"), "(train, val); read one"),
    ],
)
def test_parts_of_a_data_set_are_not_classes(tmp_path, names, words):
    for name in names:
        write(tmp_path / name, "x")
    message = refused(tmp_path)
    assert "are named like the splits of a data set, not like classes" in message
    assert words.format(tmp_path) in message
    write(tmp_path / "bus/z.png", "x")  # vehicles
    assert len(table(tmp_path)) == 3


def test_one_folder_around_the_classes_is_said(tmp_path, caplog):
    for name in ("pets/cat/x.png", "pets/dog/y.png"):
        write(tmp_path / name, "x")
    assert table(tmp_path)["label"].to_pylist() == ["pets", "pets"]
    assert f"If the folders in pets are the classes (cat, dog), read {tmp_path}/pets." in caplog.text
    assert table(tmp_path / "pets")["label"].to_pylist() == ["cat", "dog"]


def test_a_server_that_cannot_be_reached(tmp_path):
    pytest.importorskip("aiohttp", reason="needs a package that fsspec reads http:// with")
    assert (
        refused("http://127.0.0.1:9/a.csv")
        == "http://127.0.0.1:9/a.csv does not exist, or cannot be reached."
    )


def test_what_a_csv_is_likely_to_mean_is_said(tmp_path, caplog):
    for text, words in (
        ("a;b;c\n1,5;x;1\n2;y;2\n", "read as text (column 'a'); write them with a decimal point"),
        ('a,b\n"1,234","-2,5"\n12,NA\n', "read as text (column 'a', 'b');"),
        (
            "5.1,3.5\n4.9,3.0\n",
            "The first line holds only numbers (5.1, 3.5), and they are taken as the names",
        ),
        ("2019\n1\n", "holds only numbers (2019)"),
    ):
        caplog.clear()
        path = write(tmp_path / "a.csv", text)
        warn.cache_clear()
        assert len(table(path)) == text.count("\n") - 1
        assert [message.startswith(f"{path}: ") and words in message for message in caplog.messages] == [True]
    caplog.clear()
    warn.cache_clear()
    for text in ("a\n007\n012\n", 'a\n"1,5"\nx\n', "0,1\n1,2\n", ",0\n0,1\n", "a,2\n1,2\n", 'a\n"1,,5"\n'):
        table(write(tmp_path / "a.csv", text))
    assert not caplog.messages
