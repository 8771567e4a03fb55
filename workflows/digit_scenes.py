"""Write images that are composed of scikit-learn's digits, with the class of every pixel, as pool and test; no download.

    python workflows/digit_scenes.py [--out DIR]

The images are artificial: three digits of 8 x 8 pixels are pasted at random places of an empty image of 24 x 24. The task
is to find the class of every pixel: 0 for the background, and 1 + the digit. The files are written to
``data/digit_scenes`` next to this script, or to ``--out``:

- ``test.parquet``: 300 images of 300 digits that no image of the pool contains. They are used only to score the model.
- ``pool.parquet``: 1,000 images. The masks of a quarter of them are those of another image, as if they had been mixed up.

The columns are ``pixels`` (uint8 tensor (1, 24, 24)), ``mask`` (uint8 tensor (24, 24)), and in the pool ``mixed_up`` (bool),
which nothing that selects or trains may read. Seeds are fixed, so every call writes the same bytes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

SIDE, DIGITS, INK = 24, 3, 4
"""Pixels per side of an image, digits per image, and the darkness (of 16) from which a pixel belongs to a digit."""
POOL_ROWS, TEST_ROWS, TEST_DIGITS, MIXED_UP = 1000, 300, 300, 0.25
SEED = 0
ROW_GROUP = 256


def scenes(
    images: np.ndarray, labels: np.ndarray, rows: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 1, SIDE, SIDE) and masks (n, SIDE, SIDE), both uint8; later digits cover earlier ones."""
    pixels = np.zeros((rows, 1, SIDE, SIDE), np.uint8)
    masks = np.zeros((rows, SIDE, SIDE), np.uint8)
    for image, mask in zip(pixels[:, 0], masks, strict=True):
        for digit in rng.choice(len(images), DIGITS, replace=False):
            top, left = rng.integers(0, SIDE - 7, 2)
            here = np.s_[top : top + 8, left : left + 8]
            ink = images[digit] >= INK
            image[here][ink] = (images[digit][ink] * 15.9).astype(np.uint8)
            mask[here][ink] = labels[digit] + 1
    return pixels, masks


def table(**columns: np.ndarray) -> pa.Table:
    """Return arrays as a table whose tensors Arrow reads without Ray."""
    found = {}
    for name, values in columns.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        if values.ndim == 1:
            found[name] = flat
            continue
        kind = pa.fixed_shape_tensor(flat.type, values.shape[1:])
        storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
        found[name] = pa.ExtensionArray.from_storage(kind, storage)
    return pa.table(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Write images composed of digits, with masks, as Parquet: pool, test."
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data" / "digit_scenes")
    out = parser.parse_args(arguments).out
    data = load_digits()
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(data.target))
    test, pool = order[:TEST_DIGITS], order[TEST_DIGITS:]
    pixels, masks = scenes(data.images[pool], data.target[pool], POOL_ROWS, rng)
    mixed = np.sort(rng.choice(POOL_ROWS, int(POOL_ROWS * MIXED_UP), replace=False))
    masks[mixed] = masks[np.roll(mixed, 1)]
    tested = scenes(data.images[test], data.target[test], TEST_ROWS, rng)
    files = {
        "pool": table(pixels=pixels, mask=masks, mixed_up=np.isin(np.arange(POOL_ROWS), mixed)),
        "test": table(pixels=tested[0], mask=tested[1]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        path = out / f"{name}.parquet"
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        pq.write_table(rows, partial, row_group_size=ROW_GROUP)
        os.replace(partial, path)
        print(f"{path}: {len(rows):,} rows")


if __name__ == "__main__":
    main()
