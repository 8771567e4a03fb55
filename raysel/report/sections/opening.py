"""The opening of a report: what was selected, what it saved, and what start-up cost."""

from __future__ import annotations

import math

from raysel.report import html, numbers
from raysel.report.goal import Goal
from raysel.report.ledger import REFERENCE, Ledger, LedgerEntry
from raysel.report.results import Data, RunResults
from raysel.report.sections.ledger import arm_name
from raysel.report.sections.reading import accuracy_error

_SELECTING = ("embedding", "metrics", "selection", "planning")  # stages of the ledger


def headline(results: RunResults) -> str:
    """Return the results of a run in one sentence of plain text: rows selected, savings, change of the metric."""
    ledger, selection, goal = results.ledger, results.selection, results.goal
    parts = []
    if selection:
        kept, pool = numbers.count(selection.kept), numbers.count(selection.pool)
        parts.append(f"{selection.method} selected {kept} of the {pool} pool rows")
    arm = subject(ledger)
    full = ledger.entry(REFERENCE)
    if arm is None:
        parts.append("no model was trained")
    elif full is None:
        epochs = html.many(arm.epochs, "epoch")
        samples = "" if arm.samples_backward is None else f"{numbers.count(arm.samples_backward)} samples in "
        parts.append(f"{arm.title} trained on {samples}{epochs}{_reached(goal, arm, full)}")
        saved = ledger.saving_samples(arm.arm)
        if saved is None:
            parts.append("no model of this run was trained on the full pool, so the savings are not known")
        else:
            part = "as many samples as" if saved == 0 else f"{_less(saved, 'samples', 'fewer', 'more')} than"
            parts.append(
                f"it used {part} a training on all pool rows in every epoch, which uses {numbers.count(ledger.full_samples)}"
            )
            parts.append(
                "no model of this run was trained on the full pool, so the saving in time is not known"
            )
    elif arm is full:
        parts.append(
            f"training used the full pool, {html.many(arm.rows, 'row')} for {html.many(arm.epochs, 'epoch')}"
            f"{_reached(goal, arm, full)}"
        )
    else:
        parts.append(f"{arm.title} {_spent(ledger.saving_samples(arm.arm), ledger.saving_seconds(arm.arm))}")
        parts += [_reached(goal, arm, full)] if goal.metric in arm.metrics else []
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def against_random(results: RunResults) -> str:
    """Return in one sentence how the metric compares with that of the random control; empty if one is not known."""
    ledger, goal = results.ledger, results.goal
    arm, random = subject(ledger), ledger.entry("random")
    if arm is None or random is None or arm is random:
        return ""
    reached, reference = goal.value(arm.metrics), goal.value(random.metrics)
    if reached is None or reference is None:
        return ""
    start = f"Compared with “{random.title}” (one seed each), the test {goal.label} of {arm.title} is"
    change = goal.change(reached, reference)
    error = accuracy_error(results.data, goal, (goal.value(entry.metrics) for entry in ledger.entries))
    if not change or not error:
        return f"{start} {change or 'the same'}."
    larger = "more than" if abs(reached - reference) > error else "within"
    return f"{start} {change}, which is {larger} one standard error of a test accuracy (up to {100 * error:.1f} points)."


def overhead(results: RunResults) -> str:
    """Return one or two sentences that separate selection from start-up; empty if times are not known.

    A short run spends most of its time on starting workers, which is not the cost of a method.
    """
    arm, full = subject(results.ledger), results.ledger.entry(REFERENCE)
    if arm is None or arm.total_seconds is None or arm.seconds["other"] is None:
        return ""
    selecting = math.fsum(arm.seconds[stage] or 0.0 for stage in _SELECTING)
    start = arm.seconds["start-up"]
    starting = f"{numbers.seconds(start)} s for starting the workers, " if start else ""
    sentences = (
        f"{arm.title} took {numbers.seconds(arm.total_seconds)} s: {numbers.seconds(selecting)} s for selecting samples "
        f"(the stages embedding, metrics, selection and planning), {starting}{numbers.seconds(arm.seconds['training'])} s for training, and "
        f"{numbers.seconds(arm.seconds['other'])} s for other work ({'' if start else 'starting the workers, '}evaluation, "
        "checkpoints, and epochs repeated after a failure)."
    )
    if full is not None and full is not arm and full.total_seconds is not None:
        sentences += (
            f" Training on the full pool took {numbers.seconds(full.total_seconds)} s, including "
            f"{numbers.seconds(full.seconds['other'])} s for such other work."
        )
    return sentences[0].upper() + sentences[1:]


def leakage(results: RunResults) -> str:
    """Return a warning of test rows that are also training rows; empty if there are none, or if it is not known."""
    leaked = results.leaked
    if leaked is None or not leaked.rows:
        return ""
    what = "a copy" if leaked.cosine is None else f"a near duplicate (cosine of at least {leaked.cosine:g})"
    of = f" of {numbers.count(results.data.test)}" if results.data.test else ""
    verb = "has" if leaked.rows == 1 else "have"
    return (
        f"Warning: {numbers.count(leaked.rows)}{of} test rows {verb} {what} among the training rows. The "
        f"{results.goal.label} on the test rows may therefore look better than on new data."
    )


def opening_section(results: RunResults, name: str) -> str:
    """Return the head of the page: the results in one or two sentences, the facts and the tiles."""
    facts = rows_per_role(results.data)
    if results.data.classes:
        facts.append(html.many(len(results.data.classes), "class", "classes"))
    facts.append(f"seed {html.text(results.seed)}")
    if results.created:
        facts.append(html.text(html.moment(results.created)))
    title = name.replace("_", "_<wbr>")  # where a long name may break
    below = "".join(
        f'<p class="note">{words}</p>\n'
        for words in (
            html.bound(html.text(leakage(results)).replace("Warning:", "<b>Warning:</b>", 1)),
            html.bound(html.text(overhead(results))),
            html.text(results.ledger.reused),
            roles(results.data, results.goal),
        )
        if words
    )
    return (
        f'<header>\n<p class="kicker">raysel report</p>\n<h1>{title}</h1>\n'
        f'<p class="headline">{html.bound(html.text(f"{headline(results)} {against_random(results)}"))}</p>\n'
        f'<p class="facts">{" · ".join(facts)}</p>\n{below}{_tiles(results)}</header>'
    )


def rows_per_role(data: Data) -> list[str]:
    """Return the number of rows of each role as HTML, the pool first; roles without rows are left out."""
    validation = html.many(data.validation, "validation row")
    if data.validation_from is not None:
        validation += f", drawn from the {html.text(data.validation_from)}"
    return [
        html.many(data.pool, "pool row"),
        *([html.many(data.target, "target row")] if data.target else []),
        *([f"{html.many(data.avoid, 'row')} to avoid"] if data.avoid else []),
        *([validation] if data.validation else []),
        *([html.many(data.test, "test row")] if data.test else []),
    ]


def roles(data: Data, goal: Goal) -> str:
    """Return what each role is for, as HTML; roles without rows are left out."""
    meanings = [
        (data.pool, "pool", "the rows to select from and to train on"),
        (data.target, "target", "a sample of the data that the model is meant for"),
        (
            data.avoid,
            "rows to avoid",
            "rows that the model should not learn (pool rows that are more similar to these rows than to the target are not selected)",
        ),
        (
            data.validation,
            "validation rows",
            f"rows on which the {html.text(goal.label)} is measured after each epoch, and on which no model is trained",
        ),
        (
            data.test,
            "test rows",
            f"rows on which the {html.text(goal.label)} is measured after the last epoch, and on which no model is trained",
        ),
    ]
    known = [f"<strong>{name}</strong>: {words}" for rows, name, words in meanings if rows]
    return f"What the words mean: {'; '.join(known)}." if known else ""


def _tiles(results: RunResults) -> str:
    ledger, goal = results.ledger, results.goal
    arm, full = subject(ledger), ledger.entry(REFERENCE)
    tiles = []
    selection = results.selection
    if selection and selection.pool:
        kept, pool = selection.kept, selection.pool
        below = f"{numbers.count(kept)} of {numbers.count(pool)} pool rows"
        tiles.append(("Rows selected", numbers.percent(kept / pool), below, False))
    if arm and arm is not full:
        samples, time = ledger.saving_samples(arm.arm), ledger.saving_seconds(arm.arm)
        if samples is not None:
            below = f"{numbers.count(arm.samples_backward)} instead of {numbers.count(ledger.reference_samples)} samples"
            below += "" if full else " (all pool rows in every epoch)"
            tiles.append(("Saved in samples", numbers.saving(samples), below, samples < 0))
        if full and time is not None:
            spent, reference = numbers.seconds(arm.total_seconds), numbers.seconds(full.total_seconds)
            below = f"{spent} s instead of {reference} s, including selection and start-up"
            tiles.append(("Saved in time", numbers.saving(time), below, time < 0))
    reached = goal.value(arm.metrics) if arm else None
    if arm and reached is not None:
        below = "share of the test rows that the model classifies correctly" if goal.accuracy else goal.rule
        fulls = goal.value(full.metrics) if full and full is not arm else None
        if fulls is not None:
            below = f"{goal.text(fulls)} when trained on the full pool; one seed each"
            below += "" if goal.accuracy else f"; {goal.rule}"
        tiles.append((f"Test {html.text(goal.label)}", goal.text(reached), below, False))
    if not tiles:
        return ""
    items = "\n".join(
        f"<div{' class=more' if more else ''}><dt>{label}</dt><dd><b>{html.bound(value)}</b>"
        f"<span>{html.bound(below)}</span></dd></div>"
        for label, value, below, more in tiles
    )
    of = ""
    if arm and full and arm is not full:
        names = [arm_name(entry.arm, entry.title, ledger) for entry in (arm, full)]
        of = f'<p class="tiles-of">{" <span class=against>compared with</span> ".join(names)}</p>\n'
    return f'{of}<dl class="tiles">\n{items}\n</dl>\n'


def subject(ledger: Ledger) -> LedgerEntry | None:
    """Return the arm that the run is about: the chain, else the last one that is not the reference, else that."""
    others = [entry for entry in ledger.entries if entry.arm != REFERENCE]
    return ledger.entry("chain") or (others[-1] if others else ledger.entry(REFERENCE))


def _spent(samples: float | None, time: float | None) -> str:
    """Return the savings of an arm against training on the full pool, as a clause without its subject."""
    if samples is None and time is None:
        return "was trained, but its training samples and its time were not measured"
    used = None if samples is None else _less(samples, "training samples", "fewer", "more")
    took = None if time is None else _less(time, "time", "less", "more")
    if used is None:
        return f"used {took} than training on the full pool (the time includes selection and start-up); its samples were not measured"
    if took is None:
        return f"used {used} than training on the full pool; its time was not measured"
    return f"used {used} and {took} than training on the full pool (the time includes selection and start-up)"


def _less(saving: float, unit: str, less: str, more: str) -> str:
    amount = numbers.saving(saving).removeprefix("-")
    return f"{amount} {less if saving >= 0 else more} {unit}"


def _reached(goal: Goal, arm: LedgerEntry, full: LedgerEntry | None) -> str:
    """Return the test metric of an arm, and its difference from that of the full pool, as a clause."""
    if goal.metric not in arm.metrics:
        return ""
    alone = full is None or full is arm
    reached = goal.value(arm.metrics)
    if reached is None:
        return f"{', but ' if alone else ''}its test {goal.label} is not a finite number"
    if full is None or full is arm:
        return f" and reached a test {goal.label} of {goal.text(reached)}{goal.hint}"
    words = f"its test {goal.label} is {goal.text(reached)}"
    reference = goal.value(full.metrics)
    if reference is None:
        return words
    change = goal.change(reached, reference)
    return (
        f"{words}; compared with the full pool, this is {change}"
        if change
        else f"{words}, the same as with the full pool"
    )
