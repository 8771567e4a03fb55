"""Small results from every block of a Ray Dataset, by plain tasks over its block references.

Ray Data's shuffles cost seconds even on small data; one task per block and a merge on the driver cost
fractions of that. Functions given here return small things: ids and statistics, never the vectors.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.dataset import MaterializedDataset

from raysel.cluster.errors import name_losses, unwrap_errors
from raysel.cluster.observe import task_name
from raysel.cluster.plans import Read, TableSource, source_columns
from raysel.cluster.wait import cancel_queued, get, wait_for_cpu
from raysel.errors import COLUMNS, DataError, first

T = TypeVar("T")
_IN_FLIGHT = 256  # tasks submitted before the first is waited for: bounds the scheduler's queue
_TABLE_BYTES = 128 << 20  # of one table that a function is given, as Ray Data's own blocks


def arrow_blocks(dataset: Dataset) -> list[ray.ObjectRef]:
    """Return references to the blocks of ``dataset`` as Arrow tables, in its order.

    Run what is still lazy.
    """
    return list(materialized(dataset).to_arrow_refs())


def materialized(dataset: Dataset) -> MaterializedDataset:
    """Return ``dataset`` in the object store, in its order.

    Run what is still lazy, and raise raysel's own errors.
    """
    context = dataset.context  # its own: what is set on the current one holds for later datasets alone
    before = context.execution_options.preserve_order
    wait_for_cpu()
    context.execution_options.preserve_order = True
    try:
        with name_losses(), unwrap_errors():
            return dataset.materialize()
    finally:
        context.execution_options.preserve_order = before


def column_names(dataset: Dataset) -> list[str]:
    """Return the columns of ``dataset``; none if it is known to be empty.

    Run the first block of what is still lazy, and raise raysel's own errors.
    """
    with name_losses(), unwrap_errors():
        return list(dataset.columns() or [])


def gather(dataset: Dataset, columns: Sequence[str], what: str) -> pa.Table:
    """Return a few narrow columns of every row, on the driver: ids, labels, group keys."""
    if source_columns(dataset) is None:
        tables = get(arrow_blocks(pick(dataset, columns, what)))
    else:
        tables = list(stream_blocks(dataset, columns, what, _whole))
    filled = [table for table in tables if table.num_rows]  # an empty block may come without its columns
    if not filled:
        raise DataError(f"The {what} is empty: it has no rows.")
    return pa.concat_tables(filled)


def pick(dataset: Dataset, columns: Sequence[str], what: str) -> Dataset:
    """Return ``dataset`` with these columns only; raise DataError naming ``what`` if one is missing.

    If the columns are known, the reader skips the others. If a lazy step is in between, they are not known,
    and reading the schema would run the step on a first block only to discard it.
    """
    schema = dataset.schema(fetch_if_missing=False)
    if schema is None:
        return plain_errors(
            dataset.map_batches(_pick, fn_args=(list(columns), what), batch_format="pyarrow", batch_size=None)
        )
    check_columns(schema.names, columns, what)
    return dataset.select_columns(list(columns))


def check_columns(there: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Raise DataError unless every column wanted is there, once."""
    for name in wanted:
        if name not in there:
            raise DataError(
                f"The {what} has no column '{name}'; its columns are {first(there, COLUMNS) or 'none'}."
            )
        if list(there).count(name) > 1:
            raise DataError(f"The {what} has more than one column '{name}'; rename or drop the others.")


def _pick(table: pa.Table, columns: list[str], what: str) -> pa.Table:
    check_columns(table.column_names, columns, what)
    return table.select(columns)


def map_blocks(
    function: Callable[..., T], blocks: Sequence[ray.ObjectRef], *arguments: Any, num_cpus: float = 1
) -> list[T]:
    """Return ``[function(block, *arguments) for block in blocks]``, computed in parallel on the cluster.

    Large arguments are put into the object store once by the caller (``ray.put``).
    An exception of ``function`` is raised here as it was raised there.
    """
    task = ray.remote(num_cpus=num_cpus, max_retries=3, name=task_name(function))(_call)
    pending: list[ray.ObjectRef] = []
    for block in blocks:
        if len(pending) >= _IN_FLIGHT:
            get(pending[-_IN_FLIGHT], need={"CPU": num_cpus})
        pending.append(task.remote(function, block, *arguments))
    return get(pending, need={"CPU": num_cpus})


def map_groups(function: Callable[..., T], blocks: Sequence[ray.ObjectRef], *arguments: Any) -> list[T]:
    """Return ``function(tables, *arguments)`` for groups of consecutive blocks, one group per CPU of the cluster.

    ``tables`` is an iterator, of which one table is in memory at a time: for results that are merged per group
    because one per block would be too much for the driver. An exception is raised as it was raised there.
    """
    task = ray.remote(num_cpus=1, max_retries=3, name=task_name(function))(_call_group)
    size = -(-len(blocks) // max(1, int(ray.cluster_resources().get("CPU", 1))))
    groups = [list(blocks[at : at + size]) for at in range(0, len(blocks), size)]
    return get([task.remote(function, group, arguments) for group in groups])


def plain_errors(dataset: Dataset) -> Dataset:
    """Return ``dataset`` with steps that raise their own errors, not an error of Ray Data around them."""
    dataset.context.raise_original_map_exception = True
    return dataset


def stream_blocks(
    dataset: Dataset,
    columns: Sequence[str],
    what: str,
    function: Callable[..., T],
    *arguments: Any,
    combine: Callable[[T, T], T] | None = None,
) -> Iterator[T]:
    """Yield ``function(table of the columns, *arguments)`` for every block as it is read.

    Nothing is kept in the object store: for small results from data sets that do not fit there. If the rows are
    only read, plain tasks read them, and the results come in the order of the rows; otherwise in any order.
    With ``combine``, a task that reads several blocks returns one result.
    """
    source, names = source_columns(dataset) or (None, {})
    if source is not None:
        check_columns(list(names), columns, what)
        yield from _stream_reads(
            source, {name: names[name] for name in columns}, function, arguments, combine
        )
        return
    answers = plain_errors(
        pick(dataset, columns, what).map_batches(
            _answer, fn_args=(function, *arguments), batch_format="pyarrow", batch_size=None
        )
    )
    wait_for_cpu()
    with name_losses(), unwrap_errors():
        for batch in answers.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            for answer in batch["answer"].to_pylist():
                yield pickle.loads(answer)  # made by _answer on this cluster a moment ago


def _stream_reads(
    source: TableSource,
    names: dict[str, str],
    function: Callable[..., T],
    arguments: tuple[Any, ...],
    combine: Callable[[T, T], T] | None,
) -> Iterator[T]:
    """Yield what ``function`` returns for the tables of ``source``, in their order, read by tasks of one CPU."""
    wait_for_cpu()
    cpus = int(ray.cluster_resources().get("CPU", 1))
    reads = deque(source.reads(list(dict.fromkeys(names.values())), cpus))
    task = ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD", name=task_name(function))(
        _answers
    )
    shared = ray.put((names, function, arguments, combine))
    pending: deque[ray.ObjectRef] = deque()
    try:
        while reads or pending:
            while reads and len(pending) < _IN_FLIGHT:
                pending.append(task.remote(reads.popleft(), shared))
            answers = get(pending[0])
            pending.popleft()
            yield from answers
    finally:
        cancel_queued(list(pending))


def import_whole(name: str) -> Any:
    """Return the module of that name, imported in its own thread.

    Ray cancels a task by interrupting its main thread and gives the process to the next one, in which a torch
    that was imported in part cannot be imported again.
    """
    if name not in sys.modules:
        thread = threading.Thread(target=_try_import, args=(name,), daemon=True)
        thread.start()
        thread.join()
    return importlib.import_module(name)


def _try_import(name: str) -> None:
    with contextlib.suppress(Exception):  # the caller's own import raises the error
        importlib.import_module(name)


def _answer(table: pa.Table, function: Callable[..., Any], *arguments: Any) -> pa.Table:
    rows = [pickle.dumps(function(table, *arguments))] if table.num_rows else []
    return pa.table({"answer": pa.array(rows, pa.large_binary())})


def _whole(table: pa.Table) -> pa.Table:
    return table


def _answers(read: Read, shared: tuple[dict[str, str], Callable[..., T], tuple[Any, ...], Any]) -> list[T]:
    names, function, arguments, combine = shared
    found: list[T] = []
    for table in read():
        columns = pa.table({name: table[stored] for name, stored in names.items()})
        step = max(1, _TABLE_BYTES * len(columns) // max(1, columns.nbytes))
        for at in range(0, len(columns), step):
            answer = function(columns.slice(at, step), *arguments)
            if combine is None or not found:
                found.append(answer)
            else:
                found[0] = combine(found[0], answer)
    return found


def _call(function: Callable[..., T], block: pa.Table, *arguments: Any) -> T:
    return function(block, *arguments)


def _call_group(function: Callable[..., T], blocks: list[ray.ObjectRef], arguments: tuple[Any, ...]) -> T:
    return function((ray.get(block) for block in blocks), *arguments)
