"""A linear model with the same initial weights, as a torch module and for Lightning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def plain(shape, outputs):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), outputs))


def module(shape, outputs):
    import lightning.pytorch as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = plain(shape, outputs)

        def forward(self, inputs):
            return self.layer(inputs)

        def training_step(self, batch, index):
            inputs, labels = batch.data
            return self.selecting.loss(batch, F.cross_entropy(self(inputs), labels, reduction="none"))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()
