"""What a comparison found, in sentences, and the notes to read it by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysel.report import numbers
from raysel.report.comparison.rows import accuracy_text, points_text, rows
from raysel.report.results import CompareResults
from raysel.report.sections.reading import trusted_files

_MEANINGS = {  # what the policies of raysel do, by their names in a comparison
    "full": "trains on all rows in every epoch",
    "full_equal_steps": "trains on all rows, but stops after as many optimizer steps as {own} takes",
    "random_prune": "skips random samples and rescales the losses of the others",
    "random_subset": "trains on a new random subset in every epoch, without rescaling the losses and without epochs on all "
    "rows at the end",
    "round_robin": "takes the samples one after another in one random order, without rescaling the losses",
    "infobatch": "skips samples with a low loss at random and rescales the losses of the others",
    "repdiv": "selects representative samples first and diverse ones later",
}


def headline(results: CompareResults) -> str:
    """Return what the comparison found, in one sentence."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    start = f"With {numbers.percent(own.share)} of the training samples of full data, {own.title}"
    held = [row for row in table if row.budget == "held" and row.difference]
    if not held:
        return f"{start} reached a test accuracy of {accuracy_text(own)} %. No control was held to this number of samples."
    words = {"better": "is more accurate than", "tie": "ties with", "worse": "is less accurate than"}
    parts = []
    for verdict, verb in words.items():
        titles = [row.title for row in held if row.difference and row.difference.verdict == verdict]
        if titles:
            parts.append(f"{verb} {_listed(titles)}")
    if not parts:
        return (
            f"{own.title} used {numbers.percent(own.share)} of the training samples of full data; one seed does not show "
            "whether it is better than its controls."
        )
    return f"{start} {_listed(parts)} at the same number of samples."


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
            fewer = 1 - own.samples / row.samples
            spent = f"{numbers.saving(abs(fewer))} {'fewer' if fewer >= 0 else 'more'} samples"
            ends = {
                "better": f"is more accurate: {points}.",
                "worse": f"is less accurate: {points}.",
                "tie": f"ties with it: {points}.",
                "one seed": f"differs by {points}; one seed does not show whether that is chance.",
            }
            sentences.append(f"With {spent} than {row.title}, {own.title} {ends[found.verdict]}")
        else:
            ends = {
                "better": f"is more accurate than {row.title}: {points}.",
                "worse": f"is less accurate than {row.title}: {points}.",
                "tie": f"is not more accurate than {row.title}: {points}, a tie.",
                "one seed": f"differs from {row.title} by {points}; one seed does not show whether that is chance.",
            }
            sentences.append(f"At the same number of samples, {own.title} {ends[found.verdict]}")
    return sentences


def notes(results: CompareResults) -> list[str]:
    """Return what has to be known to read the table."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    seeds = len(results.seeds)
    error = max(100 * math.sqrt(row.accuracy * (1 - row.accuracy) / results.data.test) for row in table)
    held = [row.title for row in table if row.budget == "held"]
    free = [row.title for row in table if row.budget == "free"]
    accuracy = f"Accuracy: share of the {numbers.count(results.data.test)} test rows that the model gets right after the last epoch"
    minus = f"Difference: accuracy of {own.title} minus that of the policy of the row, in percentage points"
    meanings = [
        f"{row.title} {_MEANINGS[row.name].format(own=own.title)}" for row in table if row.name in _MEANINGS
    ]
    sentences = [
        *([f"What the policies do: {'; '.join(meanings)}."] if meanings else []),
        f"The numbers are means over {many(seeds, 'seed')} ({', '.join(map(str, results.seeds))}). {accuracy}, ± standard "
        f"deviation over the seeds. {minus}, ± standard error over pairs with the same seed."
        if seeds > 1
        else f"Every policy was trained with one seed ({results.seeds[0]}). {accuracy}. {minus}.",
        "Samples: back-propagated samples; a row counts once for each epoch that used it. Of full: their share of all rows "
        f"in all epochs. The budget of a control is the number of samples that {own.title} back-propagated with the same seed"
        + (f". Controls held to this budget: {', '.join(held)}" if held else "")
        + (f". Controls not held to it: {', '.join(free)}" if free else "")
        + f". All batches have {numbers.count(results.batch_size)} samples, and the learning rate of every policy decays to "
        "zero at its own last step.",
        "A tie means that the 95 % confidence interval of the difference contains zero (Student's t over the pairs). Each "
        "difference is tested separately, without a correction for the number of policies. All policies are scored on the same test rows, which are only a sample of all "
        f"possible rows: because of this, each accuracy has a standard error of up to {error:.2f} points, which the standard "
        "deviation over the seeds does not include.",
        "Seconds: time of training and planning in one process with one thread, without start-up. It depends on what else "
        "the machine was doing, so compare the numbers of samples and steps instead.",
    ]
    if results.trusted:
        sentences.append(trusted_files(results.trusted))
    return sentences


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def many(count: int, one: str) -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{count} {one}{'' if count == 1 else 's'}"
