"""The rows that vectors are computed of: where they come from, and the digest that identifies them.

Rows of Parquet files are read by row group, without copying them first. The rows of any other data set lie in
Ray's object store. Vectors depend on the digest of the rows: a column of paths counts with the content of its files.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import ray
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, check_columns, map_blocks, materialized, pick
from raysel.cluster.wait import get
from raysel.core.fingerprint import stored_digest
from raysel.core.fingerprint.files import Trust
from raysel.core.storage import resolve
from raysel.data.content import digest_blocks
from raysel.data.datasource import IndexedParquet, parquet_rows
from raysel.data.decode import PATH, is_bytes, is_text
from raysel.data.formats.parquet import Piece, read_pieces
from raysel.data.identity import PoolIdentity, identity
from raysel.data.row_index import ID, check_ids
from raysel.data.shards import Unit
from raysel.errors import DataError

_UNIT_BYTES = 32 << 20  # a reader takes consecutive row groups of about so much

logger = logging.getLogger(__name__)

Job = tuple[Unit, list[ray.ObjectRef]]  # a unit, and the blocks its rows come in


@dataclass(frozen=True)
class ParquetSource:
    """Row groups, whose ids are known without reading them."""

    reader: IndexedParquet
    names: dict[str, str]  # of the columns: here, and in the files
    pool: PoolIdentity | None
    beside: dict[str, str] = field(default_factory=dict)  # columns for messages, which no vector depends on

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> ParquetSource | None:
        """Return the row groups whose rows ``dataset`` holds; None if it holds others, or ids of the files."""
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
        """The number of rows."""
        return self.reader.index.rows

    def ids(self) -> tuple[int, int]:
        """Return the number of ids and their sum."""
        return self.rows, self.rows * (self.rows - 1) // 2

    def kind(self, column: str) -> pa.DataType:
        """Return the type of a column."""
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
        """Return units of consecutive row groups with shards of ``shard`` ids that are not yet ``there``.

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
class BlockSource:
    """Blocks in the object store, in the order of their ids."""

    blocks: list[ray.ObjectRef]
    spans: list[_BlockStats]
    pool: PoolIdentity | None

    @classmethod
    def of(cls, dataset: Dataset, columns: Sequence[str]) -> BlockSource:
        """Run ``dataset`` once and return its blocks; raise DataError if it is empty or has an id twice."""
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
        """The number of rows."""
        return sum(span[0] for span in self.spans)

    def ids(self) -> tuple[int, int]:
        """Return the number of ids and their sum."""
        return self.rows, sum(span[3] for span in self.spans)

    def kind(self, column: str) -> pa.DataType:
        """Return the type of a column."""
        return self.spans[0].schema.field(column).type

    @cached_property
    def digest(self) -> str:
        """Return a digest of the rows, with the content of the files that a column of paths names."""
        rows = digest_blocks(self.blocks, [(span.low, span.high) for span in self.spans])
        files = sum(span.files for span in self.spans) % 2**128
        return f"{rows}-{files:032x}" if files else rows

    def jobs(self, shard: int, there: set[int]) -> list[Job]:
        """Return a unit for each shard of ``shard`` ids that is not yet ``there``, with the blocks that hold its rows."""
        held: dict[int, list[int]] = {}
        for block, (_, low, high, *_) in enumerate(self.spans):
            for number in range(low // shard, high // shard + 1):
                held.setdefault(number, []).append(block)
        return [
            (Unit(n * shard, (n + 1) * shard), [self.blocks[b] for b in blocks])
            for n, blocks in sorted(held.items())
            if n not in there
        ]


Source = ParquetSource | BlockSource


def source_of(dataset: Dataset, columns: Sequence[str]) -> Source:
    """Return the rows of ``dataset`` whose ``columns`` are embedded; run ``dataset`` once unless it is plain Parquet."""
    return ParquetSource.of(dataset, columns) or BlockSource.of(dataset, columns)


def rows_digest(dataset: Dataset, columns: Sequence[str]) -> str:
    """Return a digest of rows as `raysel.read` returned them, with the files that a column of paths names."""
    found = parquet_rows(dataset)
    if found is None:
        return source_of(dataset, columns).digest
    return ParquetSource(found[0], {name: found[1][name] for name in columns}, None).digest


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
