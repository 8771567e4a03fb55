"""Labels to check in the report."""

from __future__ import annotations

from dataclasses import replace

from raysel.report.page import render
from raysel.report.results import LabelCheck, RunResults, ShownLabel


def test_the_page_shows_the_ranking(results, tmp_path):
    assert "Labels to check" not in render(results)
    evil = "<script>alert(1)</script>"
    samples = (
        ShownLabel(7, "coat", evil, image="aGk="),
        ShownLabel(8, "shirt", "coat", image="aGk="),
        ShownLabel(9, "shirt", "coat"),  # an image that cannot be decoded
    )
    found = LabelCheck(1437, 718, 41, "steps/labels-ab/labels.parquet", samples)
    results = replace(results, labels=found)
    page = render(results)
    assert evil not in page and "8<br>shirt → coat" in page and "<span>sample_id 9</span>" in page
    plain = page.replace("\u00a0", " ").replace("\u2009", ",")
    assert "ranks 718 of the 1,437 training rows" in plain and "41 ranked rows have a higher loss" in plain
    results.save(tmp_path / "results.json")
    assert RunResults.load(tmp_path / "results.json") == results
