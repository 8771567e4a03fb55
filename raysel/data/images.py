"""A directory of images as a table of paths and classes; bytes are read when needed. Without Ray."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs

from raysel.core.storage import resolve
from raysel.errors import DataError, first

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABELS = "labels.csv"


def holds_images(source: str) -> bool:
    """Return whether a path is a directory with images in it and no Parquet."""
    filesystem, path = resolve(source)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return False
    names = [
        entry.path.lower() for entry in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    ]
    return any(name.endswith(SUFFIXES) for name in names) and not any(
        name.endswith(".parquet") for name in names
    )


def list_images(source: str) -> pa.Table:
    """Return ``path`` (below the directory, sorted) of every image in it, and ``label`` if classes are known.

    The class is that of ``labels.csv`` (columns path and label) if there is one, else the first folder of the
    path.

    Raises
    ------
    DataError
        If some images have a class and others have none.
    """
    filesystem, root, inside = _files(source)
    paths = _images(inside)
    if not paths:
        raise DataError(f"The directory {source} holds no images ({', '.join(SUFFIXES)}).")
    if LABELS in inside:
        return pa.table({"path": paths, "label": _listed(filesystem, f"{root}/{LABELS}", paths)})
    classes = [path.split("/")[0] if "/" in path else None for path in paths]
    if not any(classes):
        return pa.table({"path": paths})
    loose = [path for path, name in zip(paths, classes, strict=True) if name is None]
    if loose:
        raise DataError(
            f"In {source}, {len(loose):,} images are outside the folders of the classes ({first(loose)}); move them into one, or "
            f"list the class of every image in {LABELS}."
        )
    return pa.table({"path": paths, "label": classes})


def digest_images(source: str) -> str:
    """Return a digest of the paths and sizes of all images, which determine the ids of the rows."""
    inside = _files(source)[2]
    listed = "\n".join(f"{path} {inside[path]}" for path in _images(inside))
    return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()


def _files(source: str) -> tuple[pafs.FileSystem, str, dict[str, int]]:
    """Return the filesystem, the directory on it, and the size of every file in it by its path below."""
    filesystem, root = resolve(source)
    entries = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    sizes = {
        entry.path[len(root) :].lstrip("/"): entry.size
        for entry in entries
        if entry.type == pafs.FileType.File
    }
    return filesystem, root, sizes


def _images(inside: Iterable[str]) -> list[str]:
    return sorted(
        path
        for path in inside
        if path.lower().endswith(SUFFIXES) and not any(p.startswith((".", "_")) for p in path.split("/"))
    )


def _listed(filesystem: pafs.FileSystem, place: str, paths: list[str]) -> pa.ChunkedArray:
    try:
        with filesystem.open_input_stream(place) as stream:
            table = pacsv.read_csv(stream)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{place} is not a readable CSV file ({str(error).splitlines()[0]}).") from error
    if not {"path", "label"} <= set(table.column_names):
        raise DataError(
            f"{place} must have the columns path and label; its columns are {', '.join(table.column_names)}."
        )
    where = {os.path.normpath(str(name)): row for row, name in enumerate(table["path"].to_pylist())}
    missing = [path for path in paths if path not in where]
    if missing:
        raise DataError(
            f"{place} has no class for {len(missing):,} images ({first(missing)}); add a row for each."
        )
    return table["label"].take(pa.array([where[path] for path in paths]))


def load_images(table: pa.Table, source: str) -> pa.Table:
    """Return ``table`` with the column ``image``: the bytes of its files, null if one cannot be read."""
    filesystem, root = resolve(source)
    images = []
    for path in table["path"].to_pylist():
        try:
            with filesystem.open_input_file(f"{root}/{path}") as file:
                images.append(file.read())
        except OSError:
            images.append(None)
    return table.append_column("image", pa.array(images, pa.binary()))
