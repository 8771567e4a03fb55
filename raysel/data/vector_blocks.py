"""A column of vectors that stays on the cluster, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, check_columns, column_names, map_blocks
from raysel.core.arrays import positions
from raysel.core.hashing import hash_ids
from raysel.data.identity import check_dataset, row_ids
from raysel.data.row_index import ID, check_ids
from raysel.data.vectors import as_matrix, not_finite
from raysel.errors import COLUMNS, DataError, first

T = TypeVar("T")
LARGEST = 1e15  # squares of larger values, summed over many elements, may overflow float32


@dataclass(frozen=True)
class VectorBlocks:
    """A checked column of vectors that stays on the cluster: its blocks, and the ids of all rows.

    Attributes
    ----------
    ids : array of int64
        In the order of the blocks.
    dimension : int
        Elements per vector.
    """

    blocks: list[ray.ObjectRef]
    column: str
    ids: np.ndarray
    dimension: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return about ``count`` rows, chosen by their ids alone: ids ascending, and vectors (m, d) float32.

        All rows if there are at most ``count``. The sample goes to the driver.
        """
        share = 1.0 if self.rows <= count else count / self.rows
        parts = map_blocks(_sample, self.blocks, self.column, share, seed)
        ids = np.concatenate([ids for ids, _ in parts])
        order = np.argsort(ids, kind="stable")
        return ids[order], np.concatenate([vectors for _, vectors in parts])[order]

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows (m, d), on the driver. Raises DataError for rows without a vector.

        Parameters
        ----------
        ids : array of int64, shape (m,)
            Ascending.
        """
        parts = map_blocks(_of, self.blocks, self.column, ray.put(ids))
        found = np.concatenate([part[0] for part in parts])
        if len(missing := np.setdiff1d(ids, found)):
            raise DataError(
                f"{len(missing):,} of the {len(ids):,} rows have no vector (sample_id {first(missing)})."
            )
        return np.concatenate([part[1] for part in parts])[np.argsort(found, kind="stable")]

    def on_sample(self, function: Callable[..., T], count: int, seed: int, *arguments: Any) -> T:
        """Return ``function(vectors, *arguments)`` of a sample, from a task.

        Only the result goes to the driver.
        """
        share = 1.0 if self.rows <= count else count / self.rows
        take = ray.remote(num_cpus=1)(_sample)
        parts = [take.remote(block, self.column, share, seed) for block in self.blocks]
        return map_blocks(_on_sample, [ray.put(function)], arguments, *parts)[0]


def vector_blocks(dataset: Dataset, column: str, what: str) -> VectorBlocks:
    """Put ``column`` and the ids of ``dataset`` into the object store and check every row.

    Raises
    ------
    DataError
        Naming ``what``, for a missing column, no rows, repeated ids, vectors of different lengths, and elements that
        are NaN, infinite or too large for distances: how many rows, and the first ids.
    """
    check_dataset(dataset, what)
    if column == ID:
        raise DataError(
            f"Column '{ID}' of the {what} holds ids, not vectors; name the column of the vectors."
        )
    names = column_names(dataset)
    if not names:  # as a filter leaves it that keeps no row
        raise DataError(f"The {what} is empty: it has no rows.")
    if column not in names and ID in names:
        raise DataError(
            f"The {what} has no column '{column}'; its columns are {first(names, COLUMNS)}. Compute vectors with raysel.embed "
            "first, or set the parameter 'column' to the name of the column that holds the vectors."
        )
    check_columns(names, [ID, column], what)
    blocks = arrow_blocks(dataset.select_columns([ID, column]))
    found = map_blocks(_check_block, blocks, column, what)
    ids = np.concatenate([part[0] for part in found]) if found else np.empty(0, np.int64)
    if not len(ids):
        raise DataError(f"The {what} is empty: it has no rows.")
    check_ids(ids, f"the {what}")
    widths = sorted({width for part_ids, width, *_ in found if len(part_ids)})
    if len(widths) > 1:
        raise DataError(
            f"Column '{column}' of the {what} holds vectors of different lengths: {first(widths)}; compute all of them with one embedder."
        )
    if widths[0] == 0:
        raise DataError(
            f"Column '{column}' of the {what} holds vectors without elements; name a column whose vectors have at least one."
        )
    bad = np.sort(np.concatenate([part[2] for part in found]))
    if len(bad):
        raise DataError(
            f"Column '{column}' of the {what} holds NaN or infinite values in {len(bad):,} of {len(ids):,} rows "
            f"(sample_id {first(bad)}); repair or drop these rows first."
        )
    large = np.sort(np.concatenate([part[3] for part in found]))
    if len(large):
        raise DataError(
            f"Column '{column}' of the {what} holds values beyond ±{LARGEST:g} in {len(large):,} of {len(ids):,} rows "
            f"(sample_id {first(large)}), which are too large for distances in float32; rescale the column, or drop these rows."
        )
    filled = [block for block, part in zip(blocks, found, strict=True) if len(part[0])]
    return VectorBlocks(filled, column, ids, widths[0])


def _check_block(table: pa.Table, column: str, what: str) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Return the ids, the width, and the ids of rows whose values are not finite, or too large."""
    if not table.num_rows:  # an empty block may come without its columns
        none = np.empty(0, np.int64)
        return none, 0, none, none
    ids = row_ids(table, f"the {what}")
    try:
        vectors = as_matrix(table[column], column, ids)
    except DataError as error:
        raise DataError(f"The vectors of the {what} cannot be used. {error}") from None
    large = np.zeros(len(ids), bool)
    if vectors.shape[1]:
        large = (vectors.max(axis=1) > LARGEST) | (vectors.min(axis=1) < -LARGEST)
    return ids, vectors.shape[1], ids[not_finite(vectors)], ids[large]


def _of(table: pa.Table, column: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = table[ID].to_numpy()
    wanted = np.flatnonzero(positions(ids, here)[1])
    return here[wanted], as_matrix(table[column], column, here)[wanted]


def _sample(table: pa.Table, column: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    taken = np.flatnonzero(hash_ids(ids, seed) < share) if share < 1 else np.arange(len(ids))
    return ids[taken], as_matrix(table[column], column, ids)[taken]


def _on_sample(function: Callable[..., T], arguments: tuple[Any, ...], *parts: tuple[np.ndarray, ...]) -> T:
    order = np.argsort(np.concatenate([ids for ids, _ in parts]), kind="stable")
    return function(np.concatenate([vectors for _, vectors in parts])[order], *arguments)
