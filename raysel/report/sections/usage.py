"""Which samples RepDiv used, next to what its controls would have used at the same cost."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.usage import alpha_curve, rare_seen, usage_histogram
from raysel.report.results import Extremes, RunResults


def usage_section(results: RunResults) -> str:
    """Return the section of the samples used; empty if the run did not use RepDiv."""
    usage = results.usage
    if not usage:
        return ""
    scored, classes = usage.scored, usage.scored.classes
    shared = (
        f"For Rep, a frequent factor counts as 1 divided by the number of the {html.many(classes, 'class', 'classes')} that have it"
        if classes is not None
        else "They are scored without classes: for Rep, every frequent factor counts as 1"
    )
    left = (
        ""
        if usage.unexplained is None
        else f"; {numbers.percent(usage.unexplained)} of the variance is not explained"
    )
    lead = (
        f"RepDiv selected the samples of each epoch by {html.many(scored.units, 'factor')} of a sparse autoencoder, "
        f"{numbers.count(scored.live_units)} of them in use, {scored.active:.1f} per sample{html.bound(left)}. "
        f"{shared}. Every weight is 1; RepDiv does not claim to be unbiased."
    )
    policies = usage.policies
    if not policies:
        body = '<p class="missing">The use of the samples was not computed, because there are too many.</p>'
        return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{body}')
    uneven = ", ".join(f"{html.text(p.title)}{html.NBSP}{p.variation:.3f}" for p in policies)
    cards = [
        html.card(
            usage_histogram(policies),
            "How often samples were used",
            "The Gini coefficient is 0 when all samples were used equally often. The total variation from a uniform draw bounds the "
            f"bias of the gradient: {uneven}. The last epochs, on all the data, are included.",
        ),
        html.card(
            rare_seen(policies),
            "Rare factors",
            f"Share of the {html.many(usage.rare_units, 'factor')} with the fewest samples that a run had seen on at "
            "least one sample.",
        ),
        html.card(
            alpha_curve(usage.alpha, len(policies[0].rare)),
            "From representative to diverse",
            "alpha is the weight of Rep; the weight of Div is 1 − alpha.",
        ),
    ]
    if usage.extremes:
        cards.append(_extremes(usage.extremes))
    note = (
        '<p class="note">Random subsets and round robin use as many samples as RepDiv. Like RepDiv, round robin ends with epochs on full data. Neither was '
        "trained: like those of RepDiv, their plans do not depend on losses.</p>"
    )
    return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{html.grid(cards)}{note}')


def _extremes(extremes: Extremes) -> str:
    """Return a card of the samples that were chosen most and least often of a class."""
    rows = []
    for title, samples in (("Most often", extremes.most), ("Least often", extremes.least)):
        items = []
        for sample in samples:
            name = f"sample_id {sample.id}"
            what = (
                f'<img src="data:image/png;base64,{html.text(sample.image)}" alt="{name}" title="{name}">'
                if sample.image is not None
                else f"<q>{html.text(_short(sample.text or ''))}</q>"
            )
            items.append(f"<li>{what}<small>{numbers.count(sample.times)}\u00d7</small></li>")
        kind = "thumbs" if samples and samples[0].image is not None else "texts"
        rows.append(f'<h4>{title}</h4>\n<ul class="{kind}">{"".join(items)}</ul>')
    caption = (
        f"Samples of the class {html.text(extremes.label)}, which was used most unevenly. Among samples that were used "
        "equally often, those with the lowest ids are shown."
    )
    body = "\n".join(rows)
    return f'<figure class="card wide">\n<h3>Used most and least often</h3>\n{body}\n<figcaption>{caption}</figcaption>\n</figure>'


def _short(words: str, most: int = 160) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
