"""No text of a workflow, a file or a library reaches a page or a table as markup, wherever it stands in the results."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from raysel import Selection
from raysel.core.markdown import literal
from raysel.data.identity import NumberedFile, PoolIdentity
from raysel.export import card
from raysel.report import Ledger, metrics
from raysel.report.comparison import page as comparison
from raysel.report.comparison import tables
from raysel.report.page import render
from raysel.report.results import (
    Arm,
    Cell,
    ComparedPolicy,
    CompareResults,
    Extremes,
    Goal,
    Measured,
    Metric,
    PolicyUse,
    RunResults,
    Scored,
    ShownRow,
    Usage,
)

POISON = (
    "</style></text><script>a()</script><img src=x onerror='a()'>\"'><a href=\"j:\n|x\x00$\\frac{$]]>-->&lt;"
)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            assert key not in ("src", "href", "xlink:href") or (value or "").startswith("#")

    handle_startendtag = handle_starttag


def poisoned(value: Any) -> Any:
    """Every text in a value, and every key that is not of the structure, with the poison in front."""
    if isinstance(value, str):
        return POISON + value
    if isinstance(value, Ledger):
        entries = [
            replace(one, title=POISON + one.title, metrics=poisoned(dict(one.metrics)))
            for one in value.entries
        ]
        return Ledger(entries, poisoned(value.goal), value.full_samples)
    if isinstance(value, Goal):
        return replace(value, metric=POISON + value.metric)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = ("format", "path", "own", "budget", "folder", "image", "metric", "statistic")
        names = [field.name for field in dataclasses.fields(value) if field.init and field.name not in kept]
        if isinstance(value, Arm):
            names.remove("name")
        return replace(value, **{name: poisoned(getattr(value, name)) for name in names})
    if isinstance(value, dict):
        structure = any(isinstance(one, (Arm, ComparedPolicy)) for one in value.values())
        return {(key if structure else POISON + str(key)): poisoned(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(poisoned(one) for one in value)
    return value


def check(page: str) -> None:
    assert not {"script", "img"} & Page(page).tags
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_report(results: RunResults) -> None:
    found = (
        Metric("volume", "rows", 30.0, "rows"),
        Metric("delay", "mean", None, "s", None, "the binding names no time"),
    )
    samples = tuple(ShownRow(i, times=4, text="words") for i in range(3))
    full = replace(
        results,
        metrics=Measured(
            sets={"pool": found}, thresholds={"volume.rows": (2, 9)}, reached={"volume.rows": 4.0}
        ),
        usage=Usage(
            scored=Scored(samples=40, classes=3, units=64, live_units=60, active=7.5),
            rare_units=6,
            policies=tuple(
                PolicyUse(title, 0.2, 0.1, ((1, 30), (3, 10)), (0.4, 0.8, 1.0, 1.0)) for title in ("a", "b")
            ),
            alpha=(0.9, 0.5),
            extremes=Extremes("label", samples, samples),
        ),
        trusted=("pool",),
        config={"name": ["x"]},
    )
    assert full.selection is not None
    full = replace(full, selection=replace(full.selection, notes=("a note",)))
    check(render(poisoned(full)))


def test_metrics() -> None:
    found = (
        Metric("volume", "rows", 30.0, "rows", 1.0),
        Metric("delay", "mean", None, "s", None, "the binding names no time"),
    )
    sets = {"pool": found, "kept": found}
    groups = {f"label {i}": found for i in range(2)}
    check(metrics.page(POISON, poisoned(sets), poisoned(groups)))


@pytest.fixture
def compared(results: RunResults) -> CompareResults:
    epochs = results.arms["chain"].epochs
    cells = tuple(Cell(seed, {}, epochs, {"accuracy": 0.9}, seconds=1.0) for seed in range(2))
    return CompareResults(
        name="name",
        created=results.created,
        raysel="0.1",
        versions={"python": "3"},
        seeds=(0, 1),
        config={"train": {"epochs": 20, "batch_size": 50, "workers": 1}},
        data=results.data,
        rows=430,
        epochs=len(epochs),
        batch_size=32,
        own="infobatch",
        policies={
            name: ComparedPolicy(title=name, budget="held", cells=cells) for name in ("infobatch", "full")
        },
        trusted=("pool",),
    )


def test_a_comparison(compared: CompareResults) -> None:
    bad = poisoned(replace(compared, config={}))
    bad = replace(bad, config={"train": compared.config["train"], POISON: POISON})
    check(comparison.render(bad))
    lines = tables.markdown(bad).splitlines()
    assert "<" not in "".join(lines) and len(lines) == len(tables.markdown(compared).splitlines())
    bars = [line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")]
    assert len(set(bars)) == 1 and len(bars) == 4


def test_text_in_markdown_is_no_markup() -> None:
    assert literal("a_b-c (d) 1,5 %") == "a_b-c (d) 1,5 %"
    assert literal("x\n\n# y\r\t|`[a](b)` <b>&") == r"x # y \|\`\[a\](b)\` &lt;b>&amp;"
    assert literal("a\\|b\x1b[2J") == "a\\\\\\|b\ufffd\\[2J"


def test_the_card_of_an_export() -> None:
    pool = PoolIdentity((NumberedFile(POISON, POISON, 3),))
    chosen = Selection.of(
        [0, 1], reason=POISON, info={"method": POISON, POISON: POISON, "seed": 1}, pool=pool
    )
    bad = card(chosen, "parquet", 1)
    good = card(
        Selection.of([0, 1], reason="x", info={"method": "x", "y": "x", "seed": 1}, pool=pool), "parquet", 1
    )
    assert "<" not in bad and len(bad.splitlines()) == len(good.splitlines())
    for one, other in zip(bad.splitlines(), good.splitlines(), strict=True):
        assert one.replace(r"\|", "").count("|") == other.replace(r"\|", "").count("|")
