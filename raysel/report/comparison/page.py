"""The page of a comparison, and its figures as a PNG file."""

from __future__ import annotations

import os
from itertools import accumulate

from raysel.core.storage import Place, output, write_bytes
from raysel.report import html
from raysel.report.comparison.findings import findings, headline, notes
from raysel.report.comparison.rows import rows
from raysel.report.comparison.tables import table_cells
from raysel.report.figures.colours import arm_colours
from raysel.report.figures.comparison import (
    PolicyCurves,
    comparison_png,
    final_metrics,
    metric_against_samples,
)
from raysel.report.results import CompareResults
from raysel.report.sections.opening import roles, rows_per_role
from raysel.report.sections.provenance import configuration, versions
from raysel.report.sections.training import NO_VALIDATION


def write_png(results: CompareResults, path: str | os.PathLike[str]) -> Place:
    """Write the two figures of the page side by side as one PNG, completely or not at all."""
    write_bytes(path, comparison_png(_drawn(results), results.name, results.goal, len(results.seeds)))
    return output(path)


def render(results: CompareResults) -> str:
    """Return the comparison as one HTML page that fetches nothing; the same results make the same text."""
    drawn = _drawn(results)
    table = rows(results)
    goal = results.goal
    label, heading = html.text(goal.label), html.text(goal.head)
    odd = "below" if goal.direction == "max" else "above"
    colours = dict(zip(results.policies, (one.colour for one in drawn), strict=True))
    (*head, value, minus), *body = table_cells(results, compact=False)
    for cells, row in zip(body, table, strict=True):
        tag = ' <span class="tag">sets the budget</span>' if row.budget == "sets" else ""
        tag = ' <span class="tag">does not keep to the budget</span>' if row.budget == "free" else tag
        cells[0] = html.dot(colours[row.name]) + html.text(cells[0]) + tag
    own = results.policies[results.own].title
    figures = [
        (
            metric_against_samples(drawn, goal),
            f"{heading} against samples",
            f"{heading} on the validation rows after each epoch, against the number of samples "
            "back-propagated until then. Each thin line is one seed, and each colour one policy. "
            f"The vertical axis fits the {html.text(goal.plural)} after the first quarter of each line; earlier ones can be {odd} its "
            "range and are then not shown. "
            "Compare only the ends of the lines, because earlier in the training, the learning rates of the policies can differ."
            if any(one.curves for one in drawn)
            else f"{heading} on the test rows after the last epoch, against the number of samples back-propagated in all. Each "
            f"dot is one seed, and each colour one policy. {NO_VALIDATION}",
        ),
        (
            final_metrics(drawn, goal),
            f"Final {label}",
            f"{heading} on the test rows after the last epoch. Open dots: one per seed. Bar: mean over the seeds ± one standard "
            f"deviation. Vertical line: mean of {html.text(own)}. The table under “Policies” has the differences between the means.",
        ),
    ]
    cards = [html.card(*figure) for figure in figures if figure[0]]
    lead = (
        f"A policy decides which samples each epoch trains on. {html.text(own)} is the policy of the "
        f"workflow. The other policies are controls to compare {html.text(own)} with. The budget of a control is the number of "
        f"samples that {html.text(own)} back-propagated with the same seed."
    )
    said = "\n".join(f"<li>{html.bound(html.text(sentence))}</li>" for sentence in findings(results))
    read = "\n".join(f'<p class="note">{html.bound(html.text(sentence))}</p>' for sentence in notes(results))
    pool, *others = rows_per_role(results.data)
    facts = [
        pool,
        *([f"{html.many(results.rows, 'row')} selected"] if results.rows != results.data.pool else []),
        *others,
        html.many(len(results.seeds), "seed"),
        html.text(html.moment(results.created)),
    ]
    name = html.text(results.name)
    opening = (
        f'<header>\n<p class="kicker">raysel compare</p>\n<h1>{name.replace("_", "_<wbr>")}</h1>\n'
        f'<p class="headline">{html.bound(html.text(headline(results)))}</p>\n'
        f'<p class="facts">{" · ".join(facts)}</p>\n<p class="note">{roles(results.data, goal)}</p>\n</header>'
    )
    heads = [
        *(name[0].upper() + name[1:] for name in head),
        f"{html.text(value[:1].upper() + value[1:])}{goal.hint}",
        minus[0].upper() + minus[1:].removesuffix(", points"),
    ]
    sections = [
        opening,
        html.section("Policies", f'<p class="lead">{lead}</p>\n{html.table(heads, body)}'),
        html.section("Findings", f'<ul class="said">\n{said}\n</ul>'),
        html.section("Figures", html.grid(cards)) if cards else "",
        html.section("How to read this", read),
        configuration(results),
        versions(results),
    ]
    return html.document(f"{name} · raysel compare", "\n".join(part for part in sections if part))


def _drawn(results: CompareResults) -> list[PolicyCurves]:
    """Return what the figures show of each policy, in the order of the results."""
    arms = ["chain" if name == results.own else name for name in results.policies]
    colours = arm_colours(arms)
    drawn = []
    for arm, (name, policy) in zip(arms, results.policies.items(), strict=True):
        ends, curves = [], []
        for cell in policy.cells:
            spent = list(accumulate(epoch.trained for epoch in cell.epochs))
            end = results.goal.value(cell.metrics)
            ends += [] if end is None else [(spent[-1], end)]
            curves.append(
                tuple(
                    (samples, value)
                    for samples, epoch in zip(spent, cell.epochs, strict=True)
                    if (value := results.goal.value(epoch.metrics)) is not None
                )
            )
        drawn.append(
            PolicyCurves(
                title=policy.title,
                colour=colours[arm],
                own=name == results.own,
                ends=tuple(ends),
                curves=tuple(curve for curve in curves if curve),
            )
        )
    return drawn
