"""The model that the workflow trains. Put your own next to it and name it under ``train.model``."""

from __future__ import annotations

import math

import torch
from torch import nn


class Pixels(nn.Module):
    """Scale uint8 images to [0, 1]; leave other numbers as they are."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the scaled inputs."""
        return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()


def mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a network with one hidden layer of 128 and one logit per class."""
    return nn.Sequential(
        Pixels(),
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
