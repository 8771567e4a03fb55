"""Delay, duration and sampling rate: from when things happened and when they were recorded."""

from __future__ import annotations

import math

import numpy as np

from raysel.core.hashing import hash_integers
from raysel.core.sums import integer_sums
from raysel.errors import DataError
from raysel.gime.block import Block, Figure, Mask, View, absent, refuse_row, unbound
from raysel.gime.columns import NOTHING, Array, code_integers, combine
from raysel.gime.estimates import Estimate, exact
from raysel.gime.keys import LARGE
from raysel.gime.parts import MOST

SECOND, DAY = 10**9, 86_400 * 10**9
_DELAY = tuple((name, "s") for name in ("as_defined", "max", "mean", "p50", "p95"))


def collect(block: Block) -> None:
    """Collect distinct moments and days, extremes, and the rows' delays."""
    binding = block.binding
    if binding.event_time is None:
        if binding.record_time is not None:  # text is a time once it is read, for the schema too
            block.time(binding.record_time)
        return
    happened, there = block.time(binding.event_time)
    block.count("event", there)
    block.extremes("event", happened, there)
    moments = hash_integers(happened)
    block.keys("moments", moments, there)
    days = happened // DAY
    few = code_integers(days)
    if few is None:
        block.keys("days", hash_integers(days), there)
    else:
        block.coded_keys("days", few, there, counted=False)
    if block.scale is not None:
        block.histogram("event", happened, there, relative=False)
    if binding.entity:
        entity, named = block.key(binding.entity)
        block.keys("entity moments", combine([entity, moments], len(entity)), there & named)
    if binding.record_time is not None:
        recorded, written = block.time(binding.record_time)
        _same_zone(block, binding.event_time, binding.record_time)
        block.count("record", written)
        block.extremes("record", recorded, written)
        _delays(block, happened, recorded, there & written)
    elif binding.reference_time is not None:
        moment, zone = binding.reference_moment()
        if block.kinds[binding.event_time] not in (zone, NOTHING):
            raise DataError(
                f"Column '{binding.event_time}' holds {block.kinds[binding.event_time]}, but binding.reference_time is a "
                f"{zone} ({binding.reference_time}); write both with a zone, or neither."
            )
        _delays(block, happened, np.full(len(happened), moment), there)


def _same_zone(block: Block, one: str, other: str) -> None:
    kinds = {block.kinds[one], block.kinds[other]} - {NOTHING}
    if len(kinds) > 1:
        raise DataError(
            f"Column '{one}' holds {block.kinds[one]} and column '{other}' {block.kinds[other]}, so their difference is not defined; "
            "give both a zone, or neither."
        )


def _delays(block: Block, happened: Array, recorded: Array, where: Mask) -> None:
    with np.errstate(over="ignore"):
        delay = recorded - happened
    over = where & ((recorded >= happened) != (delay >= 0))
    refuse_row(
        block,
        str(block.binding.event_time),
        over,
        "is more than 292 years from its record; replace placeholders with null",
    )
    good = where & (delay >= 0)
    block.count("delays", good)
    block.count("negative delays", where & ~good)
    block.extremes("delay", delay, good)
    block.histogram("delay", delay, good, relative=True)
    block.parts.sums["delay"] = integer_sums(
        block.codes(good), delay if good.all() else delay[good], block.groups
    )


def _seconds(nanoseconds: int) -> Estimate:
    return exact(nanoseconds / SECOND)


def _per_second(per_nanosecond: float) -> float:
    return per_nanosecond * SECOND


def delay(view: View) -> list[Figure]:
    """Compute how long after things happened they were recorded (OIT: sup T_m - sup T_h), in seconds.

    ``as_defined``: max(record_time) - max(event_time), or reference_time - max(event_time); may be negative.
    In addition, of the rows' own record - event that are not negative, from 0 up: ``max``, ``mean``, ``p50``
    and ``p95`` (the least delay that such a share of rows does not exceed; exact up to 2,048 different
    delays, else the middle of its bin). ``negative_rows`` counts the other rows, from 0 up: a record before
    its event is an alarm, and is not in any of these four.
    """
    binding = view.binding
    if binding.event_time is None or (binding.record_time is None and binding.reference_time is None):
        role = "event_time" if binding.event_time is None else "record_time or reference_time"
        return unbound(role, *_DELAY, ("negative_rows", "rows"))
    last = view.high("event")
    if binding.record_time is not None:
        recorded = view.high("record")
        source = f"'{binding.record_time}'"
    else:
        recorded, source = binding.reference_moment()[0], "reference_time"
    found = []
    if last is None or recorded is None:
        nothing = f"'{binding.event_time}'" if last is None else source
        found += absent(f"no row has a value in {nothing}", _DELAY[0])
    else:
        early = "Warning: the last record is before the last event" if recorded < last else None
        found.append(Figure("as_defined", _seconds(recorded - last), "s", early))
    rows, negative = view.count("delays"), view.count("negative delays")
    if not rows:
        why = "no row has both times" if not negative else "every record is before its event"
        found += absent(why, *_DELAY[1:])
    else:
        remark = view.left_out(rows, "a delay of 0 or more")
        spread = view.histogram("delay")
        longest = view.high("delay")
        assert longest is not None
        figures = {
            "max": _seconds(longest),
            "mean": exact(view.sum("delay") / rows / SECOND),
            "p50": spread.quantile(0.5).clip(0, longest).through(lambda ns: ns / SECOND),
            "p95": spread.quantile(0.95).clip(0, longest).through(lambda ns: ns / SECOND),
        }
        found += [Figure(name, value, "s", remark) for name, value in figures.items()]
    alarm = (
        f"Warning: {negative:,} rows have a record time before their event time, which may leak the future"
        if negative
        else None
    )
    if not rows and not negative:
        return [*found, *absent("no row has both times", ("negative_rows", "rows"))]
    return [*found, Figure("negative_rows", exact(negative), "rows", alarm)]


def duration(view: View) -> list[Figure]:
    """Compute how much time is covered (OIT: sup T_h - inf T_h).

    ``span``: max(event_time) - min(event_time), seconds, from 0 up. ``occupied_days``: days of the calendar
    (in UTC if times have a zone) with at least one event, from 1 up.
    """
    statistics = (("span", "s"), ("occupied_days", "days"))
    column = view.binding.event_time
    if column is None:
        return unbound("event_time", *statistics)
    first, last = view.low("event"), view.high("event")
    if first is None or last is None:
        return absent(f"no row has a value in '{column}'", *statistics)
    remark = view.left_out(view.count("event"), f"a value in '{column}'")
    return [
        Figure("span", _seconds(last - first), "s", remark),
        Figure("occupied_days", view.keys("days").distinct(), "days", remark),
    ]


def sampling_rate(view: View) -> list[Figure]:
    """Compute how densely time is sampled (OIT: gaps per unit of gap time), in 1/s, above 0.

    ``rate``: (distinct event times - 1) / span. ``rate_per_entity``: all gaps within entities by all their
    time, that is the sum over entities of (distinct times - 1) by the sum of their spans. Null if there is no
    gap.
    """
    rate, each = ("rate", "1/s"), ("rate_per_entity", "1/s")
    column = view.binding.event_time
    if column is None:
        return unbound("event_time", rate, each)
    first, last = view.low("event"), view.high("event")
    if first is None or last is None:
        return absent(f"no row has a value in '{column}'", rate, each)
    found = []
    if first == last:
        found += absent("all events are at one moment, so there is no gap", rate)
    else:
        gaps = view.keys("moments").distinct() + exact(-1)
        remark = view.left_out(view.count("event"), f"a value in '{column}'")
        found.append(Figure("rate", (gaps / exact(last - first)).through(_per_second), "1/s", remark))
    if not view.binding.entity:
        return [*found, *unbound("entity", each)]
    entities = view.keys("entity")
    begin, end = entities.columns["first"], entities.columns["last"]
    timed = begin != MOST
    spans = np.where(timed, (end.view(np.uint64) - begin.view(np.uint64)).astype(np.float64), 0.0) / SECOND
    time = entities.total(spans)
    if time.value == 0:
        return [*found, *absent("no entity has events at two moments", each)]
    gaps = view.keys("entity moments").distinct() + -entities.total(timed.astype(np.float64))
    remark = None
    if entities.cut and spans.max() > LARGE * time.value:
        remark = "one entity's time is a large part, and others like it may be missing from the sample and from the bound"
    return [*found, Figure("rate_per_entity", gaps.clip(0, math.inf) / time, "1/s", remark)]
