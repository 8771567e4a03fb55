"""Nodes of a real Ray cluster, each a process of its own: ``ray start --block`` on ports that are free."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

LATEST = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in found]
    for server in found:
        server.close()
    return ports


@contextmanager
def node(words: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """A node that has joined its cluster, until the end of the block."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
    command += ["--object-store-memory=150000000", "--disable-usage-stats", "--block"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 150
        while "Ray runtime started." not in log.read_text():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # a node with workers may take half a minute
            process.wait(timeout=5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        port = next((word.partition("=")[2] for word in words if word.startswith("--port=")), None)
        # A head that was killed leaves its address, to which other processes would connect.
        with suppress(OSError):
            if port and LATEST.read_text().endswith(f":{port}"):
                LATEST.unlink()
