"""One column from the values of Python, NumPy, pandas, torch and PIL: exactly as they are, or refused. Without Ray."""

from __future__ import annotations

import datetime
import decimal
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raysel.data.arrow_types import stored_column
from raysel.data.vectors import to_column
from raysel.errors import DataError


def columns_table(columns: Mapping[Any, Any]) -> pa.Table:
    """Return columns of one length as a table; raise DataError for others."""
    if not columns:
        raise DataError("There are no columns to read.")
    odd = [name for name in columns if not isinstance(name, str)]
    if odd:
        raise DataError(
            f"A column has the name {odd[0]!r} of type {type(odd[0]).__name__}; the names of columns must be text, so rename it."
        )
    arrays = {name: column_of(values, name) for name, values in columns.items()}
    lengths = {name: len(column) for name, column in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"The columns have different lengths: {lengths}; give every column one value per row."
        )
    return pa.table(arrays)


def column_of(values: Any, name: str) -> pa.Array | pa.ChunkedArray:
    """Return ``values`` as a column: one value per row, in the type that they have.

    Arrays of several dimensions, and lists of lists of numbers of one shape, become tensors.

    Raises
    ------
    DataError
        Naming the column, and where it is known the row, for values that Arrow cannot store as they are.
    """
    try:
        return stored_column(_column_of(values, name), name)
    except DataError:
        raise
    except Exception as error:  # of the library whose values these are, or of Arrow
        text = str(error).strip().splitlines()
        said = text[0].rstrip(".") if text else type(error).__name__
        raise DataError(f"Column '{name}' cannot be read ({said}).") from error


def _column_of(values: Any, name: str) -> Any:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if isinstance(values, np.ma.MaskedArray):
        return _masked(values, name)
    if isinstance(values, np.ndarray):
        return _array(values, name)
    if isinstance(values, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        return _pandas(values, name)
    if is_tensor(values):
        return _array(_tensor(values), name)
    for attribute, read in (("__arrow_c_stream__", pa.chunked_array), ("__arrow_c_array__", pa.array)):
        if hasattr(values, attribute) and not hasattr(values, "columns"):
            return read(values)
    if isinstance(values, (list, tuple, range)):
        return _list(list(values), name)
    raise DataError(
        f"Column '{name}' is of type {type(values).__name__}; give an array or a list with one value per row."
    )


# ---- pandas ------------------------------------------------------------------------------------------------------


def _pandas(values: Any, name: str) -> Any:
    series: Any = pd.Series(values)
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    if series.dtype == object:
        return _list(series.tolist(), name, nan_is_missing=True)
    if series.dtype.kind == "c":
        return _array(series.to_numpy(), name)
    return pa.array(series, from_pandas=True)


# ---- NumPy -------------------------------------------------------------------------------------------------------


def _masked(values: np.ma.MaskedArray, name: str) -> Any:
    mask = np.ma.getmaskarray(values)
    if not mask.any():
        return _array(values.data, name)
    if values.ndim != 1:
        rows = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1))
        raise DataError(
            f"Column '{name}' has masked elements inside its rows (first in row {rows[0]}); fill them, or drop the rows."
        )
    column = _array(values.data, name)
    return column.take(pa.array(np.arange(len(column)), mask=mask))


def _array(values: np.ndarray, name: str) -> Any:
    kind = values.dtype.kind
    if values.ndim == 0:
        raise DataError(f"Column '{name}' holds a single value ({values!r}); give one value per row.")
    if kind == "c" or values.dtype in _WIDE:
        advice = (
            "write the real and the imaginary part as two columns of float64"
            if kind == "c"
            else "convert them to float64"
        )
        raise DataError(f"Column '{name}' holds {values.dtype} numbers, which Arrow cannot store; {advice}.")
    if values.dtype.names is not None:
        raise DataError(
            f"Column '{name}' holds records ({', '.join(values.dtype.names)}); give one column per field."
        )
    if kind == "V":
        return pa.array([value.tobytes() for value in values.reshape(-1)], pa.binary())
    if (
        kind in "SUTO"
    ):  # as NumPy reads them: the zeros that pad a text to the array's width are no part of it
        return _list(values.tolist(), name)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if kind in "mM":
        values = _dates(values, name)
    if values.ndim == 1:
        return pa.array(values)
    if 0 in values.shape[1:]:
        raise DataError(
            f"Column '{name}' has rows without elements, because its shape is {values.shape}; leave the "
            "column out, or give every row at least one element."
        )
    return _tensors(values)


def _dates(values: np.ndarray, name: str) -> np.ndarray:
    """Return dates or durations in a unit that Arrow has, if that changes none of them."""
    kind, (unit, _) = values.dtype.kind, np.datetime_data(values.dtype)
    missing = np.isnat(values)
    wanted = _UNITS[kind].get(unit, "ns")
    same = values.astype(f"{kind}8[{wanted}]")
    exact = np.array_equal(same.astype(values.dtype)[~missing], values[~missing])
    if wanted == "D":
        exact &= bool((np.abs(same[~missing].astype(np.int64)) < _DAYS).all())
    if not exact or (kind == "m" and unit in ("Y", "M")):
        raise DataError(
            f"Column '{name}' holds {values.dtype} values, which Arrow cannot store exactly; convert them to "
            "a type of at most 64 bits."
        )
    return same


def _tensors(values: np.ndarray) -> pa.Array:
    """Return rows (n, ...) as tensors; what is no number as lists of one length, since Ray reads no tensors of it."""
    if values.dtype.kind not in "bmM":
        return to_column(values)
    column = pa.array(values.reshape(-1))
    for width in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, width)
    return column


# ---- torch and PIL -----------------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return _is_tensor_type(type(value))


def _is_tensor_type(kind: type) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in kind.__mro__)


def _tensor(value: Any) -> np.ndarray:
    """Return a torch tensor as an array; low precisions that NumPy lacks as float32, which holds all their values."""
    plain = value.detach().cpu()
    if plain.is_floating_point() and plain.element_size() <= 2 and str(plain.dtype) != "torch.float16":
        plain = plain.float()
    return plain.numpy()


def _is_picture(value: Any) -> bool:
    return any(base.__module__ == "PIL.Image" for base in type(value).__mro__)


def _pictures(values: list[Any], name: str) -> Any:
    """Return images as pixels if all are grey or RGB of one size, else as files that keep all of each."""
    shapes = {(value.mode, value.size) if _is_picture(value) else None for value in values}
    as_pixels = len(shapes) == 1 and shapes <= {(mode, values[0].size) for mode in _AS_PIXELS}
    stored: list[Any] = []
    for row, value in enumerate(values):
        try:
            if value is None or as_pixels:
                stored.append(value if value is None else np.asarray(value))
                continue
            sink = io.BytesIO()
            value.save(sink, "PNG" if value.mode in _IN_PNG else "TIFF")
            stored.append(sink.getvalue())
        except Exception as error:  # Pillow raises anything for an image that it cannot read or write
            raise DataError(
                f"Column '{name}' holds a value of type {type(value).__name__} in row {row} that cannot be stored as an image ({error})."
            ) from error
    return _array(np.stack(stored), name) if as_pixels else pa.array(stored, pa.large_binary())


# ---- lists -------------------------------------------------------------------------------------------------------


def _list(values: list[Any], name: str, nan_is_missing: bool = False) -> Any:
    kinds = set(map(type, values))
    some = next((value for value in values if value is not None), None)
    if _is_picture(some):
        return _pictures(values, name)
    if any(map(_is_tensor_type, kinds)):
        values = [_tensor(value) if is_tensor(value) else value for value in values]
        kinds = set(map(type, values))
    if kinds == {np.ndarray} and len({(value.shape, value.dtype) for value in values}) == 1:
        return _array(np.stack(values), name)
    if any(issubclass(kind, np.number) for kind in kinds) and len(kinds - {type(None)}) > 1:
        values = [value.item() if isinstance(value, np.number) else value for value in values]
        kinds = set(map(type, values))  # of Python, since Arrow joins those of NumPy with an overflow
    missing = nan_is_missing or bool(kinds & _MARKERS) or (float in kinds and not kinds <= _WITH_NAN)
    try:
        column = pa.array(values, from_pandas=missing)
        if kinds & {pd.Timestamp, pd.Timedelta}:  # whose nanoseconds are lost otherwise
            column = pa.array(values, _in_nanoseconds(column.type), from_pandas=missing)
    except OverflowError:
        try:
            column = pa.array(values, pa.uint64())
        except Exception as error:
            raise DataError(f"Column '{name}' holds integers beyond 64 bits; write them as text.") from error
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(_odd(values, name, missing, error)) from error
    _check_kinds(values, name)
    return _as_tensors(column)


def _in_nanoseconds(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("ns", kind.tz) if pa.types.is_timestamp(kind) else pa.duration("ns")


def _as_tensors(column: pa.Array | pa.ChunkedArray) -> Any:
    """Return lists of numbers of one shape as tensors, any other column as it is."""
    leaf, shape = column, []
    while isinstance(leaf, (pa.ListArray, pa.LargeListArray)) and len(leaf) and not leaf.null_count:
        lengths = np.diff(leaf.offsets.to_numpy())
        if lengths[0] == 0 or (lengths != lengths[0]).any():
            return column
        shape.append(int(lengths[0]))
        leaf = leaf.flatten()
    of = leaf.type
    numeric = pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_boolean(of)
    if not shape or leaf.null_count or not numeric:
        return column
    return _tensors(leaf.to_numpy(zero_copy_only=False).reshape(len(column), *shape))


def _odd(values: list[Any], name: str, missing: bool, error: Exception) -> str:
    """Return a sentence about the first value that a column cannot hold, alone or next to the one before."""
    before: tuple[int, Any] | None = None
    for row, value in enumerate(values):
        try:
            if pa.array([value], from_pandas=missing).null_count:
                continue
        except Exception:
            shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
            kind = f"{type(value).__name__}{shape}"
            return f"Column '{name}' holds a value of type {kind} in row {row}, which Arrow cannot store."
        if before is not None and type(value) is not type(before[1]):
            numbers = all(
                isinstance(one, (int, float, np.number)) and not isinstance(one, bool)
                for one in (before[1], value)
            )
            if numbers:
                return (
                    f"Column '{name}' holds integers beyond 2**53 and numbers with a fraction, in rows {before[0]} and "
                    f"{row}; no type holds both exactly, so write them in two columns."
                )
            return (
                f"Column '{name}' holds values of several types: {type(before[1]).__name__} in row {before[0]}, "
                f"{type(value).__name__} in row {row}. Convert them to one type."
            )
        before = row, value
    return f"Column '{name}' holds values of mixed shapes or types ({str(error).splitlines()[0].rstrip('.')}); give every row the same shape and type."


def _check_kinds(values: Sequence[Any], name: str, nested: bool = False) -> None:
    """Raise DataError for values of which Arrow would change one without an error, also inside lists and dicts.

    It makes bytes of text next to bytes, numbers of truth values, dates of time stamps, takes a time without a zone for
    UTC, and leaves out nanoseconds.
    """
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) < 2 and kinds <= {str, bytes, int, float, bool}:
        return
    one_of_each: dict[Any, Any] = {}
    nan = None  # is at home next to anything, but inside lists and dicts Arrow makes numbers of truth values next to it
    inner: list[Any] = []
    fields: dict[Any, list[Any]] = {}
    for value in values:
        kind = type(value)
        if kind in (list, tuple):
            inner.extend(value)
        elif kind is dict:
            for key, part in value.items():
                fields.setdefault(key, []).append(part)
        elif isinstance(value, float) and value != value:
            nan = value
        elif nested and kind in (pd.Timestamp, pd.Timedelta):
            raise DataError(
                f"Column '{name}' holds pandas timestamps inside lists or dicts, and Arrow would drop their nanoseconds; "
                "convert them to numpy.datetime64 or numpy.timedelta64."
            )
        elif isinstance(value, datetime.datetime):
            one_of_each.setdefault((kind, value.tzinfo is None), value)
        else:
            one_of_each.setdefault(kind, value)
    found: dict[str, Any] = {}
    for value in one_of_each.values():
        family = next((word for word, types in _FAMILIES if isinstance(value, types)), None)
        if family == "a time" and value.tzinfo is not None:
            family = "a time with a zone"
        if family is not None:
            found.setdefault(family, value)
    if nested and nan is not None and "a truth value" in found:
        found.setdefault("a number", nan)
    if len(found) > 1:
        (one, a), (two, b) = list(found.items())[:2]
        raise DataError(
            f"Column '{name}' holds values of several types: {one} ({str(a)[:40]!r}) and {two} ({str(b)[:40]!r}). Convert "
            "them to one type."
        )
    for parts in (inner, *fields.values()):
        if parts:
            _check_kinds(parts, name, nested=True)


_AS_PIXELS = ("L", "RGB")  # modes of images that are the same as arrays
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes of which PNG keeps everything
_DAYS = 2**31  # beyond which Arrow's dates do not reach
_WIDE = tuple(d for d in (np.dtype(np.longdouble),) if d != np.float64)
_UNITS = {  # in which Arrow has the values of a unit of NumPy; nanoseconds otherwise
    "M": {"Y": "D", "M": "D", "W": "D", "D": "D", "h": "s", "m": "s", "s": "s", "ms": "ms", "us": "us"},
    "m": {"W": "s", "D": "s", "h": "s", "m": "s", "s": "s", "ms": "ms", "us": "us"},
}
_MARKERS = {type(pd.NA), type(pd.NaT)}  # of pandas, for a value that is missing
_WITH_NAN = {
    float,
    int,
    bool,
    type(None),
    np.float64,
    np.float32,
    np.float16,
}  # next to which NaN is a number
_FAMILIES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("text", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("a truth value", (bool, np.bool_)),
    ("a duration", (np.timedelta64,)),  # which is a number for NumPy
    ("an unsigned integer of NumPy", (np.uint64,)),  # which Arrow makes negative next to a float
    ("a number", (int, float, np.number, decimal.Decimal)),
    ("a time", (datetime.datetime,)),
    ("a date", (datetime.date,)),
    ("a time of day", (datetime.time,)),
    ("a duration", (datetime.timedelta,)),
    ("a date of NumPy", (np.datetime64,)),
)
