"""Ranks with shares of any length step together: every row once, the mean over ranks the mean over rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from raysel import DynamicSelection, FullData
from raysel.dynamic.plan import Plan
from raysel.errors import DataError
from raysel.train import planned
from raysel.train import session as train_session
from raysel.train.checkpoint_store import CheckpointStore
from raysel.train.session import Session
from tests.train.common import Ranks


class Table:
    """Ranks as threads around one table: what :class:`Counts` does, without processes."""

    def __init__(self, world: int) -> None:
        self.world, self.meet, self.steps, self.under_way = world, threading.Barrier(world), {}, 0

    def at(self, rank, world):
        table, step = self, [0]

        class Place:
            row = None

            def start(self, rows, mark):
                told = table.steps.setdefault(step[0], {})
                told[rank] = (rows, mark)
                step[0] += 1
                table.under_way += 1

                def wait():
                    table.under_way -= 1
                    table.meet.wait(10)
                    return np.array([told[r][0] for r in range(world)]), sum(m for _, m in told.values())

                return wait

            def share(self, value, source):
                return self.told(value)[source]

            def add(self, counts):
                return sum(self.told(counts).values())

            def told(self, value):
                everyones = table.steps.setdefault(step[0], {})
                everyones[rank] = value
                step[0] += 1
                table.meet.wait(10)
                return everyones

        return Place()


class Board:
    def post(self, plan, samples, seed):
        self.posted = (len(plan), samples)


def batches(ids, size, collate):
    for start in range(0, len(ids), size):
        yield collate({"sample_id": ids[start : start + size], "value": ids[start : start + size] * 10.0})


def ranks_of(monkeypatch, n, world, table=None, **run):
    """Sessions of as many ranks in their first epoch, each of which streams the ids that it is given."""
    monkeypatch.setattr(planned, "arrivals", lambda ids, world, size, *rest: batches(ids, size, rest[-1]))
    monkeypatch.setattr(train_session, "Counts", (table or Table(world)).at)
    dynamic, told = DynamicSelection.local(FullData(), n, num_epochs=1, **run), []
    made = [
        Session(dynamic.run, dynamic._keeper, Ranks(r, world, told), CheckpointStore(), None, None, Board)
        for r in range(world)
    ]
    for session in made:
        next(session.epochs())
    return made


@pytest.mark.parametrize("world", [1, 3])
def test_rows_that_a_step_dropped_or_repeated_are_named_on_every_rank(monkeypatch, world):
    whole = list(range(20))
    for rows, sentence in (
        (
            [i for i in whole if i not in (5, 17)],
            r"20 samples, but 2 were not in the stream \(sample_id 5, 17\).*placeholder",
        ),
        ([6 if i == 7 else i for i in whole], r"20 samples, but 1 were not in the stream \(sample_id 7\)"),
        ([*whole, 3, 3], r"20 samples, but 1 arrived more than once \(sample_id 3\)"),
    ):
        made = ranks_of(monkeypatch, 20, world)

        def train(session, rows=rows, sentence=sentence):
            with pytest.raises(DataError, match=sentence):
                for batch in session.stream(np.array(rows[session.rank :: world]), batch_size=4):
                    session.loss(batch, torch.ones(len(batch.ids)))
            return True

        with ThreadPoolExecutor(world) as pool:
            assert all(pool.map(train, made))


@pytest.mark.parametrize(
    "shares",
    [(4, 4), (0, 5), (5, 0), (7, 1, 0), (1, 0, 0), (0, 0, 13), (16, 3), (12, 8, 4), (9,), (0, 1, 4, 4, 5)],
    ids=str,
)
def test_shares_of_any_length(monkeypatch, shares):
    world, n, size = len(shares), sum(shares), 4
    sessions = ranks_of(monkeypatch, n, world)
    order = np.random.default_rng(0).permutation(n)
    parts = np.split(order, np.cumsum(shares)[:-1])

    def train(session):
        trace = []
        for batch in session.stream(parts[session.rank], batch_size=size):
            assert batch.data["value"].tolist() == (batch.data["sample_id"] * 10.0).tolist()
            losses = batch.data["value"].clone()
            losses[batch.ids < 0] = torch.nan  # what padding computes must not matter
            scalar = session.loss(batch, losses).item()
            trace.append((batch.ids.tolist(), batch.share, scalar, session.progress))
        return trace

    with ThreadPoolExecutor(world) as pool:
        traces = list(pool.map(train, sessions))
    assert {len(trace) for trace in traces} == {-(-max(shares) // size)}
    seen, done = [], 0
    for step in zip(*traces, strict=True):
        rows = [i for ids, *_ in step for i in ids if i >= 0]
        assert all(
            len(ids) >= 2 and all(i >= 0 for i in ids[:-2]) for ids, *_ in step
        )  # padded to two rows, no more
        assert {share for _, share, *_ in step} == {len(rows) / world}
        assert np.mean([scalar for _, _, scalar, _ in step]) == pytest.approx(10 * np.mean(rows))
        done += len(rows)
        assert {progress for *_, progress in step} == {done / n}
        seen += rows
    assert sorted(seen) == list(range(n))
    assert all(session.current.trained == n for session in sessions)


def test_no_exchange_is_under_way_when_max_steps_ends_the_run(monkeypatch):
    table = Table(1)
    (session,) = ranks_of(monkeypatch, 20, 1, table, max_steps=3)
    steps = [session.step for _ in session.stream(np.arange(20), batch_size=4)]
    assert steps == [1, 2, 3] and table.under_way == 0


def test_rows_are_told_apart_by_their_marks():
    slots = np.random.default_rng(1).permutation(200_000)
    parts = [slots[:5], slots[5:70_000], slots[70_000:]]
    assert (sum(map(planned.marks, parts)) - planned.marks(np.sort(slots))) % 2**64 == 0
    slots[0] = slots[1]
    assert planned.marks(slots) != planned.marks(np.arange(200_000)) and planned.marks(slots[:0]) == 0


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 1000])
def test_a_plan_packed_in_bits_keeps_its_rows_and_no_others(samples):
    import pyarrow as pa

    class Posted:
        def read(self):
            return planned.packed(plan, samples)

    draw = np.random.default_rng(samples)
    slots = np.flatnonzero(draw.random(samples) < 0.5) if samples > 1 else np.array([0])
    plan = Plan(slots, np.ones(len(slots), np.float32))
    chosen = np.sort(draw.choice(10 * samples, samples, replace=False))
    assert len(Posted().read()) == -(-samples // 8)
    for ids, rows in ((None, np.arange(samples)), (chosen, np.arange(10 * samples))):
        draw.shuffle(rows)
        kept = planned._keep_planned(pa.table({"sample_id": rows}), Posted(), ids, samples)
        found = np.concatenate([table["sample_id"].to_numpy() for table in kept] or [rows[:0]])
        wanted = slots if ids is None else chosen[slots]
        assert np.array_equal(found, rows[np.isin(rows, wanted)])  # and in the order they came
    with pytest.raises(DataError, match=f"sample_id {samples} is not one of the {samples:,} samples"):
        list(planned._keep_planned(pa.table({"sample_id": [0, samples]}), Posted(), None, samples))
    with pytest.raises(DataError, match="sample_id -1 is not one of"):
        list(planned._keep_planned(pa.table({"sample_id": [-1]}), Posted(), None, samples))
    with pytest.raises(DataError, match="no column 'sample_id'"):
        list(planned._keep_planned(pa.table({"id": [0]}), Posted(), None, samples))
