"""The comparison's numbers by hand, its words for a win, a tie and a loss, and what it looks like."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from raysel.report.comparison import findings, rows, tables
from raysel.report.comparison.page import _drawn, render, write_png
from raysel.report.results import Cell, ComparedPolicy, CompareResults, Data, Epoch, Goal

TITLES = {
    "full": "full data",
    "full-equal-steps": "full data at equal steps",
    "random": "random pruning",
    "infobatch": "InfoBatch",
}
ENDS = {
    "full": (0.905, 0.907, 0.909),
    "full-equal-steps": (0.880, 0.882, 0.884),
    "random": (0.902, 0.899, 0.906),
    "infobatch": (0.901, 0.902, 0.904),
}


def sample(
    ends: dict[str, tuple[float, ...]] = ENDS, rows: int = 1000, validation: int = 500
) -> CompareResults:
    """Ten epochs of a thousand rows; what is held to the budget spends 700 an epoch.

    The accuracy on the validation rows ends 0.01 below the accuracy on the test rows.
    """

    def cell(name: str, seed: int, end: float) -> Cell:
        planned = rows if name == "full" else 7 * rows // 10
        course = [end - 0.01 - 0.3 * math.exp(-epoch) for epoch in range(9)] + [end - 0.01]
        epochs = tuple(
            Epoch(
                epoch,
                planned,
                trained=planned,
                steps=planned // 100,
                metrics={"accuracy": share} if validation else {},
                seconds=2.0,
                evaluation_seconds=0.5,
            )
            for epoch, share in enumerate(course)
        )
        return Cell(seed, {}, epochs, {"accuracy": end}, seconds=21.0)

    budgets = {"infobatch": "sets", "full": "free"}
    return CompareResults(
        name="a_sample",
        created="2026-01-02T03:04:05+00:00",
        raysel="0.1",
        versions={"python": "3"},
        seeds=tuple(range(len(ends["infobatch"]))),
        config={"train": {"epochs": 10, "batch_size": 50, "workers": 2}},
        data=Data(
            pool=rows,
            validation=validation,
            test=10_000,
            validation_from="pool" if validation else None,
        ),
        rows=rows,
        epochs=10,
        batch_size=100,
        own="infobatch",
        policies={
            name: ComparedPolicy(
                title=TITLES[name],
                budget=budgets.get(name, "held"),
                cells=tuple(cell(name, seed, end) for seed, end in enumerate(shares)),
            )
            for name, shares in ends.items()
        },
    )


def retitled(results: CompareResults, name: str, title: str) -> CompareResults:
    return replace(results, policies={**results.policies, name: replace(results.policies[name], title=title)})


def test_means_spreads_and_paired_differences():
    table = {row.name: row for row in rows.rows(sample())}
    full, random, own = table["full"], table["random"], table["infobatch"]
    assert (full.samples, full.share, full.steps, full.seconds) == (10_000, 1.0, 100, 15.0)
    assert (own.samples, own.share, own.steps) == (7000, 0.7, 70) and own.difference is None
    assert own.value == pytest.approx((0.901 + 0.902 + 0.904) / 3)
    assert full.deviation == pytest.approx(0.002)
    # Pairs in points: -0.1, 0.3, -0.2: mean 0, deviation sqrt(0.07), over sqrt(3).
    assert random.difference.mean == pytest.approx(0.0)
    assert random.difference.error == pytest.approx(math.sqrt(0.07 / 3))


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        # t(2) at 97.5 % is 4.303; pairs with mean m and deviation 0.1 reach 4.303 * 0.1 / sqrt(3) = 0.2484 points.
        ((0.15, 0.25, 0.35), "better"),
        ((0.147, 0.247, 0.347), "tie"),
        ((-0.15, -0.25, -0.35), "worse"),
        ((0.1, 0.1, 0.1), "better"),  # they agree, and by more than the reach of one test row, 0.0248 points
        ((0.02, 0.02, 0.02), "tie"),  # they agree, by chance or not: two test rows
        ((0.0, 0.0, 0.0), "tie"),
        ((0.3,), "one seed"),
    ],
)
def test_a_verdict_is_the_interval_of_student(pairs, verdict):
    found = rows.difference([0.9 + p / 100 for p in pairs], [0.9] * len(pairs), Goal(), 10_000)
    assert found.verdict == verdict and found.mean == pytest.approx(sum(pairs) / len(pairs))


def test_what_is_not_beaten_is_said():
    results = sample()
    said = findings.findings(results)
    assert said == [
        "At the same number of samples, InfoBatch is more accurate than full data at equal steps: +2.03 ± 0.03 points.",
        "At the same number of samples, InfoBatch is not more accurate than random pruning: +0.00 ± 0.15 points, a tie.",
        "With 30 % fewer samples than full data, InfoBatch is less accurate: −0.47 ± 0.03 points.",
    ]
    assert findings.headline(results) == (
        "InfoBatch back-propagated 70.0 % as many samples as a training on all rows in every epoch. At the same number of samples, it is more accurate than "
        "full data at equal steps and ties with random pruning."
    )
    lost = sample(ENDS | {"random": (0.951, 0.952, 0.954)})
    assert "InfoBatch is less accurate than random pruning: −5.00 ± 0.00 points." in " ".join(
        findings.findings(lost)
    )
    assert "is less accurate than random pruning" in findings.headline(lost)
    one = sample({name: shares[:1] for name, shares in ENDS.items()})
    assert findings.findings(one)[1] == (
        "At the same number of samples, InfoBatch differs from random pruning by −0.10 points; with one seed, this "
        "difference can be due to chance."
    )
    assert findings.findings(one)[2].startswith(
        "With 30 % fewer samples than full data, InfoBatch differs by −0.40 points;"
    )
    assert "one seed does not show whether it is better than the other policies" in findings.headline(one)
    assert (
        "Each policy was trained once, with the seed 0, so" in findings.notes(one)[1]
        and "±" not in findings.notes(one)[1]
    )
    alone = sample({"infobatch": ENDS["infobatch"]})
    assert findings.findings(alone) == [] and "No control" in findings.headline(alone)


def test_the_terminal_table_fits_and_says_everything():
    text = tables.text(sample())
    assert max(map(len, text.splitlines())) <= 100
    assert "random pruning              7,000   70.0 %     70     15.0  90.23 ± 0.35" in text
    big = retitled(
        sample(rows=2_000_000_000),
        "random",
        "a policy of somebody who likes names that go on and on and on " * 2,
    )
    text = tables.text(big)
    assert max(map(len, text.splitlines())) <= 100 and "20.0G" in text


def test_markdown_has_every_policy_and_every_note():
    text = tables.markdown(sample())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and len({line.count("|") for line in table}) == 1
    assert all(sentence in text for sentence in [*findings.findings(sample()), *findings.notes(sample())])


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and v[0] != "#"]
        if tag not in ("meta", "br", "wbr", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and v[0] != "#"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_is_whole_and_fetches_nothing(seeds):
    results = sample({name: shares[:seeds] for name, shares in ENDS.items()})
    results = retitled(results, "random", "<b>random</b> & co")
    page = render(results)
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.fetched == [] and "<script" not in page
    assert page.count("<svg") == 2 and "<b>random" not in page and "sets the budget" in page
    assert render(copy.deepcopy(results)) == page


def test_the_png_is_an_image_of_one_and_of_many(tmp_path):
    from PIL import Image

    for number, results in enumerate([sample(), sample({"infobatch": (0.5,)}, validation=0)]):
        path = write_png(results, tmp_path / f"{number}.png")
        with Image.open(path) as image:
            image.load()
            assert image.width > 1400 and image.height > 400
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0.png", "1.png"]


def test_the_table_is_of_test_rows_and_the_curves_are_of_validation_rows():
    results = sample()
    assert {row.name: row.values for row in rows.rows(results)} == ENDS
    own = next(drawn for drawn in _drawn(results) if drawn.own)
    assert own.title == "InfoBatch" and own.ends == tuple((7000, end) for end in ENDS["infobatch"])
    assert [len(curve) for curve in own.curves] == [10] * 3
    assert [curve[0][0] for curve in own.curves] == [700] * 3
    assert [curve[-1] for curve in own.curves] == [(7000, end - 0.01) for end in ENDS["infobatch"]]
    page = render(results)
    assert (
        "Accuracy on the validation rows after each epoch, against" in page
        and "has no validation rows" not in page
    )
    assert "accuracy on the validation rows" in page and "test accuracy after the last epoch" in page
    assert "500 validation rows, drawn from the pool" in page.replace("\u00a0", " ")


def test_without_validation_rows_only_the_final_test_accuracy_is_drawn():
    results = sample(validation=0)
    assert rows.rows(results) == rows.rows(sample())
    drawn = _drawn(results)
    assert all(policy.curves == () for policy in drawn)
    assert [policy.ends for policy in drawn] == [policy.ends for policy in _drawn(sample())]
    page = render(results)
    assert page.count("<svg") == 2 and "accuracy on the validation rows" not in page
    assert "accuracy on the test rows</text>" in page
    assert (
        "The workflow has no validation rows, so there is no curve over the epochs. To get such a curve, set the key "
        "<code>validation</code> in the workflow." in page
    )


def test_trusted_roles_and_the_batch_are_among_the_notes():
    assert "The batch size is 100 for all policies" in " ".join(findings.notes(sample()))
    said = findings.notes(replace(sample(), trusted=("pool", "test")))
    assert len(said) == len(findings.notes(sample())) + 1
    assert said[-1] == (
        'The workflow sets "trust: mtime" for these inputs: pool, test. Their files are identified by size and modification '
        "time instead of by content, so a change that leaves both unchanged is not noticed."
    )


def test_the_notes_say_what_the_built_in_policies_do():
    said = findings.notes(sample())[0]
    assert said.startswith(
        "What the policies do: full data trains on all rows in every epoch; InfoBatch skips some of the samples"
    )
    assert "random pruning" not in said  # in this sample its name is not that of the built-in policy
    results = sample()
    renamed = {
        "full_equal_steps": results.policies["full-equal-steps"],
        "infobatch": results.policies["infobatch"],
    }
    said = findings.notes(replace(results, policies=renamed))[0]
    assert (
        "full data at equal steps trains on all rows, but stops after as many optimizer steps as InfoBatch takes"
        in said
    )
    own = replace(results, policies={"mine.py:Own": results.policies["infobatch"]}, own="mine.py:Own")
    assert not findings.notes(own)[0].startswith("What the policies do")
