"""Identity of a pool: the files, in their order, whose rows were numbered from 0. Without Ray.

An id identifies a row only together with the files that were numbered. A Dataset of :func:`raysel.read`
carries them in its context (``Dataset.context``, a public part of Ray's interface that every derived Dataset
shares), and a Selection keeps them, so that one made from other rows is refused.
"""

from __future__ import annotations

import pickle
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysel.data.row_index import ID, RowIndex
from raysel.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from ray.data import Dataset

POOL_FILE = "_pool.json"  # next to vectors: the identity of the pool whose ids they have
_KEY = "raysel.pool"  # under which a Dataset's context holds what numbered its rows


class NumberedFile(NamedTuple):
    """A file whose rows have consecutive ids: its name (only displayed), digest and number of rows."""

    name: str
    digest: str
    rows: int

    def __str__(self) -> str:
        return f"{self.name} ({self.rows:,} rows)"


@dataclass(frozen=True)
class PoolIdentity:
    """The files that numbered the rows of a pool, in their order; data from memory count as one file."""

    files: tuple[NumberedFile, ...]

    @property
    def rows(self) -> int:
        """Number of rows that were numbered; their ids are 0..rows-1."""
        return sum(file.rows for file in self.files)

    def to_list(self) -> list[list[Any]]:
        """Return ``[name, digest, rows]`` of each file, for JSON."""
        return [list(file) for file in self.files]

    @classmethod
    def from_list(cls, files: Sequence[Sequence[Any]]) -> PoolIdentity:
        """Return the identity that :meth:`to_list` describes; raise ValueError or TypeError if it is none."""
        found = tuple(NumberedFile(*file) for file in files)
        for name, digest, rows in found:
            if not (isinstance(name, str) and isinstance(digest, str) and type(rows) is int and rows >= 0):
                raise ValueError(
                    f"The entry of the file {shown(name)} does not consist of the name, digest and number of rows of the file."
                )
        return cls(found)

    def check(self, pool: PoolIdentity) -> None:
        """Raise DataError unless these files are the first of ``pool``, so that ids are the same rows."""
        for place, mine in enumerate(self.files):
            other = pool.files[place] if place < len(pool.files) else None
            if other is not None and mine[1:] == other[1:]:
                continue
            if other is None:
                what = f"file {place + 1} of the selection's pool, {mine}, is not in this pool"
            elif mine[::2] == other[::2]:
                what = f"the content of file {place + 1} of the pool, {mine}, has changed since the selection was made"
            else:
                what = (
                    f"file {place + 1} of the given rows is {other}, but file {place + 1} of the rows that the selection was "
                    f"made from is {mine}"
                )
            moved = {file[1:] for file in self.files} <= {file[1:] for file in pool.files}
            advice = (
                "Read the pool with index=FILE, so that its rows keep their ids when files are added."
                if moved
                else "Apply the selection to the rows that it was made from, or select again from the given rows."
            )
            raise DataError(f"This selection was made from other rows: {what}. {advice}")


def index_identity(index: RowIndex) -> PoolIdentity:
    """Return the identity of a pool of Parquet files."""
    names = short_names([file.path for file in index.files])
    return PoolIdentity(
        tuple(
            NumberedFile(name, digest, rows)
            for name, (digest, rows) in zip(names, index.identity(), strict=True)
        )
    )


def check_dataset(value: object, what: str, arrays: str = "") -> None:
    """Raise ConfigError unless ``value`` is a Ray Dataset; ``arrays`` names a function that takes arrays instead."""
    if hasattr(value, "context") and hasattr(value, "map_batches"):
        return
    advice = "make one with raysel.read"
    if hasattr(value, "ids") and hasattr(value, "apply"):
        advice = "apply the selection to the rows that it was made from"
    elif arrays and hasattr(value, "shape"):
        advice += f", or use {arrays}, which takes arrays"
    raise ConfigError(f"The {what} must be a Ray Dataset, not {shown(value)}; {advice}.")


def row_ids(table: pa.Table, where: str) -> np.ndarray:
    """Return the ids of a table's rows, int64; DataError if the column is missing or cannot hold ids."""
    if table.column_names.count(ID) != 1:
        raise DataError(
            f"There is no column '{ID}' in {where}; read the rows with raysel.read, which adds this column."
        )
    ids = table[ID]
    if not pa.types.is_integer(ids.type) or ids.null_count:
        held = f"{ids.type} with {ids.null_count:,} null values" if ids.null_count else str(ids.type)
        raise DataError(f"Column '{ID}' of {where} holds {held}; every row needs an integer.")
    try:
        return ids.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise DataError(
            f"Column '{ID}' of {where} holds integers above 2^63 - 1; number the rows from 0."
        ) from None


def identity(dataset: Dataset) -> PoolIdentity | None:
    """Return what assigned the ids of the rows of ``dataset``.

    Returns
    -------
    PoolIdentity or None
        None if it is not known: the ids come from a column ``sample_id`` of the data, the Dataset was not made by
        :func:`raysel.read`, or it joins several.

    Raises
    ------
    ConfigError
        If ``dataset`` is not a Ray Dataset.
    """
    check_dataset(dataset, "dataset")
    held = dataset.context.get_config(_KEY)
    return held.identity() if isinstance(held, _Numbering) and not _joined(dataset) else None


def _joined(dataset: Dataset) -> bool:
    """Whether several data sets were put together, of which the context is that of the first."""
    queue = [dataset._logical_plan.dag]
    while queue:
        inputs = queue.pop().input_dependencies
        if len(inputs) > 1:
            return True
        queue += inputs
    return False


def mark(dataset: Dataset, numbered_by: RowIndex | PoolIdentity | None) -> Dataset:
    """Make ``dataset`` and everything derived from it carry what assigned the ids of its rows.

    Return ``dataset``.
    """
    dataset.context.set_config(_KEY, None if numbered_by is None else _Numbering(numbered_by))
    return dataset


class _Numbering:
    """What assigned the ids of a Dataset's rows, computed when it is needed.

    Ray copies a context often and sends it with every task: copies share this object, and a task receives the
    files as bytes that it does not parse.
    """

    def __init__(self, numbered_by: RowIndex | PoolIdentity | None, pickled: bytes = b"") -> None:
        self._numbered_by, self._pickled = numbered_by, pickled

    def identity(self) -> PoolIdentity:
        if self._numbered_by is None:
            self._numbered_by = pickle.loads(
                self._pickled
            )  # made by __reduce__, in another process of this run
        if isinstance(self._numbered_by, RowIndex):
            self._numbered_by, self._pickled = index_identity(self._numbered_by), b""
        assert self._numbered_by is not None
        return self._numbered_by

    def __deepcopy__(self, memo: dict[int, Any]) -> _Numbering:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self._pickled = self._pickled or pickle.dumps(self._numbered_by)
        return _Numbering, (None, self._pickled)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the paths below the directory that holds all of them."""
    above = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if paths else ""
    # Not by relpath, which reads the working directory for paths that do not begin with a slash.
    return [path[len(above) :].lstrip("/") if above else path for path in paths]
