"""Figures of the arms of a run: planned samples, training loss and the reported metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from raysel.report.figures.axis import (
    percent,
    plain_number,
    set_metric_range,
    set_ticks,
    set_titles,
    set_y_range,
    signed,
    thousands,
)
from raysel.report.figures.canvas import WIDTH, add_axes, new_figure, to_svg
from raysel.report.figures.colours import arm_colours
from raysel.report.figures.line_labels import axes_with_labels, label_ends
from raysel.report.figures.text import metric_name, plain, shorten, text_width
from raysel.report.goal import Goal
from raysel.report.results import Arm, Epoch


def plan_sizes(arms: Mapping[str, Arm]) -> str:
    """Draw the samples selected in each epoch, one step line per arm."""
    series = {
        name: [(epoch.epoch, epoch.planned) for epoch in arm.epochs]
        for name, arm in arms.items()
        if arm.epochs
    }
    if not series:
        return ""
    colours = arm_colours(list(arms))
    with new_figure(height=262) as figure:
        axes, labels = axes_with_labels(figure, arms, series)
        last = max(points[-1][0] for points in series.values())
        axes.set_xlim(min(points[0][0] for points in series.values()), last + 1)
        set_y_range(axes, 0, max(y for points in series.values() for _, y in points))
        for arm, points in series.items():
            # An epoch is a stretch, not a moment: its step ends where the next begins.
            xs = [x for x, _ in points] + [points[-1][0] + 1]
            ys = [y for _, y in points] + [points[-1][1]]
            axes.step(xs, ys, where="post", color=colours[arm])
        set_ticks(axes, x=thousands, y=thousands, integers=True)
        set_titles(axes, x="epoch", y="samples selected")
        # Plans are often of equal size at the end: the line that is lower on average then has the lower name.
        series = dict(sorted(series.items(), key=lambda item: sum(y for _, y in item[1]) / len(item[1])))
        label_ends(axes, {a: (p[-1][0] + 1, p[-1][1]) for a, p in series.items()}, labels, colours)
        return to_svg(figure, "plan-sizes", "Samples selected in each epoch")


def loss_curves(arms: Mapping[str, Arm]) -> str:
    """Draw the mean training loss of each epoch, one line per arm; epochs without a loss are left out."""
    series = _series(arms, lambda epoch: epoch.loss)
    if not series:
        return ""
    colours = arm_colours(list(arms))
    with new_figure(height=262) as figure:
        axes, labels = axes_with_labels(figure, arms, series)
        xs = [epoch.epoch for points in series.values() for epoch, _, _ in points]
        axes.set_xlim(min(xs), max(*xs, min(xs) + 1))
        top = max(y for points in series.values() for _, _, y in points)
        bottom = min(y for points in series.values() for _, _, y in points)
        set_y_range(axes, min(bottom, 0.0), max(top, 0.0))
        for arm, points in series.items():
            axes.plot(
                [epoch.epoch for epoch, _, _ in points],
                [y for _, _, y in points],
                color=colours[arm],
                marker="o" if len(points) == 1 else "",
                markersize=5,
                clip_on=False,
            )
        set_ticks(axes, x=thousands, y=signed, integers=True)
        set_titles(axes, x="epoch", y="mean training loss")
        label_ends(axes, {a: (p[-1][0].epoch, p[-1][2]) for a, p in series.items()}, labels, colours)
        return to_svg(figure, "loss", "Training loss in each epoch")


def metric_curves(arms: Mapping[str, Arm], goal: Goal) -> str:
    """Draw the reported metric on the validation rows against the samples back-propagated so far.

    An arm's line ends at the number of samples that it spent.
    """
    series = _series(arms, lambda epoch: goal.value(epoch.metrics))
    points = {arm: [(spent, value) for _, spent, value in found] for arm, found in series.items()}
    return _metrics(arms, points, "validation", goal)


def final_metrics(arms: Mapping[str, Arm], goal: Goal) -> str:
    """Draw the reported metric on the test rows after the last epoch against the samples back-propagated, one dot per arm."""
    points = {
        name: [(sum(epoch.trained for epoch in arm.epochs), value)]
        for name, arm in arms.items()
        if (value := goal.value(arm.metrics)) is not None
    }
    return _metrics(arms, points, "test", goal)


def _metrics(
    arms: Mapping[str, Arm],
    series: Mapping[str, Sequence[tuple[int, float]]],
    rows: Literal["validation", "test"],
    goal: Goal,
) -> str:
    """Draw lines or single dots through the points (samples back-propagated, metric) of each arm."""
    if not series:
        return ""
    colours = arm_colours(list(arms))
    ends = {arm: points[-1] for arm, points in series.items()}
    # Names are above the ends, one per row, and run towards the middle. From the bottom row up: ends on the
    # right from left to right, then those on the left from right to left, so that no stem crosses a name.
    middle = 0.5 * max(x for x, _ in ends.values())
    order = sorted(
        series, key=lambda arm: (ends[arm][0] <= middle, ends[arm][0] * (1 if ends[arm][0] > middle else -1))
    )
    row = 16.0
    with new_figure(height=226 + row * len(order)) as figure:
        axes = add_axes(figure, left=44, right=18, top=34 + row * len(order), bottom=38)
        tall = axes.get_position().height * figure.bbox.height
        most = max(x for x, _ in ends.values()) or 1
        low, high = set_metric_range(axes, list(series.values()), goal, skip=0.0 if goal.share else 0.25)
        axes.set_xlim(0, most * 1.02)
        for arm, points in series.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs,
                ys,
                color=colours[arm],
                marker="o" if len(xs) == 1 else "",
                markersize=5,
                clip_on=not goal.share and len(xs) > 1,
            )
        for place, arm in enumerate(order):
            x, y = ends[arm]
            level = high + (high - low) * (24 + row * place) / tall
            axes.plot(
                [x, x], [y, level], color=colours[arm], linewidth=0.8, alpha=0.7, clip_on=False, zorder=1
            )
            axes.plot([x], [y], "o", color=colours[arm], markersize=5, clip_on=False, zorder=3)
            right = x > middle
            ending = f" {goal.text(y)}"
            place_x = 44 + (WIDTH - 44 - 18) * x / (most * 1.02)
            room = (place_x if right else WIDTH - place_x) - 10 - text_width(ending, bold=True)
            axes.annotate(
                shorten(plain(arms[arm].title or arm), room, bold=True) + ending,
                (x, level),
                (-4 if right else 4, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                color=colours[arm],
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                annotation_clip=False,
            )
        set_ticks(axes, x=thousands, y=percent if goal.share else plain_number)
        so_far = " so far" if rows == "validation" else ""
        # Above the names, since a stem from an end near the left would cross it elsewhere.
        above = 24 + row * (len(order) - 1) + 13
        set_titles(
            axes,
            x=f"samples back-propagated{so_far}",
            y=f"{metric_name(goal)} on the {rows} rows{goal.hint}",
            above=above,
        )
        title = f"{goal.head} on the {rows} rows against samples back-propagated"
        return to_svg(figure, "metric", title)


def _series(
    arms: Mapping[str, Arm], value: Callable[[Epoch], float | None]
) -> dict[str, list[tuple[Epoch, int, float]]]:
    """Return (epoch, samples trained on up to its end, value) of each arm, for epochs in which the value was measured."""
    found = {}
    for name, arm in arms.items():
        spent = accumulate(epoch.trained for epoch in arm.epochs)
        points = [
            (epoch, total, measured)
            for epoch, total in zip(arm.epochs, spent, strict=True)
            if (measured := value(epoch)) is not None and math.isfinite(measured)
        ]
        if points:
            found[name] = points
    return found
