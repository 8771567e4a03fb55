"""NumPy files: ``.npy`` is one column ``data``, ``.npz`` a column per array. Without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from raysel.data.files import File
from raysel.data.formats.format import Format, checked, reading_file
from raysel.data.memory import as_table
from raysel.errors import DataError

_ROWS = 65_536


class NumpyArrays(Format):
    """Arrays without pickled objects; the first axis counts the rows."""

    name = "NumPy"
    suffixes = (".npy", ".npz")

    def recognises(self, head: bytes) -> bool:
        """Return whether a file begins as NumPy writes it."""
        return head.startswith(b"\x93NUMPY") or (head.startswith(b"PK\x03\x04") and b".npy" in head)

    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the columns."""
        return self._table(file).schema

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows in blocks."""
        table = self._table(file)
        table = table.select([name for name in table.column_names if name in set(schema.names)])
        for start in range(0, len(table), _ROWS):
            yield table.slice(start, _ROWS)

    def _table(self, file: File) -> pa.Table:
        with reading_file(file, f"{file.suffix or 'NumPy'} file"), file.open() as source:
            head = bytes(source.read(300))
            if head.startswith(b"PK\x05\x06"):
                raise DataError(f"{file.path} is an archive without arrays; write at least one into it.")
            if not self.recognises(head):
                raise DataError(
                    f"{file.path} is not a NumPy file: its first bytes are those of another format."
                )
            source.seek(0)
            found = np.load(source, allow_pickle=False)
            if isinstance(found, np.ndarray) and source.read(1):
                raise DataError(
                    f"{file.path} holds more data after its first array; write several arrays with "
                    "numpy.savez, or to files of their own."
                )
            try:
                return checked(as_table(found if isinstance(found, np.ndarray) else dict(found)))
            except DataError as error:
                raise DataError(f"{file.path}: {error}") from error
