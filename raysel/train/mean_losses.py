"""The mean loss of every sample over the epochs, to find wrong labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

if TYPE_CHECKING:
    from raysel.train.session import Session


class MeanLosses:
    """The mean of the last losses of each sample after every epoch, which rank 0 has; part of every checkpoint of its session.

    After many epochs a network has learned wrong labels too, and only the earlier losses show them.
    """

    def __init__(self) -> None:
        self.epochs = 0
        self._total, self._count = np.empty(0), np.empty(0, np.int32)

    def add(self, session: Session) -> None:
        """Add the last losses, once after every finished epoch; samples without a loss are left out."""
        if session.rank != 0 or session.epoch <= self.epochs:
            return
        self.epochs = session.epoch
        values = session.losses()["loss"].to_numpy()
        if not len(self._total):
            self._total, self._count = np.zeros(len(values)), np.zeros(len(values), np.int32)
        known = np.isfinite(values)
        self._total[known] += values[known]
        self._count += known

    def table(self, session: Session) -> pa.Table:
        """Return ``sample_id`` and ``loss``, the mean; NaN for a sample without a loss."""
        last = session.losses()
        mean = np.full(len(last), np.nan, np.float32)
        if self.epochs:
            np.divide(self._total, self._count, out=mean, where=self._count > 0, casting="same_kind")
        return last.set_column(1, "loss", pa.array(mean))

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "epochs": self.epochs,
            "total": torch.from_numpy(self._total),
            "count": torch.from_numpy(self._count),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything over."""
        self.epochs = state["epochs"]
        self._total, self._count = state["total"].numpy().copy(), state["count"].numpy().copy()
