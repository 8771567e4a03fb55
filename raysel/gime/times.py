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
        "is more than 292 years from the record time of the row; if it is a placeholder, replace it with null",
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
    """Measure how long after the events the rows were recorded, in seconds.

    ``as_defined``: Latest record time minus latest event time. If the binding has a reference time, the reference
    time replaces the latest record time. The value may be negative. The theory behind GIME, Objective Information
    Theory, defines the delay in this way.

    ``max``, ``mean``, ``p50``, ``p95``: Maximum, mean, median and 95 % quantile of the delay of a row (its record
    time minus its event time), over the rows with a delay of at least 0. With more than 2,048 different delays,
    ``p50`` and ``p95`` are estimates: each is the middle of a bin of a histogram.

    ``negative_rows``: Number of rows whose record time is before their event time. Such rows cause a warning, and
    the four statistics above leave them out.
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
        why = "no row has both times" if not negative else "every record time is before the event time"
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
        f"Warning: {negative:,} rows have a record time before their event time, so they may contain "
        "information from the future"
        if negative
        else None
    )
    if not rows and not negative:
        return [*found, *absent("no row has both times", ("negative_rows", "rows"))]
    return [*found, Figure("negative_rows", exact(negative), "rows", alarm)]


def duration(view: View) -> list[Figure]:
    """Measure how much time the events cover.

    ``span``: Latest event time minus earliest event time, in seconds. The theory behind GIME, Objective
    Information Theory, defines the duration in this way.

    ``occupied_days``: Number of calendar days with at least one event. If the times have a zone, the days are
    those of UTC.
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
    """Measure how many events there are per second, in 1/s.

    ``rate``: (Number of different event times - 1) divided by the seconds between the first and the last event.

    ``rate_per_entity``: The same rate within the entities: the sum over the entities of (number of different
    event times of the entity - 1), divided by the sum of the seconds between its first and its last event.

    Both rates are null if there are no two events at different times. The theory behind GIME, Objective
    Information Theory, defines the sampling rate as the number of gaps between the events, divided by
    the total length of the gaps.
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
        found += absent("all events have the same time, so there is no gap between events", rate)
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
        remark = (
            "estimated from a sample of the entities; one entity has a large part of the time, and if the "
            "sample lacks others like it, the error is larger than the bound"
        )
    return [*found, Figure("rate_per_entity", gaps.clip(0, math.inf) / time, "1/s", remark)]
