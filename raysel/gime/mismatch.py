"""Mismatch: how far a table is from a target table, component by component."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysel.core.arrays import positions
from raysel.core.sums import exact_sum
from raysel.errors import DataError
from raysel.gime import links
from raysel.gime.block import Block, Figure, View, absent, unbound
from raysel.gime.columns import NOTHING, Array, one_kind
from raysel.gime.estimates import SIGMAS, Estimate, exact
from raysel.gime.histograms import distribution_distance
from raysel.gime.keys import Sample
from raysel.gime.waves import kernel_distance, waves

_COMPONENTS = (
    ("entities", "share"),
    ("time", "share"),
    ("states", "distance"),
    ("labels", "share"),
    ("schema", "share"),
)


def collect(block: Block) -> None:
    """Collect Fourier features of the numeric content, in the target's scale."""
    if not block.scale:
        return
    usable = all(_numeric(block.kinds.get(name, "")) for name in block.scale)
    points = features(block, block.scale) if usable else np.empty((0, 1))
    finite = np.isfinite(points)
    good = np.ones(len(points), bool) if finite.all() else np.logical_and.reduce(finite, axis=1)
    if usable:
        block.count("waving", good)
        block.parts.waves["content"] = waves(
            block.codes(good), points if good.all() else points[good], block.groups
        )
    else:
        block.count("waving", np.zeros(block.table.num_rows, bool))
        block.parts.waves["content"] = waves(None, points, block.groups)


def numeric(kinds: dict[str, str], content: Sequence[str]) -> list[str]:
    """Return the content columns that hold numbers, or lists of them."""
    return [name for name in content if kinds[name] != NOTHING and _numeric(kinds[name])]


def _numeric(kind: str) -> bool:
    return kind in ("number", "bool", NOTHING, "list of number") or kind.startswith("decimal")


def features(block: Block, scale: dict[str, tuple[Sequence[float], float]]) -> Array:
    """Return the columns of ``scale``, centred and divided by their spread, float64 (n, d).

    NaN for a missing value.
    """
    parts = []
    for name, (centres, spread) in scale.items():
        values = block.numbers(name)
        if values.ndim == 1:
            values = values[:, None]
        if not np.isfinite(values).any():  # a block without a value does not know how wide its vectors are
            values = np.full((len(values), len(centres)), np.nan)
        if values.shape[1] != len(centres):
            raise DataError(
                f"Column '{name}' holds vectors of {values.shape[1]} elements, but those of the target have {len(centres)}; "
                "compute both in the same way."
            )
        parts.append((values - np.asarray(centres)) / spread)
    return np.concatenate(parts, axis=1)


def scale_of(block: Block) -> dict[str, tuple[tuple[float, ...], float]]:
    """Return the centres of each numeric content column of a target, and its spread.

    The spread is the root mean square over its coordinates of their standard deviations, 1 if all rows are
    equal.
    """
    found = {}
    for name in numeric(block.kinds, block.binding.content):
        values = block.numbers(name)
        values = values.reshape(len(values), -1)
        values = values[np.isfinite(values).all(axis=1)]
        if values.size:
            constant = (values == values[0]).all(
                axis=0
            )  # whose mean, and so variance, would be off by rounding
            centres = np.where(constant, values[0], values.mean(axis=0))
            spread = math.sqrt(float(np.where(constant, 0.0, values.var(axis=0)).mean()))
            if not math.isfinite(spread):
                raise DataError(
                    f"Column '{name}' of the target holds numbers that are too large to compare; rescale it."
                )
            found[name] = (tuple(centres.tolist()), spread or 1.0)
    return found


def mismatch(view: View) -> list[Figure]:
    """Measure how different the rows are from the target; 0 if they agree.

    ``entities``: 1 - (number of common entities) / (number of all entities), the Jaccard distance.

    ``time``: Kolmogorov-Smirnov distance of the event times.

    ``states``: Maximum mean discrepancy (MMD) of the numeric content columns, in [0, sqrt 2]. Each column is
    scaled by the mean and the standard deviation of the target. The kernel is exp(-|x - y|^2 / 2d) for d
    dimensions, approximated by 64 random Fourier features. Rows without a value in one of the columns are left
    out.

    ``labels``: Total variation distance of the class shares.

    ``schema``: Share of the columns named by the binding that the target does not have, or has with another type.

    ``overall``: Mean of the statistics above that could be computed, with ``states`` divided by sqrt 2. The
    mean is our own choice and not from the publication.

    All statistics except ``states`` are in [0, 1]. The column ``bound`` of the result contains the error of
    each. The theory behind GIME, Objective Information Theory, defines the mismatch as the distance of the
    information from the target information.
    """
    target = view.target
    if target is None:
        return unbound("target", *_COMPONENTS, ("overall", "share"))
    found = [_entities(view, target), _time(view, target), _states(view, target), _labels(view, target)]
    there = view.binding.columns
    differ = [name for name in there if not _same(view, target, name)]
    remark = f"differing: {', '.join(differ)}" if differ else None
    found.append(Figure("schema", exact(len(differ) / len(there)), "share", remark))
    known = [
        f.value.through(lambda d: d / math.sqrt(2)) if f.statistic == "states" else f.value
        for f in found
        if f.value
    ]
    total = sum(known, exact(0.0)).through(lambda value: value / len(known))
    components = [figure.statistic for figure in found if figure.value]
    return [*found, Figure("overall", total, "share", f"mean of {', '.join(components)}")]


def coverage(view: View) -> list[Figure]:
    """Count the copies of each row content, and the share of the target rows whose class occurs in the pool.

    The content of a row is its values in all content columns. Two nulls are equal.

    ``copies_per_content``: Number of rows divided by the number of different contents.

    ``duplicate_share``: 1 - 1 / ``copies_per_content``.

    ``carriers``: Number of different pairs of a content and a carrier. The carrier is where a row is stored, such
    as a file.

    ``carriers_per_content``: ``carriers`` divided by the number of different contents.

    ``support_coverage``: Share of the target's rows whose class occurs in the pool, in [0, 1]. The theory behind
    GIME, Objective Information Theory, defines coverage by the copies and their carriers, not in this way.
    """
    return [*links.coverage(view), *support_coverage(view)]


def support_coverage(view: View) -> list[Figure]:
    """Compute the share of the target's rows whose class is in the table, in [0, 1].

    This is not OIT's coverage, which counts copies; it is here because the word is used for both.
    """
    statistic = ("support_coverage", "share")
    if view.target is None:
        return unbound("target", statistic)
    why = _missing(view, view.target, view.binding.classes, "classes")
    why = why or _no_row(view, view.target, "classed", "has a class")
    if why:
        return absent(why, statistic)
    here, there = view.keys("classes"), view.target.keys("classes")
    hashes, share = _common(here, there)
    reached = _looked_up(there, hashes) * (_looked_up(here, hashes) > 0) / view.target.count("classed")
    value = _scaled(reached, share).clip(0, 1)
    return [Figure(*_named(statistic, value), _uneven(view, view.target))]


def _named(statistic: tuple[str, str], value: Estimate) -> tuple[str, Estimate, str]:
    return statistic[0], value, statistic[1]


def _same(view: View, target: View, name: str) -> bool:
    return name in target.kinds and one_kind(view.kinds[name], target.kinds[name]) is not None


def _missing(view: View, target: View, columns: Sequence[str], role: str) -> str | None:
    """Return why two tables cannot be compared in these columns."""
    if not columns:
        return f"the binding names no {role}"
    for name in columns:
        if name not in target.kinds:
            return f"the target has no column '{name}'"
        if not _same(view, target, name):
            return f"column '{name}' holds {view.kinds[name]}, but {target.kinds[name]} in the target"
    return None


def _no_row(view: View, target: View, counted: str, does: str) -> str | None:
    """Return why there is nothing to compare: no row of one of the tables has been counted."""
    if view.count(counted) and target.count(counted):
        return None
    return f"no row {'of the target ' if view.count(counted) else ''}{does}"


def _entities(view: View, target: View) -> Figure:
    why = _missing(view, target, view.binding.entity, "entity")
    why = why or _no_row(view, target, "named", "has an entity")
    if why:
        return Figure("entities", None, "share", why)
    return Figure("entities", set_distance(view.keys("entity"), target.keys("entity")), "share")


def _time(view: View, target: View) -> Figure:
    column = view.binding.event_time
    why = _missing(view, target, [column] if column else [], "event_time")
    why = why or _no_row(view, target, "event", f"has a value in '{column}'")
    if why:
        return Figure("time", None, "share", why)
    return Figure("time", distribution_distance(view.histogram("event"), target.histogram("event")), "share")


def _states(view: View, target: View) -> Figure:
    scale = view.binding.target.scale if view.binding.target else {}
    why = None
    if not scale:
        why = (
            "the binding names no content"
            if not view.binding.content
            else "no content column of the target holds numbers"
        )
    else:
        why = _missing(view, target, list(scale), "content")
    why = why or _no_row(view, target, "waving", f"has a number in all of {', '.join(scale)}")
    if why:
        return Figure("states", None, "distance", why)
    rows = view.count("waving")
    value = kernel_distance(
        view.parts.waves["content"][view.group],
        rows,
        target.parts.waves["content"][target.group],
        target.count("waving"),
    )
    return Figure(
        "states", value, "distance", view.left_out(rows, f"a number in one or more of {', '.join(scale)}")
    )


def _labels(view: View, target: View) -> Figure:
    why = _missing(view, target, view.binding.classes, "classes")
    why = why or _no_row(view, target, "classed", "has a class")
    if why:
        return Figure("labels", None, "share", why)
    here, there = view.keys("classes"), target.keys("classes")
    hashes, share = _common(here, there)
    gaps = _looked_up(here, hashes) / view.count("classed") - _looked_up(there, hashes) / target.count(
        "classed"
    )
    value = _scaled(np.abs(gaps) / 2, share).clip(0, 1)
    return Figure("labels", value, "share", _uneven(view, target))


def _uneven(*views: View) -> str | None:
    if not any(view.keys("classes").uneven(view.count("classed")) for view in views):
        return None
    return (
        "estimated from a sample of the classes; a few classes have a large part of the rows, and if the "
        "sample lacks them, the error is larger than the bound"
    )


def set_distance(one: Sample, other: Sample) -> Estimate:
    """Return 1 - |common| / |all| of two sets of keys.

    From the smallest hashes of their union if one is cut.
    """
    every = _union(one, other)
    if one.cut or other.cut:
        every = every[: max(len(s.hash) for s in (one, other) if s.cut)]
    common = int((_place(one, every)[1] & _place(other, every)[1]).sum())
    if not (one.cut or other.cut):
        return exact(1 - common / len(every))
    value = 1 - common / len(every)
    error = SIGMAS * math.sqrt(value * (1 - value) / len(every)) + SIGMAS / len(every)
    return Estimate(value, value - error, value + error).clip(0, 1)


def _common(one: Sample, other: Sample) -> tuple[Array, float]:
    """Return the hashes of both samples below which neither lacks a key, and the share of all keys below."""
    every = _union(one, other)
    cuts = [s.hash[-1] for s in (one, other) if s.cut]
    if not cuts:
        return every, 1.0
    return every[every < min(cuts)], (float(min(cuts)) + 1.0) / 2.0**64


def _union(one: Sample, other: Sample) -> Array:
    every = np.sort(np.concatenate([one.hash, other.hash]))
    return every[np.append(every[1:] != every[:-1], True)]


def _place(sample: Sample, hashes: Array) -> tuple[Array, Array]:
    """Return where each hash would be in a sample that is not empty, and whether it is there."""
    return positions(sample.hash, hashes)


def _looked_up(sample: Sample, hashes: Array) -> Array:
    """Return the count of each hash; 0 if the sample does not have it."""
    place, there = _place(sample, hashes)
    return np.where(there, sample.columns["count"][place], 0)


def _scaled(values: Array, share: float) -> Estimate:
    if share == 1.0:
        return exact(exact_sum(values))
    value = exact_sum(values) / share
    error = SIGMAS * math.sqrt((1 - share) * exact_sum(values * values)) / share
    return Estimate(value, value - error, value + error)
