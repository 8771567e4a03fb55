"""Examples of selected and dropped rows: which ones are picked, and how the page shows them."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from raysel.report.page import render
from raysel.report.results import Leaked, ReasonShown, RunResults, ShownRow
from raysel.selection import Selection
from raysel.workflow.steps.gallery import examples, shown


def test_reasons_that_differ_in_numbers_are_one_and_rows_are_random():
    ids = np.arange(0, 1000, 2)
    reasons = pa.array([f"cluster {i % 37}, pick {i}, KL -{i / 7:.4g} after it" for i in range(500)])
    dropped = pa.table({"sample_id": ids + 1, "reason": ["too far"] * 490 + ["twin, cosine 1e-05"] * 10})
    found = examples(Selection.of(ids, reason=reasons, dropped=dropped), 3)
    assert [(text, kept, rows) for text, kept, rows, _ in found] == [
        ("cluster #, pick #, KL # after it", True, 500),
        ("too far", False, 490),
        ("twin, cosine 1e-05", False, 10),
    ]
    assert [len(shown) for *_, shown in found] == [12, 12, 10]
    first = found[0][3]
    assert np.isin(first, ids).all() and (np.diff(first) > 0).all() and first[-1] > 500
    assert found[2][3].tolist() == (ids[-10:] + 1).tolist()
    again = examples(Selection.of(ids, reason=reasons, dropped=dropped), 4)
    assert again[0][3].tolist() != first.tolist()
    many = Selection.of(ids, reason=pa.array([chr(97 + i % 26) for i in range(500)]))
    assert len(examples(many, 0)) == 5


def test_many_different_reasons_and_missing_ones():
    n = 200_000
    reasons = pa.array([f"like {chr(97 + i % 26)}{'x' * (i % 997)}" for i in range(n - 1)] + [None])
    found = examples(Selection.of(np.arange(n), reason=reasons), 0)
    assert [rows for _, _, rows, _ in found] == [8] * 5 and found[0][0].startswith("like ")
    coded = pa.array([None, "a", "a"]).dictionary_encode()
    found = examples(Selection.of(np.arange(3), reason=coded), 0)
    assert [(text, ids.tolist()) for text, _, _, ids in found] == [("a", [1, 2]), ("", [0])]


def _png(shape, mode):
    buffer = io.BytesIO()
    Image.new(mode, shape, 200).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_and_texts_are_shown_and_nothing_else():
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8))
    files = [_png((500, 250), "RGB"), _png((30, 40), "L"), b"broken"]
    table = pa.table(
        {
            "sample_id": [5, 6, 9],
            "image": images,
            "text": ["a\n b", None, "c" * 400],
            "file": files,
            "hf": [{"bytes": file, "path": "x.png"} for file in files],
            "x": [1.0, 2.0, 3.0],
            "ragged": [[1.0], [], [2.0, 3.0]],
        }
    )
    assert list(shown(table, ["image"])) == [5, 6, 9]
    assert {i: row.text for i, row in shown(table, ["text"]).items()} == {5: "a b", 9: "c" * 300}
    for column in ("file", "hf"):
        found = shown(table, [column])
        sizes = {i: Image.open(io.BytesIO(base64.b64decode(row.image))).size for i, row in found.items()}
        assert sizes == {5: (96, 48), 6: (30, 40)}
    assert shown(table, ["x", "ragged"]) == {} and shown(table, []) == {}
    assert shown(table, ["x", "ragged", "text", "image"])[5].text == "a b"


def test_the_page_shows_them(results, tmp_path):
    evil = "<script>alert(1)</script>"
    reasons = (
        ReasonShown(f"drawn {evil}", True, 1234, (ShownRow(7, image="aGk="), ShownRow(9, image="aGk="))),
        ReasonShown("too far", False, 1, (ShownRow(8, text=f"{evil} " * 50),)),
    )
    results = replace(results, selection=replace(results.selection, reasons=reasons))
    page = render(results)
    assert "1\u2009234\u00a0rows selected: drawn" in page or "1,234\u00a0rows selected: drawn" in page
    assert page.count('src="data:image/png;base64,aGk="') == 2 and "1\u00a0row dropped: too far" in page
    assert evil not in page and "…</q>" in page
    results.save(tmp_path / "results.json")
    assert RunResults.load(tmp_path / "results.json") == results


def test_the_page_warns_of_test_rows_among_the_training_rows(results):
    assert "Warning" not in render(replace(results, leaked=Leaked(0)))
    copies, near = (render(replace(results, leaked=Leaked(*one))) for one in ((1,), (12, 0.95)))
    assert "<b>Warning:</b> 1 of 360 test rows has a copy among the training rows." in copies.replace(
        "\u00a0", " "
    )
    assert "12 of 360 test rows have a near duplicate (cosine of at least 0.95) among" in near.replace(
        "\u00a0", " "
    )
