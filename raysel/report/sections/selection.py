"""The static selection: how many rows, how close to the target, how much of every class."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.selection import kept_share_per_class, kl_curve
from raysel.report.results import RunResults


def selection_section(results: RunResults) -> str:
    """Return the section of the static selection; empty if there was none."""
    selection = results.selection
    if not selection:
        return ""
    method = html.text(selection.method)
    cards = []
    if drawn := kl_curve(selection.curve.rows, selection.curve.kl, selection.method):
        cards.append(
            html.card(
                drawn,
                "Divergence from the target",
                "Nearest-neighbour estimate of how far the selected rows are from covering the target, one point per "
                "selected centroid. Lower is closer.",
            )
        )
    if drawn := kept_share_per_class(selection.classes):
        known = all(entry.target is not None for entry in selection.classes)
        right = " Right: share of each class in the pool, the selected rows and the target." if known else ""
        cards.append(
            html.card(
                drawn,
                "Selected share of each class",
                f"Bars: share of the class’s pool rows that was selected; line: share of the complete pool.{right} "
                "Where a bar does not end at the line, selection changed the share of the class.",
            )
        )
    share = f", {numbers.percent(selection.kept / selection.pool)} of the pool" if selection.pool else ""
    lead = (
        f"{method} selected <b>{numbers.count(selection.kept)}</b> of {numbers.count(selection.pool)} rows"
        f"{html.bound(share)}, once, before training. Selection changes the distribution that is trained on; "
        "it does not claim to be unbiased. Where InfoBatch runs on the selected rows, it is unbiased with respect to "
        "them, not to the pool."
    )
    figures_ = html.grid(cards) or '<p class="missing">The course of the selection was not measured.</p>'
    return html.section("Selection", f'<p class="lead">{lead}</p>\n{figures_}')
