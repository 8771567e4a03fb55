"""The report: one self-contained HTML file, made from a run's results; no scripts, nothing fetched."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from raysel.core.storage import write_text
from raysel.report import figures, html, metrics, numbers
from raysel.report.ledger import REFERENCE, STAGES, Ledger, LedgerEntry
from raysel.report.results import Arm, CompareResults, Data, Extremes, RunResults

NO_VALIDATION = (
    "There are no validation rows; the key <code>validation:</code> in the workflow gives a curve."
)
"""The sentence below a figure that shows final accuracies in place of curves, as HTML."""


def render(results: RunResults) -> str:
    """Return the report of a run as one HTML page.

    Parts that the run did not have are left out or called "not measured". The same results give the same text.

    Parameters
    ----------
    results : RunResults
        Results of a finished run.

    Returns
    -------
    str
        The page, which fetches nothing.
    """
    name = html.text(results.name)
    body = "\n".join(
        part
        for part in (
            _opening(results, name),
            _ledger(results.ledger),
            _metrics(results),
            _selection(results),
            _use(results),
            _training(results),
            _costs(results.ledger),
            _reading(results),
            configuration(results),
            versions(results),
        )
        if part
    )
    return html.document(f"{name} · raysel report", body)


def write(results: RunResults, path: str | os.PathLike[str]) -> Path:
    """Write the report of a run to ``path`` and return the path. The file is complete or not there.

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    write_text(path, render(results))
    return Path(path)


def headline(results: RunResults) -> str:
    """Return the results of a run in one sentence of plain text: rows chosen, savings, accuracy."""
    ledger, selection = results.ledger, results.selection
    parts = []
    if selection:
        parts.append(f"Chose {numbers.count(selection.kept)} of {numbers.count(selection.pool)} rows")
    arm = _subject(ledger)
    full = ledger.entry(REFERENCE)
    if arm is None:
        parts.append("no arm was trained")
    elif full is None:
        parts.append(
            f"trained on {numbers.count(arm.samples_backward)} samples in {html.many(arm.epochs, 'epoch')}"
            if arm.samples_backward is not None
            else f"trained for {html.many(arm.epochs, 'epoch')}"
        )
        parts.append("no arm trained on full data, so no saving can be stated")
    elif arm is full:
        parts.append(
            f"trained on full data, {html.many(arm.rows, 'row')} for {html.many(arm.epochs, 'epoch')}"
        )
    else:
        samples = _compared(ledger.saving_samples(arm.arm), "fewer samples", "more samples")
        time = _compared(ledger.saving_seconds(arm.arm), "less time", "more time")
        if samples and time:
            parts.append(f"trained on {samples} and took {time} than full data, selecting included")
        elif samples:
            parts.append(f"trained on {samples} than full data, time not measured")
        elif time:
            parts.append(f"took {time} than full data, selecting included")
        else:
            parts.append("what it spent was not measured")
    if arm is not None and arm.accuracy is not None:
        against = (
            f" against {numbers.percent(full.accuracy)}"
            if full and full is not arm and full.accuracy is not None
            else ""
        )
        parts.append(f"accuracy {numbers.percent(arm.accuracy)}{against}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


# --- the sections ---------------------------------------------------------------------------------------------


def _opening(results: RunResults, name: str) -> str:
    facts = rows_per_role(results.data)
    if results.data.classes:
        facts.append(html.many(len(results.data.classes), "class", "classes"))
    facts.append(f"seed {html.text(results.seed)}")
    if results.created:
        facts.append(html.text(html.moment(results.created)))
    title = name.replace("_", "_<wbr>")  # where a long name may break
    return (
        f'<header>\n<p class="kicker">raysel report</p>\n<h1>{title}</h1>\n'
        f'<p class="headline">{html.bound(html.text(headline(results)))}</p>\n'
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
    arm, full = _subject(ledger), ledger.entry(REFERENCE)
    tiles = []
    selection = results.selection
    if selection and selection.pool:
        kept, pool = selection.kept, selection.pool
        below = f"{numbers.count(kept)} of {numbers.count(pool)} rows"
        tiles.append(("Rows chosen", numbers.percent(kept / pool), below, False))
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
        names = [_name(entry.arm, entry.title, ledger) for entry in (arm, full)]
        of = f'<p class="tiles-of">{" <span class=against>against</span> ".join(names)}</p>\n'
    return f'{of}<dl class="tiles">\n{items}\n</dl>\n'


def _ledger(ledger: Ledger) -> str:
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
            _name(entry.arm, entry.title, ledger)
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
            "<strong>Samples</strong> are back-propagated. <strong>Saved</strong> = 1 − spent ÷ spent on full data; "
            "time counts everything: embedding and selecting, and under <i>other</i> starting workers, evaluation, checkpoints and epochs done twice. "
            "Below zero means that the arm cost more."
        )
    else:
        note = (
            "<strong>Samples</strong> are back-propagated. No arm trained on full data, so there is nothing to "
            "measure a saving against."
        )
    return html.section("Ledger", html.table(heads, rows) + f'<p class="note">{note}</p>')


def _metrics(results: RunResults) -> str:
    measured = results.metrics
    if not measured:
        return ""
    said = []
    if calibration := measured.calibration:
        said.append(
            f"Thresholds were tested on {html.many(calibration.count, 'subset')} of {html.many(calibration.rows, 'row')}: small models, "
            f"trained on {numbers.count(calibration.rows_trained)} rows in all, in {numbers.seconds(calibration.seconds)} s. These seconds are "
            "in the ledger, under metrics."
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
        said.append(f"{html.text(asked)}: {numbers.digits(measured.reached[name])} among the rows kept.")
    lines = "".join(f'<p class="note">{html.bound(text)}</p>' for text in said)
    return html.section("Metrics", html.grid([metrics.card(measured.sets, "Sets side by side")]) + lines)


def _selection(results: RunResults) -> str:
    selection = results.selection
    if not selection:
        return ""
    method = html.text(selection.method)
    cards = []
    if drawn := figures.kl_curve(selection.curve.rows, selection.curve.kl, selection.method):
        cards.append(
            html.card(
                drawn,
                "Divergence from the target",
                "Nearest-neighbour estimate of how far what was chosen so far is from covering the target; one point "
                "for every centroid picked. Lower is closer.",
            )
        )
    if drawn := figures.kept_share_per_class(selection.classes):
        known = all(entry.target is not None for entry in selection.classes)
        right = " Right: what pool, kept rows and target are made of." if known else ""
        cards.append(
            html.card(
                drawn,
                "What was kept of each class",
                f"Bars: kept share of the class’s pool rows; line: of the whole pool.{right} "
                "Away from the line, the distribution that is trained on has changed.",
            )
        )
    share = f", {numbers.percent(selection.kept / selection.pool)} of the pool" if selection.pool else ""
    lead = (
        f"{method} chose <b>{numbers.count(selection.kept)}</b> of {numbers.count(selection.pool)} rows"
        f"{html.bound(share)}, once, before training. A choice of rows changes the distribution that is trained on: "
        "it makes no claim to be unbiased. InfoBatch, where it runs on these rows, is unbiased with respect to "
        "them, not to the pool."
    )
    figures_ = html.grid(cards) or '<p class="missing">Its course was not measured.</p>'
    return html.section("Selection", f'<p class="lead">{lead}</p>\n{figures_}')


def _use(results: RunResults) -> str:
    """Which samples RepDiv used, next to what random subsets and round robin would have used at the same cost."""
    usage = results.usage
    if not usage:
        return ""
    scored, classes = usage.scored, usage.scored.classes
    shared = (
        f"For Rep a frequent factor counts as 1 over how many of the {html.many(classes, 'class', 'classes')} have it"
        if classes is not None
        else "They are scored without classes: for Rep every frequent factor counts as 1"
    )
    left = (
        ""
        if usage.unexplained is None
        else f"; {numbers.percent(usage.unexplained)} of the variance is left unexplained"
    )
    lead = (
        f"RepDiv chose each epoch’s samples by {html.many(scored.units, 'factor')} of a sparse autoencoder, "
        f"{numbers.count(scored.live_units)} of them in use, {scored.active:.1f} on a sample{html.bound(left)}. "
        f"{shared}. Every weight is 1: no claim to be unbiased is made."
    )
    policies = usage.policies
    if not policies:
        body = '<p class="missing">The samples’ use was not worked out: there are too many.</p>'
        return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{body}')
    uneven = ", ".join(f"{html.text(p.title)}{html.NBSP}{p.variation:.3f}" for p in policies)
    cards = [
        html.card(
            figures.usage_histogram(policies),
            "How often samples were used",
            "Gini: 0 when all were used equally often. Total variation from a uniform draw, which bounds the gradient’s "
            f"bias: {uneven}. The tail on all the data is included.",
        ),
        html.card(
            figures.rare_seen(policies),
            "Rare factors",
            f"The {html.many(usage.rare_units, 'factor')} that the fewest samples have: the share of them that "
            "the run had seen on some sample.",
        ),
        html.card(
            figures.alpha_curve(usage.alpha, len(policies[0].rare)),
            "From representative to diverse",
            "alpha, the weight of Rep; Div has the rest.",
        ),
    ]
    if usage.extremes:
        cards.append(_extremes(usage.extremes))
    note = (
        '<p class="note">Random subsets and round robin cost as much; round robin has the same tail. Neither was '
        "trained: their plans, like RepDiv’s, hang on no loss.</p>"
    )
    return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{html.grid(cards)}{note}')


def _extremes(extremes: Extremes) -> str:
    """Return a card of the samples that were chosen most and least often of a class."""
    rows = []
    for title, samples in (("Most often", extremes.most), ("Least often", extremes.least)):
        items = []
        for sample in samples:
            name = f"sample_id {sample.id}"
            what = (
                f'<img src="data:image/png;base64,{html.text(sample.image)}" alt="{name}" title="{name}">'
                if sample.image is not None
                else f"<q>{html.text(_short(sample.text or ''))}</q>"
            )
            items.append(f"<li>{what}<small>{numbers.count(sample.times)}\u00d7</small></li>")
        kind = "thumbs" if samples and samples[0].image is not None else "texts"
        rows.append(f'<h4>{title}</h4>\n<ul class="{kind}">{"".join(items)}</ul>')
    caption = (
        f"Of the class {html.text(extremes.label)}, whose samples were used most unevenly. Of equally many times, "
        "the lowest ids."
    )
    body = "\n".join(rows)
    return f'<figure class="card wide">\n<h3>Chosen most and least</h3>\n{body}\n<figcaption>{caption}</figcaption>\n</figure>'


def _short(words: str, most: int = 160) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _training(results: RunResults) -> str:
    arms = results.arms
    if not arms:
        return html.section("Training", '<p class="missing">Not measured.</p>')
    cards = []
    missing = []
    if drawn := figures.accuracy_curves(arms):
        cards.append(
            html.card(
                drawn,
                "Accuracy for what was spent",
                "The accuracy is on the validation rows. Where a line ends is all that the arm back-propagated.",
            )
        )
    elif drawn := figures.final_test_accuracies(arms):
        cards.append(
            html.card(
                drawn,
                "Accuracy for what was spent",
                "A dot is the accuracy on the test rows after the last epoch, at all that the arm back-propagated. "
                f"{NO_VALIDATION}",
            )
        )
    else:
        missing.append("accuracy")
    if drawn := figures.plan_sizes(arms):
        cards.append(html.card(drawn, "Samples planned in each epoch", _planned(arms)))
    else:
        missing.append("planned samples")
    if drawn := figures.loss_curves(arms):
        cards.append(
            html.card(
                drawn,
                "Training loss",
                "Mean over the samples that the arm trained on. Arms train on different samples, so a higher line "
                "is not a worse model.",
            )
        )
    else:
        missing.append("training loss")
    if cards:
        cards.append(_finals(results))
    notes = [f"Not measured: {', '.join(missing)}."] if missing else []
    for arm in arms.values():
        odd = sum(epoch.nonfinite for epoch in arm.epochs)
        if odd:
            notes.append(
                f"{html.text(arm.title)}: {html.many(odd, 'loss', 'losses')} not finite; these samples were kept "
                "in the plan and out of its threshold."
            )
    tail = "".join(f'<p class="missing">{note}</p>' for note in notes)
    return html.section("Training", html.grid(cards) + tail)


def _planned(arms: Mapping[str, Arm]) -> str:
    """For the arms whose plans vary: which share of their own rows they planned over all epochs."""
    parts = []
    for arm in arms.values():
        sizes = [epoch.planned for epoch in arm.epochs]
        every = arm.rows * len(sizes)
        if sizes and every and min(sizes) != max(sizes):
            share = numbers.percent(sum(sizes) / every)
            parts.append(
                f"{html.text(arm.title)} planned {numbers.count(sum(sizes))} of {numbers.count(every)} "
                f"passes over its rows ({html.bound(share)})."
            )
    return " ".join(parts) or "Every epoch of an arm had as many samples as the others."


def _finals(results: RunResults) -> str:
    """Return a card with each arm's last values."""
    rows = []
    colours = figures.arm_colours(list(results.arms))
    validated = any(epoch.accuracy is not None for arm in results.arms.values() for epoch in arm.epochs)
    for name, arm in results.arms.items():
        last = arm.epochs[-1] if arm.epochs else None
        loss = None if last is None else last.loss
        rows.append(
            [
                html.dot(colours[name]) + html.text(arm.title),
                numbers.percent(arm.accuracy),
                *([numbers.percent(None if last is None else last.accuracy)] if validated else []),
                numbers.MISSING if loss is None or not math.isfinite(loss) else f"{loss:.3f}",
            ]
        )
    heads = [
        "After the last epoch",
        "Test accuracy",
        *(["Validation accuracy"] if validated else []),
        "Loss",
    ]
    table = html.table(heads, rows, stack=False)
    error = _standard_error(results.data, (arm.accuracy for arm in results.arms.values()))
    how = '<a href="#reading">how to read this</a>'
    note = f'<figcaption class="text">{error} One seed: see {how}.</figcaption>'
    return f'<figure class="card plain">{table}{note}</figure>'


def _costs(ledger: Ledger) -> str:
    if not ledger.entries:
        return ""
    drawn = figures.cost_bars(ledger)
    if not drawn:
        return html.section("Costs", '<p class="missing">Seconds were not measured.</p>')
    stages = [stage for stage in STAGES if any(entry.seconds[stage] != 0 for entry in ledger.entries)]
    heads = ["Stage, seconds", *(html.text(entry.title) for entry in ledger.entries)]
    rows = [
        [stage.capitalize(), *(numbers.seconds(entry.seconds[stage]) for entry in ledger.entries)]
        for stage in stages
    ]
    rows.append(
        ["<b>Total</b>", *(f"<b>{numbers.seconds(entry.total_seconds)}</b>" for entry in ledger.entries)]
    )
    forward = ", ".join(
        f"{html.text(entry.title)}{html.NBSP}{numbers.count(entry.samples_forward)}"
        for entry in ledger.entries
    )
    note = f'<figcaption class="text">Samples forwarded in training: {forward}.</figcaption>'
    wide = " wide" if len(ledger.entries) > 3 else ""
    cards = [
        html.card(drawn, "Where the time went", "Wall-clock seconds of each stage."),
        f'<figure class="card plain{wide}">{html.table(heads, rows, stack=False)}{note}</figure>',
    ]
    return html.section("Costs", html.grid(cards, "costs"))


def _reading(results: RunResults) -> str:
    error = _standard_error(results.data, (entry.accuracy for entry in results.ledger.entries))
    items = [
        (
            f"One seed ({html.text(results.seed)}): no claim about differences.",
            "Each arm was trained once. A difference in accuracy between arms is a single observation, not a finding; "
            f"another seed can turn it round. {error} Compare over several seeds before deciding.",
        ),
        (
            "A saving counts everything spent.",
            "1 − (everything that the arm spent) ÷ (what training on full data spent). In time, that includes "
            "embedding, metrics, selection and planning; in samples, it is back-propagated samples, since that is "
            "where most of the arithmetic is. A negative saving cost more. Without an arm on full data, or with a "
            "figure missing, no saving is stated.",
        ),
        (
            "Seconds are of this machine, this once.",
            "They move with what else it was doing, and in a short run starting up outweighs training. "
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
                f"Rows chosen by {method} are not a fair sample of the pool, and are not meant to be: training on them "
                "makes no claim to be unbiased. InfoBatch inside such an arm is unbiased <em>with respect to the "
                "selection</em>, not to the pool.",
            ),
            (
                "The KL curve is an estimate.",
                "It is computed from distances to nearest neighbours, in nats; it has a bias that depends on the "
                "number of rows and dimensions, and may fall below zero. Read its course, and compare its values only "
                "between selections from the same pool for the same target. It says how well the chosen rows cover "
                "the target, not how well a model will do.",
            ),
        ]
    words = "\n".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in items)
    return html.section("How to read this", f'<dl class="reading">\n{words}\n</dl>', identity="reading")


def trusted_files(roles: Sequence[str]) -> str:
    """Return one sentence of plain text about the roles in ``trusted`` of the results."""
    listed = ", ".join(roles)
    return (
        "Files of these roles were compared by size and modification time, not by content, as "
        f'"trust: mtime" asks: {listed}.'
    )


def configuration(results: RunResults | CompareResults) -> str:
    """Return the section with the complete configuration, folded."""
    if not results.config:
        return ""
    text = json.dumps(results.config, indent=2, ensure_ascii=False, default=str)
    return html.section(
        "Configuration",
        f"<details>\n<summary>Everything this run was told</summary>\n<pre>{html.text(text, lines=True)}</pre>\n</details>",
    )


def versions(results: RunResults | CompareResults) -> str:
    """Return the footer with the versions of the libraries that the run used."""
    used = {**({"raysel": results.raysel} if results.raysel else {}), **results.versions}
    if not used:
        return ""
    words = " · ".join(f"{html.text(name)}{html.NBSP}{html.text(version)}" for name, version in used.items())
    return f"<footer>\n<h2>Versions</h2>\n<p>{words}</p>\n</footer>"


# --- what the sections are made of ----------------------------------------------------------------------------


def _subject(ledger: Ledger) -> LedgerEntry | None:
    """Return the arm that the run is about: the chain, else the last one that is not the reference, else that."""
    others = [entry for entry in ledger.entries if entry.arm != REFERENCE]
    return ledger.entry("chain") or (others[-1] if others else ledger.entry(REFERENCE))


def _standard_error(data: Data, accuracies: Iterable[float | None]) -> str:
    """How far an accuracy moves with the choice of the test rows alone (binomial, the widest of the arms)."""
    shares = [share for share in accuracies if share is not None]
    if not data.test or not shares:
        return ""
    points = 100 * max(math.sqrt(share * (1 - share) / data.test) for share in shares)
    if not points:
        return ""
    size = f"{points:.1f}{html.NBSP}points"
    return f"With {html.many(data.test, 'test row')}, one standard error of such an accuracy is up to {size}."


def _compared(saving: float | None, less: str, more: str) -> str:
    if saving is None:
        return ""
    amount = numbers.saving(saving).removeprefix("-")
    kind = less.split()[1]
    if amount == "0 %":
        return f"as many {kind}" if kind == "samples" else f"as much {kind}"
    return f"{amount} {less if saving > 0 else more}"


def _saved(arm: str, share: float | None) -> str:
    text = numbers.saving(share).replace("-", "\u2212")
    if arm == REFERENCE and share is not None:
        return '<span class="quiet">–</span>'
    return f'<span class="more">{text}</span>' if share is not None and share < 0 else text


def _name(arm: str, title: str, ledger: Ledger) -> str:
    return html.dot(figures.arm_colours([entry.arm for entry in ledger.entries])[arm]) + html.text(title)
