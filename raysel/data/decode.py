"""Rows of a column for an embedder: numbers, text or images, and which cannot be used. Without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.arrow import plain_column
from raysel.core.fingerprint import library_versions
from raysel.core.storage import resolve
from raysel.data.files import LFS_POINTER
from raysel.data.row_index import ID
from raysel.data.vectors import as_matrix, as_numbers, tensor_rows, to_numpy
from raysel.errors import DataError

Takes = Literal["matrix", "numbers", "stored", "any", "text", "images", "table"]
"""What an embedder is called with for n rows.

matrix: float32 (n, D), tensors flattened. numbers: the same as they are stored. text: a list of n str. images: a list
of n RGB arrays (height, width, 3) uint8, or what its ``prepare`` made of each. table: the Arrow table of its columns.
stored: numbers as they are stored (n, ...), text and encoded images as above. any: the same with numbers as a matrix.
"""


PATH = "path"  # column that names the files of a column of bytes
_VERSION = 2  # of what decoding makes of an image


def decoder_versions() -> dict[str, str]:
    """Return what determines the pixels of a decoded image, for keys."""
    return {"decoder": str(_VERSION), **library_versions("pillow")}


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
    column = plain_column(table[name])
    kind = column.type
    rejected: dict[int, str] = {}
    paths: dict[int, str | None] = {}
    if PATH in table.column_names and is_bytes(kind) and is_text(table.schema.field(PATH).type):
        paths = dict(zip(ids.tolist(), table[PATH].to_pylist(), strict=True))
    if column.null_count:
        empty = pc.is_null(column).to_numpy(zero_copy_only=False)
        at = f"no value in column '{name}'"
        rejected = {row: f"{at} of {paths[row]}" if paths.get(row) else at for row in ids[empty].tolist()}
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
        images, broken = _images(column, name, ids, prepare, paths)
        return Rows(ids[[i not in broken for i in ids.tolist()]], images, rejected | broken)
    if takes == "stored":
        return Rows(ids, to_numpy(column, name, ids), rejected)
    return Rows(ids, (as_numbers if takes == "numbers" else as_matrix)(column, name, ids), rejected)


def join(parts: Sequence[Rows], columns: Sequence[str]) -> Rows:
    """Return the rows of several tables as those of one, by ascending id."""
    rows = [part.rows for part in parts]
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")
    together: Any
    if isinstance(rows[0], np.ndarray):
        shapes = {some.shape[1:] for some in rows if len(some)}
        if len(shapes) > 1:
            shown = ", ".join(sorted("x".join(map(str, shape)) for shape in shapes))
            raise DataError(
                f"Column '{columns[0]}' holds rows of different shapes: {shown}; give every row the same shape."
            )
        together = np.concatenate([some for some in rows if len(some)] or rows[:1])[order]
    elif isinstance(rows[0], pa.Table):
        together = pa.concat_tables(rows, promote_options="permissive").take(pa.array(order))
    else:
        flat = [row for some in rows for row in some]
        together = [flat[at] for at in order.tolist()]
    rejected = {number: reason for part in parts for number, reason in part.rejected.items()}
    return Rows(ids[order], together, rejected)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds encoded files."""
    if pa.types.is_struct(kind):  # how Hugging Face stores an image
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _images(
    column: pa.ChunkedArray,
    name: str,
    ids: np.ndarray,
    prepare: Callable[[Any], np.ndarray] | None,
    paths: Mapping[int, str | None],
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Return each image as RGB, or as ``prepare`` makes it, and why others cannot be used, by id."""
    if is_text(column.type):
        load: Callable[[Any], Any] = _open_path
    elif is_bytes(column.type):
        load = _open_bytes
    else:
        load = _from_pixels
    values = column.to_pylist() if load is not _from_pixels else pixels_of(column, name)
    images: list[np.ndarray] = []
    broken: dict[int, str] = {}
    for number, value in zip(ids.tolist(), values, strict=True):
        what = "not a readable image"
        try:
            with load(value) as image:
                upright = as_rgb(image)
            if prepare is not None:
                what = "an image that the preprocessing of the embedder cannot convert"
                images.append(prepare(upright))
            else:
                images.append(np.asarray(upright))
        except Exception as error:  # Pillow's readers raise whatever their parsers do
            path = value if isinstance(value, str) else value.get("path") if isinstance(value, dict) else None
            path = path or paths.get(number)
            broken[number] = f"{path or ''}{' is ' if path else ''}{what} ({_short(error)})"
    return images, broken


def as_rgb(image: Any) -> Any:
    """Return a PIL image, upright, as 8-bit RGB: its first frame, without transparency.

    Greys of 16 bits are scaled by 1/257, so that black and white stay what they are.

    Raises
    ------
    ValueError
        For pixels of 32 bits, which have no fixed range, and for what Pillow cannot convert.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image) or image
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(((wide + 128) // 257).clip(0, 255).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        kind = "floating-point" if upright.mode == "F" else "32-bit"
        raise ValueError(
            f"The {kind} pixels of the image have no fixed range; store the image with 8 or 16 bits per "
            "channel."
        )
    return upright.convert("RGB")


def pixels_of(column: pa.ChunkedArray, name: str) -> list[np.ndarray]:
    """Return the pixels of every row, each of its own size.

    Raises
    ------
    DataError
        If the column holds no pixels.
    """
    rows = tensor_rows(column, name)
    for pixels in rows:
        channels = pixels.ndim == 3 and (pixels.shape[2] in (1, 3, 4) or pixels.shape[0] in (1, 3))
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or channels):
            raise DataError(
                f"Column '{name}' holds arrays of type {pixels.dtype} and shape {pixels.shape}, which are not images. Convert them "
                "to uint8 arrays of the shape (height, width), (height, width, channels) with 1, 3 or 4 channels, or (channels, "
                "height, width) with 1 or 3 channels; or store encoded images (bytes) or paths of images."
            )
    return rows


def _from_pixels(pixels: np.ndarray) -> Any:
    from PIL import Image

    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _open_path(path: str) -> Any:
    filesystem, place = resolve(path)
    with filesystem.open_input_file(place) as source:
        return _opened(source.read())


def _open_bytes(value: Any) -> Any:
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and value.get("path"):
        return _open_path(value["path"])
    return _opened(data)


def _opened(data: bytes) -> Any:
    from PIL import Image

    if data is not None and data.startswith(LFS_POINTER):
        raise ValueError("Git LFS has not fetched the image; run 'git lfs pull'.")
    return Image.open(io.BytesIO(data))


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].split(" <_io.BytesIO")[0].rstrip(".") if text else type(error).__name__
