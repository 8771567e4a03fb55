"""Scope and granularity: what the rows are about, and how large it is."""

from __future__ import annotations

import numpy as np

from raysel.core.sums import as_float, exact_sums
from raysel.gime.block import Block, Figure, View, absent, share, unbound
from raysel.gime.block import refuse_row as _refuse_row
from raysel.gime.estimates import Estimate, exact
from raysel.gime.keys import LARGE
from raysel.gime.parts import LEAST, MOST


def collect(block: Block) -> None:
    """Collect entities with their times and sizes; sizes; cells that have a value."""
    binding = block.binding
    columns = {}
    if binding.size is not None:
        sizes = block.numbers(binding.size)
        _refuse_row(block, binding.size, sizes < 0, "is a negative size; repair it or replace it with null")
        finite = np.isfinite(sizes)
        block.count("sized", finite)
        block.parts.sums["size"] = exact_sums(block.codes(finite), sizes[finite], block.groups)
        columns["size"] = np.where(finite, sizes + 0.0, -1.0)  # -0.0 becomes 0.0
    if binding.entity:
        entity, named = block.key(binding.entity)
        if binding.event_time is not None:
            happened, there = block.time(binding.event_time)
            columns["first"] = np.where(there, happened, MOST)
            columns["last"] = np.where(there, happened, LEAST)
        if binding.size is not None:  # floats of at least 0 are ordered as their bits are
            block.count("named sized", named & finite)
            block.extremes("size", np.where(finite, sizes + 0.0, 0.0).view(np.int64), named & finite)
        block.count("named", named)
        block.keys("entity", entity, named, **columns)
    for name in cells(block):
        block.count("cells")
        block.count("filled", block.valid(name))


def cells(block: Block) -> list[str]:
    """Return the columns whose cells are counted: the content, or if none is bound all bound columns."""
    return list(block.binding.content) or block.binding.columns


def scope(view: View) -> list[Figure]:
    """Measure what the rows describe: the number of entities, such as customers, and the sum of their sizes.

    ``entities``: Number of different entities.

    ``size``: Sum of the sizes of the entities, in the unit of the column that the binding names as ``size``. If
    an entity has several sizes, the largest one counts. Rows without an entity are left out. With more than
    2,048 entities, the sum is an estimate that agrees with two exact numbers: the largest size of an entity, and
    the sum of the sizes of all rows.

    Both are at least 0. The theory behind GIME, Objective Information Theory, defines the scope as a measure of the size
    of the entities.
    """
    binding = view.binding
    if not binding.entity:
        return unbound("entity", ("entities", "entities"), ("size", "size"))
    named = view.count("named")
    if not named:
        return absent("no row has an entity", ("entities", "entities"), ("size", "size"))
    remark = view.left_out(named, "an entity")
    entities = view.keys("entity")
    found = [Figure("entities", entities.distinct(), "entities", remark)]
    if binding.size is None:
        return [*found, *unbound("size", ("size", "size"))]
    sizes = entities.columns["size"]
    if not (sizes >= 0).any():
        return [*found, *absent(f"no entity has a value in '{binding.size}'", ("size", "size"))]
    total, sized = entities.total(np.maximum(sizes, 0.0)), view.count("named sized")
    if sized < named:
        remark = view.left_out(sized, f"an entity or a finite value in '{binding.size}'")
    if entities.cut:
        greatest = float(np.array(view.high("size"), np.int64).view(np.float64))
        most = max(as_float(view.sum("size")), greatest)
        if greatest > total.bound:  # more than the sample can answer for, and so not in it
            total = Estimate(total.value + greatest, total.low, most)
        total = total.clip(greatest, most)
        if greatest > LARGE * total.value:
            large = (
                f"one entity's {greatest:g} is a large part of the estimate, which is made from a sample; if "
                "the sample lacks others like it, the error is larger than the bound"
            )
            remark = "; ".join(filter(None, (remark, large)))
    return [*found, Figure("size", total, "size", remark)]


def granularity(view: View) -> list[Figure]:
    """Measure how large the entity, such as a customer, is that one row describes; larger is coarser.

    ``mean_size``: Mean size over the rows, in the unit of the column that the binding names as ``size``. The
    theory behind GIME, Objective Information Theory, defines the granularity in this way: as the mean size over the
    smallest parts of the information, which are here the rows.

    ``scope_per_row``: Number of different entities divided by the number of rows with an entity, in (0, 1], for
    data without sizes.

    ``completeness``: Share of the values that are not null, in [0, 1]: in the content columns or, without them,
    in all columns that the binding names.
    """
    binding = view.binding
    size, scope_per_row = ("mean_size", "size"), ("scope_per_row", "entities/row")
    found = []
    if binding.size is None:
        found += unbound("size", size)
    elif not view.count("sized"):
        found += absent(f"no row has a value in '{binding.size}'", size)
    else:
        rows = view.count("sized")
        remark = view.left_out(rows, f"a finite value in '{binding.size}'")
        found.append(Figure("mean_size", exact(as_float(view.sum("size"), rows)), "size", remark))
    if not binding.entity:
        found += unbound("entity", scope_per_row)
    elif not view.count("named"):
        found += absent("no row has an entity", scope_per_row)
    else:
        value = view.keys("entity").distinct() / exact(view.count("named"))
        found.append(
            Figure("scope_per_row", value, "entities/row", view.left_out(view.count("named"), "an entity"))
        )
    if not view.count("cells"):
        return [*found, *absent("there is no row", ("completeness", "share"))]
    return [*found, Figure("completeness", share(view.count("filled"), view.count("cells")), "share")]
