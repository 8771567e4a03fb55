"""The digits data set inside scikit-learn (1,797 images, 8 x 8) as a pool wider than its target; no download.

    python workflows/digits.py [--out DIR]

The task is to tell the digits 0 to 4 apart; the pool holds all ten, and junk. Writes, by default into
``data/digits`` beside this script,

- ``test.parquet``: 180 images of 0 to 4, stratified by class; scored, never looked at by selection or training
- ``target.parquet``: 100 images of 0 to 4, stratified, taken out of the rest: what the selection aims at
- ``pool.parquet``: the other 1,517, of all ten classes; 506 (a third) are junk, see ``junk.corrupt`` for the kinds

with the columns ``pixels`` (float32 tensor (1, 8, 8) in [0, 1]) and ``label`` (int64, 0..9), in row groups of 256
rows. The pool also has ``junk`` (bool), for scoring a selection afterwards only: nothing that selects or trains
may read it. Seeds are fixed: every call writes the same bytes.
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
    """Row numbers (pool, target, test) in the original data set, each ascending."""
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
