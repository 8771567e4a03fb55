"""Where the time of every arm went."""

from __future__ import annotations

from raysel.report import html, numbers
from raysel.report.figures.costs import cost_bars
from raysel.report.ledger import STAGES, Ledger

_START = "Start-up: starting the workers, which then train several arms; this time is counted in each of these arms. "


def costs_section(ledger: Ledger) -> str:
    """Return the section with the seconds of every stage and arm."""
    if not ledger.entries:
        return ""
    drawn = cost_bars(ledger)
    if not drawn:
        return html.section("Costs", '<p class="missing">The seconds were not measured.</p>')
    stages = [stage for stage in STAGES if any(entry.seconds[stage] != 0 for entry in ledger.entries)]
    heads = ["Stage, seconds", *(html.text(entry.title) for entry in ledger.entries)]
    rows = [
        [stage.capitalize(), *(numbers.seconds(entry.seconds[stage]) for entry in ledger.entries)]
        for stage in stages
    ]
    rows.append(
        ["<b>Total</b>", *(f"<b>{numbers.seconds(entry.total_seconds)}</b>" for entry in ledger.entries)]
    )
    forward = "; ".join(
        f"{html.text(entry.title)}{html.NBSP}{numbers.count(entry.samples_forward)}"
        for entry in ledger.entries
    )
    note = f'<figcaption class="text">Number of samples in the forward passes of the training: {forward}.</figcaption>'
    wide = " wide" if len(ledger.entries) > 3 else ""
    cards = [
        html.card(
            drawn,
            "Time per stage",
            "Wall-clock seconds of each arm (training run), divided into stages. Embedding: computing the vectors. Metrics: describing "
            "the rows by metrics and finding limits on them (GIME), or training an autoencoder and scoring the samples with it "
            "(RepDiv). "
            f"Selection: selecting rows before training. {_START if 'start-up' in stages else ''}Planning: selecting the "
            f"samples of each epoch. Other: {'' if 'start-up' in stages else 'starting the workers, '}evaluation, checkpoints, "
            "and epochs repeated after a failure. Each arm was measured once, so there are no error bars.",
        ),
        f'<figure class="card plain{wide}">{html.table(heads, rows, stack=False)}{note}</figure>',
    ]
    return html.section("Costs", html.grid(cards, "costs"))
