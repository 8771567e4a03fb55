"""Text in a figure: its width, and names in their colours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath

from raysel.report.figures.colours import INK
from raysel.report.goal import Goal

SIZE = 10.2  # points; labels


def plain(text: object) -> str:
    """Return one line that XML can hold: no control characters, no lone surrogates."""
    return re.sub(r"[\x00-\x20\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", str(text)).strip()


def text_width(text: str, bold: bool = False) -> float:
    """Return the width in points, measured in DejaVu Sans, which is wider than the fonts a page is likely to be shown in."""
    font = FontProperties(family="DejaVu Sans", size=SIZE, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def shorten(text: str, room: float, bold: bool = False) -> str:
    """Return text of at most ``room`` points, cut with an ellipsis."""
    if len(text) <= room and text_width(text, bold) <= room:
        return text
    text = text[: int(room)]  # a character is wider than a point
    while text and text_width(text + "…", bold) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def metric_name(goal: Goal) -> str:
    """Return the label of the reported metric, cut where it would not fit above a figure."""
    return shorten(plain(goal.label), 130)


def draw_words(
    figure: Figure,
    words: Sequence[tuple[str, str]],
    *,
    y: float,
    left: float = 0.0,
    right: float | None = None,
    squares: bool = False,
) -> None:
    """Draw words side by side in their colours, or in ink behind a square of the colour.

    Positions are in points from the lower left corner.
    """
    wide, tall = figure.bbox.width, figure.bbox.height
    widths = [text_width(word, bold=not squares) + (13 if squares else 0) for word, _ in words]
    place = left if right is None else right - sum(widths) - 10 * (len(words) - 1)
    for (word, colour), width in zip(words, widths, strict=True):
        if squares:
            square = Rectangle((place / wide, y / tall), 9 / wide, 9 / tall, facecolor=colour, linewidth=0)
            square.set_transform(figure.transFigure)
            figure.add_artist(square)
        look: dict[str, Any] = {"color": INK} if squares else {"color": colour, "fontweight": "bold"}
        figure.text((place + 13 * squares) / wide, y / tall, word, va="bottom", **look)
        place += width + 10
