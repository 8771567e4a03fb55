"""Vectors of a whole data set, written shard by shard: readers decode, workers hold the network, nothing is done twice.

A shard is a fixed range of ids, so that what it holds does not depend on blocks, nodes or earlier attempts; it
appears as one file, whole or not at all. A killed run therefore goes on with the shards that are missing, and no id
can come twice. The driver keeps a few numbers per shard.

    DIRECTORY/
      _key.json               whose vectors these are: digests of input, embedder and options
      part-000000000123.parquet   sample_id, embedding; 123 is the shard's number
      _rejected.parquet       sample_id, reason: rows left out or without a vector, by ``on_error``
      _done.json              rows, dimension and sum of ids, written last
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray import cloudpickle
from ray.data import Dataset

from raysel.data.blocks import arrow_blocks, map_blocks, pick
from raysel.data.decode import decode
from raysel.data.embedders import Embedder, check_vectors, length_of, rows_of
from raysel.data.rowid import ID, check_ids, resolve
from raysel.data.source import IndexedParquet, origin
from raysel.data.vectors import EMBEDDING, not_finite, to_column
from raysel.errors import DataError, RayselError, ResourceError, RunError, first

_FORMAT = 1
_ROWS = 16_384  # of a shard whose rows are independent of each other
_ROWS_TILED = {"text": 2048, "images": 256}
_UNIT_BYTES = 32 << 20  # a reader takes consecutive row groups of about so much
_AHEAD = 2  # shards that wait for each worker, so that it never does
_WAIT_S = 120.0  # for the first worker to find room and load

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How vectors are made and kept.

    normalize: to unit length. dtype: on disk. on_error: what a row without a usable value or vector does: stop
    everything, leave the row out, or keep it with a null in place of its vector.
    """

    normalize: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    on_error: Literal["raise", "drop", "null"] = "raise"


@dataclass(frozen=True)
class Report:
    """What :func:`compute` did: rows with a vector, their dimension, rows rejected, and how long it took.

    embedded: rows computed now and not in an earlier attempt. start_seconds: until the first worker was ready.
    """

    rows: int
    dimension: int
    rejected: int
    embedded: int
    seconds: float
    start_seconds: float


def compute(
    dataset: Dataset,
    embedder: Embedder,
    columns: Sequence[str],
    directory: str,
    options: Options | None = None,
    watch: Watch | None = None,
) -> Report:
    """Write the vectors of every row of ``dataset`` under ``directory``, or what of them is missing there.

    directory: a path or URI that every node sees. Parquet read by ``raysel.read`` and not changed since is streamed
    by row group; of any other data set the columns needed are first brought into Ray's object store.
    Raises DataError for rows or vectors that cannot be used, ResourceError if no worker finds room, RunError for a
    directory that holds other vectors or does not hold all of them in the end.
    """
    options = options or Options()
    began = time.monotonic()
    shard = shard_rows(embedder)
    source = _ParquetSource.of(dataset, columns) or _BlockSource.of(dataset, columns)
    key = {
        "format": _FORMAT,
        "input": source.digest(),
        "columns": list(columns),
        "embedder": {"name": embedder.name, "digest": digest(embedder)},
        "options": asdict(options),
        "shard": shard,
    }
    folder = _Folder(directory)
    folder.claim(key)
    finished = folder.read("_done.json")
    if finished is not None:
        return Report(**finished["report"] | {"embedded": 0, "seconds": 0.0, "start_seconds": 0.0})
    there = folder.parts()
    units = source.units(shard, there)
    work = _Work(embedder, tuple(columns), directory, options, shard)
    progress = _Progress(source.rows, watch)
    stats, start = _run(units, work, progress) if units else ([], 0.0)
    parts = folder.parts()
    report = _finish(folder, source, parts, embedder, stats, time.monotonic() - began, start)
    return report


def attach(dataset: Dataset, directory: str, rows: int) -> Dataset:
    """``dataset`` with the vectors that :func:`compute` wrote, looked up by id; lazy. Rows left out are left out.

    rows: ids in a file, ``shard_rows`` of the embedder.
    """
    return dataset.map_batches(_attach, fn_args=(directory, rows), batch_format="pyarrow", batch_size=None)


def shard_rows(embedder: Embedder) -> int:
    """Ids in one file: many enough to be worth one, few enough that a lost one is soon made again."""
    if getattr(embedder, "tile", None) is None:
        return _ROWS
    return _ROWS_TILED.get(getattr(embedder, "takes", "any"), 512)


def digest(embedder: Embedder) -> str:
    """Changes when the vectors of an embedder may: its weights' digest, or that of its pickle."""
    given = getattr(embedder, "digest", None)
    return given if isinstance(given, str) else hashlib.sha256(cloudpickle.dumps(embedder)).hexdigest()


# ---- where rows come from ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """What one reader reads: pieces in the order of their ids, and which shards of them are wanted."""

    pieces: list[Any]
    refs: list[ray.ObjectRef]
    low: int
    high: int
    done: frozenset[int]


@dataclass(frozen=True)
class _ParquetSource:
    """Row groups, whose ids are known without reading them."""

    reader: IndexedParquet
    columns: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> _ParquetSource | None:
        reader = origin(dataset)
        return None if reader is None or reader.stores_ids else cls(reader, tuple(columns))

    @property
    def rows(self) -> int:
        return self.reader.index.rows

    def ids(self) -> tuple[int, int]:
        return self.rows, self.rows * (self.rows - 1) // 2

    def digest(self) -> str:
        return self.reader.index.digest

    def units(self, shard: int, there: set[int]) -> list[_Unit]:
        """Consecutive row groups. One reads the shards that begin in its groups, and on to the last one's end."""
        groups = self.reader.groups()
        units: list[_Unit] = []
        begin = 0
        while begin < len(groups):
            end, held = begin + 1, groups[begin].bytes
            while end < len(groups) and held < _UNIT_BYTES:
                held += groups[end].bytes
                end += 1
            low = -(-groups[begin].start // shard) * shard
            after = groups[end].start if end < len(groups) else self.rows
            high = min(-(-after // shard) * shard, self.rows)
            wanted = set(range(low // shard, -(-high // shard)))
            if low < high and wanted - there:
                reach = end
                while reach < len(groups) and groups[reach].start < high:
                    reach += 1
                pieces = [self.reader.piece(group) for group in groups[begin:reach]]
                units.append(_Unit(pieces, [], low, high, frozenset(wanted & there)))
            begin = end
        return units

    def read(self, unit: _Unit, shard: int) -> Iterator[pa.Table]:
        raise NotImplementedError


@dataclass(frozen=True)
class _BlockSource:
    """Blocks in the object store, in the order of their ids."""

    blocks: list[ray.ObjectRef]
    spans: list[tuple[int, int, int, int, str]]  # rows, first id, last id, sum of ids, digest of the content

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> _BlockSource:
        narrow = pick(dataset, [ID, *columns], "dataset to embed")
        blocks, spans = cls._look(arrow_blocks(narrow))
        order = sorted(range(len(spans)), key=lambda i: spans[i][1])
        blocks, spans = [blocks[i] for i in order], [spans[i] for i in order]
        if any(one[2] >= two[1] for one, two in zip(spans, spans[1:], strict=False)):  # ids lie across blocks
            blocks, spans = cls._look(arrow_blocks(narrow.sort(ID)))
        if not spans:
            raise DataError("The dataset to embed is empty.")
        return cls(blocks, spans)

    @staticmethod
    def _look(
        blocks: list[ray.ObjectRef],
    ) -> tuple[list[ray.ObjectRef], list[tuple[int, int, int, int, str]]]:
        found = map_blocks(_span, blocks)
        kept = [i for i, span in enumerate(found) if span[0]]
        return [blocks[i] for i in kept], [found[i] for i in kept]

    @property
    def rows(self) -> int:
        return sum(span[0] for span in self.spans)

    def ids(self) -> tuple[int, int]:
        return self.rows, sum(span[3] for span in self.spans)

    def digest(self) -> str:
        return hashlib.sha256("".join(span[4] for span in self.spans).encode()).hexdigest()

    def units(self, shard: int, there: set[int]) -> list[_Unit]:
        held: dict[int, list[int]] = {}
        for block, (_, low, high, _, _) in enumerate(self.spans):
            for number in range(low // shard, high // shard + 1):
                held.setdefault(number, []).append(block)
        return [
            _Unit([], [self.blocks[b] for b in blocks], n * shard, (n + 1) * shard, frozenset())
            for n, blocks in sorted(held.items())
            if n not in there
        ]


def _span(table: pa.Table) -> tuple[int, int, int, int, str]:
    ids = table[ID].to_numpy()
    if not len(ids):
        return 0, 0, 0, 0, ""
    check_ids(ids, "The dataset to embed")
    content = hashlib.sha256()
    ordered = table if (np.diff(ids) > 0).all() else table.sort_by(ID)
    # Rows are hashed by value and not by buffer: a slice of a larger block carries the whole of it.
    for batch in ordered.combine_chunks().to_batches():
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        content.update(sink.getbuffer())
    return len(ids), int(ids.min()), int(ids.max()), int(ids.sum()), content.hexdigest()


def _tables(unit: _Unit, shard: int, columns: Sequence[str], refs: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """The wanted rows of a unit, ascending by id, one table a shard."""
    if refs:
        whole = pa.concat_tables([_between(table, unit.low, unit.high) for table in refs])
        if whole.num_rows:
            yield whole.sort_by(ID) if (np.diff(whole[ID].to_numpy()) < 0).any() else whole
        return
    held: list[pa.Table] = []
    for part in IndexedParquet.stream(unit.pieces, columns, unit.low, unit.high, shard):
        held.append(part)
        if (part[ID][-1].as_py() + 1) % shard == 0 or part[ID][-1].as_py() + 1 == unit.high:
            if held[0][ID][0].as_py() // shard not in unit.done:
                yield pa.concat_tables(held)
            held = []


def _between(table: pa.Table, low: int, high: int) -> pa.Table:
    ids = table[ID].to_numpy()
    return table.filter(pa.array((ids >= low) & (ids < high)))


# ---- what workers do -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Work:
    embedder: Embedder
    columns: tuple[str, ...]
    directory: str
    options: Options
    shard: int


@dataclass(frozen=True)
class _Stat:
    number: int
    rows: int
    dimension: int
    first_id: int


def _read(unit: _Unit, work: _Work, *refs: pa.Table) -> Iterator[Any]:
    takes = getattr(work.embedder, "takes", "any")
    prepare = getattr(work.embedder, "prepare", None)
    for table in _tables(unit, work.shard, work.columns, refs):
        rows = decode(table, work.columns, takes, prepare)
        if rows.rejected and work.options.on_error == "raise":
            _refuse(rows.rejected, table[ID].to_numpy())
        yield rows


def _refuse(rejected: dict[int, str], ids: np.ndarray) -> None:
    some = sorted(rejected.items())
    reasons = "; ".join(f"sample_id {number}: {reason}" for number, reason in some[:3])
    raise DataError(
        f"{len(some):,} of the rows with sample_id {ids.min()} to {ids.max()} cannot be embedded ({reasons}"
        f"{', and others' if len(some) > 3 else ''}); repair them, or set on_error to drop or null."
    )


class _Worker:
    """Holds the loaded embedder and writes a shard at a time."""

    def __init__(self, work: _Work, device: str) -> None:
        if device == "cpu" and hasattr(work.embedder, "load"):
            import torch

            torch.set_num_threads(1)  # more would add in another order, and nodes differ in their number
        self.work = work
        load = getattr(work.embedder, "load", None)
        self.embed = load(device) if load is not None else work.embedder
        self.dimension: int | None = None

    def ready(self) -> bool:
        return True

    def shard(self, rows: Any) -> _Stat:
        work = self.work
        name = work.embedder.name
        rejected = dict(rows.rejected)
        if length_of(rows.rows) == 0:
            vectors = np.empty((0, self.dimension or 0), np.float32)
        else:
            vectors = np.concatenate(list(self._tiles(rows.ids, rows.rows)))
            self.dimension = vectors.shape[1]
        bad = not_finite(vectors) if len(vectors) else np.empty(0, np.int64)
        if len(bad) and work.options.on_error == "raise":
            raise DataError(
                f"Embedder {name} returned NaN or infinite values for {len(bad):,} of {len(vectors):,} rows "
                f"(sample_id {first(rows.ids[bad])})."
            )
        rejected |= dict.fromkeys(rows.ids[bad].tolist(), "its vector holds NaN or infinite values")
        good = np.setdiff1d(np.arange(len(vectors)), bad)
        ids, vectors = rows.ids[good], vectors[good]
        if work.options.normalize:
            vectors = vectors / np.maximum(np.sqrt(np.square(vectors).sum(axis=1, keepdims=True)), 1e-12)
        stored = vectors.astype(work.options.dtype, copy=False)
        if stored.dtype == np.float16 and not_finite(stored).size:
            over = ids[not_finite(stored)]
            raise DataError(
                f"Embedder {name} returned values beyond what float16 holds (65504) for sample_id {first(over)}; "
                "normalize the vectors or keep them as float32."
            )
        table = _table(ids, stored, rejected, work.options.on_error)
        number = int((ids if len(ids) else np.array(sorted(rejected)))[0]) // work.shard
        _Folder(work.directory).write_part(number, table, rejected)
        return _Stat(number, len(ids) + len(rejected), vectors.shape[1], int(ids[0]) if len(ids) else -1)

    def _tiles(self, ids: np.ndarray, rows: Any) -> Iterator[np.ndarray]:
        tile = getattr(self.work.embedder, "tile", None) or self.work.shard
        edges = [0, *(np.flatnonzero(np.diff(ids // tile)) + 1).tolist(), len(ids)]
        width = self.dimension
        for start, stop in zip(edges, edges[1:], strict=False):
            part = self.embed(rows_of(rows, start, stop))
            yield (vectors := check_vectors(part, ids[start:stop], self.work.embedder.name, width))
            width = vectors.shape[1]


def _table(ids: np.ndarray, vectors: np.ndarray, rejected: dict[int, str], on_error: str) -> pa.Table:
    if on_error != "null" or not rejected:
        return pa.table({ID: ids, EMBEDDING: to_column(vectors)})
    every = np.sort(np.concatenate([ids, np.array(list(rejected), np.int64)]))
    filled = np.zeros((len(every), vectors.shape[1]), vectors.dtype)
    filled[np.searchsorted(every, ids)] = vectors
    column = to_column(filled)
    storage = pa.FixedSizeListArray.from_arrays(
        column.storage.values, vectors.shape[1], mask=pa.array(np.isin(every, ids, invert=True))
    )
    return pa.table({ID: every, EMBEDDING: pa.ExtensionArray.from_storage(column.type, storage)})


# ---- the cluster ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Room:
    """Workers and readers that fit the cluster, and what each asks for."""

    workers: int
    worker: dict[str, float]
    readers: int
    reader: dict[str, float]
    device: str

    @classmethod
    def of(cls, network: bool, units: int) -> _Room:
        """One worker a GPU for networks where there are GPUs; else one a CPU, which leaves a part of it to a reader."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = max(1, sum(int(node.get("CPU", 0)) for node in nodes))
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if network and gpus:
            return cls(gpus, {"num_gpus": 1, "num_cpus": 0}, min(cpus, 4 * gpus + 4), {"num_cpus": 1}, "cuda")
        return cls(cpus, {"num_cpus": 0.8}, max(1, cpus // 2), {"num_cpus": 0.1}, "cpu")


def _run(units: list[_Unit], work: _Work, progress: _Progress) -> tuple[list[_Stat], float]:
    """Stream every unit through the workers; what they did, and the seconds until the first one was ready."""
    began = time.monotonic()
    room = _Room.of(hasattr(work.embedder, "load"), len(units))
    held = ray.put(work)
    make = ray.remote(_Worker).options(
        **room.worker, scheduling_strategy="SPREAD", max_restarts=3, max_task_retries=3
    )
    shards = sum(len(range(u.low, u.high, work.shard)) - len(u.done) for u in units)
    workers = [make.remote(held, room.device) for _ in range(min(room.workers, shards))]
    read = ray.remote(_read).options(
        **room.reader,
        scheduling_strategy="SPREAD",
        num_returns="streaming",
        max_retries=3,
        _generator_backpressure_num_objects=_AHEAD,
    )
    try:
        loads = _await(workers, room)
        start = time.monotonic() - began
        progress.start()
        return list(_drive(units, held, read, loads, room, progress)), start
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RayselError):
            raise error.cause from None
        raise
    except ray.exceptions.ActorDiedError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RayselError):
            raise cause from None
        raise
    finally:
        for worker in workers:
            ray.kill(worker)


def _await(workers: list[Any], room: _Room) -> dict[Any, int]:
    """The workers as they come up, each with no load; ResourceError if none finds room in time."""
    pings = {worker.ready.remote(): worker for worker in workers}
    ready, _ = ray.wait(list(pings), num_returns=1, timeout=_WAIT_S)
    if not ready:
        free = ray.available_resources()
        raise ResourceError(
            f"No worker for embedding started within {_WAIT_S:g} s: each asks for {room.worker}, and the cluster has "
            f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; try again later or free some."
        )
    ray.get(ready)  # a network that cannot be loaded says so here
    return dict.fromkeys(workers, 0)


def _drive(
    units: list[_Unit],
    work: ray.ObjectRef,
    read: Any,
    loads: dict[Any, int],
    room: _Room,
    progress: _Progress,
) -> Iterator[_Stat]:
    waiting, streams = deque(units), set()
    shards: deque[ray.ObjectRef] = deque()
    busy: dict[ray.ObjectRef, Any] = {}
    while waiting or streams or shards or busy:
        while waiting and len(streams) < room.readers:
            unit = waiting.popleft()
            streams.add(read.remote(unit, work, *unit.refs))
        while shards:
            worker = min(loads, key=loads.__getitem__)
            if loads[worker] >= _AHEAD:
                break
            loads[worker] += 1
            busy[worker.shard.remote(shards.popleft())] = worker
        more = streams if len(shards) < len(loads) else set()
        done, _ = ray.wait([*busy, *more], num_returns=1, timeout=1.0, fetch_local=False)
        for ref in done:
            if ref in busy:
                loads[busy.pop(ref)] -= 1
                stat = ray.get(ref)
                progress.add(stat.rows)
                yield stat
            else:
                try:
                    shards.append(next(ref))
                except StopIteration:
                    streams.remove(ref)
        progress.show()


class _Progress:
    """Rows done, rows a second and the time left, told to ``watch`` about once a second."""

    def __init__(self, rows: int, watch: Watch | None) -> None:
        self.rows, self.watch, self.done = rows, watch, 0
        self.start()

    def start(self) -> None:
        self.began = self.told = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += rows

    def show(self) -> None:
        now = time.monotonic()
        if self.watch is None or now - self.told < 1 or not self.done:
            return
        self.told = now
        rate = self.done / (now - self.began)
        left = max(0, self.rows - self.done) / rate
        self.watch(f"{self.done:,} of {self.rows:,} rows, {rate:,.0f} rows/s, {_minutes(left)} left")


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"


# ---- the directory -------------------------------------------------------------------------------------------


class _Folder:
    """The files of :func:`compute`, on any Arrow filesystem; each appears whole or not at all."""

    def __init__(self, directory: str) -> None:
        self.name = directory
        self.filesystem, self.path = resolve(directory)

    def read(self, name: str) -> Any:
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as source:
                return json.loads(source.read().decode())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.name}/{name}: damaged ({error}); remove the directory and run again."
            ) from error

    def write(self, name: str, data: bytes) -> None:
        partial = f"{self.path}/.{name}.{time.monotonic_ns():x}.partial"
        with self.filesystem.open_output_stream(partial) as sink:
            sink.write(data)
        self.filesystem.move(partial, f"{self.path}/{name}")

    def claim(self, key: dict[str, Any]) -> None:
        """Make the directory these vectors' own; RunError if it holds others."""
        before = self.read("_key.json")
        if before is None:
            try:
                self.filesystem.create_dir(self.path, recursive=True)
                self.write("_key.json", json.dumps(key, indent=1).encode())
            except OSError as error:
                raise RunError(f"{self.name}: cannot be written ({error}).") from error
        elif before != key:
            other = [part for part in key if before.get(part) != key[part]]
            raise RunError(
                f"{self.name}: holds vectors of another {first(other)}; choose another directory, or remove it."
            )

    def parts(self) -> set[int]:
        """Numbers of the shards that are there."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path))
        return {int(f.base_name[5:-8]) for f in found if f.base_name.startswith("part-")}

    def part(self, number: int) -> str:
        return f"{self.path}/{part_name(number)}"

    def write_part(self, number: int, table: pa.Table, rejected: dict[int, str]) -> None:
        sink = io.BytesIO()
        kept = table.replace_schema_metadata({"rejected": json.dumps(sorted(rejected.items()))})
        pq.write_table(kept, sink, compression="none")
        self.write(part_name(number), sink.getvalue())


def part_name(number: int) -> str:
    """The file of a shard."""
    return f"part-{number:012d}.parquet"


def _finish(
    folder: _Folder,
    source: _ParquetSource | _BlockSource,
    parts: set[int],
    embedder: Embedder,
    stats: list[_Stat],
    seconds: float,
    start: float,
) -> Report:
    """Check that every id is there once and every vector as long as the others; write what was rejected, and done."""
    look = ray.remote(_check_parts).options(num_cpus=0.5)
    numbers = sorted(parts)
    found = [
        entry
        for piece in ray.get(
            [look.remote(folder.name, numbers[i : i + 256]) for i in range(0, len(numbers), 256)]
        )
        for entry in piece
    ]
    rejected = {int(number): reason for entry in found for number, reason in entry[4]}
    widths = sorted({entry[2] for entry in found if entry[0]})
    if len(widths) > 1:
        where = {entry[2]: entry[3] for entry in reversed(found) if entry[0]}
        raise DataError(
            f"Embedder {embedder.name} returned vectors of different lengths: "
            + ", ".join(f"{width} from sample_id {where[width]}" for width in widths)
            + f"; remove {folder.name} after mending it."
        )
    rows, total = source.ids()
    count = sum(entry[0] for entry in found) + len(rejected)
    have = sum(entry[1] for entry in found) + sum(rejected)
    if (count, have) != (rows, total):
        raise RunError(
            f"{folder.name}: {count:,} ids with sum {have:,} were found, {rows:,} with sum {total:,} were expected; "
            "the directory must be one that every node sees. Remove it and run again."
        )
    if rejected:
        listed = sorted(rejected.items())
        sink = io.BytesIO()
        pq.write_table(
            pa.table({ID: pa.array([i for i, _ in listed], pa.int64()), "reason": [r for _, r in listed]}),
            sink,
        )
        folder.write("_rejected.parquet", sink.getvalue())
        if len(rejected) == rows:
            raise DataError(
                f"None of the {rows:,} rows could be embedded (sample_id {listed[0][0]}: {listed[0][1]})."
            )
    report = Report(
        rows - len(rejected),
        widths[0],
        len(rejected),
        sum(stat.rows for stat in stats),
        seconds,
        start,
    )
    folder.write("_done.json", json.dumps({"report": asdict(report), "sum_of_ids": total}, indent=1).encode())
    return report


def _check_parts(directory: str, numbers: list[int]) -> list[tuple[int, int, int, int, list[Any]]]:
    """Of each part: vectors, the sum of their ids, their dimension, the first id, and what was rejected."""
    folder = _Folder(directory)
    found = []
    for number in numbers:
        with folder.filesystem.open_input_file(folder.part(number)) as source:
            file = pq.ParquetFile(source)
            ids = file.read(columns=[ID])[ID].to_numpy()
            schema = file.schema_arrow
        rejected = json.loads(schema.metadata[b"rejected"])
        ids = np.setdiff1d(ids, [number for number, _ in rejected], assume_unique=True)
        width = schema.field(EMBEDDING).type.shape[0]
        found.append((len(ids), int(ids.sum()), width, int(ids[0]) if len(ids) else -1, rejected))
    return found


def _attach(table: pa.Table, directory: str, rows: int) -> pa.Table:
    ids = table[ID].to_numpy()
    folder = _Folder(directory)
    numbers = np.unique(ids // rows).tolist()
    parts = [_part(directory, number) for number in numbers]
    vectors = pa.concat_tables(parts)
    there = vectors[ID].to_numpy()
    place = np.minimum(np.searchsorted(there, ids), max(len(there) - 1, 0))
    known = there[place] == ids if len(there) else np.zeros(len(ids), bool)
    kept = table.filter(pa.array(known))
    if EMBEDDING in kept.column_names:
        kept = kept.drop_columns([EMBEDDING])
    del folder
    return kept.append_column(EMBEDDING, vectors[EMBEDDING].combine_chunks().take(pa.array(place[known])))


@lru_cache(maxsize=4)
def _part(directory: str, number: int) -> pa.Table:
    folder = _Folder(directory)
    try:
        with folder.filesystem.open_input_file(folder.part(number)) as source:
            return pq.read_table(source).replace_schema_metadata(None)
    except FileNotFoundError as error:
        raise DataError(f"{folder.part(number)}: gone; embed the data set again.") from error
