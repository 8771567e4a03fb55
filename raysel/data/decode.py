"""Rows of a column for an embedder: numbers, text or images, and which cannot be used. Without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.storage import resolve
from raysel.data.row_index import ID
from raysel.data.vectors import as_matrix, as_numbers, to_numpy
from raysel.errors import DataError

Takes = Literal["matrix", "numbers", "stored", "any", "text", "images", "table"]
"""What an embedder is called with for n rows.

matrix: float32 (n, D), tensors flattened. numbers: the same as they are stored. text: a list of n str. images: a list
of n RGB arrays (height, width, 3) uint8, or what its ``prepare`` made of each. table: the Arrow table of its columns.
stored: numbers as they are stored (n, ...), text and encoded images as above. any: the same with numbers as a matrix.
"""


@dataclass(frozen=True)
class Rows:
    """Rows ready for an embedder: their ids (n,), the rows, and what was left out as {id: reason}."""

    ids: np.ndarray
    rows: Any
    rejected: dict[int, str]


def decode(
    table: pa.Table,
    columns: Sequence[str],
    takes: Takes,
    prepare: Callable[[Any], np.ndarray] | None = None,
) -> Rows:
    """Return the rows of ``table`` in the form ``takes``, without nulls and broken images.

    The table has ``sample_id``. ``prepare`` is applied to every decoded PIL image.

    Raises
    ------
    DataError
        If the column's type cannot have that form.
    """
    ids = table[ID].to_numpy()
    if takes == "table":
        return Rows(ids, table.select(list(columns)), {})
    name = columns[0]
    column = table[name]
    kind = column.type
    rejected: dict[int, str] = {}
    if column.null_count:
        empty = pc.is_null(column).to_numpy(zero_copy_only=False)
        rejected = dict.fromkeys(ids[empty].tolist(), f"no value in column '{name}'")
        column, ids = column.filter(pa.array(~empty)), ids[~empty]
    if takes in ("any", "stored"):
        takes = (
            "text" if is_text(kind) else "images" if is_bytes(kind) else "stored" if takes == "stored" else "matrix"
        )  # fmt: skip
    if takes == "text":
        if not is_text(kind):
            raise DataError(f"Column '{name}' holds {kind}, not text.")
        return Rows(ids, column.to_pylist(), rejected)
    if takes == "images":
        images, broken = _images(column, name, ids, prepare)
        return Rows(ids[[i not in broken for i in ids.tolist()]], images, rejected | broken)
    if takes == "stored":
        return Rows(ids, to_numpy(column, name, ids), rejected)
    return Rows(ids, (as_numbers if takes == "numbers" else as_matrix)(column, name, ids), rejected)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds encoded files."""
    if pa.types.is_struct(kind):  # how Hugging Face stores an image
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _images(
    column: pa.ChunkedArray, name: str, ids: np.ndarray, prepare: Callable[[Any], np.ndarray] | None
) -> tuple[list[np.ndarray], dict[int, str]]:
    from PIL import Image, ImageOps

    finish = prepare or (lambda image: np.asarray(image))
    if is_text(column.type):
        load: Callable[[Any], Any] = _open_path
    elif is_bytes(column.type):
        load = _open_bytes
    else:
        pixels = to_numpy(column, name, ids)
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
            raise DataError(
                f"Column '{name}' holds {pixels.dtype} of shape {pixels.shape[1:]}, which are not images. Images are encoded "
                "bytes, paths, or uint8 pixels (height, width), (height, width, 3) or (1 or 3, height, width)."
            )
        if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):
            pixels = pixels.transpose(0, 2, 3, 1)
        return [
            finish(Image.fromarray(p[..., 0] if p.shape[-1:] == (1,) else p).convert("RGB")) for p in pixels
        ], {}
    images: list[np.ndarray] = []
    broken: dict[int, str] = {}
    for number, value in zip(ids.tolist(), column.to_pylist(), strict=True):
        try:
            with load(value) as image:
                upright = ImageOps.exif_transpose(image) or image
                images.append(finish(upright.convert("RGB")))
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            broken[number] = f"not a readable image ({_short(error)})"
    return images, broken


def _open_path(path: str) -> Any:
    from PIL import Image

    filesystem, place = resolve(path)
    with filesystem.open_input_file(place) as source:
        return Image.open(io.BytesIO(source.read()))


def _open_bytes(value: Any) -> Any:
    from PIL import Image

    data = value["bytes"] if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and value.get("path"):
        return _open_path(value["path"])
    return Image.open(io.BytesIO(data))


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" <_io.BytesIO")[0].rstrip(".")
