"""The table of a comparison with its findings, for a terminal and as Markdown."""

from __future__ import annotations

import textwrap

from raysel.core.markdown import literal
from raysel.report import numbers
from raysel.report.comparison.findings import findings, headline, many, notes
from raysel.report.comparison.rows import difference_text, rows, value_text
from raysel.report.results import CompareResults

WIDTH = 100


def text(results: CompareResults) -> str:
    """Return the table and its findings for a terminal, at most 100 columns wide."""
    for compact in (False, True):
        cells = table_cells(results, compact)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= WIDTH:
            break
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = []
    for row in cells:
        first, *rest = textwrap.wrap(row[0], widths[0]) or [""]
        numbers_ = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers_]).rstrip())
        lines += rest
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    own, goal = results.policies[results.own].title, results.goal
    several = len(results.seeds) > 1
    meaning = [
        f"Samples: back-propagated. {goal.head}: on the test rows{goal.hint}"
        + (f", ± standard deviation over {many(len(results.seeds), 'seed')}" if several else "")
        + f". Difference: {own} minus the policy of the row"
        + (", ± standard error (from one difference per seed)." if several else "."),
        *findings(results),
    ]
    wrapped = [
        line for sentence in meaning for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *wrapped])


def markdown(results: CompareResults) -> str:
    """Return the table, the findings and the notes as Markdown."""
    head, *body = table_cells(results, compact=False)
    lines = [f"| {' | '.join(map(literal, head))} |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [f"| {' | '.join(literal(cell) for cell in row)} |" for row in body]
    said = "\n".join(f"- {literal(sentence)}" for sentence in findings(results))
    below = "\n\n".join(map(literal, notes(results)))
    table = "\n".join(lines)
    return f"# {literal(results.name)}: comparison of policies\n\n{literal(headline(results))}\n\n{table}\n\n{said}\n\n{below}\n"


def table_cells(results: CompareResults, compact: bool) -> list[list[str]]:
    """Return header and rows as text."""
    number = numbers.compact if compact else numbers.count
    goal = results.goal
    name = goal.short if compact else goal.label
    units = (", %", ", points") if goal.share else ("", "")
    head = [
        "policy",
        "samples",
        "of full",
        "steps",
        "seconds",
        name + units[0],
        "difference" + units[1],
    ]
    return [
        head,
        *(
            [
                row.title,
                number(round(row.samples)),
                numbers.percent(row.share),
                number(round(row.steps)),
                numbers.seconds(row.seconds),
                value_text(row, goal),
                difference_text(row),
            ]
            for row in rows(results)
        ),
    ]
