"""The map-style loader with torch's own options: worker processes, pinned memory, uneven last batches."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import warnings

import numpy as np
import pytest
import torch

from raysel import DynamicSelection, InfoBatch, RoundRobin
from raysel.errors import DataError, StateError


class Whereabouts(torch.utils.data.Dataset):
    """Sample i says who it is, who loaded it, and draws at random as augmentations do."""

    def __len__(self) -> int:
        return 70

    def __getitem__(self, i: int) -> dict[str, float]:
        return {"value": 10.0 * i, "process": os.getpid(), "noise": torch.rand(()).item()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "prefetch_factor": 5},
        {"num_workers": 2, "persistent_workers": True, "pin_memory": True},
    ],
    ids=["in the process", "look-ahead", "persistent and pinned"],
)
def test_ids_stay_with_their_samples_whoever_loads_them(options):
    dynamic = DynamicSelection.local(InfoBatch(), 70, num_epochs=3, seed=1)
    session, loaded_by, sizes = dynamic.session(), [], []
    data = Whereabouts()
    for _ in session.epochs():
        processes, came = set(), []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'pin_memory'")  # there is no accelerator to pin for
            for batch in session.loader(data, batch_size=16, **options):
                assert torch.equal(batch.data["value"], batch.ids * 10.0)
                assert np.array_equal(batch.slots, batch.ids.numpy()) and batch.share == len(batch.ids)
                processes |= set(batch.data["process"].tolist())
                came += batch.ids.tolist()
                session.loss(batch, batch.data["value"].float())
                sizes.append(len(batch.ids))
        assert sorted(came) == session.plan.slots.tolist()
        session.report()
        loaded_by.append(processes)
    assert sizes[:5] == [16, 16, 16, 16, 6]  # the last as short as it is, no row for filling
    here = {os.getpid()}
    if not options:
        assert loaded_by == [here] * 3
    else:
        assert all(len(processes) == 2 and not processes & here for processes in loaded_by)
        assert (loaded_by[0] == loaded_by[1]) == options.get("persistent_workers", False)


@pytest.mark.parametrize("stop", [None, 1], ids=["to the end", "broken off"])
@pytest.mark.parametrize("same", [True, False], ids=["one dataset", "a dataset an epoch"])
def test_worker_processes_end_with_the_run_and_with_their_dataset(stop, same):
    """Without waiting for the collector of cycles, which frees a DataLoader so that torch waits 5 s for each process."""

    def children():
        return len(multiprocessing.active_children())

    def run():
        session = DynamicSelection.local(RoundRobin(0.5), 70, num_epochs=3).session()
        data = Whereabouts()
        for epoch in session.epochs():
            data = data if same else Whereabouts()
            for batch in session.loader(data, batch_size=16, num_workers=2, persistent_workers=True):
                session.loss(batch, batch.data["value"].float())
                if epoch == stop:
                    return
            assert children() == before + 2
            session.report()
        assert children() == before

    before = children()
    gc.disable()
    try:
        run()
        assert children() == before
    finally:
        gc.enable()


def test_what_workers_draw_is_seeded_by_torch_and_resumed():
    def noise():
        torch.manual_seed(3)
        session, drawn = DynamicSelection.local(RoundRobin(0.5), 70, num_epochs=2).session(), []
        for _ in session.epochs():
            for batch in session.loader(Whereabouts(), batch_size=16, num_workers=2):
                session.loss(batch, batch.data["value"].float())
                drawn += batch.data["noise"].tolist()
            session.report()
        return drawn

    assert noise() == noise()


def test_an_error_in_a_worker_process_is_raised_in_the_loop():
    class Broken(Whereabouts):
        def __getitem__(self, i):
            if i == 40:
                raise DataError("sample 40 cannot be read")
            return super().__getitem__(i)

    session = DynamicSelection.local(InfoBatch(), 70, num_epochs=1).session()
    next(session.epochs())
    with pytest.raises(DataError, match="sample 40 cannot be read"):
        for _ in session.loader(Broken(), batch_size=16, num_workers=1):
            pass


def test_batches_that_come_in_another_order_are_said():
    class Late(Whereabouts):
        def __getitem__(self, i):
            time.sleep(0.5 if i < 8 else 0.0)
            return super().__getitem__(i)

    session = DynamicSelection.local(InfoBatch(), 70, num_epochs=1).session()
    next(session.epochs())
    loader = session.loader(Late(), batch_size=8, shuffle=False, num_workers=2, in_order=False)
    with pytest.raises(
        StateError, match="another order than requested; do not set the option in_order of the DataLoader"
    ):
        next(iter(loader))
