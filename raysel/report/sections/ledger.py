"""The ledger of a report: one row per arm."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.colours import arm_colours
from raysel.report.ledger import REFERENCE, Ledger

_MEANINGS = {
    "full": "trains on every pool row in every epoch",
    "random": "trains on random rows of the pool: on as many rows as the workflow selected, for as many optimizer steps as the "
    "arm with the methods of the workflow",
    "chain": "uses the methods of the workflow",
}


def ledger_section(ledger: Ledger) -> str:
    """Return the section with the ledger as a table."""
    if not ledger.entries:
        return html.section("Ledger", '<p class="missing">The costs of the arms were not measured.</p>')
    heads = [
        "Arm",
        "Rows",
        "Epochs",
        "Steps",
        "Samples",
        "Seconds",
        "Saved in samples",
        "Saved in time",
        f"Test {html.text(ledger.goal.label)}",
    ]
    rows = [
        [
            arm_name(entry.arm, entry.title, ledger)
            + (' <span class="tag">reference</span>' if entry.arm == REFERENCE else ""),
            numbers.count(entry.rows),
            numbers.count(entry.epochs),
            numbers.count(entry.steps),
            numbers.count(entry.samples_backward),
            numbers.seconds(entry.total_seconds),
            _saved(entry.arm, ledger.saving_samples(entry.arm)),
            _saved(entry.arm, ledger.saving_seconds(entry.arm)),
            ledger.goal.text(ledger.goal.value(entry.metrics)),
        ]
        for entry in ledger.entries
    ]
    meanings = [
        f"“{html.text(entry.title)}” {_MEANINGS[entry.arm]}"
        for entry in ledger.entries
        if entry.arm in _MEANINGS
    ]
    lead = "The ledger lists what each <strong>arm</strong> cost. An arm is one training of a model" + (
        f": {'; '.join(meanings)}." if meanings else "."
    )
    note = (
        "<strong>Rows</strong>: rows that the arm could train on. <strong>Steps</strong>: optimizer steps. "
        "<strong>Samples</strong>: samples that were back-propagated; a row counts once for each epoch that used it. "
        "<strong>Seconds</strong>: wall-clock time of the complete arm, including selection and start-up. "
    )
    if full := ledger.entry(REFERENCE):
        note += (
            f"<strong>Saved</strong>: 1 − (cost of the arm) ÷ (cost of “{html.text(full.title)}”). A negative number means that "
            f"the arm cost more than “{html.text(full.title)}”."
        )
    elif ledger.full_samples is not None:
        note += (
            f"<strong>Saved in samples</strong>: 1 − (samples of the arm) ÷ {numbers.count(ledger.full_samples)}, which is the "
            "number of pool rows times the number of epochs. The saving in time is not known, because no arm was trained on the "
            "full pool."
        )
    else:
        note += (
            "No saving is given, because no arm was trained on the full pool; a saving compares the cost of "
            "an arm with the cost of training on the full pool."
        )
    if ledger.goal.direction == "min":
        note += f" <strong>Test {html.text(ledger.goal.label)}</strong>: lower is better."
    if ledger.reused:
        note += f" {html.text(ledger.reused)}"
    table = html.table(heads, rows)
    return html.section("Ledger", f'<p class="lead">{lead}</p>\n{table}<p class="note">{note}</p>')


def arm_name(arm: str, title: str, ledger: Ledger) -> str:
    """Return a dot in the arm's colour and its title, as HTML."""
    return html.dot(arm_colours([entry.arm for entry in ledger.entries])[arm]) + html.text(title)


def _saved(arm: str, share: float | None) -> str:
    text = numbers.saving(share).replace("-", "\u2212")
    if arm == REFERENCE and share is not None:
        return '<span class="quiet">–</span>'
    return f'<span class="more">{text}</span>' if share is not None and share < 0 else text
