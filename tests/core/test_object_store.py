"""Object stores: nothing is seen in part, what is wrong is one sentence, and a place is held by one process."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

import raysel
from raysel.core import object_store as stores
from raysel.core import storage
from raysel.core.object_store import StorePath
from raysel.data import node_cache
from raysel.errors import ConfigError, DataError, RayselError, RunError, reason_of
from raysel.workflow import lock


def test_places_on_an_object_store():
    for given in ("s3://b/x/", "s3:/b/x", "S3://b//x"):
        assert storage.output(given) == StorePath("s3://b/x")
    place = storage.output("gs://b/x")
    assert (place / "y").name == "y" and (place / "y").parent == place == place.resolve()
    assert os.fspath(place) == str(place) == "gs://b/x"
    for wrong, words in (
        ("s3://", "does not name a bucket"),
        ("s3://b/../x", "does not name a bucket"),
        ("s3://b/x?region=y", "contains options"),
        ("s3://b/x#1", "contains options"),
        ("hdfs://b/x", "cannot be written to, because raysel writes only to"),
    ):
        with pytest.raises(ConfigError, match=words):
            storage.output(wrong)
    for open_it in (storage.output, storage.resolve):
        with pytest.raises(RayselError, match="contains credentials; set them as environment") as caught:
            open_it("s3://name:secret@b/x")
        assert "secret@" not in str(caught.value)


def test_the_file_system_has_limits_and_the_settings_of_the_environment_or_the_uri(monkeypatch):
    filesystem, path = storage.resolve("s3://b/a%20b?region=eu-west-1&endpoint_override=http://h:1")
    made = filesystem.__reduce__()[1][0]
    assert path == "b/a b" and made["region"] == "eu-west-1" and made["endpoint_override"] == "http://h:1"
    assert made["connect_timeout"] <= 10 and made["request_timeout"] <= 10
    assert not made["access_key"]  # a node takes its own
    assert storage.resolve("s3://b/a?.csv")[1] == "b/a?.csv"  # a wildcard
    assert (
        storage.resolve("s3://b/x")[0].__reduce__()[1][0]["endpoint_override"]
        == os.environ["AWS_ENDPOINT_URL"]
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://h:2")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    made = storage.resolve("s3://b/x")[0].__reduce__()[1][0]
    assert (made["endpoint_override"], made["region"]) == ("http://h:2", "eu-north-1")


def test_files_and_folders_on_an_object_store(s3, tmp_path):
    storage.write_bytes(f"{s3}/a/x", b"12")
    storage.write_bytes(f"{s3}/a/x", b"56")
    storage.write_table(f"{s3}/a/t.parquet", pa.table({"x": [1, 2]}))
    big = np.random.default_rng(0).bytes(12 << 20)
    storage.write_bytes(f"{s3}/a/big", big)
    assert storage.read_bytes(f"{s3}/a/x") == b"56" and storage.read_bytes(f"{s3}/a/big") == big
    assert storage.read_table(f"{s3}/a/t.parquet")["x"].to_pylist() == [1, 2]
    assert list(storage.entries(f"{s3}/a")) == storage.list_files(f"{s3}/a") == ["big", "t.parquet", "x"]
    assert list(storage.entries(s3)) == ["a"] and storage.list_files(s3) == [] == storage.list_files(
        f"{s3}/none"
    )
    assert storage.is_folder(s3) and not storage.is_folder(f"{s3}/a/x") and not storage.exists(f"{s3}/none")
    assert abs(storage.modified(s3) - time.time()) < 60 and storage.modified(f"{s3}/none") == 0
    with storage.on_this_machine(f"{s3}/a/big") as file:
        assert file.read_bytes() == big
    assert not file.exists()
    for read in (storage.read_bytes, storage.digest, storage.open_file):
        with pytest.raises(FileNotFoundError):
            read(f"{s3}/none")
    with pytest.raises(ZeroDivisionError), storage.new_file(f"{s3}/a/new") as file:
        file.write_bytes(b"half")
        raise ZeroDivisionError
    assert not storage.exists(f"{s3}/a/new")
    for content in (b"", big):
        with storage.new_file(f"{s3}/a/new") as file:
            file.write_bytes(content)
        assert storage.read_bytes(f"{s3}/a/new") == content
    with pytest.raises(ZeroDivisionError), storage.new_folder(f"{s3}/f") as folder:
        folder.write("a", b"1")
        raise ZeroDivisionError
    assert "_done.json is missing" in str(storage.Folder(f"{s3}/f").fault())
    storage.remove(f"{s3}/f")
    with storage.new_folder(f"{s3}/f") as folder:
        folder.write("a", b"1")
        assert storage.Folder(f"{s3}/f").fault()
    assert storage.Folder(f"{s3}/f").fault() is None
    with pytest.raises(RunError, match="exists already"), storage.new_folder(f"{s3}/f"):
        pass
    storage.write_bytes(f"{s3}/f/a", b"2")
    assert storage.Folder(f"{s3}/f").fault() == "a has been changed"
    storage.remove(s3)
    assert not storage.exists(s3)


def test_what_is_wrong_with_an_object_store_is_one_sentence(object_store, monkeypatch):
    chosen = raysel.Selection.of([1, 2])
    with pytest.raises(
        RunError, match=r"^s3://no-bucket/x/\S+ cannot be written \(the bucket does not exist\); check"
    ):
        chosen.save("s3://no-bucket/x")
    with pytest.raises(
        DataError, match=r"^s3://no-bucket/x is not a saved selection \(it does not exist\)\.$"
    ):
        raysel.Selection.load("s3://no-bucket/x")
    denied = "ACCESS_DENIED during PutObject operation: Access Denied (Request ID: x)"
    for text, words in (
        (denied, "access is denied"),
        (
            "SLOW_DOWN during GetObject operation: Please reduce your rate. (Request ID: x)",
            "slow down: Please reduce your rate",
        ),
    ):
        error = storage.unwritable("s3://b/x", OSError(f"When writing: AWS Error {text}"))
        assert f"cannot be written ({words}); check the connection" in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of CURL error [7] error_info={x=y}). "
            "Detail: [errno 5] Input/output error",
            "there is no connection, or no reply",
        ),
        (
            "google::cloud::Status(NOT_FOUND: Permanent error, with a last message of Not Found error_info={x=y}). Detail: x",
            "the bucket or the object does not exist",
        ),
        (
            "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of Could not create a OAuth2 "
            "access token to authenticate the request. error_info={x=y}). Detail: x",
            "the credentials are missing or not accepted",
        ),
        (
            "google::cloud::Status(ABORTED: Permanent error, with a last message of Try again. error_info={x=y})",
            "aborted: Try again",
        ),
        (
            "UploadFrom failed for 'http://h/b/x'. Azure Error: [ContainerNotFound] 404 The specified container does not exist",
            "the container does not exist",
        ),
        (
            "GetProperties failed. Azure Error: [] Fail to get a new connection for: http://h.",
            "there is no connection, or no reply",
        ),
        ("x. Azure Error: [LeaseLost] 412 A lease was lost.\nRequest ID: 1", "412 A lease was lost"),
    ],
)
def test_errors_of_other_stores_are_short(text, reason):
    assert reason_of(OSError(text)) == reason


class Google:
    """What Arrow does on Google Cloud Storage: a folder is listed only if it has an object of its own."""

    type_name = "gcs"

    def __init__(self, *files):
        self.files, self.removed = files, []

    def get_file_info(self, given):
        if isinstance(given, str):
            below = any(file.startswith(f"{given}/") for file in self.files)
            return pafs.FileInfo(given, pafs.FileType.Directory if below else pafs.FileType.NotFound)
        found = [file for file in self.files if file.startswith(f"{given.base_dir}/")]
        if not given.recursive:
            found = [file for file in found if "/" not in file[len(given.base_dir) + 1 :]]
        return [pafs.FileInfo(file, pafs.FileType.File, size=1) for file in found]

    def delete_dir(self, place):
        self.removed.append(place)
        raise FileNotFoundError(2, "Not Found")  # of an object for the folder


def test_folders_on_google_cloud_storage_are_listed_and_removed(monkeypatch):
    store = Google("b/t/x", "b/t/a/x", "b/t/a/c/y", "b/t2/z")
    monkeypatch.setattr(storage, "open_store", lambda uri: (store, uri.partition("://")[2]))
    found = storage.entries("gs://b/t")
    assert {name: entry.is_file for name, entry in found.items()} == {"a": False, "x": True}
    assert storage.list_files("gs://b/t/a") == ["x"] and storage.entries("gs://b/none") == {}
    storage.remove("gs://b/t")
    storage.remove("gs://b/none")
    assert store.removed == ["b/t"]


class Line:
    """A connection to a server that is cut after so many bytes to it: closed, or without a further reply."""

    def __init__(self, port: int, closes: bool) -> None:
        self.server, self.target, self.closes = socket.create_server(("127.0.0.1", 0)), port, closes
        self.left: float = float("inf")
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            threading.Thread(target=self._serve, args=(self.server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as server, client:
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                self.left -= len(data)
                if self.left < 0:
                    if not self.closes:
                        threading.Event().wait()
                    return
                server.sendall(data)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass


def test_a_connection_that_is_lost_in_a_write_leaves_the_old_object(s3, monkeypatch):
    place = f"{s3}/x"
    storage.write_bytes(place, b"old")
    line = Line(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), closes=True)
    monkeypatch.setattr(storage, "_AGAIN_S", 0.0)
    for left in (100, 7 << 20):
        line.left = left
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", line.url)
        with pytest.raises(
            RunError, match=r"/x cannot be written \(there is no connection, or no reply\); check"
        ):
            storage.write_bytes(place, bytes(12 << 20))
        with pytest.raises(
            RunError, match=r"/x cannot be read \(there is no connection, or no reply\); check"
        ):
            storage.read_bytes(place)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
        assert storage.read_bytes(place) == b"old" and storage.list_files(s3) == ["x"]
    line.left = float("inf")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", line.url)
    storage.write_bytes(place, b"new")
    assert storage.read_bytes(place) == b"new"


def test_a_write_is_tried_again_while_that_may_help(monkeypatch):
    tried = []

    class Flaky:
        def open_output_stream(self, place):
            tried.append(place)
            if len(tried) < 3:
                raise OSError("AWS Error SLOW_DOWN during PutObject operation: slow")
            return pa.BufferOutputStream()

    monkeypatch.setattr(storage, "_PAUSE_S", 0.0)
    storage._put("s3://b/x", Flaky(), "b/x", b"1")
    assert len(tried) == 3
    assert not stores.is_transient(OSError("AWS Error ACCESS_DENIED during PutObject operation: no"))


@pytest.mark.slow
def test_a_server_that_does_not_reply_is_given_up_within_half_a_minute(s3, monkeypatch):
    line = Line(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), closes=False)
    line.left = 500
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", line.url)

    def given_up(act):
        began = time.monotonic()
        with pytest.raises(RunError, match="there is no connection, or no reply"):
            act()
        return time.monotonic() - began

    acts = [lambda size=size: storage.write_bytes(f"{s3}/{size}", bytes(size)) for size in (1000, 12 << 20)]
    with ThreadPoolExecutor() as pool:  # at once, since all of them wait
        seconds = list(pool.map(given_up, [*acts, lambda: storage.read_bytes(f"{s3}/1000")]))
    assert max(seconds) < 40  # the limit itself is 30 s


def test_a_directory_on_an_object_store_is_held_by_one_process(s3, monkeypatch):
    place = storage.output(s3)
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    monkeypatch.setattr(lock.random, "uniform", lambda low, high: 1.2)  # times of the store are in seconds
    notes = []
    with lock.alone(place) as check:
        check()
        with (
            pytest.raises(RunError, match=r"is in use by process \d+ on \S+; wait until"),
            lock.alone(place, notes.append),
        ):
            pass
        assert len(notes) == 1 and "may have been killed" in notes[0]
        with pytest.raises(RunError, match=r"lost its lock on .*: either it could not write there"):
            for _ in range(600):
                for name in storage.entries(place):  # as another process that took it for dead does
                    storage.remove(place / name)
                check()
                time.sleep(0.05)
    assert storage.entries(place) == {}
    storage.write_text(place / f"{lock.LOCK}-dead", "process 1 on a machine that is off")
    monkeypatch.setattr(lock, "_DEAD_S", 2.5)
    notes.clear()
    with lock.alone(place, notes.append):  # waits until the claim is old
        assert notes and "process 1 on a machine that is off" in notes[0]
        assert len(storage.entries(place)) == 1


def test_a_claim_that_was_not_renewed_in_time_is_not_taken_up_again(s3, monkeypatch):
    """A process that stood still for so long that another one may hold the directory."""
    monkeypatch.setattr(lock, "_RENEW_S", 0.05)
    monkeypatch.setattr(lock, "_DEAD_S", 0.8)
    exists = storage.exists
    with lock.alone(storage.output(s3)) as check:
        monkeypatch.setattr(storage, "exists", lambda place: time.sleep(1.0) or exists(place))
        with pytest.raises(RunError, match="lost its lock on"):
            for _ in range(600):
                check()
                time.sleep(0.05)
        monkeypatch.setattr(storage, "exists", exists)
        time.sleep(1.5)
        with pytest.raises(RunError, match="lost its lock on"):
            check()


def test_copies_on_a_node_are_shared_checked_and_bounded(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path))
    with node_cache.on_this_node(tmp_path) as folder:
        assert folder == tmp_path and not list(tmp_path.iterdir())  # a local folder is not copied
    places = {}
    for name in ("a", "b"):
        places[name] = storage.output(f"{s3}/{name}")
        with storage.filled(places[name]) as folder:
            (folder / "x").write_text(name * 1000)
            (folder / "y").write_text("")
        assert storage.Folder(places[name]).fault() is None
    with node_cache.on_this_node(places["a"]) as copy:
        assert (copy / "x").read_text() == "a" * 1000 and (copy / "y").exists()
    storage.remove(places["a"] / "x")
    with node_cache.on_this_node(places["a"]) as again:  # not read again
        assert again == copy
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 2000}))
    with node_cache.on_this_node(places["b"]) as other:  # room for one of them
        assert not copy.exists() and (other / "x").exists()
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 100}))
    with pytest.raises(RunError, match="set RAYSEL_CACHE"), node_cache.on_this_node(places["a"]):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("RAYSEL_CACHE", str(tmp_path / "new"))
    storage.write_text(places["b"] / "x", "c" * 1000)
    with (
        pytest.raises(ValueError, match="The copy of x does not have the digest"),
        node_cache.on_this_node(places["b"]),
    ):
        pass
    storage.remove(places["b"] / storage.MARKER)
    with pytest.raises(FileNotFoundError), node_cache.on_this_node(places["b"]):
        pass
