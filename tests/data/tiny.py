"""Networks for tests: no file, random weights, always the same."""

from __future__ import annotations

import torch
from torch import nn


def net():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=1))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def averages():
    return nn.AvgPool2d(2)


def not_a_network():
    return 3
