"""Vectors between Arrow and NumPy, without copies if Arrow allows it. Without Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.arrow import plain_column
from raysel.errors import DataError, first

EMBEDDING = "embedding"


def to_column(values: np.ndarray) -> pa.Array:
    """Return an Arrow ``fixed_shape_tensor`` column of ``values`` (n, ...), whose rows keep their shape.

    It is built without a permutation: plain pyarrow reads it, and Ray turns it into an (n, ...) view.
    """
    values = np.ascontiguousarray(values)
    shape = values.shape[1:]
    size = int(np.prod(shape, dtype=np.int64))
    dtype = pa.from_numpy_dtype(values.dtype)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), dtype), size)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(dtype, shape), storage)


def to_numpy(column: pa.Array | pa.ChunkedArray, name: str, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a column as one array: numbers (n,), tensors and lists of one length (n, d).

    ``fixed_shape_tensor``, ``fixed_size_list``, ``list`` of equal lengths, and Ray's own tensor type are
    read. The result is a view if the column is one chunk without nulls. ``ids`` name rows in errors.

    Raises
    ------
    DataError
        For nulls, lists of different lengths, and types that hold no numbers.
    """
    column = plain_column(column)
    if isinstance(column, pa.ChunkedArray):
        parts = [to_numpy(chunk, name, _part(ids, i, column)) for i, chunk in enumerate(column.chunks)]
        parts = [part for part in parts if len(part)] or parts
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return to_numpy(pa.array([], column.type), name)
        widths = {part.shape[1:] for part in parts}
        if len(widths) > 1:
            raise DataError(
                f"Column '{name}' holds rows of different shapes: {_shapes(widths)}; give every row the same shape."
            )
        return np.concatenate(parts)
    if column.null_count:
        where = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        raise DataError(f"Column '{name}' has no value in {_rows(where, ids, len(column))}.")
    kind = column.type
    shape: tuple[int, ...] | None = None
    if is_ragged(kind):
        rows = tensor_rows(column, name)
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise DataError(
                f"Column '{name}' holds rows of different shapes: {_shapes(shapes)}; give every row the same shape."
            )
        return np.stack(rows) if rows else _numbers(column.storage.field("data").flatten(), name)
    if isinstance(kind, pa.BaseExtensionType):
        shape = _tensor_shape(kind, name)
        column = column.storage
        kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return _elements(column, kind.list_size, name, ids, shape)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.diff(column.offsets.to_numpy())
        if len(lengths) and (lengths != lengths[0]).any():
            common = np.bincount(lengths).argmax()
            odd = np.flatnonzero(lengths != common)
            raise DataError(
                f"Column '{name}' holds vectors of different lengths: most have {common} elements, but "
                f"{_rows(odd, ids, len(column))} {'has' if len(odd) == 1 else 'have'} {lengths[odd[0]]}"
                f"{'' if len(odd) == 1 else ' or another number of elements'}."
            )
        width = int(lengths[0]) if len(lengths) else 0
        return _elements(column, width, name, ids, shape)
    return _numbers(column, name)


def _elements(
    column: pa.Array, width: int, name: str, ids: np.ndarray | None, shape: tuple[int, ...] | None
) -> np.ndarray:
    """Return lists of ``width`` elements as an array, also lists of lists."""
    inner = column.flatten()
    if is_list(inner.type):
        values = to_numpy(inner, name, np.repeat(np.arange(len(column)) if ids is None else ids, width))
    else:
        if inner.null_count and _is_number(inner.type):
            where = np.unique(np.flatnonzero(inner.is_null().to_numpy(zero_copy_only=False)) // width)
            raise DataError(
                f"Column '{name}' holds vectors with missing elements (null) in {_rows(where, ids, len(column))}; fill them, "
                "or drop these rows."
            )
        values = _numbers(inner, name)
    return values.reshape(len(column), *(shape or (width, *values.shape[1:])))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds lists, of one length or several."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_tensor(kind: pa.DataType) -> bool:
    """Return whether a column holds tensors, of one shape or several, as Arrow or Ray stores them."""
    name = getattr(kind, "extension_name", "")
    return name == "arrow.fixed_shape_tensor" or name.startswith(
        ("ray.data.arrow_tensor", "ray.data.arrow_variable")
    )


def is_ragged(kind: pa.DataType) -> bool:
    """Return whether a column holds tensors of several shapes, as Ray stores them."""
    return getattr(kind, "extension_name", "") == "ray.data.arrow_variable_shaped_tensor"


def tensor_rows(column: pa.Array | pa.ChunkedArray, name: str) -> list[np.ndarray]:
    """Return the tensor of every row, each of its own shape; raise DataError for a column without numbers."""
    if isinstance(column, pa.ChunkedArray):
        return [row for chunk in column.chunks for row in tensor_rows(chunk, name)]
    if not is_ragged(column.type):
        return list(to_numpy(column, name))
    shapes = column.storage.field("shape").to_pylist()
    return [
        _numbers(values.values, name).reshape(shape)
        for values, shape in zip(column.storage.field("data"), shapes, strict=True)
    ]


def as_numbers(column: pa.Array | pa.ChunkedArray, name: str, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a column as (n, d) in its own dtype.

    Tensors are flattened, numbers become (n, 1).
    """
    values = to_numpy(column, name, ids)
    return values.reshape(len(values), int(np.prod(values.shape[1:], dtype=np.int64)))


def as_matrix(column: pa.Array | pa.ChunkedArray, name: str, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the same as :func:`as_numbers`, as float32."""
    values = as_numbers(column, name, ids)
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(values, dtype=np.float32)
    if values.dtype == np.float64 and len(over := np.setdiff1d(not_finite(matrix), not_finite(values))):
        raise DataError(
            f"Column '{name}' holds values beyond the range of float32 in {_rows(over, ids, len(values))}; scale the column, "
            "or drop these rows."
        )
    return matrix


def as_vectors(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the column without a copy, if its type is that of :func:`to_column`; else None."""
    kind = column.type
    if column.null_count or not isinstance(kind, pa.FixedShapeTensorType):
        return None
    return column if kind.value_type == pa.float32() and len(kind.shape) == 1 else None


def not_finite(vectors: np.ndarray) -> np.ndarray:
    """Return the positions of the rows of ``vectors`` (n, d) with a NaN or an infinity, int64."""
    # A row's sum is finite if its values are, barring overflow: only suspects are looked at closely.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(vectors.sum(axis=1)))
    return suspects[~np.isfinite(vectors[suspects]).all(axis=1)]


def _tensor_shape(kind: Any, name: str) -> tuple[int, ...]:
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
            raise DataError(
                f"Column '{name}' is a tensor column with permuted axes; store its tensors in row-major (C) order."
            )
        return tuple(kind.shape)
    if str(kind.extension_name).startswith("ray.data.arrow_tensor"):
        return tuple(kind.shape)
    raise DataError(f"Column '{name}' is of type {kind.extension_name}, which does not hold vectors.")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    kind = values.type
    if not _is_number(kind):
        raise DataError(f"Column '{name}' holds {kind}, not numbers.")
    if values.null_count:
        raise DataError(
            f"{values.null_count} elements of the vectors in column '{name}' are missing (null); fill them, or drop these rows."
        )
    return values.to_numpy(zero_copy_only=False)


def _rows(positions: np.ndarray, ids: np.ndarray | None, total: int) -> str:
    named = positions if ids is None else ids[positions]
    what = "row" if ids is None else "sample_id"
    return f"{len(positions):,} of {total:,} rows ({what} {first(named)})"


def _part(ids: np.ndarray | None, chunk: int, column: pa.ChunkedArray) -> np.ndarray | None:
    if ids is None:
        return None
    start = sum(len(c) for c in column.chunks[:chunk])
    return ids[start : start + len(column.chunks[chunk])]


def _shapes(widths: set[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in sorted(widths))
