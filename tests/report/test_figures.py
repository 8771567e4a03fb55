from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib
import pytest

from raysel.report import Ledger, figures


def draw_all(results: dict[str, Any]) -> dict[str, str]:
    selection, arms = results["selection"], results["arms"]
    return {
        "kl": figures.kl_curve(selection["curve"]["rows"], selection["curve"]["kl"], "GIO"),
        "kept": figures.kept_share_per_class(selection["classes"]),
        "plans": figures.plan_sizes(arms),
        "loss": figures.loss_curves(arms),
        "accuracy": figures.accuracy_curves(arms),
        "costs": figures.cost_bars(Ledger.from_dict(results["ledger"])),
    }


def settings() -> dict[str, Any]:
    """All of matplotlib's settings but the backend: merely reading that one loads pyplot."""
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}


def test_every_figure_is_well_formed_and_the_same_twice(results: dict[str, Any]) -> None:
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


def test_a_users_settings_do_not_change_a_figure(results: dict[str, Any]) -> None:
    plain = figures.plan_sizes(results["arms"])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9}):
        assert figures.plan_sizes(results["arms"]) == plain


def test_names_stand_in_the_figures_as_they_are(results: dict[str, Any]) -> None:
    results["arms"]["chain"]["title"] = "$a$ <b>&\x00"
    results["selection"]["classes"][0]["label"] = '<"$x_1$"> \u6f22'
    for svg in draw_all(results).values():
        ET.fromstring(svg)
    assert "$a$ &lt;b&gt;&amp;" in figures.plan_sizes(results["arms"])
    assert "$x_1$" in figures.kept_share_per_class(results["selection"]["classes"])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.kl_curve([], []),
        lambda: figures.kl_curve([1], [None]),
        lambda: figures.kept_share_per_class([]),
        lambda: figures.kept_share_per_class([{"label": "a", "pool": 0, "kept": 0, "target": None}]),
        lambda: figures.plan_sizes({}),
        lambda: figures.loss_curves({"full": {"title": "Full", "epochs": []}}),
        lambda: figures.loss_curves({"full": {"epochs": [{"epoch": 0, "planned": 3, "loss": float("nan")}]}}),
        lambda: figures.accuracy_curves({"full": {"epochs": [{"epoch": 0, "planned": 3, "accuracy": None}]}}),
        lambda: figures.cost_bars(Ledger()),
    ],
)
def test_nothing_to_draw_is_an_empty_string(draw: Callable[[], str]) -> None:
    assert draw() == ""


def test_small_and_extreme_data() -> None:
    one: dict[str, Any] = {
        "full": {"title": "", "epochs": [{"epoch": 0, "planned": 0, "loss": 0.0, "accuracy": 1.0}]}
    }
    worse: dict[str, Any] = {
        "chain": {"epochs": [{"epoch": e, "planned": 10**9, "loss": -2.0, "accuracy": 0.0} for e in range(3)]}
    }
    for arms in (one, worse, {**one, **worse}):
        for draw in (figures.plan_sizes, figures.loss_curves, figures.accuracy_curves):
            ET.fromstring(draw(arms))
    ET.fromstring(figures.kl_curve([5], [-0.3]))
    ET.fromstring(figures.kl_curve([5, 6, 7], [None, float("inf"), 0.0]))
    ET.fromstring(figures.kept_share_per_class([{"label": "", "pool": 3, "kept": 0, "target": 0}]))


def test_many_classes_are_cut_to_the_extremes() -> None:
    classes = [{"label": f"class {i}", "pool": 100, "kept": i, "target": None} for i in range(100)]
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
    cut = {"epochs": [{"epoch": 0, "planned": 900, "trained": 450, "accuracy": 0.5}]}
    assert figures._series({"random": cut}, "accuracy") == {"random": [(cut["epochs"][0], 450, 0.5)]}
