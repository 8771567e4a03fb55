"""Small answers from every block of a Ray Dataset, by plain tasks over its block references.

Ray Data's shuffles cost seconds even on small data; one task a block and a merge on the driver cost
fractions of that. Functions given here return small things: ids and statistics, never the vectors.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.data.rowid import ID, check_ids, hash_ids
from raysel.data.vectors import as_matrix, not_finite
from raysel.errors import DataError, RayselError, ResourceError, first

T = TypeVar("T")
_IN_FLIGHT = 256  # tasks submitted before the first is waited for: bounds the scheduler's queue
_ROOM_S = 120.0  # for one task to find a CPU on a cluster that others use too


def wait_for_room() -> None:
    """ResourceError unless a task of one CPU runs within two minutes; Ray itself would wait for ever and say nothing."""
    ping = ray.remote(num_cpus=1, max_retries=0)(_nothing).remote()
    if ray.wait([ping], timeout=_ROOM_S, fetch_local=False)[0]:
        return
    ray.cancel(ping, force=True)
    raise ResourceError(
        f"No CPU was free within {_ROOM_S:g} s: {ray.available_resources().get('CPU', 0):g} of the cluster's "
        f"{ray.cluster_resources().get('CPU', 0):g} are, one is needed, and others hold the rest; try again later or "
        "free one ('ray status' shows who holds them)."
    )


def _nothing() -> None:
    return None


def arrow_blocks(dataset: Dataset) -> list[ray.ObjectRef]:
    """References to the blocks of ``dataset`` as Arrow tables, in its order; runs what is still lazy."""
    return list(materialized(dataset).to_arrow_refs())


def materialized(dataset: Dataset) -> Dataset:
    """``dataset`` in the object store, in its order; runs what is still lazy, and raises raysel's own errors."""
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order
    wait_for_room()
    context.execution_options.preserve_order = True
    try:
        return dataset.materialize()
    except ray.exceptions.RayError as error:
        if (ours := own_error(error)) is not None:
            raise ours from None
        raise
    finally:
        context.execution_options.preserve_order = before


def gather(dataset: Dataset, columns: Sequence[str], what: str) -> pa.Table:
    """A few narrow columns of every row, on the driver: ids, labels, group keys."""
    tables = ray.get(arrow_blocks(pick(dataset, columns, what)))
    filled = [table for table in tables if table.num_rows]  # an empty block may come without its columns
    if not filled:
        raise DataError(f"The {what} is empty: it has no row.")
    return pa.concat_tables(filled)


def pick(dataset: Dataset, columns: Sequence[str], what: str) -> Dataset:
    """``dataset`` with these columns only; DataError naming ``what`` if one is missing.

    Where the columns are known the reader skips the others; where a lazy step stands in between they are not,
    and asking Ray would run the step on a first block only to throw it away.
    """
    schema = dataset.schema(fetch_if_missing=False)
    if schema is None:
        return plain_errors(
            dataset.map_batches(_pick, fn_args=(list(columns), what), batch_format="pyarrow", batch_size=None)
        )
    check_columns(schema.names, columns, what)
    return dataset.select_columns(list(columns))


def check_columns(there: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """DataError unless every column wanted is there."""
    for name in wanted:
        if name not in there:
            raise DataError(
                f"The {what} has no column '{name}'; its columns are {', '.join(there) or 'none'}."
            )


def _pick(table: pa.Table, columns: list[str], what: str) -> pa.Table:
    check_columns(table.column_names, columns, what)
    return table.select(columns)


def map_blocks(
    function: Callable[..., T], blocks: Sequence[ray.ObjectRef], *arguments: Any, num_cpus: float = 1
) -> list[T]:
    """``[function(block, *arguments) for block in blocks]``, in parallel on the cluster, in that order.

    Large arguments are put into the object store once by the caller (``ray.put``).
    An exception of ``function`` is raised here as it was raised there.
    """
    task = ray.remote(num_cpus=num_cpus, max_retries=3)(_call)
    pending: list[ray.ObjectRef] = []
    for block in blocks:
        if len(pending) >= _IN_FLIGHT:
            ray.wait(pending, num_returns=len(pending) - _IN_FLIGHT + 1, fetch_local=False)
        pending.append(task.remote(function, block, *arguments))
    try:
        return ray.get(pending)
    except ray.exceptions.RayTaskError as error:
        if (ours := own_error(error)) is not None:
            raise ours from None
        raise


def own_error(error: BaseException) -> RayselError | None:
    """The error that raysel raised in a task, however often Ray has wrapped it since."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RayselError) and not isinstance(seen, ray.exceptions.RayError):
            return type(seen)(str(seen).splitlines()[0])  # Ray Data adds lines of advice to what it passes on
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def plain_errors(dataset: Dataset) -> Dataset:
    """``dataset``, whose steps raise what they raise instead of one of Ray Data's own errors around it."""
    dataset.context.raise_original_map_exception = True
    return dataset


def stream_blocks(
    dataset: Dataset, columns: Sequence[str], what: str, function: Callable[..., T], *arguments: Any
) -> Iterator[T]:
    """``function(table of the columns, *arguments)`` for every block as it is read, in any order.

    Nothing is kept in the object store: for small answers about data sets that do not fit there.
    """
    answers = plain_errors(
        pick(dataset, columns, what).map_batches(
            _answer, fn_args=(function, *arguments), batch_format="pyarrow", batch_size=None
        )
    )
    wait_for_room()
    try:
        for batch in answers.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            for answer in batch["answer"].to_pylist():
                yield pickle.loads(answer)  # made by _answer on this cluster a moment ago
    except ray.exceptions.RayError as error:
        if (ours := own_error(error)) is not None:
            raise ours from None
        raise


def import_whole(name: str) -> Any:
    """The module of that name, imported in a thread of its own.

    Ray cancels a task by interrupting its main thread and gives the process to the next one, in which a torch that was
    imported by half cannot be imported again.
    """
    if name not in sys.modules:
        thread = threading.Thread(target=_try_import, args=(name,), daemon=True)
        thread.start()
        thread.join()
    return importlib.import_module(name)


def _try_import(name: str) -> None:
    with contextlib.suppress(Exception):  # the caller's own import says what is wrong
        importlib.import_module(name)


def _answer(table: pa.Table, function: Callable[..., Any], *arguments: Any) -> pa.Table:
    rows = [pickle.dumps(function(table, *arguments))] if table.num_rows else []
    return pa.table({"answer": pa.array(rows, pa.large_binary())})


def _call(function: Callable[..., T], block: pa.Table, *arguments: Any) -> T:
    return function(block, *arguments)


@dataclass(frozen=True)
class VectorBlocks:
    """A checked column of vectors that stays on the cluster: its blocks, and the ids of all rows.

    ids: int64, in the order of the blocks. dimension: elements of a vector.
    """

    blocks: list[ray.ObjectRef]
    column: str
    ids: np.ndarray
    dimension: int

    @property
    def rows(self) -> int:
        return len(self.ids)

    def sample(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """About ``count`` rows, chosen by their ids alone: ids ascending, and vectors (m, d) float32.

        All rows if there are no more than ``count``. The sample comes to the driver.
        """
        share = 1.0 if self.rows <= count else count / self.rows
        parts = map_blocks(_sample, self.blocks, self.column, share, seed)
        ids = np.concatenate([ids for ids, _ in parts])
        order = np.argsort(ids, kind="stable")
        return ids[order], np.concatenate([vectors for _, vectors in parts])[order]

    def on_sample(self, function: Callable[..., T], count: int, seed: int, *arguments: Any) -> T:
        """``function(vectors, *arguments)`` of such a sample, in a task: only the answer comes to the driver."""
        share = 1.0 if self.rows <= count else count / self.rows
        take = ray.remote(num_cpus=1)(_sample)
        parts = [take.remote(block, self.column, share, seed) for block in self.blocks]
        return map_blocks(_on_sample, [ray.put(function)], arguments, *parts)[0]


def vector_blocks(dataset: Dataset, column: str, what: str) -> VectorBlocks:
    """Bring ``column`` and the ids of ``dataset`` into the object store and check every row.

    DataError (naming ``what``) for a missing column, no rows, repeated ids, vectors of different lengths,
    and NaN or infinite elements: how many rows, and the first ids.
    """
    names = dataset.columns() or []
    for name in (ID, column):
        if name not in names:
            raise DataError(
                f"The {what} has no column '{name}'; its columns are {', '.join(names) or 'none'}."
            )
    blocks = arrow_blocks(dataset.select_columns([ID, column]))
    found = map_blocks(_look, blocks, column)
    ids = np.concatenate([part[0] for part in found]) if found else np.empty(0, np.int64)
    if not len(ids):
        raise DataError(f"The {what} is empty: no row to choose from or to aim at.")
    check_ids(ids, f"The {what}")
    widths = sorted({width for part_ids, width, _ in found if len(part_ids)})
    if len(widths) > 1:
        raise DataError(
            f"The {what}'s column '{column}' holds vectors of different lengths: {first(widths)}."
        )
    if widths[0] == 0:
        raise DataError(f"The {what}'s column '{column}' holds vectors without elements.")
    bad = np.sort(np.concatenate([part[2] for part in found]))
    if len(bad):
        raise DataError(
            f"The {what}'s column '{column}' holds NaN or infinite values in {len(bad):,} of {len(ids):,} rows "
            f"(sample_id {first(bad)}); repair or drop these rows first."
        )
    filled = [block for block, part in zip(blocks, found, strict=True) if len(part[0])]
    return VectorBlocks(filled, column, ids, widths[0])


def _look(table: pa.Table, column: str) -> tuple[np.ndarray, int, np.ndarray]:
    if not table.num_rows:  # an empty block may come without its columns
        none = np.empty(0, np.int64)
        return none, 0, none
    ids = table[ID].to_numpy()
    vectors = as_matrix(table[column], column, ids)
    return ids, vectors.shape[1], ids[not_finite(vectors)]


def _sample(table: pa.Table, column: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    taken = np.flatnonzero(hash_ids(ids, seed) < share) if share < 1 else np.arange(len(ids))
    return ids[taken], as_matrix(table[column], column, ids)[taken]


def _on_sample(function: Callable[..., T], arguments: tuple[Any, ...], *parts: tuple[np.ndarray, ...]) -> T:
    order = np.argsort(np.concatenate([ids for ids, _ in parts]), kind="stable")
    return function(np.concatenate([vectors for _, vectors in parts])[order], *arguments)
