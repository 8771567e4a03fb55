"""Scores of rows: against counting, whole or in pieces."""

from __future__ import annotations

import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.errors import ConfigError, StateError
from raysel.gime import Binding, key_counts, measure, merge_key_counts, row_scores


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 50),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 50),
)
def test_scores_are_what_counting_gives(table, full, seed, rows, card, nulls, at):
    data = table(seed, rows, card, nulls)
    found = row_scores(data, full)
    entities = [
        None if None in e else e for e in zip(data["who"].to_pylist(), data["where"].to_pylist(), strict=True)
    ]
    labels = data["label"].to_pylist()
    of_entity, of_label = Counter(entities), Counter(label for label in labels if label is not None)
    assert found["scope"].to_pylist() == [None if e is None else 1 / of_entity[e] for e in entities]
    expected = [None if c is None else -math.log2(of_label[c] / of_label.total()) for c in labels]
    assert found["variety"].to_pylist() == pytest.approx(expected, abs=1e-12)

    counts = merge_key_counts([key_counts(part, full) for part in (data.slice(at), data.slice(0, at))])
    assert counts.equals(key_counts(data, full), check_metadata=True)
    pieces = [row_scores(part, full, counts) for part in (data.slice(0, at), data.slice(at))]
    assert pa.concat_tables(pieces).equals(found)

    scope = {r["statistic"]: r["value"] for r in measure(data, full).to_pylist() if r["metric"] == "scope"}
    total = sum(s for s in found["scope"].to_pylist() if s is not None)
    assert (scope["entities"] or 0) == pytest.approx(total)  # scores sum to the metric


def test_counts_that_do_not_belong(table, full):
    data = table(0, 30)
    with pytest.raises(StateError, match="with another binding"):
        row_scores(data, full, key_counts(data, Binding(entity="who")))
    with pytest.raises(StateError, match="lack a value of entity"):
        row_scores(data, Binding(entity="who"), key_counts(data.slice(0, 1), Binding(entity="who")))
    with pytest.raises(StateError, match="different bindings"):
        merge_key_counts([key_counts(data, full), key_counts(data, Binding(entity="who"))])
    with pytest.raises(ConfigError, match="the binding names neither; name entity or classes"):
        row_scores(data, Binding(content="x"))


def test_only_the_bound_scores_are_there(table):
    assert row_scores(table(0, 5), Binding(classes="label")).column_names == ["variety"]
