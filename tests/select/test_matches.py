"""Lists of most similar rows, and turns, against brute force on small problems with many equal similarities."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.select.matches import Matches, take_turns, unit


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
def test_turns_take_what_they_take_by_hand(seed):
    rng = np.random.default_rng(seed)
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
    while True:
        cuts = np.sort(rng.integers(0, n + 1, 3))
        found = Matches(targets, k)
        for part in rng.permutation(4):
            here = slice([0, *cuts][part], [*cuts, n][part])
            found.merge(Matches(targets, k).add(ids[here], rows[here]))
        lists, score = found.lists()
        for j in range(m):
            order = np.lexsort((ids, -similar[j]))[:k]
            assert lists[j, : len(order)].tolist() == ids[order].tolist()
            assert score[j, : len(order)].tolist() == similar[j, order].tolist()
        turns = take_turns(lists, count, n, share, taken)
        if turns is not None:
            break
        k = min(n, 2 * k)
    wanted = by_hand(similar, ids, count, share.tolist(), taken)
    assert list(zip(turns[0].tolist(), turns[1].tolist(), strict=True)) == wanted


def test_a_list_that_is_too_short_is_noticed():
    lists = np.array([[3, 1], [3, 1]])
    assert take_turns(lists, 2, 4)[0].tolist() == [3, 1]
    assert take_turns(lists, 3, 4) is None  # the pool has more rows than the lists
    assert take_turns(lists, 3, 2)[0].tolist() == [3, 1]  # it has not


def test_a_zero_vector_is_similar_to_nothing():
    lists, score = (
        Matches(np.ones((1, 2)), 3).add(np.arange(3), np.array([[0, 0], [-1, 0], [1, 0.5]])).lists()
    )
    assert lists.tolist() == [[2, 0, 1]] and score[0, 1] == 0
