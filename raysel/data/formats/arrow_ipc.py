"""Arrow IPC files and streams, Feather, and data sets that Hugging Face saved. Without Ray."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather

from raysel.data.files import File, Folder
from raysel.data.formats.format import Format, checked, reading, reading_file
from raysel.errors import DataError, first

_FILE, _STREAM, _FEATHER = b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"


class ArrowIpc(Format):
    """Arrow IPC as a file (also Feather) or as a stream; the first bytes say which."""

    name = "Arrow"
    suffixes: tuple[str, ...] = (".arrow", ".arrows", ".feather", ".ipc")

    def recognises(self, head: bytes) -> bool:
        """Return whether a file begins as Arrow writes it."""
        return head.startswith((_FILE, _STREAM, _FEATHER))

    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the schema that the file stores."""
        with self._opened(file) as (schema, _):
            _decode_names(schema)
            return schema.remove_metadata()

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the record batches."""
        with self._opened(file) as (own, batches):
            for batch in batches:
                table = checked(pa.Table.from_batches([batch])).replace_schema_metadata(None)
                yield table.select([name for name in own.names if name in set(schema.names)])

    @contextmanager
    def _opened(self, file: File) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        with reading_file(file, "Arrow file"), file.open() as source:
            head = bytes(source.read(8))
            source.seek(0)
            if head.startswith(_FEATHER):
                table = feather.read_table(source)
                yield table.schema, iter(table.to_batches())
            elif head.startswith(_FILE):
                reader = pa.ipc.open_file(source)
                yield reader.schema, (reader.get_batch(at) for at in range(reader.num_record_batches))
            else:
                stream = pa.ipc.open_stream(source)
                yield stream.schema, _streams(file.path, source, stream)


def _decode_names(fields: Iterable[pa.Field]) -> None:
    """Raise UnicodeDecodeError for a name that is not UTF-8, in nested types too; pyarrow decodes names when they are read."""
    for field in fields:
        assert isinstance(field.name, str)
        _decode_names(field.type.field(at) for at in range(field.type.num_fields))


def _streams(
    path: str, source: pa.NativeFile, stream: pa.RecordBatchStreamReader
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream, and of the streams that follow it in the same file."""
    schema = stream.schema
    while True:
        yield from stream
        if source.tell() == source.size():
            return
        stream = pa.ipc.open_stream(source)
        if not stream.schema.equals(schema):
            raise DataError(
                f"{path} contains several Arrow streams with different columns; write each stream to its own file."
            )


class SavedDataset(ArrowIpc):
    """A directory that ``datasets.Dataset.save_to_disk`` wrote; the rows of its Arrow files in their order."""

    name = "Hugging Face"
    suffixes = ()

    def recognises(self, head: bytes) -> bool:
        """Return False: the directory says what it is."""
        return False

    def holds(self, folder: Folder) -> bool:
        """Return whether the directory holds the state of a data set, or several splits."""
        return (
            "state.json" in folder.files and "dataset_info.json" in folder.files
        ) or "dataset_dict.json" in folder.files

    def files(self, folder: Folder) -> list[File]:
        """Return the files that ``state.json`` lists."""
        if "dataset_dict.json" in folder.files:
            splits = _json(folder, "dataset_dict.json").get("splits", [])
            raise DataError(
                f"{folder.path} holds the splits {first(splits)}; read one of them: {folder.path}/{(splits or ['train'])[0]}."
            )
        state = _json(folder, "state.json")
        with reading(f"{folder.path}/state.json", "state file of a Hugging Face data set"):
            names = [str(entry["filename"]) for entry in state["_data_files"]]
            indexed = state.get("_indices_files")
        if indexed:
            raise DataError(
                f"{folder.path} stores the order of its rows separately (it was saved after select, shuffle or sort); call flatten_indices() and save it again."
            )
        missing = [name for name in names if name not in folder.files]
        if missing:
            raise DataError(
                f"{folder.path}/state.json lists files that do not exist: {first(missing)}. Restore them, or save the data set "
                "again."
            )
        return [File(folder.filesystem, posixpath.join(folder.path, name)) for name in names]

    def left_out(self, folder: Folder) -> list[str]:
        """Return the files that are not part of the data set."""
        known = {
            "state.json",
            "dataset_info.json",
            *(posixpath.basename(file.path) for file in self.files(folder)),
        }
        return [name for name in folder.files if name not in known]


def _json(folder: Folder, name: str) -> dict[str, Any]:
    path = posixpath.join(folder.path, name)
    with (
        reading(path, "state file of a Hugging Face data set"),
        folder.filesystem.open_input_stream(path) as stream,
    ):
        found = json.loads(stream.read())
    if not isinstance(found, dict):
        raise DataError(
            f"{path} is not a readable state file of a Hugging Face data set (its content is not a JSON object); save the data set "
            "again."
        )
    return found
