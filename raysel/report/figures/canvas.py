"""An empty figure in our style, its axes, and the figure as an SVG string or a PNG file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.figure import Figure

from raysel.report.figures.colours import GRID, INK, MUTED
from raysel.report.figures.text import SIZE, plain

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

WIDTH = 360.0  # points: text keeps its size in two columns on a wide page and in one on a telephone

_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": SIZE,
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


@contextmanager
def new_figure(height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Return an empty figure in our own style, whatever the user's matplotlibrc says; sizes are in points."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def add_axes(
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


def to_svg(figure: Figure, name: str, title: str) -> str:
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
    label = escape(plain(title), {'"': "&quot;"})
    opening = f'<svg style="stroke-linejoin: round; stroke-linecap: butt" role="img" aria-label="{label}"'
    return svg.replace("<svg", opening, 1).strip() + "\n"


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()
