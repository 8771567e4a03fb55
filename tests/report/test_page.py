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
from raysel.report.sections.opening import against_random, headline, overhead

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
    assert "an unbiased estimate only of the gradient on <em>the selected rows</em>" in page
    assert "does not show which arm is better" in page
    assert plain(page).index("<strong>pool</strong>: the rows") < page.index("<h2>Ledger</h2>")
    assert "An arm is one training of a model: “full pool” trains on every pool row in every epoch;" in page
    assert "“GIO + InfoBatch” uses the methods of the workflow." in page and "(cost of “full pool”)." in page
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


def test_what_a_selector_notes_is_shown_and_escaped(results: RunResults) -> None:
    noted = replace(results, selection=replace(results.selection, notes=("Two <b>copies</b> were dropped.",)))
    assert "<p>Two &lt;b&gt;copies&lt;/b&gt; were dropped.</p>" in render(noted)


def test_the_headline(results: RunResults) -> None:
    assert headline(results) == (
        "GIO selected 430 of the 1,437 pool rows; GIO + InfoBatch used 76 % fewer training samples and 49 % less time than "
        "training on the full pool (the time includes selection and start-up); its test accuracy is 97.1 %; compared with the full "
        "pool, this is 0.5 points lower."
    )
    seconds = results.ledger.entries[2].seconds
    results = with_entry(results, "chain", seconds={**seconds, "selection": 100.0})
    assert "76 % fewer training samples and 193 % more time than training on" in headline(results)
    assert "\u2212193\u00a0%" in render(results)
    results = with_entry(results, "chain", seconds={**seconds, "selection": None})
    assert (
        "76 % fewer training samples than training on the full pool; its time was not measured"
        in headline(results)
    )
    results = with_entry(results, "chain", samples_backward=None)
    assert (
        "GIO + InfoBatch was trained, but its training samples and its time were not measured;"
        in headline(results)
    )
    results = with_entry(results, "chain", seconds=seconds)
    assert (
        "used 49 % less time than training on the full pool (the time includes selection and start-up); its samples"
        in headline(results)
    )


def test_the_headline_states_the_change_of_the_accuracy(results: RunResults) -> None:
    for accuracy, says in (
        (0.9861, "98.6 %; compared with the full pool, this is 1.0 points higher."),
        (0.9764, "97.6 %, the same as with the full pool."),
    ):
        entry = with_entry(
            with_entry(results, "chain", metrics={"accuracy": accuracy}), "full", metrics={"accuracy": 0.9764}
        )
        assert headline(entry).endswith(f"; its test accuracy is {says}")
    spent = results.ledger.entry("full").samples_backward
    assert "used 0 % fewer training samples" in headline(with_entry(results, "chain", samples_backward=spent))


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        (
            0.9472,
            "2.4 points higher, which is more than one standard error of a test accuracy (up to 1.2 points).",
        ),
        (
            0.9772,
            "0.6 points lower, which is within one standard error of a test accuracy (up to 0.9 points).",
        ),
        (0.9712, "the same."),
    ],
)
def test_the_opening_compares_with_the_random_control(
    results: RunResults, accuracy: float, says: str
) -> None:
    results = with_entry(results, "random", metrics={"accuracy": accuracy})
    sentence = against_random(results)
    assert sentence == (
        f"Compared with “Random subset” (one seed each), the test accuracy of GIO + InfoBatch is {says}"
    )
    assert f"this is 0.5 points lower. {sentence}</p>" in plain(render(results))
    without = replace(results, ledger=Ledger([results.ledger.entries[0], results.ledger.entries[2]]))
    assert against_random(without) == "" == against_random(with_entry(results, "random", metrics={}))


def test_what_earlier_runs_have_measured_is_named(results: RunResults) -> None:
    fresh = plain(render(results))
    assert "Timings are from one run on one machine." in fresh and "earlier runs" not in fresh
    results = with_entry(results, "full", reused=("start-up", "planning", "training", "other"))
    results = with_entry(results, "chain", reused=("embedding", "metrics"))
    sentence = (
        "The seconds of these arms are from earlier runs in this directory, whose results were reused: full pool (all stages); "
        "GIO + InfoBatch (embedding)."
    )
    assert " ".join(results.ledger.text().split()).endswith(sentence)
    page = plain(render(results))
    assert page.count(sentence) == 2 and page.index(sentence) < page.index("<h2>")
    assert "Some timings are from earlier runs." in page and "one run on one machine" not in page
    assert Ledger.from_dict(results.ledger.to_dict()).reused == sentence


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
        "GIO + InfoBatch took 13.8 s: 3.8 s for selecting samples (the stages embedding, metrics, selection and planning), 4.0 s for training, "
        "and 6.0 s for other work (starting the workers, evaluation, checkpoints, and epochs repeated after a failure). "
        "Training on the full pool took 13.5 s, including 5.5 s for such other work."
    )
    page = plain(render(results))
    assert page.index("its test accuracy is") < page.index("3.8 s for selecting samples") < page.index("<h2>")
    assert overhead(with_entry(results, "chain", seconds=parts | {"other": None})) == ""
    assert "full pool" not in overhead(with_entry(results, "full", seconds=spent | {"training": None}))


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
    assert ("costs of the arms were not measured." in page) == ("ledger" in parts)
    assert ("This run has no measurements of a training." in page) == ("arms" in parts)


def test_nothing_but_a_name() -> None:
    page = render(RunResults("empty", "", "", {}, 0, {}, Data(pool=0), {}, Ledger()))
    Checker(page)
    assert sections(page) == ["Ledger", "Training", "How to read this"]


def test_one_arm_without_a_reference(results: RunResults) -> None:
    results = replace(
        results, arms={"chain": results.arms["chain"]}, ledger=Ledger(results.ledger.entries[2:])
    )
    page = render(results)
    assert plain(headline(results)) == (
        "GIO selected 430 of the 1,437 pool rows; GIO + InfoBatch trained on 6,894 samples in 20 epochs and reached a test "
        "accuracy of 97.1 %; no model of this run was trained on the full pool, so the savings are not known."
    )
    assert "No saving is given, because no arm was trained on the full pool" in page
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
        == "Training used the full pool, 1,437 rows for 20 epochs and reached a test accuracy of 97.6 %."
    )
    assert "Divergence" not in render(results)


def test_no_accuracy_and_no_losses(results: RunResults) -> None:
    results = with_epochs(results, metrics={}, loss=None)
    for name in results.arms:
        results = with_entry(with_arm(results, name, metrics={}), name, metrics={})
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
    assert "the share of each class among the rows of the pool" not in page
    assert "2 losses were NaN or infinite" in page


def training(page: str) -> str:
    return plain(page[page.index("<h2>Training</h2>") : page.index("<h2>Costs</h2>")])


def test_validation_rows_give_curves_and_test_rows_the_final_accuracy(results: RunResults) -> None:
    section = training(render(results))
    assert "Accuracy on the validation rows after each epoch, one line per arm" in section
    assert "accuracy on the validation rows" in section and "accuracy on the test rows" not in section
    assert "has no validation rows" not in section
    # The last epoch of GIO + InfoBatch has 96.61 % of the validation rows and 97.11 % of the test rows right.
    heads = re.findall(r'<th scope="col">(.*?)</th>', section)
    assert heads == ["After the last epoch", "Test accuracy", "Validation accuracy", "Training loss"]
    row = next(row for row in section.splitlines() if 'scope="row"' in row and "GIO + InfoBatch" in row)
    assert re.findall(r">([\d.]+ %)<", row) == ["97.1 %", "96.6 %"]


def test_without_validation_rows_the_final_test_accuracies_are_drawn(results: RunResults) -> None:
    data = replace(results.data, validation=0, validation_from=None)
    page = render(with_epochs(replace(results, data=data), metrics={}))
    Checker(page)
    section = training(page)
    assert page.count("<svg") == 6 and "ot measured" not in section
    assert "accuracy on the test rows" in section and "accuracy on the validation rows" not in section
    assert (
        "The workflow has no validation rows, so there is no curve over the epochs. To get such a curve, set the key "
        "<code>validation</code> in the workflow." in section
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
        'The workflow sets "trust: mtime" for these inputs: pool, test. Their files are identified by size and modification '
        "time instead of by content, so a change that leaves both unchanged is not noticed."
        in unescape(reading)
    )
