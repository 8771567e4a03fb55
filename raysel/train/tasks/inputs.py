"""Columns of a batch as the tensors that a model is called with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysel.data.decode import as_rgb
from raysel.data.row_index import ID
from raysel.data.store import Column
from raysel.data.vectors import to_numpy
from raysel.errors import ConfigError, DataError, reason_of

PAD, BEGIN, VOCABULARY = 256, 257, 258
"""Codes of byte-level text: padding, the beginning of a text, and the number of codes; 0..255 are the bytes."""


def tensors(
    rows: Mapping[str, np.ndarray],
    columns: Sequence[str],
    size: int | None,
    tokenizer: str | None,
    length: int,
) -> Any:
    """Return the tensor of one column; of several, or of text, a dict whose items are the model's keyword arguments."""
    found: dict[str, Any] = {}
    for name in columns:
        values = rows[name]
        if values.dtype != object:
            found[name] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        elif isinstance(values[0], str):
            found |= tokens(values.tolist(), tokenizer or "bytes", length)
        elif isinstance(values[0], bytes):
            found[name] = images(values, rows[ID], name, size)
        else:  # lists, which must have one length
            found[name] = torch.from_numpy(to_numpy(pa.array(values.tolist()), name, rows[ID]).copy())
    only = next(iter(found.values()))
    return only if len(found) == 1 else found


def decoded(
    rows: Mapping[str, np.ndarray], columns: Sequence[str], size: int | None
) -> dict[str, np.ndarray]:
    """Return the columns with encoded images as arrays, so that they are decoded where Ray Data reads them."""
    found = dict(rows)
    for name in columns:
        if size is not None and rows[name].dtype == object and isinstance(rows[name][0], bytes):
            found[name] = images(rows[name], rows[ID], name, size).numpy()
    return found


def check_inputs(
    columns: Mapping[str, Column], names: Sequence[str], size: int | None, tokenizer: str | None
) -> None:
    """Raise ConfigError for columns that are named twice, text without a tokenizer and encoded images without a size."""
    if not names or len(set(names)) < len(names):
        raise ConfigError("train.input: Name one column, or several different ones.")
    texts = [name for name in names if columns[name].kind == "text"]
    if len(texts) > 1:
        raise ConfigError(
            f"train.input: The columns '{texts[0]}' and '{texts[1]}' both hold text, but a model receives only one text, as "
            "input_ids. Join both texts in one column, or write a task of your own."
        )
    for name in names:
        kind = columns[name].kind
        if kind == "text" and tokenizer is None:
            raise ConfigError(
                f"train.input: Column '{name}' holds text; store numbers, or give train.task.tokenizer: a local folder with a "
                "tokenizer of Hugging Face, or 'bytes', which uses each byte of the text as a token."
            )
        if kind == "bytes" and size is None:
            raise ConfigError(
                f"train.input: Column '{name}' holds encoded images, which differ in size; give train.task.size, the number of "
                "pixels per side to which they are scaled and cropped."
            )


def outputs(model: torch.nn.Module, inputs: Any) -> torch.Tensor:
    """Return what the model makes of the inputs: its tensor, or the ``logits`` of a model of Hugging Face."""
    made = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(made, "logits", made)


def images(values: np.ndarray, ids: np.ndarray, name: str, size: int | None) -> torch.Tensor:
    """Return encoded images as uint8 (B, 3, size, size), the shorter side scaled to ``size`` and the middle cut out."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    assert size is not None  # see check_inputs
    pixels = np.empty((len(values), size, size, 3), np.uint8)
    for at, value in enumerate(values):
        try:
            with Image.open(io.BytesIO(value)) as image:
                pixels[at] = np.asarray(ImageOps.fit(as_rgb(image), (size, size), Image.Resampling.BILINEAR))
        except Exception as error:  # Pillow's readers raise whatever their parsers do
            unknown = isinstance(error, UnidentifiedImageError)  # its text holds an address in memory
            reason = "of no known format" if unknown else reason_of(error)
            raise DataError(
                f"Column '{name}' holds an image that cannot be read (sample_id {ids[at]}: {reason}); replace it, or drop the row."
            ) from error
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def tokens(texts: list[str], tokenizer: str, length: int) -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask`` (B, T), T at most ``length``."""
    if tokenizer != "bytes":
        found = open_tokenizer(tokenizer)(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}
    coded = [[BEGIN, *text.encode()[: length - 1]] for text in texts]
    table = np.full((len(coded), max(2, *map(len, coded))), PAD, np.int64)
    for row, codes in zip(table, coded, strict=True):
        row[: len(codes)] = codes
    ids = torch.from_numpy(table)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def vocabulary(tokenizer: str) -> int:
    """Return the number of codes of a tokenizer."""
    return VOCABULARY if tokenizer == "bytes" else len(open_tokenizer(tokenizer))


@lru_cache(maxsize=4)
def open_tokenizer(path: str) -> Any:
    """Return a tokenizer of Hugging Face from a local folder; nothing is downloaded."""
    if not Path(path).is_dir():
        raise ConfigError(
            f"train.task.tokenizer: There is no folder {path}; give a local folder with a tokenizer of Hugging Face, "
            "or 'bytes', which uses each byte of the text as a token."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"train.task.tokenizer: {path} needs the package transformers; install raysel[huggingface]."
        ) from error
    try:
        found = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # of damaged or missing files anything
        raise ConfigError(
            f"train.task.tokenizer: {path} is not a folder with a tokenizer of Hugging Face ({reason_of(error)})."
        ) from error
    if found.pad_token is None:
        found.pad_token = found.eos_token or found.unk_token
    return found
