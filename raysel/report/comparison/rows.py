"""The numbers of a comparison: one row per policy, and paired differences with their verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from raysel.report import numbers
from raysel.report.goal import Goal, relative
from raysel.report.results import CompareResults

_MINUS = "\u2212"


@dataclass(frozen=True)
class Difference:
    """The metric of the workflow's policy minus that of another: the mean over pairs of equal seed.

    mean, error: the mean in points for a share, else in the unit of the metric, and its standard error; the error is None with
    one seed. relative: mean as a share of the other policy's metric, None for a share of 1. verdict: "better", "tie" or "worse"
    by the 95 % interval of Student's t over the pairs and the direction of the metric; "one seed" where there is no spread to
    judge by.
    """

    mean: float
    error: float | None
    relative: float | None
    verdict: str


@dataclass(frozen=True)
class Row:
    """One policy: means over seeds; seconds are of training and planning.

    values, value, deviation: the reported metric per seed, its mean and its standard deviation; value is None if the metric of
    a seed is not finite. digits: decimals of the metrics in the table, None for scientific notation. difference: None for the workflow's own policy, and if
    a value of one of the two is not finite.
    """

    name: str
    title: str
    budget: str
    samples: float
    share: float
    steps: float
    seconds: float
    values: tuple[float | None, ...]
    value: float | None
    deviation: float | None
    difference: Difference | None
    digits: int | None


def rows(results: CompareResults) -> list[Row]:
    """Return the table's rows in the given order; ``share`` is the share of all rows in all epochs."""
    own, goal = results.own, results.goal
    final = {
        name: tuple(goal.value(cell.metrics) for cell in policy.cells)
        for name, policy in results.policies.items()
    }
    whole = {name: [value for value in values if value is not None] for name, values in final.items()}
    largest = max((abs(value) for values in whole.values() for value in values), default=1.0)
    every = results.rows * results.epochs
    found = []
    for name, policy in results.policies.items():
        cells = [cell.epochs for cell in policy.cells]
        samples = statistics.fmean(sum(e.trained for e in epochs) for epochs in cells)
        values = whole[name]
        complete = len(values) == len(cells)
        compared = name != own and complete and len(whole[own]) == len(cells)
        found.append(
            Row(
                name=name,
                title=policy.title,
                budget=policy.budget,
                samples=samples,
                share=samples / every,
                steps=statistics.fmean(sum(e.steps for e in epochs) for epochs in cells),
                seconds=statistics.fmean(
                    sum(e.seconds - e.evaluation_seconds for e in epochs) for epochs in cells
                ),
                values=final[name],
                value=statistics.fmean(values) if complete else None,
                deviation=statistics.stdev(values) if complete and len(values) > 1 else None,
                difference=difference(whole[own], values, goal, results.data.test) if compared else None,
                digits=2 if goal.share else numbers.decimals(largest),
            )
        )
    return found


def difference(own: Sequence[float], other: Sequence[float], goal: Goal, test_rows: int) -> Difference:
    """Return ``own`` minus ``other`` by pairs.

    Accuracies move in steps of one test row: pairs that agree by chance are judged as if they spread by that much.
    """
    pairs = [_scale(goal) * (a - b) for a, b in zip(own, other, strict=True)]
    mean = statistics.fmean(pairs)
    ratio = None if goal.share else relative(mean, statistics.fmean(other))
    if len(pairs) < 2:
        return Difference(mean, None, ratio, "one seed")
    spread = statistics.stdev(pairs)
    step = 100 / test_rows if goal.metric == "accuracy" else 0.0
    reach = stdtrit(len(pairs) - 1, 0.975) * max(spread, step) / math.sqrt(len(pairs))
    verdict = "tie" if abs(mean) <= reach else "better" if goal.better(mean, 0.0) else "worse"
    return Difference(mean, spread / math.sqrt(len(pairs)), ratio, verdict)


def value_text(row: Row, goal: Goal) -> str:
    """Return the mean of the metric, ± the standard deviation if there are several seeds; shares without the % sign."""
    if row.value is None:
        return numbers.MISSING
    value = numbers.fixed(_scale(goal) * row.value, row.digits)
    return (
        value
        if row.deviation is None
        else f"{value} ± {numbers.fixed(_scale(goal) * row.deviation, row.digits)}"
    )


def difference_text(row: Row) -> str:
    """Return the difference with its sign, ± the standard error if there are several seeds; empty without one."""
    found = row.difference
    if found is None:
        return ""
    error = "" if found.error is None else f" ± {numbers.fixed(found.error, row.digits)}"
    sign = "" if found.mean < 0 else "+"
    return f"{sign}{numbers.fixed(found.mean, row.digits)}{error}".replace("-", _MINUS)


def _scale(goal: Goal) -> float:
    return 100.0 if goal.share else 1.0
