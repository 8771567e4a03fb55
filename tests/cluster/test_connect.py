"""A token is used where there is one; without one nothing that aborts the process is switched on."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys
from raysel.cluster.connect import connect
from raysel.errors import ResourceError
import ray
ray.init = lambda **options: print("joins", options["address"])
try:
    connect(sys.argv[1])
except ResourceError as error:
    print(error)
print("mode", os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.mark.parametrize(
    ("address", "token", "mode", "lines"),
    [
        ("auto", None, None, ["joins auto", "mode None"]),
        ("auto", "home", None, ["joins auto", "mode token"]),
        ("auto", "path", None, ["joins auto", "mode token"]),
        ("auto", "variable", None, ["joins auto", "mode token"]),
        ("auto", "empty", None, ["joins auto", "mode None"]),
        ("auto", "home", "disabled", ["joins auto", "mode disabled"]),
        ("local", None, "token", ["joins local", "mode token"]),  # Ray makes a token for a cluster of its own
        (
            "auto",
            None,
            "token",
            ["The Ray cluster at auto cannot be joined: RAY_AUTH_MODE is 'token'", "mode token"],
        ),
        (
            "ray://127.0.0.1:1",
            None,
            None,
            ["The Ray cluster at ray://127.0.0.1:1 cannot be joined ([Errno 111]", "mode None"],
        ),
    ],
)
def test_a_token_is_used_where_there_is_one(tmp_path, monkeypatch, address, token, mode, lines):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    elif token:
        file = tmp_path / ("elsewhere" if token == "path" else ".ray/auth_token")
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if token == "empty" else "x")
        if token == "path":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    done = subprocess.run([sys.executable, "-c", CODE, address], capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == len(lines), done.stderr
    for line, start in zip(said, lines, strict=True):
        assert line.startswith(start)
