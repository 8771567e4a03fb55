"""Small image classifiers for the workflows, each made by ``factory(input_shape, classes)``.

``input_shape`` is one image's (channels, height, width). Images come as uint8 in 0..255, which the model scales to
[0, 1] itself, or as floats, which it takes as they are. Weights come from torch's generator as the caller left it:
nothing is seeded here.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Pixels(nn.Module):
    """uint8 images scaled to [0, 1]; any other dtype as float32, unscaled."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer of 128: for digits and other tiny images, of any shape."""
    return nn.Sequential(
        Pixels(),
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def small_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions (16, 32 channels), each halving the image, and a hidden layer of 128: for about 28 x 28.

    Strides instead of pooling take about a third of the time of a step on one CPU core.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        Pixels(),
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * -(-height // 4) * -(-width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
