"""Axis titles, ticks and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from raysel.report.figures.colours import MUTED
from raysel.report.goal import Goal

TICK_STEPS = (1, 2, 2.5, 5, 10)  # ticks people count in


def set_titles(axes: Any, *, x: str, y: str, above: float = 12) -> None:
    """Write the title of x below its axis and that of y above the axes, ``above`` points higher."""
    axes.set_xlabel(x, labelpad=5)
    axes.annotate(
        y,
        (0, 1),
        (-36, above),
        xycoords="axes fraction",
        textcoords="offset points",
        color=MUTED,
        annotation_clip=False,
    )


def set_ticks(axes: Any, *, x: Any, y: Any, integers: bool = False) -> None:
    """Set about five ticks per axis, written by the functions ``x`` and ``y``; ``integers`` is about x."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, integer=integers))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y(value)))


def set_y_range(
    axes: Any, low: float, high: float, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Let the y axis run from one tick to another around the values."""
    if low == high:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    ticks = MaxNLocator(5, steps=TICK_STEPS).tick_values(low, high)
    low = max(max((t for t in ticks if t <= low), default=low), within[0])
    high = min(min((t for t in ticks if t >= high - 1e-9 * (high - low)), default=high), within[1])
    axes.set_ylim(low, high)
    return low, high


def set_metric_range(
    axes: Any, curves: Sequence[Sequence[tuple[float, float]]], goal: Goal, skip: float
) -> tuple[float, float]:
    """Let the y axis show the points (x, y) of each curve but those in the first share ``skip`` of its samples.

    The values of an untrained network would press the rest into a line, so these points may be outside.
    """
    shown = [y for curve in curves for x, y in curve if x >= skip * curve[-1][0]]
    within = (0.0, 1.0) if goal.share else (-math.inf, math.inf)
    return set_y_range(axes, min(shown), max(shown), within=within)


def thousands(value: float) -> str:
    """Return a number with thousands separators, from a million on in millions."""
    return (
        f"{value:,.0f}"
        if abs(value) < 1e6
        else f"{value / 1e6:,.3g} M"
        if abs(value) < 1e9
        else f"{value:.3g}"
    )


def signed(value: float) -> str:
    """Return a number with three digits and a true minus."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "\u2212")


def percent(value: float) -> str:
    """Return a share as a percentage with the digits it needs."""
    return f"{100 * value:g} %"


def plain_number(value: float) -> str:
    """Return a number with the digits it needs and a true minus."""
    return f"{value:,.6g}".replace("-", "\u2212")
