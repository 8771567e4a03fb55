"""The figure of what every arm cost in seconds."""

from __future__ import annotations

import math

from matplotlib.patches import Rectangle

from raysel.report import numbers
from raysel.report.figures.canvas import WIDTH, add_axes, new_figure, to_svg
from raysel.report.figures.colours import INK, STAGE_COLOURS
from raysel.report.figures.text import draw_words, plain, shorten, text_width
from raysel.report.ledger import STAGES, Ledger


def cost_bars(ledger: Ledger) -> str:
    """Draw the wall-clock seconds of each arm, stacked by stage; a stage that was not measured is left out and named."""
    entries = ledger.entries
    known = [[seconds for seconds in entry.seconds.values() if seconds is not None] for entry in entries]
    most = max(map(math.fsum, known), default=0.0)
    if not most:
        return ""
    stages = [stage for stage in STAGES if any(entry.seconds[stage] for entry in entries)]
    step = 42.0
    top, bottom = 30.0, 8.0
    height = top + bottom + step * len(entries)
    with new_figure(height) as figure:
        axes = add_axes(figure, left=8, right=8, top=top, bottom=bottom, grid=None)
        axes.set_ylim(height - top - bottom, 0)
        endings = [
            f"{numbers.seconds(math.fsum(values))} s"
            + ("" if len(values) == len(STAGES) else " + stages not measured")
            for values in known
        ]
        room = max(text_width(text, bold=True) for text in endings) + 8
        axes.set_xlim(0, most * (WIDTH - 16) / (WIDTH - 16 - room))
        axes.set_axis_off()
        for i, (entry, ending) in enumerate(zip(entries, endings, strict=True)):
            y = step * i + 29
            axes.text(0, y - 11, shorten(plain(entry.title), WIDTH - 20), va="bottom", color=INK)
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
        draw_words(figure, [(s, STAGE_COLOURS[s]) for s in stages], left=8, y=height - 16, squares=True)
        return to_svg(figure, "costs", "Seconds of each stage")
