"""Selectors of coverage on a real cluster: any blocks, nested budgets, classes, pools that are selected by centroids."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import ray

import raysel
from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError
from raysel.select.covering import facility_location, herding, k_center

pytestmark = pytest.mark.usefixtures("cluster")
SELECTORS = {
    raysel.KCenter(0.2, clusters=12): k_center,
    raysel.FacilityLocation(0.2, clusters=12): facility_location,
    raysel.Herding(0.2, clusters=12): herding,
}


def named(one):
    return type(one).__name__


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, 6))[rng.integers(0, 5, 240)] * 3 + rng.normal(size=(240, 6))).astype(
        np.float32
    )


def dataset(vectors, blocks=1):
    kind = np.array(["rare" if i % 12 == 0 else "often" for i in range(len(vectors))])
    table = pa.table({"sample_id": np.arange(len(vectors)), "embedding": to_column(vectors), "kind": kind})
    size = -(-len(vectors) // blocks)
    parts = [table.slice(at, size) for at in range(0, len(vectors), size)]
    return ray.data.from_arrow(parts[::-1])


@pytest.mark.parametrize("exact", [True, False], ids=["rows", "centroids"])
@pytest.mark.parametrize("selector", SELECTORS, ids=named)
def test_any_blocks_give_one_selection_and_budgets_nest(vectors, selector, exact, monkeypatch):
    if not exact:
        monkeypatch.setattr("raysel.select.coverage._EXACT", 100)
    found = [selector.select(dataset(vectors, blocks)) for blocks in (1, 5)]
    one = found[0]
    assert len(one) == 48 and one.table.equals(found[1].table) and one.dropped.equals(found[1].dropped)
    assert one.dropped.num_rows == 192 and len(set(one.table["reason"].to_pylist())) == 1
    assert sorted(one.table["rank"].to_pylist()) == list(range(48))
    if exact:
        weight, held = np.ones(240, np.int64), np.zeros(240, np.int64)
        picks = SELECTORS[selector](vectors, weight, held, 48)
        assert one.ids[np.argsort(one.table["rank"].to_numpy())].tolist() == picks.order.tolist()
        key = {"KCenter": "radius", "FacilityLocation": "similarity", "Herding": "discrepancy"}[
            named(selector)
        ]
        assert one.info[key] == pytest.approx(picks.value)
    else:
        assert one.info["centroids"] == 12 and "more than 100 rows" in one.info["notes"][0]
    more = dataclasses.replace(selector, budget=96)
    complete, extended = more.select(dataset(vectors, 2)), more.select(dataset(vectors), start=one)
    assert set(one.ids) <= set(complete.ids) and complete.ids.tolist() == extended.ids.tolist()
    with pytest.raises(ConfigError, match="start already holds 48"):
        selector.select(dataset(vectors), start=one)


@pytest.mark.parametrize("exact", [True, False], ids=["rows", "centroids"])
@pytest.mark.parametrize("selector", SELECTORS, ids=named)
def test_classes_give_their_quotas(vectors, selector, exact, monkeypatch):
    if not exact:
        monkeypatch.setattr("raysel.select.coverage._EXACT", 100)
    rows = dataset(vectors, 3)

    def counts(per_class, budget, **more):
        made = dataclasses.replace(selector, budget=budget, per_class=per_class, label="kind")
        chosen = made.select(rows, **more)
        return chosen, [int((chosen.ids % 12 == 0).sum()), int((chosen.ids % 12 > 0).sum())]

    chosen, found = counts("uniform", 20)
    assert found == [10, 10] and counts("uniform", 100)[1] == [20, 80]
    extended, found = counts({"rare": 1.0, "often": 2.0}, 30, start=chosen)
    assert found == [10, 20] and set(chosen.ids) <= set(extended.ids)
    with pytest.raises(ConfigError, match="per_class"):
        counts("target", 20)


@pytest.mark.parametrize("selector", SELECTORS, ids=named)
def test_what_is_wrong_is_said(vectors, selector):
    bad = vectors.copy()
    bad[7, 0] = np.nan
    with pytest.raises(DataError, match="sample_id 7"):
        selector.select(dataset(bad))
    with pytest.raises(ConfigError, match="241 rows"):
        dataclasses.replace(selector, budget=241).select(dataset(vectors))
    for wrong in ({"budget": 1.5}, {"clusters": 0}, {"per_class": {"rare": -1.0}}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dataclasses.replace(selector, **wrong)
    same = selector.select(dataset(np.zeros((30, 2), np.float32)))
    assert len(same) == 6
