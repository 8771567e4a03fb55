"""Exported rows are those of the selection, in every format, and the card says what they are."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel import export as module
from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError, RunError


def test_formats_and_card(cluster, tmp_path, monkeypatch):
    table = pa.table(
        {
            "image": [bytes([i]) if i % 5 else None for i in range(40)],
            "v": to_column(np.arange(80.0).reshape(40, 2)),
            "text": [f"ä{i}" for i in range(40)],
        }
    )
    pq.write_table(table, tmp_path / "pool.parquet", row_group_size=7)
    pool = raysel.read(tmp_path / "pool.parquet")
    half = raysel.Random(0.5, seed=3).select(pool)
    chosen = raysel.Random(11).select(half.rows(pool)).after(half)
    wanted = [
        {**table.slice(i, 1).to_pylist()[0], "sample_id": i, "weight": 1.0} for i in chosen.ids.tolist()
    ]
    monkeypatch.setattr(module, "_FILE_BYTES", 100)  # several files

    chosen.export(pool, tmp_path / "parquet")
    files = sorted((tmp_path / "parquet").glob("data-*.parquet"))
    back = pa.concat_tables([pq.read_table(file) for file in files])
    assert len(files) > 1 and back.select([*table.column_names, "sample_id", "weight"]).to_pylist() == wanted
    card = (tmp_path / "parquet/README.md").read_text()
    assert "11 rows in" in card and "1. random: budget = 0.5" in card and "2. random: budget = 11" in card
    assert "pool.parquet | 40 | xxh3:" in card and "| random, seed 0 | 11 |" in card
    with pytest.raises(RunError, match="exists already"):
        chosen.export(pool, tmp_path / "parquet")

    chosen.export(pool.select_columns(["sample_id", "v", "text"]), tmp_path / "lines", "jsonl")
    lines = [
        line
        for file in sorted((tmp_path / "lines").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert [json.loads(line) for line in lines] == [
        {k: v for k, v in row.items() if k != "image"} | {"v": list(row["v"])} for row in wanted
    ]
    with pytest.raises(DataError, match="Column 'image' holds binary"):
        chosen.export(pool, tmp_path / "none", "jsonl")
    assert not (tmp_path / "none").exists()

    chosen.export(pool, tmp_path / "tar", "webdataset")
    members = {}
    for file in sorted((tmp_path / "tar").glob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as tar:
            members |= {one.name: tar.extractfile(one).read() for one in tar}
    for row in wanted:
        key = f"{row['sample_id']:012d}"
        assert members.get(f"{key}.image") == row["image"]
        assert json.loads(members[f"{key}.json"])["text"] == row["text"]
    chosen.export(pool.select_columns(["sample_id", "v"]), tmp_path / "viewer", dropped=True)
    files = sorted((tmp_path / "viewer").glob("data-*.parquet"))
    back = pa.concat_tables([pq.read_table(file) for file in files])
    reasons = {row["sample_id"]: row["reason"] for row in chosen.dropped.to_pylist()}
    assert set(reasons.values()) == {"left out by random"}  # the first selection lists no dropped rows
    scores = dict(zip(chosen.ids.tolist(), chosen.table["score"].to_pylist(), strict=True))
    assert back.to_pylist() == [
        {
            "sample_id": i,
            "v": [2.0 * i, 2.0 * i + 1],
            "status": "selected" if i in scores else "dropped",
            "score": scores.get(i),
            "reason": "random, seed 0" if i in scores else reasons.get(i),
        }
        for i in range(40)
    ]
    assert "11 of the 40 rows in" in (tmp_path / "viewer/README.md").read_text()
    listed = raysel.Selection.of(np.array([1]), reason="mine", score=2.5)  # the others are not listed
    listed.export(pool.select_columns(["sample_id"]), tmp_path / "listed", "jsonl", dropped=True)
    lines = (tmp_path / "listed/data-00000.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"sample_id": 1, "status": "selected", "score": 2.5, "reason": "mine"}
    assert json.loads(lines[2]) == {"sample_id": 2, "status": "dropped", "score": None, "reason": None}
    with pytest.raises(DataError, match="already has a column 'score'"):
        listed.export(pool.rename_columns({"v": "score"}), tmp_path / "none", dropped=True)
    with pytest.raises(ConfigError, match="format: 'csv'"):
        chosen.export(pool, tmp_path / "csv", "csv")
    with pytest.raises(DataError):
        chosen.export(raysel.read(table.slice(0, 5)), tmp_path / "other")
    with pytest.raises(ConfigError, match="The dataset must be a Ray Dataset, not"):
        chosen.export(table, tmp_path / "other")


def test_a_weight_of_the_data_is_kept_and_never_overwritten(cluster, tmp_path):
    pool = raysel.read({"weight": np.arange(6.0)})
    chosen = raysel.Selection.of(np.array([1, 4]), pool=pool)
    for name, rows in (
        ("known", pool),
        ("lazy", pool.map_batches(lambda table: table, batch_format="pyarrow")),
    ):
        chosen.export(rows, tmp_path / name)
        assert pq.read_table(tmp_path / name / "data-00000.parquet")["weight"].to_pylist() == [1.0, 4.0]
        assert "`weight` is one of the data" in (tmp_path / name / "README.md").read_text()
    weighted = raysel.Selection.of(np.array([1, 4]), weight=np.array([2.0, 1.0]), pool=pool)
    with pytest.raises(
        DataError, match=r"apply and export write .*dataset.rename_columns\(\{'weight': 'old_weight'\}\)"
    ):
        weighted.export(pool, tmp_path / "weighted")
    weighted.export(pool.rename_columns({"weight": "old_weight"}), tmp_path / "weighted")
    back = pq.read_table(tmp_path / "weighted/data-00000.parquet")
    assert back["weight"].to_pylist() == [2.0, 1.0] and back["old_weight"].to_pylist() == [1.0, 4.0]
