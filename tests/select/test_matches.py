"""Lists of most similar rows, and turns, against brute force on small problems with many equal similarities."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.select import matches as module
from raysel.select.matches import Matches, Turns, unit


def cosines(rows, targets):
    """Every pair from the two vectors alone, in float64."""
    x, t = unit(rows).astype(np.float64), unit(targets)
    return np.array([[(x[i] * t[j]).sum() for i in range(len(x))] for j in range(len(t))])


def by_hand(similar, ids, count, share, taken):
    """Turn t of target j comes at (t + 1/2) / share_j; each takes its most similar free row."""
    turns = sorted(((t + 0.5) / s, j) for j, s in enumerate(share) for t in range(len(ids)))
    free, found = set(ids.tolist()) - set(taken), []
    for _, j in turns:
        if len(found) == count or not free:
            break
        best = min((i for i in range(len(ids)) if ids[i] in free), key=lambda i: (-similar[j, i], ids[i]))
        free.remove(ids[best])
        found.append((ids[best], j))
    return found


@pytest.mark.parametrize("seed", range(150))
def test_turns_take_what_they_take_by_hand(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(module, "_ROWS", int(rng.integers(1, 30)))
    monkeypatch.setattr(module, "_SCORES", int(rng.integers(1, 60)))
    n, m, d = rng.integers(3, 50), rng.integers(1, 8), rng.integers(1, 6)
    make = (
        (lambda *shape: rng.integers(-1, 2, shape)) if seed % 2 else (lambda *shape: rng.normal(size=shape))
    )
    rows, targets = (make(size, d).astype(np.float32) for size in (n, m))
    ids = rng.permutation(3 * n)[:n]
    share = rng.integers(1, 4, m) if seed % 3 else np.ones(m, np.int64)
    taken = ids[: rng.integers(0, n)].tolist()
    count = int(rng.integers(1, n - len(taken) + 1))
    similar = cosines(rows, targets)
    k = int(rng.integers(1, n + 1))
    found = Turns(count, share, taken)
    while True:
        free = ~np.isin(ids, found.taken)
        left, rest, near = ids[free], rows[free], similar[:, free]
        cuts = np.sort(rng.integers(0, len(left) + 1, 3))
        matches = Matches(targets, k)
        for part in rng.permutation(4):
            here = slice([0, *cuts][part], [*cuts, len(left)][part])
            matches.merge(Matches(targets, k).add(left[here], rest[here]).trim())
        lists, score = matches.lists()
        for j in range(m):
            order = np.lexsort((left, -near[j]))[:k]
            assert lists[j, : len(order)].tolist() == left[order].tolist()
            assert score[j, : len(order)].tolist() == near[j, order].tolist()
        if found.take(lists, score, complete=k == n):
            break
        k = min(n, 2 * k)
    wanted = by_hand(similar, ids, count, share.tolist(), taken)
    assert list(zip(found.ids, found.targets, strict=True)) == wanted
    place = {row: at for at, row in enumerate(ids.tolist())}
    assert found.cosines == [similar[j, place[row]] for row, j in wanted]


def test_a_list_that_ends_needs_another_one():
    lists, cosines, share = np.array([[3, 1], [3, 1]]), np.ones((2, 2)), np.ones(2, np.int64)
    turns = Turns(3, share)
    assert not turns.take(lists, cosines, complete=False) and turns.ids == [3, 1]
    assert turns.take(np.array([[2, -1], [2, -1]]), cosines, complete=False) and turns.ids == [3, 1, 2]
    turns = Turns(3, share)
    assert turns.take(lists, cosines, complete=True) and turns.ids == [3, 1]  # there are no more rows


def test_a_zero_vector_is_similar_to_nothing():
    lists, score = (
        Matches(np.ones((1, 2)), 3).add(np.arange(3), np.array([[0, 0], [-1, 0], [1, 0.5]])).lists()
    )
    assert lists.tolist() == [[2, 0, 1]] and score[0, 1] == 0
