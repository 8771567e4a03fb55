"""The report's figures: plain numbers in, an SVG string out; the same numbers give the same bytes.

Every function returns "" when there is nothing to draw. Figures are about 360 points wide, so that their text
keeps its size in two columns on a wide page and in one on a telephone. Colours are Okabe and Ito's, darkened
where they have to carry text; they are told apart with any colour vision, and on the white card in a dark page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raysel.report import numbers
from raysel.report.ledger import STAGES, Ledger
from raysel.report.results import Arm, ClassCount, Epoch, Metrics, PolicyUse, statistic

INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e4e7ec"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STAGE_COLOURS = {
    "embedding": "#56b4e9",
    "metrics": "#cc79a7",
    "selection": "#e69f00",
    "planning": "#009e73",
    "training": "#b4bcc8",
    "other": "#e4e7ec",
}
_KNOWN = {"full": "#4a5361", "random": "#c25608", "chain": "#0068b0"}
_OTHERS = ("#007a5a", "#96387f", "#7a6500", "#2f8fc4", "#8c2d19", "#5b4fa2")

_WIDTH = 360.0  # points
_SIZE = 10.2  # points; labels
_LINE = 13.2  # points from one line of a label to the next
_STEPS = (1, 2, 2.5, 5, 10)  # ticks people count in
_MOST_CLASSES = 24
_MOST_BINS = 100
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": _SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x$"
    "axes.edgecolor": "#aab2bd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#aab2bd",
    "ytick.color": "#aab2bd",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # real text: it can be selected, searched and read aloud
}


@dataclass(frozen=True)
class PolicyCurves:
    """What the figures of a comparison show of one policy.

    Attributes
    ----------
    title, colour : str
        Name of the policy, and the colour of its lines and dots.
    own : bool
        Whether it is the workflow's own policy.
    ends : tuple of (int, float)
        Per seed, the number of passes and the accuracy on the test rows after the last epoch.
    curves : tuple of tuple of (int, float)
        Per seed, the number of passes and the accuracy on the validation rows after each epoch; empty without
        validation rows.
    """

    title: str
    colour: str
    own: bool
    ends: tuple[tuple[int, float], ...]
    curves: tuple[tuple[tuple[int, float], ...], ...] = ()


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour per arm: the usual arms always have theirs, others take the rest in order."""
    others = [arm for arm in arms if arm not in _KNOWN]
    return {arm: _KNOWN.get(arm) or _OTHERS[others.index(arm) % len(_OTHERS)] for arm in arms}


def kl_curve(rows: Sequence[int], kl: Sequence[float | None], method: str = "") -> str:
    """k-NN estimate of KL(target || chosen) in nats against rows chosen, one point per pick."""
    points = [(x, float(y)) for x, y in zip(rows, kl, strict=False) if y is not None and math.isfinite(y)]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    with _figure(height=262) as (figure, svg):
        axes = _axes(figure, left=44, right=18, top=30, bottom=38)
        colour = _KNOWN["chain"]
        axes.plot(xs, ys, color=colour, marker="o" if len(xs) == 1 else "", markersize=5)
        low, high = min(*ys, 0.0), max(*ys, 0.0)
        _reach(axes, low, high)
        axes.set_xlim(0, max(xs) * 1.02 or 1)
        _ticks(axes, x=_thousands, y=_signed)
        _titles(axes, x="rows selected", y="KL(target ‖ selected), nats")
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markersize=5, clip_on=False)
        # The text ends above the last point, clear of the stretch of curve that it stands over.
        text = f"{_signed(ys[-1])} nats at {_thousands(xs[-1])} rows"
        share = 1.05 * _text_width(text, bold=True) / (_WIDTH - 44 - 18)
        axes.annotate(
            text,
            (xs[-1], max(y for x, y in points if x >= (1 - share) * xs[-1])),
            (0, 9),
            textcoords="offset points",
            ha="right" if len(xs) > 1 else "left",
            color=colour,
            fontweight="bold",
        )
        svg.append(_svg(figure, "kl-curve", f"KL curve of the {method} selection".replace("  ", " ")))
    return svg[0]


def kept_share_per_class(classes: Sequence[ClassCount]) -> str:
    """Bars: the share of each class's pool rows that was kept, against the share of the pool as a whole.

    If every class has a target count, a second panel shows the shares of the classes in the pool, the kept rows
    and the target. Beyond 24 classes, the figure shows the 12 of the largest and the 12 of the smallest share.
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
    labels = [_shorten(_plain(entry.label), 92) for entry in shown]
    step = 18.0
    gap = 14.0 if left_out else 0.0
    top, bottom = (44.0 if composed else 26.0), 36.0
    height = top + bottom + step * len(shown) + gap
    # From the top down; the gap stands for the classes that are left out.
    ys = [step * (i + 0.5) + (gap if left_out and i >= len(shown) // 2 else 0.0) for i in range(len(shown))]
    left = max(_text_width(label) for label in labels) + 14
    inner = _WIDTH - left - 14
    with _figure(height) as (figure, svg):
        right = 14 + (0.5 * inner + 14 if composed else 0)
        axes = _axes(figure, left=left, right=right, top=top, bottom=bottom, grid=None)
        axes.set_ylim(height - top - bottom, 0)
        axes.barh(ys, shares, height=11, color="#8fbfe0", zorder=2)
        most = max(*shares, overall) * (1.26 if composed else 1.16)
        axes.set_xlim(0, most or 1)
        axes.spines["bottom"].set_visible(False)
        axes.axvline(overall, color=INK, linewidth=1.1, zorder=3)
        axes.text(
            overall,
            -0.02 * step - 4,
            f"complete pool {numbers.saving(overall)}",
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
                fontsize=_SIZE - 1,
                color=MUTED,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                zorder=4,
            )
        axes.set_yticks(ys, labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xticks([])
        axes.set_xlabel("share of the class selected, %", labelpad=17 if composed else 8)
        if left_out:
            between = ys[len(shown) // 2] - (step + gap) / 2
            axes.text(
                0, between, f" … {left_out} classes between", va="center", color=MUTED, fontsize=_SIZE - 1
            )
        if composed:
            other = _axes(
                figure, left=_WIDTH - 14 - 0.5 * inner + 14, right=14, top=top, bottom=bottom, grid="x"
            )
            other.set_ylim(height - top - bottom, 0)
            _composition(other, ys, shown, pool, kept, aimed)
        svg.append(_svg(figure, "kept-share", "Share of each class that was selected"))
    return svg[0]


def _composition(
    axes: Any, ys: list[float], shown: list[ClassCount], pool: int, kept: int, target: int
) -> None:
    """Dots: which share of the pool, of the kept rows and of the target each class is."""
    looks: tuple[dict[str, Any], ...] = (
        {"marker": "o", "markersize": 5.5, "markerfacecolor": "white", "markeredgecolor": MUTED},
        {"marker": "o", "markersize": 7, "markerfacecolor": _KNOWN["chain"], "markeredgecolor": "white"},
        {"marker": "|", "markersize": 11, "markeredgecolor": _KNOWN["random"], "markeredgewidth": 2.4},
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
    words = [("○ pool", MUTED), ("● selected", _KNOWN["chain"]), ("| target", _KNOWN["random"])]
    _words(axes.figure, words, right=_WIDTH - 14, y=axes.figure.bbox.height - 16)
    axes.set_xlabel("share of the rows", labelpad=4)


def plan_sizes(arms: Mapping[str, Arm]) -> str:
    """Return samples planned in each epoch, a step line per arm."""
    series = {
        name: [(epoch.epoch, epoch.planned) for epoch in arm.epochs]
        for name, arm in arms.items()
        if arm.epochs
    }
    if not series:
        return ""
    colours = arm_colours(list(arms))
    with _figure(height=262) as (figure, svg):
        axes, labels = _labelled_axes(figure, arms, series)
        last = max(points[-1][0] for points in series.values())
        axes.set_xlim(min(points[0][0] for points in series.values()), last + 1)
        _reach(axes, 0, max(y for points in series.values() for _, y in points))
        for arm, points in series.items():
            # An epoch is a stretch, not a moment: its step ends where the next begins.
            xs = [x for x, _ in points] + [points[-1][0] + 1]
            ys = [y for _, y in points] + [points[-1][1]]
            axes.step(xs, ys, where="post", color=colours[arm])
        _ticks(axes, x=_thousands, y=_thousands, whole=True)
        _titles(axes, x="epoch", y="samples planned")
        # Plans are often of equal size at the end: the line that is lower on average then has the lower name.
        series = dict(sorted(series.items(), key=lambda item: sum(y for _, y in item[1]) / len(item[1])))
        _end_labels(axes, {a: (p[-1][0] + 1, p[-1][1]) for a, p in series.items()}, labels, colours)
        svg.append(_svg(figure, "plan-sizes", "Samples planned in each epoch"))
    return svg[0]


def usage_histogram(policies: Sequence[PolicyUse]) -> str:
    """Return samples by how often a run selected them, a step line per policy."""
    shown = [policy for policy in policies if policy.times]
    if not shown:
        return ""
    most = max(policy.times[-1][0] for policy in shown)
    wide = -(-(most + 1) // _MOST_BINS)  # of a bin, in times
    edges = np.arange(0, most + wide + 1, wide)
    with _figure(height=262 + 15.0 * (len(shown) - 1)) as (figure, svg):
        axes = _keyed_axes(figure, [f"{policy.title}: Gini {policy.gini:.3f}" for policy in shown])
        axes.set_xlim(-0.5, edges[-1] + 0.5)
        highest = 0
        for policy, colour in zip(shown, _USES, strict=False):
            often, samples = zip(*policy.times, strict=True)
            counts, _ = np.histogram(often, edges, weights=samples)
            highest = max(highest, int(counts.max()))
            axes.stairs(counts, edges - 0.5, color=colour, linewidth=1.6)
        _reach(axes, 0, highest)
        _ticks(axes, x=_thousands, y=_thousands, whole=True)
        _titles(axes, x="times selected in the run", y="samples")
        svg.append(_svg(figure, "usage", "Samples by how often they were selected"))
    return svg[0]


def rare_seen(policies: Sequence[PolicyUse]) -> str:
    """Share of the rare factors that a run had seen after each epoch, a line per policy."""
    shown = [policy for policy in policies if policy.rare]
    if not shown:
        return ""
    with _figure(height=262 + 15.0 * (len(shown) - 1)) as (figure, svg):
        axes = _keyed_axes(figure, [policy.title for policy in shown])
        epochs = max(len(policy.rare) for policy in shown)
        axes.set_xlim(0, epochs)
        low = min(min(policy.rare) for policy in shown)
        _reach(axes, min(low, 0.95), 1.0, within=(0.0, 1.0))
        for policy, colour in zip(shown, _USES, strict=False):
            axes.plot(range(1, len(policy.rare) + 1), policy.rare, ".-", color=colour, clip_on=False)
        _ticks(axes, x=_thousands, y=lambda value: f"{100 * value:g} %", whole=True)
        _titles(axes, x="epochs done", y="rare factors seen so far")
        svg.append(_svg(figure, "rare", "Share of the rare factors seen so far"))
    return svg[0]


def alpha_curve(alpha: Sequence[float], epochs: int) -> str:
    """Weight of representativeness in each epoch; from ``len(alpha)`` to ``epochs`` the tail on all the data."""
    if not alpha:
        return ""
    with _figure(height=262) as (figure, svg):
        axes = _axes(figure, left=46, right=18, top=30, bottom=38)
        axes.set_xlim(0, epochs)
        axes.set_ylim(0, 1)
        axes.step(
            range(len(alpha) + 1), [*alpha, alpha[-1]], where="post", color=_KNOWN["chain"], clip_on=False
        )
        if epochs > len(alpha):
            axes.axvspan(len(alpha), epochs, color=GRID, zorder=0, linewidth=0)
            axes.text((len(alpha) + epochs) / 2, 0.5, "all the data", rotation=90, ha="center", va="center", color=MUTED)  # fmt: skip
        _ticks(axes, x=_thousands, y=_signed, whole=True)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=True))
        _titles(axes, x="epoch", y="alpha")
        svg.append(_svg(figure, "alpha", "Weight of representativeness in each epoch"))
    return svg[0]


_USES = (_KNOWN["chain"], _KNOWN["random"], _OTHERS[0])


def _keyed_axes(figure: Figure, names: Sequence[str]) -> Any:
    """Return axes below a key with one line per name."""
    for line, (name, colour) in enumerate(zip(names, _USES, strict=False)):
        _words(figure, [(_plain(name), colour)], left=8, y=figure.bbox.height - 14 - 15.0 * line)
    return _axes(figure, left=46, right=18, top=30 + 15.0 * len(names), bottom=38)


def loss_curves(arms: Mapping[str, Arm]) -> str:
    """Mean training loss of each epoch, a line per arm; epochs without a loss are left out."""
    series = _series(arms, lambda epoch: epoch.loss)
    if not series:
        return ""
    colours = arm_colours(list(arms))
    with _figure(height=262) as (figure, svg):
        axes, labels = _labelled_axes(figure, arms, series)
        xs = [epoch.epoch for points in series.values() for epoch, _, _ in points]
        axes.set_xlim(min(xs), max(*xs, min(xs) + 1))
        top = max(y for points in series.values() for _, _, y in points)
        bottom = min(y for points in series.values() for _, _, y in points)
        _reach(axes, min(bottom, 0.0), max(top, 0.0))
        for arm, points in series.items():
            axes.plot(
                [epoch.epoch for epoch, _, _ in points],
                [y for _, _, y in points],
                color=colours[arm],
                marker="o" if len(points) == 1 else "",
                markersize=5,
                clip_on=False,
            )
        _ticks(axes, x=_thousands, y=_signed, whole=True)
        _titles(axes, x="epoch", y="mean training loss")
        _end_labels(axes, {a: (p[-1][0].epoch, p[-1][2]) for a, p in series.items()}, labels, colours)
        svg.append(_svg(figure, "loss", "Training loss in each epoch"))
    return svg[0]


def accuracy_curves(arms: Mapping[str, Arm]) -> str:
    """Accuracy on the validation rows against samples back-propagated so far.

    An arm's line ends at the number of samples that it spent.
    """
    series = _series(arms, lambda epoch: epoch.accuracy)
    points = {arm: [(spent, share) for _, spent, share in found] for arm, found in series.items()}
    return _accuracies(arms, points, "validation")


def final_test_accuracies(arms: Mapping[str, Arm]) -> str:
    """Accuracy on the test rows after the last epoch against samples back-propagated, a dot per arm."""
    points = {
        name: [(sum(epoch.trained for epoch in arm.epochs), arm.accuracy)]
        for name, arm in arms.items()
        if arm.accuracy is not None and math.isfinite(arm.accuracy)
    }
    return _accuracies(arms, points, "test")


def _accuracies(
    arms: Mapping[str, Arm],
    series: Mapping[str, Sequence[tuple[int, float]]],
    rows: Literal["validation", "test"],
) -> str:
    """Lines or single dots through the points (samples back-propagated, accuracy) of each arm."""
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
    with _figure(height=226 + row * len(order)) as (figure, svg):
        axes = _axes(figure, left=44, right=18, top=34 + row * len(order), bottom=38)
        tall = axes.get_position().height * figure.bbox.height
        everything = [y for points in series.values() for _, y in points]
        low, high = _reach(axes, min(everything), max(everything), within=(0.0, 1.0))
        most = max(x for x, _ in ends.values()) or 1
        axes.set_xlim(0, most * 1.02)
        for arm, points in series.items():
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs, ys, color=colours[arm], marker="o" if len(xs) == 1 else "", markersize=5, clip_on=False
            )
        for place, arm in enumerate(order):
            x, y = ends[arm]
            level = high + (high - low) * (24 + row * place) / tall
            axes.plot(
                [x, x], [y, level], color=colours[arm], linewidth=0.8, alpha=0.7, clip_on=False, zorder=1
            )
            axes.plot([x], [y], "o", color=colours[arm], markersize=5, clip_on=False, zorder=3)
            right = x > middle
            ending = f" {numbers.percent(y)}"
            place_x = 44 + (_WIDTH - 44 - 18) * x / (most * 1.02)
            room = (place_x if right else _WIDTH - place_x) - 10 - _text_width(ending, bold=True)
            axes.annotate(
                _shorten(_plain(arms[arm].title or arm), room, bold=True) + ending,
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
        _ticks(axes, x=_thousands, y=lambda value: f"{100 * value:g} %")
        so_far = " so far" if rows == "validation" else ""
        # Above the names, since a stem from an end near the left would cross it elsewhere.
        above = 24 + row * (len(order) - 1) + 13
        _titles(axes, x=f"samples back-propagated{so_far}", y=f"accuracy on the {rows} rows", above=above)
        title = f"Accuracy on the {rows} rows against samples back-propagated"
        svg.append(_svg(figure, "accuracy", title))
    return svg[0]


def accuracy_against_passes(policies: Sequence[PolicyCurves]) -> str:
    """Accuracy against samples back-propagated in a comparison.

    A thin line per seed shows the accuracy on the validation rows. Without validation rows, a dot per seed shows
    the accuracy on the test rows after the last epoch.
    """
    if not policies:
        return ""
    with _figure(height=250 + 15.0 * len(_key_rows(policies))) as (figure, svg):
        _courses(figure, policies)
        svg.append(_svg(figure, "courses", "Accuracy against samples back-propagated, by policy and seed"))
    return svg[0]


def final_accuracies(policies: Sequence[PolicyCurves]) -> str:
    """Accuracies on the test rows in a comparison: each policy's seeds, their mean and standard deviation.

    A line marks the mean of the workflow's own policy.
    """
    if not policies:
        return ""
    with _figure(height=58 + 44.0 * len(policies)) as (figure, svg):
        _ends(figure, policies)
        svg.append(_svg(figure, "ends", "Final accuracy by policy"))
    return svg[0]


def comparison_png(policies: Sequence[PolicyCurves], name: str) -> bytes:
    """Both figures of a comparison side by side under the workflow's name, as PNG."""
    head = 34.0
    tall = max(250 + 15.0 * len(_key_rows(policies)), 58 + 44.0 * len(policies))
    with _figure(tall + head, width=2 * _WIDTH + 24) as (figure, _):
        seeds = len(policies[0].ends)
        title = f"{_plain(name)}: {seeds} seed{'' if seeds == 1 else 's'}"
        figure.text(8 / figure.bbox.width, 1 - 22 / figure.bbox.height, title, fontweight="bold", fontsize=12)
        _courses(figure, policies, above=head)
        _ends(figure, policies, before=_WIDTH + 24, above=head)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def _courses(figure: Figure, policies: Sequence[PolicyCurves], above: float = 0.0) -> None:
    """In the figure's left ``_WIDTH`` points, ``above`` points below its top."""
    key = _key_rows(policies)
    for line, words in enumerate(key):
        _words(figure, words, left=8, y=figure.bbox.height - above - 14 - 15.0 * line)
    axes = _axes(
        figure,
        left=44,
        right=figure.bbox.width - _WIDTH + 16,
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
    # An untrained network's accuracy would press the rest into a line: the first quarter may run out below.
    shown = [y for _, curve in curves for x, y in curve if x >= most / 4 or (x, y) == curve[-1]]
    _reach(axes, min(shown), max(shown), within=(0.0, 1.0))
    for colour, curve in curves:
        xs, ys = zip(*curve, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.7)
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markersize=3.5, clip_on=False, zorder=3)
    _ticks(axes, x=_thousands, y=lambda value: f"{100 * value:g} %")
    so_far, rows = (" so far", "validation") if validated else ("", "test")
    _titles(axes, x=f"samples back-propagated{so_far}", y=f"accuracy on the {rows} rows")


def _ends(figure: Figure, policies: Sequence[PolicyCurves], before: float = 0.0, above: float = 0.0) -> None:
    """From ``before`` points on the left, ``above`` points below the figure's top."""
    room = 0.45 * _WIDTH
    step = 44.0
    ends = [policy.ends for policy in policies]
    left = 8 + max(
        *(_text_width(_shorten(_plain(policy.title), room, bold=True), bold=True) for policy in policies),
        70.0,
    )
    bottom = figure.bbox.height - above - 6 - step * len(policies)
    axes = _axes(figure, left=before + left + 12, right=16, top=above + 6, bottom=bottom, grid="x")
    axes.set_ylim(step * len(policies), 0)
    everything = [y for end in ends for _, y in end]
    spreads = [float(np.std([y for _, y in end], ddof=1)) if len(end) > 1 else 0.0 for end in ends]
    means = [math.fsum(y for _, y in end) / len(end) for end in ends]
    low = min(*everything, *(m - s for m, s in zip(means, spreads, strict=True)))
    high = max(*everything, *(m + s for m, s in zip(means, spreads, strict=True)))
    margin = 0.06 * (high - low) or 0.002
    axes.set_xlim(low - margin, high + margin)
    for place, (policy, end) in enumerate(zip(policies, ends, strict=True)):
        y, colour = step * (place + 0.5), policy.colour
        if policy.own:
            axes.axvline(means[place], color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        axes.errorbar(
            means[place], y + 5, xerr=spreads[place], color=colour, marker="|", markersize=11, capsize=0, zorder=3
        )  # fmt: skip
        axes.plot(
            [share for _, share in end],
            [y - 7] * len(end),
            "o",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=colour,
            clip_on=False,
            zorder=4,
        )
        passes = f"{_thousands(math.fsum(x for x, _ in end) / len(end))} passes"
        look = {"textcoords": "offset points", "xycoords": ("axes fraction", "data"), "ha": "right"}
        title = _shorten(_plain(policy.title), room, bold=True)
        axes.annotate(title, (0, y), (-12, 1), color=colour, fontweight="bold", va="bottom", **look)
        axes.annotate(passes, (0, y), (-12, -1), color=MUTED, fontsize=_SIZE - 1, va="top", **look)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    axes.set_xlabel(
        "test accuracy after the last epoch\nopen dots: seeds; bar: mean ± standard deviation", labelpad=5
    )


def _key_rows(policies: Sequence[PolicyCurves]) -> list[list[tuple[str, str]]]:
    """Return the titles in their colours, in as many rows as they take."""
    lines: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for policy in policies:
        title = _shorten(_plain(policy.title), _WIDTH - 16, bold=True)
        wide = _text_width(title, bold=True) + 10
        if lines[-1] and used + wide > _WIDTH - 16:
            lines.append([])
            used = 0.0
        lines[-1].append((title, policy.colour))
        used += wide
    return lines


def cost_bars(ledger: Ledger) -> str:
    """Wall-clock seconds of each arm, stacked by stage; a stage that was not measured is left out and said so."""
    entries = ledger.entries
    known = [[seconds for seconds in entry.seconds.values() if seconds is not None] for entry in entries]
    most = max(map(math.fsum, known), default=0.0)
    if not most:
        return ""
    stages = [stage for stage in STAGES if any(entry.seconds[stage] for entry in entries)]
    step = 42.0
    top, bottom = 30.0, 8.0
    height = top + bottom + step * len(entries)
    with _figure(height) as (figure, svg):
        axes = _axes(figure, left=8, right=8, top=top, bottom=bottom, grid=None)
        axes.set_ylim(height - top - bottom, 0)
        endings = [
            f"{numbers.seconds(math.fsum(values))} s"
            + ("" if len(values) == len(STAGES) else " + stages not measured")
            for values in known
        ]
        room = max(_text_width(text, bold=True) for text in endings) + 8
        axes.set_xlim(0, most * (_WIDTH - 16) / (_WIDTH - 16 - room))
        axes.set_axis_off()
        for i, (entry, ending) in enumerate(zip(entries, endings, strict=True)):
            y = step * i + 29
            axes.text(0, y - 11, _shorten(_plain(entry.title), _WIDTH - 20), va="bottom", color=INK)
            left = 0.0
            for stage in stages:
                if width := entry.seconds[stage]:
                    axes.add_patch(
                        Rectangle((left, y - 8), width, 16, facecolor=STAGE_COLOURS[stage], linewidth=0)
                    )
                    left += width
            axes.annotate(
                ending, (left, y), (5, 0), textcoords="offset points", va="center", fontweight="bold"
            )
        _words(figure, [(s, STAGE_COLOURS[s]) for s in stages], left=8, y=height - 16, squares=True)
        svg.append(_svg(figure, "costs", "Seconds of each stage"))
    return svg[0]


MAIN_STATISTICS = {
    "volume": ("rows",),
    "delay": ("mean", "as_defined"),
    "scope": ("entities",),
    "granularity": ("mean_size", "scope_per_row", "completeness"),
    "variety": ("effective_classes",),
    "duration": ("span",),
    "sampling_rate": ("rate",),
    "aggregation": ("pairs_per_row",),
    "coverage": ("copies_per_content",),
    "distortion": ("disagreement", "invalid"),
    "mismatch": ("overall",),
}
"""The statistic that stands for each metric in a figure: the first one that some set has a value of."""
_SETS = {"pool": _KNOWN["full"], "kept": _KNOWN["chain"], "target": _KNOWN["random"]}


def metric_bars(sets: Metrics) -> str:
    """Return the eleven metrics of sets or groups side by side, a panel each with its unit.

    Whiskers are bounds of sketches. A value of None is written as null with its reason, never drawn as 0.
    """
    if not sets:
        return ""
    with _figure(_panels_height(sets, 1)) as (figure, svg):
        _panels(figure, sets, columns=1)
        svg.append(_svg(figure, "metrics", f"The eleven metrics of {', '.join(sets)}"))
    return svg[0]


def metrics_png(sets: Metrics, name: str) -> bytes:
    """Return the same in two columns under a title, as PNG."""
    head = 34.0
    with _figure(_panels_height(sets, 2) + head, width=2 * _WIDTH + 24) as (figure, _):
        place = 1 - 22 / figure.bbox.height
        figure.text(8 / figure.bbox.width, place, _plain(name), fontweight="bold", fontsize=12)
        _panels(figure, sets, columns=2, above=head)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def _panel_height(sets: Metrics) -> float:
    return 34.0 + 15.0 * len(sets)


def _panels_height(sets: Metrics, columns: int) -> float:
    return 6 + -(-len(MAIN_STATISTICS) // columns) * _panel_height(sets)


def _panels(figure: Figure, sets: Metrics, columns: int, above: float = 0.0) -> None:
    labels = {name: _shorten(_plain(name), 110) for name in sets}
    left = max(map(_text_width, labels.values())) + 16
    tall, down = _panel_height(sets), -(-len(MAIN_STATISTICS) // columns)
    whole = figure.bbox.height
    for at, (metric, names) in enumerate(MAIN_STATISTICS.items()):
        column, line = divmod(at, down)
        x, top = column * (_WIDTH + 24), above + line * tall
        candidates = [(name, [statistic(rows, metric, name) for rows in sets.values()]) for name in names]
        main, found = next(
            (
                candidate
                for candidate in candidates
                if any(row is not None and row.value is not None for row in candidate[1])
            ),
            candidates[0],
        )
        unit = next((row.unit for row in found if row and row.unit), "")
        figure.text(
            (x + 8) / figure.bbox.width, 1 - (top + 15) / whole, metric.replace("_", " "), fontweight="bold"
        )
        figure.text(
            (x + 16 + _text_width(metric.replace("_", " "), bold=True)) / figure.bbox.width,
            1 - (top + 15) / whole,
            ", ".join(dict.fromkeys([main.replace("_", " "), "time" if unit == "s" else unit])),
            color=MUTED,
        )
        axes = figure.add_axes(
            (
                (x + left) / figure.bbox.width,
                1 - (top + tall - 10) / whole,
                (_WIDTH - left - 96) / figure.bbox.width,
                15.0 * len(sets) / whole,
            )
        )
        axes.set_axis_off()
        axes.set_ylim(len(sets), 0)
        ends = [(row.value, row.bound or 0) for row in found if row and row.value is not None]
        low = min([0.0, *(value for value, _ in ends)])
        high = max((value + bound for value, bound in ends), default=0.0)
        axes.set_xlim(low, max(high, 0.0) if max(high, 0.0) > low else low + 1)
        for place, (name, row) in enumerate(zip(sets, found, strict=True)):
            y = place + 0.5
            axes.annotate(labels[name], (0, y), (-6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="center")  # fmt: skip
            if row is None or row.value is None:
                reason = _plain((row and row.reason) or "not measured")
                reason = _shorten(f"null: {reason}", _WIDTH - left - 12)
                axes.annotate(reason, (0, y), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", color=MUTED)  # fmt: skip
                continue
            value, bound = row.value, row.bound
            axes.barh(y, value, height=0.66, color=_SETS.get(name, "#8fbfe0"))
            if bound:
                axes.plot([max(value - bound, low), value + bound], [y, y], color=INK, linewidth=1)
            text = numbers.quantity(value, unit) + (
                f" ± {bound:.1g}" if bound and unit not in ("s", "1/s") else ""
            )
            axes.annotate(text, (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", color=MUTED)  # fmt: skip


def _series(
    arms: Mapping[str, Arm], value: Callable[[Epoch], float | None]
) -> dict[str, list[tuple[Epoch, int, float]]]:
    """Per arm: (epoch, samples trained on up to its end, value), where the value was measured."""
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


def _most_telling(classes: list[ClassCount]) -> tuple[list[ClassCount], int]:
    if len(classes) <= _MOST_CLASSES:
        return classes, 0
    ordered = sorted(classes, key=lambda entry: -entry.kept / entry.pool)
    half = _MOST_CLASSES // 2
    return ordered[:half] + ordered[-half:], len(classes) - _MOST_CLASSES


@contextmanager
def _figure(height: float, width: float = _WIDTH) -> Iterator[tuple[Figure, list[str]]]:
    """Return a figure under our own style whatever the user's matplotlibrc says, and the list its SVG goes to."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width / 72, height / 72), dpi=72), []


def _axes(
    figure: Figure,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    grid: Literal["x", "y"] | None = "y",
) -> Any:
    """Axes with margins in points."""
    width, height = figure.bbox.width, figure.bbox.height
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.grid(False)
    if grid:
        axes.grid(True, axis=grid)
    axes.spines["left"].set_visible(False)
    return axes


def _labelled_axes(
    figure: Figure, arms: Mapping[str, Arm], series: Mapping[str, Any]
) -> tuple[Any, dict[str, list[str]]]:
    """Axes with room on the right for the names of the lines, and those names in lines of their own."""
    labels = {}
    for arm in series:
        lines = textwrap.wrap(_plain(arms[arm].title or arm), 15, max_lines=3, placeholder="…")
        labels[arm] = lines or [arm]
    room = max(_text_width(line, bold=True) for lines in labels.values() for line in lines)
    return _axes(figure, left=46, right=room + 16, top=30, bottom=38), labels


def _end_labels(
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
    for arm, place in zip(order, _spread(wanted, heights, tall), strict=True):
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


def _spread(wanted: Sequence[float], heights: Sequence[float], room: float) -> list[float]:
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


def _words(
    figure: Figure,
    words: Sequence[tuple[str, str]],
    *,
    y: float,
    left: float = 0.0,
    right: float | None = None,
    squares: bool = False,
) -> None:
    """Return a key: words side by side in their colours, or in ink behind a square.

    Points are from the lower left corner.
    """
    wide, tall = figure.bbox.width, figure.bbox.height
    widths = [_text_width(word, bold=not squares) + (13 if squares else 0) for word, _ in words]
    place = left if right is None else right - sum(widths) - 10 * (len(words) - 1)
    for (word, colour), width in zip(words, widths, strict=True):
        if squares:
            square = Rectangle((place / wide, y / tall), 9 / wide, 9 / tall, facecolor=colour, linewidth=0)
            square.set_transform(figure.transFigure)
            figure.add_artist(square)
        look: dict[str, Any] = {"color": INK} if squares else {"color": colour, "fontweight": "bold"}
        figure.text((place + 13 * squares) / wide, y / tall, word, va="bottom", **look)
        place += width + 10


def _titles(axes: Any, *, x: str, y: str, above: float = 12) -> None:
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


def _ticks(axes: Any, *, x: Any, y: Any, whole: bool = False) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: x(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y(value)))


def _reach(
    axes: Any, low: float, high: float, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Let the y axis run from one tick to another around the values."""
    if low == high:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    ticks = MaxNLocator(5, steps=_STEPS).tick_values(low, high)
    low = max(max((t for t in ticks if t <= low), default=low), within[0])
    high = min(min((t for t in ticks if t >= high - 1e-9 * (high - low)), default=high), within[1])
    axes.set_ylim(low, high)
    return low, high


def _thousands(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) < 1e6
        else f"{value / 1e6:,.3g} M"
        if abs(value) < 1e9
        else f"{value:.3g}"
    )


def _signed(value: float) -> str:
    """Three digits and a true minus."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "\u2212")


def _plain(text: object) -> str:
    """One line that XML can hold: no control characters, no lone surrogates."""
    return re.sub(r"[\x00-\x20\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", str(text)).strip()


def _text_width(text: str, bold: bool = False) -> float:
    """Points. Measured in DejaVu Sans, which is wider than the fonts a page is likely to be shown in."""
    font = FontProperties(family="DejaVu Sans", size=_SIZE, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def _shorten(text: str, room: float, bold: bool = False) -> str:
    if _text_width(text, bold) <= room:
        return text
    while text and _text_width(text + "…", bold) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return the figure as an SVG element: no prolog, no date, no metadata, ids that no other figure on a page has."""
    matplotlib.rcParams["svg.hashsalt"] = f"raysel-{name}"
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # figure_1, axes_1, ...: nothing refers to them
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", FONTS)
    # A style sheet inside an SVG would apply to the complete page around it.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    label = escape(_plain(title), {'"': "&quot;"})
    opening = f'<svg style="stroke-linejoin: round; stroke-linecap: butt" role="img" aria-label="{label}"'
    return svg.replace("<svg", opening, 1).strip() + "\n"
