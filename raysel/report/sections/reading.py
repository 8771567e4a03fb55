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
            f"One seed ({html.text(results.seed)}) supports no claim about differences.",
            "Each arm was trained once. A difference in accuracy between arms is a single observation, not a finding; "
            f"another seed can reverse it. {error} Compare over several seeds before you decide.",
        ),
        (
            "Savings count all costs.",
            "A saving is 1 − (all that the arm spent) ÷ (all that training on full data spent). Time includes "
            "embedding, metrics, selection and planning. Samples are back-propagated samples, which take "
            "most of the arithmetic. A negative saving means a higher cost. No saving is stated if there "
            "was no training on full data, or if a number needed for it was not measured.",
        ),
        (
            "Timings are from one run on this machine.",
            "They depend on what else the machine was doing, and in a short run start-up takes longer than training. "
            "Samples and steps do not depend on the machine.",
        ),
    ]
    if results.trusted:
        items.append(("Some files were not compared by content.", html.text(trusted_files(results.trusted))))
    if results.selection:
        method = html.text(results.selection.method)
        items[1:1] = [
            (
                "Selection changes the distribution.",
                f"Rows selected by {method} are not a random sample of the pool, by design: training on them "
                "does not claim to be unbiased. InfoBatch inside such an arm is unbiased <em>with respect to the "
                "selection</em>, not to the pool.",
            ),
            (
                "The KL curve is an estimate.",
                "It is computed from distances to nearest neighbours, in nats. Its bias depends on the "
                "number of rows and dimensions, and it may be negative. Look at the shape of the curve. Compare its values only "
                "between selections from the same pool for the same target. It measures how well the selected rows cover "
                "the target, not how well a model will perform.",
            ),
        ]
    words = "\n".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in items)
    return html.section("How to read this", f'<dl class="reading">\n{words}\n</dl>', identity="reading")


def trusted_files(roles: Sequence[str]) -> str:
    """Return one sentence of plain text about the roles in ``trusted`` of the results."""
    listed = ", ".join(roles)
    return (
        "Files of these roles were compared by size and modification time, not by content, as "
        f'"trust: mtime" requests: {listed}.'
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
    return f"With {html.many(data.test, 'test row')}, the standard error of an accuracy is up to {size}."
