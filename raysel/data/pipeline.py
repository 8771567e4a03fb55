"""The directory of a data set's vectors: computed once, completed after an interruption, and attached to rows.

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
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from raysel.cluster.blocks import plain_errors
from raysel.cluster.errors import is_lost
from raysel.cluster.wait import get
from raysel.core.arrays import positions
from raysel.core.fingerprint import fingerprint
from raysel.core.storage import write_json
from raysel.data import shards
from raysel.data.decode import decoder_versions, is_bytes
from raysel.data.embedders.embedder import Embedder, FunctionEmbedder
from raysel.data.identity import POOL_FILE
from raysel.data.row_index import ID
from raysel.data.shards import DONE, Options, VectorFolder, Work, shard_rows
from raysel.data.sources import Source, source_of
from raysel.data.vectors import EMBEDDING
from raysel.data.workers import Progress, Resources, Watch, run_jobs
from raysel.errors import DataError, RunError, reason_of

_FORMAT = 2
_LOST = 3  # losses of a process or node without any progress in between

logger = logging.getLogger(__name__)


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
    progress, start = Progress(source.rows, watch), 0.0
    there, lost = folder.parts(), 0
    while missing := source.jobs(shard, there):
        try:
            start = run_jobs(missing, work, progress, key["device"])
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
        "device": Resources.of().device if hasattr(embedder, "load") else "cpu",
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
            f"The vectors in {folder.path} do not belong to this dataset: there are {count:,} vectors for {rows:,} rows, or their "
            "ids differ. Check that every node uses the same directory, remove the directory, and run again."
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
