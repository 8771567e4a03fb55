"""The state of every sample between epochs: its last loss and how often it was planned.

A state is immutable. :func:`observe` returns a new state, and the arrays of a :class:`SampleState` are
read-only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysel.core.numbers import whole
from raysel.errors import DataError, StateError, first, shown

FORMAT = "sample-state/2"
CHUNK = 65_536  # slots that are summed, digested and kept together
_FORMAT, _SAMPLES, _DIGEST = b"raysel.format", b"raysel.samples", b"raysel.digest"
_SCHEMA = pa.schema(
    [pa.field("loss", pa.float32(), nullable=False), pa.field("selected", pa.int32(), nullable=False)]
)

Array = npt.NDArray[Any]


def frozen(array: Array) -> Array:
    """Return a read-only view; the array itself does not change."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class SampleState:
    """The state of n samples, indexed by slot: 8 bytes per sample.

    Parameters
    ----------
    loss : array of float32, shape (n,)
        The last finite loss of each sample, NaN if there is none yet. The array becomes read-only.
    selected : array of int32, shape (n,)
        How often each sample was in a plan. The array becomes read-only.

    Raises
    ------
    StateError
        If the arrays have other types or differ in length.

    Examples
    --------
    >>> state = raysel.dynamic.SampleState.empty(3)
    >>> state.loss.tolist(), state.selected.tolist()
    ([nan, nan, nan], [0, 0, 0])
    """

    loss: npt.NDArray[np.float32]
    selected: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in (("loss", np.float32), ("selected", np.int32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                of = f" of {array.dtype}" if isinstance(array, np.ndarray) else ""
                raise StateError(
                    f"The {name} of a SampleState must be a one-dimensional {np.dtype(dtype)} array, not {shown(array)}{of}."
                )
            object.__setattr__(self, name, frozen(array))
        if len(self.loss) != len(self.selected):
            raise StateError(
                f"A SampleState must have one loss and one count per sample; it has {len(self.loss)} losses "
                f"but {len(self.selected)} counts."
            )

    def __len__(self) -> int:
        return len(self.loss)

    @staticmethod
    def empty(n: int) -> SampleState:
        """Return the state before the first epoch: n samples, none seen, none selected.

        Parameters
        ----------
        n : int
            Number of samples.

        Returns
        -------
        SampleState
            The state.
        """
        n = whole("The number of samples", n, 0)
        return SampleState(np.full(n, np.nan, np.float32), np.zeros(n, np.int32))

    def cut(self, start: int, stop: int) -> SampleState:
        """Return the state of the slots start..stop, as views."""
        return SampleState(self.loss[start:stop], self.selected[start:stop])

    def chunk_digests(self) -> list[bytes]:
        """Return one digest (BLAKE2b, 128 bits) per chunk of 65,536 samples.

        Shards that begin at multiples of 65,536 have the digests of the complete state.
        """
        digests = []
        for begin in range(0, len(self), CHUNK):
            digest = hashlib.blake2b(digest_size=16)
            digest.update(np.ascontiguousarray(self.loss[begin : begin + CHUNK]).data)
            digest.update(np.ascontiguousarray(self.selected[begin : begin + CHUNK]).data)
            digests.append(digest.digest())
        return digests

    def digest(self) -> str:
        """Return 32 hexadecimal digits that change if any loss or count does."""
        return digest_of(len(self), self.chunk_digests())

    def to_arrow(self) -> pa.Table:
        """Return the columns ``loss`` and ``selected``; the metadata has the format, n and the digest."""
        metadata = {_FORMAT: FORMAT, _SAMPLES: str(len(self)), _DIGEST: self.digest()}
        arrays = [pa.array(self.loss), pa.array(self.selected)]  # views: NaN stays NaN, not null
        return pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata(metadata))

    @staticmethod
    def from_arrow(table: pa.Table) -> SampleState:
        """Read the state that :meth:`to_arrow` returned.

        Parameters
        ----------
        table : pyarrow.Table
            The table, with its metadata.

        Returns
        -------
        SampleState
            The state.

        Raises
        ------
        StateError
            If the table is damaged or is not a state.
        """
        if not isinstance(table, pa.Table):
            raise StateError(
                f"SampleState.from_arrow needs an Arrow table with a selection state, got a {type(table).__name__}."
            )
        metadata = table.schema.metadata or {}
        found = metadata.get(_FORMAT, b"").decode(errors="replace")
        if found != FORMAT:
            raise StateError(
                f"This table is not a selection state of raysel: its format is {repr(found) if found else 'not given'}, but {FORMAT!r} "
                "is expected; give a table that SampleState.to_arrow returned."
            )
        if not table.schema.equals(_SCHEMA):
            columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
            raise StateError(
                f"A selection state must have the columns loss float and selected int32; this table has {columns}."
            )
        promised = metadata.get(_SAMPLES, b"").decode(errors="replace")
        if promised != str(table.num_rows):
            raise StateError(
                f"The selection state is damaged: it has {table.num_rows} samples, but its metadata records "
                f"{promised or 'no number of samples'}; resume from an earlier checkpoint."
            )
        if any(column.null_count for column in table.columns):
            raise StateError(
                "The selection state is damaged, because it contains nulls; resume from an earlier checkpoint."
            )
        state = SampleState(table.column("loss").to_numpy(), table.column("selected").to_numpy())
        if metadata.get(_DIGEST, b"").decode(errors="replace") != state.digest():
            raise StateError(
                "The selection state is damaged, because its content does not match its digest; resume from an earlier checkpoint."
            )
        return state


def digest_of(n: int, chunk_digests: list[bytes]) -> str:
    """Return the digest of a state of n samples, from the digests of its chunks in order."""
    digest = hashlib.blake2b(f"{FORMAT} {n}".encode(), digest_size=16)
    digest.update(b"".join(chunk_digests))
    return digest.hexdigest()


def pairs(
    slots: Array, losses: Array, n: int, start: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return recorded losses as int64 slots counted from ``start``, and float32 losses.

    Raises
    ------
    DataError
        With what cannot be used. Slots must have an integer type, because an index that was a float has lost
        digits.
    """
    slots, losses = np.asarray(slots), np.asarray(losses)
    if slots.size == 0 and slots.ndim == 1 and losses.shape == slots.shape:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if slots.ndim != 1 or slots.shape != losses.shape:
        raise DataError(
            f"slots and losses must be vectors of the same length, with one loss per slot, but their shapes are {slots.shape} and "
            f"{losses.shape}. A slot is the position of a sample."
        )
    if slots.dtype.kind not in "iu":
        raise DataError(f"slots must be of an integer type, got {slots.dtype}.")
    if losses.dtype.kind != "f":
        raise DataError(f"losses must be of a floating-point type of NumPy, got {losses.dtype}.")
    if int(slots.min()) < start or int(slots.max()) >= start + n:
        wrong = slots[(slots < start) | (slots >= start + n)]
        hint = " Remove padding (-1) before losses are recorded." if (wrong == -1).any() else ""
        raise DataError(
            f"These slots (positions of samples) are outside {start}..{start + n - 1}: "
            f"{first(wrong.tolist())}.{hint}"
        )
    with np.errstate(
        over="ignore"
    ):  # a float64 loss beyond float32's range becomes inf: not finite either way
        slots = slots.astype(np.int64, copy=False)
        return slots - start if start else slots, losses.astype(np.float32, copy=False)


def observe(
    state: SampleState, planned: npt.NDArray[np.int64], slots: Array, losses: Array, ema: float = 0.0
) -> SampleState:
    """Return the state after an epoch: what the ``update`` of most policies does.

    Parameters
    ----------
    state : SampleState
        The state before the epoch.
    planned : array of int64
        The slots of the epoch's plan, each once; their ``selected`` grows by one.
    slots : array of int, shape (k,)
        Slots of the recorded losses. If a slot occurs twice, the last loss is kept.
    losses : array of float, shape (k,)
        The losses. One that is not finite is ignored, so that the sample keeps its old loss.
    ema : float
        Weight of the old loss, for samples that have one.

    Returns
    -------
    SampleState
        The new state.

    Raises
    ------
    DataError
        For slots outside the state, and if there is not one loss per slot.
    """
    slots, losses = pairs(slots, losses, len(state))
    if len(planned) and (planned[0] < 0 or planned[-1] >= len(state)):
        raise DataError(
            f"The slots of the plan run from {planned[0]} to {planned[-1]}, but they must be within 0..{len(state) - 1}, because a slot "
            "is the position of a sample."
        )
    finite = np.isfinite(losses)
    if not finite.all():
        slots, losses = slots[finite], losses[finite]
    if ema:
        old = state.loss[slots].astype(np.float64)
        with np.errstate(over="ignore"):
            mixed = (ema * old + (1.0 - ema) * losses.astype(np.float64)).astype(np.float32)
        losses = np.where(np.isfinite(old), mixed, losses)
    loss, selected = state.loss.copy(), state.selected.copy()
    loss[slots] = losses
    selected[planned] += 1
    return SampleState(loss, selected)
