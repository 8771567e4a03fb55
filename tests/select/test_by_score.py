"""Selection by a column of scores against sorting by hand, and the sample against its distribution."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import ray

import raysel
from raysel.errors import ConfigError, DataError
from raysel.select.by_score import preference


@pytest.mark.parametrize("seed", range(20))
def test_preferences(seed):
    rng = np.random.default_rng(seed)
    ids, score = rng.permutation(100)[:40], rng.integers(-3, 4, 40).astype(float)
    middle = np.median(score)
    for how, key in {"top": lambda s: -s, "low": lambda s: s, "middle": lambda s: abs(s - middle)}.items():
        order = np.lexsort((ids, -preference(ids, score, how, 1.0, 0)))
        assert order.tolist() == sorted(range(40), key=lambda i: (key(score[i]), ids[i]))


def test_the_sample_follows_the_softmax():
    score, temperature = np.array([0.0, 1.0, 2.0, 3.0]), 1.5
    wanted = np.exp(score / temperature) / np.exp(score / temperature).sum()
    first = np.zeros(4)
    for seed in range(4000):
        first[preference(np.arange(4), score, "sample", temperature, seed).argmax()] += 1
    assert np.abs(first / 4000 - wanted).max() < 0.03


def test_rows_are_selected_by_their_scores(cluster):
    score = np.array([3, 1, 2, 5, 4, 4], np.int32)
    table = pa.table({"sample_id": np.arange(6), "quality": score, "text": list("abcdef")})
    pool = ray.data.from_arrow([table.slice(0, 2), table.slice(2)])
    found = raysel.ByScore(0.5, "quality").select(pool)
    assert found.ids.tolist() == [3, 4, 5] and found.table["score"].to_pylist() == [5, 4, 4]
    assert found.dropped["sample_id"].to_pylist() == [0, 1, 2]
    assert found.dropped["score"].to_pylist() == [3, 1, 2]
    assert repr(found) == "<Selection of 3 of 6 rows by score>"  # in reports too, the title stands after "by"
    with pytest.raises(DataError, match="'text' of the pool holds string"):
        raysel.ByScore(2, "text").select(pool)
    with pytest.raises(DataError, match="no column 'gone'"):
        raysel.ByScore(2, "gone").select(pool)
    broken = table.set_column(1, "quality", pa.array([1.0, None, np.nan, 2.0, np.inf, 0.0]))
    with pytest.raises(DataError, match=r"3 of 6 rows \(sample_id 1, 2, 4\)"):
        raysel.ByScore(2, "quality").select(ray.data.from_arrow(broken))
    for wrong in ({"how": "best"}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            raysel.ByScore(2, "quality", **wrong)
