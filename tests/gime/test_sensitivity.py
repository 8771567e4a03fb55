"""What follows the performance is found, what does not is not, and thresholds hold as often as they claim."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from raysel.errors import ConfigError, DataError
from raysel.gime import Binding, partial, select_groups, sensitivity
from raysel.gime.sensitivity import least_strict, mixed_subsets, partial_rank_correlations, proxy


def data(rows=4000, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 6, rows)
    x = rng.normal(size=(rows, 2)) + np.array([[0, 0], [3, 0], [0, 3], [3, 3], [-3, 0], [0, -3]])[kind]
    return pa.table(
        {
            "source": rng.integers(0, 12, rows) // 2 + kind * (rng.random(rows) < 0.8),
            "kind": kind,
            "x": x[:, 0],
            "y": x[:, 1],
            "size": rng.random(rows),
        }
    )


def test_subsets_are_of_one_size_and_differ_in_mix():
    keys = np.repeat([3, 1, 2], [500, 60, 40])
    found = mixed_subsets(keys, 50, 200, 7)
    assert all(len(part) == 200 and (np.diff(part) > 0).all() for part in found)
    shares = np.array([np.bincount(keys[part], minlength=4) for part in found])
    assert shares[:, 1].min() < 15 and shares[:, 1].max() == 60  # from nearly none to all there are
    again = mixed_subsets(keys, 3, 200, 7)
    assert all(
        (a == b).all() for a, b in zip(again, found[:3], strict=True)
    )  # the same, however many are drawn
    with pytest.raises(ConfigError, match="at most half"):
        mixed_subsets(keys, 3, 301, 0)


def test_partial_correlations_are_those_of_residuals():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 4))
    values[:, 1] += values[:, 0]
    scores = values[:, 0] + 0.3 * rng.normal(size=40)
    rho, p = partial_rank_correlations(values, scores)
    ranks = stats.rankdata(np.column_stack([values, scores]), axis=0)
    for at in range(4):
        others = np.column_stack([np.ones(40), np.delete(ranks[:, :4], at, axis=1)])
        rest = [r - others @ np.linalg.lstsq(others, r, rcond=None)[0] for r in (ranks[:, at], ranks[:, 4])]
        expected = np.corrcoef(*rest)[0, 1]
        assert rho[at] == pytest.approx(expected, abs=1e-9)
        t = abs(expected) * np.sqrt(35 / (1 - expected**2))
        assert p[at] == pytest.approx(2 * stats.t.sf(t, 35))
    assert p[0] < 1e-6 and p[1] > 0.01  # the second only moves with the first
    with pytest.raises(ConfigError, match=r"effects of 4 statistics apart; .* to at least 24, or"):
        partial_rank_correlations(values[:5], scores[:5])


def test_thresholds_hold_as_often_as_they_claim():
    """Success is 60 % likely below 0 and 97 % above: a threshold whose subsets truly succeed less than 90 % may hold in
    no more than one trial of twenty."""
    wrong = found = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=150)
        good = rng.random(150) < np.where(values > 0, 0.97, 0.6)
        _, held = least_strict(values, good, 30, True, 0.9, 0.05)
        if held is not None:
            found += 1
            above = stats.norm.sf(max(held, 0)) / stats.norm.sf(
                held
            )  # share of the subsets it admits that lie above 0
            wrong += above * 0.97 + (1 - above) * 0.6 < 0.9
    assert wrong <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)
    assert found > 60  # and it is not for want of trying


def test_the_loosest_threshold_of_the_sequence_is_taken():
    values = np.concatenate([np.linspace(0, 1, 30), np.linspace(0, 1, 100)])
    tried, held = least_strict(values, values >= 0.25, 30, True, 0.9, 0.05)
    assert [step["held"] for step in tried] == [True] * (len(tried) - 1) + [False]
    assert held == tried[-2]["low"] and 0.15 < held < 0.45
    mirrored, below = least_strict(-values, values >= 0.25, 30, False, 0.9, 0.05)
    assert below == -held and [s["high"] for s in mirrored] == [-s["low"] for s in tried]
    # the first say that a fifth lies above 0.8, of the others hardly any does: a looser threshold is tested all the same
    skewed = np.concatenate([np.linspace(0, 1, 30), np.linspace(0, 0.81, 100)])
    tried, held = least_strict(skewed, skewed >= 0.2, 30, True, 0.9, 0.05)
    assert tried[0]["low"] < 0.6 and tried[0]["subsets"] >= 29 and held is not None
    # 30 of 30 bound only 0.905: not enough for 0.95
    assert least_strict(np.r_[np.zeros(30), np.zeros(30)], np.ones(60, bool), 30, True, 0.95, 0.05)[1] is None
    assert least_strict(np.r_[np.zeros(30), np.zeros(30)], np.ones(60, bool), 30, True, 0.90, 0.05)[1] == 0


def test_finds_what_the_performance_follows():
    table = data()
    binding = Binding(entity="source", classes="kind", size="size", content=["x", "y"])
    calls = []

    def performance(part):
        calls.append(part.num_rows)
        counts = np.bincount(part["kind"].to_numpy(), minlength=6) / part.num_rows
        return float(
            np.exp(-(counts[counts > 0] * np.log(counts[counts > 0])).sum())
        )  # as many classes as there seem to be

    names = ["variety.effective_classes", "granularity.mean_size"]
    found = sensitivity(
        table, binding, performance, mix="kind", rows=400, count=120, statistics=names, tolerance=3.2
    )
    rows = {r["statistic"]: r for r in found.correlations.to_pylist()}
    assert rows["variety.effective_classes"]["sensitive"] and rows["variety.effective_classes"]["rho"] > 0.95
    assert not rows["granularity.mean_size"]["sensitive"]
    low, high = found.thresholds["variety.effective_classes"]
    assert high is None and abs(low - found.info["floor"]) < 0.6
    evidence = found.evidence.to_pylist()
    assert [e["low"] for e in evidence] == sorted((e["low"] for e in evidence), reverse=True)
    assert found.info["rows_trained"] == sum(calls) == 120 * 400 + 4000
    assert found.subsets["held_out"].to_pylist() == [False] * 30 + [True] * 90
    assert found.limits == {**found.thresholds, "volume.rows": (400, None)}
    groups = partial(table, binding, "source")
    assert select_groups(groups, found.limits).reached["volume.rows"] >= 400
    again = sensitivity(
        table, binding, performance, mix="kind", rows=400, count=120, statistics=names, tolerance=3.2
    )
    assert again.thresholds == found.thresholds and again.correlations.equals(found.correlations)


def test_noise_is_not_called_sensitive():
    """With no true effect, at most about a tenth of the calibrations find one."""
    table = data(1500)
    binding = Binding(size="size", classes="kind", content=["x", "y"])
    false = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        found = sensitivity(
            table, binding, lambda part, rng=rng: rng.random(), mix="kind", rows=100, count=60, seed=seed
        )
        false += any(found.correlations["sensitive"].to_pylist())
        kept = [r for r in found.correlations.to_pylist() if r["reason"] is None]
        assert 1 <= len(kept) <= 10
    assert false <= 3


def test_the_proxy_model():
    train, test = data(600, 1), data(300, 2)
    score = proxy(["x", "y"], "kind", test)
    assert 0.8 < score(train) <= 1
    one = train.filter(pa.array(train["kind"].to_numpy() == 2))
    assert score(one) == pytest.approx((test["kind"].to_numpy() == 2).mean())
    mixed = train.append_column(
        "word", pa.array([f"k{k % 2}" if k else None for k in train["kind"].to_pylist()])
    )
    tested = test.append_column("word", pa.array([f"k{k % 2}" for k in test["kind"].to_pylist()]))
    assert proxy(["x", "word"], "kind", tested)(mixed) > proxy(["x"], "kind", tested)(mixed)
    at = tested.schema.get_field_index("word")
    large = [t.set_column(at, "word", t["word"].cast(pa.large_string())) for t in (mixed, tested)]
    assert proxy(["x", "word"], "kind", large[1])(large[0]) == proxy(["x", "word"], "kind", tested)(mixed)
    with pytest.raises(DataError, match="no column 'kindd'"):
        proxy(["x"], "kindd", test)


def test_calibrations_that_can_show_nothing():
    table = data(1000)
    binding = Binding(classes="kind")
    with pytest.raises(
        ConfigError,
        match=r"Even if all of the remaining subsets are successful, they do not show .* at least 0\.95; give at least 89",
    ):
        sensitivity(table, binding, len, mix="kind", rows=100, count=60, share=0.95)
    with pytest.raises(DataError, match="Every subset scored the same"):
        sensitivity(table, binding, lambda part: 1.0, mix="kind", rows=100, count=60)
    with pytest.raises(DataError, match="performance did not return a finite number"):
        sensitivity(table, binding, lambda part: float("nan"), mix="kind", rows=100, count=60)
    with pytest.raises(
        ConfigError,
        match=r"'variety\.clases' does not exist, or could not be computed for every subset \(did you mean 'variety\.classes'",
    ):
        sensitivity(
            table, binding, lambda part: 1.0, mix="kind", rows=100, count=60, statistics=["variety.clases"]
        )


def test_the_proxy_scores_as_the_task_does():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    table = pa.table(
        {
            "x": x,
            "late": (x + rng.normal(size=400) > 1).astype(int),
            "warm": 2 * x + 0.1 * rng.normal(size=400),
        }
    )
    train, test = table.slice(0, 200), table.slice(200)
    assert 0.7 < proxy(["x"], "late", test, "roc_auc")(train) < 1
    one = train.filter(pa.array(train["late"].to_numpy() == 0))
    assert proxy(["x"], "late", test, "roc_auc")(one) == 0.5
    assert proxy(["x"], "warm", test)(train) > 0.99  # R², since it holds floats
    assert -0.2 < proxy(["x"], "warm", test, "neg_root_mean_squared_error")(train) < -0.05
    with pytest.raises(
        ConfigError, match=r"no scorer in scikit-learn called 'roc_uac' \(did you mean 'roc_auc'"
    ):
        proxy(["x"], "late", test, "roc_uac")
    none = train.set_column(1, "late", pa.nulls(200, pa.int64()))
    with pytest.raises(DataError, match="no row with a value in 'late'"):
        proxy(["x"], "late", test)(none)


def test_how_the_subsets_are_run_is_not_seen_in_the_result():
    table = data(1200)
    binding = Binding(entity="source", classes="kind", content=["x", "y"])
    score = proxy(["x", "y"], "kind", data(300, 9))

    def backwards(run, table, parts):
        return [run(table.take(pa.array(part))) for part in parts[::-1]][::-1]

    options = {"mix": "kind", "rows": 150, "count": 60, "tolerance": 0.2}
    one, other = (sensitivity(table, binding, score, each=each, **options) for each in (None, backwards))
    assert one.subsets.equals(other.subsets) and one.thresholds == other.thresholds
    assert one.info["full"] == score(table)
