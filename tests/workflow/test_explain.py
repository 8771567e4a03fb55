"""What explain prints of a selection, without a cluster."""

from __future__ import annotations

import pyarrow as pa
import pytest

import raysel
from raysel.errors import ConfigError
from raysel.workflow import explain as module
from raysel.workflow.explain import explain


@pytest.fixture
def selection(monkeypatch):
    dropped = pa.table(
        {"sample_id": [1, 2, 4, 5], "score": [0.5, 0.25, None, 0.1], "reason": ["far", "far", "near", "far"]}
    )
    info = {"pool_rows": 6, "score": "closeness"}
    made = raysel.Selection.of([0, 3], score=[2.0, 3.0], reason="close", dropped=dropped, info=info)
    monkeypatch.setattr(module, "_selection", lambda run: made)
    return made


def test_one_row_is_explained_whatever_number_is_given(selection):
    assert explain("run", 3) == "sample_id 3 was selected: close.\n  weight: 1\n  score: 3 (closeness)"
    assert explain("run", 1) == "sample_id 1 was dropped: far.\n  score: 0.5 (closeness)"
    for strange in (6, -1, 2**63, -(2**63) - 1, 10**30):
        with pytest.raises(
            ConfigError, match=rf"No reason is recorded for sample_id {strange}\. Either the pool of 6 rows"
        ):
            explain("run", strange)
    for wrong in ("3", 1.5, True, [3]):
        with pytest.raises(ConfigError, match="sample must be a whole number, got"):
            explain("run", wrong)


def test_examples_of_dropped_rows_are_listed_by_reason(selection):
    assert explain("run", dropped=2).splitlines() == [
        "Dropped: 4 rows",
        "  3  far",
        "    sample_id 1, score 0.5",
        "    sample_id 2, score 0.25",
        "  1  near",
        "    sample_id 4",
    ]
    for wrong in (0, -1, "2", 1.5):
        with pytest.raises(ConfigError, match="dropped must be a whole number of at least 1, got"):
            explain("run", dropped=wrong)
    with pytest.raises(ConfigError, match="The arguments sample and dropped cannot be given together"):
        explain("run", 3, 2)


def test_selectors_that_list_no_dropped_rows(monkeypatch):
    monkeypatch.setattr(module, "_selection", lambda run: raysel.Selection.of([0, 3], info={"pool_rows": 6}))
    with pytest.raises(ConfigError, match="does not list the rows that it dropped"):
        explain("run", dropped=3)
    with pytest.raises(ConfigError, match="dropped and the selector does not list"):
        explain("run", 1)
