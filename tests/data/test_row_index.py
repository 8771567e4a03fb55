"""Row identity: ids from footers, and what a kept index says when files come, go or change."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysel.core.hashing import hash_ids
from raysel.data.listing import list_source
from raysel.data.row_index import RowIndex, check_ids, index_parquet
from raysel.errors import DataError


def write(path, values, row_group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": pa.array(values, pa.int64())}), path, row_group_size=row_group)
    return path


def number(directory, known=None):
    return index_parquet(list_source([directory]), known)


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "b.parquet", range(5))
    write(tmp_path / "a.parquet", range(7))
    write(tmp_path / "sub/c.parquet", range(2))
    return tmp_path


def test_ids_are_prefix_sums_over_sorted_files(files):
    index = number(files)
    assert [file.path.rsplit("/", 1)[1] for file in index.files] == ["a.parquet", "b.parquet", "c.parquet"]
    assert index.offsets.tolist() == [0, 7, 12]
    assert index.rows == 14
    assert index.files[0].group_rows == (3, 3, 1)


def test_a_saved_index_comes_back_equal(files):
    index = number(files)
    index.save(files / "kept/index.json")
    assert RowIndex.load(files / "kept/index.json") == index


def test_files_added_later_follow_whatever_their_name(files):
    before = number(files)
    write(files / "0-sorts-first.parquet", range(4))
    after = number(files, before)
    assert after.files[:3] == before.files
    assert after.offsets.tolist() == [0, 7, 12, 14]
    assert after.digest != before.digest


@pytest.mark.parametrize("change", ["rename", "remove"])
def test_a_missing_file_is_an_error(files, change):
    before = number(files)
    if change == "rename":
        (files / "a.parquet").rename(files / "z.parquet")
    else:
        (files / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"a\.parquet cannot be found, but the index has ids for its rows"):
        number(files, before)


def test_a_changed_file_is_an_error(files):
    before = number(files)
    write(files / "b.parquet", [9, 1, 2, 3, 4])
    with pytest.raises(DataError, match=r"b\.parquet has changed since the ids of its rows were recorded"):
        number(files, before)


def test_an_empty_file_takes_no_ids(files):
    write(files / "aa.parquet", [])
    index = number(files)
    assert index.offsets.tolist() == [0, 7, 7, 12]
    assert index.rows == 14


def test_the_digest_is_the_contents_not_the_place(files, tmp_path_factory):
    other = tmp_path_factory.mktemp("moved") / "here"
    files.rename(other)
    moved = number(other).digest  # read when it is asked for
    other.rename(files)
    assert number(files).digest == moved


def test_hidden_files_are_left_out(files):
    write(files / "_tmp/x.parquet", range(3))
    write(files / ".x.parquet", range(3))
    assert number(files).rows == 14


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: (d / "a.parquet").write_bytes(b""), "not a readable Parquet file"),
        (lambda d: (d / "a.parquet").write_bytes(b"x" * 50), "not a readable Parquet file"),
        (
            lambda d: pq.write_table(pa.table({"x": ["a"]}), d / "b.parquet"),
            "Column 'x' holds string in .*b.parquet and int64 in .*a.parquet",
        ),
        (lambda d: pq.write_table(pa.table({"y": [1]}), d / "b.parquet"), "have no column in common"),
    ],
)
def test_unusable_files(files, make, sentence):
    make(files)
    with pytest.raises(DataError, match=sentence):
        number(files)


def test_paths_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        list_source([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no file of a format"):
        list_source([tmp_path])
    file = write(tmp_path / "a.parquet", [1])
    with pytest.raises(DataError, match="named more than once"):
        list_source([file, file])
    with pytest.raises(DataError, match="No path"):
        list_source([])


def test_damaged_index(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match="not a row index"):
        RowIndex.load(tmp_path / "index.json")


@given(st.lists(st.integers(0, 2**62), unique=True, min_size=1), st.integers(0, 2**31))
def test_hash_is_of_the_id_alone(ids, seed):
    array = np.array(ids, np.int64)
    draws = hash_ids(array, seed)
    assert ((draws >= 0) & (draws < 1)).all()
    assert np.array_equal(draws[::-1], hash_ids(array[::-1].copy(), seed))


def test_hash_is_uniform_and_moves_with_the_seed():
    one, two = (hash_ids(np.arange(100_000), seed) for seed in (0, 1))
    assert abs(one.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02


def test_ids_must_differ():
    check_ids(np.array([3, 1, 2]), "here")
    with pytest.raises(DataError, match=r"more than once \(1\)"):
        check_ids(np.array([1, 1]), "here")
    with pytest.raises(DataError, match=r"negative ids \(-4\)"):
        check_ids(np.array([1, -4]), "here")
