"""JSON: one object per line, or an array of objects. Without Ray."""

from __future__ import annotations

import codecs
import itertools
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from raysel.data.files import File
from raysel.data.formats.csv import text_hint
from raysel.data.formats.format import Format, inferred, reading_file
from raysel.data.schemas import Unified, common_type, unify
from raysel.errors import DataError, reason_of

_PART = 4 << 20  # bytes that are decoded at once
_ENTRIES = 65_536  # of an array that become one table
_CHARACTERS = 16 << 20  # of lines that become one table

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Some rows, and where each is: the number of its line, or of its entry in an array."""

    unit: str
    numbers: list[int]
    values: list[dict[str, Any]]

    def place(self, at: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.unit} {self.numbers[at]}"


class JsonLines(Format):
    """Objects, one per line or in one array; text stays text, and integers keep all digits.

    Half of a surrogate pair, which no text in UTF-8 can hold, becomes U+FFFD with a warning.
    """

    name = "JSON"
    suffixes = (".jsonl", ".ndjson", ".json")
    takes_encoding = True

    def recognises(self, head: bytes) -> bool:
        """Return whether the first character opens an object or an array."""
        return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")

    @inferred
    def schema(self, file: File, encoding: str | None = None, sample: bool = False) -> pa.Schema:
        """Return the types that the values have together."""
        kinds: dict[str, pa.DataType] = {}
        for rows in self._rows(file, encoding):
            for name, column in _table(file.path, rows, None).items():
                known = kinds.get(name)
                merged = column.type if known is None else common_type(known, column.type, loose=True)
                if merged is None:
                    raise DataError(
                        f"Column '{name}' of {file.path} holds {column.type} in {rows.place(0)} or after it, but {known} "
                        "before; write it with one type."
                    )
                kinds[name] = merged
            if sample:
                break
        return pa.schema(list(kinds.items()))

    def tables(self, file: File, schema: pa.Schema, encoding: str | None = None) -> Iterator[pa.Table]:
        """Yield the rows in blocks."""
        for rows in self._rows(file, encoding):
            columns = _table(file.path, rows, schema)
            yield pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows.values))}).select([])

    def unify(self, names: Sequence[str], schemas: Sequence[pa.Schema]) -> Unified:
        """Return the schema of several files; an integer that the type of another file cannot hold is refused when it is read."""
        return unify(names, schemas, loose=True)

    def _rows(self, file: File, encoding: str | None) -> Iterator[Rows]:
        with reading_file(file, "JSON file", lambda error: text_hint(file, encoding, error)):
            held = Rows("line", [], [])
            size, count = 0, 0
            for number, line in _lines(file, encoding):
                text = line.strip()
                if not text:
                    continue
                if not count and text.startswith("["):
                    yield from _array(file, encoding)
                    return
                try:
                    value = _object(file.path, number, text)
                except DataError as error:
                    if count or not _goes_on(error.__cause__, text):
                        raise
                    yield _spread(file, encoding)
                    return
                count += 1
                held.numbers.append(number)
                held.values.append(value)
                size += len(text)
                if size >= _CHARACTERS:
                    yield held
                    held, size = Rows("line", [], []), 0
            if count == 1 and held.values:
                _check_orientation(file.path, held.values[0])
            if held.values:
                yield held


def _lines(file: File, encoding: str | None) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every line, of any length."""
    decoder = codecs.getincrementaldecoder(encoding or "utf-8-sig")()
    number = 1
    open_line: list[str] = []
    with file.stream() as stream:
        while True:
            part = stream.read(_PART)
            pieces = decoder.decode(part, final=not part).split("\n")
            for piece in pieces[:-1]:
                yield number, "".join([*open_line, piece])
                number += 1
                open_line = []
            open_line.append(pieces[-1])
            if not part:
                break
    yield number, "".join(open_line)


def _check_orientation(path: str, row: dict[str, Any]) -> None:
    """Raise DataError for a table that pandas wrote in one object, which would be one row."""
    values = list(row.values())
    names = values[0].keys() if values and isinstance(values[0], dict) else {}
    by_column = (
        bool(names)
        and all(map(str.isdecimal, names))
        and all(isinstance(v, dict) and v.keys() == names for v in values)
    )
    by_row = len(row) > 1 and all(map(str.isdecimal, row))
    split = {"columns", "data"} <= row.keys() <= {"columns", "data", "index"}
    described = row.keys() == {"schema", "data"} and "fields" in (row["schema"] or ())
    if by_column or by_row or split or described:
        raise DataError(
            f"{path} holds a complete table in one JSON object; write one object per row, for example with pandas: "
            "to_json(orient='records')."
        )


def _array(file: File, encoding: str | None) -> Iterator[Rows]:
    with file.stream() as stream:
        text = codecs.decode(stream.read(), encoding or "utf-8-sig")
    try:
        found = _DECODER.decode(text)
    except _BeyondDouble as error:
        raise DataError(error.sentence(file.path)) from error
    odd = next((at for at, value in enumerate(found) if not isinstance(value, dict)), None)
    if odd is not None:
        raise DataError(
            f"{file.path} is one array, and its entry {odd} is {_kind(found[odd])}; every entry must be a JSON object, such as "
            '{"text": "a", "label": 0}.'
        )
    for start in range(0, len(found), _ENTRIES):
        part = found[start : start + _ENTRIES]
        yield Rows("entry", list(range(start, start + len(part))), part)


def _goes_on(error: BaseException | None, text: str) -> bool:
    """Return whether a line is no JSON because its object does not end in it."""
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(text) and text.startswith("{")


def _spread(file: File, encoding: str | None) -> Rows:
    """Return objects that take several lines each."""
    with file.stream() as stream:
        text = codecs.decode(stream.read(), encoding or "utf-8-sig")
    rows = Rows("line", [], [])
    at = number = 0
    while rest := re.compile(r"\S").search(text, at):
        number += text.count("\n", at, rest.start()) + (not rows.values)
        try:
            value, end = _DECODER.raw_decode(text, rest.start())
        except (ValueError, RecursionError) as error:
            raise _no_json(file.path, number, error) from error
        rows.values.append(_as_object(file.path, number, value))
        rows.numbers.append(number)
        number += text.count("\n", rest.start(), end)
        at = end
    if len(rows.values) == 1:
        _check_orientation(file.path, rows.values[0])
    return rows


def _object(path: str, number: int, text: str) -> dict[str, Any]:
    try:
        return _as_object(path, number, _DECODER.decode(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise _no_json(path, number, error) from error


def _no_json(path: str, number: int, error: Exception) -> DataError:
    if isinstance(error, _BeyondDouble):
        return DataError(error.sentence(f"Line {number} of {path}"))
    return DataError(
        f"Line {number} of {path} is not JSON ({reason_of(error)}); a file holds one object per line, or one array of objects."
    )


def _as_object(path: str, number: int, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise DataError(
            f"Line {number} of {path} holds {_kind(found)}; every line must be a JSON object, such as "
            '{"text": "a", "label": 0}.'
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"The name '{twice}' occurs more than once in an object.")
    return found


class _BeyondDouble(ValueError):
    """Raised with a number that would become infinite."""

    def sentence(self, where: str) -> str:
        """Return a sentence that names the place of the number."""
        return f"{where} holds the number {str(self)[:40]}, which is too large for a 64-bit float; write it as text."


def _double(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _BeyondDouble(text)
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_double)


def _table(path: str, rows: Rows, schema: pa.Schema | None) -> dict[str, pa.Array]:
    """Return the columns of some rows, with the types of ``schema`` or those that the values have."""
    names = dict.fromkeys(name for row in rows.values for name in row)
    if any(map(_has_surrogate, names)):
        if schema is None:
            logger.warning(
                "The name of a column of %s holds an invalid character (half of a surrogate pair), which is replaced by U+FFFD.",
                path,
            )
        rows = rows._replace(values=[_clean(row) for row in rows.values])
        names = dict.fromkeys(name for row in rows.values for name in row)
    columns = {}
    for name in names if schema is None else schema.names:
        values = [row.get(name) for row in rows.values]
        columns[name] = _column(path, name, values, rows, None if schema is None else schema.field(name).type)
    return columns


def _column(path: str, name: str, values: list[Any], rows: Rows, kind: pa.DataType | None) -> pa.Array:
    try:
        column = pa.array(values, kind)
        if _truth_among_numbers(values, column.type):
            raise TypeError("The column mixes booleans and decimal numbers.")
        return column
    except UnicodeEncodeError:
        broken = next(at for at, value in enumerate(values) if _clean(value) != value)
        if kind is None:  # said once, by the first pass
            logger.warning(
                "%s of %s holds an invalid character (half of a surrogate pair) in column '%s', which is replaced by U+FFFD.",
                rows.place(broken).capitalize(),
                path,
                name,
            )
        return _column(path, name, [_clean(value) for value in values], rows, kind)
    except OverflowError:
        numbers = [value for value in values if value is not None]
        if all(isinstance(value, int) and 0 <= value < 2**64 for value in numbers) and kind is None:
            return pa.array(values, pa.uint64())
        raise DataError(
            f"Column '{name}' of {path} holds integers that do not all fit one 64-bit type; write them as text."
        ) from None
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(_odd(path, name, values, rows, error)) from None


def _odd(path: str, name: str, values: list[Any], rows: Rows, error: Exception) -> str:
    """Return a sentence about the first values that do not fit each other, also within lists and objects."""
    seen: dict[str, dict[str, int]] = {}
    for at, value in enumerate(values):
        for leaf, kind in _kinds_within(value, name):
            seen.setdefault(leaf, {}).setdefault(kind, at)
    mixed = [(leaf, kinds) for leaf, kinds in seen.items() if len(kinds) > 1]
    mixed.sort(key=lambda found: found[1].keys() == {"an integer", "a decimal number"})  # these often fit
    if not mixed:
        return f"Column '{name}' of {path} cannot be stored as a column ({reason_of(error)})."
    leaf, kinds = mixed[0]
    places = " and ".join(f"{kind} in {rows.place(at)}" for kind, at in list(kinds.items())[:2])
    within = "" if leaf == name else f" at {leaf}"
    return f"Column '{name}' of {path} holds {places}{within}; write it with one type."


def _kinds_within(value: Any, leaf: str) -> Iterator[tuple[str, str]]:
    """Yield the place and kind of a value and of those within it; missing values have no kind."""
    if value is not None:
        yield leaf, _kind(value)
    if isinstance(value, list):
        for entry in value:
            yield from _kinds_within(entry, f"{leaf}[]")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _kinds_within(entry, f"{leaf}.{name}")


def _truth_among_numbers(values: Iterable[Any], kind: pa.DataType) -> bool:
    """Return whether pyarrow made a number of ``true`` or ``false``, which it does among decimal numbers."""
    if pa.types.is_floating(kind):
        return bool in set(map(type, values))
    if pa.types.is_list(kind):
        return _truth_among_numbers(
            itertools.chain.from_iterable(value for value in values if value is not None), kind.value_type
        )
    if pa.types.is_struct(kind):
        rows = [value for value in values if value is not None]
        return any(_truth_among_numbers((row.get(f.name) for row in rows), f.type) for f in kind)
    return False


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, text in (
        (bool, "a truth value"),
        (int, "an integer"),
        (float, "a decimal number"),
        (str, "text"),
        (list, "a list"),
    ):
        if isinstance(value, kind):
            return text
    return "an object"


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _clean(value: Any) -> Any:
    """Return a value with U+FFFD for every half of a surrogate pair."""
    if isinstance(value, str):
        return (
            value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if _has_surrogate(value)
            else value
        )
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    if isinstance(value, dict):
        return _unique([(_clean(name), _clean(entry)) for name, entry in value.items()])
    return value
