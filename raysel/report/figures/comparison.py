"""Figures of a comparison of policies over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raysel.report.figures.axis import (
    TICK_STEPS,
    percent,
    plain_number,
    set_metric_range,
    set_ticks,
    set_titles,
    thousands,
)
from raysel.report.figures.canvas import WIDTH, add_axes, new_figure, to_png, to_svg
from raysel.report.figures.colours import MUTED
from raysel.report.figures.text import SIZE, draw_words, metric_name, plain, shorten, text_width
from raysel.report.goal import Goal


@dataclass(frozen=True)
class PolicyCurves:
    """Data of one policy for the figures of a comparison.

    Attributes
    ----------
    title, colour : str
        Name of the policy, and the colour of its lines and dots.
    own : bool
        Whether it is the workflow's own policy.
    ends : tuple of (int, float)
        Per seed, the number of back-propagated samples and the reported metric on the test rows after the last epoch.
    curves : tuple of tuple of (int, float)
        Per seed, the number of back-propagated samples and the reported metric on the validation rows after each epoch;
        empty without validation rows.
    """

    title: str
    colour: str
    own: bool
    ends: tuple[tuple[int, float], ...]
    curves: tuple[tuple[tuple[int, float], ...], ...] = ()


def metric_against_samples(policies: Sequence[PolicyCurves], goal: Goal) -> str:
    """Draw the reported metric against the samples back-propagated in a comparison.

    A thin line per seed shows the metric on the validation rows. Without validation rows, a dot per seed shows
    the metric on the test rows after the last epoch.
    """
    if not any(policy.ends for policy in policies):
        return ""
    with new_figure(height=250 + 15.0 * len(_key_rows(policies))) as figure:
        _courses(figure, policies, goal)
        return to_svg(figure, "courses", f"{goal.head} against samples back-propagated, by policy and seed")


def final_metrics(policies: Sequence[PolicyCurves], goal: Goal) -> str:
    """Draw the reported metric on the test rows in a comparison: seeds, mean and standard deviation of each policy.

    A line marks the mean of the workflow's own policy.
    """
    if not any(policy.ends for policy in policies):
        return ""
    with new_figure(height=58 + 44.0 * len(policies)) as figure:
        _ends(figure, policies, goal)
        return to_svg(figure, "ends", f"Final {goal.label} by policy")


def comparison_png(policies: Sequence[PolicyCurves], name: str, goal: Goal, seeds: int) -> bytes:
    """Return both figures of a comparison side by side under the workflow's name, as PNG."""
    head = 34.0
    tall = max(250 + 15.0 * len(_key_rows(policies)), 58 + 44.0 * len(policies))
    with new_figure(tall + head, width=2 * WIDTH + 24) as figure:
        title = f"{plain(name)}: {seeds} seed{'' if seeds == 1 else 's'}"
        figure.text(8 / figure.bbox.width, 1 - 22 / figure.bbox.height, title, fontweight="bold", fontsize=12)
        if any(policy.ends for policy in policies):
            _courses(figure, policies, goal, above=head)
            _ends(figure, policies, goal, before=WIDTH + 24, above=head)
        return to_png(figure)


def _courses(figure: Figure, policies: Sequence[PolicyCurves], goal: Goal, above: float = 0.0) -> None:
    """In the figure's left ``WIDTH`` points, ``above`` points below its top."""
    key = _key_rows(policies)
    for line, words in enumerate(key):
        draw_words(figure, words, left=8, y=figure.bbox.height - above - 14 - 15.0 * line)
    axes = add_axes(
        figure,
        left=44,
        right=figure.bbox.width - WIDTH + 16,
        top=above + 30 + 15.0 * len(key),
        bottom=38,
    )
    validated = any(policy.curves for policy in policies)
    curves = [
        (policy.colour, curve)
        for policy in policies
        for curve in (policy.curves if validated else [(end,) for end in policy.ends])
    ]
    most = max(x for _, curve in curves for x, _ in curve)
    axes.set_xlim(0, 1.03 * most)
    set_metric_range(axes, [curve for _, curve in curves], goal, skip=0.25)
    for colour, curve in curves:
        xs, ys = zip(*curve, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.7)
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markersize=3.5, clip_on=False, zorder=3)
    set_ticks(axes, x=thousands, y=percent if goal.share else plain_number)
    so_far, rows = (" so far", "validation") if validated else ("", "test")
    set_titles(
        axes, x=f"samples back-propagated{so_far}", y=f"{metric_name(goal)} on the {rows} rows{goal.hint}"
    )


def _ends(
    figure: Figure, policies: Sequence[PolicyCurves], goal: Goal, before: float = 0.0, above: float = 0.0
) -> None:
    """From ``before`` points on the left, ``above`` points below the figure's top."""
    room = 0.45 * WIDTH
    step = 44.0
    policies = [policy for policy in policies if policy.ends]
    ends = [policy.ends for policy in policies]
    left = 8 + max(
        *(text_width(shorten(plain(policy.title), room, bold=True), bold=True) for policy in policies),
        70.0,
    )
    bottom = figure.bbox.height - above - 6 - step * len(policies)
    axes = add_axes(figure, left=before + left + 12, right=16, top=above + 6, bottom=bottom, grid="x")
    axes.set_ylim(step * len(policies), 0)
    everything = [y for end in ends for _, y in end]
    spreads = [float(np.std([y for _, y in end], ddof=1)) if len(end) > 1 else 0.0 for end in ends]
    means = [math.fsum(y for _, y in end) / len(end) for end in ends]
    low = min(*everything, *(m - s for m, s in zip(means, spreads, strict=True)))
    high = max(*everything, *(m + s for m, s in zip(means, spreads, strict=True)))
    margin = 0.06 * (high - low) or 0.002 * (abs(high) or 1.0)
    axes.set_xlim(low - margin, high + margin)
    for place, (policy, end) in enumerate(zip(policies, ends, strict=True)):
        y, colour = step * (place + 0.5), policy.colour
        if policy.own:
            axes.axvline(means[place], color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        axes.errorbar(
            means[place], y + 5, xerr=spreads[place], color=colour, marker="|", markersize=11, capsize=0, zorder=3
        )  # fmt: skip
        axes.plot(
            [value for _, value in end],
            [y - 7] * len(end),
            "o",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=colour,
            clip_on=False,
            zorder=4,
        )
        samples = f"{thousands(math.fsum(x for x, _ in end) / len(end))} samples"
        look = {"textcoords": "offset points", "xycoords": ("axes fraction", "data"), "ha": "right"}
        title = shorten(plain(policy.title), room, bold=True)
        axes.annotate(title, (0, y), (-12, 1), color=colour, fontweight="bold", va="bottom", **look)
        axes.annotate(samples, (0, y), (-12, -1), color=MUTED, fontsize=SIZE - 1, va="top", **look)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    write = (lambda value: f"{100 * value:.4g} %") if goal.share else plain_number
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.set_xlabel(
        f"test {metric_name(goal)} after the last epoch{goal.hint}\ndots: seeds; bar: mean ± SD",
        labelpad=5,
        loc="right",  # a long name runs to the left
    )


def _key_rows(policies: Sequence[PolicyCurves]) -> list[list[tuple[str, str]]]:
    """Return the titles in their colours, in as many rows as they take."""
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for policy in policies:
        title = shorten(plain(policy.title), WIDTH - 16, bold=True)
        wide = text_width(title, bold=True) + 10
        if lines[-1] and used + wide > WIDTH - 16:
            lines.append([])
            used = 0.0
        lines[-1].append((title, policy.colour))
        used += wide
    return lines
