"""Damaged files: whatever a library raises for them, the reader says which file it is, in one line."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.core.storage import resolve
from raysel.data.formats.images import list_images
from raysel.data.listing import list_source
from raysel.data.row_index import ID, RowIndex, index_parquet
from raysel.data.shards import VectorFolder, check_parts, part_name
from raysel.data.vectors import EMBEDDING, to_column
from raysel.errors import DataError
from tests.data.test_formats import saved_dataset, table, tar, write

ROWS = pa.table(
    {
        "id": np.arange(40),
        "x": np.linspace(0, 1, 40),
        "text": [f"text {i} é" for i in range(40)],
        "kind": pa.array([f"k{i % 3}" for i in range(40)]).dictionary_encode(),
        "list": [[i, None] if i % 2 else None for i in range(40)],
        "struct": [{"a": i, "b": str(i)} for i in range(40)],
        "bytes": [bytes([i]) * i for i in range(40)],
    }
)
PLAIN = [{"id": i, "x": i / 7, "text": f"té {i}", "list": [i, None]} for i in range(40)]


def stored(make):
    sink = io.BytesIO()
    make(sink)
    return sink.getvalue()


def ipc(open_writer):
    def make(sink):
        with open_writer(sink, ROWS.schema) as writer:
            writer.write_table(ROWS, max_chunksize=15)

    return stored(make)


def files(folder):
    """Intact files by name, with the function that reads each."""
    found = {
        "plain.parquet": stored(lambda s: pq.write_table(ROWS, s, compression="none", row_group_size=15)),
        "zstd.parquet": stored(lambda s: pq.write_table(ROWS, s, compression="zstd", use_dictionary=False)),
        "v2.parquet": stored(
            lambda s: pq.write_table(ROWS, s, data_page_version="2.0", compression="snappy")
        ),
        "sums.parquet": stored(lambda s: pq.write_table(ROWS, s, write_page_checksum=True)),
        "a.csv": "id,x,text\n" + "".join(f'{r["id"]},{r["x"]},"{r["text"]}\n"\n' for r in PLAIN),
        "a.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in PLAIN),
        "a.json": json.dumps(PLAIN),
        "file.arrow": ipc(pa.ipc.new_file),
        "stream.arrow": ipc(pa.ipc.new_stream),
        "a.npy": stored(lambda s: np.save(s, np.arange(40.0).reshape(20, 2))),
        "t.npy": stored(lambda s: np.save(s, np.array(["a", "bcd"] * 9))),
        "a.npz": stored(lambda s: np.savez_compressed(s, a=np.arange(40), b=np.arange(40.0))),
    }
    made = {name: (write(folder / name, content), table) for name, content in found.items()}
    made["a.tar"] = (
        tar(folder / "a.tar", [(f"{i}.{e}", b"1") for i in range(9) for e in ("cls", "txt", "png")]),
        table,
    )
    saved = saved_dataset(folder / "saved")
    made["state.json"] = (saved / "state.json", lambda path: table(path.parent))
    write(folder / "photos/a.jpg", "x")
    labels = write(folder / "photos/labels.csv", "path,label\na.jpg,1\n")
    made["labels.csv"] = (labels, lambda path: list_images(*resolve(path.parent)))
    VectorFolder(str(folder)).write_part(
        0, pa.table({ID: range(20), EMBEDDING: to_column(np.ones((20, 4), np.float32))}), {}
    )
    made["vectors"] = (folder / part_name(0), lambda path: check_parts(str(path.parent), [0]))
    index_parquet(list_source([made["plain.parquet"][0]])).save(folder / "index.json")
    made["index.json"] = (folder / "index.json", RowIndex.load)
    return made


def damaged(raw, rng):
    """The bytes with one to three changes: cut off, flipped, overwritten, left out, doubled."""
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(0, max(len(raw), 1))), int(rng.geometric(0.1))
        change = rng.integers(0, 6)
        if change == 0:
            raw = raw[:at]
        elif change == 1 and raw:
            raw[at] ^= 1 << int(rng.integers(0, 8))
        elif change == 2:
            raw[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        elif change == 3:
            raw[at : at + length] = rng.choice([b"\0", b"\xff", b'"', b"\n"]) * length
        elif change == 4:
            del raw[at : at + length]
        else:
            raw[at:at] = raw[at : at + length]
    return bytes(raw)


def read_damaged(folder, rounds, seed):
    """Read damaged copies of every file several times; return how many were refused and read, of how many."""
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "read": 0}
    intact = {name: (path, path.read_bytes(), read) for name, (path, read) in files(folder).items()}
    for _ in range(rounds):
        for name, (path, raw, read) in intact.items():
            path.write_bytes(damaged(raw, rng))
            try:
                found = read(path)
                if isinstance(found, pa.Table):
                    with contextlib.suppress(OverflowError):  # Arrow's dates reach farther than Python's
                        found.to_pylist()
                counts["read"] += 1
            except DataError as error:
                assert "\n" not in str(error) and str(error).endswith("."), (name, str(error))
                assert str(folder) in str(error) or "encoding" in str(error), (name, str(error))
                counts["refused"] += 1
            finally:
                path.write_bytes(raw)
    return counts["refused"], counts["read"], rounds * len(intact)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    refused, read, copies = read_damaged(tmp_path, 25, seed=0)
    assert refused + read == copies and 0.88 * copies < refused < 0.96 * copies


@pytest.mark.slow
def test_many_damaged_files_are_refused_in_one_line(tmp_path):
    refused, read, copies = read_damaged(tmp_path, 600, seed=1)
    assert refused + read == copies and 0.88 * copies < refused < 0.96 * copies
