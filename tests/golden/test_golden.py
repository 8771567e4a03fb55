"""Results equal those that were pinned; ``results.py`` says what they are and how they are renewed."""

from __future__ import annotations

import json

import pytest

from tests.golden import results

EXPECTED = json.loads(results.EXPECTED.read_text())


def test_draws():
    assert results.draws() == EXPECTED["draws"]


def test_ids(cluster, tmp_path):
    assert results.ids(tmp_path) == EXPECTED["ids"]


def test_selections(cluster):
    assert results.selections() == EXPECTED["selections"]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", results.policies())
def test_plans_and_states(name, shards):
    assert results.plans(name, shards) == EXPECTED["plans"][name]


def test_no_policy_is_missing():
    assert set(EXPECTED["plans"]) == set(results.policies())
