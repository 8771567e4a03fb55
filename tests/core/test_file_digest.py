"""Digests of files: over all bytes, read once, and never those of an earlier content."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pyarrow.fs as pafs
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.core.fingerprint import files
from raysel.core.fingerprint.files import file_digest, file_digests, folder_digest, stored_digest
from raysel.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYSEL_CACHE", str(folder))
    files._CACHE.forget()
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Paths that were read."""
    found: list[str] = []
    read = files._read
    monkeypatch.setattr(files, "_read", lambda path: (found.append(path), read(path))[1])
    return found


def settled(monkeypatch):
    """Let files count as old at once."""
    monkeypatch.setattr(files, "_SETTLED_NS", -(10**18))


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(1, 7))
def test_the_digest_is_xxh3_of_all_bytes(tmp_path_factory, data, chunk):
    path = tmp_path_factory.mktemp("one") / "file"
    path.write_bytes(data)
    before, files._CHUNK = files._CHUNK, chunk
    try:
        assert file_digest(path) == f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
    finally:
        files._CHUNK = before


def test_a_file_is_read_once(tmp_path, monkeypatch, reads):
    settled(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    one = file_digest(path)
    assert file_digest(path) == one and len(reads) == 1
    files._CACHE.forget()  # another process
    assert file_digest(path) == one and len(reads) == 1
    path.write_bytes(b"three")
    assert file_digest(path) != one and len(reads) == 2


def test_a_file_rewritten_within_one_tick_of_the_clock(tmp_path, reads):
    """The metadata may stay the same, so what was written just now is read every time."""
    path = tmp_path / "file"
    for number in range(200):
        data = b"%04d" % number
        with open(path, "r+b" if number else "wb") as target:
            target.write(data)
        assert file_digest(path) == f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
    assert len(reads) == 200


def test_a_file_that_is_old_enough_is_kept(tmp_path, monkeypatch, reads):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    now = time.time_ns()
    monkeypatch.setattr(files.time, "time_ns", lambda: now + 2_500_000_000)
    file_digest(path), file_digest(path)
    assert len(reads) == 2
    monkeypatch.setattr(files.time, "time_ns", lambda: now + 3_500_000_000)
    file_digest(path), file_digest(path)
    assert len(reads) == 3


def test_a_time_that_was_set_back(tmp_path, monkeypatch):
    settled(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    one, before = file_digest(path), path.stat()
    time.sleep(0.02)  # more than a tick: the inode's change shows it
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert file_digest(path) != one
    assert file_digest(path, "mtime") == f"mtime:3:{before.st_mtime_ns}"


def test_another_file_of_the_same_name(tmp_path, monkeypatch):
    settled(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    one = file_digest(path)
    (tmp_path / "new").write_bytes(b"two")
    os.replace(tmp_path / "new", path)
    assert file_digest(path) != one


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")

    made = xxhash.xxh3_128

    class Growing:
        def __init__(self):
            self.whole = made()
            self.hexdigest = self.whole.hexdigest

        def update(self, data):
            self.whole.update(data)
            if len(data) < limit:
                with open(path, "ab") as target:
                    target.write(b"x")

    monkeypatch.setattr(files.xxhash, "xxh3_128", Growing)
    limit = 6
    assert file_digest(path).startswith("xxh3:")  # it grew from 3 to 6 bytes, then it stayed
    limit = 10**9
    with pytest.raises(DataError, match="changed during each of 3 attempts to read it"):
        file_digest(path)


@pytest.mark.parametrize("damage", ["unwritable", "damaged", "a file", "uri"])
def test_the_cache_may_be_missing(tmp_path, cache, monkeypatch, damage):
    settled(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    if damage == "unwritable":
        monkeypatch.setenv("RAYSEL_CACHE", "/proc/raysel")
    elif damage == "damaged":
        (cache / "digests-1.sqlite").write_bytes(b"no database" * 100)
    elif damage == "a file":
        monkeypatch.setenv("RAYSEL_CACHE", str(path))
    else:
        monkeypatch.setenv("RAYSEL_CACHE", "s3://bucket/cache")
    one = file_digest(path)
    files._CACHE.forget()
    assert file_digest(path) == one


def _hash_all(paths, results):
    results.put(file_digests(paths))


def test_processes_share_the_cache(tmp_path, monkeypatch, reads):
    settled(monkeypatch)
    paths = [tmp_path / f"{i}" for i in range(40)]
    for path in paths:
        path.write_bytes(path.name.encode())
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_hash_all, args=(paths, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(one == [f"xxh3:{xxhash.xxh3_128_hexdigest(p.name.encode())}" for p in paths] for one in found)
    assert file_digests(paths) == found[0] and reads == []


def test_threads_share_the_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(file_digest(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "here"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(DataError, match=r"here (cannot be read|is not a regular file)"):
        file_digest(path)


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "sub" / "a").write_text("a")
    (tmp_path / "elsewhere" / "weights").write_text("one")
    (tmp_path / "m" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "m" / "file").symlink_to(tmp_path / "elsewhere" / "weights")
    return tmp_path / "m"


@pytest.mark.parametrize("change", ["content", "name", "more", "behind a link", "broken link", "moved text"])
def test_every_change_of_a_folder(folder, change):
    one = folder_digest(folder)
    if change == "content":
        (folder / "sub" / "a").write_text("b")
    elif change == "name":
        (folder / "sub" / "a").rename(folder / "sub" / "b")
    elif change == "more":
        (folder / "empty").touch()
    elif change == "behind a link":
        (folder.parent / "elsewhere" / "weights").write_text("two")
    elif change == "broken link":
        (folder / "broken").symlink_to("nowhere")
    else:
        (folder / "sub" / "a").rename(folder / "a")
    assert folder_digest(folder) != one


def test_where_a_folder_lies_does_not_count(folder, tmp_path):
    one = folder_digest(folder)
    folder.rename(tmp_path / "n")
    assert folder_digest(tmp_path / "n") == one
    copy = tmp_path / "copy"
    os.system(f"cp -rL {tmp_path / 'n'} {copy}")
    assert folder_digest(copy) == one


def test_links_in_a_circle_end(folder):
    (folder / "sub" / "up").symlink_to(folder)
    (folder.parent / "elsewhere" / "back").symlink_to(folder / "sub")
    one = folder_digest(folder)
    assert folder_digest(folder) == one
    (folder.parent / "elsewhere" / "weights").write_text("two")
    assert folder_digest(folder) != one


def test_files_may_be_left_out(folder):
    one = folder_digest(folder, lambda name: name == "README.md")
    (folder / "sub" / "README.md").write_text("text")
    assert folder_digest(folder, lambda name: name == "README.md") == one != folder_digest(folder)


# ---- other filesystems -----------------------------------------------------------------------------------------------


def test_local_files_of_arrow_are_local_files(tmp_path):
    (tmp_path / "file").write_bytes(b"one")
    below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert stored_digest(below, "file") == stored_digest(pafs.LocalFileSystem(), str(tmp_path / "file")) == file_digest(tmp_path / "file")  # fmt: skip


class Store(pafs.FileSystemHandler):
    """An object store in memory."""

    def __init__(self, objects, metadata):
        self.objects, self.metadata = objects, metadata

    def get_type_name(self):
        return "memory"

    def get_file_info(self, paths):
        return [
            pafs.FileInfo(path, pafs.FileType.File, size=len(self.objects[path]), mtime_ns=5)
            if path in self.objects
            else pafs.FileInfo(path, pafs.FileType.NotFound)
            for path in paths
        ]

    def open_input_stream(self, path):
        import pyarrow as pa

        if path not in self.objects:
            raise FileNotFoundError(path)
        stream = pa.PythonFile(__import__("io").BytesIO(self.objects[path]), mode="r")
        if self.metadata is None:
            return stream
        return _WithMetadata(stream, self.metadata)

    def _no(self, *_):
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _no
    get_file_info_selector = move = normalize_path = open_append_stream = open_input_file = (
        open_output_stream
    ) = _no


class _WithMetadata:
    def __init__(self, stream, metadata):
        self.stream, self.found = stream, metadata

    def metadata(self):
        return self.found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)


class _Files:
    """The part of an Arrow filesystem that is used, over a handler."""

    def __init__(self, handler):
        self.handler = handler
        self.open_input_stream = handler.open_input_stream

    def get_file_info(self, path):
        return self.handler.get_file_info([path])[0]


def test_an_object_store_says_what_it_holds():
    objects = {"a": b"one"}
    tagged = _Files(Store(objects, {b"ETag": b'"abc"', b"Content-Length": b"3"}))
    assert stored_digest(tagged, "a") == "etag:abc:3"
    numbered = _Files(Store(objects, {"generation": "17"}))
    assert stored_digest(numbered, "a") == "generation:17:3"
    silent = _Files(Store(objects, {}))
    assert stored_digest(silent, "a") == f"xxh3:{xxhash.xxh3_128_hexdigest(b'one')}"
    assert stored_digest(tagged, "a", "mtime") == "mtime:3:5"
    for trust in ("content", "mtime"):
        with pytest.raises(DataError, match="b does not exist"):
            stored_digest(tagged, "b", trust)
