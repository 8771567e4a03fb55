"""CSV: values keep their digits, and text that looks like something else stays text. Without Ray."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from raysel.data.files import LFS_POINTER, File
from raysel.data.formats.format import Format, inferred, reading_file
from raysel.data.listing import warn
from raysel.data.schemas import Unified, unify
from raysel.errors import DataError, first

_BLOCK, _LARGEST = 8 << 20, 1 << 30
_TAIL = 1 << 20
_STARTS = {  # of files that are no text
    b"\x1f\x8b": "is compressed; rename it to end in .gz, or unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed; rename it to end in .zst, or unpack it",
    b"BZh": "is compressed; rename it to end in .bz2, or unpack it",
    b"PK\x03\x04": "is a zip archive, as the files of spreadsheets are; unpack it, or save the sheet as CSV",
    b"PAR1": "is Parquet; rename it to end in .parquet",
    b"ARROW1": "is Arrow; rename it to end in .arrow",
}
_NULLS = pa.array(pacsv.ConvertOptions().null_values)
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_WHOLE = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = (
    r"^[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?(inf|Inf|INF|infinity|Infinity)$"
)
_COMMA = r"^[-+]?[0-9]+(,[0-9]+)?$"
_EXACT = 2**53


class Csv(Format):
    """Comma-separated values with a header; also ``;``, tabs or ``|`` if the header has no comma outside quotes.

    A first line ``sep=;``, as Excel writes it, names the delimiter.

    A column is bool, int64, uint64 or double if every value is, and text otherwise: numbers with leading zeros, integers
    that a double would round, dates and times. A decimal number becomes the nearest double. Missing values are spelt as pyarrow does
    (``""``, ``NA``, ``null``, ...); in a column of text they are text. A blank line is a row without a value if the file
    has one column, and is skipped otherwise.
    """

    name = "CSV"
    suffixes = (".csv", ".tsv")
    takes_encoding = True

    @inferred
    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the types that every value of a column fits."""
        columns: dict[str, _Column] = {}
        for batch in self._batches(file, encoding, None):
            for name, values in zip(batch.schema.names, batch.columns, strict=True):
                columns.setdefault(name, _Column()).see(values)
            if sample and len(batch):
                break
        if not sample:
            _warn(file.path, columns)
        return pa.schema([column.field(name) for name, column in columns.items()])

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows in blocks."""
        for batch in self._batches(file, encoding, schema.names):
            arrays = [
                _cast(column, schema.field(n).type)
                for n, column in zip(batch.schema.names, batch, strict=True)
            ]
            yield pa.table(dict(zip(batch.schema.names, arrays, strict=True)))

    def unify(self, names: Sequence[str], schemas: Sequence[pa.Schema]) -> Unified:
        """Return the schema of several files; a column that is a number in one and text in another is text."""

        def fits(file: int, column: str, kind: pa.DataType) -> bool:
            return str(kind).encode() in (schemas[file].field(column).metadata or {})

        return unify(names, schemas, fits, text=True)

    def _batches(
        self, file: File, encoding: str | None, wanted: Sequence[str] | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield every column as text; the header's columns even if there are no rows."""
        with reading_file(file, "CSV file", lambda error: text_hint(file, encoding, error)):
            header, delimiter, told = self._header(file, encoding)
            names = header if wanted is None else [name for name in header if name in set(wanted)]
            block, done = _BLOCK, 0
            while True:
                try:
                    for batch in self._read(file, encoding, header, names, delimiter, told, block, done):
                        done += len(batch)
                        yield batch
                    return
                except pa.ArrowInvalid as error:
                    if "Empty CSV file" in str(error):  # nothing follows the header
                        return
                    if "straddling object" not in str(error) or block >= _LARGEST:
                        raise
                    block *= 8  # a row is longer than a block

    def _header(self, file: File, encoding: str | None) -> tuple[list[str], str, bool]:
        """Return the names of the columns, the delimiter, and whether a line before them names it."""
        size = 1 << 16
        with file.stream() as stream:
            raw = b""
            while True:
                part = stream.read(size)
                raw += part
                text = codecs.getincrementaldecoder(encoding or "utf-8-sig")().decode(raw, final=not part)
                told = re.match("\ufeff?sep=([^\r\n])\r?\n", text)
                begin = told.end() if told else 0
                ends = (match.start() for match in re.compile("\n").finditer(text, begin))
                end = next((end for end in ends if text.count('"', begin, end) % 2 == 0), None)
                if not part or end is not None:
                    break
        if raw.startswith(LFS_POINTER):
            raise ValueError("It is text of Git LFS.")  # which reads as a column
        header = f"{text[begin:end]}\n"  # alone: a value further down is no error of the header
        if end is not None and not header.strip():
            raise DataError(f"The first line of {file.path} is blank; it must hold the names of the columns.")
        delimiter = told[1] if told else _delimiter(header, file.suffix == ".tsv")
        with pacsv.open_csv(
            io.BytesIO(header.encode()),
            read_options=pacsv.ReadOptions(block_size=max(2 * len(raw), 1024)),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        ) as reader:
            names = list(reader.schema.names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                f"{file.path} has several columns named {first(map(repr, twice))}; every column needs a name of its own."
            )
        return names, delimiter, told is not None

    def _read(
        self,
        file: File,
        encoding: str | None,
        header: list[str],
        names: list[str],
        delimiter: str,
        told: bool,
        block: int,
        skip: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows after the first ``skip``; raise if a quoted value does not end before the file does."""
        with file.stream() as stream:
            source = _Quotes(stream)
            yield pa.RecordBatch.from_arrays([pa.array([], pa.string())] * len(names), names=names)
            reader = pacsv.open_csv(
                pa.PythonFile(source, mode="r"),
                read_options=pacsv.ReadOptions(
                    block_size=block, encoding=encoding or "utf8", skip_rows=int(told)
                ),
                parse_options=pacsv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=len(header) > 1
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()),
                    strings_can_be_null=False,
                    include_columns=list(dict.fromkeys([*names, header[-1]])),  # the last one ends a row
                ),
            )
            last: Any = None
            for batch in reader:
                last = batch[-1][-1].as_py() if len(batch) else last
                drop = min(skip, len(batch))
                skip -= drop
                yield batch.slice(drop).select(names)
            if last is not None and source.open_value(last, encoding):
                raise DataError(
                    f"{file.path} ends within a quoted value that begins with {last[:40]!r}; close the quotes, or "
                    "restore the end of the file."
                )


def _delimiter(header: str, tabs: bool) -> str:
    """Return the delimiter of a header: the first of several that occurs outside quotes."""
    bare = re.sub('"[^"]*"', "", header)
    return next((mark for mark in ("\t,;|" if tabs else ",;\t|") if mark in bare), ",")


class _Quotes(io.RawIOBase):
    """A stream that counts quotes and keeps its last bytes, to find a quoted value that never ends."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream, self._odd, self._tail = stream, False, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part = bytes(self._stream.read(None if size is None or size < 0 else size))
        if part:
            self._odd ^= bool(part.count(b'"') % 2)
            self._tail = (self._tail + part)[-_TAIL:]
        return part

    def open_value(self, last: str, encoding: str | None) -> bool:
        """Return whether the last value was opened by a quote and not closed."""
        if not self._odd:
            return False
        value = last.replace('"', '""').encode(encoding or "utf-8", "replace")
        return self._tail.endswith(b'"' + value) or value.endswith(self._tail)


class _Column:
    """The types that every value seen so far fits."""

    def __init__(self) -> None:
        self._kinds = ["bool", "int64", "uint64", "double"]
        self._empty = True
        self._commas: bool | None = None  # None: every number is without one so far

    def see(self, values: pa.Array) -> None:
        """Drop the types that a value does not fit."""
        if (not self._kinds and self._commas is False) or not len(values):
            return
        given = values.filter(pc.invert(pc.is_in(values, _NULLS)))
        if not len(given):
            return
        self._empty = False
        trimmed = pc.utf8_trim_whitespace(given)
        if (whole := _whole(trimmed)) is not None:
            self._kinds = [kind for kind in self._kinds if kind in whole]
            return
        self._kinds = [kind for kind in self._kinds if _fits(trimmed, kind)]
        if self._commas is not False:
            numbers = pc.all(pc.match_substring_regex(trimmed, _COMMA)).as_py()
            self._commas = numbers and (
                self._commas or pc.any(pc.match_substring(trimmed, ",")).as_py() or None
            )

    @property
    def has_commas(self) -> bool:
        """Whether all values are numbers, and some are written with a comma."""
        return bool(self._commas)

    def field(self, name: str) -> pa.Field:
        """Return the column with the first type that fits: text if none does, null without a value."""
        if self._empty:
            return pa.field(name, pa.null())
        names = {"bool": pa.bool_(), "int64": pa.int64(), "uint64": pa.uint64(), "double": pa.float64()}
        fitting = dict.fromkeys(self._kinds, "")  # what the values also are, should another file need it
        return pa.field(name, names[self._kinds[0]] if self._kinds else pa.string(), metadata=fitting)


def _warn(path: str, columns: dict[str, _Column]) -> None:
    """Log what is likely to be meant otherwise than it is read."""
    commas = [name for name, column in columns.items() if column.has_commas]
    if commas:
        warn(
            f"{path}: Numbers that are written with a comma are read as text (column {first(map(repr, commas))}); write "
            "them with a decimal point and without thousands separators."
        )
    counted = list(columns) == list(map(str, range(len(columns))))  # as pandas names them
    if columns and not counted and all(re.fullmatch(_NUMBER, name.strip()) for name in columns):
        warn(
            f"{path}: The first line holds only numbers ({first(columns)}), and they are taken as the names of the columns; "
            "if that line is a row, write a line with names before it."
        )


def _whole(values: pa.Array) -> list[str] | None:
    """Return the types that values fit of which each is an int64; None for others."""
    if not _matches(values[:1], _WHOLE) or not _matches(values, _WHOLE):
        return None
    try:
        ends = pc.min_max(values.cast(pa.int64())).as_py()
    except pa.ArrowInvalid:
        return None
    exact = ends["min"] > -_EXACT and ends["max"] < _EXACT
    return ["int64", *(["uint64"] if ends["min"] >= 0 else []), *(["double"] if exact else [])]


def _fits(values: pa.Array, kind: str) -> bool:
    if kind == "bool":
        return bool(pc.all(pc.is_in(values, pa.array([*_TRUE, *_FALSE]))).as_py())
    if kind == "int64":
        return False  # or _whole had returned its types
    if kind == "uint64":
        if not _matches(values, _WHOLE):
            return False
        try:
            values.cast(pa.uint64())
        except pa.ArrowInvalid:
            return False
        return True
    if not _matches(values, _NUMBER):
        return False
    size = pc.abs(values.cast(pa.float64()))
    large = values.filter(pc.greater_equal(size, float(_EXACT)))  # that a double may round
    endless = pc.is_inf(large.cast(pa.float64()))
    rounded = pc.match_substring_regex(large, _WHOLE)
    return not pc.any(pc.or_(rounded, pc.and_(endless, pc.match_substring_regex(large, "[0-9]")))).as_py()


def _matches(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return values
    given = pc.if_else(
        pc.is_in(values, _NULLS), pa.scalar(None, pa.string()), pc.utf8_trim_whitespace(values)
    )
    return pa.nulls(len(values), kind) if pa.types.is_null(kind) else given.cast(kind)


def text_hint(file: File, encoding: str | None, error: Exception) -> str | None:
    """Return a sentence for files that are no text, and for text in another encoding; None for other errors."""
    try:
        head = file.head(8)
    except OSError:
        head = b""
    for start, words in _STARTS.items():
        if head.startswith(start):
            return f"{file.path} {words}."
    if not (
        isinstance(error, UnicodeError) or "invalid UTF8" in str(error) or "codec can't decode" in str(error)
    ):
        return None
    example = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
    return (
        f"{file.path} is not text in {encoding or 'UTF-8'}; name its encoding, for example encoding='{example}' "
        f"(in a workflow encoding: {example})."
    )
