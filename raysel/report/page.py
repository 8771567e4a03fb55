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
    "There are no validation rows; set the key <code>validation:</code> in the workflow to get a curve."
)
"""The sentence below a figure that shows final accuracies in place of curves, as HTML."""

_SELECTING = ("embedding", "metrics", "selection", "planning")  # stages of the ledger


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
    """Return the results of a run in one sentence of plain text: rows selected, savings, change of the accuracy."""
    ledger, selection = results.ledger, results.selection
    parts = []
    if selection:
        kept, pool = numbers.count(selection.kept), numbers.count(selection.pool)
        parts.append(f"{kept} of {pool} rows were selected")
    arm = _subject(ledger)
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
    arm, full = _subject(results.ledger), results.ledger.entry(REFERENCE)
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


# --- the sections ---------------------------------------------------------------------------------------------


def _opening(results: RunResults, name: str) -> str:
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
    arm, full = _subject(ledger), ledger.entry(REFERENCE)
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


def _metrics(results: RunResults) -> str:
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
                "Nearest-neighbour estimate of how far the selected rows are from covering the target, one point per "
                "selected centroid. Lower is closer.",
            )
        )
    if drawn := figures.kept_share_per_class(selection.classes):
        known = all(entry.target is not None for entry in selection.classes)
        right = " Right: share of each class in the pool, the selected rows and the target." if known else ""
        cards.append(
            html.card(
                drawn,
                "Selected share of each class",
                f"Bars: share of the class’s pool rows that was selected; line: share of the complete pool.{right} "
                "Where a bar does not end at the line, selection changed the share of the class.",
            )
        )
    share = f", {numbers.percent(selection.kept / selection.pool)} of the pool" if selection.pool else ""
    lead = (
        f"{method} selected <b>{numbers.count(selection.kept)}</b> of {numbers.count(selection.pool)} rows"
        f"{html.bound(share)}, once, before training. Selection changes the distribution that is trained on; "
        "it does not claim to be unbiased. Where InfoBatch runs on the selected rows, it is unbiased with respect to "
        "them, not to the pool."
    )
    figures_ = html.grid(cards) or '<p class="missing">The course of the selection was not measured.</p>'
    return html.section("Selection", f'<p class="lead">{lead}</p>\n{figures_}')


def _use(results: RunResults) -> str:
    """Which samples RepDiv used, next to what random subsets and round robin would have used at the same cost."""
    usage = results.usage
    if not usage:
        return ""
    scored, classes = usage.scored, usage.scored.classes
    shared = (
        f"For Rep, a frequent factor counts as 1 divided by the number of the {html.many(classes, 'class', 'classes')} that have it"
        if classes is not None
        else "They are scored without classes: for Rep, every frequent factor counts as 1"
    )
    left = (
        ""
        if usage.unexplained is None
        else f"; {numbers.percent(usage.unexplained)} of the variance is not explained"
    )
    lead = (
        f"RepDiv selected the samples of each epoch by {html.many(scored.units, 'factor')} of a sparse autoencoder, "
        f"{numbers.count(scored.live_units)} of them in use, {scored.active:.1f} per sample{html.bound(left)}. "
        f"{shared}. Every weight is 1; RepDiv does not claim to be unbiased."
    )
    policies = usage.policies
    if not policies:
        body = '<p class="missing">The use of the samples was not computed, because there are too many.</p>'
        return html.section("Use of the samples", f'<p class="lead">{lead}</p>\n{body}')
    uneven = ", ".join(f"{html.text(p.title)}{html.NBSP}{p.variation:.3f}" for p in policies)
    cards = [
        html.card(
            figures.usage_histogram(policies),
            "How often samples were used",
            "The Gini coefficient is 0 when all samples were used equally often. The total variation from a uniform draw bounds the "
            f"bias of the gradient: {uneven}. The last epochs, on all the data, are included.",
        ),
        html.card(
            figures.rare_seen(policies),
            "Rare factors",
            f"Share of the {html.many(usage.rare_units, 'factor')} with the fewest samples that a run had seen on at "
            "least one sample.",
        ),
        html.card(
            figures.alpha_curve(usage.alpha, len(policies[0].rare)),
            "From representative to diverse",
            "alpha is the weight of Rep; the weight of Div is 1 − alpha.",
        ),
    ]
    if usage.extremes:
        cards.append(_extremes(usage.extremes))
    note = (
        '<p class="note">Random subsets and round robin use as many samples as RepDiv. Like RepDiv, round robin ends with epochs on full data. Neither was '
        "trained: like those of RepDiv, their plans do not depend on losses.</p>"
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
        f"Samples of the class {html.text(extremes.label)}, which was used most unevenly. Among samples that were used "
        "equally often, those with the lowest ids are shown."
    )
    body = "\n".join(rows)
    return f'<figure class="card wide">\n<h3>Used most and least often</h3>\n{body}\n<figcaption>{caption}</figcaption>\n</figure>'


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
                "Accuracy against samples",
                "The accuracy is on the validation rows. Each line ends at the number of samples that the arm back-propagated in all.",
            )
        )
    elif drawn := figures.final_test_accuracies(arms):
        cards.append(
            html.card(
                drawn,
                "Accuracy against samples",
                "A dot is the accuracy on the test rows after the last epoch, at the number of samples that the arm "
                "back-propagated in all. "
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
                "Mean loss of the samples that the arm trained on. Arms train on different samples, so a higher line "
                "does not mean a worse model.",
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
                f"{html.text(arm.title)}: {html.many(odd, 'loss', 'losses')} not finite; these samples stayed "
                "in the plan but did not count towards its threshold."
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
    return " ".join(parts) or "Each arm had the same number of samples in every epoch."


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
    how = '<a href="#reading">How to read this</a>'
    note = f'<figcaption class="text">{error} This is one seed; see {how}.</figcaption>'
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
        html.card(
            drawn,
            "Time per stage",
            "Wall-clock seconds of each stage. Other: start-up of the workers, evaluation, checkpoints and repeated epochs.",
        ),
        f'<figure class="card plain{wide}">{html.table(heads, rows, stack=False)}{note}</figure>',
    ]
    return html.section("Costs", html.grid(cards, "costs"))


def _reading(results: RunResults) -> str:
    error = _standard_error(results.data, (entry.accuracy for entry in results.ledger.entries))
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


def configuration(results: RunResults | CompareResults) -> str:
    """Return the section with the complete configuration, folded."""
    if not results.config:
        return ""
    text = json.dumps(results.config, indent=2, ensure_ascii=False, default=str)
    return html.section(
        "Configuration",
        f"<details>\n<summary>Complete configuration of this run</summary>\n<pre>{html.text(text, lines=True)}</pre>\n</details>",
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
    return f"With {html.many(data.test, 'test row')}, the standard error of an accuracy is up to {size}."


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


def _saved(arm: str, share: float | None) -> str:
    text = numbers.saving(share).replace("-", "\u2212")
    if arm == REFERENCE and share is not None:
        return '<span class="quiet">–</span>'
    return f'<span class="more">{text}</span>' if share is not None and share < 0 else text


def _name(arm: str, title: str, ledger: Ledger) -> str:
    return html.dot(figures.arm_colours([entry.arm for entry in ledger.entries])[arm]) + html.text(title)
