"""The figure of the eleven metrics, a panel each."""

from __future__ import annotations

from matplotlib.figure import Figure

from raysel.report import numbers
from raysel.report.figures.canvas import WIDTH, new_figure, to_png, to_svg
from raysel.report.figures.colours import ARM_COLOURS, INK, MUTED
from raysel.report.figures.text import plain, shorten, text_width
from raysel.report.results import Metrics, statistic

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

_SETS = {"pool": ARM_COLOURS["full"], "kept": ARM_COLOURS["chain"], "target": ARM_COLOURS["random"]}


def metric_bars(sets: Metrics) -> str:
    """Return the eleven metrics of sets or groups side by side, a panel each with its unit.

    Whiskers are bounds of sketches. A value of None is written as null with its reason, never drawn as 0.
    """
    if not sets:
        return ""
    with new_figure(_panels_height(sets, 1)) as figure:
        _panels(figure, sets, columns=1)
        return to_svg(figure, "metrics", f"The eleven metrics of {', '.join(sets)}")


def metrics_png(sets: Metrics, name: str) -> bytes:
    """Return the same in two columns under a title, as PNG."""
    head = 34.0
    with new_figure(_panels_height(sets, 2) + head, width=2 * WIDTH + 24) as figure:
        place = 1 - 22 / figure.bbox.height
        figure.text(8 / figure.bbox.width, place, plain(name), fontweight="bold", fontsize=12)
        _panels(figure, sets, columns=2, above=head)
        return to_png(figure)


def _panel_height(sets: Metrics) -> float:
    return 34.0 + 15.0 * len(sets)


def _panels_height(sets: Metrics, columns: int) -> float:
    return 6 + -(-len(_shown(sets)) // columns) * _panel_height(sets)


def _shown(sets: Metrics) -> dict[str, tuple[str, ...]]:
    """Return the eleven metrics, and after them those of the user's own, with the statistics that stand for each."""
    found = {name: list(names) for name, names in MAIN_STATISTICS.items()}
    for row in (row for rows in sets.values() for row in rows):
        if row.metric not in MAIN_STATISTICS:
            found.setdefault(row.metric, []).append(row.statistic)
    return {name: tuple(dict.fromkeys(names)) for name, names in found.items()}


def _panels(figure: Figure, sets: Metrics, columns: int, above: float = 0.0) -> None:
    labels = {name: shorten(plain(name), 110) for name in sets}
    left = max(map(text_width, labels.values())) + 16
    tall, down = _panel_height(sets), -(-len(_shown(sets)) // columns)
    whole = figure.bbox.height
    for at, (metric, names) in enumerate(_shown(sets).items()):
        column, line = divmod(at, down)
        x, top = column * (WIDTH + 24), above + line * tall
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
            (x + 16 + text_width(metric.replace("_", " "), bold=True)) / figure.bbox.width,
            1 - (top + 15) / whole,
            ", ".join(dict.fromkeys([main.replace("_", " "), "time" if unit == "s" else unit])),
            color=MUTED,
        )
        axes = figure.add_axes(
            (
                (x + left) / figure.bbox.width,
                1 - (top + tall - 10) / whole,
                (WIDTH - left - 96) / figure.bbox.width,
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
                reason = plain((row and row.reason) or "not measured")
                reason = shorten(f"null: {reason}", WIDTH - left - 12)
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
