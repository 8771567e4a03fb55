"""Reading: the same ids in every layout, every format, and a sentence for what cannot be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.cluster.blocks import gather
from raysel.data.row_index import ID
from raysel.data.sources import source_of
from raysel.data.vectors import to_column, to_numpy
from raysel.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("cluster")
ROWS = 100


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "value": np.arange(ROWS, dtype=np.int64) * 10,
            "name": [f"row {i}" for i in range(ROWS)],
            "v": to_column(rng.standard_normal((ROWS, 4), np.float32)),
        }
    )


def rows(dataset, *columns):
    return gather(dataset, [ID, *columns], "rows").sort_by(ID)


def test_small_row_groups_are_read_together(cluster, table, tmp_path, monkeypatch):
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)  # 50 row groups
    found = []
    read = cluster.data.read_datasource

    def counted(reader, **options):
        found.append(len(reader.get_read_tasks(options.get("override_num_blocks", 1))))
        return read(reader, **options)

    monkeypatch.setattr(cluster.data, "read_datasource", counted)
    whole = rows(raysel.read(tmp_path / "a.parquet"), "value")
    monkeypatch.setattr("raysel.data.datasource._TASK_BYTES", 1)
    assert rows(raysel.read(tmp_path / "a.parquet"), "value").equals(whole)
    assert whole["value"].equals(table["value"])
    together, alone = found
    assert (
        together == 8 and 40 < alone <= 50
    )  # four per CPU; about one per row group where each holds enough bytes


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("row_group", [1000, 9])
def test_ids_are_the_file_order_in_every_layout(table, tmp_path, parts, row_group):
    step = -(-ROWS // parts)
    for i in range(parts):
        pq.write_table(table.slice(i * step, step), tmp_path / f"{i}.parquet", row_group_size=row_group)
    got = rows(raysel.read(tmp_path), "value", "name")
    assert got[ID].to_pylist() == list(range(ROWS))
    assert got["value"].to_pylist() == table["value"].to_pylist()
    assert got["name"].to_pylist() == table["name"].to_pylist()


def test_an_index_keeps_ids_when_a_file_comes_later(table, tmp_path):
    data, index = tmp_path / "data", tmp_path / "index.json"
    data.mkdir()
    pq.write_table(table.slice(50), data / "b.parquet")
    raysel.read(data, index=index)
    pq.write_table(table.slice(0, 50), data / "a.parquet")
    got = rows(raysel.read(data, index=index), "value")
    assert got["value"].to_pylist() == table["value"].to_pylist()[50:] + table["value"].to_pylist()[:50]
    (data / "b.parquet").rename(data / "c.parquet")
    with pytest.raises(DataError, match=r"b\.parquet cannot be found, but the index has ids for its rows"):
        raysel.read(data, index=index)


def test_only_the_asked_columns_are_read(table, tmp_path):
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = raysel.read(tmp_path, columns=["value"])
    assert dataset.columns() == [ID, "value"]
    assert raysel.read(tmp_path, columns=["value"], label="name").columns() == [ID, "value", "name"]
    assert raysel.read(tmp_path).select_columns([ID]).take(1) == [{ID: 0}]


def test_a_label_keeps_its_name_beside_a_column_label():
    classes = pa.array(["p", "q", "p"]).dictionary_encode()
    source = pa.table({"y": [True, False, True], "label": [0.5, 1.5, 2.5], "class": classes, "n": [1, 2, 3]})
    for name in ("y", "class", "n"):
        got = rows(raysel.read(source, label=name, columns=["label"]), name, "label")
        assert got.column_names == [ID, name, "label"]
        assert got.drop_columns([ID]).to_pylist() == source.select([name, "label"]).to_pylist()


def test_stored_ids_are_kept_and_checked(table, tmp_path):
    ids = np.arange(ROWS)[::-1] + 5
    pq.write_table(table.append_column(ID, pa.array(ids)), tmp_path / "a.parquet")
    got = gather(raysel.read(tmp_path), [ID, "value"], "rows")
    assert dict(zip(got[ID].to_pylist(), got["value"].to_pylist(), strict=True)) == dict(
        zip(ids.tolist(), table["value"].to_pylist(), strict=True)
    )
    pq.write_table(table.append_column(ID, pa.array(ids // 2)), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="occur more than once"):
        raysel.read(tmp_path)


def test_every_format_gives_the_same_rows(table, tmp_path):
    plain = table.select(["value", "name"])
    pacsv.write_csv(plain, tmp_path / "t.csv")
    feather.write_feather(plain, str(tmp_path / "t.feather"))
    np.savez(tmp_path / "t.npz", value=plain["value"].to_numpy(), name=np.array(plain["name"].to_pylist()))
    np.save(tmp_path / "t.npy", plain["value"].to_numpy())
    sources = [
        tmp_path / "t.csv",
        tmp_path / "t.feather",
        tmp_path / "t.npz",
        plain,
        plain.to_pandas(),
        {"value": plain["value"].to_numpy(), "name": plain["name"].to_pylist()},
    ]
    for source in sources:
        got = rows(raysel.read(source), "value", "name")
        assert got[ID].to_pylist() == list(range(ROWS)), source
        assert got["value"].to_pylist() == plain["value"].to_pylist()
        assert got["name"].to_pylist() == plain["name"].to_pylist()
    assert rows(raysel.read(tmp_path / "t.npy"), "data")["data"].to_pylist() == plain["value"].to_pylist()


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_a_ray_dataset_is_numbered_in_its_order(cluster, table, blocks):
    step = -(-ROWS // blocks)
    dataset = cluster.data.from_arrow([table.slice(i * step, step) for i in range(blocks)])
    got = rows(raysel.read(dataset), "value")
    assert got[ID].to_pylist() == list(range(ROWS))
    assert got["value"].to_pylist() == table["value"].to_pylist()


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ({"a": [1, 2], "b": [1]}, {}, "columns have different lengths"),
        ({"a": []}, {}, "no rows"),
        (object(), {}, "Rows cannot be read from the type object"),
        ({"a": [1]}, {"trust": "always"}, "trust: 'always' is neither 'content' nor 'mtime'"),
        ({"a": [1]}, {"columns": "a"}, "columns: 'a' is not a list of names"),
        ({"a": [1]}, {"label": "b"}, "no label column 'b' in the table; the columns are a"),
        (
            {"a": [0.5]},
            {"label": "a"},
            "label column 'a' of the table holds double; a class must be an integer, a boolean or text",
        ),
        (
            pa.table({"a": [[1], [2]]}),
            {"label": "a"},
            r"label column 'a' of the table holds list<.*; a class must be",
        ),
        ({"a": [1]}, {"columns": ["b"]}, "no column 'b'"),
        ({"a": [1]}, {"index": "i.json"}, "but this source is not a Parquet file"),
        ({ID: [1, 1]}, {}, "more than once"),
        ({ID: [0.5]}, {}, "holds double; every row needs an integer"),
        (pd.DataFrame({"a": []}), {}, "no rows"),
    ],
)
def test_what_cannot_be_read(source, options, sentence):
    with pytest.raises((DataError, ConfigError), match=sentence):
        raysel.read(source, **options)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        raysel.read(tmp_path / "no.parquet")
    (tmp_path / "x.npy").write_bytes(b"no")
    with pytest.raises(DataError, match=r"x\.npy is not a NumPy file"):
        raysel.read(tmp_path / "x.npy")
    (tmp_path / "x.strange").write_bytes(b"no")
    with pytest.raises(DataError, match=r"The format of .* is recognised neither"):
        raysel.read(tmp_path / "x.strange")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        raysel.read(tmp_path / "empty")


def test_json_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": "x"}\n{"a": 2, "b": null}\n')
    got = rows(raysel.read(tmp_path / "t.jsonl"), "a", "b")
    assert got["a"].to_pylist() == [1, 2] and got["b"].to_pylist() == ["x", None]
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(
        DataError, match=r"Column 'a' of .*t\.jsonl holds an integer in line 1 and text in line 2"
    ):
        raysel.read(tmp_path / "t.jsonl")


def test_a_map_style_torch_dataset():
    import torch

    pixels = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    dataset = torch.utils.data.TensorDataset(pixels, torch.arange(6) % 2)
    got = rows(raysel.read(dataset, label="target"), "data", "target")
    assert got["target"].to_pylist() == [0, 1, 0, 1, 0, 1]
    assert to_numpy(got["data"], "data").shape == (6, 1, 2, 2)

    class Ragged(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"x": torch.zeros(index + 1, 2)}

    with pytest.raises(
        DataError, match=r"Column 'x' holds a value of type ndarray of shape \(1, 2\) in row 0"
    ):
        raysel.read(Ragged())


def test_blocks_of_a_ray_dataset_get_one_type_per_column(cluster):
    blocks = [
        pa.table({"x": pa.array([1, None], pa.int32()), "t": pa.array(["a", "b"], pa.large_string())}),
        pa.table({"x": pa.nulls(1), "t": ["c"], "new": [2**60 + 1]}),
        pa.table({"t": pa.array(["d"]).dictionary_encode(), "x": pa.array([2**60 + 1])}),
    ]
    dataset = raysel.read(cluster.data.from_arrow(blocks), label="t")
    got = rows(dataset, "x", "t", "new")
    assert got["x"].to_pylist() == [1, None, None, 2**60 + 1]
    assert got["t"].to_pylist() == ["a", "b", "c", "d"] and got["new"].to_pylist() == [
        None,
        None,
        2**60 + 1,
        None,
    ]
    kinds = {tuple(map(str, table.schema.types)) for table in cluster.get(dataset.to_arrow_refs())}
    assert len(kinds) == 1
    assert raysel.read(dataset).count() == 4  # its ids are kept
    for bad, sentence in (
        (
            [{"x": [1]}, {"x": ["a"]}],
            "Column 'x' of the Ray Dataset holds int64 in some blocks and string in others",
        ),
        ([{"x": [0.5]}, {"x": [2**60 + 1]}], "cannot represent all values exactly"),
        ([{ID: [0.5]}], "Column 'sample_id' of the Ray Dataset holds double; every row needs an integer"),
        ([{ID: [0, None]}], "of the Ray Dataset holds int64 with 1 null values; every row needs an integer"),
        ([{ID: pa.array([2**64 - 1], pa.uint64())}], "of the Ray Dataset holds integers above"),
        ([{ID: [3]}, {ID: [3]}], "occur more than once"),
    ):
        with pytest.raises(DataError, match=sentence):
            raysel.read(cluster.data.from_arrow([pa.table(block) for block in bad]))


def test_images_that_ray_read_are_embedded_in_any_blocks(cluster, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for name, size in (("a", (8, 6)), ("b", (9, 9)), ("c", (5, 5)), ("d", (7, 5))):
        Image.new("RGB", size).save(tmp_path / f"images/{name}.png")

    def heights(images):
        return np.array([[len(image)] for image in images], np.float32)

    from raysel.data.embedders.embedder import FunctionEmbedder

    embedder = FunctionEmbedder("heights", heights, "images")
    images = (
        cluster.data.read_images(str(tmp_path / "images"), mode="RGB", include_paths=True)
        .sort("path")
        .materialize()
    )
    digests = []
    for blocks in (images, images.repartition(1), images.repartition(4)):
        pool = raysel.read(blocks)
        digests.append(source_of(pool, ["image"]).digest)
        for options in ({}, {"directory": tmp_path / f"v{len(digests)}"}):
            made = rows(raysel.embed(pool, embedder, column="image", **options), "embedding")
            assert to_numpy(made["embedding"], "v")[:, 0].tolist() == [6, 9, 5, 5]
    assert len(set(digests)) == 1
    with pytest.raises(DataError, match=r"rows of different shapes|vectors of different lengths"):
        raysel.embed(pool, "column", column="image", directory=tmp_path / "w")


def test_views_in_parquet_go_through_every_step(tmp_path):
    table = pa.table(
        {
            "x": np.arange(4.0),
            "s": pa.array(["a", "b", None, "d"], pa.string_view()),
            "b": pa.array([b"a"] * 4, pa.binary_view()),
            "l": pa.array([["a"], None, ["b", None], []], pa.list_(pa.string_view())),
        }
    )
    pq.write_table(table, tmp_path / "v.parquet")
    pool = raysel.read(tmp_path / "v.parquet")
    assert [row["s"] for row in pool.take_all()] == ["a", "b", None, "d"]
    vectors = raysel.embed(pool, "column", column="x", directory=tmp_path / "d")
    assert gather(vectors, ["l"], "rows")["l"].to_pylist() == table["l"].to_pylist()
    chosen = raysel.Random(2, stratify="s").select(pool)
    assert len(chosen.apply(pool).take_all()) == 2
    dropped = raysel.embed(pool, "hash:8", column="s", on_error="drop", directory=tmp_path / "e")
    assert dropped.count() == 3
    assert len(raysel.GIO(budget="1KB", clusters=2).select(vectors, vectors)) == 4


def test_a_hugging_face_dataset():
    datasets = pytest.importorskip("datasets", reason="needs the extra raysel[datasets]")
    source = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "class": [1, 0, 1]})
    chosen = source.select([2, 0])
    got = rows(raysel.read(chosen, label="class"), "text", "class")
    assert got[ID].to_pylist() == [0, 1]
    assert got["text"].to_pylist() == ["c", "a"] and got["class"].to_pylist() == [1, 1]
    with pytest.raises(DataError, match="choose a split"):
        raysel.read(datasets.DatasetDict({"train": source}))


def spoiled(path, **options):
    """A file whose footer is whole and one of whose pages is not."""
    pq.write_table(pa.table({"x": np.arange(50_000) % 1000 / 8}), path, **options)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3 : len(raw) // 3 + 40] = bytes(40)
    path.write_bytes(raw)
    return path


def test_a_damaged_page_is_said_wherever_the_rows_are_read(tmp_path):
    for name, options in (
        ("zstd", {"compression": "zstd", "use_dictionary": False}),
        ("sums", {"compression": "none", "use_dictionary": False, "write_page_checksum": True}),
    ):
        path = spoiled(tmp_path / f"{name}.parquet", **options)
        dataset = raysel.read(path)
        for read in (
            lambda dataset=dataset: dataset.to_pandas(),
            lambda dataset=dataset: raysel.fit_embedder("table", dataset, column="x"),
            lambda dataset=dataset, name=name: raysel.embed(
                dataset, "column", column="x", directory=tmp_path / f"v-{name}"
            ),
        ):
            with pytest.raises(DataError, match=rf"Row group 0 of {path} cannot be read"):
                read()


def test_files_that_differ_have_one_type_in_every_batch(tmp_path):
    for name, part in (
        ("city=b/0", pa.table({"x": pa.array([1, 2], pa.int32()), "text": ["a", "b"]})),
        ("city=a/1", pa.table({"more": [0.5], "text": pa.array(["c"], pa.large_string()), "x": [2**40]})),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=1)
    dataset = raysel.read(tmp_path, label="city")
    expected = [(0, 2**40, "c", 0.5, "a"), (1, 1, "a", None, "b"), (2, 2, "b", None, "b")]
    for columns in ([ID, "x", "text", "more", "city"], [ID, "more"], [ID, "city"]):
        narrow = dataset.select_columns(columns)
        for _ in range(2):
            batches = list(narrow.iter_batches(batch_size=None, batch_format="pyarrow"))
            assert len({str(batch.schema) for batch in batches}) == 1
            found = pa.concat_tables(batches).sort_by(ID).to_pylist()
            names = [ID, "x", "text", "more", "city"]
            assert found == [{n: row[names.index(n)] for n in columns} for row in expected]


def test_what_was_taken_and_left_out_is_logged_once(tmp_path, caplog):
    from raysel.data import listing

    listing.warn.cache_clear()
    (tmp_path / "notes.txt").write_text("")
    for at in range(2):
        (tmp_path / f"{at}.csv").write_text("a,b\n1,2\n" if at else "a\n0\n")
    with caplog.at_level("INFO", logger="raysel"):
        for _ in range(2):
            got = rows(raysel.read(tmp_path, label="a"), "a", "b")
    assert got.to_pylist() == [{ID: 0, "a": 0, "b": None}, {ID: 1, "a": 1, "b": 2}]
    said = [record.getMessage() for record in caplog.records]
    assert said.count(f"2 rows in 2 CSV files of {tmp_path}.") == 2
    assert [line for line in said if "notes.txt" in line] == [
        f"{tmp_path}: 1 file is not read, because the directory is read as CSV (notes.txt)."
    ]
    assert len([line for line in said if "Column 'b' is missing in 1 of 2 files" in line]) == 1
    (tmp_path / "latin.csv").write_bytes("a\ncafé\n".encode("latin-1"))
    assert rows(raysel.read(tmp_path / "latin.csv", encoding="latin-1"), "a")["a"].to_pylist() == ["café"]
    with pytest.raises(
        DataError, match=r"encoding: This source is in memory, .*leave out the argument encoding"
    ):
        raysel.read({"a": [1]}, encoding="latin-1")
