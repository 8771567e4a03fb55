"""Colours of the figures: Okabe and Ito's, darkened where they have to carry text.

They differ with any colour vision, and on the white card of a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence

INK, MUTED, GRID = "#1f2933", "#5f6b7a", "#e4e7ec"

STAGE_COLOURS = {
    "embedding": "#56b4e9",
    "metrics": "#cc79a7",
    "selection": "#e69f00",
    "start-up": "#d0d5dd",
    "planning": "#009e73",
    "training": "#b4bcc8",
    "other": "#e4e7ec",
}

ARM_COLOURS = {"full": "#4a5361", "random": "#c25608", "chain": "#0068b0"}

OTHER_COLOURS = ("#007a5a", "#96387f", "#7a6500", "#2f8fc4", "#8c2d19", "#5b4fa2")


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour per arm: the usual arms always have theirs, others take the rest in order."""
    others = [arm for arm in arms if arm not in ARM_COLOURS]
    return {
        arm: ARM_COLOURS.get(arm) or OTHER_COLOURS[others.index(arm) % len(OTHER_COLOURS)] for arm in arms
    }
