"""Vectors kept in a directory are used again only for the rows and the code that made them.

Where something changed, the vectors are made again or the directory is refused; the old ones are never returned.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.errors import RayselError, RunError

pytestmark = pytest.mark.usefixtures("cluster")


def one_vector(rows, embedder, directory, column="x"):
    """The first element of the first row's vector, or None where the directory is refused."""
    try:
        return raysel.embed(rows, embedder, column=column, directory=directory).to_pandas()["embedding"][0][0]
    except RunError:
        return None


@pytest.fixture
def rows():
    return raysel.read({"x": np.ones(4, np.float32)})


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, text)`` writes and imports a module of the user's own, which the workers do not have."""
    from ray import cloudpickle

    made = {}

    def make(name, text):
        folder = tmp_path / f"modules_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        monkeypatch.syspath_prepend(folder)
        made[name] = importlib.import_module(name)
        cloudpickle.register_pickle_by_value(made[name])
        return made[name]

    yield make
    for name, one in made.items():
        cloudpickle.unregister_pickle_by_value(one)
        sys.modules.pop(name, None)


CODE = """
import numpy as np
def vec(x): return np.asarray(x, np.float32) * FACTOR
helper = lambda x: vec(x)
class Emb:
    name = "emb"
    def __call__(self, x): return vec(x)
"""


def forms(mine, factor):
    class Local:
        name = "local"

        def __init__(self):
            self.factor = factor

        def __call__(self, x):
            return np.asarray(x, np.float32) * self.factor

    return {
        "imported": mine.vec,
        "lambda that calls it": lambda x: mine.helper(x),
        "partial": functools.partial(mine.vec),
        "class": mine.Emb(),
        "closure": lambda x: np.asarray(x, np.float32) * factor,
        "argument": functools.partial(lambda x, k: np.asarray(x, np.float32) * k, k=factor),
        "attribute": Local(),
    }


def test_a_changed_function_never_gives_the_old_vectors(rows, module, tmp_path):
    for factor in (1, 30):
        mine = module("raysel_case_mine", CODE.replace("FACTOR", str(factor)))
        found = {n: one_vector(rows, f, tmp_path / n) for n, f in forms(mine, factor).items()}
        assert all(value == 1 if factor == 1 else value in (30, None) for value in found.values()), found


def test_an_unchanged_function_finds_its_vectors(rows, module, tmp_path):
    for above in ("", "# a comment above\n"):
        mine = module("raysel_case_mine", above + CODE.replace("FACTOR", "7"))
        found = {n: one_vector(rows, f, tmp_path / n) for n, f in forms(mine, 7).items()}
        assert set(found.values()) == {7}, found
    written = {name: os.stat(tmp_path / name / "_done.json").st_mtime_ns for name in forms(mine, 7)}
    for name, function in forms(mine, 7).items():
        assert one_vector(rows, function, tmp_path / name) == 7
    assert written == {name: os.stat(tmp_path / name / "_done.json").st_mtime_ns for name in written}


NET = """import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 2)
        torch.nn.init.ones_(self.fc.weight), torch.nn.init.zeros_(self.fc.bias)
    def forward(self, x): return self.fc(x.float()) * FACTOR
def make(): return Net()
"""


@pytest.mark.slow  # processes of its own
def test_a_network_whose_forward_changed(tmp_path, monkeypatch):
    """Its weights did not; nor did the size and the time of the file."""
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path / "cache"))
    rows = raysel.read({"x": np.ones((8, 4), np.float32)})
    file = tmp_path / "net.py"
    for factor in ("1", "3"):
        file.write_text(NET.replace("FACTOR", factor))
        os.utime(file, (10**9, 10**9))
        for place in (tmp_path / "kept", None):
            found = one_vector(rows, f"torch:{file}:make", place)
            assert found == 4 * int(factor) or (place and factor == "3" and found is None)


def test_a_network_whose_neighbour_changed(tmp_path, monkeypatch):
    found = []
    for factor in ("1", "3"):
        folder = tmp_path / factor
        folder.mkdir()
        (folder / "raysel_case_near.py").write_text(f"def scale(x): return x * {factor}\n")
        monkeypatch.syspath_prepend(folder)
        sys.modules.pop("raysel_case_near", None)
        text = "from raysel_case_near import scale\n" + NET.replace(
            "self.fc(x.float()) * FACTOR", "scale(self.fc(x.float()))"
        )
        (tmp_path / "net.py").write_text(text)
        found.append(raysel.fit_embedder(f"torch:{tmp_path}/net.py:make").digest)
    sys.modules.pop("raysel_case_near", None)
    assert found[0] != found[1]


# ---- rows


def float_of(x):
    return np.asarray(x, np.float32)


LABELS = np.random.default_rng(0).integers(0, 2, 1000)


def swapped():
    """Two labels exchanged: the same counts, extremes and sizes, so the same footer."""
    other = LABELS.copy()
    i, j = 3, int(np.flatnonzero(other != other[3])[0])
    other[[i, j]] = other[[j, i]]
    return other


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("how", ["written", "time restored", "replaced"])
def test_a_parquet_file_with_other_rows_and_the_same_footer(tmp_path, how, index):
    file, other = tmp_path / "pool.parquet", tmp_path / "other.parquet"
    pq.write_table(pa.table({"y": LABELS}), file)
    pq.write_table(pa.table({"y": swapped()}), other)
    assert pq.read_metadata(file).to_dict() == pq.read_metadata(other).to_dict()
    assert file.stat().st_size == other.stat().st_size and file.read_bytes() != other.read_bytes()

    def agree():
        rows = raysel.read(file, index=tmp_path / "index.json" if index else None)
        table = raysel.embed(rows, float_of, column="y", directory=tmp_path / "v").to_pandas()
        return np.array_equal(table["y"], np.concatenate(table["embedding"].to_numpy()))

    assert agree()
    before = file.stat()
    if how == "replaced":
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, file)
    else:
        shutil.copyfile(other, file)
    if how == "time restored":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with contextlib.suppress(RayselError):  # refused: as good as embedded again
        assert agree()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_text_file_of_the_same_size_and_time_with_other_rows(tmp_path, kind):
    file = tmp_path / f"rows.{kind}"
    for step, values in enumerate(([1, 2, 3], [3, 2, 1])):  # the second may be refused, the first may not
        lines = ["y", *map(str, values)] if kind == "csv" else [json.dumps({"y": v}) for v in values]
        file.write_text("\n".join(lines) + "\n")
        os.utime(file, (10**9, 10**9))
        found = None
        try:
            found = raysel.embed(
                raysel.read(file), float_of, column="y", directory=tmp_path / "v"
            ).to_pandas()
        except RayselError:
            assert step == 1
        assert found is None or found["embedding"].map(lambda v: v[0]).tolist() == values


def test_the_same_rows_find_their_vectors_where_the_file_was_copied_or_touched(tmp_path):
    pq.write_table(pa.table({"y": LABELS}), tmp_path / "pool.parquet")
    directory = tmp_path / "v"

    def written():
        raysel.embed(
            raysel.read(tmp_path / "pool.parquet"), float_of, column="y", directory=directory
        ).materialize()
        return (directory / "_done.json").stat().st_mtime_ns

    first = written()
    os.utime(tmp_path / "pool.parquet")
    assert written() == first
    shutil.copyfile(tmp_path / "pool.parquet", tmp_path / "copy.parquet")
    os.replace(tmp_path / "copy.parquet", tmp_path / "pool.parquet")
    assert written() == first
