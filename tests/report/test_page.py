from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raysel.errors import RunError
from raysel.report import Ledger
from raysel.report.page import render, write
from raysel.report.results import Data, RunResults
from raysel.report.sections.opening import headline, overhead

VOID = {"meta", "wbr", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def with_arm(results: RunResults, name: str, **changes: Any) -> RunResults:
    return replace(results, arms={**results.arms, name: replace(results.arms[name], **changes)})


def with_epochs(results: RunResults, **changes: Any) -> RunResults:
    """The same change to every epoch of every arm."""
    for name, arm in results.arms.items():
        results = with_arm(results, name, epochs=tuple(replace(epoch, **changes) for epoch in arm.epochs))
    return results


def with_entry(results: RunResults, arm: str, **changes: Any) -> RunResults:
    entries = [replace(entry, **changes) if entry.arm == arm else entry for entry in results.ledger.entries]
    return replace(results, ledger=Ledger(entries))


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_every_section_is_there(results: RunResults) -> None:
    page = render(results)
    assert sections(page) == [
        "Ledger",
        "Selection",
        "Training",
        "Costs",
        "How to read this",
        "Configuration",
        "Versions",
    ]
    assert page.count("<svg") == 6
    assert "with respect to the selection" in page
    assert "no claim about differences" in page
    assert "76 %" in plain(page)
    assert "torch\u00a02.13.0" in page


def test_it_is_self_contained(results: RunResults) -> None:
    page = render(results)
    checker = Checker(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(checker.tags)
    for key, value in checker.attributes:
        assert not key.startswith("on")
        if key in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#")
    assert "@import" not in page
    assert "url(http" not in page
    ids = [value for key, value in checker.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert "reading" in ids


def test_the_same_results_give_the_same_bytes(results: RunResults, tmp_path: Path) -> None:
    first, second = write(results, tmp_path / "a.html"), write(results, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]
    with pytest.raises(RunError, match=r"nowhere/report\.html cannot be written"):
        write(results, tmp_path / "nowhere" / "report.html")


def test_names_are_escaped(results: RunResults) -> None:
    evil = "</style><script>alert('1')</script><b title=\"x\">&amp;"
    selection = results.selection
    assert selection is not None
    first, *others = selection.classes
    results = replace(
        results,
        **dict.fromkeys(("name", "created", "seed", "raysel"), evil),
        versions={evil: evil},
        config={evil: [evil]},
        trusted=(evil,),
        data=replace(results.data, classes=(evil, *results.data.classes[1:]), validation_from=evil),
        selection=replace(selection, method=evil, classes=(replace(first, label=evil), *others)),
    )
    results = with_entry(with_arm(results, "chain", title=evil), "chain", title=evil)
    page = render(results)
    checker = Checker(page)
    assert "script" not in checker.tags
    assert "<b title" not in page
    assert "&lt;script&gt;" in page
    assert ("title", "x") not in checker.attributes


def test_the_headline(results: RunResults) -> None:
    assert headline(results) == (
        "430 of 1,437 rows were selected; training used 76 % fewer samples and took 49 % less time than on full data, "
        "selecting included; the accuracy is 97.1 %, 0.5 points lower than on full data."
    )
    seconds = results.ledger.entries[2].seconds
    results = with_entry(results, "chain", seconds={**seconds, "selection": 100.0})
    assert "76 % fewer samples and took 193 % more time than on full data" in headline(results)
    assert "\u2212193\u00a0%" in render(results)
    assert "cost more: " in render(results)
    results = with_entry(results, "chain", seconds={**seconds, "selection": None})
    assert "than on full data, and its time was not measured" in headline(results)


def test_the_headline_states_the_change_of_the_accuracy(results: RunResults) -> None:
    for accuracy, says in (
        (0.9861, "98.6 %, 1.0 points higher than on full data."),
        (0.9764, "97.6 %, the same as on full data."),
    ):
        entry = with_entry(with_entry(results, "chain", accuracy=accuracy), "full", accuracy=0.9764)
        assert headline(entry).endswith(f"; the accuracy is {says}")
    spent = results.ledger.entry("full").samples_backward
    assert "training used 0 % fewer samples" in headline(with_entry(results, "chain", samples_backward=spent))


def test_start_up_is_said_apart_from_selecting(results: RunResults) -> None:
    parts = {
        "embedding": 1.0,
        "metrics": 0.5,
        "selection": 2.0,
        "planning": 0.25,
        "training": 4.0,
        "other": 6.0,
    }
    spent = dict.fromkeys(parts, 0.0) | {"training": 8.0, "other": 5.5}
    results = with_entry(with_entry(results, "chain", seconds=parts), "full", seconds=spent)
    assert overhead(results) == (
        "Of the 13.8 s of GIO + InfoBatch, 3.8 s were spent on selecting (embedding, metrics, selection and planning) and 6.0 s on other "
        "work (start-up of the workers, evaluation, checkpoints and repeated epochs); training on full data spent 5.5 s "
        "of its 13.5 s on other work."
    )
    page = plain(render(results))
    assert page.index("the accuracy is") < page.index("3.8 s were spent on selecting") < page.index("<h2>")
    assert overhead(with_entry(results, "chain", seconds=parts | {"other": None})) == ""
    assert "full data" not in overhead(with_entry(results, "full", seconds=spent | {"training": None}))


@pytest.mark.parametrize(
    "parts",
    [("created", "raysel", "versions", "seed", "config", "data"), ("selection",), ("arms",), ("ledger",)],
)
def test_any_part_may_be_missing(results: RunResults, parts: tuple[str, ...]) -> None:
    empty = RunResults("empty", "", "", {}, 0, {}, Data(pool=0), {}, Ledger())
    results = replace(results, **{part: getattr(empty, part) for part in parts})
    page = render(results)
    Checker(page)
    shown = re.findall(r">([^<]*)<", re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))
    assert not [text for text in shown if "None" in text or "nan" in text.split()]
    titles = sections(page)
    assert ("Selection" in titles) == ("selection" not in parts)
    assert ("Configuration" in titles) == ("Versions" in titles) == ("config" not in parts)
    assert ("Not measured." in page) == bool({"arms", "ledger"} & set(parts))


def test_nothing_but_a_name() -> None:
    page = render(RunResults("empty", "", "", {}, 0, {}, Data(pool=0), {}, Ledger()))
    Checker(page)
    assert sections(page) == ["Ledger", "Training", "How to read this"]


def test_one_arm_without_a_reference(results: RunResults) -> None:
    results = replace(
        results, arms={"chain": results.arms["chain"]}, ledger=Ledger(results.ledger.entries[2:])
    )
    page = render(results)
    assert "no saving can be stated" in headline(results)
    assert "nothing to measure a saving against" in page
    assert "n/a" in page


def test_only_full_data(results: RunResults) -> None:
    results = replace(
        results,
        selection=None,
        arms={"full": results.arms["full"]},
        ledger=Ledger(results.ledger.entries[:1]),
    )
    assert (
        plain(headline(results))
        == "Training used full data, 1,437 rows for 20 epochs; the accuracy is 97.6 %."
    )
    assert "KL curve" not in render(results)


def test_no_accuracy_and_no_losses(results: RunResults) -> None:
    results = with_epochs(results, accuracy=None, loss=None)
    for name in results.arms:
        results = with_entry(with_arm(results, name, accuracy=None), name, accuracy=None)
    page = render(results)
    assert "Not measured: accuracy, training loss." in page
    assert "accuracy" not in headline(results)
    assert page.count("<svg") == 4


def test_unknown_targets_and_bad_losses(results: RunResults) -> None:
    selection, epochs = results.selection, results.arms["chain"].epochs
    assert selection is not None
    classes = tuple(replace(entry, target=None) for entry in selection.classes)
    results = replace(results, selection=replace(selection, classes=classes))
    results = with_arm(
        results, "chain", epochs=(*epochs[:3], replace(epochs[3], loss=None, nonfinite=2), *epochs[4:])
    )
    page = plain(render(results))
    assert "share of each class in the pool" not in page
    assert "2 losses not finite" in page


def training(page: str) -> str:
    return plain(page[page.index("<h2>Training</h2>") : page.index("<h2>Costs</h2>")])


def test_validation_rows_give_curves_and_test_rows_the_final_accuracy(results: RunResults) -> None:
    section = training(render(results))
    assert "The accuracy is on the validation rows." in section
    assert "accuracy on the validation rows" in section and "accuracy on the test rows" not in section
    assert "There are no validation rows" not in section
    # The last epoch of GIO + InfoBatch has 96.61 % of the validation rows and 97.11 % of the test rows right.
    heads = re.findall(r'<th scope="col">(.*?)</th>', section)
    assert heads == ["After the last epoch", "Test accuracy", "Validation accuracy", "Loss"]
    row = next(row for row in section.splitlines() if 'scope="row"' in row and "GIO + InfoBatch" in row)
    assert re.findall(r">([\d.]+ %)<", row) == ["97.1 %", "96.6 %"]


def test_without_validation_rows_the_final_test_accuracies_are_drawn(results: RunResults) -> None:
    data = replace(results.data, validation=0, validation_from=None)
    page = render(with_epochs(replace(results, data=data), accuracy=None))
    Checker(page)
    section = training(page)
    assert page.count("<svg") == 6 and "Not measured" not in section
    assert "accuracy on the test rows" in section and "accuracy on the validation rows" not in section
    assert (
        "There are no validation rows; set the key <code>validation:</code> in the workflow to get a curve."
        in section
    )
    assert "Validation accuracy" not in section and "GIO + InfoBatch 97.1 %" in section
    assert "validation row" not in page[: page.index("<h2>Ledger</h2>")]


def test_the_opening_says_where_the_validation_rows_are_from(results: RunResults) -> None:
    def facts(**changes: Any) -> str:
        page = plain(render(replace(results, data=replace(results.data, **changes))))
        return re.findall(r'<p class="facts">(.*?)</p>', page)[0]

    assert "180 target rows · 20 validation rows, drawn from the target · 360 test rows" in facts()
    assert "· 20 validation rows, drawn from the pool ·" in facts(validation_from="pool")
    assert "· 20 validation rows · 360" in facts(validation_from=None)
    assert "· 1 validation row, drawn" in facts(validation=1)
    assert "validation" not in facts(validation=0, validation_from=None)
    assert facts(target=0, validation=0, validation_from=None).startswith("1,437 pool rows · 360 test rows ·")


def test_trusted_roles_are_said_where_the_reading_is_explained(results: RunResults) -> None:
    assert "modification time" not in render(results)
    page = render(replace(results, trusted=("pool", "test")))
    reading = page[page.index("<h2>How to read this</h2>") : page.index("<h2>Configuration</h2>")]
    assert (
        "Files of these roles were compared by size and modification time, not by content, as "
        '"trust: mtime" requests: pool, test.' in unescape(reading)
    )
