from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib
import pytest

from raysel.report import Ledger
from raysel.report.figures import axis, colours, comparison, costs, line_labels, selection, training
from raysel.report.results import Arm, ClassCount, Epoch, Goal, RunResults


def draw_all(results: RunResults) -> dict[str, str]:
    chosen, arms = results.selection, results.arms
    assert chosen is not None
    return {
        "kl": selection.kl_curve(chosen.curve.rows, chosen.curve.kl, "GIO"),
        "kept": selection.kept_share_per_class(chosen.classes),
        "plans": training.plan_sizes(arms),
        "loss": training.loss_curves(arms),
        "accuracy": training.metric_curves(arms, Goal()),
        "costs": costs.cost_bars(results.ledger),
    }


def settings() -> dict[str, Any]:
    """All of matplotlib's settings but the backend: merely reading that one loads pyplot."""
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}


def test_every_figure_is_well_formed_and_the_same_twice(results: RunResults) -> None:
    before, pyplot = settings(), "matplotlib.pyplot" in sys.modules
    drawn = draw_all(results)
    for svg in drawn.values():
        assert ET.fromstring(svg).tag.endswith("svg")
        assert "<metadata" not in svg
        assert "<style" not in svg
    assert draw_all(results) == drawn
    assert settings() == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
    for svg in drawn.values():
        for other in drawn.values():
            if svg is not other:  # ids are unique on a page
                assert not set(re.findall(r' id="([^"]+)"', svg)) & set(re.findall(r' id="([^"]+)"', other))


def test_a_users_settings_do_not_change_a_figure(results: RunResults) -> None:
    plain = training.plan_sizes(results.arms)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9}):
        assert training.plan_sizes(results.arms) == plain


def test_names_stand_in_the_figures_as_they_are(results: RunResults) -> None:
    assert results.selection is not None
    chain = replace(results.arms["chain"], title="$a$ <b>&\x00")
    first, *others = results.selection.classes
    classes = (replace(first, label='<"$x_1$"> \u6f22'), *others)
    results = replace(
        results,
        arms=results.arms | {"chain": chain},
        selection=replace(results.selection, classes=classes),
    )
    for svg in draw_all(results).values():
        ET.fromstring(svg)
    assert "$a$ &lt;b&gt;&amp;" in training.plan_sizes(results.arms)
    assert "$x_1$" in selection.kept_share_per_class(classes)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: selection.kl_curve([], []),
        lambda: selection.kl_curve([1], [None]),
        lambda: selection.kept_share_per_class([]),
        lambda: selection.kept_share_per_class([ClassCount("a", 0, 0)]),
        lambda: training.plan_sizes({}),
        lambda: training.plan_sizes({"full": Arm("full", "Full", 3)}),
        lambda: training.loss_curves({"full": Arm("full", "Full", 3)}),
        lambda: training.loss_curves({"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1, loss=float("nan")),))}),
        lambda: training.metric_curves(
            {"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1),), {"accuracy": 0.5})}, Goal()
        ),
        lambda: training.metric_curves(
            {"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1, metrics={"loss": 0.5}),))}, Goal()
        ),
        lambda: training.final_metrics(
            {"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1, metrics={"accuracy": 0.5}),))}, Goal()
        ),
        lambda: comparison.metric_against_samples([], Goal()),
        lambda: comparison.final_metrics([], Goal()),
        lambda: costs.cost_bars(Ledger()),
    ],
)
def test_nothing_to_draw_is_an_empty_string(draw: Callable[[], str]) -> None:
    assert draw() == ""


def test_small_and_extreme_data() -> None:
    epoch = Epoch(0, 0, 0, 0, loss=0.0, metrics={"accuracy": 1.0})
    one = {"full": Arm("full", "", 0, (epoch,), {"accuracy": 1.0})}
    big = [Epoch(e, 10**9, 10**9, 10**7, loss=-2.0, metrics={"accuracy": 0.0}) for e in range(3)]
    worse = {"chain": Arm("chain", "", 10**9, tuple(big), {"accuracy": 0.0})}
    for arms in (one, worse, {**one, **worse}):
        for draw in (
            training.plan_sizes,
            training.loss_curves,
            lambda arms: training.metric_curves(arms, Goal()),
            lambda arms: training.final_metrics(arms, Goal()),
        ):
            ET.fromstring(draw(arms))
    ET.fromstring(selection.kl_curve([5], [-0.3]))
    ET.fromstring(selection.kl_curve([5, 6, 7], [None, float("inf"), 0.0]))
    ET.fromstring(selection.kept_share_per_class([ClassCount("", 3, 0, 0)]))


def test_many_classes_are_cut_to_the_extremes() -> None:
    classes = [ClassCount(f"class {i}", 100, i) for i in range(100)]
    svg = selection.kept_share_per_class(classes)
    assert "76 classes between" in svg
    assert "class 99<" in svg
    assert "class 0<" in svg
    assert "class 50<" not in svg


def test_labels_are_pushed_apart_and_stay_inside() -> None:
    places = line_labels.spread([10.0, 11.0, 12.0, 90.0], [10.0] * 4, 100.0)
    assert places[0] >= 5
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(places))
    assert places[-1] == pytest.approx(90)
    top = line_labels.spread([98.0, 99.0], [10.0, 10.0], 100.0)
    assert top == pytest.approx([85, 95])


def test_an_arm_has_the_same_colour_in_every_company() -> None:
    few, many = (
        colours.arm_colours(["chain"]),
        colours.arm_colours(["full", "strict", "random", "chain", "rr"]),
    )
    assert few["chain"] == many["chain"]
    assert len(set(many.values())) == 5


def test_the_spent_axis_counts_what_was_trained_not_what_was_planned():
    """An epoch that max_steps cut short planned more than it trained."""
    epoch = Epoch(0, planned=900, trained=450, steps=9, metrics={"accuracy": 0.5})
    cut = {"random": Arm("random", "random", 900, (epoch,), {"accuracy": 0.6})}
    assert training._series(cut, lambda epoch: epoch.metrics["accuracy"]) == {"random": [(epoch, 450, 0.5)]}
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "_metrics", lambda arms, points, rows, goal: drawn.append((points, rows)) or ""
        )
        training.metric_curves(cut, Goal())
        training.final_metrics(cut, Goal())
    assert drawn == [({"random": [(450, 0.5)]}, "validation"), ({"random": [(450, 0.6)]}, "test")]


def test_curves_are_of_validation_rows_and_single_dots_of_test_rows(results: RunResults) -> None:
    curves, dots = (
        draw(results.arms, results.goal) for draw in (training.metric_curves, training.final_metrics)
    )
    assert "accuracy on the validation rows" in curves and "test rows" not in curves
    assert "accuracy on the test rows" in dots and "validation" not in dots
    # The sample's accuracy is 97.11 % on the test rows and 96.61 % on the validation rows.
    assert "GIO + InfoBatch 96.6 %" in curves and "GIO + InfoBatch 97.1 %" in dots


def test_an_end_is_drawn_even_where_a_policy_spent_little() -> None:
    """The first quarter of the samples may run out below the figure, but no policy's end."""
    long = ((100, 0.1), (1000, 0.9))
    few = ((100, 0.5),)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            axis, "set_y_range", lambda axes, low, high, within: drawn.append((low, high)) or (0.0, 1.0)
        )
        for curves in ((long, few), ((), ())):
            policies = [
                comparison.PolicyCurves(str(place), "#000", not place, ends, (curve,) if curve else ())
                for place, (ends, curve) in enumerate(
                    zip((((1000, 0.8),), ((100, 0.4),)), curves, strict=True)
                )
            ]
            comparison.metric_against_samples(policies, Goal())
    assert drawn == [(0.5, 0.9), (0.4, 0.8)]
