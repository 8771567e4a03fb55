"""Files of vectors that were damaged on disk: what was written, or an error that names the file; without Ray."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data import pipeline, shards
from raysel.data.content import _digest
from raysel.data.decode import Rows, join
from raysel.data.embedders.column import ColumnEmbedder
from raysel.data.embedders.embedder import FunctionEmbedder
from raysel.data.store import ColumnStore
from raysel.errors import DataError
from tests.data import arrays


@pytest.fixture
def folder(tmp_path):
    folder = shards.VectorFolder(str(tmp_path))
    work = shards.Work(ColumnEmbedder(), ("x",), str(tmp_path), shards.Options(on_error="drop"), 16_384)
    shards.embed(
        Rows(np.arange(50), np.arange(150, dtype=np.float32).reshape(50, 3), {60: "gone"}),
        ColumnEmbedder(),
        work,
    )
    folder.write("_key.json", b"{}")
    return folder


def damaged(data: bytes, count: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bad = bytearray(data)
        at = int(rng.integers(len(bad)))
        match int(rng.integers(3)):
            case 0:
                bad[at] ^= 1 << int(rng.integers(8))
            case 1:
                bad = bad[:at]
            case _:
                bad[at : at + 4] = rng.bytes(4)
        yield bytes(bad)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_part_is_named(folder, tmp_path, count):
    path = tmp_path / shards.part_name(0)
    good = path.read_bytes()
    known = (
        shards.check_parts(str(tmp_path), [0]),
        pipeline._part(str(tmp_path), 0, pipeline._stamp(folder)),
    )
    assert known[0] == [(50, 1225, 3, 0, [[60, "gone"]])]
    refused = 0
    for data in damaged(good, count, 0):
        path.write_bytes(data)
        pipeline._part.cache_clear()
        for read in (
            lambda: shards.check_parts(str(tmp_path), [0]),
            lambda: pipeline._part(str(tmp_path), 0, pipeline._stamp(folder)),
        ):
            try:
                read()
            except DataError as error:
                assert str(error).startswith(
                    f"{path} is damaged ("
                ) and "remove the directory and compute" in str(error)
                refused += 1
    assert refused > count  # of twice as many reads
    pipeline._part.cache_clear()


def test_vectors_with_another_value_are_noticed(folder, tmp_path):
    path = tmp_path / shards.part_name(0)
    data = path.read_bytes()
    at = data.index(np.float32(100).tobytes())
    path.write_bytes(data[:at] + np.float32(101).tobytes() + data[at + 4 :])
    pipeline._part.cache_clear()
    with pytest.raises(DataError, match=r"part-0+\.parquet is damaged"):
        pipeline._part(str(tmp_path), 0, pipeline._stamp(folder))


def test_a_damaged_report_or_array_is_named(folder, tmp_path):
    folder.write("_done.json", json.dumps({"report": {"rows": 1}}).encode())
    with pytest.raises(DataError, match=r"_done\.json is damaged"), shards.intact(folder.file("_done.json")):
        pipeline.Report(**folder.read("_done.json")["report"])
    files = arrays.write(tmp_path)
    assert len(ColumnStore(tmp_path)) == 3
    for name in files:
        content = (tmp_path / name).read_bytes()
        for damaged in (b"", content[:-5], b"{}"):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match=r"The arrays in .* are damaged"):
                ColumnStore(tmp_path)
        (tmp_path / name).write_bytes(content)


# ---- rows of several tables ------------------------------------------------------------------------------------------


def test_rows_of_several_tables_are_in_the_order_of_their_ids():
    ids = [np.array([4, 1]), np.array([3]), np.array([], np.int64)]
    matrix = join(
        [Rows(i, np.stack([i, i], 1), {int(i[0]) + 10: "bad"} if len(i) else {}) for i in ids[:2]], ["x"]
    )
    assert matrix.ids.tolist() == [1, 3, 4] and matrix.rows.tolist() == [[1, 1], [3, 3], [4, 4]]
    assert matrix.rejected == {14: "bad", 13: "bad"}
    assert join([Rows(i, [f"t{n}" for n in i], {}) for i in ids], ["x"]).rows == ["t1", "t3", "t4"]
    tables = join([Rows(i, pa.table({"x": i}), {}) for i in ids], ["x"])
    assert tables.rows["x"].to_pylist() == [1, 3, 4]
    with pytest.raises(DataError, match="Column 'x' holds rows of different shapes: 2, 3"):
        join([Rows(ids[0], np.ones((2, 2)), {}), Rows(ids[1], np.ones((1, 3)), {})], ["x"])


def test_rows_too_large_for_one_chunk_are_digested_in_halves(monkeypatch):
    from raysel.data import content

    real, sizes = content._digest_together, []

    def limited(table):
        sizes.append(len(table))
        if len(table) > 3:
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return real(table)

    table = pa.table({"x": [[f"{i}"] for i in range(8)]})
    monkeypatch.setattr(content, "_digest_together", limited)
    assert _digest(table) == b"".join(real(table.slice(at, 2)) for at in (0, 2, 4, 6))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_a_shard_of_decoded_images_fits_into_memory():
    function, tiled = FunctionEmbedder("f", len), TiledEmbedder("t")
    assert shards.shard_rows(function, pa.float32()) == shards.shard_rows(function, pa.string()) == 16_384
    assert shards.shard_rows(function, pa.binary()) == 256
    assert shards.shard_rows(FunctionEmbedder("f", len, "images"), pa.string()) == 256
    assert shards.shard_rows(tiled, pa.binary()) == 512


class TiledEmbedder(FunctionEmbedder):
    tile = 64

    def __init__(self, name):
        super().__init__(name, len)


@pytest.mark.parametrize("column", ["sample_id", "embedding"])
def test_a_part_whose_footer_names_other_types_is_damaged(folder, tmp_path, column):
    path = tmp_path / shards.part_name(0)
    table = pq.read_table(path)
    kept = table.schema.metadata
    other = pa.array(range(len(table)), pa.duration("us"))
    table = table.set_column(table.column_names.index(column), column, other).replace_schema_metadata(kept)
    pq.write_table(table, path)
    pipeline._part.cache_clear()
    for read in (
        lambda: shards.check_parts(str(tmp_path), [0]),
        lambda: pipeline._part(str(tmp_path), 0, pipeline._stamp(folder)),
    ):
        with pytest.raises(
            DataError, match=r"part-0+\.parquet is damaged \(A file of vectors must have the columns"
        ):
            read()
    pipeline._part.cache_clear()
