"""The rows that a rank trains on in one step, with the id and the weight of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Batch:
    """The rows that one rank trains on in one step.

    Attributes
    ----------
    data : object
        What the collate function returned for the samples.
    ids : torch.Tensor of int64, shape (B,)
        Ids of the samples. The last batch of an epoch is shorter. A rank for which fewer than two rows remain
        has two all the same, of which the last or both are padding, id -1 (one row for a batch size of 1): all
        ranks take equally many steps, and batch statistics need more than one row.
    weights : torch.Tensor of float32, shape (B,)
        Weight of the plan times weight of the selection; 0 for padding.
    slots : array of int64, shape (B,)
        Positions of the samples in the selection state. -1 for padding, which comes last.
    share : float
        Number of rows that count in this step over all ranks, divided by the number of its batches (one per
        rank, or ``accumulate``). A weighted sum of losses is divided by it, so that the mean over batches is
        the mean over rows.
    """

    data: Any
    ids: torch.Tensor
    weights: torch.Tensor
    slots: np.ndarray
    share: float

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device.

        Parameters
        ----------
        device : torch.device or str
            The device.

        Returns
        -------
        Batch
            ``data`` may be tensors, objects with a method ``to``, and nested tuples, lists, mappings and
            dataclasses of these; anything else is left as it is. ``ids`` stay on the CPU.
        """
        weights = self.weights.to(device, non_blocking=True)
        return Batch(moved(self.data, device), self.ids, weights, self.slots, self.share)


def moved(data: Any, device: torch.device | str) -> Any:
    """Return tensors, and what is nested in tuples, lists, mappings and dataclasses, on a device; see :meth:`Batch.to`."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if callable(getattr(data, "to", None)) and not isinstance(data, type):
        return data.to(device)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(moved(value, device) for value in data))
    if isinstance(data, (list, tuple)):
        return type(data)(moved(value, device) for value in data)
    if isinstance(data, MutableMapping):
        copied = copy.copy(data)  # keeps its class, and whatever else it holds
        for key, value in data.items():
            copied[key] = moved(value, device)
        return copied
    if isinstance(data, Mapping):
        return {key: moved(value, device) for key, value in data.items()}
    if is_dataclass(data) and not isinstance(data, type):
        other = copy.copy(data)
        for field in fields(data):
            object.__setattr__(other, field.name, moved(getattr(data, field.name), device))
        return other
    return data
