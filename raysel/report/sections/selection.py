"""The static selection: how many rows, how close to the target, how much of every class."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.selection import kept_share_per_class, kl_curve
from raysel.report.results import ReasonShown, RunResults


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
                "The Kullback-Leibler divergence measures how much the distribution of the rows selected so far differs from that "
                "of the target (the sample of the data that the model is for). It is estimated from the embedding vectors, in "
                "nats. The curve shows the estimate after each row or cluster of rows that was selected. A lower value means that the "
                "selected rows are more like the target. Where the curve is flat, further rows change the divergence little. The "
                "estimate can be negative, and it has no error bars.",
            )
        )
    if drawn := kept_share_per_class(selection.classes):
        known = all(entry.target is not None for entry in selection.classes)
        right = (
            " Right: the share of each class among the rows of the pool, the selected rows and the target (the sample of the data that the model is for), in percent."
            if known
            else ""
        )
        cards.append(
            html.card(
                drawn,
                "Selected share of each class",
                f"{'Left: for' if known else 'For'} each class, the percentage of its pool rows (the rows to select from) that were "
                "selected. The vertical line shows the percentage for all classes together. A class whose "
                f"bar crosses the line has a larger share of the selected rows than of the pool rows.{right}",
            )
        )
    if selection.reasons:
        cards.append(_gallery(selection.reasons))
    share = f" ({numbers.percent(selection.kept / selection.pool)})" if selection.pool else ""
    lead = (
        f"{method} selected <b>{numbers.count(selection.kept)}</b> of the {numbers.count(selection.pool)} "
        f"pool rows{html.bound(share)} once, before training. "
    )
    if results.only_selects:
        lead += f"The selected rows are in the folder <code>{html.text(selection.folder)}</code> of the run directory."
    else:
        lead += "The training with the methods of the workflow uses only the selected rows."
    notes = "".join(f"<p>{html.text(note)}</p>\n" for note in selection.notes)
    figures = (
        html.grid(cards)
        or '<p class="missing">The selector recorded neither a divergence nor the classes of the rows, so there is no figure.</p>'
    )
    return html.section("Selection", f'<p class="lead">{lead}</p>\n{notes}{figures}')


def _gallery(reasons: tuple[ReasonShown, ...]) -> str:
    """Return a card of rows that were selected or dropped for each reason."""
    rows = []
    for one in reasons:
        what = "selected" if one.kept else "dropped"
        title = f"{html.many(one.rows, 'row')} {what}: {html.text(one.reason)}"
        shown = [(row.id, row.image, row.text, f"{row.id}") for row in one.samples]
        rows.append(f"<h4>{title}</h4>\n{html.samples(shown)}")
    caption = (
        "For each reason for which rows were selected or dropped, some random rows with their ids are shown. In a reason, the sign # "
        "stands for a number that differs from row to row. Only the most frequent reasons are shown, both for selected and for "
        "dropped rows."
    )
    body = "\n".join(rows)
    return (
        f'<figure class="card wide">\n<h3>Selected and dropped rows</h3>\n{body}\n<figcaption>{caption}</figcaption>\n'
        "</figure>"
    )
