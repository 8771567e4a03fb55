"""Small networks for the workflows, each made by a function such as ``factory(input_shape, classes)``.

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


class ByteGRU(nn.Module):
    """Recurrent network over the codes of a text; called as ``model(input_ids=..., attention_mask=...)``."""

    def __init__(self, codes: int, outputs: int, width: int = 128, pooled: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(codes, 64)
        self.layer = nn.GRU(64, width, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self.pooled = pooled

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(self.table(input_ids))
        if self.pooled:  # the mean over the codes that are not padding
            counts = attention_mask[..., None].to(states.dtype)
            states = (states * counts).sum(dim=1) / counts.sum(dim=1)
        logits: torch.Tensor = self.head(states)
        return logits


def byte_gru(codes: int, length: int) -> nn.Module:
    """Return a language model over ``codes`` codes, of any length."""
    return ByteGRU(codes, codes)


def text_gru(length: tuple[int, ...], classes: int) -> nn.Module:
    """Return a classifier of texts as bytes (258 codes)."""
    return ByteGRU(258, classes, pooled=True)


def pixelwise(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return four 3 x 3 convolutions of 12 channels, the last two dilated, and one logit per class and pixel."""
    layers: list[nn.Module] = [Pixels()]
    channels = input_shape[0]
    for dilation in (1, 1, 2, 4):
        layers += [
            nn.Conv2d(channels, 12, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm2d(12),
            nn.ReLU(),
        ]
        channels = 12
    return nn.Sequential(*layers, nn.Conv2d(channels, classes, 1))
