"""Aggregation and coverage: how states relate to one another, and in how many copies they are kept."""

from __future__ import annotations

import numpy as np

from raysel.gime.block import Block, Figure, View, absent, unbound
from raysel.gime.columns import combine
from raysel.gime.estimates import Estimate, exact
from raysel.gime.keys import Sample

_COPIES = (
    ("copies_per_content", "rows/content"),
    ("duplicate_share", "share"),
    ("carriers", "carriers"),
    ("carriers_per_content", "carriers/content"),
)


def collect(block: Block) -> None:
    """Collect rows that share a relation key; distinct contents, and the number of carriers of each."""
    binding = block.binding
    for name in binding.relation:
        block.count(f"related {name}", block.valid(name))
        block.rows_by_key(f"relation {name}", [name])
    if binding.content:
        content = combine([block.hash(name) for name in binding.content], block.table.num_rows)
        block.keys("content", content)
        if binding.carrier:
            carrier, held = block.key(binding.carrier)
            block.count("carried", held)
            block.keys("carried content", content, held)
            block.keys("carriers", combine([content, carrier], len(content)), held)


def pairs(sample: Sample, rows: int) -> Estimate:
    """Return the pairs of rows with the same key, sum of c (c - 1) / 2.

    Exact beyond int64 too, by AMS if cut.
    """
    squares = sample.squares()
    if sample.tug is None:  # the difference of two large integers, not of two floats
        counts = sample.columns["count"].tolist()
        return exact(sum(c * (c - 1) // 2 for c in counts))
    return squares.through(lambda total: max(total - rows, 0.0) / 2)


def aggregation(view: View) -> list[Figure]:
    """Count the pairs of related rows, which have the same value in a column that the binding calls a relation.

    ``pairs``: Number of such pairs, summed over the relation columns.

    ``pairs_per_row``: ``pairs`` divided by the number of rows. The theory behind GIME, Objective Information
    Theory, defines the aggregation in this way: as the number of relations divided by the number of states, which are
    here the rows.

    ``linked_share[column]``: Share of the rows that have the same value in this column as at least one other row.

    Rows with a null are not related to other rows. If a column has more than 2,048 different values, the number
    of pairs is an estimate. Its error is up to 5 % of the sum of the squares of the numbers of rows per value. If almost
    every value occurs only once, the error is larger than the number of pairs. The column ``bound`` of the result
    contains the error.
    """
    names = view.binding.relation
    statistics = (("pairs", "pairs"), ("pairs_per_row", "pairs/row"))
    if not names:
        return unbound("relation", *statistics, ("linked_share", "share"))
    each = tuple((f"linked_share[{name}]", "share") for name in names)
    if not view.rows:
        return absent("there is no row", *statistics, *each)
    total, linked = exact(0), []
    for (statistic, unit), name in zip(each, names, strict=True):
        sample, related = view.keys(f"relation {name}"), view.count(f"related {name}")
        total += pairs(sample, related)
        alone = sample.total((sample.columns["count"] == 1).astype(np.float64))
        part = (exact(related) + -alone).clip(0, related)
        linked.append(Figure(statistic, part / exact(view.rows), unit))
    if not sum(view.count(f"related {name}") for name in names):
        return absent("the relation columns hold no value", *statistics, *each)
    per_row = total / exact(view.rows)
    return [Figure("pairs", total, "pairs"), Figure("pairs_per_row", per_row, "pairs/row"), *linked]


def coverage(view: View) -> list[Figure]:
    """Count the copies of each content (OIT: the sum of carriers over all copies).

    ``copies_per_content``: rows divided by distinct contents, from 1 up; ``duplicate_share``: 1 less its
    inverse, in [0, 1). ``carriers``: distinct (content, carrier) pairs, from 1 up, and
    ``carriers_per_content``. Contents are equal if all content columns are, null with null; for near
    duplicates bind a column of cells. This is not how much of a target's support is reached, which is
    ``support_coverage`` under mismatch.
    """
    binding = view.binding
    if not binding.content:
        return unbound("content", *_COPIES)
    if not view.rows:
        return absent("there is no row", *_COPIES)
    contents = view.keys("content").distinct().clip(1, view.rows)
    copies = exact(view.rows) / contents
    found = [
        Figure("copies_per_content", copies, "rows/content"),
        Figure("duplicate_share", copies.through(lambda each: 1 - 1 / each), "share"),
    ]
    if not binding.carrier:
        return [*found, *unbound("carrier", *_COPIES[2:])]
    held = view.count("carried")
    if not held:
        return [*found, *absent("no row has a carrier", *_COPIES[2:])]
    remark = view.left_out(held, "a carrier")
    carriers, carried = view.keys("carriers").distinct(), view.keys("carried content").distinct()
    return [
        *found,
        Figure("carriers", carriers, "carriers", remark),
        Figure("carriers_per_content", (carriers / carried).clip(1, held), "carriers/content", remark),
    ]
