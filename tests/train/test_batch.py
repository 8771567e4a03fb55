"""A batch moves to a device whatever its data is made of; ``meta`` stands for a GPU."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch

from raysel.train.batch import Batch


class Encoding(UserDict):
    """Like transformers' BatchEncoding."""

    def to(self, device):
        return Encoding({name: value.to(device) for name, value in self.items()})


class Tagged(UserDict):
    """Without a method ``to``."""

    tag = "kept"


@dataclass(frozen=True)
class Graph:
    nodes: torch.Tensor
    names: list


class Points:
    def __init__(self, place):
        self.place = place

    def to(self, device):
        return Points(self.place.to(device))


Pair = namedtuple("Pair", "left right")
T = torch.ones(2)
PACKED = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (T, lambda moved: [moved]),
        ([T, (T, {"a": T})], lambda moved: [moved[0], moved[1][0], moved[1][1]["a"]]),
        (Pair(T, T), lambda moved: [moved.left, moved.right]),
        (OrderedDict(a=T), lambda moved: [moved["a"]]),
        (defaultdict(list, a=T), lambda moved: [moved["a"]]),
        (Encoding(a=T), lambda moved: [moved["a"]]),
        (Tagged(a=[T]), lambda moved: moved["a"]),
        (MappingProxyType({"a": T}), lambda moved: [moved["a"]]),
        (Graph(T, ["x", T]), lambda moved: [moved.nodes, moved.names[1]]),
        (Points(T), lambda moved: [moved.place]),
        (PACKED, lambda moved: [moved.data]),
        ({"deep": [Encoding(a=T), Points(T)]}, lambda moved: [moved["deep"][0]["a"], moved["deep"][1].place]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_moves_with_the_batch(data, found):
    batch = Batch(data, torch.tensor([3, 5]), torch.ones(2), np.array([3, 5]), 2.0)
    moved = batch.to("meta")
    kind = dict if isinstance(data, MappingProxyType) else type(data)
    assert type(moved.data) is kind and moved.weights.device.type == "meta"
    assert all(tensor.device.type == "meta" for tensor in found(moved.data))
    assert all(tensor.device.type == "cpu" for tensor in found(data))  # the batch itself stays
    assert moved.ids is batch.ids and moved.slots is batch.slots and moved.share == 2.0


@pytest.mark.parametrize(
    "data", ["text", None, 3, np.ones(2), ["a", None], {"a": b"x"}, {1, 2}, torch.nn.Linear, Graph]
)
def test_what_holds_no_tensor_is_left_as_it_is(data):
    moved = Batch(data, torch.tensor([3]), torch.ones(1), np.array([3]), 1.0).to("meta").data
    assert type(moved) is type(data) and str(moved) == str(data)
