"""The metrics of sets and groups for people: a table for the terminal, a page, a picture."""

from __future__ import annotations

import os

from raysel.core.storage import Place, output, write_bytes
from raysel.report import html, numbers
from raysel.report.figures.metrics import metric_bars, metrics_png
from raysel.report.results import Metric, Metrics, statistic

MOST_GROUPS = 8  # side by side in a figure
LEAD = (
    "The eleven metrics of GIME, such as volume and variety, describe a set of rows before a model is trained on them. The key "
    "gime.binding of the workflow says what each column means, and thus determines which columns each metric reads."
)


def text(sets: Metrics) -> str:
    """Every statistic of every set with its unit; null with the reason, a bound where the value is an estimate."""
    cells = [["metric", "statistic", *sets, "unit", "remark"], *_cells(sets)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [
            c.rjust(w) if 1 < at < len(row) - 2 else c.ljust(w)
            for at, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def largest(groups: Metrics) -> Metrics:
    """Return the groups with the most rows, at most as many as a figure holds, in their own order."""

    def rows(name: str) -> float:
        found = statistic(groups[name], "volume", "rows")
        return 0.0 if found is None or found.value is None else found.value

    kept = sorted(groups, key=lambda name: -rows(name))[:MOST_GROUPS]
    return {name: found for name, found in groups.items() if name in kept}


def write_png(sets: Metrics, name: str, path: str | os.PathLike[str]) -> Place:
    """Write the figure of the sets as PNG, completely or not at all."""
    write_bytes(path, metrics_png(sets, name))
    return output(path)


def card(sets: Metrics, title: str) -> str:
    """Return the figure as a card of a page."""
    return html.card(
        metric_bars(sets),
        title,
        "Each panel shows one metric. A metric consists of several numbers, its statistics; the statistic that is drawn and "
        "its unit are written next to the name of the metric. Every panel has its own scale, which includes 0. “kept” are the rows "
        "that were selected by limits on the metrics (thresholds). A line across the end of a bar is the error bound of an "
        "estimate; a bar without a line is exact. “null” means that the value could not be computed; the reason "
        "is next to it. A higher value is not necessarily better.",
    )


def page(name: str, sets: Metrics, groups: Metrics) -> str:
    """One HTML page that fetches nothing: the figures, and every statistic in a table."""
    cards = [card(sets, "Sets")]
    if groups:
        shown = largest(groups)
        more = (
            f"Groups: the {len(shown)} largest of {len(groups):,}" if len(shown) < len(groups) else "Groups"
        )
        cards.append(card(shown, more))
    heads = ["Metric", "Statistic", *(html.text(one) for one in sets), "Unit", "Remark"]
    rows = [[html.text(cell) for cell in row] for row in _cells(sets)]
    title = html.text(name)
    opening = (
        f'<header>\n<p class="kicker">raysel measure</p>\n<h1>{title.replace("_", "_<wbr>")}</h1>\n</header>'
    )
    parts = [
        opening,
        html.section("Figures", f'<p class="lead">{LEAD}</p>\n{html.grid(cards)}'),
        html.section("All statistics", html.table(heads, rows)),
    ]
    return html.document(f"{title} · raysel measure", "\n".join(parts))


def _cells(sets: Metrics) -> list[list[str]]:
    order = dict.fromkeys((found.metric, found.statistic) for metrics in sets.values() for found in metrics)
    rows = []
    for metric, name in order:
        row = [statistic(metrics, metric, name) for metrics in sets.values()]
        measured = [found for found in row if found is not None]
        reasons = dict.fromkeys(found.reason for found in measured if found.reason)
        rows.append([metric, name, *map(_value, row), measured[0].unit or "", "; ".join(reasons)])
    return rows


def _value(found: Metric | None) -> str:
    if found is None or found.value is None:
        return "null"
    return numbers.digits(found.value) + (
        f" ±{numbers.digits(float(f'{found.bound:.2g}'))}" if found.bound else ""
    )
