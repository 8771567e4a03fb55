"""Rep and Div against the definitions, one sample and one unit after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from raysel.errors import ConfigError, DataError
from raysel.factors import Codes, FactorCounts, Span, rep_div
from raysel.factors.scores import RawScores, as_matrix


def oracle(active: np.ndarray, labels: list | None, percent: int) -> tuple[list[float], list[float]]:
    """Section 2 of the method, word for word."""
    n, units = active.shape
    count = [int(active[:, j].sum()) for j in range(units)]
    live = [j for j in range(units) if count[j]]
    frequent = sorted(live, key=lambda j: (-count[j], j))[: max(percent * len(live) // 100, 1)]
    shared = [
        1 if labels is None else len({labels[i] for i in range(n) if active[i, j]}) for j in range(units)
    ]
    rep = [sum(1 / shared[j] for j in range(units) if j in frequent and active[i, j]) for i in range(n)]
    div = [sum(1 / count[j] for j in live if active[i, j]) for i in range(n)]

    def scaled(values: list[float]) -> list[float]:
        low, high = min(values), max(values)
        return [(v - low) / (high - low) if high - low > 1e-12 * high else 0.0 for v in values]

    return scaled(rep), scaled(div)


def test_worked_by_hand():
    # counts 3, 2, 1, 0; of the three live units a share of 0.67 makes two frequent: 0 and 1
    active = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]], bool)
    # units 0 and 1 fire in both classes: raw rep 1/2, 1/2 + 1/2, 1/2, 1/2; raw div 1/3, 1/3 + 1/2, 1/3 + 1, 1/2
    rep, div = rep_div(active, ["cat", "cat", "dog", "dog"], top_fraction=0.67)
    np.testing.assert_allclose(rep, [0, 1, 0, 0])
    np.testing.assert_allclose(div, [0, 0.5, 1, 1 / 6], rtol=1e-6)
    # unit 0 fires in one class only: raw rep 1, 1 + 1/2, 1, 1/2
    rep, _ = rep_div(active, ["cat", "cat", "cat", "dog"], top_fraction=0.67)
    np.testing.assert_allclose(rep, [0.5, 1, 0.5, 0])
    rep, _ = rep_div(active, top_fraction=0.67)  # without labels: 1, 2, 1, 1
    np.testing.assert_allclose(rep, [0, 1, 0, 0])
    assert rep.dtype == div.dtype == np.float32


@st.composite
def data(draw: st.DrawFn) -> tuple[np.ndarray, list[int] | None, int]:
    n, units = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=n * units, max_size=n * units))
    active = np.array(bits).reshape(n, units)
    active[draw(st.integers(0, n - 1)), draw(st.integers(0, units - 1))] = True
    labels = draw(st.none() | st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    return active, labels, draw(st.integers(1, 100))


@given(data())
@settings(deadline=None, max_examples=150)
def test_against_the_oracle(case):
    active, labels, percent = case
    rep, div = rep_div(sparse.csr_array(active), labels, percent / 100)
    expected = oracle(active, labels, percent)
    np.testing.assert_allclose(rep, expected[0], atol=1e-6)
    np.testing.assert_allclose(div, expected[1], atol=1e-6)
    assert rep.min() >= 0 and rep.max() <= 1 and div.min() >= 0 and div.max() <= 1


def made(n: int = 3000, units: int = 300, k: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    chance = rng.pareto(1.5, units)
    chosen = [rng.choice(units, k, replace=False, p=chance / chance.sum()) for _ in range(n)]
    active = np.array(chosen, np.int32)
    active[rng.random((n, k)) < 0.2] = -1
    return active, rng.integers(0, 7, n)


@pytest.mark.parametrize("with_labels", [True, False])
def test_any_split_and_any_form_give_the_same_bits(with_labels):
    active, labels = made()
    n, classes = len(active), labels if with_labels else None
    whole = rep_div(active, classes)
    matrix = as_matrix(active)
    rng = np.random.default_rng(1)
    codes = Codes(np.where(active < 0, 5, active), np.where(active < 0, np.float32(-2), np.float32(0.1)))
    forms = {
        "csr": matrix.astype(bool),
        "numbers": sparse.csr_matrix(matrix * 0.25),
        "coo": sparse.coo_array(matrix),
        "dense": matrix.toarray() > 0,
        "shuffled": rng.permuted(active, axis=1),
        "repeated": np.concatenate([active, active[:, :3]], axis=1),
        "codes": codes.active,
    }
    for name, form in forms.items():
        for one, other in zip(rep_div(form, classes), whole, strict=True):
            assert one.tobytes() == other.tobytes(), name
    for cuts in ([], [1], [1000, 1001, 2500], [0, 2000], list(range(300, n, 300))):
        spans = list(zip([0, *cuts], [*cuts, n], strict=True))
        counts = [FactorCounts.of(active[a:b], None if classes is None else classes[a:b]) for a, b in spans]
        shuffled = [counts[i] for i in rng.permutation(len(counts))]
        weights = sum(shuffled[1:], shuffled[0]).weights()
        raw = [weights.score(active[a:b]) for a, b in spans]
        span = sum((Span.of(part) for part in raw), Span())
        parts = [span.scale(part) for part in raw]
        for one, other in zip(map(np.concatenate, zip(*parts, strict=True)), whole, strict=True):
            assert one.tobytes() == other.tobytes(), cuts


def test_active_means_above_zero_and_what_is_given_stays_as_it_was():
    given = sparse.csr_array((np.array([0.5, -1.0, 0.0, 2.0]), [3, 0, 1, 2], [0, 4, 4]), (2, 4))
    before = given.data.tolist(), given.indices.tolist()
    assert as_matrix(given).toarray().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert (given.data.tolist(), given.indices.tolist()) == before


def test_scores_that_are_all_equal_are_zero():
    for active in (np.ones((5, 3), bool), np.zeros((5, 1), int)):
        rep, div = rep_div(active)
        assert rep.tolist() == div.tolist() == [0] * 5


def test_frequent_units_are_counted_among_the_live_ones_and_ties_go_to_the_lowest():
    active = np.full((10, 2), -1)
    active[:, 0] = np.arange(10) // 2 * 100  # five live units of two samples each, out of 401
    rep, _ = rep_div(active, top_fraction=0.4)
    assert rep.tolist() == [1] * 4 + [0] * 6
    rep, _ = rep_div(active, top_fraction=0.01)  # at least one
    assert rep.tolist() == [1] * 2 + [0] * 8


@pytest.mark.parametrize("dead", [np.full((4, 3), -1), np.zeros((4, 3), bool), np.zeros((4, 0), int)])
def test_all_units_dead(dead):
    with pytest.raises(DataError, match=r"No unit is active on any of 4 samples.*train the autoencoder"):
        rep_div(dead)


def test_bad_input():
    active = np.array([[0, 1], [1, -1]])
    with pytest.raises(DataError, match="one label per sample"):
        rep_div(active, ["a"])
    for share in (0, 1.5, True):
        with pytest.raises(ConfigError, match="top_fraction must be a number"):
            rep_div(active, top_fraction=share)
    for wrong in (-2, 10**12):
        with pytest.raises(DataError, match="Unit numbers must be in"):
            rep_div(np.array([[wrong]]))
    with pytest.raises(DataError, match="must be a sparse matrix"):
        rep_div(np.array(["a"]))
    with pytest.raises(DataError, match="Class codes must be whole numbers"):
        FactorCounts.of(active, [0.0, 1.0])
    with pytest.raises(DataError, match="for all blocks or for none"):
        FactorCounts.of(active, [0, 1]) + FactorCounts.of(active)
    weights = FactorCounts.of(active).weights()
    with pytest.raises(
        DataError,
        match="Unit 7 of the autoencoder is active in this block, but the counts cover only 2 units",
    ):
        weights.score(np.array([[7]]))


def test_scores_that_differ_by_rounding_alone_are_equal():
    """0.1 + 0.2 is not 0.3: scaled to [0, 1] one would be everything and the other nothing."""
    raw = RawScores(np.array([0.3, 0.1 + 0.2]), np.array([0.3, 0.3 + 1e-9]))
    rep, div = Span.of(raw).scale(raw)
    assert rep.tolist() == [0.0, 0.0] and div.tolist() == [0.0, 1.0]


@settings(deadline=None, max_examples=60)
@given(data(), st.integers(1, 4))
def test_blocks_may_name_the_classes_in_their_own_order(case, blocks):
    """What a block knows of classes is those that it has: codes of its own, renamed when blocks are joined."""
    active, labels, _ = case
    labels = [0] * len(active) if labels is None else labels
    names: dict[int, int] = {}
    whole = FactorCounts.of(active, np.unique(labels, return_inverse=True)[1])
    total = FactorCounts(0, np.zeros(active.shape[1], np.int64), np.zeros((0, active.shape[1]), bool))
    for rows in np.array_split(np.arange(len(active)), blocks):
        mine = list(dict.fromkeys(labels[i] for i in rows))[::-1]
        part = FactorCounts.of(active[rows], np.array([mine.index(labels[i]) for i in rows], int))
        total += part.recoded([names.setdefault(name, len(names)) for name in mine])
    np.testing.assert_array_equal(total.classes, whole.classes)
    np.testing.assert_array_equal(total.count, whole.count)
    bare = FactorCounts.of(active)
    assert bare.recoded([]) is bare


def test_the_rare_units_are_the_live_ones_that_the_fewest_samples_have():
    counts = FactorCounts(9, np.array([3, 0, 1, 9, 1, 2, 4, 5, 6, 7, 8, 1]), None)
    assert counts.rare(0.2).tolist() == [2, 4]
    assert counts.rare(0.01).tolist() == [2]
    assert counts.rare(0.4).tolist() == [2, 4, 5, 11]
