"""Functions for the image workflows: they replace a part of the pool by junk, and write the files.

``digits.py`` and ``fashion_mnist.py`` make a small clean *target*, a *test* set that is used only to score the model, and a large
*pool* of which a known share is junk. In such a pool, selection before training can help. Everything is seeded, and the
same call writes the same bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

SHARE = 1 / 3
"""Share of the pool that is junk."""


def corrupt(
    images: np.ndarray, labels: np.ndarray, share: float, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace ``round(share * n)`` random rows by junk and return images, labels and which rows are junk.

    There are three kinds, in equal parts (a remainder goes to the first kinds):

    1. *shuffled*: the image's own pixels in a random order (one permutation per image), with a label drawn
       uniformly from the other classes. Only brightness and histogram stay as they were.
    2. *blended*: the pixelwise mean of the image and of a row of another class, drawn uniformly, with the label of
       one of the two at random. If there is no other class, the row stays as it was.
    3. *noise*: every pixel uniform between the smallest and the largest value in ``images``, with a label drawn
       uniformly from all classes.

    ``images`` (n, ...) have any numeric dtype, which is kept (integers are rounded half to even); ``labels`` (n,)
    are int64 in 0..classes-1; ``junk`` (n,) is bool. The inputs are not changed, and rows that are not junk are
    returned as they were.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; give a number from 0 to 1.")
    rng = np.random.default_rng(seed)
    count = round(share * len(images))
    chosen = rng.choice(len(images), size=count, replace=False)
    shuffled, blended, noise = np.array_split(chosen, 3)
    new_images, new_labels = images.copy(), labels.copy()
    shape = images.shape[1:]

    flat = images[shuffled].reshape(len(shuffled), int(np.prod(shape)))
    new_images[shuffled] = rng.permuted(flat, axis=1).reshape(len(shuffled), *shape)
    if classes > 1:
        new_labels[shuffled] = (labels[shuffled] + rng.integers(1, classes, size=len(shuffled))) % classes

    donors = _other_class(labels, blended, rng)
    mean = (images[blended].astype(np.float64) + images[donors]) / 2
    new_images[blended] = np.rint(mean) if np.issubdtype(images.dtype, np.integer) else mean
    new_labels[blended] = np.where(rng.random(len(blended)) < 0.5, labels[blended], labels[donors])

    size = (len(noise), *shape)
    if np.issubdtype(images.dtype, np.integer):
        new_images[noise] = rng.integers(images.min(), images.max(), size=size, endpoint=True)
    else:
        new_images[noise] = rng.uniform(images.min(), images.max(), size=size)
    new_labels[noise] = rng.integers(0, classes, size=len(noise))

    junk = np.zeros(len(images), dtype=bool)
    junk[chosen] = True
    return new_images, new_labels, junk


def _other_class(labels: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random row of another class for each of ``rows``, or the row itself if there is none."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, labels[rows], side="left")
    others = len(labels) - (np.searchsorted(ordered, labels[rows], side="right") - first)
    # An index among the rows of other classes: the rows ordered by class, without those of the row's own class.
    draw = rng.integers(0, np.maximum(others, 1))
    own = len(labels) - others
    picked = order[np.minimum(np.where(draw < first, draw, draw + own), len(labels) - 1)]
    return np.where(others > 0, picked, rows)


def split_off(labels: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of ``rows`` rows, stratified by class, and of the rest; both ascending."""
    rest, taken = train_test_split(np.arange(len(labels)), test_size=rows, stratify=labels, random_state=seed)
    return np.sort(taken), np.sort(rest)


def write(out: Path, files: dict[str, tuple[np.ndarray, ...]], row_group: int) -> None:
    """Write ``{name: (images, labels[, junk])}`` as ``out/name.parquet`` and print one line per file.

    The columns are ``pixels`` (fixed-shape tensor), ``label`` (int64) and, if given, ``junk`` (bool). A file appears
    under its name only when it is complete. If the folder cannot be written, the program ends with an error message.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, columns in files.items():
            table = _table(*columns)
            path = out / f"{name}.parquet"
            _replace(path, table, row_group)
            junk = f", {pc.sum(table['junk']).as_py():,} of them junk" if "junk" in table.column_names else ""
            print(f"{path}: {len(table):,} rows{junk}")
    except OSError as error:
        sys.exit(f"error: {out} cannot be written ({error}); give another folder as --out.")


def _table(images: np.ndarray, labels: np.ndarray, junk: np.ndarray | None = None) -> pa.Table:
    size = int(np.prod(images.shape[1:]))
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(images.dtype), images.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(images).reshape(-1)), size)
    columns = {
        "pixels": pa.ExtensionArray.from_storage(kind, storage),
        "label": pa.array(labels.astype(np.int64)),
    }
    return pa.table(columns if junk is None else columns | {"junk": pa.array(junk)})


def _replace(path: Path, table: pa.Table, row_group: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, row_group_size=row_group)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
