"""A cluster is joined as Ray itself would, or one sentence says within seconds why not; never does the process abort."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raysel.cluster import connect as module
from raysel.errors import ResourceError

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_address_is_that_of_the_environment_unless_another_is_given(home, monkeypatch):
    assert [module._where(given) for given in (None, "auto", "a:1")] == ["local", "auto", "a:1"]
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert [module._where(given) for given in (None, "auto", "a:1", "local")] == [
        "b:2",
        "b:2",
        "a:1",
        "local",
    ]


def test_the_token_is_found_where_ray_finds_it(home, monkeypatch):
    file, other = home / ".ray/auth_token", home / "other"
    assert module._token("auto") is None
    file.parent.mkdir()
    file.write_text(" \n")
    assert module._token("auto") is None
    file.write_text("x\n")
    assert module._token("auto") == str(file)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert module._token("auto") is None
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    other.write_text("y")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert module._token("auto") == str(other)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "z")
    assert "RAY_AUTH_TOKEN" in module._token("auto")


@pytest.mark.parametrize(
    ("where", "settings", "sentence"),
    [
        (
            "auto",
            {"RAY_AUTH_MODE": "token"},
            "RAY_AUTH_MODE is 'token', but RAY_AUTH_TOKEN is not set and .* no token",
        ),
        ("auto", {"RAY_AUTH_TOKEN_PATH": "/none"}, "the file of the token, /none, cannot be read"),
        (
            "local",
            {"RAY_AUTH_TOKEN_PATH": "/none"},
            "Ray cannot be started: the file of the token, /none, cannot be read",
        ),
        ("auto", {"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "RAY_AUTH_TOKEN_PATH is /dev/null, which is empty"),
        (
            "auto",
            {"RAY_AUTH_TOKEN": "secret\nsecret"},
            "holds a line break or another character that no token has",
        ),
        (
            "local",
            {"RAY_AUTH_TOKEN": "secr\u00e9t"},
            "holds a line break or another character that no token has",
        ),
    ],
)
def test_ray_would_abort_the_process_for_these_tokens(home, monkeypatch, where, settings, sentence):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ResourceError, match=sentence) as error:
        module._token(where)
    assert "secr" not in str(error.value)


def test_a_cluster_of_its_own_needs_no_token(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray makes one
    assert module._token("local") is None


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (
            "ray://127.0.0.1:10001",
            "for Ray Client, which raysel does not support. Instead, .*raysel submit",
        ),
        ("http://127.0.0.1:8265", "an address of the Ray dashboard. Give HOST:PORT .* or .*raysel submit"),
        *(
            (place, "is not the address of a Ray cluster")
            for place in ("127.0.0.1", "a:b", ":1", "a:99999", "x://y:1")
        ),
        ("no-such-host.invalid:6379", "cannot be joined: .*name.*Check the address and that Ray runs there"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_refused(home, where, sentence):
    with pytest.raises(ResourceError, match=f"(?i){sentence}"):
        module._check(where)


def test_a_port_that_is_closed_and_one_of_something_else(home, monkeypatch):
    monkeypatch.setattr(module, "_REPLY_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        with pytest.raises(ResourceError, match="Connection refused"):
            module._check(f"127.0.0.1:{port}")
        server.listen()
        with pytest.raises(
            ResourceError, match=r"there was no reply from a Ray cluster within 0.5 s\. Check the address"
        ):
            module._check(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            {"ray": "1.2.3"},
            r"it runs Ray 1\.2\.3 and Python .*, but this process runs Ray .*Install the same versions",
        ),
        ({"python": "2.7.18"}, r"it runs Ray .* and Python 2\.7\.18, but this process runs"),
        (
            {"here": False},
            r"this machine is not one of its nodes \(10\.0\.0\.1, 10\.0\.0\.2\)\. .*raysel submit",
        ),
        ({"error": "RuntimeError", "text": "one\ntwo"}, r"cannot be joined: one\. Check the address"),
    ],
)
def test_what_a_cluster_says_of_itself(home, monkeypatch, found, sentence):
    import ray

    same = {"ray": ray.__version__, "python": ".".join(map(str, sys.version_info[:3])), "here": True}
    same |= {"address": "10.0.0.1:6379", "nodes": ["10.0.0.1", "10.0.0.2"]}
    monkeypatch.setattr(module, "_look", lambda where, with_token: same)
    module._check("auto")
    monkeypatch.setattr(module, "_look", lambda where, with_token: same | found)
    with pytest.raises(ResourceError, match=sentence):
        module._check("auto")
    monkeypatch.setattr(module, "_look", lambda where, with_token: {})  # a Ray without the interface
    module._check("auto")


# ---- real clusters -------------------------------------------------------------------------------------------

JOIN = """
import os, sys
from pathlib import Path
import ray
from raysel.cluster import connect as module
from raysel.errors import ResourceError

address, home = sys.argv[1], Path(os.environ["HOME"])

def attempt(name, **settings):
    os.environ.update(settings)
    try:
        module.connect(address)
        print(name, "| joined", ray.get(ray.remote(lambda: 1).remote()), flush=True)
    except ResourceError as error:
        print(name, "|", error, flush=True)
    for key in settings:
        os.environ.pop(key, None)
"""


@contextmanager
def head(token: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """A head on this machine: its address, and the environment of its clients."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as base:
        home, server = Path(base, "home"), Path(base, "head")
        home.mkdir()
        server.mkdir()
        env = {key: value for key, value in os.environ.items() if key not in TOKENS}
        env |= {"HOME": str(server), "RAY_USAGE_STATS_ENABLED": "0"}
        if token:
            (server / ".ray").mkdir()
            (server / ".ray/auth_token").write_text(token)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [
            "--head",
            "--include-dashboard=false",
            "--num-cpus=1",
            "--object-store-memory=100000000",
            "--block",
        ]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        command += [f"--port={port}", f"--temp-dir={base}/t", "--min-worker-port=0", "--max-worker-port=0"]
        with open(f"{base}/log", "w") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            limit = time.monotonic() + 90
            while "Ray runtime started" not in (said := Path(base, "log").read_text()):
                assert process.poll() is None and time.monotonic() < limit, said
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", {**env, "HOME": str(home)}
        finally:
            process.terminate()
            process.wait(60)


def attempts(code: str, address: str, env: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", JOIN + code, address], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" | ") for line in done.stdout.splitlines())


@pytest.mark.slow  # a cluster of its own
def test_a_cluster_with_a_token():
    secret = "0123456789abcdef"
    with head(secret) as (address, env):
        found = attempts(
            f"""
attempt("none")
attempt("wrong", RAY_AUTH_TOKEN="other")
attempt("disabled", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="other")
own, module._token = module._token, lambda where: None
attempt("abort", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="{secret}\\nother")  # native code would end the process
module._token = own
(home / ".ray").mkdir()
(home / ".ray/auth_token").write_text("{secret}")
attempt("right")  # also though Ray was imported before
""",
            address,
            env,
        )
    start = f"The Ray cluster at {address} cannot be joined: it requires a token, and "
    assert re.match(
        f"{start}no token was found on this machine. Copy the cluster's token to ~/.ray/auth_token, or",
        found["none"],
    )
    assert found["wrong"].startswith(
        f"{start}the token in the environment variable RAY_AUTH_TOKEN is not that of the cluster"
    )
    start = start.removesuffix("and ")
    assert found["disabled"] == f"{start}but RAY_AUTH_MODE is 'disabled'. Unset RAY_AUTH_MODE."
    assert re.search(r"cannot be joined: Ray ended with exit code -\d+ \(", found["abort"])
    assert found["right"] == "joined 1"
    assert secret not in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "a-token-that-is-not-needed"])
def test_a_cluster_without_a_token(token):
    with head(None) as (address, env):
        env |= {"RAY_AUTH_TOKEN": token} if token else {}
        assert attempts("attempt('open')", address, env) == {"open": "joined 1"}
        change = """
from ray._raylet import GcsClient
GcsClient(address=address).internal_kv_put(
    b"CLUSTER_METADATA", b'{"ray_version": "1.2.3", "python_version": "3.5.0"}', True, namespace=b"cluster"
)
attempt("other")
"""
        assert (
            "it runs Ray 1.2.3 and Python 3.5.0, but this process" in attempts(change, address, env)["other"]
        )
