"""The numbers of a comparison: one row per policy, and paired differences with their verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from raysel.report.results import CompareResults

_MINUS = "\u2212"


@dataclass(frozen=True)
class Difference:
    """Accuracy of the workflow's policy minus that of another, in points: the mean over pairs of equal seed.

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
    samples: float
    share: float
    steps: float
    seconds: float
    accuracies: tuple[float, ...]
    accuracy: float
    deviation: float | None
    difference: Difference | None


def rows(results: CompareResults) -> list[Row]:
    """Return the table's rows in the given order; ``share`` is the share of all rows in all epochs."""
    own = results.own
    final = {name: tuple(cell.accuracy for cell in policy.cells) for name, policy in results.policies.items()}
    every = results.rows * results.epochs
    found = []
    for name, policy in results.policies.items():
        cells = [cell.epochs for cell in policy.cells]
        samples = statistics.fmean(sum(e.trained for e in epochs) for epochs in cells)
        accuracies = final[name]
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
                accuracies=accuracies,
                accuracy=statistics.fmean(accuracies),
                deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                difference=None if name == own else difference(final[own], accuracies, results.data.test),
            )
        )
    return found


def difference(own: Sequence[float], other: Sequence[float], test_rows: int) -> Difference:
    """Return ``own`` minus ``other`` by pairs, accuracies as shares.

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


def accuracy_text(row: Row) -> str:
    """Return the mean accuracy in percent, ± the standard deviation if there are several seeds."""
    spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
    return f"{100 * row.accuracy:.2f}{spread}"


def points_text(found: Difference) -> str:
    """Return the difference in points with its sign, ± the standard error if there are several seeds."""
    error = "" if found.error is None else f" ± {found.error:.2f}"
    return f"{found.mean:+.2f}{error}".replace("-", _MINUS)
