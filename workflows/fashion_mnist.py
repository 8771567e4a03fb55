"""Write FashionMNIST (60,000 + 10,000 images, 28 x 28, ten classes) as a pool with junk, a target and a test set.

    apt install dataset-fashion-mnist
    python workflows/fashion_mnist.py [--source DIR] [--out DIR] [--junk SHARE]

The script reads the four gzipped IDX files of the Debian package; ``--source`` is their folder if it is not the package's.
The files are written to ``data/fashion_mnist`` next to this script, or to ``--out``:

- ``test.parquet``: the 10,000 test images. They are used only to score the model; selection and training do not read them.
- ``target.parquet``: 5,000 clean training images, 500 per class, which the selected rows should resemble.
- ``pool.parquet``: the other 55,000 training images. 18,333 of them (a third, or ``--junk``) are junk; ``junk.corrupt``
  says which kinds.

The columns are ``pixels`` (uint8 tensor (1, 28, 28), 0..255) and ``label`` (int64, 0..9), in row groups of 4,096 rows. The
pool also has ``junk`` (bool), which serves only to evaluate a selection afterwards; nothing that selects or trains may read
it. Seeds are fixed, so every call writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import zlib
from pathlib import Path

import numpy as np
from junk import SHARE, corrupt, split_off, write

SOURCE = Path("/usr/share/datasets/fashion-mnist")
CLASSES = 10
TARGET_SHARE = 1 / 12
"""Share of the training images that becomes the target: 5,000 of 60,000."""
SEED = 0
ROW_GROUP = 4096
FILES = {
    "train images": "train-images-idx3-ubyte.gz",
    "train labels": "train-labels-idx1-ubyte.gz",
    "test images": "t10k-images-idx3-ubyte.gz",
    "test labels": "t10k-labels-idx1-ubyte.gz",
}


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file: two zero bytes, type 8, rank, big-endian sizes, then the values."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); reinstall the package dataset-fashion-mnist."
        ) from None
    rank = raw[3] if len(raw) > 3 else 0
    head = 4 + 4 * rank
    if raw[:3] != b"\x00\x00\x08" or rank == 0 or len(raw) < head:
        raise ValueError(
            f"{path} is not an IDX file of bytes; give the folder with the original files as --source."
        )
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=rank, offset=4))
    values = np.frombuffer(raw, np.uint8, offset=head)
    if len(values) != np.prod(shape):
        raise ValueError(
            f"{path} should hold values of shape {shape} but holds {len(values)} values; reinstall the package "
            "dataset-fashion-mnist."
        )
    return values.reshape(shape)


def load(source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images (n, 1, h, w) uint8, train labels (n,) int64, test images and test labels."""
    missing = [name for name in FILES.values() if not (source / name).is_file()]
    if missing:
        raise ValueError(
            f"{source} has no {missing[0]}; install the data with `apt install dataset-fashion-mnist` "
            "or give the folder that holds the four files as --source."
        )
    arrays = {part: read_idx(source / name) for part, name in FILES.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part} images"], arrays[f"{part} labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{source} holds {part} images of shape {images.shape} and labels of shape {labels.shape}; "
                "they must have one label per image."
            )
    return (
        arrays["train images"][:, None],
        arrays["train labels"].astype(np.int64),
        arrays["test images"][:, None],
        arrays["test labels"].astype(np.int64),
    )


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of pool and target among the training images, each ascending."""
    target, pool = split_off(labels, round(TARGET_SHARE * len(labels)), SEED)
    return pool, target


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write FashionMNIST as Parquet: pool, target, test.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder with the gzipped IDX files")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent / "data" / "fashion_mnist",
        help="folder to write",
    )
    parser.add_argument(
        "--junk", type=float, default=SHARE, help="share of the pool that is junk, 0 for none"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.junk <= 1:
        sys.exit(f"error: --junk {options.junk:g} is not a share from 0 to 1.")
    try:
        images, labels, test_images, test_labels = load(options.source)
    except ValueError as error:
        sys.exit(f"error: {error}")
    pool, target = split(labels)
    pixels, given, junk = corrupt(images[pool], labels[pool], options.junk, CLASSES, SEED)

    files = {
        "pool": (pixels, given, junk),
        "target": (images[target], labels[target]),
        "test": (test_images, test_labels),
    }
    write(options.out, files, ROW_GROUP)


if __name__ == "__main__":
    main()
