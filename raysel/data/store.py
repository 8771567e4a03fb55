"""Columns as memory-mapped arrays addressed by ``sample_id``, from which a workflow's training reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.data import Dataset

from raysel.cluster.blocks import arrow_blocks, map_blocks, pick
from raysel.core.storage import read_json, write_json
from raysel.data.listing import warn
from raysel.data.row_index import ID, check_ids
from raysel.data.vectors import not_finite, to_numpy
from raysel.errors import DataError, first, reason_of

if TYPE_CHECKING:
    import torch

_META = "arrays.json"


def write_arrays(
    dataset: Dataset,
    directory: str | os.PathLike[str],
    inputs: str,
    label: str,
    classes: Sequence[Any] | None = None,
) -> list[Any]:
    """Write ``inputs`` and the labels of every row, at the row of its ``sample_id``; return the classes.

    One block after another passes through the driver. Rows with NaN or infinite numbers are written, since a selection may
    leave them out, and a warning names them.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Ids 0..N-1, the column ``inputs`` (numbers or tensors of one shape) and the column ``label`` of
        classes.
    directory : path
        Every worker must be able to reach it.
    inputs, label : str
        Names of the columns.
    classes : sequence, optional
        The labels in the order of their codes 0..C-1. Default: those found, sorted.

    Returns
    -------
    list
        The classes.

    Raises
    ------
    DataError
        For ids that leave gaps, a missing label, and a label that is not among ``classes``.
    """
    blocks = arrow_blocks(pick(dataset, [ID, inputs, label], "training data"))
    parts = map_blocks(_block_stats, blocks, inputs, label)
    ids = np.concatenate([part[0] for part in parts])
    check_ids(ids, "the training data")
    if int(ids.max()) != len(ids) - 1:
        raise DataError(
            f"The training data has {len(ids):,} rows but ids up to {int(ids.max()):,}. Rows are addressed by "
            "their id, so the ids must be 0..N-1."
        )
    shapes = {part[1:3] for part in parts if len(part[0])}
    if len(shapes) > 1:
        raise DataError(
            f"Column '{inputs}' holds rows of different shapes or types ({first(sorted(shapes))}); training "
            "needs the same shape and type in every row."
        )
    shape, dtype = next(iter(shapes))
    found = sorted({name for part in parts for name in part[3]}, key=lambda v: (str(type(v)), v))
    known = found if classes is None else list(classes)
    strange = [name for name in found if name not in set(known)]
    if strange:
        raise DataError(
            f"The label {first(strange)} does not occur in the pool, whose classes are {first(known, 10)}; remove its rows, or add the class to the pool."
        )
    bad = np.sort(np.concatenate([part[4] for part in parts]))
    if len(bad):
        warn(
            f"Column '{inputs}' holds NaN or infinite values in {len(bad):,} of {len(ids):,} rows (sample_id {first(bad)}). A "
            "model that trains on such a row usually learns nothing; repair the rows, or drop them."
        )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    rows = np.lib.format.open_memmap(target / "inputs.npy", "w+", np.dtype(dtype), (len(ids), *shape))
    labels = np.lib.format.open_memmap(target / "labels.npy", "w+", np.int64, (len(ids),))
    import ray

    code = {name: number for number, name in enumerate(known)}
    for block, part in zip(blocks, parts, strict=True):
        if len(part[0]):
            table = ray.get(block)
            rows[part[0]] = to_numpy(table[inputs], inputs, part[0])
            labels[part[0]] = [code[name] for name in table[label].to_pylist()]
    rows.flush()
    labels.flush()
    write_json(target / _META, {"rows": len(ids), "classes": known})
    return known


def _block_stats(
    table: Any, inputs: str, label: str
) -> tuple[np.ndarray, tuple[int, ...], str, list[Any], np.ndarray]:
    """Return ids, shape and type of a row, labels, and the ids of rows with NaN or infinite numbers."""
    ids = table[ID].to_numpy()
    if table[label].null_count:
        where = ids[table[label].is_null().to_numpy(zero_copy_only=False)]
        raise DataError(
            f"{len(where):,} rows have no label in column '{label}' (sample_id {first(where)}); label or drop them first."
        )
    values = to_numpy(table[inputs], inputs, ids)
    bad = ids[:0]
    if values.dtype.kind == "f":
        bad = ids[not_finite(values.reshape(len(values), int(np.prod(values.shape[1:]))))]
    return ids, values.shape[1:], str(values.dtype), table[label].unique().to_pylist(), bad


class ArrayDataset:
    """Map-style dataset of :func:`write_arrays`: ``[sample_id]`` is (input tensor, class code)."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            about = read_json(self.directory / _META)
            self.classes: list[Any] = list(about["classes"])
            self.inputs = np.load(self.directory / "inputs.npy", mmap_mode="r", allow_pickle=False)
            self.labels = np.load(self.directory / "labels.npy", allow_pickle=False)
            if not len(self.inputs) == len(self.labels) == about["rows"]:
                raise ValueError("They have different numbers of rows.")
        except Exception as error:  # of damaged files anything
            raise DataError(
                f"The arrays in {self.directory} are damaged ({reason_of(error)}); remove the folder and run the workflow again."
            ) from error

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        import torch

        return torch.from_numpy(np.array(self.inputs[index])), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        import torch  # here, so that the tasks that write the arrays need not load it

        rows = torch.from_numpy(self.inputs[np.asarray(indices)])  # one gather per batch
        return list(zip(rows, self.labels[np.asarray(indices)].tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}  # a worker process maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"])  # type: ignore[misc]
