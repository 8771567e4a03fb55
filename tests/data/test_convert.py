"""Files of any format as Parquet: the same rows in the same order, written once, complete or not at all."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.convert import convert
from raysel.data.formats.csv import Csv
from raysel.data.listing import list_source
from raysel.data.row_index import index_parquet
from raysel.errors import DataError, RunError


def rows_of(converted):
    index = index_parquet(converted.listing)
    return pa.concat_tables([pq.read_table(file.path) for file in index.files])


def test_rows_keep_their_order_and_types(tmp_path):
    for name, at in (("b", 0), ("a", 1)):
        (tmp_path / f"d/{name}").mkdir(parents=True)
        (tmp_path / f"d/{name}/x.csv").write_text(f"n,zip\n{at},0{at}\n{at + 10},1{at}\n")
    source = list_source([tmp_path / "d"])
    first = convert(source, tmp_path / "out")
    assert first.written == 2 and len(first.listing.files) == 2 and first.bytes > 0
    assert rows_of(first).to_pydict() == {"n": [1, 11, 0, 10], "zip": ["01", "11", "00", "10"]}
    again = convert(source, tmp_path / "out")
    assert again.written == 0 and again.listing.paths == first.listing.paths
    (tmp_path / "d/b/x.csv").write_text("n,zip\n5,05\n")
    changed = convert(list_source([tmp_path / "d"]), tmp_path / "out")
    assert changed.written == 1 and rows_of(changed)["n"].to_pylist() == [1, 11, 5]
    assert sorted(str(path) for path in (tmp_path / "out").iterdir()) == sorted(changed.listing.paths)
    (tmp_path / "d/b/x.csv").write_text("n,zip,new\n5,05,x\n")  # another column of all files
    wider = convert(list_source([tmp_path / "d"]), tmp_path / "out")
    assert wider.written == 2 and rows_of(wider)["new"].to_pylist() == [None, None, "x"]
    assert wider.notes[0].startswith("Column 'new' is missing in 1 of 2 files")


def test_many_rows_become_row_groups(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(200_000))
    found = convert(list_source([tmp_path / "a.npy"]), tmp_path / "out")
    footer = pq.read_metadata(found.listing.paths[0])
    assert (
        footer.num_row_groups > 2
        and max(footer.row_group(at).num_rows for at in range(footer.num_row_groups)) <= 65_536
    )
    assert rows_of(found)["data"].to_pylist() == list(range(200_000))


def test_images_with_their_bytes(tmp_path):
    for name in ("dog/a.png", "cat/_b.jpg", "cat/c.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(name.encode())
    found = rows_of(convert(list_source([tmp_path / "d"]), tmp_path / "out"))
    names = ["cat/_b.jpg", "cat/c.jpg", "dog/a.png"]
    assert found.to_pydict() == {
        "path": names,
        "label": ["cat", "cat", "dog"],
        "image": [name.encode() for name in names],
    }


def converted(path, columns):
    table = pa.table(columns)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return convert(list_source([path]), path.with_suffix(".out"))


def test_values_that_parquet_holds_otherwise(tmp_path):
    categories = {
        "null": pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["x", None])),
        "view": pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None]), pa.array(["x", None], pa.string_view())
        ),
        "list": pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([[1], [2]])),
        "struct": pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([{"x": 1}, {"x": 2}])),
        "narrow": pa.array([[], None, []], pa.list_(pa.int32(), 0)),
        "nothing": pa.array([b"", None, b""], pa.binary(0)),
    }
    found = rows_of(converted(tmp_path / "a.arrow", categories))
    assert found.to_pylist() == pa.table(categories).to_pylist()
    assert found["null"].null_count == 2


def test_values_that_parquet_does_not_hold(tmp_path):
    interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    for column in (interval, pa.array([[interval[0]]]), pa.StructArray.from_arrays([interval], ["i"])):
        with pytest.raises(
            DataError, match=r"^Column 'a.*' of .*a\.arrow holds month_day_nano_interval, which"
        ):
            converted(tmp_path / "a.arrow", {"a": column})


def test_objects_without_names_are_left_out_and_said(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"a": {}, "b": {"c": {}, "d": 1}, "e": [{}], "f": [{"g": {}, "h": 2}]}\n{"b": {"d": 2}}\n'
    )
    found = convert(list_source([tmp_path / "a.jsonl"]), tmp_path / "out")
    assert rows_of(found).to_pylist() == [{"b": {"d": 1}, "f": [{"h": 2}]}, {"b": {"d": 2}, "f": None}]
    assert found.notes == tuple(
        f"Column '{name}' of {tmp_path}/a.jsonl is left out, because all of its values are empty objects."
        for name in ("a", "b.c", "e[]", "f[].g")
    )


def test_nothing_is_left_of_a_conversion_that_failed(tmp_path, monkeypatch):
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    with pytest.raises(DataError, match="Column 'a' holds values of several types"):
        converted(tmp_path / "a.arrow", {"a": union})
    assert not (tmp_path / "a.out").exists()
    (tmp_path / "b.csv").write_text("a\n" + "1\n" * 100)
    source = list_source([tmp_path / "b.csv"])

    def full(self, file, schema, encoding=None):
        yield pa.table({"a": [1]})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Csv, "tables", full)
    with pytest.raises((RunError, DataError), match="No space left on device"):
        convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_changes_while_it_is_converted_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "b.csv"
    path.write_text("a\n1\n")
    read = Csv.tables

    def tables(self, file, schema, encoding=None):
        yield from read(self, file, schema, encoding)
        path.write_text("a\n2\n3\n")

    monkeypatch.setattr(Csv, "tables", tables)
    with pytest.raises(DataError, match=r"b\.csv changed while it was converted"):
        convert(list_source([path]), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_trusted_is_not_read_for_its_digest(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": 1}))
    source = list_source([tmp_path / "a.jsonl"])
    monkeypatch.setattr("raysel.core.fingerprint.files._read", lambda path: pytest.fail("content was read"))
    assert convert(source, tmp_path / "out", "mtime").digests[0].startswith("mtime:")
