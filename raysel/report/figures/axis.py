"""Axis titles, ticks and ranges."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from raysel.report.figures.colours import MUTED

TICK_STEPS = (1, 2, 2.5, 5, 10)  # ticks people count in


def set_titles(axes: Any, *, x: str, y: str, above: float = 12) -> None:
    """Write the title of x below its axis and that of y above the axes, ``above`` points higher."""
    """Write the title of x below its axis and that of y above the axes, ``above`` points higher."""
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
    """Set about five ticks per axis, written by the functions ``x`` and ``y``; ``integers`` is about x."""
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


def thousands(value: float) -> str:
    """Return a number with thousands separators, from a million on in millions."""
    """Return a number with thousands separators, from a million on in millions."""
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
