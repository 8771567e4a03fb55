"""A framework inside Ray Train: the adapters' session talks to the state actor, its ranks are torch.distributed's."""

from __future__ import annotations

import pytest
import torch

import raysel
from tests.train.common import Numbers, loss_of

N, EPOCHS = 203, 4


def train(driven, stop=None):
    while not driven.is_over and driven.session.epoch != stop:
        loader = driven.loader(Numbers(N), batch_size=4, accumulate=32 // driven.session.world // 4)
        for batch in list(loader):  # all fetched ahead
            driven.session.loss(batch, loss_of(batch.data, driven.session.epoch))
        driven.end_epoch()


def loop(config):
    from pathlib import Path

    from raysel.train.adapters.driven import Driven

    place = Path(config["place"])
    driven = Driven(config["dynamic"], None)
    train(driven, stop=2)
    driven.save(place)  # as a framework does with its own checkpoints
    torch.distributed.barrier()
    driven = Driven(config["dynamic"], place)
    train(driven)
    return driven.session.history


@pytest.mark.slow
def test_a_framework_inside_ray_train_uses_the_actor_and_its_own_checkpoints(cluster, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raysel.train.adapters.driven import Driven

    with raysel.DynamicSelection(raysel.InfoBatch(), N, num_epochs=EPOCHS, seed=3) as dynamic:
        history = (
            TorchTrainer(
                loop,
                train_loop_config={"dynamic": dynamic, "place": str(tmp_path / "selection")},
                scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(name="driven", storage_path=str(tmp_path)),
            )
            .fit()
            .return_value
        )
    alone = Driven(raysel.DynamicSelection.local(raysel.InfoBatch(), N, num_epochs=EPOCHS, seed=3), None)
    train(alone)
    keys = ("epoch", "planned", "trained", "steps", "mean_loss", "digest")
    assert [[e[k] for k in keys] for e in history] == [[e[k] for k in keys] for e in alone.session.history]
