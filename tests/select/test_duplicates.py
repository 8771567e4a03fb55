"""Near duplicates against brute force over all pairs, and the cells' recall on planted duplicates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import ray

import raysel
from raysel.data.vectors import to_column
from raysel.errors import ConfigError
from raysel.select.duplicates import (
    EDGES,
    close_pairs,
    drop_to,
    join_pairs,
    keep_first,
    nearest_cells,
    pairs_across,
)
from raysel.select.matches import unit


def problem(seed):
    """Few directions with noise, so that chains and groups of near duplicates occur; some rows equal."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(2, 60)), int(rng.integers(1, 5))
    rows = rng.normal(size=(6, d))[rng.integers(0, 6, n)] + rng.normal(size=(n, d)) * rng.choice(
        [0, 0.1, 0.5]
    )
    return np.sort(rng.permutation(3 * n)[:n]), unit(rows)


def every_pair(ids, rows, threshold):
    wide = rows.astype(np.float64)
    found = {}
    for i in range(len(ids)):
        close = [(j, (wide[i] * wide[j]).sum()) for j in range(i)]
        for j, cosine in [pair for pair in close if pair[1] >= threshold][:EDGES]:
            found[int(ids[i]), int(ids[j])] = cosine
    return found


def by_hand(ids, pairs, threshold):
    kept, dropped = [], {}
    for row in ids.tolist():
        near = [(pairs[row, other], -other) for other in kept if pairs.get((row, other), -2) >= threshold]
        if near:
            dropped[row] = -max(near)[1]
        else:
            kept.append(row)
    return dropped


@pytest.mark.parametrize("seed", range(120))
def test_pairs_and_dropped_rows_are_those_of_brute_force(seed):
    ids, rows = problem(seed)
    threshold = [0.6, 0.9, 0.99, 1.0][seed % 4]
    wanted = every_pair(ids, rows, threshold)
    found = join_pairs(
        [close_pairs(ids, rows, threshold)] * 2
    )  # a pair that two cells have in common counts once
    assert (
        dict(zip(zip(found.later.tolist(), found.earlier.tolist(), strict=True), found.cosine, strict=True))
        == wanted
    )
    for cosine in (threshold, (threshold + 1) / 2):
        dropped = keep_first(found, cosine)
        hand = by_hand(ids, wanted, cosine)
        assert dict(zip(dropped.later.tolist(), dropped.earlier.tolist(), strict=True)) == hand
    for keep in {len(ids), len(ids) - 1, len(ids) // 2, 1} - {0}:
        reached = drop_to(found, len(ids), keep)
        if reached is None:
            assert len(ids) - len(keep_first(found, threshold).later) > keep
            continue
        lowest, dropped = reached
        assert len(ids) - len(dropped.later) == keep
        kept = set(ids.tolist()) - set(dropped.later.tolist())
        assert set(dropped.earlier.tolist()) <= kept
        assert all(
            wanted[pair] >= lowest
            for pair in zip(dropped.later.tolist(), dropped.earlier.tolist(), strict=True)
        )


@pytest.mark.parametrize("seed", range(40))
def test_pairs_of_two_sets_are_those_of_brute_force(seed):
    ids, rows = problem(seed)
    side = np.random.default_rng(seed).random(len(ids)) < 0.5
    of = dict(zip(ids.tolist(), side, strict=True))
    wanted = {
        pair: cosine for pair, cosine in every_pair(ids, rows, 0.8).items() if of[pair[0]] != of[pair[1]]
    }
    found = pairs_across(ids[side], rows[side], ids[~side], rows[~side], 0.8)
    assert (
        dict(zip(zip(found.later.tolist(), found.earlier.tolist(), strict=True), found.cosine, strict=True))
        == wanted
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_nearest_cells(seed):
    rng = np.random.default_rng(seed)
    rows, centroids = (unit(rng.integers(-2, 3, (size, 3))) for size in (50, int(rng.integers(1, 9))))
    probes = int(rng.integers(1, len(centroids) + 1))
    cosine = (rows.astype(np.float64)[:, None] * centroids[None]).sum(axis=2)
    wanted = np.argsort(-cosine, axis=1, kind="stable")[:, :probes]
    assert nearest_cells(rows, centroids, probes).tolist() == wanted.tolist()


def dataset(rows, blocks):
    table = pa.table({"sample_id": np.arange(len(rows)), "embedding": to_column(rows)})
    return ray.data.from_arrow(
        [table.slice(at, -(-len(rows) // blocks)) for at in range(0, len(rows), -(-len(rows) // blocks))]
    )


def test_planted_duplicates_are_dropped_from_any_blocks(cluster):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    rows = (centres[rng.integers(0, 40, 3600)] + rng.normal(size=(3600, 16))).astype(np.float32)
    rows[2000:2200] = rows[:200] + rng.normal(size=(200, 16)) * 0.02  # near duplicates
    rows[3000:3100] = rows[:100]  # copies
    one, other = (raysel.Deduplicate(0.99).select(dataset(rows, blocks)) for blocks in (1, 5))
    assert one.table.equals(other.table) and one.dropped.equals(other.dropped)
    dropped = one.dropped.to_pydict()
    planted = {*range(2000, 2200), *range(3000, 3100)}
    assert len(planted & set(dropped["sample_id"])) >= 0.98 * len(planted)
    assert set(dropped["duplicate_of"]) <= set(one.ids.tolist())
    wide = unit(rows).astype(np.float64)
    cosine = (wide[dropped["sample_id"]] * wide[dropped["duplicate_of"]]).sum(axis=1)
    assert cosine.min() >= 0.99 - 1e-9 and one.info["copies"] == 100
    assert int(one.table["score"].to_numpy().sum()) == len(dropped["sample_id"])

    kept = raysel.Deduplicate(keep=3400).select(dataset(rows, 1))
    assert len(kept) == 3400
    with pytest.raises(ConfigError, match="the 3,600 vectors contain only 3,500 distinct ones"):
        raysel.Deduplicate(keep=3550).select(dataset(rows, 1))

    leaked = raysel.leakage(dataset(rows[:2000], 2), dataset(rows[2000:], 3), 0.99)
    found = dict(zip(leaked["sample_id"].to_pylist(), leaked["train_id"].to_pylist(), strict=True))
    assert sum(found.get(row) == row for row in range(200)) >= 0.98 * 200
    assert all(found[1000 + row] == row for row in range(100))  # a copy is in the same cells


def test_degenerate_vectors(cluster):
    same = raysel.Deduplicate(0.9).select(dataset(np.ones((50, 3), np.float32), 2))
    assert same.ids.tolist() == [0]
    zero = raysel.Deduplicate(0.9).select(dataset(np.zeros((5, 3), np.float32), 1))
    assert zero.ids.tolist() == [0]
    with pytest.raises(ConfigError, match="Deduplicate cannot reduce the pool to 1 rows"):
        raysel.Deduplicate(keep=1e-9).select(dataset(np.eye(3, dtype=np.float32), 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.9, "keep": 3},
        {"threshold": 95},
        {"threshold": True},
        {"keep": 0},
        {"keep": 3, "probes": 0},
    ],
)
def test_wrong_parameters_are_said(wrong):
    with pytest.raises(ConfigError, match=r"threshold|keep|probes"):
        raysel.Deduplicate(**wrong)
