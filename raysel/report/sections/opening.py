"""The opening of a report: what was selected, what it saved, and what start-up cost."""

from __future__ import annotations

import math

from raysel.report import html, numbers
from raysel.report.ledger import REFERENCE, Ledger, LedgerEntry
from raysel.report.results import Data, RunResults
from raysel.report.sections.ledger import arm_name

_SELECTING = ("embedding", "metrics", "selection", "planning")  # stages of the ledger


def headline(results: RunResults) -> str:
    """Return the results of a run in one sentence of plain text: rows selected, savings, change of the accuracy."""
    ledger, selection = results.ledger, results.selection
    parts = []
    if selection:
        kept, pool = numbers.count(selection.kept), numbers.count(selection.pool)
        parts.append(f"{kept} of {pool} rows were selected")
    arm = subject(ledger)
    full = ledger.entry(REFERENCE)
    if arm is None:
        parts.append("no arm was trained")
    elif full is None:
        epochs = html.many(arm.epochs, "epoch")
        samples = "" if arm.samples_backward is None else f"{numbers.count(arm.samples_backward)} samples in "
        parts.append(f"training used {samples}{epochs}")
        parts.append("no arm was trained on full data, so no saving can be stated")
    elif arm is full:
        parts.append(
            f"training used full data, {html.many(arm.rows, 'row')} for {html.many(arm.epochs, 'epoch')}"
        )
    else:
        parts.append(_spent(ledger.saving_samples(arm.arm), ledger.saving_seconds(arm.arm)))
    if arm is not None and arm.accuracy is not None:
        parts.append(f"the accuracy is {numbers.percent(arm.accuracy)}{_change(arm, full)}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def overhead(results: RunResults) -> str:
    """Return one sentence of plain text that separates selecting from start-up; empty if times are not known.

    A short run spends most of its time on starting workers, which is the cost of no method.
    """
    arm, full = subject(results.ledger), results.ledger.entry(REFERENCE)
    if arm is None or arm.total_seconds is None or arm.seconds["other"] is None:
        return ""
    selecting = math.fsum(arm.seconds[stage] or 0.0 for stage in _SELECTING)
    sentence = (
        f"Of the {numbers.seconds(arm.total_seconds)} s of {arm.title}, {numbers.seconds(selecting)} s were spent on selecting "
        f"(embedding, metrics, selection and planning) and {numbers.seconds(arm.seconds['other'])} s on other work "
        "(start-up of the workers, evaluation, checkpoints and repeated epochs)"
    )
    if full is not None and full is not arm and full.total_seconds is not None:
        sentence += (
            f"; training on full data spent {numbers.seconds(full.seconds['other'])} s of its "
            f"{numbers.seconds(full.total_seconds)} s on other work"
        )
    return f"{sentence}."


def opening_section(results: RunResults, name: str) -> str:
    """Return the head of the page: the results in one sentence, the facts and the tiles."""
    facts = rows_per_role(results.data)
    if results.data.classes:
        facts.append(html.many(len(results.data.classes), "class", "classes"))
    facts.append(f"seed {html.text(results.seed)}")
    if results.created:
        facts.append(html.text(html.moment(results.created)))
    title = name.replace("_", "_<wbr>")  # where a long name may break
    apart = overhead(results)
    below = f'<p class="note">{html.bound(html.text(apart))}</p>\n' if apart else ""
    return (
        f'<header>\n<p class="kicker">raysel report</p>\n<h1>{title}</h1>\n'
        f'<p class="headline">{html.bound(html.text(headline(results)))}</p>\n{below}'
        f'<p class="facts">{" · ".join(facts)}</p>\n{_tiles(results)}</header>'
    )


def rows_per_role(data: Data) -> list[str]:
    """Return the number of rows of each role as HTML, the pool first; roles without rows are left out."""
    validation = html.many(data.validation, "validation row")
    if data.validation_from is not None:
        validation += f", drawn from the {html.text(data.validation_from)}"
    return [
        html.many(data.pool, "pool row"),
        *([html.many(data.target, "target row")] if data.target else []),
        *([validation] if data.validation else []),
        *([html.many(data.test, "test row")] if data.test else []),
    ]


def _tiles(results: RunResults) -> str:
    ledger = results.ledger
    arm, full = subject(ledger), ledger.entry(REFERENCE)
    tiles = []
    selection = results.selection
    if selection and selection.pool:
        kept, pool = selection.kept, selection.pool
        below = f"{numbers.count(kept)} of {numbers.count(pool)} rows"
        tiles.append(("Rows selected", numbers.percent(kept / pool), below, False))
    if arm and full and arm is not full:
        samples, time = ledger.saving_samples(arm.arm), ledger.saving_seconds(arm.arm)
        if samples is not None:
            below = f"{numbers.count(arm.samples_backward)} against {numbers.count(full.samples_backward)}"
            tiles.append(("Saved in samples", numbers.saving(samples), below, samples < 0))
        if time is not None:
            spent, reference = numbers.seconds(arm.total_seconds), numbers.seconds(full.total_seconds)
            below = f"{spent} s against {reference} s, selecting included"
            tiles.append(("Saved in time", numbers.saving(time), below, time < 0))
    if arm and arm.accuracy is not None:
        below = "share of the test rows"
        if full and full is not arm and full.accuracy is not None:
            below = f"{numbers.percent(full.accuracy)} on full data; one seed"
        tiles.append(("Accuracy", numbers.percent(arm.accuracy), below, False))
    if not tiles:
        return ""
    items = "\n".join(
        f"<div{' class=more' if more else ''}><dt>{label}</dt><dd><b>{html.bound(value)}</b>"
        f"<span>{'cost more: ' if more else ''}{html.bound(below)}</span></dd></div>"
        for label, value, below, more in tiles
    )
    of = ""
    if arm and full and arm is not full:
        names = [arm_name(entry.arm, entry.title, ledger) for entry in (arm, full)]
        of = f'<p class="tiles-of">{" <span class=against>against</span> ".join(names)}</p>\n'
    return f'{of}<dl class="tiles">\n{items}\n</dl>\n'


def subject(ledger: Ledger) -> LedgerEntry | None:
    """Return the arm that the run is about: the chain, else the last one that is not the reference, else that."""
    others = [entry for entry in ledger.entries if entry.arm != REFERENCE]
    return ledger.entry("chain") or (others[-1] if others else ledger.entry(REFERENCE))


def _spent(samples: float | None, time: float | None) -> str:
    """Return what an arm spent against training on full data, as a clause."""
    if samples is None and time is None:
        return "what training spent was not measured"
    used = None if samples is None else f"used {_less(samples, 'fewer samples', 'more samples')}"
    took = None if time is None else f"took {_less(time, 'less time', 'more time')}"
    clause = f"training {' and '.join(filter(None, (used, took)))} than on full data"
    return f"{clause}, selecting included" if took else f"{clause}, and its time was not measured"


def _less(saving: float, less: str, more: str) -> str:
    amount = numbers.saving(saving).removeprefix("-")
    return f"{amount} {less if saving >= 0 else more}"


def _change(arm: LedgerEntry, full: LedgerEntry | None) -> str:
    """Return the accuracy of an arm against that of full data, as the end of a clause."""
    if arm.accuracy is None or full is None or full is arm or full.accuracy is None:
        return ""
    points = 100 * (arm.accuracy - full.accuracy)
    if abs(points) < 0.05:
        return ", the same as on full data"
    return f", {abs(points):.1f} points {'higher' if points > 0 else 'lower'} than on full data"
