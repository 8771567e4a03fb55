"""Mutated images: whatever a reader raises is a row left out with its reason, and never an exception."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, features

from raysel.data.decode import decode
from raysel.data.row_index import ID

KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("P",),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "RGB"),
    "ICO": ("RGBA",),
    "PCX": ("L", "RGB"),
    "SGI": ("L", "RGB"),
    "DDS": ("RGB",),
    "JPEG2000": ("RGB",),
}


def seeds(rng: np.random.Generator) -> list[bytes]:
    """Small images of every format and mode that Pillow writes here, with and without compression."""
    found = []
    for kind, modes in KINDS.items():
        if (kind == "WEBP" and not features.check("webp")) or (
            kind == "JPEG2000" and not features.check("jpg_2000")
        ):
            continue
        for mode in modes:
            if mode == "I;16":
                image = Image.fromarray(rng.integers(0, 65536, (11, 13), dtype=np.uint16))
            elif mode == "F":
                image = Image.fromarray(rng.random((11, 13), np.float32))
            else:
                image = Image.fromarray(rng.integers(0, 256, (11, 13, 3), dtype=np.uint8))
                image = Image.new("LAB", (13, 11)) if mode == "LAB" else image.convert(mode)
            for options in ({}, {"compression": "tiff_lzw"}) if kind == "TIFF" else ({},):
                sink = io.BytesIO()
                image.save(sink, kind, **options)
                found.append(sink.getvalue())
    return found


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Return ``count`` damaged images: cut, with other bytes, swapped, repeated and removed parts."""
    rng = np.random.default_rng(seed)
    known = seeds(rng)
    for _ in range(count):
        data = bytearray(known[rng.integers(len(known))])
        for _ in range(int(rng.integers(1, 4))):
            at, length = int(rng.integers(len(data))), int(rng.integers(1, 9))
            match int(rng.integers(6)):
                case 0:
                    data = data[: max(at, 8)]
                case 1:
                    data[at] ^= 1 << int(rng.integers(8))
                case 2:
                    data[at : at + length] = rng.bytes(length)
                case 3:
                    data[at : at + length] = b""
                case 4:
                    data[at:at] = data[: length * 4]
                case _:
                    data[at : at + length] = (b"\xff" if rng.integers(2) else b"\0") * length
            data = data or bytearray(b"\0")
        yield bytes(data)


def check(count: int, seed: int) -> int:
    """Decode that many damaged images in blocks; return how many were left out."""
    rejected = 0
    images = mutations(count, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what it repairs
        while block := [data for _, data in zip(range(100), images, strict=False)]:
            ids = np.arange(len(block))
            rows = decode(pa.table({ID: ids, "image": pa.array(block, pa.binary())}), ["image"], "images")
            assert len(rows.rows) == len(rows.ids) and len(rows.ids) + len(rows.rejected) == len(block)
            assert all(image.dtype == np.uint8 and image.shape[2:] == (3,) for image in rows.rows)
            assert all(reason.startswith("not a readable image (") for reason in rows.rejected.values())
            assert not any("\n" in reason for reason in rows.rejected.values())
            rejected += len(rows.rejected)
    return rejected


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """A damaged header may ask for gigabytes: Pillow's own limit holds, lowered to what a test can afford."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)


def test_damaged_images_are_left_out_with_a_reason():
    assert 500 < check(1500, 0) < 1500


@pytest.mark.slow
def test_many_damaged_images():
    for seed in range(1, 6):
        assert 5000 < check(15_000, seed) < 15_000
