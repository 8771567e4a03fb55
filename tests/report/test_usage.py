from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raysel.dynamic import RandomSubset, RepDiv, RoundRobin, SampleState
from raysel.errors import DataError
from raysel.report.figures.usage import alpha_curve, rare_seen, usage_histogram
from raysel.report.page import render
from raysel.report.results import Extremes, PolicyUse, Scored, ShownRow, Usage
from raysel.report.usage import gini, images, replay, times, total_variation

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=40).map(np.array)


@settings(deadline=None)
@given(COUNTS)
def test_they_are_what_their_definitions_say(counts):
    total = counts.sum()
    if total == 0:
        assert gini(counts) == total_variation(counts) == 0
        return
    pairs = np.abs(counts[:, None] - counts[None, :]).sum()  # the mean difference, halved, over the mean
    assert gini(counts) == pytest.approx(pairs / (2 * len(counts) * total), abs=1e-12)
    shares = counts / total
    assert total_variation(counts) == pytest.approx(np.maximum(shares - 1 / len(counts), 0).sum(), abs=1e-12)


def test_equal_use_is_0_and_one_sample_for_all_is_near_1():
    assert gini(np.full(7, 3)) == total_variation(np.full(7, 3)) == 0
    one = np.array([0] * 99 + [5])
    assert gini(one) == pytest.approx(0.99) == total_variation(one)


def test_gradients_lie_within_the_bound():
    rng = np.random.default_rng(0)
    counts, gradients = rng.integers(0, 9, 60), rng.normal(size=(60, 5))
    bias = np.linalg.norm(counts @ gradients / counts.sum() - gradients.mean(axis=0))
    assert bias <= 2 * np.linalg.norm(gradients, axis=1).max() * total_variation(counts)


@pytest.mark.parametrize(
    "wrong", [np.array([-1, 2]), np.array([0.5]), np.array([], int), np.ones((2, 2), int)]
)
def test_what_is_no_count_is_refused(wrong):
    with pytest.raises(DataError, match="must be a one-dimensional array of integers of at least 0"):
        gini(wrong)


@pytest.mark.parametrize("name", ["RepDiv", "RoundRobin", "RandomSubset"])
def test_a_replay_selects_what_the_run_did_whatever_its_losses(name):
    rng, n, epochs = np.random.default_rng(0), 60, 7
    units = rng.random((n, 9)) < 0.05
    table = {"sample_id": np.arange(n), "rep": rng.random(n, "f4"), "div": rng.random(n, "f4")}
    made = {
        "RepDiv": lambda: RepDiv(pa.table(table), ratio=0.2).for_ids(n),
        "RoundRobin": lambda: RoundRobin(0.2),
    }
    policy = made.get(name, lambda: RandomSubset(0.2))()
    slots, having = units.nonzero()
    course = replay(policy, n, epochs, 5, (slots, having))

    state, so_far, shares, live = SampleState.empty(n), set(), [], set(having.tolist())
    for epoch in range(epochs):
        plan = policy.plan(state, epoch=epoch, num_epochs=epochs, seed=5)
        state = policy.update(state, plan, plan.slots, rng.random(len(plan), "f4"))
        so_far |= {unit for unit in live if units[plan.slots, unit].any()}
        shares.append(len(so_far) / len(live))
    np.testing.assert_array_equal(course.selected, state.selected)
    assert course.seen == pytest.approx(shares)
    assert times(course.selected) == tuple(
        (t, int((state.selected == t).sum())) for t in sorted(set(state.selected.tolist()))
    )


def test_images_of_any_layout_and_what_is_none():
    rng = np.random.default_rng(0)

    def back(values: np.ndarray) -> list[np.ndarray]:
        return [np.array(Image.open(io.BytesIO(base64.b64decode(file)))) for file in images(values)]

    grey = rng.integers(0, 256, (2, 5, 6)).astype(np.uint8)
    for layout in (grey, grey[:, None], grey[..., None]):
        np.testing.assert_array_equal(back(layout), grey)
    colour = rng.integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    for layout in (colour, np.moveaxis(colour, -1, 1)):
        np.testing.assert_array_equal(back(layout), colour)
    (scaled,) = back(np.linspace(-1, 1, 30).reshape(1, 5, 6))
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert np.ptp(back(np.full((1, 5, 6), 0.5))[0]) == 0
    for other in (rng.random((3, 64)), rng.random((3, 2, 9)), rng.random((3, 5, 5, 5)), rng.random(3)):
        assert images(other) is None


@pytest.fixture
def usage():
    """What a run with RepDiv leaves, with names that must be escaped."""
    shares = (0.4, 0.8, 1.0, 1.0)
    policies = tuple(
        PolicyUse(title, gini=0.2, variation=0.1, times=((1, 30), (3, 10)), rare=shares)
        for title in ("RepDiv", "random", "round robin")
    )
    evil = "</q><script>alert(1)</script>"
    samples = tuple(ShownRow(i, times=4, text=evil + "x" * 400) for i in range(3))
    return Usage(
        scored=Scored(samples=40, classes=3, units=64, live_units=60, active=7.5),
        rare_units=6,
        unexplained=0.123,
        policies=policies,
        alpha=(0.9, 0.5, 0.2),
        extremes=Extremes(evil, most=samples, least=samples),
    )


def test_the_page_shows_the_use_of_the_samples(results, usage):
    results = replace(results, usage=usage)
    page = render(results)
    assert page == render(results) and "Use of the samples" in page
    assert page.count("<svg") == 9 and "RepDiv: Gini 0.200" in page
    plain = page.replace("\u00a0", " ")
    assert (
        "a factor that is active in n of the 3 classes counts 1/n" in plain
        and "12.3 % of the variance" in plain
    )
    assert "<script" not in page and "&lt;script&gt;" in page and "x" * 200 not in page

    picture = images(np.zeros((1, 8, 8), np.uint8))[0]
    shown = (ShownRow(1, times=2, image=picture),)
    usage = replace(
        usage,
        scored=replace(usage.scored, classes=None),
        unexplained=None,
        extremes=replace(usage.extremes, most=shown, least=shown),
    )
    page = render(replace(results, usage=usage))
    sources: list[str] = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for key, value in attrs if key in ("src", "href", "xlink:href") and value)

    Sources().feed(page)
    assert sources.count(f"data:image/png;base64,{picture}") == 2  # nothing is fetched
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert "many frequent factors. Div is high" in page and "variance" not in page

    assert "there are too many samples" in render(
        replace(results, usage=replace(usage, policies=(), extremes=None))
    )
    assert "Use of the samples" not in render(replace(results, usage=None))


def test_its_figures_are_well_formed_whatever_is_in_them(usage):
    first, *others = usage.policies
    first = replace(first, title="$a$ <b>", times=((0, 5), (10**6, 1)), rare=(1.0,))
    policies = (first, *others)
    for svg in (
        usage_histogram(policies),
        rare_seen(policies),
        alpha_curve([0.5], 1),
    ):
        assert ET.fromstring(svg).tag.endswith("svg")
    assert "$a$ &lt;b&gt;" in rare_seen(policies)
    assert usage_histogram([]) == rare_seen([]) == alpha_curve([], 3) == ""
