"""What a comparison found, in sentences, and the notes to read it by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysel.report import numbers
from raysel.report.comparison.rows import accuracy_text, points_text, rows
from raysel.report.results import CompareResults
from raysel.report.sections.reading import trusted_files


def headline(results: CompareResults) -> str:
    """Return what the comparison found, in one sentence."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    start = f"With {numbers.percent(own.share)} of the passes of full data, {own.title}"
    held = [row for row in table if row.budget == "held" and row.difference]
    if not held:
        return f"{start} reached an accuracy of {accuracy_text(own)} %; no control was trained at the same budget."
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
        points = f"{points_text(found)} points"
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
        f"The numbers are means over {many(seeds, 'seed')} ({', '.join(map(str, results.seeds))}). The accuracy is that "
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


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def many(count: int, one: str) -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{count} {one}{'' if count == 1 else 's'}"
