"""The training of every arm: the reported metric, planned samples and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysel.report import html, numbers
from raysel.report.figures.colours import arm_colours
from raysel.report.figures.training import final_metrics, loss_curves, metric_curves, plan_sizes
from raysel.report.goal import Goal, label_of, metric_text
from raysel.report.results import Arm, RunResults
from raysel.report.sections.reading import standard_error

NO_VALIDATION = (
    "The workflow has no validation rows, so there is no curve over the epochs. To get such a curve, set the "
    "key <code>validation</code> in the workflow."
)
"""The sentence below a figure that shows final values in place of curves, as HTML."""


def training_section(results: RunResults) -> str:
    """Return the section of the training of all arms."""
    arms, goal = results.arms, results.goal
    if not arms:
        return html.section("Training", '<p class="missing">This run has no measurements of a training.</p>')
    cards = []
    missing = []
    head = html.text(goal.head)
    if drawn := metric_curves(arms, goal):
        cards.append(
            html.card(
                drawn,
                f"{head} against samples",
                f"{head} on the validation rows after each epoch, one line per arm (training run), against the number of "
                "samples that the arm had back-propagated by then. The further left a line ends, the fewer samples its arm used. "
                f"{_ahead(goal, 'line ends')} {_outside(goal)}Each arm was trained with one seed, so there are no error bars.",
            )
        )
    elif drawn := final_metrics(arms, goal):
        cards.append(
            html.card(
                drawn,
                f"{head} against samples",
                f"{head} on the test rows after the last epoch, one dot per arm (training run), against the number of samples that the "
                "arm back-propagated in all. The further left a dot is, the fewer samples its arm used. "
                f"{_ahead(goal, 'dot is')} Each arm was trained with one seed, so there are no error bars. "
                f"{NO_VALIDATION}",
            )
        )
    else:
        missing.append(html.text(goal.label))
    if drawn := plan_sizes(arms):
        cards.append(html.card(drawn, "Samples selected in each epoch", _planned(arms)))
    else:
        missing.append("selected samples")
    if drawn := loss_curves(arms):
        cards.append(
            html.card(
                drawn,
                "Training loss",
                "Mean loss of the samples that each arm (training run) trained on in each epoch, one line per arm. The arms train on "
                f"different samples, so a higher line does not mean a worse model; compare the {html.text(goal.plural)} on the test rows instead.",
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
                f"{html.text(arm.title)}: {html.many(odd, 'loss was', 'losses were')} NaN or infinite. The samples with these losses "
                "were still trained on. The policy ignored these losses and kept the last finite loss of each sample, if it had one."
            )
        if goal.metric in arm.metrics and goal.value(arm.metrics) is None:
            notes.append(f"{html.text(arm.title)}: The test {html.text(goal.label)} is not a finite number.")
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
                f"{html.text(arm.title)}: {numbers.count(sum(sizes))} samples in all epochs together. This is {html.bound(share)} of "
                f"{numbers.count(every)}, the number of samples if every epoch used all rows of this arm."
            )
    lead = (
        "Number of samples that each arm (training run) selected to train on in each epoch, one line per arm."
    )
    return " ".join(
        [lead, *(parts or ["In each arm, the number of selected samples was the same in every epoch."])]
    )


def _ahead(goal: Goal, what: str) -> str:
    """Return a sentence about where the better arms are in the figure, by their lines or dots."""
    side = "higher" if goal.direction == "max" else "lower"
    return (
        f"The {side} a {what}, the {'more accurate' if goal.accuracy else 'better'} the model of its arm is."
    )


def _outside(goal: Goal) -> str:
    """Return a sentence about values that the figure leaves out; shares are all in it."""
    side = "below" if goal.direction == "max" else "above"
    return (
        ""
        if goal.share
        else f"The vertical axis fits the values after the first quarter of each line; earlier values can be {side} its range and are "
        "then not shown. "
    )


def _finals(results: RunResults) -> str:
    """Return a card with each arm's last values: the reported metric first, then the other metrics of the task."""
    rows = []
    goal = results.goal
    colours = arm_colours(list(results.arms))
    validated = any(
        goal.value(epoch.metrics) is not None for arm in results.arms.values() for epoch in arm.epochs
    )
    others = sorted({name for arm in results.arms.values() for name in arm.metrics} - {goal.metric})
    for name, arm in results.arms.items():
        last = arm.epochs[-1] if arm.epochs else None
        loss = None if last is None else last.loss
        rows.append(
            [
                html.dot(colours[name]) + html.text(arm.title),
                goal.text(goal.value(arm.metrics)),
                *([goal.text(None if last is None else goal.value(last.metrics))] if validated else []),
                *(metric_text(name, arm.metrics.get(name)) for name in others),
                numbers.MISSING if loss is None or not math.isfinite(loss) else f"{loss:.3f}",
            ]
        )
    heads = [
        "After the last epoch",
        f"Test {html.text(goal.label)}",
        *([f"Validation {html.text(goal.label)}"] if validated else []),
        *(f"Test {html.text(label_of(name))}" for name in others),
        "Training loss",
    ]
    table = html.table(heads, rows, stack=False)
    error = standard_error(results.data, goal, (goal.value(arm.metrics) for arm in results.arms.values()))
    how = '<a href="#reading">How to read this</a>'
    note = f'<figcaption class="text">{error} Each arm was trained with one seed; see {how}.</figcaption>'
    return f'<figure class="card plain">{table}{note}</figure>'
