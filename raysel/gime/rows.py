"""Per-row scores: a second pass over the rows, with the counts of the first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raysel.core.arrays import positions
from raysel.errors import ConfigError, StateError
from raysel.gime.binding import Binding
from raysel.gime.block import Block
from raysel.gime.columns import Array
from raysel.gime.keys import gather_keys

_SCORES = {"entity": "scope", "classes": "variety"}


def key_counts(table: pa.Table, binding: Binding) -> pa.Table:
    """How often each entity and class occurs, exactly: role (text), hash (uint64), count (int64).

    Unlike the states of the metrics it grows with the distinct keys, 16 bytes each. ConfigError if neither is bound.
    """
    binding.check(table.schema)
    found = []
    for role in _roles(binding):
        hashes, there = Block(table, binding, None, 1).key(getattr(binding, role))
        keys = gather_keys(None, hashes[there], 1, None, count=1)
        found.append(_counted(role, keys.hash, keys.columns["count"]))
    return pa.concat_tables(found).replace_schema_metadata({"raysel.binding": binding.to_json()})


def merge_key_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """The counts of the rows of all, in any order; StateError for counts of different bindings."""
    metadata = tables[0].schema.metadata
    if any(table.schema.metadata != metadata for table in tables):
        raise StateError(
            "These counts were made with different bindings, so they cannot be joined; count again."
        )
    joined = pa.concat_tables(tables).combine_chunks()
    found = []
    for role in _roles(Binding.from_json(metadata[b"raysel.binding"].decode())):
        hashes, counts = _of(joined, role)
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], counts[order]
        starts = (
            np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
            if len(hashes)
            else np.empty(0, np.int64)
        )
        total = np.add.reduceat(counts, starts) if len(starts) else counts
        found.append(_counted(role, hashes[starts], total))
    return pa.concat_tables(found).replace_schema_metadata(metadata)


def row_scores(table: pa.Table, binding: Binding, counts: pa.Table | None = None) -> pa.Table:
    """A score of each row for the metrics that have one: as many rows as ``table``, in its order, float64.

    scope: 1 / count(entity), in (0, 1], which sums to the number of entities. variety: -log2 of the share of the row's class,
    bits, from 0 up, whose mean is the entropy. Null for rows without an entity or class.
    counts: of all rows (`key_counts`), if ``table`` is only some of them. StateError if they are of another binding or lack
    a key of ``table``.
    """
    counts = key_counts(table, binding) if counts is None else counts
    if (counts.schema.metadata or {}).get(b"raysel.binding", b"").decode() != binding.to_json():
        raise StateError("These counts were made with another binding; count again.")
    binding.check(table.schema)
    found = {}
    for role in _roles(binding):
        hashes, there = Block(table, binding, None, 1).key(getattr(binding, role))
        known, times = _of(counts, role)
        place, counted = positions(known, hashes)
        if not counted[there].all():
            raise StateError(f"These counts lack a value of {role} that the table has; count all rows first.")
        here = times[place].astype(np.float64) if len(known) else np.ones(len(hashes))
        score = 1.0 / here if role == "entity" else np.log2(max(times.sum(), 1)) - np.log2(here)
        found[_SCORES[role]] = pa.array(score, mask=~there)
    return pa.table(found)


def _roles(binding: Binding) -> list[str]:
    roles = [role for role in _SCORES if getattr(binding, role)]
    if not roles:
        raise ConfigError("binding: Rows can be scored only by entity or classes; bind one of them.")
    return roles


def _counted(role: str, hashes: Array, counts: Array) -> pa.Table:
    return pa.table({"role": pa.array([role] * len(hashes), pa.string()), "hash": hashes, "count": counts})


def _of(counts: pa.Table, role: str) -> tuple[Array, Array]:
    mine = np.asarray(counts["role"].to_numpy(zero_copy_only=False) == role)
    return counts["hash"].to_numpy()[mine], counts["count"].to_numpy()[mine]
