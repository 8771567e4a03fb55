"""Several processes train one autoencoder: the gradients of one process with all their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from raysel.errors import ConfigError
from raysel.factors import Autoencoder, fit_autoencoder
from tests.train.common import leave

WORLD = 2
# One batch of all rows a step: the order that they are drawn in has no say. Many units, so that some die and are woken.
WHOLE = {"units": 96, "k": 2, "epochs": 30, "batch_size": 64, "learning_rate": 3e-3, "seed": 1}


def rows(n: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + 0.1 * rng.normal(size=(n, 6)) + 0.3).astype("f4")


def work(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=WORLD)
    fit_autoencoder(rows()[rank::WORLD], **WHOLE, together=True).save(f"{place}/whole-{rank}")
    uneven = np.split(rows(), [41])[rank]
    found = fit_autoencoder(uneven, units=24, k=4, epochs=3, batch_size=8, together=True)
    assert found.training["samples"] == 64
    found.save(f"{place}/uneven-{rank}")
    with pytest.raises(ConfigError, match="'paper' cannot be trained by several processes"):
        fit_autoencoder(uneven, mode="paper", together=True)
    with pytest.raises(ConfigError, match="batch_size = 7 cannot be divided equally among 2 processes"):
        fit_autoencoder(uneven, batch_size=7, together=True)
    leave()


@pytest.mark.slow  # processes of its own
def test_two_processes_train_what_one_does(tmp_path):
    mp.start_processes(work, args=(str(tmp_path),), nprocs=WORLD, start_method="spawn")
    for name in ("whole", "uneven"):
        assert (tmp_path / f"{name}-0").read_bytes() == (tmp_path / f"{name}-1").read_bytes()
    two, one = Autoencoder.load(tmp_path / "whole-0"), fit_autoencoder(rows(), **WHOLE)
    assert 0 < one.report(rows())["dead_units"] < 96
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "mean"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), atol=2e-4)
    moved = fit_autoencoder(rows(), **{**WHOLE, "epochs": 1})
    assert np.abs(one.encoder - moved.encoder).max() > 0.02


def test_without_processes_nothing_can_be_shared():
    with pytest.raises(ConfigError, match=r"torch\.distributed is not initialised"):
        fit_autoencoder(rows(), together=True)
