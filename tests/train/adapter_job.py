"""A training script of each framework, run by test_adapters.py in one process or under torchrun.

    python adapter_job.py FRAMEWORK DIRECTORY [--accumulate G] [--batch-size B] [--stop EPOCH STEP] [--resume] ...

Losses are a function of sample and epoch, and the model is one number whose gradient is too, so that the state,
the plans and the weight of the trained model can be worked out by hand. Rank 0 writes DIRECTORY/result.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from raysel import DynamicSelection, InfoBatch

N, EPOCHS, SEED, RATE = 197, 5, 3, 0.05
NOT_FINITE = {7: 0, 150: 2}  # sample -> the first epoch in which its loss is not finite


def loss_of(ids: torch.Tensor, epoch: int) -> torch.Tensor:
    losses = ((ids * 2654435761) % 1000).float() / 1000 + 0.01 * epoch
    for sample, when in NOT_FINITE.items():
        if epoch >= when:
            losses[ids == sample] = math.nan
    return losses


def slope_of(ids: torch.Tensor) -> torch.Tensor:
    """What the loss of a sample adds to the gradient of the model's one number; 0 where the loss may be NaN."""
    slopes = ((ids * 40503) % 97).float() / 97 - 0.3
    for sample in NOT_FINITE:
        slopes[ids == sample] = 0.0
    return slopes


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"x": i, "labels": i}


class OneNumber(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"logits": self.weight.expand(len(x))}


def losses_of(logits: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
    return loss_of(ids, epoch) + (logits - logits.detach()) * slope_of(ids)


class Stopped(Exception):
    pass


class Stop:
    """Raises in the middle of an epoch, as a killed process ends there."""

    def __init__(self, at: list[int] | None) -> None:
        self._at, self._epoch, self._calls = at, -1, 0

    def __call__(self, epoch: int) -> None:
        self._calls = self._calls + 1 if epoch == self._epoch else 0
        self._epoch = epoch
        if self._at == [epoch, self._calls]:
            raise Stopped


def selection(options: argparse.Namespace, **more) -> DynamicSelection:
    return DynamicSelection.local(
        InfoBatch(0.6, 0.9), N, num_epochs=EPOCHS, seed=SEED, max_steps=options.max_steps, **more
    )


def plain(options: argparse.Namespace) -> tuple[list, torch.nn.Module]:
    """No framework: DistributedDataParallel under torchrun."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    model = OneNumber()
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session = selection(options, checkpoints=options.directory / "checkpoints").session()
    session.restore({"model": wrapped, "optimizer": optimizer})
    data, stop, steps = Numbers(), Stop(options.stop), session.total_steps
    for epoch in session.epochs():
        loader = session.loader(data, batch_size=options.batch_size, accumulate=options.accumulate)
        for index, batch in enumerate(loader, start=1):
            stop(epoch)
            losses = losses_of(wrapped(batch.data["x"])["logits"], batch.data["labels"], epoch)
            (session.loss(batch, losses) / options.accumulate).backward()
            if index % options.accumulate == 0:
                within = (steps - session.total_steps) / session.steps_per_epoch
                optimizer.param_groups[0]["lr"] = RATE * (1 - (epoch + within) / EPOCHS)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
        session.report(state={"model": wrapped, "optimizer": optimizer})
    return session.history, model


def huggingface(options: argparse.Namespace) -> tuple[list, torch.nn.Module]:
    from transformers import TrainingArguments

    from raysel.train.adapters.huggingface import SelectingTrainer

    stop = Stop(options.stop)

    def compute_loss(outputs, labels):
        epoch = trainer.driven.session.epoch
        stop(epoch)
        return losses_of(outputs["logits"], labels, epoch)

    model = OneNumber()
    trainer = SelectingTrainer(
        model,
        TrainingArguments(
            str(options.directory / "checkpoints"),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            save_strategy="epoch",
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="linear",
            max_grad_norm=0.0,
            use_cpu=True,
            dataloader_num_workers=options.workers,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Numbers(),
        compute_loss_func=compute_loss,
        dynamic=selection(options),
    )
    trainer.train(resume_from_checkpoint=True if options.resume else None)
    return trainer.driven.session.history, model


def accelerate(options: argparse.Namespace) -> tuple[list, torch.nn.Module]:
    """Without the Trainer, and with Accelerate's own look-ahead around the loader."""
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard

    class Ahead(torch.utils.data.IterableDataset):
        def __init__(self, loader) -> None:
            self._loader = loader

        def __iter__(self):
            return iter(self._loader)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.accumulate)
    model = OneNumber()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    session = selection(options, checkpoints=options.directory / "checkpoints").session()
    session.restore({"model": model, "optimizer": optimizer})
    data, stop, steps = Numbers(), Stop(options.stop), session.total_steps
    for epoch in session.epochs():
        loader = session.loader(data, batch_size=options.batch_size, accumulate=options.accumulate)
        for batch in DataLoaderShard(Ahead(loader), device=accelerator.device, batch_size=None):
            with accelerator.accumulate(wrapped):
                stop(epoch)
                progress = (epoch + (steps - session.total_steps) / session.steps_per_epoch) / EPOCHS
                if options.max_steps:
                    progress = steps / options.max_steps
                optimizer.param_groups[0]["lr"] = RATE * (1 - progress)
                losses = losses_of(wrapped(batch.data["x"])["logits"], batch.data["labels"], epoch)
                accelerator.backward(session.loss(batch, losses))
                optimizer.step()
                optimizer.zero_grad()
                steps += accelerator.sync_gradients
        session.report(state={"model": model, "optimizer": optimizer})
    return session.history, model


def lightning(options: argparse.Namespace) -> tuple[list, torch.nn.Module]:
    import lightning.pytorch as L

    from raysel.train.adapters.lightning import Selecting

    place, stop = options.directory / "checkpoints", Stop(options.stop)
    selecting = Selecting(
        selection(options), Numbers(), batch_size=options.batch_size, num_workers=options.workers
    )

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = OneNumber()

        def training_step(self, batch, index):
            epoch = selecting.driven.session.epoch
            stop(epoch)
            return selecting.loss(
                batch, losses_of(self.model(batch.data["x"])["logits"], batch.data["labels"], epoch)
            )

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
            rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - selecting.progress(step))
            return [optimizer], [{"scheduler": rate, "interval": "step"}]

    module = Module()
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=options.accumulate,
        callbacks=[selecting, L.callbacks.ModelCheckpoint(place, save_last=True)],
        accelerator="cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        strategy="ddp" if "WORLD_SIZE" in os.environ else "auto",
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, selecting.loader, ckpt_path=place / "last.ckpt" if options.resume else None)
    return selecting.driven.session.history, module.model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", choices=["plain", "huggingface", "accelerate", "lightning"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--stop", type=int, nargs=2)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        history, model = globals()[options.framework](options)
    except Stopped:
        sys.exit(3)
    weights = [model.weight.item()]
    if dist.is_initialized():
        weights = [None] * dist.get_world_size()
        dist.all_gather_object(weights, model.weight.item())
    if not dist.is_initialized() or dist.get_rank() == 0:
        (options.directory / "result.json").write_text(json.dumps({"history": history, "weights": weights}))
    if dist.is_initialized():
        from common import leave  # next to this script

        leave()


if __name__ == "__main__":
    main()
