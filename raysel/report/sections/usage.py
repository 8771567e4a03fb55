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
        f"; a factor that is active in n of the {html.many(classes, 'class', 'classes')} counts 1/n"
        if classes is not None
        else ""
    )
    left = (
        ""
        if usage.unexplained is None
        else f" The factors leave {numbers.percent(usage.unexplained)} of the variance of the vectors unexplained."
    )
    lead = (
        "RepDiv is a policy, a rule that selects the samples of each epoch. It uses two scores, Rep (representative) and Div (diverse). "
        f"Both scores come from a sparse autoencoder with {html.many(scored.units, 'factor')} (hidden units). "
        f"{numbers.count(scored.live_units)} of the factors are active on at least one sample; on average, "
        f"{scored.active:.1f} factors are active on a sample.{html.bound(left)} Rep is high for a sample with "
        f"many frequent factors{shared}. Div is high for a sample with rare factors. Every selected sample "
        "has the weight 1 in the loss, so the gradient is not an unbiased estimate of the gradient on all "
        "samples."
    )
    policies = usage.policies
    if not policies:
        body = (
            '<p class="missing">How often each sample was used was not computed, because there are too many samples and '
            "epochs.</p>"
        )
        return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{body}')
    uneven = ", ".join(f"{html.text(p.title)}{html.NBSP}{p.variation:.3f}" for p in policies)
    cards = [
        html.card(
            usage_histogram(policies),
            "How often samples were used",
            "The figure shows how many samples were selected in 0, 1, 2, … epochs, with one line per policy. The last epochs, "
            "which train on all samples, count as well. The Gini coefficient is 0 if all samples were selected equally often, and "
            "near 1 if a few samples account for almost all selections. The total variation distance is 0 if all samples were "
            "selected equally often; the larger it is, the larger the bias of the gradient can be. Here, it is "
            f"{uneven}.",
        ),
        html.card(
            rare_seen(policies),
            "Rare factors",
            "Each line is one policy. It shows the share of the rare factors that were active on at least one sample selected up "
            "to the end of each epoch. A factor is a hidden unit of the autoencoder that scores the samples; the rare factors are the "
            f"{html.many(usage.rare_units, 'factor')} that are active on the fewest samples. A higher line "
            "means that samples with rare factors were selected earlier.",
        ),
        html.card(
            alpha_curve(usage.alpha, len(policies[0].rare)),
            "From representative to diverse",
            "RepDiv selects samples by the weighted sum of two scores, Rep and Div. Alpha is the weight of Rep in each epoch; Div has the weight 1 − alpha. Rep is high for "
            "representative samples, Div for diverse ones. A falling line means that representative samples come first.",
        ),
    ]
    if usage.extremes:
        cards.append(_extremes(usage.extremes))
    note = (
        '<p class="note">The figures compare RepDiv with two controls, which are simpler policies. “random” selects another random subset in every '
        "epoch; “round robin” takes the samples one after another and, like RepDiv, ends with epochs on all the data. Both "
        "select as many samples as RepDiv. No model was trained with the controls: their selections do not depend on "
        "losses, so they were computed after the run.</p>"
    )
    return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{html.grid(cards)}{note}')


def _extremes(extremes: Extremes) -> str:
    """Return a card of the samples that were chosen most and least often of a class."""
    rows = []
    for title, samples in (("Most often", extremes.most), ("Least often", extremes.least)):
        shown = [(one.id, one.image, one.text, f"{numbers.count(one.times or 0)}\u00d7") for one in samples]
        rows.append(f"<h4>{title}</h4>\n{html.samples(shown)}")
    caption = (
        f"Samples of the class {html.text(extremes.label)} and the number of epochs in which the policy RepDiv selected them. Of all "
        "classes, this is the one whose samples were selected most unevenly. Of samples that were selected equally often, "
        "those with the lowest ids are shown."
    )
    body = "\n".join(rows)
    return f'<figure class="card wide">\n<h3>Used most and least often</h3>\n{body}\n<figcaption>{caption}</figcaption>\n</figure>'
