"""No batch has a single row, every planned row is trained exactly once, and the estimate stays unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysel import DynamicSelection, FullData, Selection
from raysel.train.checkpoint_store import CheckpointStore
from raysel.train.session import Session
from tests.train.common import Numbers, Ranks


def sessions_of(n: int, world: int) -> list[Session]:
    """One session per rank, over the ids 10, 12, 14 ... with the weights 1, 1.01, 1.02 ..."""
    weight = 1 + np.arange(n) / 100
    chosen = Selection.of(10 + 2 * np.arange(n), weight=weight, info={"pool_rows": 10 + 2 * n})
    dynamic, told = DynamicSelection.local(FullData(), chosen, num_epochs=1, seed=n), []
    made = [
        Session(
            dynamic.run, dynamic._keeper, Ranks(r, world, told), CheckpointStore(), chosen.ids, chosen.weights
        )
        for r in range(world)
    ]
    for session in made:
        next(session.epochs())
    return made


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_every_row_once_with_its_weight_and_no_batch_of_a_single_row(batch_size, world, accumulate):
    lanes = world * accumulate
    for n in [*range(1, 2 * lanes + 2), *range(batch_size * lanes, 2 * batch_size * lanes + 2)]:
        made = sessions_of(n, world)
        loaders = [s.loader(Numbers(10 + 2 * n), batch_size=batch_size, accumulate=accumulate) for s in made]
        assert {len(loader) for loader in loaders} == {accumulate * -(-n // (batch_size * lanes))}
        seen, group, means = {}, {}, []
        for together in zip(*loaders, strict=True):
            for session, batch in zip(made, together, strict=True):
                real = batch.ids >= 0
                assert min(2, batch_size) <= len(batch.ids) <= batch_size
                assert not real[int(real.sum()) :].any() and (batch.weights[~real] == 0).all()
                assert torch.equal(batch.ids[real], batch.data[real])
                for i, weight in zip(batch.ids[real].tolist(), batch.weights[real].tolist(), strict=True):
                    assert i not in seen
                    seen[i] = group[i] = weight
                losses = torch.where(
                    real, batch.data.double(), torch.nan
                )  # what padding computes must not matter
                means.append(session.loss(batch, losses).item())
            if (
                len(means) == lanes
            ):  # the mean over ranks and accumulated batches is the mean over the step's rows
                mean = sum(i * weight for i, weight in group.items()) / len(group)
                assert np.mean(means) == pytest.approx(mean, rel=1e-6)
                group, means = {}, []
        expected = {10 + 2 * i: 1 + i / 100 for i in range(n)}
        assert seen == pytest.approx(expected) and not means
        assert {session.current.trained for session in made} == {n}


@pytest.mark.parametrize(
    ("n", "sizes"), [(129, [64, 63, 2]), (65, [63, 2]), (130, [64, 64, 2]), (1, [2]), (128, [64, 64])]
)
def test_a_network_with_batch_statistics_trains(n, sizes):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    data = torch.utils.data.TensorDataset(torch.randn(n, 8), torch.randint(0, 2, (n,)))
    session, found = DynamicSelection.local(FullData(), n, num_epochs=1).session(), []
    for _ in session.epochs():
        for batch in session.loader(data, batch_size=64):
            inputs, labels = batch.data
            found.append(len(labels))
            session.loss(batch, F.cross_entropy(net(inputs), labels, reduction="none")).backward()
        assert session.report()["observed"] == n
    assert found == sizes
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_an_epoch_resumes_before_a_step_that_was_evened_out(tmp_path):
    def run(place, stop=None):
        session = DynamicSelection.local(FullData(), 33, num_epochs=1, checkpoints=tmp_path / place).session()
        session.restore({})
        found = []
        for _ in session.epochs():
            for batch in session.loader(Numbers(33), batch_size=8):
                session.loss(batch, torch.ones(len(batch.ids)))
                found.append((batch.ids.tolist(), session.progress))
                session.checkpoint()
                if session.step == stop:
                    return found
            session.report()
        return found

    whole = run("whole")
    assert [len(ids) for ids, _ in whole] == [8, 8, 8, 7, 2]
    for stop in (2, 3, 4):
        assert run(f"stopped {stop}", stop) + run(f"stopped {stop}") == [
            (ids, pytest.approx(progress)) for ids, progress in whole
        ]
