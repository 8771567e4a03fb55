"""Delta Lake tables: the Parquet files of the newest version, with their partition values. Without Ray."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from raysel.data.files import File, Folder
from raysel.data.formats.format import Format, reading
from raysel.errors import DataError, first

_LOG = "_delta_log/"
_REFUSED = {
    "deletionVectors": "stores the marks of deleted rows in separate files",
    "columnMapping": "renames columns outside of the files",
}


class Delta(Format):
    """A directory with ``_delta_log``; its newest version is read through the package ``deltalake``."""

    name = "Delta"
    is_parquet = True

    def holds(self, folder: Folder) -> bool:
        """Return whether the directory has a log of Delta Lake."""
        return any(name.startswith(_LOG) for name in folder.files)

    def files(self, folder: Folder) -> list[File]:
        """Return the files of the newest version, sorted by path."""
        try:
            import deltalake
        except ImportError:
            raise DataError(
                f"{folder.path} is a Delta table, and the package deltalake is not installed; install raysel[delta]."
            ) from None
        if not isinstance(folder.filesystem, pafs.LocalFileSystem):
            raise DataError(
                f"{folder.path} is a Delta table on an object store; only local ones can be read."
            )
        with reading(folder.path, "Delta table"):
            table = deltalake.DeltaTable(folder.path)
            wanted = {*(table.protocol().reader_features or []), *_mapping(table.metadata().configuration)}
            for feature, what in _REFUSED.items():
                if feature in wanted:
                    raise DataError(
                        f"The Delta table {folder.path} uses the feature {feature}, which {what}, so the data files alone do not "
                        "contain the correct table; write the table again without this feature."
                    )
            added = pa.table(table.get_add_actions(flatten=True))
            files = [_file(folder, added, at) for at in range(len(added))]
        if not files:
            raise DataError(f"The Delta table {folder.path} has no rows.")
        there = {posixpath.join(folder.path, name) for name in folder.files}
        missing = [file.path for file in files if file.path not in there]
        if missing:
            raise DataError(
                f"The Delta table {folder.path} lists files that do not exist: {first(missing)}. Restore them, or write the table "
                "again."
            )
        return sorted(files, key=lambda file: file.path)

    def left_out(self, folder: Folder) -> list[str]:
        """Return no file: those of older versions are not rows of the table."""
        return []


def _mapping(configuration: dict[str, str]) -> list[str]:
    return ["columnMapping"] if configuration.get("delta.columnMapping.mode", "none") != "none" else []


def _file(folder: Folder, added: pa.Table, at: int) -> File:
    partition = tuple(
        (name.removeprefix("partition."), added[name][at])
        for name in added.column_names
        if name.startswith("partition.")
    )
    return File(folder.filesystem, posixpath.join(folder.path, unquote(added["path"][at].as_py())), partition)
