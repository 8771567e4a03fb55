"""The interface of a task, and the facts about the rows that it receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch

from raysel.data.store import Column


@dataclass(frozen=True)
class Facts:
    """What is known about the rows when a model is made.

    Attributes
    ----------
    columns : mapping of str to Column
        What each column holds: ``kind``, ``dtype`` and ``shape`` of a row.
    classes : mapping of str to sequence
        The classes of the task's column of classes, in the order of their codes.
    factory : callable or None
        The function that ``train.model`` names.
    """

    columns: Mapping[str, Column]
    classes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    factory: Callable[..., Any] | None = None

    def shape(self, names: str | Sequence[str]) -> Any:
        """Return the shape of a row of one column; of several a dict of shapes by name."""
        if isinstance(names, str):
            return self.columns[names].shape
        return {name: self.columns[name].shape for name in names}


class Task(Protocol):
    """What a workflow trains.

    A task is a class whose fields are the keys that a workflow gives under ``train.task``; a frozen dataclass has them
    checked. Fields called ``input`` and ``label`` are filled from ``train.input`` and ``pool.label``.

    Attributes
    ----------
    metric : str
        The metric that is reported, one of those that :meth:`metrics` returns.
    direction : {"max", "min"}
        Whether larger or smaller values of it are better.
    classes : str or None
        Name of the field that names a column of classes. Its values become the codes 0..C-1, in the order in which the
        sorted classes of the pool come.
    ragged : bool
        Whether columns may hold lists of numbers that differ in length. Optional; by default they must not.
    prepare : callable
        Method that receives and returns columns as :meth:`collate` receives them, with every row. Optional: with
        ``train.data: stream``, it is called on the CPUs of the cluster, with the planned rows, before :meth:`collate`.
    """

    metric: ClassVar[str]
    direction: ClassVar[Literal["max", "min"]]
    classes: ClassVar[str | None]

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the pool that are read, besides ``sample_id``."""

    def model(self, facts: Facts) -> torch.nn.Module:
        """Return the model, with initial weights from torch's global generator, which is seeded before."""

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return the batch that the other methods get, on the CPU.

        Parameters
        ----------
        rows : mapping of str to numpy.ndarray
            The columns of the batch, and ``sample_id``: (B, ...) of numbers; (B,) of objects (str, bytes, arrays) for
            other columns.
        generator : torch.Generator, optional
            For random augmentation: seeded by the run's seed, the epoch and the batch's first id. None where rows are
            scored and not trained on.

        Returns
        -------
        object
            Tensors, and tuples, lists, mappings and dataclasses of them, which are moved to the device.
        """

    def losses(self, model: torch.nn.Module, batch: Any) -> Any:
        """Return a loss per sample, (B,), (B, T) or (B, H, W); or such losses and a mask of the elements that count."""

    def sums(self, model: torch.nn.Module, batch: Any) -> Mapping[str, torch.Tensor]:
        """Return what metrics are computed from, as sums over the batch's rows; each a tensor of any shape."""

    def metrics(self, sums: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """Return the metrics from the sums over all rows, float64 on the CPU."""
