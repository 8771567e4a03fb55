"""A saved selection with any byte of any file changed, cut, swapped or missing is refused with the folder's name."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel import Selection
from raysel.core import storage
from raysel.errors import DataError


@pytest.fixture
def folder(tmp_path):
    dropped = pa.table({"sample_id": [1, 4], "reason": ["far", "far"]})
    ids, weight = np.array([0, 2, 3]), np.array([1.0, 2.0, 1.0])
    chosen = Selection.of(
        ids, weight=weight, reason="near", dropped=dropped, info={"method": "GIO", "pool_rows": 5}
    )
    chosen.save(tmp_path / "chosen")
    return tmp_path / "chosen"


def refused(folder) -> str | None:
    try:
        Selection.load(folder)
    except DataError as error:
        text = str(error)
        assert text.startswith(str(folder)) and text.endswith(".") and len(text.splitlines()) == 1
        return text
    return None


def damage(folder, trials: int) -> None:
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(files) == 4 and refused(folder) is None
    digest = Selection.load(folder).digest()
    rng = random.Random(0)
    for _ in range(trials):
        path = rng.choice(list(files))
        content = bytearray(files[path])
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        else:
            for _ in range(rng.choice((1, 1, 4, 64))):
                content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        if (
            content != files[path] and refused(folder) is None
        ):  # white space of JSON, or a byte written as it was
            assert path.suffix == ".json" and Selection.load(folder).digest() == digest
        path.write_bytes(files[path])
    assert refused(folder) is None


def test_a_damaged_selection_is_refused(folder):
    damage(folder, 400)


@pytest.mark.slow
def test_many_damaged_selections_are_refused(folder):
    damage(folder, 10_000)


ABOUT = {"format": 1, "info": {}, "pool": None}
TABLE = pa.table(
    {"sample_id": [0], "weight": pa.array([1.0], pa.float32()), "score": [0.0], "reason": ["near"]}
)  # fmt: skip


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"selection.json": ABOUT},
        {"selection.parquet": TABLE},
        {"selection.parquet": b"PAR1", "selection.json": ABOUT},
        {"selection.parquet": TABLE.drop_columns(["reason"]), "selection.json": ABOUT},
        {"selection.parquet": TABLE.slice(0, 0), "selection.json": ABOUT},
        {"selection.parquet": TABLE, "dropped.parquet": TABLE.select(["weight"]), "selection.json": ABOUT},
        *({"selection.parquet": TABLE, "selection.json": about} for about in (
            [], 3, None, "a", {}, {"format": 1}, {"format": "1"}, {"format": [1]}, {"format": 1, "info": {}},
            {**ABOUT, "info": None}, {**ABOUT, "info": []}, {**ABOUT, "pool": 3}, {**ABOUT, "pool": [1]},
            {**ABOUT, "pool": [["a"]]}, {**ABOUT, "pool": [["a", "b", "c"]]}, {**ABOUT, "pool": {"a": 1}},
        )),
    ],
)  # fmt: skip
def test_a_complete_folder_that_holds_no_selection_is_refused(files, tmp_path):
    with storage.new_folder(tmp_path / "f") as folder:
        for name, content in files.items():
            if isinstance(content, pa.Table):
                sink = pa.BufferOutputStream()
                pq.write_table(content, sink)
                content = sink.getvalue()
            folder.write(
                name, content if isinstance(content, (bytes, pa.Buffer)) else json.dumps(content).encode()
            )
    assert refused(tmp_path / "f") is not None


def test_files_of_two_selections_are_not_one(folder, tmp_path):
    Selection.of(np.array([0, 2, 4]), info={"pool_rows": 5}).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/selection.parquet", folder)
    assert "selection.parquet has been changed" in (refused(folder) or "") or "bytes" in (
        refused(folder) or ""
    )
    shutil.rmtree(folder)
    assert refused(folder) is not None
