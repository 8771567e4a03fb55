"""A pool with junk in it: what the image workflows share.

A small clean *target*, a *test* set that is only scored, and a large *pool* of which a documented share is junk:
the situation in which preselection has something to do. ``digits.py`` and ``fashion_mnist.py`` make such data sets
with the functions below; everything is seeded, and the same call writes the same bytes.
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
    """Replace ``round(share * n)`` rows, drawn without replacement, by junk; returns (images, labels, junk).

    Three kinds in equal parts (a remainder goes to the first kinds), in random places:

    1. *shuffled*: the image's own pixels in a random order (one permutation per image), with a label drawn
       uniformly from the other classes. Brightness and histogram are real, nothing else is.
    2. *blended*: the pixelwise mean of the image and of a row of another class drawn uniformly from the input,
       with the label of either by a fair coin. (If there is no other class: the image itself, its own label.)
    3. *noise*: every pixel uniform between the smallest and the largest value in ``images``, with a label drawn
       uniformly from all classes.

    ``images`` (n, ...) of any numeric dtype, kept (integers round half to even); ``labels`` (n,) int64 in
    0..classes-1; ``junk`` (n,) bool. Inputs are not changed; rows that are not junk come back as they were.
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
    """For each of ``rows`` a row of another class, uniformly; the row itself where there is none."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, labels[rows], side="left")
    others = len(labels) - (np.searchsorted(ordered, labels[rows], side="right") - first)
    # An index among the rows of other classes, read in class order with the row's own class stepped over.
    draw = rng.integers(0, np.maximum(others, 1))
    own = len(labels) - others
    picked = order[np.minimum(np.where(draw < first, draw, draw + own), len(labels) - 1)]
    return np.where(others > 0, picked, rows)


def split_off(labels: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (taken, rest), ascending: ``rows`` rows with the classes in the proportions of ``labels``."""
    rest, taken = train_test_split(np.arange(len(labels)), test_size=rows, stratify=labels, random_state=seed)
    return np.sort(taken), np.sort(rest)


def write(out: Path, files: dict[str, tuple[np.ndarray, ...]], row_group: int) -> None:
    """Write ``{name: (images, labels[, junk])}`` as ``out/name.parquet``; one printed line per file.

    Columns ``pixels`` (fixed-shape tensor), ``label`` (int64) and, where given, ``junk`` (bool). The tensor type
    carries no permutation, so plain pyarrow and Ray both read it. A file appears whole or not at all: it is written
    beside its place and then renamed. A folder that cannot be written ends the program with a sentence.
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
