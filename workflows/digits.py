"""Write the digits data set of scikit-learn (1,797 images, 8 x 8) as pool, target and test; no download.

    python workflows/digits.py [--out DIR]

The task is to classify the digits 0 to 4. The pool also holds the digits 5 to 9, and junk. The files are written to
``data/digits`` next to this script, or to ``--out``:

- ``test.parquet``: 180 images of 0 to 4, stratified by class. They are used only to score the model; selection and training do not
  read them.
- ``target.parquet``: 100 other images of 0 to 4, stratified by class, which the selected rows should resemble.
- ``pool.parquet``: the remaining 1,517 images, of all ten classes. 506 of them (a third) are junk; ``junk.corrupt`` says
  which kinds.

The columns are ``pixels`` (float32 tensor (1, 8, 8) in [0, 1]) and ``label`` (int64, 0..9), in row groups of 256 rows.
The pool also has ``junk`` (bool), which serves only to evaluate a selection afterwards; nothing that selects or trains may
read it. Seeds are fixed, so every call writes the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from junk import SHARE, corrupt, split_off, write
from sklearn.datasets import load_digits

CLASSES = 10
WANTED = 5  # the target and the test hold the classes below this
TEST_ROWS = 180
TARGET_ROWS = 100
SEED = 0
ROW_GROUP = 256


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row numbers of pool, target and test in the original data set, each ascending."""
    wanted = np.flatnonzero(labels < WANTED)
    test, rest = split_off(labels[wanted], TEST_ROWS, SEED)
    target, _ = split_off(labels[wanted[rest]], TARGET_ROWS, SEED)
    test, target = wanted[test], wanted[rest[target]]
    return np.setdiff1d(np.arange(len(labels)), np.concatenate([test, target])), target, test


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the digits data set as Parquet: pool, target, test.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent / "data" / "digits",
        help="folder to write",
    )
    out = parser.parse_args(arguments).out

    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    pool, target, test = split(labels)
    pixels, given, junk = corrupt(images[pool], labels[pool], SHARE, CLASSES, SEED)

    files = {
        "pool": (pixels, given, junk),
        "target": (images[target], labels[target]),
        "test": (images[test], labels[test]),
    }
    write(out, files, ROW_GROUP)


if __name__ == "__main__":
    main()
