"""Volume, variety and distortion: the stored states, their classes and how far they can be trusted."""

from __future__ import annotations

import numpy as np

from raysel.core.budgets import arrow_bytes
from raysel.gime.block import Block, Figure, View, absent, share, unbound
from raysel.gime.columns import not_finite, row_bytes
from raysel.gime.estimates import exact


def collect(block: Block) -> None:
    """Collect rows and bytes.

    Counts of each state and class; cells that disagree, are missing or out of bounds.
    """
    binding = block.binding
    block.count("rows")
    if block.group is None:
        total = arrow_bytes(block.table.select(binding.columns))
        block.add("bytes", np.full(block.groups, total, np.int64))
    else:
        each = np.sum([row_bytes(block.table[name], name) for name in binding.columns], axis=0)
        block.add("bytes", np.bincount(block.group, each, block.groups).astype(np.int64))
    for name in binding.content:
        there = block.valid(name)
        block.count(f"state {name}", there)
        block.rows_by_key(f"state {name}", [name])
    if binding.classes:
        block.count("classed", block.key(binding.classes)[1])
        block.rows_by_key("classes", binding.classes)
    for name, reference in binding.reference.items():
        known = block.valid(reference)
        block.count("referred", known)
        block.count("disagree", known & (block.hash(name) != block.hash(reference)))
    for name in dict.fromkeys([*binding.content, *binding.bounds]):
        there = block.valid(name)
        infinite, outside = not_finite(block.table[name]), np.zeros(len(there), bool)
        low, high = binding.bounds.get(name, (None, None))
        if low is not None:
            outside |= block.numbers(name) < low
        if high is not None:
            outside |= block.numbers(name) > high
        outside &= there & ~infinite
        block.count("checked")
        block.count("null", ~there)
        block.count("not finite", infinite)
        block.count("out of bounds", outside)


def volume(view: View) -> list[Figure]:
    """Measure how much data there is: number of rows, size in bytes, and entropy.

    ``rows``: Number of rows.

    ``bytes``: Size of the columns that the binding names, in bytes, as Arrow stores their values and offsets.

    ``entropy``: For each content column, the number of rows with a value times the Shannon entropy of the values in
    bits; summed over the columns. For a column with more than 2,048 different values, the entropy is an estimate, which
    lies between the collision entropy of the values and the logarithm of their number.

    All three are at least 0. The theory behind GIME, Objective Information Theory, defines the volume as a measure of the
    size of the stored content.
    """
    found = [
        Figure("rows", exact(view.rows), "rows"),
        Figure("bytes", exact(view.count("bytes")), "bytes"),
    ]
    if not view.binding.content:
        return [*found, *unbound("content", ("entropy", "bits"))]
    total, rows = exact(0.0), 0
    for name in view.binding.content:
        here = view.count(f"state {name}")
        rows += here
        total += view.keys(f"state {name}").entropy(here).through(lambda bits, here=here: here * bits)  # type: ignore[misc]
    if not rows:
        return [*found, *absent("the content columns hold no value", ("entropy", "bits"))]
    return [*found, Figure("entropy", total, "bits")]


def variety(view: View) -> list[Figure]:
    """Count the classes of the rows.

    ``classes``: Number of different classes.

    ``effective_classes``: Number of equally frequent classes that would have the same Shannon entropy as the
    classes of the rows, between 1 and ``classes``: exp of the Shannon entropy in nats.

    Rows without a class are left out. The theory behind GIME, Objective Information Theory, defines the
    variety as the number of groups of equivalent rows. Here, two rows are equivalent if they have the same values in the
    columns that the binding names as ``classes``.
    """
    statistics = (("classes", "classes"), ("effective_classes", "classes"))
    if not view.binding.classes:
        return unbound("classes", *statistics)
    rows = view.count("classed")
    if not rows:
        return absent("no row has a class", *statistics)
    classes, remark = view.keys("classes"), view.left_out(rows, "a class")
    return [
        Figure("classes", classes.distinct(), "classes", remark),
        Figure("effective_classes", classes.entropy(rows).through(lambda bits: 2.0**bits), "classes", remark),
    ]


def distortion(view: View) -> list[Figure]:
    """Measure the share of wrong values: those that differ from a column with correct values, and invalid ones.

    ``disagreement``: Share of the values that differ from the value of their reference column in the same
    row. Rows in which the reference is missing are left out; a missing value counts as different from its
    reference. For example, if the reference column holds the predictions of a model that was not trained on the row,
    ``disagreement`` is the error rate of the model. The theory behind GIME, Objective Information Theory, defines the
    distortion in this way: as the distance between the values and what they should be.

    ``invalid``: Share of the invalid values in the content columns and in the columns with bounds, for data
    without a reference. ``invalid`` is the sum of ``null`` (missing values), ``not_finite`` (NaN and infinite
    values) and ``out_of_bounds`` (values outside of the bounds of their column).

    All shares are in [0, 1].
    """
    found = []
    if not view.binding.reference:
        found += unbound("reference", ("disagreement", "share"))
    elif not view.count("referred"):
        found += absent("no reference has a value", ("disagreement", "share"))
    else:
        found.append(Figure("disagreement", share(view.count("disagree"), view.count("referred")), "share"))
    names = ("null", "not finite", "out of bounds")
    statistics = tuple((name.replace(" ", "_"), "share") for name in ("invalid", *names))
    if not view.binding.content and not view.binding.bounds:
        return [*found, *unbound("content and no bounds", *statistics)]
    if not view.count("checked"):
        return [*found, *absent("there is no row", *statistics)]
    cells, bad = view.count("checked"), [view.count(name) for name in names]
    figures = [share(sum(bad), cells), *(share(part, cells) for part in bad)]
    found += [Figure(name, value, unit) for (name, unit), value in zip(statistics, figures, strict=True)]
    if not view.binding.bounds:
        found[-1] = unbound("bounds", statistics[-1])[0]
    return found
