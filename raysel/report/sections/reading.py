"""How to read a report: what one seed, a saving, a timing and an estimate mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from raysel.report import html
from raysel.report.goal import Goal
from raysel.report.results import Data, RunResults


def reading_section(results: RunResults) -> str:
    """Return the section that says how to read the page."""
    goal = results.goal
    error = standard_error(
        results.data, goal, (goal.value(entry.metrics) for entry in results.ledger.entries)
    )
    trained = [
        (
            f"One seed ({html.text(results.seed)}) does not show which arm is better.",
            f"An arm is one training of a model. Each arm was trained once, so a difference in {html.text(goal.label)} between two "
            f"arms may be due to chance, and another seed can reverse it. {error} A policy selects the samples of each epoch. Before "
            "you choose a policy, compare it with simpler policies over several seeds with <code>raysel compare</code>.",
        ),
        (
            "Savings count all costs.",
            "A saving is 1 − (cost of the arm) ÷ (cost of training on the full pool). The cost is time or "
            "samples. Time includes embedding, metrics, selection, planning and start-up. Samples are "
            "counted when they are back-propagated, because back-propagation takes most of the computation. "
            "A negative saving means that the arm cost more than training on the full pool. If no arm was "
            "trained on the full pool, the number of pool rows times the number of epochs stands for the samples of "
            "such a training, and the saving in time is not known.",
        ),
        (
            "Some timings are from earlier runs."
            if results.ledger.reused
            else "Timings are from one run on one machine.",
            "Timings depend on what else the machine was doing, and in a short run, start-up can take longer "
            "than training. The numbers of samples and of optimizer steps do not depend on the machine.",
        ),
    ]
    items = [] if results.only_selects else trained
    if results.trusted:
        items.append(
            ("Some files are identified without reading them.", html.text(trusted_files(results.trusted)))
        )
    if results.selection:
        method = html.text(results.selection.method)
        items[1:1] = [
            (
                "Selection changes the distribution.",
                f"By design, the rows selected by {method} are not a random sample of the pool. A gradient computed on them is "
                "therefore not an unbiased estimate of the gradient on the full pool. If InfoBatch, which skips samples in each "
                "epoch, trains on the selected rows, its gradient is an unbiased estimate only of the gradient on <em>the selected "
                "rows</em>.",
            ),
            (
                "The divergence is an estimate.",
                "The divergence is computed from distances to nearest neighbours, in nats (units of the "
                "natural logarithm). The bias of this estimate depends on the number of rows and of "
                "dimensions, and the estimate can be negative. Read the shape of the curve, and compare "
                "values only between selections from the same pool for the same target. The divergence "
                "measures how well the selected rows cover the target, not how good a model trained on them "
                "is.",
            ),
        ]
    words = "\n".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in items)
    return html.section("How to read this", f'<dl class="reading">\n{words}\n</dl>', identity="reading")


def trusted_files(roles: Sequence[str]) -> str:
    """Return plain text about the roles in ``trusted`` of the results."""
    listed = ", ".join(roles)
    return (
        f'The workflow sets "trust: mtime" for these inputs: {listed}. Their files are identified by size and modification '
        "time instead of by content, so a change that leaves both unchanged is not noticed."
    )


def standard_error(data: Data, goal: Goal, values: Iterable[float | None]) -> str:
    """Return a sentence about the error of an accuracy, as HTML; empty where `accuracy_error` is 0."""
    error = accuracy_error(data, goal, values)
    if not error:
        return ""
    size = f"{100 * error:.1f}{html.NBSP}points"
    return f"With {html.many(data.test, 'test row')}, the standard error of a test accuracy is up to {size}."


def accuracy_error(data: Data, goal: Goal, values: Iterable[float | None]) -> float:
    """Return how far an accuracy moves with the choice of the test rows alone (binomial, the widest of the arms).

    It is 0 for another metric, whose standard error does not follow from its value.
    """
    shares = [share for share in values if share is not None]
    if not data.test or not goal.accuracy:
        return 0.0
    return max((math.sqrt(share * (1 - share) / data.test) for share in shares), default=0.0)
