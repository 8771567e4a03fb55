"""RepDiv inside a run: scores find their samples by id, and the run costs what the policy says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysel import DynamicSelection, RepDiv, Selection
from raysel.errors import ConfigError, DataError


def scores(ids: np.ndarray, classes: int = 3) -> pa.Table:
    rng = np.random.default_rng(0)
    rep, div = (rng.integers(0, 20, len(ids)) / 19).astype(np.float32), rng.random(len(ids), np.float32)
    label = rng.integers(0, classes, len(ids))
    return pa.table({"sample_id": ids, "rep": rep, "div": div, "label": label})


def test_a_run_over_a_selection_trains_what_the_policy_says():
    table = scores(np.random.default_rng(1).permutation(200))
    chosen = Selection.of(np.arange(0, 200, 2), info={"pool_rows": 200})
    policy = RepDiv(table, ratio=0.4, tail=0.25)
    dynamic = DynamicSelection.local(policy, chosen, num_epochs=8, seed=3)
    session, trained = dynamic.session(), []
    data = torch.utils.data.TensorDataset(torch.arange(200.0))
    for _ in session.epochs():
        seen = []
        for batch in session.loader(data, batch_size=16):
            real = batch.ids >= 0
            seen += batch.ids[real].tolist()
            session.loss(batch, batch.data[0])
        trained.append(sorted(seen))
        session.report({})
    assert [len(ids) for ids in trained] == [40] * 6 + [100] * 2
    assert sum(map(len, trained)) == pytest.approx(policy.cost(100, 8) * 100 * 8, abs=1e-9)

    rows = table.to_pandas().set_index("sample_id").loc[chosen.ids].reset_index()
    alone = RepDiv(pa.Table.from_pandas(rows, preserve_index=False), ratio=0.4, tail=0.25).for_ids(chosen.ids)
    other, used = DynamicSelection.local(alone_of(alone), 100, num_epochs=8, seed=3), np.zeros(200, int)
    keeper = other._keeper
    keeper.restore("a")
    for epoch, ids in enumerate(trained):
        assert chosen.ids[keeper.plan("a", epoch).slots].tolist() == ids
        keeper.commit("a", epoch)
        used[ids] += 1
    assert used[1::2].sum() == 0 and used[::2].min() >= 2


def alone_of(policy: RepDiv) -> RepDiv:
    """The same scores, whose ids are the slots."""
    found = policy.scores
    table = {"sample_id": np.arange(len(found)), "rep": found.rep, "div": found.div, "label": found.classes}
    return RepDiv(pa.table(table), ratio=policy.ratio, tail=policy.tail)


def test_shards_plan_as_one_place_does():
    n, plans = 200_000, []
    policy = RepDiv(scores(np.arange(n)), ratio=0.3)
    for shards in (1, 2, 4):
        keeper = DynamicSelection.local(policy, n, num_epochs=6, seed=1, shards=shards)._keeper
        keeper.restore("a")
        slots = []
        for epoch in range(6):
            slots.append(keeper.plan("a", epoch).slots)
            digest = keeper.commit("a", epoch)["digest"]
        plans.append((np.concatenate(slots).tobytes(), digest))
    assert plans[0] == plans[1] == plans[2]


def test_scores_that_do_not_fit_the_run_are_refused_at_once():
    policy = RepDiv(scores(np.arange(50), classes=40), ratio=0.5)
    with pytest.raises(
        DataError, match=r"10 of 60 samples have no score \(sample_id 50, 51, 52 and 7 more\)"
    ):
        DynamicSelection(policy, 60, num_epochs=3)
    with pytest.raises(ConfigError, match="at least one sample for each of the 30 classes"):
        DynamicSelection(policy, 50, num_epochs=3)
    chosen = Selection.of(np.array([3, 99]))
    with pytest.raises(DataError, match=r"1 of 2 samples have no score \(sample_id 99\)"):
        DynamicSelection(policy, chosen, num_epochs=3)
