"""Files and folders are complete or absent: killed writers, unwritable folders, existing targets, other filesystems."""

from __future__ import annotations

import datetime
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import xxhash

from raysel.core import storage
from raysel.core.storage import Folder, resolve
from raysel.errors import ConfigError, DataError, RunError


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["local", "file", "other"])
def place(request, tmp_path, monkeypatch):
    """A folder by path, by file:// and on a filesystem that is not local and so cannot rename."""
    if request.param == "local":
        return tmp_path
    if request.param == "file":
        return f"file://{tmp_path}"
    other = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    resolve = storage.resolve
    monkeypatch.setattr(
        storage,
        "resolve",
        lambda path: (other, str(path)[8:]) if str(path).startswith("other://") else resolve(path),
    )
    return "other://"


def test_what_is_written_is_read_and_nothing_else_is_left(place, tmp_path):
    storage.make_folder(f"{place}/a/b")
    storage.write_bytes(f"{place}/a/b/x", b"12")
    storage.write_text(f"{place}/a/b/y", "Käse")
    storage.write_json(f"{place}/a/b/z.json", {"b": 1, "a": [None, "é"]})
    storage.write_bytes(f"{place}/a/b/buffer", pa.py_buffer(b"34"))
    storage.write_bytes(f"{place}/a/b/x", b"56")  # over the old one
    assert (
        storage.read_bytes(f"{place}/a/b/x") == b"56" and storage.read_bytes(f"{place}/a/b/buffer") == b"34"
    )
    assert storage.read_bytes(f"{place}/a/b/y").decode() == "Käse"
    assert list(storage.read_json(f"{place}/a/b/z.json").items()) == [("b", 1), ("a", [None, "é"])]
    with storage.open_file(f"{place}/a/b/x") as file:
        file.seek(1)
        assert file.read() == b"6"
    assert storage.list_files(f"{place}/a/b") == ["buffer", "x", "y", "z.json"] == names(tmp_path / "a/b")
    assert storage.list_files(f"{place}/a") == [] == storage.list_files(f"{place}/none")
    assert storage.digest(f"{place}/a/b/x") == xxhash.xxh3_128(b"56").hexdigest()
    assert storage.exists(f"{place}/a/b/x") and storage.exists(f"{place}/a")
    for gone in ("a/b/x", "a", "a", "none"):
        storage.remove(f"{place}/{gone}")
        assert not storage.exists(f"{place}/{gone}")
    assert names(tmp_path) == []


def test_outputs_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, place in (
        ("a/b", "a/b"), (Path("a"), "a"), ("run:1/x", "run:1/x"), ("C:/x", "C:/x"), (f"file://{tmp_path}/a%20b", "a b"),
        (f"FILE://localhost{tmp_path}/x", "x"), (f"file:{tmp_path}/x", "x"), (Path(f"file://{tmp_path}/x"), "x"),
    ):  # fmt: skip
        assert tmp_path / storage.local_output(given) == tmp_path / place
    assert storage.local_output("~/x") == Path.home() / "x"
    assert storage.resolve(Path("memory://bucket/x"))[1].endswith("bucket/x") and not Path("memory:").exists()
    for remote in ("s3://bucket/x", Path("gs://bucket/x"), "hf://datasets/x", "memory://x"):
        with pytest.raises(
            ConfigError, match=r"^\w+://[\w/]*x cannot be written to, because raysel writes these files only"
        ):
            storage.local_output(remote)
    with pytest.raises(
        ConfigError, match=r"^file://tmp/x names the machine 'tmp'; write file:///tmp/x for a local path"
    ):
        storage.local_output("file://tmp/x")
    with pytest.raises(
        ConfigError,
        match=r"is not the URI of a local file, because .* separate the parts of a URI; write %3F for",
    ):
        storage.local_output("file:///tmp/a?b")
    for none in (None, 3, "", "a\0b", b"x", ["x"], Path):
        with pytest.raises(ConfigError, match=r"is not a path\.$"):
            storage.local_output(none)
        with pytest.raises(ConfigError, match=r"is not a path\.$"):
            storage.read_bytes(none)
        with pytest.raises(ConfigError, match=r"is not a path\.$"):
            Folder(none)
    assert names(tmp_path) == []


def test_what_is_missing_or_damaged_is_said(place, tmp_path):
    for read in (storage.read_bytes, storage.read_json, storage.digest, storage.open_file):
        with pytest.raises(FileNotFoundError):
            read(f"{place}/none")
    for damaged in (b'{"a": ', b"\xff\xfe"):
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(ValueError):
            storage.read_json(f"{place}/x")
    with pytest.raises(DataError, match="cannot be opened"):
        storage.read_bytes("nowhere://x")


def test_a_store_of_google_is_not_tried_for_a_quarter_of_an_hour():
    for uri in ("gs://b/p", "gcs://b/a b?scheme=http"):
        limit = resolve(uri)[0].__reduce__()[1][0]["retry_time_limit"]
        assert limit == datetime.timedelta(seconds=6)
    own = resolve("gs://b/p?retry_limit_seconds=60")[0].__reduce__()[1][0]["retry_time_limit"]
    assert own == datetime.timedelta(seconds=60)


def test_a_digest_of_a_file_larger_than_what_is_read_at_once(tmp_path):
    content = random.Random(0).randbytes(3 * 2**20 + 5)
    (tmp_path / "x").write_bytes(content)
    assert storage.digest(tmp_path / "x") == xxhash.xxh3_128(content).hexdigest()


def test_what_cannot_be_written_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"none/x cannot be written \(No such file or directory\)"):
        storage.write_bytes(tmp_path / "none" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"folder cannot be written \(Is a directory\)"):
        storage.write_bytes(tmp_path / "folder", b"")
    (tmp_path / "file").write_bytes(b"old")
    below = tmp_path / "file" / "a"
    for make in (lambda: storage.make_folder(below), new(below), lambda: storage.stage(below)):
        with pytest.raises(
            RunError, match=rf"^{below} cannot be written"
        ):  # the folder's own name, not a temporary one
            make()
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RunError, match="No space left on device"):
        storage.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and names(tmp_path) == ["file", "folder"]


def fails(*_):
    raise OSError(28, "No space left on device")


def new(path):
    def make():
        with storage.new_folder(path) as folder:
            folder.write("x", b"1")

    return make


def test_a_folder_that_cannot_get_its_name_is_an_error(tmp_path, monkeypatch):
    last = tmp_path / "last"
    (storage.stage(last) / "x").write_text("1")
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(RunError, match=rf"^{last} cannot be written \(No space left on device\)"):
        storage.publish(last, tmp_path / "before")
    with (
        pytest.raises(RunError, match=rf"^{last} cannot be written \(No space left on device\)"),
        storage.filled(last) as folder,
    ):
        (folder / "x").write_text("2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    for write in (
        lambda: storage.write_bytes(tmp_path / "closed" / "x", b""),
        new(tmp_path / "closed" / "x"),
    ):
        with pytest.raises(RunError, match="Permission denied"):
            write()
    assert names(tmp_path / "closed") == []


def test_a_folder_is_complete_only_with_its_marker(place, tmp_path):
    with storage.new_folder(f"{place}/f") as folder:
        folder.write("b", b"22")
        folder.write("a", b"1")
        assert folder.names() == ["a", "b"]
        assert Folder(f"{place}/f").fault() in (
            "it does not exist",
            "_done.json is missing; it is written last, so the folder is incomplete",
        )
    done = Folder(f"{place}/f")
    assert done.fault() is None and done.names() == ["a", "b"]
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["_done.json", "a", "b"]
    written = storage.read_json(done.file(storage.MARKER))["files"]
    assert written["b"] == [2, xxhash.xxh3_128(b"22").hexdigest()]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "a").unlink(), "a cannot be read: No such file"),
        (lambda f: (f / "a").write_bytes(b"2"), "a has been changed"),
        (lambda f: (f / "b").write_bytes(b"1"), "b has 1 bytes instead of 2"),
        (lambda f: (f / "_done.json").unlink(), "_done.json is missing"),
        (lambda f: (f / "_done.json").write_bytes(b'{"files'), "_done.json is damaged"),
        (lambda f: (f / "_done.json").write_bytes(b"[]"), "_done.json is damaged"),
        (lambda f: (f / "_done.json").write_bytes(b"[" * 100_000), "_done.json is damaged"),
        (
            lambda f: (f / "_done.json").write_bytes(b'{"format": 2, "files": {}}'),
            "_done.json has format 2, but this",
        ),
        (
            lambda f: (f / "_done.json").write_bytes(b'{"format": 1, "files": {"a": [1e999, ""]}}'),
            "_done.json is damaged",
        ),
        (
            lambda f: (f / "_done.json").write_bytes(b'{"format": 1, "files": {"a\\u0000": [1, ""]}}'),
            "cannot be read",
        ),
        (lambda f: (f / "_done.json").write_bytes(b'{"files": {"a": 3}}'), "_done.json is damaged"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written(tmp_path, spoil, sentence):
    with storage.new_folder(tmp_path / "f") as folder:
        folder.write("a", b"1")
        folder.write("b", b"22")
    spoil(tmp_path / "f")
    assert sentence in Folder(tmp_path / "f").fault()


def test_an_error_within_a_new_folder_leaves_nothing_and_is_raised_unchanged(place, tmp_path):
    with pytest.raises(ZeroDivisionError), storage.new_folder(f"{place}/f") as folder:
        folder.write("a", b"1")
        raise ZeroDivisionError
    assert Folder(f"{place}/f").fault() is not None
    if place != "other://":
        assert names(tmp_path) == []


def test_an_existing_folder_is_never_replaced(place, tmp_path):
    new(f"{place}/f")()
    (tmp_path / "file").write_bytes(b"")
    for target in ("f", "file"):
        with pytest.raises(RunError, match=f"{target} exists already"):
            new(f"{place}/{target}")()
    assert names(tmp_path) == ["f", "file"] and Folder(f"{place}/f").fault() is None


def test_of_two_writers_of_a_folder_the_first_to_finish_has_it(tmp_path):
    with pytest.raises(RunError, match="f exists already"), storage.new_folder(tmp_path / "f") as slow:
        slow.write("x", b"slow")
        with storage.new_folder(tmp_path / "f") as fast:
            fast.write("x", b"fast")
    assert names(tmp_path) == ["f"] and (tmp_path / "f/x").read_bytes() == b"fast"
    assert Folder(tmp_path / "f").fault() is None


def test_the_same_files_have_the_same_marker(tmp_path):
    for name in ("f", "g"):
        new(tmp_path / name)()
    assert (tmp_path / "f/_done.json").read_bytes() == (tmp_path / "g/_done.json").read_bytes()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    storage.remove(tmp_path / "link")
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["x"]


def test_a_staged_folder_takes_the_place_of_the_last_which_becomes_the_one_before(tmp_path):
    last, before = tmp_path / "c" / "last", tmp_path / "c" / "before"
    for number in range(3):
        staged = storage.stage(last)
        (staged / "x").write_text(str(number))
        (staged / f"only-{number}").write_text("")
        assert last.exists() == (number > 0)
        storage.publish(last, before)
    assert (last / "x").read_text() == "2" and (before / "x").read_text() == "1"
    assert names(tmp_path / "c") == ["before", "last"] and names(last) == ["only-2", "x"]
    (storage.stage(last) / "half").write_text("")
    assert names(storage.stage(last)) == [] and (last / "x").read_text() == "2"


WRITER = """
import sys
from pathlib import Path
from raysel.core import storage
place = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    content = f"{number:08d}".encode() * 200_000
    storage.write_bytes(place / "file", content)
    with storage.new_folder(place / f"folder-{number}") as folder:
        for name in "abc":
            folder.write(name, content)
    last = place / "last"
    (storage.stage(last) / "x").write_bytes(content)
    storage.publish(last, place / "before")
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_writer_killed_at_any_moment_leaves_nothing_that_is_taken_for_finished(tmp_path, seed):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not (tmp_path / "before").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.Random(seed).uniform(0, 0.1))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert whole(tmp_path / "file")
    folders = [path for path in tmp_path.iterdir() if path.name.startswith("folder-")]
    assert folders
    for path in folders:
        assert Folder(path).fault() is None and Folder(path).names() == ["a", "b", "c"]
        assert all(whole(path / name) for name in "abc")
    kept = [path for path in (tmp_path / "last", tmp_path / "before") if path.exists()]
    assert any(whole(path / "x") for path in kept)  # the older one may be on its way out
    assert whole(kept[0] / "x")
    assert storage.list_files(tmp_path) == ["file"]  # what was under construction is not listed
    storage.write_bytes(tmp_path / "file", b"next")
    assert (tmp_path / "file").read_bytes() == b"next"


def whole(path: Path) -> bool:
    content = path.read_bytes()
    return len(content) == 1_600_000 and content == content[:8] * 200_000
