"""Nodes of a real Ray cluster, each a process of its own: ``ray start --block`` on ports that are free."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in found]
    for server in found:
        server.close()
    return ports


def reached(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a process listens on the port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def node(
    words: list[str], environment: Mapping[str, str], log: Path, up: Callable[[], bool]
) -> Iterator[None]:
    """A node that is up, until the end of the block."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words]
    command += ["--object-store-memory=150000000", "--disable-usage-stats", "--block"]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=dict(environment), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 150
        while not up():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
