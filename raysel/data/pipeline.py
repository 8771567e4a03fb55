"""Vectors of a data set on the cluster: readers decode, workers hold the network, nothing is done twice.

An interrupted run resumes with the shards that are missing, and no id can occur twice. The driver keeps a few
numbers per shard, and no rows.

::

    DIRECTORY/
      _key.json               whose vectors these are: digests of input, embedder and options
      part-000000000123.parquet   sample_id, embedding; 123 is the shard's number
      _rejected.parquet       sample_id, reason: rows left out or without a vector, by ``on_error``
      _pool.json              the files that gave the rows their ids, if they are known
      _done.json              rows, dimension and sum of ids, written last
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, check_columns, map_blocks, materialized, pick, plain_errors
from raysel.cluster.errors import is_lost, unwrap_errors
from raysel.cluster.observe import count, task_name
from raysel.cluster.wait import Room, get, wait_for_cpu, wait_until
from raysel.core.arrays import positions
from raysel.core.fingerprint import fingerprint, stored_digest
from raysel.core.fingerprint.files import Trust
from raysel.core.storage import resolve, write_json
from raysel.data import shards
from raysel.data.content import digest_blocks
from raysel.data.datasource import IndexedParquet, parquet_rows
from raysel.data.decode import PATH, decoder_versions, is_bytes, is_text
from raysel.data.embedders.embedder import Embedder, FunctionEmbedder
from raysel.data.formats.parquet import Piece, read_pieces
from raysel.data.identity import POOL_FILE, PoolIdentity, identity
from raysel.data.row_index import ID, check_ids
from raysel.data.shards import DONE, Options, Stat, Unit, VectorFolder, Work, shard_rows
from raysel.data.vectors import EMBEDDING
from raysel.errors import DataError, RunError, reason_of

_FORMAT = 2
_UNIT_BYTES = 32 << 20  # a reader takes consecutive row groups of about so much
_AHEAD = 2  # shards that wait for each worker, so that it never does
_LOST = 3  # losses of a process or node without any progress in between
_WAIT_S = 120.0  # for the first worker to be placed and to load

logger = logging.getLogger(__name__)

Watch = Callable[[str], None]
Job = tuple[Unit, list[ray.ObjectRef]]  # a unit, and the blocks its rows come in


@dataclass(frozen=True)
class Report:
    """The result of :func:`compute`: rows with a vector, their dimension, rejected rows, and durations.

    ``embedded`` has the rows computed now and not in an earlier attempt. ``start_seconds`` is the time until
    the first worker was ready.
    """

    rows: int
    dimension: int
    rejected: int
    embedded: int
    seconds: float
    start_seconds: float


def compute(
    dataset: Dataset | Source,
    embedder: Embedder,
    columns: Sequence[str],
    directory: str,
    options: Options | None = None,
    watch: Watch | None = None,
    version: str | None = None,
) -> Report:
    """Write the vectors of every row of ``dataset`` under ``directory``, or those that are missing there.

    Parameters
    ----------
    dataset : ray.data.Dataset or source
        Or the result of :func:`source_of`. Parquet read by ``raysel.read``, of which columns at most were
        selected or renamed since, is streamed by row group; of any other data set the needed columns are
        first put into Ray's object store.
    embedder : Embedder
        The embedder.
    columns : list of str
        Columns to embed.
    directory : path or URI
        Every node must be able to reach it.
    options : Options
        How vectors are made and stored.
    watch : callable, optional
        Progress callback; receives a short status string.
    version : str, optional
        Identifies the embedder, by its name and this text, in place of its fingerprint.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    DataError
        For rows or vectors that cannot be used.
    ResourceError
        If no worker can be placed.
    RunError
        For a directory that has other vectors or is incomplete in the end.
    """
    options = options or Options()
    began = time.monotonic()
    source = source_of(dataset, columns) if isinstance(dataset, Dataset) else dataset
    shard = shard_rows(embedder, source.kind(columns[0]))
    key = key_of(source, embedder, columns, options, version)
    folder = VectorFolder(directory)
    folder.claim(key)
    if source.pool is not None:
        folder.write(POOL_FILE, json.dumps(source.pool.to_list()).encode())
    finished = folder.read(DONE)
    if finished is not None:
        with shards.intact(folder.file(DONE)):
            return Report(**finished["report"] | {"embedded": 0, "seconds": 0.0, "start_seconds": 0.0})
    work = Work(embedder, tuple(columns), directory, options, shard)
    progress, start = _Progress(source.rows, watch), 0.0
    there, lost = folder.parts(), 0
    while missing := source.jobs(shard, there):
        try:
            start = _run(missing, work, progress, key["device"])
            break
        except Exception as error:
            if not is_lost(error):
                raise
            before, there = there, folder.parts()
            lost = 1 if there > before else lost + 1
            if lost == _LOST:
                raise RunError(
                    f"Embedding was interrupted {lost} times without progress, because a process or node was lost "
                    f"({reason_of(error)}). Check that the nodes have enough memory, and run again: the vectors computed so far "
                    "are kept."
                ) from error
            logger.warning(
                f"A process or node was lost ({reason_of(error)}); the missing vectors are computed again."
            )
    return _finish(folder, source, embedder, options, progress.done, began, start)


def jobs(dataset: Dataset, work: Work) -> list[Job]:
    """Return every shard of ``dataset``, in units for one reader each."""
    return source_of(dataset, work.columns).jobs(work.shard, set())


def source_of(dataset: Dataset, columns: Sequence[str]) -> Source:
    """Return the rows of ``dataset`` for :func:`compute`; run ``dataset`` once unless it is plain Parquet."""
    return _ParquetSource.of(dataset, columns) or _BlockSource.of(dataset, columns)


def rows_digest(dataset: Dataset, columns: Sequence[str]) -> str:
    """Digest of Parquet rows as `raysel.read` returned them, with the files that a column of paths names."""
    found = parquet_rows(dataset)
    if found is None:
        return source_of(dataset, columns).digest
    return _ParquetSource(found[0], {name: found[1][name] for name in columns}, None).digest


def key_of(
    source: Source, embedder: Embedder, columns: Sequence[str], options: Options, version: str | None = None
) -> dict[str, Any]:
    """Return what determines vectors: digests of rows and embedder, options, decoder and kind of device."""
    images = getattr(embedder, "takes", "any") in ("images", "any", "stored") and is_bytes(
        source.kind(columns[0])
    )
    return {
        "format": _FORMAT,
        "input": source.digest,
        "columns": list(columns),
        "embedder": {"name": embedder.name, "digest": digest(embedder, version)},
        "options": asdict(options),
        "shard": shard_rows(embedder, source.kind(columns[0])),
        "decoder": decoder_versions() if images or getattr(embedder, "takes", "") == "images" else {},
        "device": _Resources.of().device if hasattr(embedder, "load") else "cpu",
    }


def attach(dataset: Dataset, directory: str, report: Report, options: Options) -> Dataset:
    """Return ``dataset`` with the vectors that :func:`compute` wrote, without rows left out; lazy.

    Raises
    ------
    DataError
        When the rows are made, if the directory has vectors of another key by then.
    """
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(options.dtype)), [report.dimension])
    folder = VectorFolder(directory)
    key = folder.read("_key.json")
    with shards.intact(folder.file("_key.json")):
        rows = int(key["shard"])
    return plain_errors(
        dataset.map_batches(
            _attach,
            fn_args=(directory, rows, kind, _stamp(folder)),
            batch_format="pyarrow",
            batch_size=None,
        )
    )


def digest(embedder: Embedder, version: str | None = None) -> str:
    """Return a digest that changes whenever the vectors of an embedder may.

    Parameters
    ----------
    embedder : Embedder
        A text attribute ``digest`` identifies it; otherwise its fingerprint does.
    version : str, optional
        Identifies it in place of both.

    Returns
    -------
    str
        Digest for keys.

    Raises
    ------
    ConfigError
        If the embedder cannot be fingerprinted and there is no version.
    """
    if version is not None:
        return f"version:{version}"
    held = embedder.function if isinstance(embedder, FunctionEmbedder) else embedder
    return fingerprint(
        held,
        f"embedder '{embedder.name}'",
        'give version=, for example version="1", and change it whenever the embedder changes',
    )


# ---- where rows come from ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ParquetSource:
    """Row groups, whose ids are known without reading them."""

    reader: IndexedParquet
    names: dict[str, str]  # of the columns: here, and in the files
    pool: PoolIdentity | None
    beside: dict[str, str] = field(default_factory=dict)  # columns for messages, which no vector depends on

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> _ParquetSource | None:
        found = parquet_rows(dataset)
        if found is None or found[0].stores_ids or found[1].get(ID) != ID:
            logger.debug(
                "The rows to embed are not exactly the rows of Parquet files, so they are copied into Ray's "
                "object store."
            )
            return None
        check_columns(list(found[1]), columns, "dataset to embed")
        kinds = {
            name: found[0].file_schema.field(stored).type for name, stored in found[1].items() if name != ID
        }
        beside = {name: found[1][name] for name in paths_beside(kinds, columns)}
        return cls(found[0], {name: found[1][name] for name in columns}, identity(dataset), beside)

    @property
    def rows(self) -> int:
        return self.reader.index.rows

    def ids(self) -> tuple[int, int]:
        return self.rows, self.rows * (self.rows - 1) // 2

    def kind(self, column: str) -> pa.DataType:
        return self.reader.file_schema.field(self.names[column]).type

    @property
    def digest(self) -> str:
        """Return a digest of the rows, with the content of the files that a column of paths names."""
        named = [
            stored
            for name, stored in self.names.items()
            if is_text(self.kind(name)) and self._has_paths(stored)
        ]
        if not named:
            return self.reader.index.digest
        pieces = self.reader.pieces()
        look = ray.remote(_digest_named).options(num_cpus=0.5, scheduling_strategy="SPREAD")
        trust = self.reader.index.files[0].trust
        found = get([look.remote(pieces[i : i + 8], sorted(named), trust) for i in range(0, len(pieces), 8)])
        return hashlib.sha256("".join([self.reader.index.digest, *found]).encode()).hexdigest()

    def _has_paths(self, column: str) -> bool:
        """Return whether the first value of a text column is the path of a file."""
        for _, table in read_pieces(self.reader.pieces()[:1], [column], rows=64):
            return names_files(table[column])
        return False

    def jobs(self, shard: int, there: set[int]) -> list[Job]:
        """Yield consecutive row groups.

        A reader reads the shards that begin in its groups, to the last one's end.
        """
        groups = self.reader.pieces()
        jobs: list[Job] = []
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
                pieces = tuple(groups[begin:reach])
                jobs.append(
                    (Unit(low, high, frozenset(wanted & there), pieces, self.names | self.beside), [])
                )
            begin = end
        return jobs


@dataclass(frozen=True)
class _BlockSource:
    """Blocks in the object store, in the order of their ids."""

    blocks: list[ray.ObjectRef]
    spans: list[_BlockStats]
    pool: PoolIdentity | None

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> _BlockSource:
        schema = dataset.schema(fetch_if_missing=False)
        kinds = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        wanted = [*columns, *paths_beside(kinds, columns)]
        narrow = materialized(pick(dataset, [ID, *wanted], "dataset to embed"))
        blocks, spans = cls._with_stats(list(narrow.to_arrow_refs()), columns)
        order = sorted(range(len(spans)), key=lambda i: spans[i][1])
        blocks, spans = [blocks[i] for i in order], [spans[i] for i in order]
        if any(one[2] >= two[1] for one, two in itertools.pairwise(spans)):  # ids lie across blocks
            blocks, spans = cls._with_stats(arrow_blocks(narrow.sort(ID)), columns)
            for one, two in itertools.pairwise(spans):
                if one[2] >= two[1]:
                    raise DataError(
                        f"The dataset to embed holds sample_id {two[1]} more than once; ids must be unique."
                    )
        if not spans:
            raise DataError("The dataset to embed is empty.")
        return cls(blocks, spans, identity(dataset))

    @staticmethod
    def _with_stats(
        blocks: list[ray.ObjectRef], columns: Sequence[str]
    ) -> tuple[list[ray.ObjectRef], list[_BlockStats]]:
        found = map_blocks(_block_stats, blocks, list(columns))
        kept = [i for i, span in enumerate(found) if span[0]]
        return [blocks[i] for i in kept], [found[i] for i in kept]

    @property
    def rows(self) -> int:
        return sum(span[0] for span in self.spans)

    def ids(self) -> tuple[int, int]:
        return self.rows, sum(span[3] for span in self.spans)

    def kind(self, column: str) -> pa.DataType:
        return self.spans[0].schema.field(column).type

    @cached_property
    def digest(self) -> str:
        rows = digest_blocks(self.blocks, [(span.low, span.high) for span in self.spans])
        files = sum(span.files for span in self.spans) % 2**128
        return f"{rows}-{files:032x}" if files else rows

    def jobs(self, shard: int, there: set[int]) -> list[Job]:
        held: dict[int, list[int]] = {}
        for block, (_, low, high, *_) in enumerate(self.spans):
            for number in range(low // shard, high // shard + 1):
                held.setdefault(number, []).append(block)
        return [
            (Unit(n * shard, (n + 1) * shard), [self.blocks[b] for b in blocks])
            for n, blocks in sorted(held.items())
            if n not in there
        ]


Source = _ParquetSource | _BlockSource


class _BlockStats(NamedTuple):
    """Rows of a block: their number, lowest and highest id, sum of ids, sum of digests of named files, columns."""

    rows: int
    low: int
    high: int
    sum: int
    files: int
    schema: pa.Schema


def paths_beside(kinds: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the column that names the files of images, by which messages about them do: ``path`` next to bytes."""
    there = all(isinstance(kinds.get(name), pa.DataType) for name in (*columns, PATH))
    return (
        [PATH]
        if there and is_bytes(kinds[columns[0]]) and is_text(kinds[PATH]) and PATH not in columns
        else []
    )


def _block_stats(table: pa.Table, columns: Sequence[str]) -> _BlockStats:
    if not table.num_rows:  # an empty block may come without its columns
        return _BlockStats(0, 0, 0, 0, 0, table.schema)
    ids = table[ID].to_numpy()
    check_ids(ids, "the dataset to embed")
    files = 0
    for name in columns:
        if is_text(table.schema.field(name).type) and names_files(table[name]):
            # A sum, which does not depend on how the rows are cut into blocks.
            for row, found in zip(ids.tolist(), digests_named(table[name], "content"), strict=True):
                text = f"{name} {row} {found}".encode()
                files += int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return _BlockStats(len(ids), int(ids.min()), int(ids.max()), int(ids.sum()), files % 2**128, table.schema)


def names_files(column: pa.Array | pa.ChunkedArray) -> bool:
    """Return whether the first value of a text column is the path of a file."""
    value = next((text for text in (v.as_py() for v in column) if text), "")
    try:
        filesystem, path = resolve(value) if len(value) < 4096 and "\n" not in value else (None, "")
        return filesystem is not None and filesystem.get_file_info(path).type == pafs.FileType.File
    except (DataError, pa.ArrowException, OSError, ValueError):
        return False


def digests_named(column: pa.Array | pa.ChunkedArray, trust: Trust) -> list[str]:
    """Return digests of the content of the files at the paths in a text column.

    A missing file counts as missing.
    """
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(partial(_digest_path, trust=trust), column.to_pylist()))


def _digest_path(path: str | None, trust: Trust) -> str:
    try:
        return "" if not path else stored_digest(*resolve(path), trust)
    except DataError:
        return "missing"


def _digest_named(pieces: Sequence[Piece], columns: Sequence[str], trust: Trust) -> str:
    whole = hashlib.sha256()
    for _, table in read_pieces(pieces, columns):
        for name in columns:
            whole.update("\n".join(digests_named(table[name], trust)).encode())
    return whole.hexdigest()


# ---- the cluster ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Resources:
    """Workers and readers that fit the cluster, and the resources of each."""

    workers: int
    worker: dict[str, float]
    readers: int
    reader: dict[str, float]
    device: str

    @classmethod
    def of(cls, device: str | None = None) -> _Resources:
        """Return one worker per GPU if there are GPUs, else one per CPU, which leaves a part of it to the readers.

        With the device of an earlier start, at least one worker of this device, even if its node was lost: other devices
        give other vectors.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = max(1, sum(int(node.get("CPU", 0)) for node in nodes))
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if device == "cuda" or (gpus and device is None):
            gpus = max(1, gpus)
            return cls(gpus, {"num_gpus": 1, "num_cpus": 0}, min(cpus, 4 * gpus + 4), {"num_cpus": 1}, "cuda")
        return cls(cpus, {"num_cpus": 0.8}, max(1, cpus // 2), {"num_cpus": 0.1}, "cpu")


class _Worker:
    """Holds a loaded network. It is loaded by a call, since errors at creation would lose their class."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.run: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:  # the name of the actor on the dashboard
        return f"embedding on {self.device}"

    def load(self, work: Work) -> Callable[[Any], Any]:
        if self.run is None:
            self.run = shards.prepare_network(work.embedder, self.device)
        return self.run

    def ready(self, work: Work) -> None:
        self.load(work)

    def shard(self, rows: shards.Rows, work: Work) -> Stat:
        return shards.embed(rows, self.load(work), work)


def _embed_unit(unit: Unit, work: Work, *tables: pa.Table) -> Iterator[Stat]:
    """Do everything of a unit in one task, for embedders with nothing to load."""
    for rows in shards.read(unit, work, *tables):
        yield shards.embed(rows, work.embedder, work)


def _run(jobs: list[Job], work: Work, progress: _Progress, device: str) -> float:
    """Do every job; return the seconds until the first worker was ready."""
    held = ray.put(work)
    with unwrap_errors():
        if not hasattr(work.embedder, "load"):
            wait_for_cpu()
            stream = ray.remote(_embed_unit).options(
                name=task_name("vectors"),
                num_cpus=1,
                num_returns="streaming",
                scheduling_strategy="SPREAD",
                max_retries=3,
            )
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            _run_tasks(jobs, held, stream, 2 * cpus, progress)
            return 0.0
        return _run_workers(jobs, held, work, progress, device)


def _run_tasks(jobs: list[Job], work: ray.ObjectRef, stream: Any, most: int, progress: _Progress) -> None:
    waiting, streams = deque(jobs), set[Any]()
    room = Room("Embedding", {"CPU": 1})
    while waiting or streams:
        while waiting and len(streams) < most:
            unit, refs = waiting.popleft()
            streams.add(stream.remote(unit, work, *refs))
        for one in ray.wait(list(streams), num_returns=1, timeout=1.0, fetch_local=False)[0]:
            try:
                progress.add(ray.get(next(one)).rows)
            except StopIteration:
                streams.remove(one)
        progress.show()
        room.check()


def _run_workers(jobs: list[Job], held: ray.ObjectRef, work: Work, progress: _Progress, device: str) -> float:
    """Stream decoded shards from readers to the workers that hold the network."""
    began = time.monotonic()
    resources = _Resources.of(device)
    # Not restarted: calls to a worker that waits for its restart would neither return nor fail.
    make = ray.remote(_Worker).options(**resources.worker, scheduling_strategy="SPREAD", max_restarts=0)
    read = ray.remote(shards.read).options(
        **resources.reader,
        name=task_name("read rows"),
        scheduling_strategy="SPREAD",
        num_returns="streaming",
        max_retries=3,
        _generator_backpressure_num_objects=_AHEAD,
    )
    wanted = sum(len(range(u.low, u.high, work.shard)) - len(u.done) for u, _ in jobs)
    workers = [make.remote(resources.device) for _ in range(min(resources.workers, wanted))]
    try:
        starting = {worker.ready.remote(held): worker for worker in workers}
        ready = wait_until(
            lambda limit: ray.wait(list(starting), num_returns=1, timeout=limit)[0],
            f"No worker for embedding, which needs {_described(resources.worker)}, started",
            "Try again later, add a node, or free some; the vectors so far are kept",
            _WAIT_S,
        )
        ray.get(ready)  # raises here if the network cannot be loaded
        start = time.monotonic() - began
        progress.start()
        _feed_workers(jobs, held, read, starting, resources, progress)
        return start
    finally:
        for worker in workers:
            ray.kill(worker)


def _described(resources: dict[str, float]) -> str:
    return " and ".join(
        f"{amount:g} {name.removeprefix('num_')[:-1].upper()}" for name, amount in resources.items()
    )


def _feed_workers(
    jobs: list[Job],
    held: ray.ObjectRef,
    read: Any,
    starting: dict[ray.ObjectRef, Any],
    resources: _Resources,
    progress: _Progress,
) -> None:
    """Feed the workers that are ready; one that is lost is left out, and the others do its shards."""
    waiting, streams = deque(jobs), set[Any]()
    decoded: deque[ray.ObjectRef] = deque()
    busy: dict[ray.ObjectRef, tuple[Any, ray.ObjectRef]] = {}
    loads: dict[Any, int] = {}
    room = Room("Embedding", {"CPU": resources.reader["num_cpus"]})
    while waiting or streams or decoded or busy:
        while waiting and len(streams) < resources.readers:
            unit, refs = waiting.popleft()
            streams.add(read.remote(unit, held, *refs))
        while decoded and min(loads.values(), default=_AHEAD) < _AHEAD:
            worker = min(loads, key=loads.__getitem__)
            loads[worker] += 1
            rows = decoded.popleft()
            busy[worker.shard.options(name=task_name("vectors")).remote(rows, held)] = worker, rows
        more = streams if len(decoded) <= len(loads) else set()
        for ref in ray.wait([*starting, *busy, *more], num_returns=1, timeout=1.0, fetch_local=False)[0]:
            if ref in streams:
                try:
                    decoded.append(next(ref))
                except StopIteration:
                    streams.remove(ref)
                continue
            worker, rows = busy.pop(ref) if ref in busy else (starting.pop(ref), None)
            try:
                found = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                if rows is not None:
                    decoded.appendleft(rows)
                if loads.pop(worker, None) is not None or rows is None:  # once per worker
                    logger.warning(
                        f"A worker that computed vectors was lost ({reason_of(error)}). Other workers, if there are any, compute the vectors of its rows."
                    )
                if not loads:
                    raise
                continue
            if rows is None:
                loads[worker] = 0
            else:
                loads[worker] -= 1
                progress.add(found.rows)
        progress.show()
        room.check()


class _Progress:
    """Reports rows done, rows/s and the remaining time to ``watch`` about once per second."""

    def __init__(self, rows: int, watch: Watch | None) -> None:
        self.rows, self.watch, self.done = rows, watch, 0
        self.start()

    def start(self) -> None:
        self.began = self.shown = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += rows
        count("raysel_rows_embedded", rows)

    def show(self) -> None:
        now = time.monotonic()
        if self.watch is None or now - self.shown < 1 or not self.done:
            return
        self.shown = now
        rate = self.done / (now - self.began)
        left = max(0, self.rows - self.done) / rate
        self.watch(f"{self.done:,} of {self.rows:,} rows, {rate:,.0f} rows/s, {_minutes(left)} left")


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"


# ---- the end -------------------------------------------------------------------------------------------------


def _finish(
    folder: VectorFolder,
    source: Source,
    embedder: Embedder,
    options: Options,
    embedded: int,
    began: float,
    start: float,
) -> Report:
    """Check that every id is there once and all vectors have one length.

    Write rejected rows and the end mark.
    """
    look = ray.remote(shards.check_parts).options(num_cpus=0.5)
    numbers = sorted(folder.parts())
    found = [
        entry
        for piece in get(
            [look.remote(folder.path, numbers[i : i + 256]) for i in range(0, len(numbers), 256)]
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
            + f"; correct the embedder and remove {folder.path}."
        )
    rows, total = source.ids()
    count = sum(entry[0] for entry in found) + len(rejected)
    have = sum(entry[1] for entry in found) + sum(rejected)
    if (count, have) != (rows, total):
        raise RunError(
            f"{folder.path} holds vectors of {count:,} rows instead of {rows:,}, or of other rows than the dataset has. "
            "Check that every node sees the same directory, remove the directory, and run again."
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
                f"None of the {rows:,} rows could be embedded (sample_id {listed[0][0]}: {listed[0][1]}); repair the rows, or choose another embedder."
            )
        if options.on_error == "null":
            for number, entry in zip(numbers, found, strict=True):
                if not entry[0]:
                    empty = np.empty((0, widths[0]), options.dtype)
                    reasons = {int(i): reason for i, reason in entry[4]}
                    table = shards.table_of(np.empty(0, np.int64), empty, reasons, "null")
                    folder.write_part(number, table, reasons)
    report = Report(
        rows - len(rejected),
        widths[0],
        len(rejected),
        embedded,
        time.monotonic() - began,
        start,
    )
    write_json(folder.file(DONE), {"report": asdict(report), "sum_of_ids": total})
    return report


def _attach(table: pa.Table, directory: str, rows: int, kind: pa.DataType, stamp: str) -> pa.Table:
    ids = table[ID].to_numpy()
    parts = [_part(directory, number, stamp) for number in np.unique(ids // rows).tolist()]
    none = pa.schema([(ID, pa.int64()), (EMBEDDING, kind)]).empty_table()
    vectors = pa.concat_tables([none, *(part for part in parts if part is not None)]).combine_chunks()
    there = vectors[ID].to_numpy()
    place, known = positions(there, ids)
    kept = table.filter(pa.array(known))
    if EMBEDDING in kept.column_names:
        kept = kept.drop_columns([EMBEDDING])
    return kept.append_column(EMBEDDING, vectors[EMBEDDING].combine_chunks().take(pa.array(place[known])))


def _stamp(folder: VectorFolder) -> str:
    """Return a digest of the key of a directory's vectors."""
    return hashlib.sha256(json.dumps(folder.read("_key.json"), sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=4)
def _part(directory: str, number: int, stamp: str) -> pa.Table | None:
    """Return the vectors of a shard, cached by their key.

    A directory may be removed and filled with others.
    """
    folder = VectorFolder(directory)
    try:
        with folder.reading_part(number) as source:
            table = pq.read_table(source, page_checksum_verification=True).replace_schema_metadata(None)
            table.validate(full=True)
            shards.check_columns_of_part(table.schema)
    except FileNotFoundError as error:
        if number not in folder.parts():
            raise DataError(f"{folder.part(number)} was removed; embed the data set again.") from error
        table = None  # its rows were all left out
    if _stamp(folder) != stamp:
        raise DataError(f"The directory {directory} now holds other vectors; embed the data set again.")
    return table
