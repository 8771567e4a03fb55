"""The metrics of the pool, the selected rows and the target, and the thresholds on them."""

from __future__ import annotations

from raysel.report import html, metrics, numbers
from raysel.report.results import RunResults


def metrics_section(results: RunResults) -> str:
    """Return the section of the metrics; empty if the run measured none."""
    measured = results.metrics
    if not measured:
        return ""
    said = []
    if calibration := measured.calibration:
        said.append(
            "A calibration determined the thresholds below: it trained small models on "
            f"{html.many(calibration.count, 'subset')} of {html.many(calibration.rows, 'row')} each "
            f"({numbers.count(calibration.rows_trained)} rows in all). The calibration took "
            f"{numbers.seconds(calibration.seconds)} s, which are part of the stage “metrics” under “Costs”."
        )
    for name, ends in measured.thresholds.items():
        low, high = ("" if end is None else numbers.digits(end) for end in ends)
        asked = (
            f"{low} ≤ {name}"
            if low and not high
            else f"{name} ≤ {high}"
            if not low
            else f"{low} ≤ {name} ≤ {high}"
        )
        reached = numbers.digits(measured.reached[name])
        said.append(f"Threshold {html.text(asked)}: for the selected rows, {html.text(name)} is {reached}.")
    lines = "".join(f'<p class="note">{html.bound(text)}</p>' for text in said)
    return html.section(
        "Metrics",
        f'<p class="lead">{metrics.LEAD}</p>\n'
        + html.grid([metrics.card(measured.sets, "Pool, selected rows and target")])
        + lines,
    )
