"""Copies on this node of files on an object store, which are memory-mapped: few, and removed when others need the space."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raysel.core import storage
from raysel.core.fingerprint.files import cache_root
from raysel.core.storage import Place, StorePath
from raysel.errors import RunError

_SHARE = 0.5  # of the disk space that is free or taken by copies


@contextmanager
def on_this_node(folder: Place) -> Iterator[Path]:
    """Return a local folder itself, or one on this node with copies of the files of another one.

    They are copied once for all processes of the node, and named by their digests: the same files are copied once, wherever
    they are.

    The copies stay until others need the space. A process that has mapped a copy keeps it, also after it was removed.

    Parameters
    ----------
    folder : Place
        On an object store, a complete folder with its marker.

    Yields
    ------
    Path
        The folder, which no other process removes before the block ends.

    Raises
    ------
    RunError
        If the disk is too small, or the object store cannot be read.
    OSError, ValueError
        If a file or the marker is missing, or not as it was written.
    """
    if isinstance(folder, Path):
        yield folder
        return
    files = storage.Folder(folder).files()
    root = cache_folder()
    name = hashlib.sha256(json.dumps({key: list(files[key]) for key in sorted(files)}).encode()).hexdigest()[
        :24
    ]
    storage.make_folder(root)
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = root / name
        if place.is_dir():
            os.utime(place)
        else:
            _copy(folder, files, place)
        yield place


def cache_folder() -> Path:
    """Return the folder of the copies, which need not exist: below the cache, if that is on this machine."""
    root = cache_root()
    return Path(tempfile.gettempdir(), f"raysel-{os.getuid()}") if "://" in root else Path(root, "arrays")


def _copy(folder: StorePath, files: Mapping[str, tuple[int, str]], place: Path) -> None:
    _make_room(place.parent, sum(size for size, _ in files.values()))
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, (_, digest) in files.items():
            if storage.fetch(folder / name, partial / name) != digest:
                raise ValueError(f"The copy of {name} does not have the digest of the original file.")
        os.replace(partial, place)
    except OSError as error:
        raise storage.unwritable(place, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_room(root: Path, need: int) -> None:
    """Remove the copies that were used longest ago until there is room; raise RunError if there cannot be."""
    copies = sorted(
        (entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime
    )
    sizes = {copy: sum(file.stat().st_size for file in copy.iterdir()) for copy in copies}
    taken = sum(sizes.values())
    room = int(_SHARE * (shutil.disk_usage(root).free + taken))
    if need > room:
        raise RunError(
            f"The training needs {need / 1e9:,.1f} GB for copies of its arrays in {root}, but copies may take up at most "
            f"{room / 1e9:,.1f} GB of this disk; set RAYSEL_CACHE to a folder on a larger disk."
        )
    for copy in copies:
        if taken + need <= room:
            return
        shutil.rmtree(copy)
        taken -= sizes[copy]
