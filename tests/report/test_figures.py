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

from raysel.report import Ledger, figures
from raysel.report.results import Arm, ClassCount, Epoch, RunResults


def draw_all(results: RunResults) -> dict[str, str]:
    selection, arms = results.selection, results.arms
    assert selection is not None
    return {
        "kl": figures.kl_curve(selection.curve.rows, selection.curve.kl, "GIO"),
        "kept": figures.kept_share_per_class(selection.classes),
        "plans": figures.plan_sizes(arms),
        "loss": figures.loss_curves(arms),
        "accuracy": figures.accuracy_curves(arms),
        "costs": figures.cost_bars(results.ledger),
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
    plain = figures.plan_sizes(results.arms)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9}):
        assert figures.plan_sizes(results.arms) == plain


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
    assert "$a$ &lt;b&gt;&amp;" in figures.plan_sizes(results.arms)
    assert "$x_1$" in figures.kept_share_per_class(classes)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.kl_curve([], []),
        lambda: figures.kl_curve([1], [None]),
        lambda: figures.kept_share_per_class([]),
        lambda: figures.kept_share_per_class([ClassCount("a", 0, 0)]),
        lambda: figures.plan_sizes({}),
        lambda: figures.plan_sizes({"full": Arm("full", "Full", 3)}),
        lambda: figures.loss_curves({"full": Arm("full", "Full", 3)}),
        lambda: figures.loss_curves({"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1, loss=float("nan")),))}),
        lambda: figures.accuracy_curves({"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1),), accuracy=0.5)}),
        lambda: figures.final_test_accuracies(
            {"full": Arm("full", "", 3, (Epoch(0, 3, 3, 1, accuracy=0.5),))}
        ),
        lambda: figures.accuracy_against_passes([]),
        lambda: figures.final_accuracies([]),
        lambda: figures.cost_bars(Ledger()),
    ],
)
def test_nothing_to_draw_is_an_empty_string(draw: Callable[[], str]) -> None:
    assert draw() == ""


def test_small_and_extreme_data() -> None:
    epoch = Epoch(0, 0, 0, 0, loss=0.0, accuracy=1.0)
    one = {"full": Arm("full", "", 0, (epoch,), accuracy=1.0)}
    big = [Epoch(e, 10**9, 10**9, 10**7, loss=-2.0, accuracy=0.0) for e in range(3)]
    worse = {"chain": Arm("chain", "", 10**9, tuple(big), accuracy=0.0)}
    for arms in (one, worse, {**one, **worse}):
        for draw in (
            figures.plan_sizes,
            figures.loss_curves,
            figures.accuracy_curves,
            figures.final_test_accuracies,
        ):
            ET.fromstring(draw(arms))
    ET.fromstring(figures.kl_curve([5], [-0.3]))
    ET.fromstring(figures.kl_curve([5, 6, 7], [None, float("inf"), 0.0]))
    ET.fromstring(figures.kept_share_per_class([ClassCount("", 3, 0, 0)]))


def test_many_classes_are_cut_to_the_extremes() -> None:
    classes = [ClassCount(f"class {i}", 100, i) for i in range(100)]
    svg = figures.kept_share_per_class(classes)
    assert "76 classes between" in svg
    assert "class 99<" in svg
    assert "class 0<" in svg
    assert "class 50<" not in svg


def test_labels_are_pushed_apart_and_stay_inside() -> None:
    places = figures._spread([10.0, 11.0, 12.0, 90.0], [10.0] * 4, 100.0)
    assert places[0] >= 5
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(places))
    assert places[-1] == pytest.approx(90)
    top = figures._spread([98.0, 99.0], [10.0, 10.0], 100.0)
    assert top == pytest.approx([85, 95])


def test_an_arm_has_the_same_colour_in_every_company() -> None:
    few, many = (
        figures.arm_colours(["chain"]),
        figures.arm_colours(["full", "strict", "random", "chain", "rr"]),
    )
    assert few["chain"] == many["chain"]
    assert len(set(many.values())) == 5


def test_the_spent_axis_counts_what_was_trained_not_what_was_planned():
    """An epoch that max_steps cut short planned more than it trained."""
    epoch = Epoch(0, planned=900, trained=450, steps=9, accuracy=0.5)
    cut = {"random": Arm("random", "random", 900, (epoch,), accuracy=0.6)}
    assert figures._series(cut, lambda epoch: epoch.accuracy) == {"random": [(epoch, 450, 0.5)]}
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_accuracies", lambda arms, points, rows: drawn.append((points, rows)) or "")
        figures.accuracy_curves(cut)
        figures.final_test_accuracies(cut)
    assert drawn == [({"random": [(450, 0.5)]}, "validation"), ({"random": [(450, 0.6)]}, "test")]


def test_curves_are_of_validation_rows_and_single_dots_of_test_rows(results: RunResults) -> None:
    curves, dots = figures.accuracy_curves(results.arms), figures.final_test_accuracies(results.arms)
    assert "accuracy on the validation rows" in curves and "test rows" not in curves
    assert "accuracy on the test rows" in dots and "validation" not in dots
    # The sample's accuracy is 97.11 % on the test rows and 96.61 % on the validation rows.
    assert "GIO + InfoBatch 96.6 %" in curves and "GIO + InfoBatch 97.1 %" in dots


def test_an_end_is_drawn_even_where_a_policy_spent_little() -> None:
    """The first quarter of the passes may run out below the figure, but no policy's end."""
    long = ((100, 0.1), (1000, 0.9))
    few = ((100, 0.5),)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            figures, "_reach", lambda axes, low, high, within: drawn.append((low, high)) or (0.0, 1.0)
        )
        for curves in ((long, few), ((), ())):
            policies = [
                figures.PolicyCurves(str(place), "#000", not place, ends, (curve,) if curve else ())
                for place, (ends, curve) in enumerate(
                    zip((((1000, 0.8),), ((100, 0.4),)), curves, strict=True)
                )
            ]
            figures.accuracy_against_passes(policies)
    assert drawn == [(0.5, 0.9), (0.4, 0.8)]
