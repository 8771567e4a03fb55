"""A directory of images as a table of paths and classes; bytes are read when needed. Without Ray."""

from __future__ import annotations

import hashlib
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs

from raysel.core.fingerprint.files import Trust, stored_digests
from raysel.data.files import SPECIAL, File, Folder, entries_below, hidden, same_files
from raysel.data.formats.csv import Csv
from raysel.data.formats.format import Format
from raysel.data.listing import warn
from raysel.data.schemas import Unified
from raysel.errors import COLUMNS, DataError, first

SUFFIXES = (
    *(
        ".avif",
        ".bmp",
        ".gif",
        ".ico",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
    ),
    *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
LABELS = "labels.csv"
_PARTS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "holdout")
)
ROWS = 256  # images that are read together
_THREADS = 16


class Images(Format):
    """A directory of images, read as one: ``path``, ``label`` if classes are known, and ``image``, the bytes.

    A name may begin with "_", as cameras write it; one that begins with "." is left out.
    """

    name = "images"
    unit = "directory"

    def holds(self, folder: Folder) -> bool:
        """Return whether there are images in the directory, and no Parquet."""
        return bool(_images(folder.files)) and not any(
            name.lower().endswith((".parquet", ".pq")) and not hidden(name) for name in folder.files
        )

    def files(self, folder: Folder) -> list[File]:
        """Return the directory as one file."""
        return [File(folder.filesystem, folder.path)]

    def left_out(self, folder: Folder) -> list[str]:
        """Return the files that are not images."""
        read = {*_images(folder.files), LABELS}
        return [name for name in folder.files if name not in read]

    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the columns; no image is read."""
        return pa.schema([*list_images(file.filesystem, file.path).schema, pa.field("image", pa.binary())])

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the images in their order, with their bytes if they are wanted."""
        listed = list_images(file.filesystem, file.path)
        for start in range(0, len(listed), ROWS):
            table = listed.slice(start, ROWS)
            if "image" in schema.names:
                table = load_images(table, file.filesystem, file.path)
            yield table.select([name for name in table.column_names if name in set(schema.names)])

    def unify(self, names: Sequence[str], schemas: Sequence[pa.Schema]) -> Unified:
        """Return the schema; raise DataError for several directories, whose paths could be equal."""
        if len(names) > 1:
            raise DataError(
                f"Directories of images must be read one at a time, not together: {first(names)}."
            )
        return super().unify(names, schemas)

    def digest(self, file: File, trust: Trust = "content") -> str:
        """Return a digest of all images and of ``labels.csv``."""
        sizes = _sizes(file.filesystem, file.path)
        names = [*_images(list(sizes)), *([LABELS] if LABELS in sizes else [])]
        places = [posixpath.join(file.path, name) for name in names]
        found = stored_digests(file.filesystem, places, trust)
        return _digest(f"{name} {value}" for name, value in zip(names, found, strict=True))

    def identity(self, file: File, trust: Trust = "content") -> str:
        """Return a digest of the paths and sizes of all images, which determine the ids of the rows."""
        sizes = _sizes(file.filesystem, file.path)
        return _digest(f"{name} {sizes[name]}" for name in _images(list(sizes)))


def list_images(filesystem: pafs.FileSystem, root: str) -> pa.Table:
    """Return ``path`` (below the directory, sorted) of every image in it, and ``label`` if classes are known.

    The class is that of ``labels.csv`` (columns path and label) if there is one, else the first folder of the
    path, as in torchvision's ``ImageFolder``.

    Raises
    ------
    DataError
        If there are no images, some have a class and others have none, or the first folders are the parts of a data
        set, such as ``train`` and ``test``.
    """
    sizes = _sizes(filesystem, root)
    paths = _images(list(sizes))
    if not paths:
        raise DataError(f"The directory {root} holds no images ({', '.join(SUFFIXES)}).")
    if isinstance(filesystem, pafs.LocalFileSystem):
        linked = [posixpath.relpath(link, root) for _, link in same_files(f"{root}/{path}" for path in paths)]
        if linked:
            count = "1 image is a link" if len(linked) == 1 else f"{len(linked):,} images are links"
            warn(
                f"In {root}, {count} to an image that is read too ({first(linked)}), so the same image is in more than one row."
            )
    if LABELS in sizes:
        return pa.table({"path": paths, "label": _listed(File(filesystem, f"{root}/{LABELS}"), paths)})
    classes = [path.split("/")[0] if "/" in path else None for path in paths]
    if not any(classes):
        return pa.table({"path": paths})
    loose = [path for path, name in zip(paths, classes, strict=True) if name is None]
    if loose:
        raise DataError(
            f"In {root}, {len(loose):,} images are outside the folders of the classes ({first(loose)}); move each image into the "
            f"folder of its class, or list the class of every image in {LABELS}."
        )
    names = sorted(set(filter(None, classes)))
    if _PARTS.issuperset(name.lower() for name in names):
        raise DataError(
            f"The folders of {root} are named like the splits of a data set, not like classes ({first(names)}); read one of "
            f"them ({root}/{names[0]}), or list the class of every image in {LABELS}."
        )
    below = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    if len(names) == 1 and len(below) > 1:
        warn(
            f"All images of {root} are in the folder {names[0]}, so all of them get this label. If the folders in {names[0]} "
            f"are the classes ({first(below)}), read {root}/{names[0]}."
        )
    return pa.table({"path": paths, "label": classes})


def load_images(table: pa.Table, filesystem: pafs.FileSystem, root: str) -> pa.Table:
    """Return ``table`` with the column ``image``: the bytes of its files, null if one cannot be read."""

    def load(path: str) -> bytes | None:
        try:
            with filesystem.open_input_file(f"{root}/{path}") as file:
                return bytes(file.read())
        except OSError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        images = list(pool.map(load, table["path"].to_pylist()))
    return table.append_column("image", pa.array(images, pa.binary()))


def _sizes(filesystem: pafs.FileSystem, root: str) -> dict[str, int]:
    """Return the size of every file in and below the directory, by its path below."""
    entries = entries_below(filesystem, root)
    return {name: size for name, size in entries if size is not None and size != SPECIAL}


def _images(names: Sequence[str]) -> list[str]:
    return sorted(
        name for name in names if name.lower().endswith(SUFFIXES) and not hidden(name, underscores=False)
    )


def _digest(lines: Iterator[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _listed(file: File, paths: list[str]) -> pa.Array:
    """Return the class of each path; paths are compared after Unicode's composition, and backslashes as slashes."""
    reader = Csv()
    with file.stream() as stream:
        try:
            stream.read().decode()
        except UnicodeDecodeError:
            raise DataError(f"{file.path} is not text in UTF-8; save it in that encoding.") from None
    schema = reader.schema(file)
    if not {"path", "label"} <= set(schema.names):
        raise DataError(
            f"{file.path} must have the columns path and label; its columns are {first(schema.names, COLUMNS)}."
        )
    wanted = pa.schema([pa.field("path", pa.string()), schema.field("label")])
    tables = [table.select(["path", "label"]) for table in reader.tables(file, wanted)]
    table = pa.concat_tables(tables).combine_chunks()
    names, labels = map(_normal, table["path"].to_pylist()), table["label"].to_pylist()
    where: dict[str, int] = {}
    for row, name in enumerate(names):
        if labels[where.setdefault(name, row)] != labels[row]:
            raise DataError(f"{file.path} lists {name} with two classes; keep only one row for this image.")
    rows = [where.get(_normal(path)) for path in paths]
    missing = [path for path, row in zip(paths, rows, strict=True) if row is None]
    if missing:
        raise DataError(
            f"{file.path} has no class for {len(missing):,} images ({first(missing)}); add a row for each."
        )
    unused = where.keys() - set(map(_normal, paths))
    if unused:
        count = "1 image" if len(unused) == 1 else f"{len(unused):,} images"
        warn(f"{file.path} lists {count} that the directory does not hold ({first(sorted(unused))}).")
    return table["label"].combine_chunks().take(pa.array(rows))


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")))
