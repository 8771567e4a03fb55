"""A Selection is applied to the pool that it was made from, also when files were added later, and to no other."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.errors import RayselError

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def pool(tmp_path):
    """A folder, and ``write(name, first value, rows)`` for the files in it."""
    folder = tmp_path / "pool"
    folder.mkdir()

    def write(name, start, rows, group=64):
        values = np.arange(start, start + rows)
        vectors = np.stack([values % 7, values % 5], axis=1).astype(np.float32)
        table = pa.table({"x": values, "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 2)})
        pq.write_table(
            table, folder / f"{name}.parquet", row_group_size=group, compression="none", use_dictionary=False
        )

    write("m", 0, 240)
    return folder, write


def values(chosen, rows):
    return sorted(chosen.apply(rows).to_pandas()["x"])


def refused(chosen, rows):
    try:
        values(chosen, rows)
    except RayselError as error:
        return str(error)
    return None


def test_the_same_files_read_again(pool, tmp_path):
    folder, _ = pool
    chosen = raysel.Random(0.2).select(raysel.read(folder))
    wanted = values(chosen, raysel.read(folder))
    assert len(wanted) == 48
    chosen.save(tmp_path / "chosen")
    assert values(raysel.Selection.load(tmp_path / "chosen"), raysel.read(folder)) == wanted
    assert values(chosen, raysel.read(folder, columns=["x"])) == wanted
    shutil.copytree(folder, tmp_path / "copy")
    assert values(chosen, raysel.read(tmp_path / "copy")) == wanted


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_added_before_is_refused_and_named(pool, tmp_path, kept):
    folder, write = pool
    chosen = raysel.Random(0.2).select(raysel.read(folder))
    if kept:
        chosen.save(tmp_path / "chosen")
        chosen = raysel.Selection.load(tmp_path / "chosen")
    write("a", 5000, 37)
    assert "a.parquet" in (refused(chosen, raysel.read(folder)) or "")


def test_a_file_added_behind_keeps_the_rows(pool):
    folder, write = pool
    chosen = raysel.Random(0.2).select(raysel.read(folder))
    wanted = values(chosen, raysel.read(folder))
    write("z", 5000, 37)
    assert values(chosen, raysel.read(folder)) == wanted


def test_a_file_added_to_an_index_keeps_the_rows(pool, tmp_path):
    folder, write = pool
    index = tmp_path / "index.json"
    chosen = raysel.Random(0.2).select(raysel.read(folder, index=index))
    wanted = values(chosen, raysel.read(folder, index=index))
    write("a", 5000, 37)
    assert values(chosen, raysel.read(folder, index=index)) == wanted
    assert refused(chosen, raysel.read(folder))


@pytest.mark.parametrize("change", ["fewer", "other rows", "swapped", "renamed and joined", "removed"])
def test_other_rows_are_refused(pool, change):
    folder, write = pool
    write("n", 1000, 60)
    chosen = raysel.Random(0.2).select(raysel.read(folder))
    if change == "fewer":
        write("m", 0, 200)
    elif change == "other rows":
        write("m", 7000, 240)
    elif change == "swapped":  # the files' order
        os.rename(folder / "m.parquet", folder / "o.parquet")
    elif change == "renamed and joined":
        write("m", 0, 239)
        write("mm", 239, 1)
    else:
        (folder / "m.parquet").unlink()
    assert refused(chosen, raysel.read(folder))


def test_two_labels_exchanged_are_refused(pool):
    """The footer, the size and the time of the file stay."""
    folder, _ = pool
    file = folder / "m.parquet"
    chosen = raysel.Random(0.2).select(raysel.read(folder))
    before, footer, table = file.stat(), pq.read_metadata(file).to_dict(), pq.read_table(file)
    order = np.arange(240)
    order[[3, 4]] = [4, 3]
    pq.write_table(
        table.take(pa.array(order)), file, row_group_size=64, compression="none", use_dictionary=False
    )
    assert pq.read_metadata(file).to_dict() == footer and file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert refused(chosen, raysel.read(folder))


def test_pools_in_memory():
    chosen = raysel.Random(0.1).select(raysel.read({"x": np.arange(500)}))
    wanted = values(chosen, raysel.read({"x": np.arange(500)}))
    assert len(wanted) == 50
    for other in (np.arange(100), np.arange(501), np.arange(500)[::-1].copy()):
        assert refused(chosen, raysel.read({"x": other})), other[:3]


def test_a_folder_does_not_take_the_selection_of_a_table(pool):
    folder, _ = pool
    chosen = raysel.Random(0.1).select(raysel.read({"x": np.arange(100)}))
    assert refused(chosen, raysel.read(folder))


def test_a_selection_is_continued_in_its_own_pool_alone(pool, tmp_path):
    folder, write = pool
    target = raysel.read({"embedding": np.float32([[0, 0], [1, 1], [2, 0], [0, 3]])})
    first = raysel.GIO(20, clusters=10).select(raysel.read(folder), target)
    more = raysel.GIO(40, clusters=10).select(raysel.read(folder), target, start=first)
    assert set(first.ids) < set(more.ids) and len(more) == 40
    write("z", 3000, 60)
    grown = raysel.GIO(60, clusters=10).select(raysel.read(folder), target, start=more)
    assert set(more.ids) < set(grown.ids)
    write("a", 5000, 37)
    with pytest.raises(RayselError, match="parquet"):
        raysel.GIO(60, clusters=10).select(raysel.read(folder), target, start=more)


def test_a_choice_from_chosen_rows_is_of_the_same_pool(pool):
    folder, write = pool
    first = raysel.Random(0.5).select(raysel.read(folder))
    second = raysel.Random(0.5, seed=1).select(first.apply(raysel.read(folder))).after(first)
    assert len(values(second, raysel.read(folder))) == 60
    write("a", 5000, 37)
    assert refused(second, raysel.read(folder))
