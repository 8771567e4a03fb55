"""How to read a report: what one seed, a saving, a timing and an estimate mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from raysel.report import html
from raysel.report.results import Data, RunResults


def reading_section(results: RunResults) -> str:
    """Return the section that says how to read the page."""
    error = standard_error(results.data, (entry.accuracy for entry in results.ledger.entries))
    items = [
        (
            f"One seed ({html.text(results.seed)}) does not show which arm is better.",
            "Each arm was trained once, so a difference in accuracy may be due to chance, and another seed can reverse it. "
            f"{error} Before you decide, compare over several seeds with <code>raysel compare</code>.",
        ),
        (
            "Savings count all costs.",
            "A saving is 1 − (cost of the arm) ÷ (cost of training on the full pool). Time includes embedding, metrics, "
            "selection, planning and start-up. Samples are counted when they are back-propagated, which takes most of "
            "the computation. A negative saving means that the arm cost more. No saving is given if the full pool was not "
            "trained on, or if a number for it was not measured.",
        ),
        (
            "Timings are from one run on one machine.",
            "They depend on what else the machine was doing, and in a short run start-up can take longer than training. "
            "The numbers of samples and steps do not depend on the machine.",
        ),
    ]
    if results.trusted:
        items.append(
            ("Some files are identified without reading them.", html.text(trusted_files(results.trusted)))
        )
    if results.selection:
        method = html.text(results.selection.method)
        items[1:1] = [
            (
                "Selection changes the distribution.",
                f"The rows selected by {method} are not a random sample of the pool, by design, so training on them is not "
                "an unbiased estimate of training on the full pool. Where InfoBatch runs on the selected rows, its gradient is "
                "unbiased <em>with respect to the selected rows</em>, not to the pool.",
            ),
            (
                "The divergence is an estimate.",
                "It is computed from distances to nearest neighbours, in nats (units of the natural logarithm). Its bias "
                "depends on the number of rows and dimensions, and it can be negative. Read the shape of the curve, and "
                "compare values only between selections from the same pool for the same target. It measures how well the "
                "selected rows cover the target, not how well a model will perform.",
            ),
        ]
    words = "\n".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in items)
    return html.section("How to read this", f'<dl class="reading">\n{words}\n</dl>', identity="reading")


def trusted_files(roles: Sequence[str]) -> str:
    """Return one sentence of plain text about the roles in ``trusted`` of the results."""
    listed = ", ".join(roles)
    return (
        "The files of these inputs are identified by size and modification time instead of their content, because the "
        f'workflow sets "trust: mtime": {listed}. A file that changed without changing these would not be noticed.'
    )


def standard_error(data: Data, accuracies: Iterable[float | None]) -> str:
    """Return how far an accuracy moves with the choice of the test rows alone (binomial, the widest of the arms)."""
    shares = [share for share in accuracies if share is not None]
    if not data.test or not shares:
        return ""
    points = 100 * max(math.sqrt(share * (1 - share) / data.test) for share in shares)
    if not points:
        return ""
    size = f"{points:.1f}{html.NBSP}points"
    return f"With {html.many(data.test, 'test row')}, the standard error of a test accuracy is up to {size}."
