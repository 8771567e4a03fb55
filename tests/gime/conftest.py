"""Random tables with nulls, ties and duplicates, and a binding that uses all of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysel.gime import Binding

START = 1_700_000_000 * 10**9


def make_table(seed: int, rows: int, card: int = 5, nulls: float = 0.2, negative: bool = True) -> pa.Table:
    rng = np.random.default_rng(seed)

    def with_nulls(values, kind):
        return pa.array(values, kind, mask=rng.random(rows) < nulls, from_pandas=False)

    happened = START + rng.integers(0, card * 3, rows) * 43_200 * 10**9 + rng.integers(0, 2, rows)
    late = rng.integers(-2 if negative else 0, card * 2, rows) * 1_000_000_007
    label = rng.integers(0, card, rows)
    number = np.round(rng.normal(size=rows) * 2)
    number[rng.random(rows) < 0.05] = np.nan
    number[rng.random(rows) < 0.05] = np.inf
    return pa.table(
        {
            "who": with_nulls([f"entity {i}" for i in rng.integers(0, card, rows)], pa.string()),
            "where": with_nulls(rng.integers(0, 2, rows), pa.int32()),
            "at": with_nulls(happened, pa.timestamp("ns", "UTC")),
            "seen": with_nulls(happened + late, pa.timestamp("ns", "UTC")),
            "large": with_nulls(rng.integers(0, 9, rows) / 7, pa.float64()),
            "label": with_nulls(label, pa.int64()),
            "truth": with_nulls(np.where(rng.random(rows) < 0.3, 0, label).astype(float), pa.float64()),
            "thread": with_nulls(rng.integers(0, max(rows // 2, 1), rows), pa.int64()),
            "x": with_nulls(number, pa.float64()),
            "text": with_nulls(["word " * int(i) for i in rng.integers(0, 4, rows)], pa.string()),
            "file": with_nulls([f"f{i}" for i in rng.integers(0, 3, rows)], pa.string()),
        }
    )


FULL = Binding(
    entity=["who", "where"],
    event_time="at",
    record_time="seen",
    size="large",
    classes="label",
    relation=["thread", "who"],
    content=["x", "text"],
    carrier="file",
    reference={"label": "truth"},
    bounds={"x": (-3, 3), "large": (None, 1.0)},
)


@pytest.fixture(scope="session")
def table():
    """make_table(seed, rows, card, nulls, negative)"""
    return make_table


@pytest.fixture(scope="session")
def full():
    return FULL
