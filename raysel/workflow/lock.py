"""Keep a run directory to one process at a time, on this machine, on shared file systems and on object stores."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysel.core import storage
from raysel.core.storage import Place, StorePath
from raysel.errors import RayselError, RunError

LOCK = ".lock"
_RENEW_S = 10.0  # between two renewals of a claim
_DEAD_S = 45.0  # after which a claim that was not renewed counts for nothing


@contextmanager
def alone(directory: Place, note: Callable[[str], None] = lambda text: None) -> Iterator[Callable[[], None]]:
    """Hold a directory; the hold ends with this process however it ends, on an object store up to 45 s later.

    Yields
    ------
    callable
        Raises RunError if the directory is no longer held, because the object store could not be reached for too long.

    Raises
    ------
    RunError
        If another process holds it, or it cannot be written.
    """
    if isinstance(directory, StorePath):
        with _claimed(directory, note) as check:
            yield check
    else:
        with _locked(directory):
            yield lambda: None


def _in_use(directory: Place, who: str = "another process") -> RunError:
    return RunError(f"{directory} is in use by {who}; wait until that process ends, or choose another --out.")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        lock = open(directory / LOCK, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RunError(f"{directory} cannot be written ({error.strerror}); choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _in_use(directory) from error
            raise RunError(
                f"{directory} is on a file system without locks ({error.strerror}), so two runs could overwrite each "
                "other's files; choose an --out on a file system with locks."
            ) from error
        yield


# ---- object stores: they have no locks, and a new object is listed at once -----------------------------------


@contextmanager
def _claimed(directory: StorePath, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold a directory by an object of this process alone, which is written again every 10 s.

    A process first writes its claim and then lists all of them. Of two processes, the one that lists later therefore sees
    the claim of the other and withdraws. Only times of the store are compared with each other.
    """
    mine = directory / f"{LOCK}-{uuid.uuid4().hex}"
    who = f"process {os.getpid()} on {socket.gethostname()}"
    before: dict[str, int] = {}
    while True:
        storage.write_text(mine, who)
        times = _claims(directory)
        now = times.pop(mine.name, 0)
        alive = {name: at for name, at in times.items() if now - at < _DEAD_S * 1e9}
        if not alive:
            break
        storage.remove(mine)
        if renewed := [name for name, at in alive.items() if before.get(name, at) != at]:
            raise _in_use(directory, _read(directory / renewed[0]))
        before |= alive
        note(f"waiting for {_read(directory / next(iter(alive)))}, which may have been killed")
        time.sleep(_RENEW_S + random.uniform(2, 5))
    for name in times:
        storage.remove(directory / name)
    ended, held = threading.Event(), [time.monotonic()]
    renewer = threading.Thread(target=_renew, args=(mine, who, ended, held), daemon=True)
    renewer.start()

    def check() -> None:
        if time.monotonic() - held[0] > _DEAD_S:
            raise RunError(
                f"This run lost its lock on {directory}: either it could not write there for {_DEAD_S:g} s, or another run took the "
                "lock. Check that the object store can be reached and that no other run uses the directory; then run again."
            )

    try:
        yield check
    finally:
        ended.set()
        renewer.join()
        with suppress(RayselError):  # it counts for nothing soon
            storage.remove(mine)


def _claims(directory: StorePath) -> dict[str, int]:
    """Return when each claim was written, by the clock of the store."""
    found = storage.entries(directory)
    return {
        name: entry.mtime_ns for name, entry in found.items() if name.startswith(f"{LOCK}-") and entry.is_file
    }


def _read(claim: StorePath) -> str:
    try:
        return storage.read_bytes(claim).decode(errors="replace")
    except OSError:
        return "another process"


def _renew(mine: StorePath, who: str, ended: threading.Event, held: list[float]) -> None:
    while not ended.wait(_RENEW_S):
        began = time.monotonic()
        with suppress(RayselError):
            there = storage.exists(mine)
            late = time.monotonic() - held[0] > _DEAD_S - _RENEW_S
            if late or not there:  # another process took this one for dead, or may by now
                held[0] = -math.inf
                return
            storage.write_text(mine, who)
            held[0] = began
