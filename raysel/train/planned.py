"""The Ray Data part of streaming: rows are filtered right after they are read, and split without loss."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import DataIterator, Dataset
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.data.datasource import ReadTask
from ray.train import DataConfig

from raysel.cluster import wait
from raysel.cluster.blocks import plain_errors
from raysel.cluster.errors import unwrap_errors
from raysel.core.arrays import positions
from raysel.core.hashing import hash_integers
from raysel.data.datasource import IndexedParquet, parquet_rows
from raysel.data.formats.parquet import Piece
from raysel.data.row_index import ID
from raysel.dynamic.plan import Plan, chunks
from raysel.errors import ConfigError, DataError, StateError, first

_PREFETCH = 2  # batches that Ray Data fetches and collates ahead, in threads
_TASKS_A_CPU = 8  # small row groups are read together, down to so many tasks
_TASK_BYTES = 32 << 20  # of so much each
logger = logging.getLogger(__name__)

_WHOLE = "raysel.whole_rows"  # key of the DataContext of datasets that WholeRows has split
_SHUFFLE = 5  # the purpose of a stream of draws, next to those of raysel.dynamic.plan


# ---- the plan on the cluster -------------------------------------------------------------------------------


class _Board:
    def __init__(self) -> None:
        self._posted: list[ray.ObjectRef] = []
        self._seed: int | None = None

    def __repr__(self) -> str:  # the name of the actor on the dashboard
        return "plan of an epoch"

    def post(self, bits: npt.NDArray[np.uint8], seed: int) -> None:
        self._posted, self._seed = [ray.put(bits)], seed

    def read(self) -> list[ray.ObjectRef]:
        return self._posted

    def seed(self) -> int | None:
        return self._seed


class Board:
    """The current plan of a run, one bit per slot, for the tasks that read its rows; picklable.

    It is an actor that takes no CPU and ends with the driver. It returns one shared object, so that the bits
    are sent once to each node. After a restart it is empty, and the tasks fail until the next attempt posts a
    plan.
    """

    def __init__(self) -> None:
        self._actor = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()

    def post(self, plan: Plan, samples: int, seed: int) -> None:
        """Set ``plan`` and the seed of the epoch's order; every later read returns them."""
        ray.get(self._actor.post.remote(packed(plan, samples), seed))

    def seed(self) -> int | None:
        """Return the seed of the epoch's order; None if there is no plan."""
        return ray.get(self._actor.seed.remote())

    def read(self) -> npt.NDArray[np.uint8]:
        """Return the plan as :func:`packed` returns it; raise StateError if there is none."""
        posted = ray.get(self._actor.read.remote())
        if not posted:
            raise StateError(
                "dynamic.planned(dataset) can be read only by session.stream, and only within an epoch, because the plan of an "
                "epoch exists only during that epoch. To read the rows yourself, read the original dataset."
            )
        return ray.get(posted[0])

    def close(self) -> None:
        """Remove the actor; do nothing if it has ended already."""
        ray.kill(self._actor)


def packed(plan: Plan, samples: int) -> npt.NDArray[np.uint8]:
    """Return one bit per sample, set for the slots of ``plan``; the first slot is the lowest bit."""
    marks = np.zeros(samples, np.bool_)
    marks[plan.slots] = True
    return np.packbits(marks, bitorder="little")


def planned(dataset: Dataset, board: Board, ids: Any, samples: int) -> Dataset:
    """Return ``dataset``, filtered by the plan on ``board`` whenever it is run.

    See ``DynamicSelection.planned``. ``ids`` are the selected ids (an array or a reference to one), None if
    ids are slots.
    """
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"planned: A Ray Dataset is needed, got a {type(dataset).__name__}; make one with raysel.read."
        )
    if isinstance(ids, np.ndarray):
        ids = ray.put(ids)  # once to each node, not once with each task
    dataset = _shuffled(dataset, board)
    return plain_errors(
        dataset.map_batches(
            _keep_planned, fn_args=(board, ids, samples), batch_format="pyarrow", batch_size=None
        )
    )


class ShuffledParquet(IndexedParquet):
    """The same rows with the same ids, with row groups in another order in each epoch.

    They are read by ``tasks`` tasks, whose numbers of row groups differ by at most one.
    """

    def __init__(self, reader: IndexedParquet, board: Board, tasks: int) -> None:
        super().__init__(reader.index)
        self._board = board
        self._tasks = tasks

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return the tasks in the order of the current epoch."""
        seed = self._board.seed()  # None before the first epoch, when Ray only counts the tasks
        pieces = in_order_of(self.pieces(), seed) if seed is not None else self.pieces()
        ends = np.linspace(0, len(pieces), self._tasks + 1).astype(int)
        return [
            self._task(by_file(pieces[start:stop]), per_task_row_limit)
            for start, stop in itertools.pairwise(ends)
        ]


def in_order_of(pieces: list[Piece], seed: int) -> list[Piece]:
    """Return the row groups in an order drawn from the seed."""
    return [pieces[place] for place in np.random.default_rng(seed).permutation(len(pieces))]


def by_file(pieces: list[Piece]) -> list[Piece]:
    """Return row groups of one file together, so that it is opened once, and otherwise in their order."""
    files: dict[str, list[Piece]] = {}
    for piece in pieces:
        files.setdefault(piece.path, []).append(piece)
    return [piece for held in files.values() for piece in held]


def read_tasks(groups: int, size: int, cpus: int) -> int:
    """Return how many tasks read ``groups`` row groups of ``size`` bytes in all.

    A task and its block cost the same however many rows the plan keeps, so small row groups share one. There
    are still enough blocks that the ranks' shares are about equal and no CPU waits for the last.
    """
    return min(groups, max(_TASKS_A_CPU * cpus, -(-size // _TASK_BYTES)))


def _shuffled(dataset: Dataset, board: Board) -> Dataset:
    """Return ``dataset``, read in the epoch's order if it is Parquet as :func:`raysel.read` returned it."""
    reader, names = parquet_rows(dataset) or (None, {})
    if reader is None or len(set(names.values())) < len(names):
        logger.info(
            "The dataset that dynamic.planned received is not simply the rows of Parquet files as raysel.read returns them, so "
            "every epoch reads its rows in the same order."
        )
        return dataset
    # As if all columns were as wide.
    size = reader.estimate_inmemory_data_size() * len(names) // len(reader.file_schema)
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    tasks = read_tasks(len(reader.pieces()), size, cpus)
    again = ray.data.read_datasource(ShuffledParquet(reader, board, tasks), override_num_blocks=tasks)
    again = again.select_columns(list(names.values()))
    renamed = {stored: name for name, stored in names.items() if stored != name}
    return again.rename_columns(renamed) if renamed else again


def _keep_planned(table: pa.Table, board: Board, ids: Any, samples: int) -> Iterator[pa.Table]:
    """Yield the planned rows of a block; nothing for a block without planned rows."""
    if ID not in table.column_names:
        raise DataError(f"planned: The dataset has no column '{ID}'; read it with raysel.read.")
    slots = table[ID].to_numpy()
    if ids is not None:
        place, found = positions(ray.get(ids) if isinstance(ids, ray.ObjectRef) else ids, slots)
        slots = np.where(found, place, -1)
    elif len(slots) and not 0 <= slots.min() <= slots.max() < samples:
        raise DataError(
            f"planned: The sample_id {slots.max() if slots.max() >= samples else slots.min()} is not one of the "
            f"{samples:,} samples of the run; give DynamicSelection the number of rows of this dataset."
        )
    keep = (board.read()[slots >> 3] >> (slots & 7).astype(np.uint8)) & 1  # of slot -1 whatever is last
    keep = (keep == 1) & (slots >= 0)
    if keep.any():
        yield table.filter(pa.array(keep))


# ---- rows to ranks -----------------------------------------------------------------------------------------


class WholeRows(DataConfig):
    """Split datasets so that the ranks' shares together contain every row once: ``dataset_config=`` for TorchTrainer.

    The shares of two ranks differ by at most one block. By default, Ray Train drops rows to make shares of equal
    length, which would bias the training. The order of the rows is kept, so that the same cluster with the same number
    of workers returns the same batches. This applies to all ``datasets=``, also to those that are not read by
    ``session.stream``: their shares may differ in length too.

    Examples
    --------
    >>> shares = raysel.WholeRows().configure({"train": rows}, 2, None, None)
    >>> len(shares), list(shares[0])
    (2, ['train'])
    """

    def __init__(self) -> None:
        super().__init__()

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Return each rank's shares by name, as Ray Train's ``DataConfig.configure`` does."""
        shares: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            split = dataset.copy(dataset)
            split.context.set_config(_WHOLE, True)  # for the workers, which read it from their shares
            split.context.execution_options = self.default_ingest_options()
            split.context.execution_options.preserve_order = True
            for share, iterator in zip(shares, split.streaming_split(world_size, equal=False), strict=True):
                share[name] = iterator
        return shares


def wait_for_cpu(patience: float = wait.CPU_S) -> None:
    """Wait until a task of one CPU has run next to the training; raise ResourceError after ``patience`` s."""
    wait.wait_for_cpu(
        "session.stream: The workers and other processes use all CPUs, so Ray Data got no CPU for reading",
        "Give the workers fewer CPUs (ScalingConfig(resources_per_worker={'CPU': 0.5})), or add CPUs to the cluster",
        patience,
    )


# ---- batches in the worker ---------------------------------------------------------------------------------


@dataclass
class Arrived:
    """A batch as it arrived.

    Attributes
    ----------
    ids : array of int64, shape (B,)
        Ids of the rows.
    row : dict of str to array
        Columns of the first row, to pad with.
    data : object
        The collated columns.
    """

    ids: npt.NDArray[np.int64]
    row: dict[str, np.ndarray]
    data: Any


class CollateRows(NumpyBatchCollateFn):
    """Collate columns with the user's function, or :func:`tensors`, and keep the ids next to them.

    A batch with fewer than ``least`` rows, 1 or 2, is filled up by repeating its only row.
    """

    def __init__(self, collate: Callable[[dict[str, np.ndarray]], Any] | None, least: int = 1) -> None:
        self._collate, self._least = collate or tensors, least

    def __call__(self, columns: dict[str, np.ndarray]) -> Arrived:
        """Return the collated columns with the ids and the first row."""
        if ID not in columns:
            raise DataError(
                f"stream: The rows have no column '{ID}'; the transformations after dynamic.planned must keep it."
            )
        ids = np.array(columns[ID], np.int64)
        row = {name: column[:1].copy() for name, column in columns.items()}
        return Arrived(ids, row, self.pad(columns) if len(ids) < self._least else self._collate(columns))

    def pad(self, row: dict[str, np.ndarray]) -> Any:
        """Return a batch that repeats one row."""
        return self._collate({name: np.repeat(column, self._least, axis=0) for name, column in row.items()})


def tensors(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return numbers as tensors that own their memory; text and ragged arrays stay as they are."""
    import torch  # here, so that the tasks that filter the rows need not load it

    return {
        name: torch.from_numpy(np.array(column)) if column.dtype.kind in "biufc" else column
        for name, column in columns.items()
    }


def arrivals(
    data: Any, world: int, batch_size: int, shuffle_rows: int | None, seed: int, collate: CollateRows
) -> Generator[Arrived, None, None]:
    """Yield the batches of ``data``: a name known to Ray Train, a Dataset, or an iterator of one.

    Errors that raysel raised in a task are raised as they were raised there.
    """
    if isinstance(data, str):
        name, data = data, _shard(data)
        if world > 1 and not data.get_context().get_config(_WHOLE, False):
            raise ConfigError(
                f"stream: '{name}' was not divided among the workers by raysel.WholeRows. The default of Ray Train drops rows to "
                "give every worker the same number. Give TorchTrainer the argument dataset_config=raysel.WholeRows()."
            )
    if isinstance(data, Dataset):
        if world > 1:
            raise ConfigError(
                f"stream: {world} workers cannot each read the complete Dataset; pass it to TorchTrainer(datasets=...) "
                "and give session.stream its name."
            )
        data.context.execution_options.preserve_order = True
        data = data.iterator()
    if not isinstance(data, DataIterator):
        raise ConfigError(
            f"stream: A Ray Dataset or the name of one in datasets= is needed, got a {type(data).__name__}."
        )
    # A shuffle buffer is not smaller than a batch.
    buffer = None if shuffle_rows is None else max(shuffle_rows, batch_size)
    batches = data.iter_torch_batches(
        batch_size=batch_size,
        prefetch_batches=_PREFETCH,
        local_shuffle_buffer_size=buffer,
        local_shuffle_seed=seed if buffer else None,
        collate_fn=collate,
        device="cpu",
    )
    with unwrap_errors():
        yield from batches


def shuffle_seed(seed: int, epoch: int, rank: int = -1) -> int:
    """Return the seed of a rank's shuffle buffer in an epoch; without a rank, of the order of files."""
    return int(np.random.SeedSequence(seed, spawn_key=(_SHUFFLE, epoch, rank + 1)).generate_state(1)[0])


def _shard(name: str) -> DataIterator:
    try:
        return ray.train.get_dataset_shard(name)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"stream: Ray Train has no dataset '{name}'; pass TorchTrainer(datasets={{'{name}': rows}}, "
            "dataset_config=raysel.WholeRows()), or without Ray Train give session.stream the dataset itself."
        ) from error


# ---- was every row there? ----------------------------------------------------------------------------------


def marks(slots: npt.NDArray[np.int64]) -> int:
    """Return a sum over hashed slots, modulo 2**64 as a signed number.

    Equal multisets have equal sums, and different ones hardly ever do.

    The hash of each slot is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for start, stop in chunks(len(slots)):
            total += hash_integers(slots[start:stop]).sum(dtype=np.uint64)
    return int(total.view(np.int64))


def places(planned_ids: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions of ``ids`` among the planned ids, which ascend; raise DataError for an id that is not planned."""
    found, planned = positions(planned_ids, ids)
    if not planned.all():
        raise DataError(
            f"stream: Some rows are not in the epoch's plan (sample_id {first(ids[~planned].tolist())}). Stream the dataset "
            "that dynamic.planned(...) of this run returned. Do not call materialize() on it, and do not change its column "
            "sample_id."
        )
    return found
