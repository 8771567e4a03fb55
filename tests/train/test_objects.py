"""A checkpoint made under DDP or FSDP holds whole state dicts, and training goes on from it as if undisturbed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysel.errors import StateError
from raysel.train.objects import load_state_dicts, state_dicts
from tests.train.common import leave

WORLD, KINDS = 2, ("fsdp2", "fsdp1", "ddp")


def build(kind, seed):
    """Model, optimizer and scheduler; parameters of odd sizes, so that shards differ."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    elif kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def train(objects, steps, rank, world):
    """Steps on inputs of their own for each rank, their mean the same for any number of ranks."""
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        mine = inputs[rank * 4 // world : (rank + 1) * 4 // world]
        objects["model"](mine).square().mean().backward()
        objects["optimizer"].step()
        objects["scheduler"].step()
        objects["optimizer"].zero_grad()


def work(rank, place):
    for kind in (
        KINDS
    ):  # fsdp2 first: PyTorch's caches never release its group, whose threads are idle long before the exit
        meet = f"file://{place}/{kind}-meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=WORLD)
        save_and_resume(kind, rank, place)
        if kind == "fsdp2":
            refuse()
        leave(2)


def save_and_resume(kind, rank, place):
    whole = build(kind, seed=0)
    train(whole, range(4), rank, WORLD)
    saved = state_dicts(whole)
    if rank == 0:
        torch.save(saved, f"{place}/{kind}.pt")
    dist.barrier()
    train(whole, range(4, 6), rank, WORLD)
    again = build(kind, seed=9)
    load_state_dicts(again, torch.load(f"{place}/{kind}.pt", weights_only=True))
    train(again, range(4, 6), rank, WORLD)
    one, other = (state_dicts(objects)["model"] for objects in (whole, again))
    if rank == 0:
        assert all(torch.equal(one[name], other[name]) for name in one)
        torch.save(one, f"{place}/{kind}-end.pt")


def refuse():
    sharded = build("fsdp2", seed=9)
    with pytest.raises(StateError, match="its model is not in the state"):
        state_dicts({"optimizer": sharded["optimizer"]})
    with pytest.raises(StateError, match="belongs to a model that was not sharded"):
        plain = build("plain", seed=0)
        load_state_dicts(sharded, {name: value.state_dict() for name, value in plain.items()})


@pytest.mark.slow  # processes of its own
def test_training_goes_on_as_if_undisturbed_also_in_one_plain_process(tmp_path):
    mp.start_processes(work, args=(str(tmp_path),), nprocs=WORLD, start_method="spawn")
    for kind in KINDS:
        saved = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        shapes = {name: tuple(value.shape) for name, value in saved["model"].items()}
        assert shapes == {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (1, 5), "2.bias": (1,)}
        assert all(type(value) is torch.Tensor for value in saved["model"].values())
        plain = build("plain", seed=9)
        load_state_dicts(plain, saved)
        train(plain, range(4, 6), 0, 1)
        for name, value in torch.load(tmp_path / f"{kind}-end.pt", weights_only=True).items():
            torch.testing.assert_close(plain["model"].state_dict()[name], value)
