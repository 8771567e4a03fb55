"""Scores per row: a second pass over the rows, with the counts of the first."""

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
    """Count how often each entity and class occurs, exactly.

    Unlike the states of the metrics, the counts grow with the number of distinct keys, 16 bytes each.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the bound columns.
    binding : Binding
        What the columns mean.

    Returns
    -------
    pyarrow.Table
        ``role`` (text), ``hash`` (uint64) and ``count`` (int64).

    Raises
    ------
    ConfigError
        If neither ``entity`` nor ``classes`` is bound.
    """
    binding.check(table.schema)
    found = []
    for role in _roles(binding):
        hashes, there = Block(table, binding, None, 1).key(getattr(binding, role))
        keys = gather_keys(None, hashes[there], 1, None, count=1)
        found.append(_counted(role, keys.hash, keys.columns["count"]))
    return pa.concat_tables(found).replace_schema_metadata({"raysel.binding": binding.to_json()})


def merge_key_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the counts of the rows of all tables, in any order.

    Raise StateError for counts of different bindings.
    """
    metadata = tables[0].schema.metadata
    if any(table.schema.metadata != metadata for table in tables):
        raise StateError(
            "These counts of entities and classes were made with different bindings, so they cannot be "
            "joined; count again."
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
    """Score each row for the metrics that have a score per row.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the bound columns.
    binding : Binding
        What the columns mean.
    counts : pyarrow.Table, optional
        Counts of all rows (`raysel.gime.key_counts`), if ``table`` has only some of them.

    Returns
    -------
    pyarrow.Table
        One row per row of ``table``, in its order, float64; null for rows without an entity or class.
        ``scope`` is 1 / count(entity), in (0, 1], and sums to the number of entities. ``variety`` is -log2 of
        the share of the row's class, in bits, from 0 up; its mean is the entropy.

    Raises
    ------
    StateError
        If the counts are of another binding or lack a key of ``table``.
    """
    counts = key_counts(table, binding) if counts is None else counts
    if (counts.schema.metadata or {}).get(b"raysel.binding", b"").decode() != binding.to_json():
        raise StateError("These counts of entities and classes were made with another binding; count again.")
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
        raise ConfigError(
            "binding: Rows are scored by their entity and their class, but the binding names neither; name "
            "entity or classes."
        )
    return roles


def _counted(role: str, hashes: Array, counts: Array) -> pa.Table:
    return pa.table({"role": pa.array([role] * len(hashes), pa.string()), "hash": hashes, "count": counts})


def _of(counts: pa.Table, role: str) -> tuple[Array, Array]:
    mine = np.asarray(counts["role"].to_numpy(zero_copy_only=False) == role)
    return counts["hash"].to_numpy()[mine], counts["count"].to_numpy()[mine]
