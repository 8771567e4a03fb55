"""The ledger of a report: one row per arm."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.colours import arm_colours
from raysel.report.ledger import REFERENCE, Ledger


def ledger_section(ledger: Ledger) -> str:
    """Return the section with the ledger as a table."""
    if not ledger.entries:
        return html.section("Ledger", '<p class="missing">Not measured.</p>')
    heads = [
        "Arm",
        "Rows",
        "Epochs",
        "Steps",
        "Samples",
        "Seconds",
        "Saved in samples",
        "Saved in time",
        "Accuracy",
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
            numbers.percent(entry.accuracy),
        ]
        for entry in ledger.entries
    ]
    if ledger.entry(REFERENCE):
        note = (
            "<strong>Samples</strong> are the samples that were back-propagated. <strong>Saved</strong> is 1 − spent ÷ spent "
            "on full data; a negative number means that the arm cost more. Time includes embedding, selecting and, as "
            "<i>other</i>, start-up of the workers, evaluation, checkpoints and repeated epochs."
        )
    else:
        note = (
            "<strong>Samples</strong> are the samples that were back-propagated. No arm was trained on full data, so there "
            "is nothing to measure a saving against."
        )
    return html.section("Ledger", html.table(heads, rows) + f'<p class="note">{note}</p>')


def arm_name(arm: str, title: str, ledger: Ledger) -> str:
    """Return a dot in the arm's colour and its title, as HTML."""
    return html.dot(arm_colours([entry.arm for entry in ledger.entries])[arm]) + html.text(title)


def _saved(arm: str, share: float | None) -> str:
    text = numbers.saving(share).replace("-", "\u2212")
    if arm == REFERENCE and share is not None:
        return '<span class="quiet">–</span>'
    return f'<span class="more">{text}</span>' if share is not None and share < 0 else text
