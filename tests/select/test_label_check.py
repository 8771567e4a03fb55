"""Labels to check: the ranking against loops over all pairs of rows."""

from __future__ import annotations

import statistics
from collections import Counter

import numpy as np

from raysel.select import label_check
from raysel.select.matches import Matches


def brute(ids, losses, labels, vectors, k):
    """Every row with all other rows, in plain loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for a in range(len(ids)):
        others = sorted((-float(unit[a] @ unit[b]), int(ids[b]), b) for b in range(len(ids)) if b != a)[:k]
        near = [b for _, _, b in others]
        votes = Counter(labels[b] for b in near)
        most = max(votes.values(), default=0)
        common = next((labels[b] for b in near if votes[labels[b]] == most), None)
        middle = statistics.median(float(losses[b]) for b in near) if near else 0.0
        share = votes[labels[a]] / len(near) if near else 0.0
        found.append((middle - float(losses[a]), int(ids[a]), losses[a], middle, labels[a], common, share))
    return sorted(found)


def test_the_ranking_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    for n in (2, 3, 7, 30, 60):
        for labels in (rng.integers(0, 3, n), rng.choice(["a", "b", "c"], n)):
            ids = np.sort(rng.choice(1000, n, replace=False))
            vectors = rng.normal(size=(n, 4)).astype(np.float64)
            losses = (np.round(8 * rng.exponential(size=n)) / 8).astype(
                np.float32
            )  # some are equal, and sums exact
            matches = Matches(vectors, 6).add(ids, vectors).lists()[0]
            found = label_check.rank(ids, losses, labels, ids, label_check.others(ids, matches))
            wanted = brute(ids, losses, labels, vectors, 5)
            assert found["sample_id"].tolist() == [row[1] for row in wanted]
            for name, at in (("loss", 2), ("neighbour_loss", 3), ("agreement", 6)):
                assert np.allclose(found[name], [row[at] for row in wanted])
            assert found["label"].tolist() == [row[4] for row in wanted]
            assert found["neighbour_label"].tolist() == [row[5] for row in wanted]
            assert np.allclose(found["score"], [-row[0] for row in wanted])


def test_a_row_alone_and_copies_of_it():
    ids = np.array([3, 4, 9])
    alone = label_check.rank(
        ids[:1], np.ones(1), np.array(["a"]), ids[:1], label_check.others(ids[:1], np.array([[3, -1]]))
    )
    assert alone["score"].tolist() == [1.0] and alone["agreement"].tolist() == [0.0]
    # A row is not its own neighbour, also where copies of it with lower ids are in the list in its place.
    assert label_check.others(ids, np.array([[3, 4], [3, 9], [9, 3]])).tolist() == [[4], [3], [3]]


def test_candidates_have_the_highest_losses():
    rng = np.random.default_rng(1)
    for n in (1, 4, 5, 9, 100, 101):
        ids = np.sort(rng.choice(1000, n, replace=False))
        losses = np.round(rng.exponential(size=n), 1)
        wanted = sorted(range(n), key=lambda at: (-losses[at], ids[at]))[: max(1, n // 2)]
        assert label_check.candidates(ids, losses).tolist() == sorted(ids[wanted].tolist())
    few = label_check.candidates(np.arange(1 << 18), np.zeros(1 << 18))
    assert few.tolist() == list(range(1 << 12))


def test_planted_wrong_labels_come_first():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(5, 8)) * 4
    truth = rng.integers(0, 5, 500)
    vectors = (centres[truth] + rng.normal(size=(500, 8))).astype(np.float32)
    labels = truth.copy()
    wrong = np.sort(rng.choice(500, 30, replace=False))
    labels[wrong] = (truth[wrong] + rng.integers(1, 5, 30)) % 5
    losses = rng.uniform(0, 0.3, 500)
    losses[wrong] += 1
    losses[truth == 3] += 2  # a difficult class: the losses of all its rows stay high
    ids = np.arange(500)
    rows = label_check.candidates(ids, losses)
    lists = Matches(vectors[rows], 11).add(ids, vectors).lists()[0]
    found = label_check.rank(ids, losses, labels, rows, label_check.others(rows, lists))
    first = found["sample_id"][:30]
    assert len(np.intersect1d(first, wrong)) >= 27
    assert len(np.intersect1d(np.argsort(-losses)[:30], wrong)) < 15
    assert (found["neighbour_label"][:27] == truth[first[:27]]).all()
