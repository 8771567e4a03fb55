"""A comparison of policies over seeds: its numbers, the table for a terminal and for Markdown, the figure, the page.

Everything is computed from :class:`raysel.report.results.CompareResults`. The accuracies of the table are on the test
rows after the last epoch; only the curves of the figure are on the validation rows. A spread is the standard deviation
over seeds; a difference is taken seed by seed, with its standard error.
"""

from __future__ import annotations

import math
import os
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from scipy.special import stdtrit

from raysel.core.storage import write_bytes
from raysel.report import figures, html, numbers
from raysel.report.page import NO_VALIDATION, configuration, rows_per_role, trusted_files, versions
from raysel.report.results import CompareResults

WIDTH = 100
_MINUS = "\u2212"


@dataclass(frozen=True)
class Difference:
    """The workflow's policy minus another, in points of accuracy: the mean over pairs of equal seed.

    error: the standard error of that mean, None with one seed. verdict: "better", "tie" or "worse" by the 95 %
    interval of Student's t over the pairs; "one seed" where there is no spread to judge by.
    """

    mean: float
    error: float | None
    verdict: str


@dataclass(frozen=True)
class Row:
    """One policy: means over seeds. accuracies and deviation are shares in [0, 1]; seconds are of training and planning."""

    name: str
    title: str
    budget: str
    passes: float
    share: float
    steps: float
    seconds: float
    accuracies: tuple[float, ...]
    accuracy: float
    deviation: float | None
    difference: Difference | None


def rows(results: CompareResults) -> list[Row]:
    """Return the table's rows in the given order; ``share`` is of the passes over all data in all epochs."""
    own = results.own
    final = {name: tuple(cell.accuracy for cell in policy.cells) for name, policy in results.policies.items()}
    every = results.rows * results.epochs
    found = []
    for name, policy in results.policies.items():
        cells = [cell.epochs for cell in policy.cells]
        passes = statistics.fmean(sum(e.trained for e in epochs) for epochs in cells)
        accuracies = final[name]
        found.append(
            Row(
                name=name,
                title=policy.title,
                budget=policy.budget,
                passes=passes,
                share=passes / every,
                steps=statistics.fmean(sum(e.steps for e in epochs) for epochs in cells),
                seconds=statistics.fmean(
                    sum(e.seconds - e.evaluation_seconds for e in epochs) for epochs in cells
                ),
                accuracies=accuracies,
                accuracy=statistics.fmean(accuracies),
                deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                difference=None if name == own else difference(final[own], accuracies, results.data.test),
            )
        )
    return found


def difference(own: Sequence[float], other: Sequence[float], test_rows: int) -> Difference:
    """``own`` minus ``other`` by pairs, accuracies as shares.

    Accuracies move in steps of one test row: pairs that agree by chance are judged as if they spread by that much.
    """
    pairs = [100 * (a - b) for a, b in zip(own, other, strict=True)]
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return Difference(mean, None, "one seed")
    spread = statistics.stdev(pairs)
    reach = stdtrit(len(pairs) - 1, 0.975) * max(spread, 100 / test_rows) / math.sqrt(len(pairs))
    verdict = "tie" if abs(mean) <= reach else "better" if mean > 0 else "worse"
    return Difference(mean, spread / math.sqrt(len(pairs)), verdict)


# ---- in words ------------------------------------------------------------------------------------------------


def headline(results: CompareResults) -> str:
    """Return what the comparison found, in one sentence."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    start = f"With {numbers.percent(own.share)} of the passes of full data, {own.title}"
    held = [row for row in table if row.budget == "held" and row.difference]
    if not held:
        return (
            f"{start} reached an accuracy of {_accuracy(own)} %; no control was trained at the same budget."
        )
    words = {
        "better": "is more accurate than",
        "tie": "cannot be distinguished from",
        "worse": "is less accurate than",
    }
    parts = []
    for verdict, verb in words.items():
        titles = [row.title for row in held if row.difference and row.difference.verdict == verdict]
        if titles:
            parts.append(f"{verb} {_listed(titles)}")
    if not parts:
        return (
            f"{start} was trained once, as were its controls; one seed shows no spread, so no claim is made."
        )
    return f"{start} {_listed(parts)} at the same budget."


def findings(results: CompareResults) -> list[str]:
    """Return a sentence per policy compared with the workflow's own, the controls at its budget first."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    sentences = []
    for row in sorted(table, key=lambda row: row.budget != "held"):
        found = row.difference
        if found is None:
            continue
        points = f"{_points(found)} points"
        if row.budget != "held":
            fewer = 1 - own.passes / row.passes
            spent = f"{numbers.saving(abs(fewer))} {'fewer' if fewer >= 0 else 'more'} passes"
            ends = {
                "better": "is more accurate",
                "worse": "is less accurate",
                "tie": "ties",
                "one seed": "was trained with one seed, so no claim is made",
            }
            sentences.append(f"With {spent} than {row.title}, {own.title} {ends[found.verdict]}: {points}.")
        elif found.verdict == "better":
            sentences.append(f"{own.title} is more accurate than {row.title} at the same budget: {points}.")
        elif found.verdict == "one seed":
            sentences.append(
                f"{own.title} differs from {row.title} by {points} at the same budget; one seed supports no claim."
            )
        else:
            how = "a tie" if found.verdict == "tie" else "less accurate"
            sentences.append(
                f"{own.title} is not more accurate than {row.title} at the same budget: {points}, {how}."
            )
    return sentences


def notes(results: CompareResults) -> list[str]:
    """Return what has to be known to read the table."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    seeds = len(results.seeds)
    error = max(100 * math.sqrt(row.accuracy * (1 - row.accuracy) / results.data.test) for row in table)
    held = [row.title for row in table if row.budget == "held"]
    free = [row.title for row in table if row.budget == "free"]
    sentences = [
        f"The numbers are means over {_many(seeds, 'seed')} ({', '.join(map(str, results.seeds))}). The accuracy is that "
        f"after the last epoch on {numbers.count(results.data.test)} test rows, ± the standard deviation over seeds. The "
        f"difference is {own.title} minus the policy of the row, in points, ± the standard error over pairs of equal seed.",
        f"Passes are back-propagated samples. For each seed, the passes that {own.title} used are the budget of the controls"
        + (f". Trained with this budget: {', '.join(held)}" if held else "")
        + (f". Trained at their own cost: {', '.join(free)}" if free else "")
        + f". All batches have {numbers.count(results.batch_size)} samples, and the learning rate of every policy has decayed to "
        "zero at its own last step.",
        "A tie means that the 95 % interval of Student's t over the pairs contains zero. Each verdict is computed "
        f"separately. All policies are scored on the same test rows. Because these rows are only a sample, each accuracy has "
        f"a standard error of up to {error:.2f} points, which the spread over seeds does not include.",
        "Seconds are those of training and planning in one process with one thread, without start-up, on a machine that "
        "did other work too. Compare passes and steps rather than seconds.",
    ]
    if any(row.name == "random_subset" for row in table):
        sentences.append("Random subsets are not rescaled and do not end with epochs on full data.")
    if results.trusted:
        sentences.append(trusted_files(results.trusted))
    return sentences


def text(results: CompareResults) -> str:
    """Return the table and its findings for a terminal, at most 100 columns wide."""
    for compact in (False, True):
        cells = _cells(results, compact)
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
    own = results.policies[results.own].title
    meaning = [
        f"Accuracy ± standard deviation over {_many(len(results.seeds), 'seed')}. Difference: {own} minus the policy of the "
        "row, ± standard error of the pairs.",
        *findings(results),
    ]
    wrapped = [
        line for sentence in meaning for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *wrapped])


def markdown(results: CompareResults) -> str:
    """Return the table, the findings and the notes as Markdown."""
    head, *body = _cells(results, compact=False)
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in body]
    said = "\n".join(f"- {sentence}" for sentence in findings(results))
    below = "\n\n".join(notes(results))
    table = "\n".join(lines)
    return (
        f"# {results.name}: comparison of policies\n\n{headline(results)}\n\n{table}\n\n{said}\n\n{below}\n"
    )


def _cells(results: CompareResults, compact: bool) -> list[list[str]]:
    """Header and rows as text."""
    number = numbers.compact if compact else numbers.count
    head = ["policy", "passes", "of full", "steps", "seconds", "accuracy, %", "difference, points"]
    return [
        head,
        *(
            [
                row.title,
                number(round(row.passes)),
                numbers.percent(row.share),
                number(round(row.steps)),
                numbers.seconds(row.seconds),
                _accuracy(row),
                _points(row.difference) if row.difference else "",
            ]
            for row in rows(results)
        ),
    ]


def _accuracy(row: Row) -> str:
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
    return f"{100 * row.accuracy:.2f}{spread}"


def _points(found: Difference) -> str:
    error = "" if found.error is None else f" ± {found.error:.2f}"
    return f"{found.mean:+.2f}{error}".replace("-", _MINUS)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _many(count: int, one: str) -> str:
    return f"{count} {one}{'' if count == 1 else 's'}"


# ---- drawn ---------------------------------------------------------------------------------------------------


def write_png(results: CompareResults, path: str | os.PathLike[str]) -> Path:
    """Write the two figures of the page side by side as one PNG, completely or not at all."""
    write_bytes(path, figures.comparison_png(_drawn(results), results.name))
    return Path(path)


def render(results: CompareResults) -> str:
    """Return the comparison as one HTML page that fetches nothing; the same results make the same text."""
    drawn = _drawn(results)
    table = rows(results)
    colours = dict(zip(results.policies, (one.colour for one in drawn), strict=True))
    head, *body = _cells(results, compact=False)
    for cells, row in zip(body, table, strict=True):
        tag = ' <span class="tag">sets the budget</span>' if row.budget == "sets" else ""
        tag = ' <span class="tag">at its own cost</span>' if row.budget == "free" else tag
        cells[0] = html.dot(colours[row.name]) + html.text(cells[0]) + tag
    cards = [
        html.card(
            figures.accuracy_against_passes(drawn),
            "Accuracy against passes",
            "The accuracy is on the validation rows. A thin line is one seed; its first epochs may lie below the axis. Compare "
            "only the last points of the lines. At earlier points the learning rate is still high."
            if any(one.curves for one in drawn)
            else f"A dot is the accuracy of one seed on the test rows after the last epoch. {NO_VALIDATION}",
        ),
        html.card(
            figures.final_accuracies(drawn),
            "Final accuracy",
            "The accuracy is on the test rows. Open dots are seeds; the bar is their mean ± one standard deviation. The vertical "
            "line is the mean of the workflow's own policy.",
        ),
    ]
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
        f'<p class="facts">{" · ".join(facts)}</p>\n</header>'
    )
    heads = [name[0].upper() + name[1:].removesuffix(", points") for name in head]
    sections = [
        opening,
        html.section("Policies", html.table(heads, body)),
        html.section("Findings", f'<ul class="said">\n{said}\n</ul>'),
        html.section("Figures", html.grid(cards)),
        html.section("How to read this", read),
        configuration(results),
        versions(results),
    ]
    return html.document(f"{name} · raysel compare", "\n".join(part for part in sections if part))


def _drawn(results: CompareResults) -> list[figures.PolicyCurves]:
    """Return what the figures show of each policy, in the order of the results."""
    arms = ["chain" if name == results.own else name for name in results.policies]
    colours = figures.arm_colours(arms)
    drawn = []
    for arm, (name, policy) in zip(arms, results.policies.items(), strict=True):
        ends, curves = [], []
        for cell in policy.cells:
            spent = list(accumulate(epoch.trained for epoch in cell.epochs))
            ends.append((spent[-1], cell.accuracy))
            curves.append(
                tuple(
                    (passes, epoch.accuracy)
                    for passes, epoch in zip(spent, cell.epochs, strict=True)
                    if epoch.accuracy is not None
                )
            )
        drawn.append(
            figures.PolicyCurves(
                title=policy.title,
                colour=colours[arm],
                own=name == results.own,
                ends=tuple(ends),
                curves=tuple(curve for curve in curves if curve),
            )
        )
    return drawn
