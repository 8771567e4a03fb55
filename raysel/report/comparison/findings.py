"""What a comparison found, in sentences, and the notes to read it by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysel.report import numbers
from raysel.report.comparison.rows import Row, difference_text, rows, value_text
from raysel.report.goal import Goal
from raysel.report.results import CompareResults
from raysel.report.sections.reading import trusted_files

_MEANINGS = {  # what the policies of raysel do, by their names in a comparison
    "full": "trains on all rows in every epoch",
    "full_equal_steps": "trains on all rows, but stops after as many optimizer steps as {own} takes",
    "random_prune": "skips random samples and gives the others a larger weight in the loss",
    "random_subset": "trains on a new random subset in every epoch, without weights in the loss and without epochs on all "
    "rows at the end",
    "round_robin": "takes the samples one after another in one random order, without weights in the loss",
    "infobatch": "skips some of the samples with a low loss at random, and gives the rest of these samples a larger weight in the loss",
    "repdiv": "selects representative samples first and diverse ones later",
}


def headline(results: CompareResults) -> str:
    """Return what the comparison found, in at most three sentences."""
    table, goal = rows(results), results.goal
    own = next(row for row in table if row.name == results.own)
    start = f"{own.title} back-propagated {numbers.percent(own.share)} as many samples as a training on all rows in every epoch"
    held = [row for row in table if row.budget == "held" and row is not own]
    reached = f"reached a test {goal.label} of {value_text(own, goal)}{' %' if goal.share else ''}{goal.hint}"
    if own.value is None:
        return (
            f"{start}. Its test {goal.label} is not a finite number with every seed, so it is not compared."
        )
    if not held:
        return f"{start} and {reached}. No control was trained on the same number of samples."
    if not any(row.difference for row in held):
        return (
            f"{start} and {reached}. The controls with the same number of samples are not compared, because their test {goal.label} "
            "is not a finite number with every seed."
        )
    words = {
        "better": f"{_is(goal, 'better')} than",
        "tie": "ties with",
        "worse": f"{_is(goal, 'worse')} than",
    }
    parts = []
    for verdict, verb in words.items():
        titles = [row.title for row in held if row.difference and row.difference.verdict == verdict]
        if titles:
            parts.append(f"{verb} {_listed(titles)}")
    if not parts:
        return f"{start}; one seed does not show whether it is better than the other policies."
    return f"{start}. At the same number of samples, it {_listed(parts)}."


def _is(goal: Goal, verdict: str) -> str:
    """Return "is more accurate", or "has a better" and the name of another metric."""
    if goal.accuracy:
        return f"is {'more' if verdict == 'better' else 'less'} accurate"
    return f"has a {verdict} {goal.label}"


def _away(row: Row, goal: Goal) -> str:
    """Return the difference of a row as text, in points for a share, else with the relative difference."""
    found, words = row.difference, difference_text(row)
    if goal.share or found is None:
        return f"{words} points"
    if found.relative is None:
        return words
    return f"{words} ({100 * found.relative:+.1f} %)".replace("-", "\u2212")


def findings(results: CompareResults) -> list[str]:
    """Return a sentence per policy compared with the workflow's own, the controls at its budget first."""
    table, goal = rows(results), results.goal
    own = next(row for row in table if row.name == results.own)
    better, worse = _is(goal, "better"), _is(goal, "worse")
    no_better = "is not more accurate" if goal.accuracy else f"does not have a better {goal.label}"
    sentences = []
    for row in sorted(table, key=lambda row: row.budget != "held"):
        found = row.difference
        if found is None:
            continue
        points = _away(row, goal)
        if row.budget != "held":
            fewer = 1 - own.samples / row.samples
            spent = f"{numbers.saving(abs(fewer))} {'fewer' if fewer >= 0 else 'more'} samples"
            ends = {
                "better": f"{better}: {points}.",
                "worse": f"{worse}: {points}.",
                "tie": f"ties with it: {points}.",
                "one seed": f"differs by {points}; with one seed, this difference can be due to chance.",
            }
            sentences.append(f"With {spent} than {row.title}, {own.title} {ends[found.verdict]}")
        else:
            ends = {
                "better": f"{better} than {row.title}: {points}.",
                "worse": f"{worse} than {row.title}: {points}.",
                "tie": f"{no_better} than {row.title}: {points}, a tie.",
                "one seed": f"differs from {row.title} by {points}; with one seed, this difference can be due to chance.",
            }
            sentences.append(f"At the same number of samples, {own.title} {ends[found.verdict]}")
    for row in table:
        odd = [str(seed) for seed, value in zip(results.seeds, row.values, strict=True) if value is None]
        if odd:
            sentences.append(
                f"The test {goal.label} of {row.title} is not a finite number with the {'seed' if len(odd) == 1 else 'seeds'} "
                f"{', '.join(odd)}, so {row.title} is not compared."
            )
    return sentences


def notes(results: CompareResults) -> list[str]:
    """Return what has to be known to read the table."""
    table = rows(results)
    own = next(row for row in table if row.name == results.own)
    seeds = len(results.seeds)
    goal = results.goal
    held = [row.title for row in table if row.budget == "held"]
    free = [row.title for row in table if row.budget == "free"]
    test = numbers.count(results.data.test)
    if goal.accuracy:
        metric = f"Accuracy: share of the {test} test rows that the model classifies correctly after the last epoch"
    else:
        metric = (
            f"{goal.head} ({goal.rule}): metric of the model on the {test} test rows after the last epoch"
        )
    minus = f"Difference: {goal.label} of {own.title} minus that of the policy of the row"
    minus += ", in percentage points" if goal.share else ""
    meanings = [
        f"{row.title} {_MEANINGS[row.name].format(own=own.title)}" for row in table if row.name in _MEANINGS
    ]
    sentences = [
        *([f"What the policies do: {'; '.join(meanings)}."] if meanings else []),
        f"The numbers are means over {many(seeds, 'seed')} ({', '.join(map(str, results.seeds))}). {metric}, ± standard "
        f"deviation over the seeds. {minus}, ± standard error (from one difference per seed)."
        if seeds > 1
        else f"Each policy was trained once, with the seed {results.seeds[0]}, so there are no standard deviations. {metric}. {minus}.",
        "Samples: back-propagated samples; a row counts once for each epoch that used it. “Of full”: the number of samples, "
        f"divided by that of training on all rows in every epoch. The budget of a control is the number of samples that {own.title} back-propagated with the same seed"
        + (f". Controls that keep to this budget: {', '.join(held)}" if held else "")
        + (f". Controls that do not keep to this budget: {', '.join(free)}" if free else "")
        + f". The batch size is {numbers.count(results.batch_size)} for all policies, and the learning-rate schedule of each policy "
        "ends at the last step of that policy.",
        "A tie means that the 95 % confidence interval of the difference contains zero (Student's t over one difference per seed). Each "
        "difference is tested separately, without a correction for the number of policies. All policies are scored on the same test "
        f"rows, which are only a sample of all possible rows: {_error(table, goal, results.data.test)}.",
        "Seconds: time of training and planning in one process with one thread, without start-up. The time "
        "depends on what else the machine was doing, so compare the numbers of samples and steps instead.",
    ]
    if results.trusted:
        sentences.append(trusted_files(results.trusted))
    return sentences


def _error(table: Sequence[Row], goal: Goal, test_rows: int) -> str:
    """Return a clause about the error that results from the choice of the test rows."""
    values = [row.value for row in table if row.value is not None]
    if not goal.accuracy or not values:
        return (
            "the standard deviation over the seeds does not include the error that results from scoring a "
            "sample of rows"
        )
    found = max(100 * math.sqrt(value * (1 - value) / test_rows) for value in values)
    return (
        f"because of this, each accuracy has a standard error of up to {found:.2f} points, which the standard deviation over "
        "the seeds does not include"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def many(count: int, one: str) -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{count} {one}{'' if count == 1 else 's'}"
