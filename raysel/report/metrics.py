"""The metrics of sets and groups for people: a table for the terminal, a page, a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysel.core.storage import write_bytes
from raysel.report import figures, html, numbers

Rows = Sequence[Mapping[str, Any]]
MOST_GROUPS = 8  # side by side in a figure


def text(sets: Mapping[str, Rows]) -> str:
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


def largest(groups: Mapping[str, Rows]) -> dict[str, Rows]:
    """The groups of most rows, no more than a figure holds, in their own order."""

    def rows(name: str) -> float:
        return next(r["value"] for r in groups[name] if (r["metric"], r["statistic"]) == ("volume", "rows"))

    kept = sorted(groups, key=lambda name: -rows(name))[:MOST_GROUPS]
    return {name: found for name, found in groups.items() if name in kept}


def write_png(sets: Mapping[str, Rows], name: str, path: str | os.PathLike[str]) -> Path:
    """The figure of the sets as PNG, whole or not at all."""
    write_bytes(path, figures.metrics_png(sets, name))
    return Path(path)


def card(sets: Mapping[str, Rows], title: str) -> str:
    """The figure as a card of a page."""
    return html.card(
        figures.metric_bars(sets),
        title,
        "One statistic for each metric, all on scales of their own from 0; a line on a bar is the bound of an estimate. More is not "
        "better by itself: what a task needs of a metric is what it is calibrated for.",
    )


def page(name: str, sets: Mapping[str, Rows], groups: Mapping[str, Rows]) -> str:
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
        html.section("Figures", html.grid(cards)),
        html.section("All statistics", html.table(heads, rows)),
    ]
    return html.document(f"{title} · raysel measure", "\n".join(parts))


def _cells(sets: Mapping[str, Rows]) -> list[list[str]]:
    order = list(dict.fromkeys((r["metric"], r["statistic"]) for rows in sets.values() for r in rows))
    known = {name: {(r["metric"], r["statistic"]): r for r in rows} for name, rows in sets.items()}
    found = []
    for metric, statistic in order:
        here = [known[name].get((metric, statistic)) for name in sets]
        values = [
            "null" if r is None or r["value"] is None else _within(r["value"], r["bound"]) for r in here
        ]
        unit = next((r["unit"] for r in here if r), "")
        reasons = list(dict.fromkeys(r["reason"] for r in here if r and r["reason"]))
        found.append([metric, statistic, *values, unit, "; ".join(reasons)])
    return found


def _within(value: float, bound: float | None) -> str:
    return numbers.digits(value) + (f" ±{numbers.digits(float(f'{bound:.2g}'))}" if bound else "")
