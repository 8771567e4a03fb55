"""Figures of a static selection: the KL curve, and the share of every class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from raysel.report import numbers
from raysel.report.figures.axis import set_ticks, set_titles, set_y_range, signed, thousands
from raysel.report.figures.canvas import WIDTH, add_axes, new_figure, to_svg
from raysel.report.figures.colours import ARM_COLOURS, GRID, INK, MUTED
from raysel.report.figures.text import SIZE, draw_words, plain, shorten, text_width
from raysel.report.results import ClassCount

_MOST_CLASSES = 24


def kl_curve(rows: Sequence[int], kl: Sequence[float | None], method: str = "") -> str:
    """Draw the k-NN estimate of KL(target || selected) in nats against the rows selected, one point per step."""
    points = [(x, float(y)) for x, y in zip(rows, kl, strict=False) if y is not None and math.isfinite(y)]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    with new_figure(height=262) as figure:
        axes = add_axes(figure, left=44, right=18, top=30, bottom=38)
        colour = ARM_COLOURS["chain"]
        axes.plot(xs, ys, color=colour, marker="o" if len(xs) == 1 else "", markersize=5)
        low, high = min(*ys, 0.0), max(*ys, 0.0)
        set_y_range(axes, low, high)
        axes.set_xlim(0, max(xs) * 1.02 or 1)
        set_ticks(axes, x=thousands, y=signed)
        set_titles(axes, x="rows selected", y="KL(target ‖ selected), nats")
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markersize=5, clip_on=False)
        # The text ends above the last point, clear of the stretch of curve that it stands over.
        text = f"{signed(ys[-1])} nats at {thousands(xs[-1])} rows"
        share = 1.05 * text_width(text, bold=True) / (WIDTH - 44 - 18)
        axes.annotate(
            text,
            (xs[-1], max(y for x, y in points if x >= (1 - share) * xs[-1])),
            (0, 9),
            textcoords="offset points",
            ha="right" if len(xs) > 1 else "left",
            color=colour,
            fontweight="bold",
        )
        return to_svg(
            figure,
            "kl-curve",
            f"Divergence from the target during the selection by {method}".removesuffix(" by "),
        )


def kept_share_per_class(classes: Sequence[ClassCount]) -> str:
    """Draw the selected share of the pool rows of each class, and the share for all classes together.

    If every class has a target count, a second panel shows the shares of the classes among the pool rows, the
    selected rows and the target rows. Of more than 24 classes, the 12 with the largest and the 12 with the smallest
    selected share are shown.
    """
    pool, kept = sum(entry.pool for entry in classes), sum(entry.kept for entry in classes)
    shown, left_out = _most_telling([entry for entry in classes if entry.pool])
    if not shown or not pool:
        return ""
    overall = kept / pool
    shares = [entry.kept / entry.pool for entry in shown]
    targets = [entry.target for entry in classes]
    aimed = sum(target or 0 for target in targets)
    composed = None not in targets and aimed > 0 and kept > 0
    labels = [shorten(plain(entry.label), 92) for entry in shown]
    step = 18.0
    gap = 14.0 if left_out else 0.0
    top, bottom = (44.0 if composed else 26.0), 36.0
    height = top + bottom + step * len(shown) + gap
    # From the top down; the gap stands for the classes that are left out.
    ys = [step * (i + 0.5) + (gap if left_out and i >= len(shown) // 2 else 0.0) for i in range(len(shown))]
    left = max(text_width(label) for label in labels) + 14
    inner = WIDTH - left - 14
    with new_figure(height) as figure:
        right = 14 + (0.5 * inner + 14 if composed else 0)
        axes = add_axes(figure, left=left, right=right, top=top, bottom=bottom, grid=None)
        axes.set_ylim(height - top - bottom, 0)
        axes.barh(ys, shares, height=11, color="#8fbfe0", zorder=2)
        most = max(*shares, overall) * (1.26 if composed else 1.16)
        axes.set_xlim(0, most or 1)
        axes.spines["bottom"].set_visible(False)
        axes.axvline(overall, color=INK, linewidth=1.1, zorder=3)
        axes.text(
            overall,
            -0.02 * step - 4,
            f"all classes {numbers.saving(overall)}",
            ha="left" if overall < 0.5 * most else "right",
            va="bottom",
        )
        for y, share in zip(ys, shares, strict=True):
            axes.annotate(
                numbers.saving(share).removesuffix(" %"),
                (share, y),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=SIZE - 1,
                color=MUTED,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=4,
            )
        axes.set_yticks(ys, labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xticks([])
        axes.set_xlabel("selected share, %", labelpad=17 if composed else 8)
        if left_out:
            between = ys[len(shown) // 2] - (step + gap) / 2
            axes.text(
                0, between, f" … {left_out} classes between", va="center", color=MUTED, fontsize=SIZE - 1
            )
        if composed:
            other = add_axes(
                figure, left=WIDTH - 14 - 0.5 * inner + 14, right=14, top=top, bottom=bottom, grid="x"
            )
            other.set_ylim(height - top - bottom, 0)
            _composition(other, ys, shown, pool, kept, aimed)
        return to_svg(figure, "kept-share", "Share of each class that was selected")


def _composition(
    axes: Any, ys: list[float], shown: list[ClassCount], pool: int, kept: int, target: int
) -> None:
    """Draw the share of each class among the pool rows, the selected rows and the target rows."""
    looks: tuple[dict[str, Any], ...] = (
        {"marker": "o", "markersize": 5.5, "markerfacecolor": "white", "markeredgecolor": MUTED},
        {"marker": "o", "markersize": 7, "markerfacecolor": ARM_COLOURS["chain"], "markeredgecolor": "white"},
        {"marker": "|", "markersize": 11, "markeredgecolor": ARM_COLOURS["random"], "markeredgewidth": 2.4},
    )
    parts = (
        [entry.pool / pool for entry in shown],
        [entry.kept / kept for entry in shown],
        [(entry.target or 0) / target for entry in shown],
    )
    for y, *row in zip(ys, *parts, strict=True):
        axes.plot([min(row), max(row)], [y, y], color=GRID, linewidth=3, zorder=1)
    for part, look in zip(parts, looks, strict=True):
        axes.plot(part, ys, linestyle="", zorder=2, clip_on=False, **look)
    most = max(map(max, parts))
    axes.set_xlim(-0.04 * most, most * 1.06)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.tick_params(axis="x", length=0)
    words = [("○ pool", MUTED), ("● selected", ARM_COLOURS["chain"]), ("| target", ARM_COLOURS["random"])]
    draw_words(axes.figure, words, right=WIDTH - 14, y=axes.figure.bbox.height - 16)
    axes.set_xlabel("share of the rows", labelpad=4)


def _most_telling(classes: list[ClassCount]) -> tuple[list[ClassCount], int]:
    if len(classes) <= _MOST_CLASSES:
        return classes, 0
    ordered = sorted(classes, key=lambda entry: -entry.kept / entry.pool)
    half = _MOST_CLASSES // 2
    return ordered[:half] + ordered[-half:], len(classes) - _MOST_CLASSES
