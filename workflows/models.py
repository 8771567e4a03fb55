"""Small image classifiers for the workflows, each made by ``factory(input_shape, classes)``.

``input_shape`` is (channels, height, width) of one image. Images are uint8 in 0..255, which the model scales to [0, 1], or
floats, which it does not scale. The initial weights come from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Pixels(nn.Module):
    """Scale uint8 images to [0, 1]; convert other dtypes to float32 without scaling."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a network with one hidden layer of 128, for digits and other tiny images of any shape."""
    return nn.Sequential(
        Pixels(),
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def small_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return two convolutions (16 and 32 channels, stride 2) and a hidden layer of 128, for images of about 28 x 28.

    With strides instead of pooling, a step takes about a third of the time on one CPU core.
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
