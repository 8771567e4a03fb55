"""Vectors: the same bits in any blocks, what was asked for, kept and found again; and a sentence for what cannot be."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.cluster.blocks import gather
from raysel.data import pipeline, shards, sources
from raysel.data.content import digest_blocks
from raysel.data.row_index import ID
from raysel.data.sources import BlockSource
from raysel.data.vectors import EMBEDDING, as_matrix, to_column, to_numpy
from raysel.errors import ConfigError, DataError, RunError

pytestmark = pytest.mark.usefixtures("cluster")
ROWS = 5000


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    words = np.array(["a", "bright", "red", "house", "near", "the", "old", "river"])
    texts = [" ".join(rng.choice(words, size=int(n))) for n in rng.integers(1, 12, ROWS)]
    v = rng.standard_normal((ROWS, 24)).astype(np.float32)
    return pa.table({"text": texts, "v": to_column(v), "age": rng.integers(0, 90, ROWS), "group": texts})


def layouts(cluster, table, tmp_path):
    """The same rows as Parquet in one and many files and row groups, and as 1, 3 and 8 blocks."""
    for name, files, group in (("one", 1, 100_000), ("many", 3, 700)):
        folder = tmp_path / name
        folder.mkdir()
        step = -(-len(table) // files)
        for i in range(files):
            pq.write_table(table.slice(i * step, step), folder / f"{i}.parquet", row_group_size=group)
        yield raysel.read(folder)
    numbered = table.append_column(ID, pa.array(np.arange(len(table))))
    for blocks in (1, 3, 8):
        step = -(-len(table) // blocks)
        yield cluster.data.from_arrow([numbered.slice(i * step, step) for i in reversed(range(blocks))])


def vectors(dataset):
    got = gather(dataset, [ID, EMBEDDING], "vectors").sort_by(ID)
    return to_numpy(got[EMBEDDING], EMBEDDING)


def same(arrays):
    first, *others = arrays
    for other in others:
        assert other.dtype == first.dtype and np.array_equal(other, first)
    return first


@dataclass(frozen=True)
class Neighbours:
    """Each row's vector depends on its whole tile, as a network's last bits do."""

    name: str = "neighbours"
    tile: int = 64

    def __call__(self, rows):
        total = np.full(len(rows), rows.sum(dtype=np.float64))
        return np.stack([rows[:, 0], total], 1).astype(np.float32)


@dataclass(frozen=True)
class Loaded(Neighbours):
    """The same, to be loaded first: by actors, with readers beside them."""

    def load(self, device):
        return self


# ---- the same bits ---------------------------------------------------------------------------------------------


def test_pca_is_bit_identical_in_any_layout(cluster, table, tmp_path):
    fitted, made = [], []
    for dataset in layouts(cluster, table, tmp_path):
        embedder = raysel.fit_embedder("pca:5", dataset, column="v")
        fitted.append(np.concatenate([embedder.mean[None], embedder.components]))
        made.append(vectors(raysel.embed(dataset, embedder, column="v")))
    same(fitted)
    assert same(made).shape == (ROWS, 5)


def test_tiles_are_the_same_rows_in_any_layout(cluster, table, tmp_path):
    made = [
        vectors(raysel.embed(dataset, Neighbours(), column="v", directory=tmp_path / f"out{i}"))
        for i, dataset in enumerate(layouts(cluster, table, tmp_path))
    ]
    made.append(
        vectors(raysel.embed(raysel.read(table), Loaded(), column="v", directory=tmp_path / "loaded"))
    )
    got = same(made)
    values = to_numpy(table["v"], "v")
    assert got[70, 1] == values[64:128].sum(dtype=np.float64).astype(np.float32)
    assert got[ROWS - 1, 1] == values[ROWS // 64 * 64 :].sum(dtype=np.float64).astype(np.float32)


# ---- what embedders make ---------------------------------------------------------------------------------------


def test_hashed_text(table, tmp_path):
    from sklearn.feature_extraction.text import HashingVectorizer

    dataset = raysel.read(table)
    got = vectors(raysel.embed(dataset, "hash:64", column="text"))
    known = (
        HashingVectorizer(n_features=64, ngram_range=(1, 2)).transform(table["text"].to_pylist()).toarray()
    )
    np.testing.assert_allclose(got, known, atol=1e-6)
    written = raysel.embed(dataset, "hash:64", column="text", directory=tmp_path / "v")
    assert np.array_equal(vectors(written), got)


def test_table_features():
    rows = {
        "age": pa.array([10, None, 30]),
        "height": pa.array([1.5, float("nan"), 1.5]),
        "city": pa.array(["Ulm", "Bonn", None]),
        "is": pa.array([True, False, True]),
    }
    dataset = raysel.read(pa.table(rows))
    embedder = raysel.fit_embedder("table", dataset, column=["age", "height", "city", "is"])
    got = vectors(raysel.embed(dataset, embedder, column=["age", "height", "city", "is"]))
    assert got.shape == (3, 2 + 2 + 16 + 16)
    assert got[:, :4].tolist() == [[0, 0, 0, 0], [0.5, 1, 0.5, 1], [1, 0, 0, 0]]
    assert got[:, 4:20].sum(axis=1).tolist() == [1, 1, 1]
    assert len({tuple(row) for row in got[:, 4:20].tolist()}) == 3
    assert np.array_equal(got[0, 20:], got[2, 20:]) and not np.array_equal(got[0, 20:], got[1, 20:])


def test_a_function_gets_text_or_a_matrix(table):
    def lengths(texts):
        return np.array([[len(text)] for text in texts], np.float32)

    dataset = raysel.read(table)
    got = vectors(raysel.embed(dataset, lengths, column="text"))
    assert got[:, 0].tolist() == [len(text) for text in table["text"].to_pylist()]
    doubled = vectors(raysel.embed(dataset, lambda rows: rows * 2, column="v"))
    assert np.array_equal(doubled, as_matrix(table["v"], "v") * 2)


def test_a_function_keeps_the_values_that_it_read_when_embed_was_called(table):
    factor = 2.0
    given = raysel.embed(raysel.read(table.slice(0, 50)), lambda rows: rows * factor, column="v")
    lock = threading.Lock()

    def locked(rows):
        with lock:
            return rows

    for options in ({}, {"on_error": "drop", "version": "1"}):
        with pytest.raises(
            ConfigError, match=r"^embedder: .*locked.* cannot be sent to other processes \(.*lock"
        ):
            raysel.embed(raysel.read(table), locked, column="v", **options)
    factor = 100.0
    assert np.array_equal(vectors(given), as_matrix(table["v"].slice(0, 50), "v") * 2)


@pytest.mark.parametrize("written", [False, True])
def test_unit_length_and_half_precision(table, tmp_path, written):
    options = {"directory": tmp_path / "v"} if written else {}
    dataset = raysel.embed(
        raysel.read(table), "column", column="v", normalize=True, dtype="float16", **options
    )
    got = vectors(dataset)
    values = to_numpy(table["v"], "v")
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, values / np.linalg.norm(values, axis=1, keepdims=True), atol=1e-3)


def test_other_columns_stay(table, tmp_path):
    dataset = raysel.embed(raysel.read(table, label="group"), "column", column="v", directory=tmp_path / "v")
    assert set(dataset.columns()) == {ID, "text", "v", "age", "group", EMBEDDING}
    kept = dataset.filter(lambda row: row["age"] > 45)
    assert np.array_equal(vectors(kept), to_numpy(table["v"], "v")[table["age"].to_numpy() > 45])


# ---- kept and found again --------------------------------------------------------------------------------------


def compute(dataset, embedder, directory, column="v", **options):
    return pipeline.compute(dataset, embedder, [column], str(directory), shards.Options(**options))


def test_a_second_run_reads_and_a_broken_one_goes_on(table, tmp_path):
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = raysel.read(tmp_path / "t.parquet")
    out = tmp_path / "v"
    first = compute(dataset, Neighbours(), out)
    assert (first.rows, first.embedded, first.dimension) == (ROWS, ROWS, 2)
    again = compute(dataset, Neighbours(), out)
    assert (again.rows, again.embedded) == (ROWS, 0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    parts = sorted(out.glob("part-*"))
    assert len(parts) == 10
    for lost in (parts[0], parts[4], parts[9], out / "_done.json"):
        os.remove(lost)
    (out / ".part-000000000003.parquet.1.partial").write_bytes(b"half")
    third = compute(dataset, Neighbours(), out)
    assert third.embedded == 512 + 512 + ROWS - 9 * 512
    after = {path.name: path.read_bytes() for path in out.glob("part-*")}
    assert all(before[name] == data for name, data in after.items()) and len(after) == 10


def test_a_directory_of_other_vectors_is_refused(table, tmp_path):
    dataset = raysel.read(table)
    compute(dataset, Neighbours(), tmp_path / "v")
    for other, what in (
        ((dataset, Neighbours(tile=32)), "embedder"),
        ((raysel.read(table.slice(1)), Neighbours()), "input"),
    ):
        with pytest.raises(RunError, match=rf"holds vectors that .* \(different: {what}"):
            compute(*other, tmp_path / "v")
    with pytest.raises(RunError, match="different: options"):
        compute(dataset, Neighbours(), tmp_path / "v", normalize=True)


def test_a_missing_part_is_noticed(table, tmp_path, monkeypatch):
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = raysel.read(tmp_path / "t.parquet")
    compute(dataset, Neighbours(), tmp_path / "v")
    (tmp_path / "v" / "part-000000000002.parquet").unlink()
    (tmp_path / "v" / "_done.json").unlink()
    monkeypatch.setattr(pipeline, "run_jobs", lambda *_: 0.0)  # as if its node had written elsewhere
    with pytest.raises(
        RunError,
        match=r"do not belong to this dataset: there are 4,488 vectors for 5,000 rows, or their ids differ",
    ):
        compute(dataset, Neighbours(), tmp_path / "v")


def test_the_cache_is_found_by_content(table, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path / "cache"))
    pq.write_table(table, tmp_path / "t.parquet")
    for _ in range(2):
        raysel.embed(raysel.read(tmp_path / "t.parquet"), Neighbours(), column="v", on_error="drop")
    assert len(list((tmp_path / "cache/vectors").iterdir())) == 1
    raysel.embed(raysel.read(tmp_path / "t.parquet"), Neighbours(), column="v", on_error="null")
    assert len(list((tmp_path / "cache/vectors").iterdir())) == 2


def test_the_steps_before_run_once_also_when_the_vectors_are_there(cluster, table, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path / "cache"))
    log, digests = tmp_path / "log", []
    monkeypatch.setattr(sources, "digest_blocks", lambda *a: digests.append(1) or digest_blocks(*a))

    def noted(rows):
        with log.open("a") as file:  # one short line in one write, whole also from two processes
            file.write(f"{rows.num_rows}\n")
        return rows.append_column("noise", pa.array(np.random.default_rng().random(rows.num_rows)))

    pq.write_table(table, tmp_path / "t.parquet", row_group_size=300)
    made = []
    for attempt in range(2):
        pool = raysel.read(tmp_path / "t.parquet").map_batches(noted, batch_format="pyarrow")
        log.write_text("")
        embedded = raysel.embed(pool, Neighbours(), column="v", on_error="drop")
        assert sum(map(int, log.read_text().split())) == ROWS and len(digests) == attempt + 1
        once = gather(embedded, ["noise", EMBEDDING], "rows")
        assert once["noise"].equals(gather(embedded, ["noise"], "rows")["noise"])
        assert sum(map(int, log.read_text().split())) == ROWS
        made.append(vectors(embedded))
    assert len(list((tmp_path / "cache/vectors").iterdir())) == 1
    plain = raysel.embed(raysel.read(tmp_path / "t.parquet"), Neighbours(), column="v", on_error="drop")
    same([*made, vectors(plain)])


@pytest.mark.slow  # Ray's shuffle takes seconds
def test_the_steps_before_run_once_also_where_ids_lie_across_blocks(cluster, table, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "log"

    def noted(rows):
        with log.open("a") as file:
            file.write(f"{rows.num_rows}\n")
        return rows

    pq.write_table(table, tmp_path / "t.parquet", row_group_size=300)
    plain = raysel.embed(raysel.read(tmp_path / "t.parquet"), Neighbours(), column="v", on_error="drop")
    pool = raysel.read(tmp_path / "t.parquet").map_batches(noted, batch_format="pyarrow")
    unordered = pool.map_batches(lambda t: t.sort_by("age"), batch_format="pyarrow").random_shuffle(seed=1)
    compute(unordered, Neighbours(), tmp_path / "direct")
    assert sum(map(int, log.read_text().split())) == ROWS
    same(
        [
            vectors(plain),
            vectors(raysel.embed(unordered, Neighbours(), column="v", directory=tmp_path / "direct")),
        ]
    )


def test_columns_selected_and_renamed_are_still_streamed(table, tmp_path, monkeypatch):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=300)
    pool = raysel.read(tmp_path / "t.parquet")
    known = vectors(raysel.embed(pool, Neighbours(), column="v", directory=tmp_path / "a"))
    monkeypatch.setattr(BlockSource, "of", lambda *_: pytest.fail("not streamed"))
    monkeypatch.setattr("raysel.data.embed.materialized", lambda *_: pytest.fail("not streamed"))
    for place, narrow in enumerate(
        (
            pool.select_columns(["v", ID]),
            pool.rename_columns({"v": "text", "text": "v"}).select_columns([ID, "text"]),
        )
    ):
        column = narrow.columns()[-place]
        embedded = raysel.embed(narrow, Neighbours(), column=column, directory=tmp_path / f"b{place}")
        assert np.array_equal(vectors(embedded), known)


# ---- bad rows --------------------------------------------------------------------------------------------------


GOOD = pa.array([True, False, True, False, False, False])


def broken():
    return pa.table({"text": pa.array(["one", None, "three", None, None, None]), "n": range(6)})


def test_null_text_stops_with_the_first_three(tmp_path):
    for options in ({}, {"directory": tmp_path / "v"}):
        with pytest.raises(
            DataError,
            match=r"4 of the rows with sample_id 0 to 5 cannot be embedded \(sample_id 1: no value in column 'text'; "
            r"sample_id 3: .*; sample_id 4: .*; and others\); repair them, or set on_error",
        ):
            vectors(raysel.embed(raysel.read(broken()), "hash:8", column="text", **options))


def test_bad_rows_are_dropped_and_listed(tmp_path):
    dataset = raysel.embed(
        raysel.read(broken()), "hash:8", column="text", on_error="drop", directory=tmp_path / "v"
    )
    assert gather(dataset, ["n"], "rows")["n"].to_pylist() == [0, 2]
    listed = pq.read_table(tmp_path / "v/_rejected.parquet").to_pylist()
    assert [row[ID] for row in listed] == [1, 3, 4, 5]
    assert {row["reason"] for row in listed} == {"no value in column 'text'"}
    assert vectors(raysel.read(tmp_path / "v")).shape == (2, 8)


def test_bad_rows_are_kept_with_a_null(tmp_path):
    dataset = raysel.embed(
        raysel.read(broken()), "hash:8", column="text", on_error="null", directory=tmp_path / "v"
    )
    got = gather(dataset, [ID, "n", EMBEDDING], "rows")
    assert got["n"].to_pylist() == list(range(6))
    assert got[EMBEDDING].is_null().to_pylist() == [False, True, False, True, True, True]
    whole = vectors(raysel.embed(raysel.read(broken().filter(GOOD)), "hash:8", column="text"))
    good = got.filter(GOOD)
    assert np.array_equal(to_numpy(good[EMBEDDING], EMBEDDING), whole)


def test_a_vector_that_is_not_finite_is_a_bad_row(tmp_path):
    def logarithm(rows):
        with np.errstate(all="ignore"):
            return np.log(rows)

    dataset = raysel.read({"x": np.array([1.0, 0.0, 2.0, -1.0], np.float32)})
    for options in ({}, {"directory": tmp_path / "a"}):
        with pytest.raises(DataError, match=r"NaN or infinite values for 2 of 4 rows \(sample_id 1, 3\)"):
            vectors(raysel.embed(dataset, logarithm, column="x", **options))
    made = raysel.embed(dataset, logarithm, column="x", on_error="drop", directory=tmp_path / "b")
    assert gather(made, [ID], "rows")[ID].to_pylist() == [0, 2]


def test_no_row_can_be_embedded(tmp_path):
    rows = raysel.read(pa.table({"text": pa.array([None, None], pa.string())}))
    with pytest.raises(DataError, match="None of the 2 rows could be embedded"):
        raysel.embed(rows, "hash:8", column="text", on_error="drop", directory=tmp_path / "v")


# ---- embedders that do not keep to it --------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda rows: rows[:-1], r"returned 9 vectors for 10 rows \(the rows from sample_id 0\)"),
        (
            lambda rows: rows.astype(np.float64),
            r"returned float64 of shape \(10, 3\) for the rows from sample_id 0",
        ),
        (lambda rows: rows.astype(np.int64), r"returned int64 of shape"),
        (lambda rows: rows[:, 0], r"returned float32 of shape \(10,\)"),
        (lambda rows: rows.tolist(), r"returned a list"),
        (lambda rows: rows[:, :0], r"without elements"),
    ],
)
def test_wrong_answers(tmp_path, written, function, sentence):
    options = {"directory": tmp_path / "v"} if written else {}
    with pytest.raises(DataError, match=sentence):
        vectors(
            raysel.embed(raysel.read({"v": np.ones((10, 3), np.float32)}), function, column="v", **options)
        )


@dataclass(frozen=True)
class Growing:
    name: str = "growing"
    tile: int = 64

    def __call__(self, rows):
        return rows[:, : 3 if rows[0, 0] < 1000 else 2]


def test_another_dimension_later(tmp_path):
    values = np.arange(3000, dtype=np.float32)[:, None].repeat(3, 1)
    with pytest.raises(
        DataError, match=r"growing returned .*(dimensions for the rows from|different lengths)"
    ):
        raysel.embed(raysel.read({"v": values}), Growing(), column="v", directory=tmp_path / "v")
    assert not (tmp_path / "v/_done.json").exists()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("pca:0", "must end with the number of elements"),
        ("pca:x", "must end with the number of elements"),
        ("hash", "must end with the number of elements"),
        ("magic", "embedder is 'magic', but there is no such name. The known names are column, pca, hash"),
        ("pac:8", "embedder is 'pac:8', but there is no such name. Did you mean 'pca'"),
        ("column:3", "the embedder 'column' takes none; write column"),
        (
            "sentence-transformers:",
            "'sentence-transformers:' does not name a model; write sentence-transformers:NAME",
        ),
        ("timm:resnet18", r"needs timm, .*pip install 'raysel\[vision\]'"),
        ("open_clip:ViT-B-32", r"needs open_clip_torch, .*pip install 'raysel\[vision\]'"),
    ],
)
def test_specs_that_name_nothing(spec, sentence):
    import importlib.util

    module = spec.partition(":")[0]
    if module in ("timm", "open_clip") and importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(ConfigError, match=sentence):
        raysel.fit_embedder(spec, raysel.read({"v": [1.0]}), column="v")


def test_what_pca_cannot_be_fitted_on():
    wrong = np.ones((10, 3), np.float32)
    wrong[[2, 5, 6, 9], 0] = np.nan
    for rows, spec, sentence in (
        (wrong, "pca:2", r"NaN or infinite values in 4 rows \(sample_id 2, 5, 6 and 1 more\)"),
        (
            np.ones((10, 3), np.float32),
            "pca:4",
            "'pca:4' has 4 components, but the column has 3 elements; choose at most 3",
        ),
        (np.array(["a", "b"]), "pca:1", "holds (large_)?string, not numbers"),
    ):
        with pytest.raises((ConfigError, DataError), match=sentence):
            raysel.fit_embedder(spec, raysel.read({"v": rows}), column="v")
    with pytest.raises(ConfigError, match="must be fitted on data; give the dataset"):
        raysel.fit_embedder("pca:2")
    with pytest.raises(ConfigError, match="Fit it once"):
        raysel.embed(raysel.read({"v": [1.0]}), "pca:2", column="v")
    with pytest.raises(DataError, match="The dataset that the embedder is fitted on has no column 'w'"):
        raysel.fit_embedder("pca:1", raysel.read({"v": [1.0]}), column="w")


def test_a_missing_column(tmp_path):
    for options in ({}, {"directory": tmp_path / "v"}):
        with pytest.raises(DataError, match="The dataset to embed has no column 'w'"):
            raysel.embed(raysel.read({"v": [1.0]}), "column", column="w", **options)


def test_progress_tells_rows_and_time(table, tmp_path):
    import time

    @dataclass(frozen=True)
    class Slow:
        name: str = "slow"
        tile: int = 64

        def __call__(self, rows):
            time.sleep(0.04)
            return rows

    said = []
    pipeline.compute(raysel.read(table), Slow(), ["v"], str(tmp_path / "v"), watch=said.append)
    assert said and " of 5,000 rows, " in said[0] and " rows/s, " in said[0] and said[0].endswith(" left")
    assert json.loads((tmp_path / "v/_done.json").read_text())["sum_of_ids"] == ROWS * (ROWS - 1) // 2
