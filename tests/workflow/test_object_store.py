"""What is not a run: vectors, exports, and a measurement of files that are not Parquet, all on an object store."""

from __future__ import annotations

import os

import numpy as np
import pytest
import yaml

import raysel
from raysel.core import storage
from raysel.workflow.directory import Progress
from raysel.workflow.measure import measure


@pytest.mark.slow  # half a minute of requests
def test_vectors_exports_and_measurements_on_an_object_store(cluster, s3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part in range(2):
        lines = [f"{i},{i % 7},{'ab'[i % 2]}" for i in range(part * 50, part * 50 + 50)]
        storage.write_text(f"{s3}/data/{part}.csv", "\n".join(["id,x,kind", *lines]) + "\n")
    rows = raysel.read(f"{s3}/data", label="kind")
    vectors = raysel.embed(
        rows, lambda matrix: np.repeat(matrix, 2, 1), column="x", directory=f"{s3}/vectors", on_error="null"
    )
    stored = raysel.read(f"{s3}/vectors")  # a folder of vectors is read like any other
    assert [row["embedding"].tolist() for row in stored.sort("sample_id").take(3)] == [[0, 0], [1, 1], [2, 2]]
    assert vectors.count() == 100 and storage.exists(f"{s3}/vectors/_done.json")
    chosen = raysel.Random(budget=0.2).select(rows)
    for format, suffix in (("parquet", "parquet"), ("jsonl", "jsonl")):
        chosen.export(rows, f"{s3}/{format}", format)
        assert raysel.read(f"{s3}/{format}/data-00000.{suffix}").count() == 20
        assert storage.Folder(f"{s3}/{format}").fault() is None

    (tmp_path / "m.py").write_text("")
    flow = tmp_path / "flow.yaml"
    flow.write_text(
        yaml.safe_dump(
            {
                "name": "m",
                "pool": {"path": f"{s3}/data", "label": "kind"},
                "gime": {"binding": {"content": ["id", "x"]}, "by": "kind"},
                "train": {"model": "m.py:f", "input": "x"},
            }
        )
    )
    first = measure(flow, f"{s3}/measured", progress=Progress())
    assert first.path == f"{s3}/measured" and set(first.groups) == {"a", "b"}
    assert "metrics.html" in storage.entries(f"{s3}/measured")
    storage.write_text(f"{s3}/data/2.csv", "id,x,kind\n100,1,c\n")
    capsys.readouterr()
    second = measure(flow, f"{s3}/measured")
    assert set(second.groups) == {"a", "b", "c"} and "1 files read, 2 reused" in capsys.readouterr().err
    assert set(os.listdir(tmp_path)) == {"flow.yaml", "m.py"}
