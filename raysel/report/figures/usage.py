"""Figures of how often a run used its samples, and of RepDiv's schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raysel.report.figures.axis import (
    TICK_STEPS,
    percent,
    set_ticks,
    set_titles,
    set_y_range,
    signed,
    thousands,
)
from raysel.report.figures.canvas import add_axes, new_figure, to_svg
from raysel.report.figures.colours import ARM_COLOURS, GRID, MUTED, OTHER_COLOURS
from raysel.report.figures.text import draw_words, plain
from raysel.report.results import PolicyUse

_MOST_BINS = 100

_USES = (ARM_COLOURS["chain"], ARM_COLOURS["random"], OTHER_COLOURS[0])


def usage_histogram(policies: Sequence[PolicyUse]) -> str:
    """Draw the number of samples by how often a run selected them, one step line per policy."""
    shown = [policy for policy in policies if policy.times]
    if not shown:
        return ""
    most = max(policy.times[-1][0] for policy in shown)
    wide = -(-(most + 1) // _MOST_BINS)  # of a bin, in times
    edges = np.arange(0, most + wide + 1, wide)
    with new_figure(height=262 + 15.0 * (len(shown) - 1)) as figure:
        axes = _keyed_axes(figure, [f"{policy.title}: Gini {policy.gini:.3f}" for policy in shown])
        axes.set_xlim(-0.5, edges[-1] + 0.5)
        highest = 0
        for policy, colour in zip(shown, _USES, strict=False):
            often, samples = zip(*policy.times, strict=True)
            counts, _ = np.histogram(often, edges, weights=samples)
            highest = max(highest, int(counts.max()))
            axes.stairs(counts, edges - 0.5, color=colour, linewidth=1.6)
        set_y_range(axes, 0, highest)
        set_ticks(axes, x=thousands, y=thousands, integers=True)
        set_titles(axes, x="number of epochs in which a sample was selected", y="samples")
        return to_svg(figure, "usage", "Samples by how often they were selected")


def rare_seen(policies: Sequence[PolicyUse]) -> str:
    """Draw the share of the rare factors that a run had seen after each epoch, one line per policy."""
    shown = [policy for policy in policies if policy.rare]
    if not shown:
        return ""
    with new_figure(height=262 + 15.0 * (len(shown) - 1)) as figure:
        axes = _keyed_axes(figure, [policy.title for policy in shown])
        epochs = max(len(policy.rare) for policy in shown)
        axes.set_xlim(0, epochs)
        low = min(min(policy.rare) for policy in shown)
        set_y_range(axes, min(low, 0.95), 1.0, within=(0.0, 1.0))
        for policy, colour in zip(shown, _USES, strict=False):
            axes.plot(range(1, len(policy.rare) + 1), policy.rare, ".-", color=colour, clip_on=False)
        set_ticks(axes, x=thousands, y=percent, integers=True)
        set_titles(axes, x="epochs trained", y="share of rare factors selected so far")
        return to_svg(figure, "rare", "Share of the rare factors seen so far")


def alpha_curve(alpha: Sequence[float], epochs: int) -> str:
    """Draw the weight of representativeness in each epoch; from ``len(alpha)`` on, epochs train on all the data."""
    if not alpha:
        return ""
    with new_figure(height=262) as figure:
        axes = add_axes(figure, left=46, right=18, top=30, bottom=38)
        axes.set_xlim(0, epochs)
        axes.set_ylim(0, 1)
        axes.step(
            range(len(alpha) + 1),
            [*alpha, alpha[-1]],
            where="post",
            color=ARM_COLOURS["chain"],
            clip_on=False,
        )
        if epochs > len(alpha):
            axes.axvspan(len(alpha), epochs, color=GRID, zorder=0, linewidth=0)
            axes.text((len(alpha) + epochs) / 2, 0.5, "all the data", rotation=90, ha="center", va="center", color=MUTED)  # fmt: skip
        set_ticks(axes, x=thousands, y=signed, integers=True)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS, integer=True))
        set_titles(axes, x="epoch", y="alpha, the weight of Rep")
        return to_svg(figure, "alpha", "Weight of representativeness in each epoch")


def _keyed_axes(figure: Figure, names: Sequence[str]) -> Any:
    """Return axes below a key with one line per name."""
    for line, (name, colour) in enumerate(zip(names, _USES, strict=False)):
        draw_words(figure, [(plain(name), colour)], left=8, y=figure.bbox.height - 14 - 15.0 * line)
    return add_axes(figure, left=46, right=18, top=30 + 15.0 * len(names), bottom=38)
