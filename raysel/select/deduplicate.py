"""Drop near duplicates, and find test rows that have near duplicates among the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from raysel.core.arrays import unit
from raysel.core.budgets import budget_rows, check_budget
from raysel.core.calls import checked_call
from raysel.core.numbers import whole
from raysel.core.parameters import check_fields
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, as_matrix
from raysel.errors import ConfigError, DataError
from raysel.select.duplicates import (
    Pairs,
    close_pairs,
    drop_to,
    join_pairs,
    keep_first,
    nearest_cells,
    pairs_across,
    probes_for,
)
from raysel.select.matches import Matches
from raysel.selection import Selection, coded_text

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.data.vector_blocks import VectorBlocks

_THRESHOLD = 0.95  # the default
_LOWEST = 0.5  # lower thresholds are refused
_LOWEST_FOUND = 0.8  # and this is the lowest that keep can lead to
_CELL_ROWS = 1000  # rows per cell on average
_MOST_CELLS = 4096
_GROUP_BYTES = 256 << 20  # vectors that one task compares


@dataclass(frozen=True)
class Deduplicate:
    """Drop rows that are near duplicates of a row that is kept (SemDeDup).

    In ascending order of ``sample_id``, a row is dropped if the cosine of its vector to that of a kept row reaches the
    threshold. Exact copies of a vector are always dropped.

    Parameters
    ----------
    threshold : float, optional
        Two rows are near duplicates if the cosine of their vectors is at least this value, above 0.5 and at
        most 1. Without ``threshold`` and ``keep``, the threshold is 0.95.
    keep : float or int, optional
        Number of rows to keep, in place of ``threshold``: a share of the pool (float) or a number of rows (int).
        The threshold that keeps at least this number of rows is found by bisection.
    probes : int
        Number of k-means clusters that are searched for each row: the row is compared only with the rows of its
        nearest clusters. With more clusters, more duplicates are found, but the search takes longer. By default, the number depends on the threshold.
    column : str
        Column with the vectors.
    seed : int
        Seed of k-means. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        If both ``threshold`` and ``keep`` are given, and for a value that is out of range.

    Notes
    -----
    Rows are compared within k-means clusters of about 1,000 rows. A pair is found if the cluster of one row is among the
    ``probes`` nearest clusters of the other row. In pools of fewer than 3,000 rows, all pairs of
    rows are compared.

    References
    ----------
    Abbas et al. 2023, SemDeDup: Data-efficient learning at web-scale through semantic deduplication, arXiv:2303.09540.

    Examples
    --------
    >>> chosen = raysel.Deduplicate(threshold=0.999).select(rows)   # rows: 10 rows with vectors
    >>> len(chosen) <= 10
    True
    """

    threshold: float | None = None
    keep: float | int | None = None
    probes: int | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "deduplicate"
    uses_vectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        check_fields(self)
        if self.threshold is not None and self.keep is not None:
            raise ConfigError(
                "threshold: Deduplicate cannot have both parameters, threshold and keep; remove one of them."
            )
        if self.threshold is not None:
            check_threshold(self.threshold)
        if self.keep is not None:
            try:
                object.__setattr__(self, "keep", check_budget(self.keep))
            except ConfigError as error:
                raise ConfigError(str(error).replace("budget:", "keep:", 1)) from None
        if self.probes is not None:
            whole("probes", self.probes, 1)

    @checked_call
    def select(self, pool: Dataset) -> Selection:
        """Drop the near duplicates of a pool.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.

        Returns
        -------
        Selection
            The score is the number of rows that were dropped as near duplicates of the row. The table of dropped rows has
            the columns ``duplicate_of`` (int64, a kept row) and ``cosine`` (float64).

        Raises
        ------
        DataError
            For vectors that cannot be used.
        ConfigError
            If only ``keep`` rows cannot be kept, because more rows than that have no near duplicate.

        Examples
        --------
        >>> len(raysel.Deduplicate(keep=9).select(rows))
        9
        """
        from raysel.data.vector_blocks import vector_blocks

        check_dataset(pool, "pool")
        source = vector_blocks(pool, self.column, "pool")
        ids = np.sort(source.ids)
        count = len(ids) if self.keep is None else budget_rows(self.keep, len(ids))
        wanted = None if self.keep is not None else self.threshold or _THRESHOLD
        first_of, pairs = _pairs(source, wanted or _LOWEST_FOUND, self.probes, self.seed)
        different = len(ids) - len(first_of)
        if wanted is not None:
            threshold, found = wanted, keep_first(pairs, wanted)
        elif different < count:
            raise ConfigError(
                f"keep: {count:,} rows cannot be kept, because the {len(ids):,} vectors contain only {different:,} distinct ones; lower 'keep'."
            )
        elif (reached := drop_to(pairs, different, count)) is not None:
            threshold, found = reached
        else:
            left = different - len(keep_first(pairs, _LOWEST_FOUND).later)
            raise ConfigError(
                f"keep: Deduplicate cannot reduce the pool to {count:,} rows, because {left:,} rows have no near duplicate with a "
                f"cosine of {_LOWEST_FOUND} or more. Raise keep, or add another selector that selects from the remaining rows."
            )
        return _selection(self, ids, first_of, found, threshold, pool)


def _selection(
    selector: Deduplicate,
    ids: np.ndarray,
    copies: dict[int, int],
    found: Pairs,
    threshold: float,
    pool: Dataset,
) -> Selection:
    kept_for = dict(zip(found.later.tolist(), found.earlier.tolist(), strict=True))
    cosine = dict(zip(found.later.tolist(), found.cosine.tolist(), strict=True))
    rows = sorted([*copies, *kept_for])
    of = np.array([kept_for.get(one := copies.get(row, row), one) for row in rows], np.int64)
    near = np.array([cosine.get(copies.get(row, row), 1.0) for row in rows])
    exact = np.array([row in copies for row in rows], bool)
    out = np.array(rows, np.int64)
    chosen = np.setdiff1d(ids, out)
    dropped = pa.table(
        {
            ID: out,
            "duplicate_of": of,
            "cosine": near,
            "reason": coded_text(
                np.where(exact, 1, 0), ["near duplicate of a kept row", "copy of another row's vector"]
            ),
        }
    )
    stands_for = np.bincount(np.searchsorted(chosen, of), minlength=len(chosen)).astype(np.float64)
    return Selection.of(
        chosen,
        score=stands_for,
        reason=coded_text(
            (stands_for > 0).astype(np.int64),
            ["has no near duplicate among the kept rows", "kept in place of its near duplicates"],
        ),
        dropped=dropped,
        info={
            "method": "deduplicate",
            **asdict(selector),
            "threshold": threshold,
            "pool_rows": len(ids),
            "copies": len(copies),
            "notes": [
                f"{len(out):,} rows were dropped as duplicates: {len(copies):,} copies of another row's vector, and "
                f"{len(out) - len(copies):,} rows with a cosine of at least {threshold:.3f} to a kept row."
            ],
            "score": "number of near duplicates that were dropped for the row",
        },
        pool=pool,
    )


def leakage(
    train: Dataset,
    test: Dataset,
    threshold: float = 0.95,
    *,
    column: str = EMBEDDING,
    probes: int | None = None,
    seed: int = 0,
) -> pa.Table:
    """Find test rows that have a near duplicate among the training rows.

    Parameters
    ----------
    train, test : ray.data.Dataset
        Rows with ``sample_id`` (int64) and the vector column, embedded by the same embedder.
    threshold : float
        Two rows are near duplicates if the cosine of their vectors is at least this value, above 0.5 and at most 1.
    column : str
        Column with the vectors.
    probes : int, optional
        Number of k-means clusters with whose rows each row is compared; see `raysel.Deduplicate`.
    seed : int
        Seed of the clustering.

    Returns
    -------
    pyarrow.Table
        One row per test row with a near duplicate: ``sample_id`` (of the test row, ascending), ``train_id`` (the most similar
        training row that was compared) and ``cosine``.

    Raises
    ------
    ConfigError
        For a threshold that is out of range.
    DataError
        For vectors that cannot be used.

    Examples
    --------
    >>> raysel.leakage(rows, rows, 0.99).num_rows   # rows: 10 rows with vectors, each of which finds itself
    10
    """
    from raysel.data.vector_blocks import vector_blocks

    check_threshold(threshold)
    check_dataset(train, "training data")
    check_dataset(test, "test data")
    source, other = vector_blocks(train, column, "training data"), vector_blocks(test, column, "test data")
    if source.dimension != other.dimension:
        raise DataError(
            f"The training vectors have {source.dimension} dimensions, but the test vectors {other.dimension}; embed both "
            "with the same embedder."
        )
    import ray

    from raysel.cluster.wait import get

    centroids = _centroids(source, seed)
    count = min(probes or probes_for(threshold), len(centroids))
    groups = _groups(source, len(centroids))
    shuffled = [_shuffle(each, centroids, count, groups) for each in (source, other)]
    task = ray.remote(num_cpus=1, max_retries=3)(_cross)
    parts = get([task.remote(*pair, threshold) for pair in zip(*shuffled, strict=True)])
    row, of, cosine = (np.concatenate(one) for one in zip(*parts, strict=True))
    order = np.lexsort((of, -cosine, row))
    row, of, cosine = row[order], of[order], cosine[order]
    best = np.diff(row, prepend=-1) > 0
    return pa.table({ID: row[best], "train_id": of[best], "cosine": cosine[best]})


def check_threshold(threshold: Any) -> None:
    """Raise ConfigError unless a threshold is a number above 0.5 and at most 1."""
    number = isinstance(threshold, (int, float, np.floating)) and not isinstance(threshold, bool)
    if not number or not _LOWEST < threshold <= 1:
        raise ConfigError(
            f"threshold: {threshold!r} is not valid; give a cosine above {_LOWEST} and at most 1, for example 0.95."
        )


# ---- on the cluster ------------------------------------------------------------------------------------------------


def _pairs(
    source: VectorBlocks, threshold: float, probes: int | None, seed: int
) -> tuple[dict[int, int], Pairs]:
    """Return the id of the first row with the same vector for every copy, and the close pairs of the other rows."""
    import ray

    from raysel.cluster.blocks import map_blocks
    from raysel.cluster.wait import get

    digests = map_blocks(_digests, source.blocks, source.column)
    ids = np.concatenate([part[0] for part in digests])
    digest = np.concatenate([part[1] for part in digests])
    order = np.lexsort((ids, digest))
    first = np.ones(len(order), bool)
    first[1:] = digest[order][1:] != digest[order][:-1]
    of = ids[order][np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    copies = dict(zip(ids[order][~first].tolist(), of[~first].tolist(), strict=True))
    centroids = _centroids(source, seed)
    groups = _groups(source, len(centroids))
    gone = np.sort(np.fromiter(copies, np.int64, len(copies)))
    count = min(probes or probes_for(threshold), len(centroids))
    shuffled = _shuffle(source, centroids, count, groups, gone)
    task = ray.remote(num_cpus=1, max_retries=3)(_compare)
    parts = get([task.remote(refs, threshold) for refs in shuffled])
    return copies, join_pairs([Pairs(*part) for part in parts])


def _centroids(source: VectorBlocks, seed: int) -> np.ndarray:
    cells = min(_MOST_CELLS, source.rows // _CELL_ROWS)
    if cells <= 2:
        return np.ones((1, source.dimension), np.float32)
    return source.on_sample(_unit_centroids, cells * 64, seed, cells, seed)


def _unit_centroids(vectors: np.ndarray, cells: int, seed: int) -> np.ndarray:
    from raysel.gio.quantize import fit_centroids

    return unit(fit_centroids(unit(vectors), cells, seed))


def _groups(source: VectorBlocks, cells: int) -> int:
    import ray

    size = source.rows * source.dimension * 4
    return min(cells, max(int(ray.cluster_resources().get("CPU", 1)), -(-size // _GROUP_BYTES)))


def _shuffle(
    source: VectorBlocks, centroids: np.ndarray, probes: int, groups: int, without: np.ndarray | None = None
) -> list[list[Any]]:
    """Return for each group of cells references to the rows in it, a table per block."""
    import ray

    shared = ray.put((centroids, without))
    task = ray.remote(num_cpus=1, max_retries=3, num_returns=groups)(_scatter)
    parts = [task.remote(block, source.column, shared, probes, groups) for block in source.blocks]
    return [[part if groups == 1 else part[group] for part in parts] for group in range(groups)]


def _digests(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    vectors = as_matrix(table[column], column, ids) + np.float32(0)  # -0.0 is 0.0
    raw = np.ascontiguousarray(vectors)
    found = [hashlib.blake2b(row.data, digest_size=16).digest() for row in raw]
    return ids, np.array(found, "V16") if found else np.empty(0, "V16")


def _scatter(table: pa.Table, column: str, shared: Any, probes: int, groups: int) -> Any:
    """Return for each group of cells the rows that are compared in it, and (row, cell, whether it is the row's own)."""
    centroids, without = shared
    ids = table[ID].to_numpy()
    rows = unit(as_matrix(table[column], column, ids))
    if without is not None:
        stay = ~np.isin(ids, without)
        ids, rows = ids[stay], rows[stay]
    cells = nearest_cells(rows, centroids, probes)
    found = []
    for group in range(groups):
        row, probe = np.nonzero(cells % groups == group)
        some, place = np.unique(row, return_inverse=True)
        found.append((ids[some], rows[some], place, cells[row, probe], probe == 0))
    return found[0] if groups == 1 else found


def _cells(refs: Sequence[Any]) -> dict[int, tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Return by cell the (ids, vectors) of its own rows and of the rows that are compared with them, by ascending id."""
    import ray

    parts = ray.get(list(refs))
    ids, rows = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    place = np.concatenate([part[2] + start for part, start in zip(parts, starts, strict=False)])
    cell, own = (np.concatenate([part[at] for part in parts]) for at in (3, 4))
    order = np.lexsort((ids[place], ~own, cell))
    place, cell, own = place[order], cell[order], own[order]
    found = {}
    for number in np.unique(cell).tolist():
        start, end = np.searchsorted(cell, [number, number + 1])
        middle = start + np.count_nonzero(own[start:end])
        found[number] = tuple((ids[at], rows[at]) for at in (place[start:middle], place[middle:end]))
    return found


def _compare(refs: Sequence[Any], threshold: float) -> Pairs:
    parts = []
    for own, others in _cells(refs).values():
        parts += [close_pairs(*own, threshold), pairs_across(*others, *own, threshold)]
    return join_pairs(parts)


def _cross(train: Sequence[Any], test: Sequence[Any], threshold: float) -> tuple[np.ndarray, ...]:
    """Return for each test row and cell the most similar training row that reaches the threshold."""
    there, parts = _cells(train), []
    for cell, (own, others) in _cells(test).items():
        for mine, known in ((own, 0), (own, 1), (others, 0)):
            parts.append(_most_similar(*mine, *there[cell][known], threshold) if cell in there else _NONE)
    return tuple(np.concatenate(column) for column in zip(*(parts or [_NONE]), strict=True))


_NONE = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _most_similar(
    ids: np.ndarray, rows: np.ndarray, train_ids: np.ndarray, train: np.ndarray, threshold: float
) -> tuple[np.ndarray, ...]:
    if not len(ids) or not len(train_ids):
        return _NONE
    lists, cosines = Matches(rows, 1).add(train_ids, train).lists()
    close = cosines[:, 0] >= threshold
    return ids[close], lists[close, 0], cosines[close, 0]
