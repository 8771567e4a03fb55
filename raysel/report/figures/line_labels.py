"""Names at the ends of lines, pushed apart where they would overlap."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure

from raysel.report.figures.canvas import add_axes
from raysel.report.figures.text import plain, text_width
from raysel.report.results import Arm

_LINE = 13.2  # points from one line of a label to the next


def axes_with_labels(
    figure: Figure, arms: Mapping[str, Arm], series: Mapping[str, Any]
) -> tuple[Any, dict[str, list[str]]]:
    """Axes with room on the right for the names of the lines, and those names in lines of their own."""
    labels = {}
    for arm in series:
        lines = textwrap.wrap(plain(arms[arm].title or arm), 15, max_lines=3, placeholder="…")
        labels[arm] = lines or [arm]
    room = max(text_width(line, bold=True) for lines in labels.values() for line in lines)
    return add_axes(figure, left=46, right=room + 16, top=30, bottom=38), labels


def label_ends(
    axes: Any,
    ends: Mapping[str, tuple[float, float]],
    labels: Mapping[str, list[str]],
    colours: Mapping[str, str],
) -> None:
    """Names at the ends of the lines, pushed apart where they would overlap."""
    box = axes.get_position()
    tall = box.height * axes.figure.bbox.height
    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    order = sorted(ends, key=lambda arm: (ends[arm][1], list(ends).index(arm)))
    heights = [_LINE * len(labels[arm]) + 3 for arm in order]
    wanted = [tall * (ends[arm][1] - bottom) / (top - bottom) for arm in order]
    for arm, place in zip(order, spread(wanted, heights, tall), strict=True):
        x, y = ends[arm]
        level = bottom + (top - bottom) * place / tall
        axes.annotate(
            "\n".join(labels[arm]),
            (right, level),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colours[arm],
            fontweight="bold",
            linespacing=1.15,
            annotation_clip=False,
        )
        level = bottom + (top - bottom) * place / tall
        if x < right:  # a line that ends early is tied to its name
            look = {"arrowstyle": "-", "color": colours[arm], "linewidth": 0.7, "alpha": 0.6}
            look |= {"shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), (right, level), arrowprops=look, annotation_clip=False)


def spread(wanted: Sequence[float], heights: Sequence[float], room: float) -> list[float]:
    """Middles of labels in the order given (ascending), near to ``wanted``, apart, within [0, room] if they fit."""
    groups: list[list[int]] = []
    starts: list[float] = []
    for i, (want, height) in enumerate(zip(wanted, heights, strict=True)):
        groups.append([i])
        starts.append(want - height / 2)
        # Labels that would overlap become one group around the mean of where its members want to be.
        while True:
            members = groups[-1]
            tall = sum(heights[j] for j in members)
            offsets = list(accumulate((heights[j] for j in members), initial=0.0))
            best = sum(
                wanted[j] - heights[j] / 2 - offset for j, offset in zip(members, offsets, strict=False)
            ) / len(members)
            starts[-1] = max(0.0, min(best, room - tall))
            before = starts[-2] + sum(heights[j] for j in groups[-2]) if len(groups) > 1 else -math.inf
            if starts[-1] >= before:
                break
            groups.pop()
            starts.pop()
            groups[-1] += members
    places = []
    for start, members in zip(starts, groups, strict=True):
        for j in members:
            places.append(start + heights[j] / 2)
            start += heights[j]
    return places
