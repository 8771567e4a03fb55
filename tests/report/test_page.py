from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raysel.errors import RunError
from raysel.report.page import headline, render, write

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


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_every_section_is_there(results: dict[str, Any]) -> None:
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


def test_it_is_self_contained(results: dict[str, Any]) -> None:
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


def test_the_same_results_give_the_same_bytes(results: dict[str, Any], tmp_path: Path) -> None:
    first, second = write(results, tmp_path / "a.html"), write(results, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]
    with pytest.raises(RunError, match="Cannot write"):
        write(results, tmp_path / "nowhere" / "report.html")


def test_names_are_escaped(results: dict[str, Any]) -> None:
    evil = "</style><script>alert('1')</script><b title=\"x\">&amp;"
    results["name"] = results["created"] = results["seed"] = results["raysel"] = evil
    results["versions"] = {evil: evil}
    results["config"] = {evil: [evil]}
    results["data"]["classes"][0] = evil
    results["selection"]["method"] = evil
    results["selection"]["classes"][0]["label"] = evil
    results["arms"]["chain"]["title"] = evil
    results["ledger"]["entries"][2]["title"] = evil
    page = render(results)
    checker = Checker(page)
    assert "script" not in checker.tags
    assert "<b title" not in page
    assert "&lt;script&gt;" in page
    assert ("title", "x") not in checker.attributes


def test_the_headline(results: dict[str, Any]) -> None:
    assert headline(results) == (
        "Chose 430 of 1,437 rows; trained on 76 % fewer samples and took 49 % less time than full data, "
        "selecting included; accuracy 97.1 % against 97.6 %."
    )
    results["ledger"]["entries"][2]["seconds"]["selection"] = 100.0
    assert "76 % fewer samples and took 193 % more time than full data" in headline(results)
    assert "\u2212193\u00a0%" in render(results)
    assert "cost more: " in render(results)
    results["ledger"]["entries"][2]["seconds"]["selection"] = None
    assert "than full data, time not measured" in headline(results)


@pytest.mark.parametrize(
    "parts",
    [("created", "raysel", "versions", "seed", "config", "data"), ("selection",), ("arms",), ("ledger",)],
)
def test_any_part_may_be_missing(results: dict[str, Any], parts: tuple[str, ...]) -> None:
    for part in parts:
        del results[part]
    page = render(results)
    Checker(page)
    shown = re.findall(r">([^<]*)<", re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))
    assert not [text for text in shown if "None" in text or "nan" in text.split()]
    titles = sections(page)
    assert ("Selection" in titles) == ("selection" not in parts)
    assert ("Configuration" in titles) == ("Versions" in titles) == ("config" not in parts)
    assert ("Not measured." in page) == bool({"arms", "ledger"} & set(parts))


def test_nothing_but_a_name(results: dict[str, Any]) -> None:
    for empty in ({"name": "empty"}, {**dict.fromkeys(results), "name": "empty"}):
        page = render(empty)
        Checker(page)
        assert sections(page) == ["Ledger", "Training", "How to read this"]


def test_one_arm_without_a_reference(results: dict[str, Any]) -> None:
    results["arms"] = {"chain": results["arms"]["chain"]}
    results["ledger"]["entries"] = results["ledger"]["entries"][2:]
    page = render(results)
    assert "no saving can be stated" in headline(results)
    assert "nothing to measure a saving against" in page
    assert "n/a" in page


def test_only_full_data(results: dict[str, Any]) -> None:
    results["selection"] = None
    results["arms"] = {"full": results["arms"]["full"]}
    results["ledger"]["entries"] = results["ledger"]["entries"][:1]
    assert plain(headline(results)) == "Trained on full data, 1,437 rows for 20 epochs; accuracy 97.6 %."
    assert "KL curve" not in render(results)


def test_no_accuracy_and_no_losses(results: dict[str, Any]) -> None:
    for arm in results["arms"].values():
        for epoch in arm["epochs"]:
            epoch["accuracy"] = epoch["loss"] = None
    for entry in results["ledger"]["entries"]:
        entry["accuracy"] = None
    page = render(results)
    assert "Not measured: accuracy, training loss." in page
    assert "accuracy" not in headline(results)
    assert page.count("<svg") == 4


def test_unknown_targets_and_bad_losses(results: dict[str, Any]) -> None:
    for entry in results["selection"]["classes"]:
        entry["target"] = None
    results["arms"]["chain"]["epochs"][3].update(loss=None, nonfinite=2)
    page = plain(render(results))
    assert "what pool, kept rows and target are made of" not in page
    assert "2 losses not finite" in page
