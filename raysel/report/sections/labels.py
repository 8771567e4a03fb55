"""Rows whose labels may be wrong."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.results import RunResults


def labels_section(results: RunResults) -> str:
    """Return the section of the labels to check; empty if they were not checked."""
    found = results.labels
    if found is None or not found.samples:
        return ""
    lead = (
        "A wrong label often shows in the losses: the loss of the row stays high during the training, while the losses of "
        "similar rows with correct labels fall. The file "
        f"<code>{html.text(found.file)}</code> ranks {numbers.count(found.ranked)} of the {numbers.count(found.rows)} "
        "training rows: those with the highest losses. The ranking compares the mean loss of a row over the epochs with the mean "
        "losses of its 10 nearest rows: the larger the difference from their median, the higher the rank. The nearest rows are "
        "those whose vectors have the highest cosine with the vector of the row. "
        f"{html.many(found.other, 'ranked row')} {'has' if found.other == 1 else 'have'} a higher loss than this median, and a "
        "label other than the most frequent one of the nearest rows."
    )
    shown = [
        (one.id, one.image, one.text, f"{one.id}<br>{html.text(f'{one.label} → {one.neighbours}')}")
        for one in found.samples
    ]
    caption = (
        "The first rows of the ranking, with id, label, and after the arrow the most frequent label of the nearest rows. Not "
        "all of these labels are wrong: unusual rows have high losses too."
    )
    body = (
        f'<figure class="card wide">\n<h3>Labels to check</h3>\n<h4>First rows of the ranking</h4>\n{html.samples(shown)}\n<figcaption>{caption}</figcaption>\n'
        "</figure>"
    )
    return html.section("Labels", f'<p class="lead">{lead}</p>\n{body}')
