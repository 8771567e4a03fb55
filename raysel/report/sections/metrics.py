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
            f"The thresholds were tested with small models on {html.many(calibration.count, 'subset')} of "
            f"{html.many(calibration.rows, 'row')}, {numbers.count(calibration.rows_trained)} rows in all. This took "
            f"{numbers.seconds(calibration.seconds)} s, which the ledger counts under metrics."
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
        said.append(f"{html.text(asked)}: {numbers.digits(measured.reached[name])} among the selected rows.")
    lines = "".join(f'<p class="note">{html.bound(text)}</p>' for text in said)
    return html.section("Metrics", html.grid([metrics.card(measured.sets, "Sets side by side")]) + lines)
