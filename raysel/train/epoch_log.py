"""What every epoch trained: a Parquet file per epoch with the samples of its plan, their losses and their weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.data.row_index import ID
from raysel.errors import RunError, reason_of

if TYPE_CHECKING:
    from raysel.train.epoch import Epoch

EPOCHS = "epochs"  # name of the folder in the folder of a training

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class EpochLog:
    """Writes one file per epoch into a folder; rank 0 calls it. A repeated epoch replaces its file."""

    folder: Folder

    def write(self, epoch: Epoch, slots: np.ndarray, losses: np.ndarray) -> None:
        """Write an epoch whose losses are complete.

        A loss that was not finite is inf. NaN stands for a planned sample without a loss, because the epoch ended early
        or no element of the sample counts.
        """
        found = np.full(len(epoch.plan), np.nan, np.float32)
        found[np.searchsorted(epoch.plan.slots, slots)] = losses
        table = pa.table({ID: epoch.ids, "loss": found, "weight": epoch.weights})
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=1 << 18,  # of which a search for one sample reads one
            use_dictionary=["weight"],
            column_encoding={ID: "DELTA_BINARY_PACKED", "loss": "BYTE_STREAM_SPLIT"},
        )
        storage.make_folder(self.folder)
        storage.write_bytes(_file(self.folder, epoch.number), sink.getvalue())


def mean_losses(folder: Folder, epochs: int) -> pa.Table:
    """Return the mean loss of every trained sample, of its last finite losses after every epoch since its first.

    After many epochs a network has learned wrong labels too, and only the earlier losses show them.

    Parameters
    ----------
    folder : path or URI
        The folder of an :class:`EpochLog`.
    epochs : int
        Number of epochs.

    Returns
    -------
    pyarrow.Table
        ``sample_id`` (ascending) and ``loss``; NaN for a sample that never had a finite loss.
    """
    ids = np.empty(0, np.int64)
    for number in range(epochs):
        ids = np.union1d(ids, _read(folder, number, [ID])[ID].to_numpy())
    last = np.full(len(ids), np.nan, np.float32)
    total, count = np.zeros(len(ids)), np.zeros(len(ids), np.int32)
    for number in range(epochs):
        table = _read(folder, number, [ID, "loss"])
        losses = table["loss"].to_numpy()
        known = np.isfinite(losses)
        last[np.searchsorted(ids, table[ID].to_numpy()[known])] = losses[known]
        seen = np.isfinite(last)
        total[seen] += last[seen]
        count += seen
    mean = np.full(len(ids), np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return pa.table({ID: ids, "loss": mean})


def sample_epochs(folder: Folder, epochs: int, sample: int) -> list[tuple[int, float, float]]:
    """Return (epoch, loss, weight) of every epoch that planned a sample; see :meth:`EpochLog.write` for the losses."""
    found: list[tuple[int, float, float]] = []
    if not -(2**63) <= sample < 2**63:
        return found
    for number in range(epochs):
        table = _read(folder, number, None, sample)
        found += [(number, row["loss"], row["weight"]) for row in table.to_pylist()]
    return found


def _read(folder: Folder, number: int, columns: list[str] | None, sample: int | None = None) -> pa.Table:
    path = _file(folder, number)
    try:
        wanted = None if sample is None else [(ID, "=", sample)]
        return pq.read_table(pa.BufferReader(storage.read_bytes(path)), columns=columns, filters=wanted)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(
            f"{path} cannot be read ({reason_of(error)}), so it is not known which samples epoch {number} trained; "
            f"remove the folder {path.parent.parent}, and run again."
        ) from error


def _file(folder: Folder, number: int) -> storage.Place:
    return storage.output(folder) / f"epoch-{number:05}.parquet"
