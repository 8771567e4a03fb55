"""What is remembered of every sample between epochs: its last loss and how often it was planned.

A state is a value. Nothing here changes one: :func:`observe` answers a new state, and the arrays of a
:class:`SampleState` cannot be written to.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysel.errors import ConfigError, DataError, StateError, first

FORMAT = "sample-state/2"
CHUNK = 65_536  # slots that are summed, digested and kept together
_FORMAT, _SAMPLES, _DIGEST = b"raysel.format", b"raysel.samples", b"raysel.digest"
_SCHEMA = pa.schema(
    [pa.field("loss", pa.float32(), nullable=False), pa.field("selected", pa.int32(), nullable=False)]
)

Array = npt.NDArray[Any]


def whole(name: str, value: object, least: int) -> int:
    """``value`` as an int; raises ConfigError unless it is a whole number and at least ``least``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, (bool, np.bool_)) or number < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return number


def frozen(array: Array) -> Array:
    """A read-only view; the array itself, which may be somebody else's, stays as it was."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class SampleState:
    """The state of n samples, indexed by slot: 8 bytes a sample.

    loss: float32[n], the last finite loss observed, NaN = none yet. selected: int32[n], times in a plan.
    Raises StateError when the arrays are not of these types or differ in length.
    """

    loss: npt.NDArray[np.float32]
    selected: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, dtype in (("loss", np.float32), ("selected", np.int32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array)
                raise StateError(f"A state's {name} must be a {np.dtype(dtype)} vector, got {found}.")
            object.__setattr__(self, name, frozen(array))
        if len(self.loss) != len(self.selected):
            raise StateError(
                f"A state must have one loss and one count per sample; it has {len(self.loss)} losses but {len(self.selected)} counts."
            )

    def __len__(self) -> int:
        return len(self.loss)

    @staticmethod
    def empty(n: int) -> SampleState:
        """The state before the first epoch: n samples, none seen, none selected."""
        n = whole("The number of samples", n, 0)
        return SampleState(np.full(n, np.nan, np.float32), np.zeros(n, np.int32))

    def cut(self, start: int, stop: int) -> SampleState:
        """The state of the slots start..stop: views, nothing is copied."""
        return SampleState(self.loss[start:stop], self.selected[start:stop])

    def chunk_digests(self) -> list[bytes]:
        """One digest (BLAKE2b, 128 bits) for each chunk of 65,536 samples: shards at its multiples have the whole's."""
        digests = []
        for begin in range(0, len(self), CHUNK):
            digest = hashlib.blake2b(digest_size=16)
            digest.update(np.ascontiguousarray(self.loss[begin : begin + CHUNK]).data)
            digest.update(np.ascontiguousarray(self.selected[begin : begin + CHUNK]).data)
            digests.append(digest.digest())
        return digests

    def digest(self) -> str:
        """32 hexadecimal digits that differ when any loss or count does."""
        return digest_of(len(self), self.chunk_digests())

    def to_arrow(self) -> pa.Table:
        """Two columns, ``loss`` and ``selected``; the schema's metadata name the format, n and the digest."""
        metadata = {_FORMAT: FORMAT, _SAMPLES: str(len(self)), _DIGEST: self.digest()}
        arrays = [pa.array(self.loss), pa.array(self.selected)]  # views: NaN stays NaN, not null
        return pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata(metadata))

    @staticmethod
    def from_arrow(table: pa.Table) -> SampleState:
        """The state that :meth:`to_arrow` wrote; StateError for a table that is anything else or damaged."""
        if not isinstance(table, pa.Table):
            raise StateError(
                f"A sample state is read from an Arrow table, not from a {type(table).__name__}."
            )
        metadata = table.schema.metadata or {}
        found = metadata.get(_FORMAT, b"").decode(errors="replace")
        if found != FORMAT:
            raise StateError(
                f"This table is not a sample state: its format is {found or 'not named'!r}, but {FORMAT!r} is expected."
            )
        if not table.schema.equals(_SCHEMA):
            columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
            raise StateError(
                f"A sample state must have the columns loss float and selected int32; this table has {columns}."
            )
        promised = metadata.get(_SAMPLES, b"").decode(errors="replace")
        if promised != str(table.num_rows):
            raise StateError(
                f"The sample state is damaged: it holds {table.num_rows} of {promised or '?'} samples."
            )
        if any(column.null_count for column in table.columns):
            raise StateError("The sample state is damaged: it contains nulls.")
        state = SampleState(table.column("loss").to_numpy(), table.column("selected").to_numpy())
        if metadata.get(_DIGEST, b"").decode(errors="replace") != state.digest():
            raise StateError("The sample state is damaged: its content does not match its digest.")
        return state


def digest_of(n: int, chunk_digests: list[bytes]) -> str:
    """The digest of a state of n samples, from those of its chunks in order."""
    digest = hashlib.blake2b(f"{FORMAT} {n}".encode(), digest_size=16)
    digest.update(b"".join(chunk_digests))
    return digest.hexdigest()


def pairs(
    slots: Array, losses: Array, n: int, start: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Observations of the slots start..start+n, as int64 counted from start and float32 losses; DataError naming
    what cannot be used.

    Slots must be integers of an integer type: an index that went through a float has lost digits.
    """
    slots, losses = np.asarray(slots), np.asarray(losses)
    if slots.size == 0 and slots.ndim == 1 and losses.shape == slots.shape:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if slots.ndim != 1 or slots.shape != losses.shape:
        raise DataError(
            f"Give one loss per slot; the slots have shape {slots.shape}, the losses {losses.shape}."
        )
    if slots.dtype.kind not in "iu":
        raise DataError(f"slots must be of an integer type, got {slots.dtype}.")
    if losses.dtype.kind != "f":
        raise DataError(f"losses must be of a floating-point type of NumPy, got {losses.dtype}.")
    if int(slots.min()) < start or int(slots.max()) >= start + n:
        wrong = slots[(slots < start) | (slots >= start + n)]
        hint = " Remove padding (-1) before losses are recorded." if (wrong == -1).any() else ""
        raise DataError(f"These slots are outside {start}..{start + n - 1}: {first(wrong.tolist())}.{hint}")
    with np.errstate(
        over="ignore"
    ):  # a float64 loss beyond float32's range becomes inf: not finite either way
        slots = slots.astype(np.int64, copy=False)
        return slots - start if start else slots, losses.astype(np.float32, copy=False)


def observe(
    state: SampleState, planned: npt.NDArray[np.int64], slots: Array, losses: Array, ema: float = 0.0
) -> SampleState:
    """The state after an epoch: what most policies' ``update`` does.

    planned: int64, the epoch's slots, each once; their ``selected`` grows by one. slots, losses: the
    observations, any float type; a loss that is not finite is left out, so the sample keeps the one it had.
    A slot given twice keeps the last. ema: share of the old loss that remains, for samples seen before.
    Raises DataError for slots outside the state or not one loss per slot.
    """
    slots, losses = pairs(slots, losses, len(state))
    if len(planned) and (planned[0] < 0 or planned[-1] >= len(state)):
        raise DataError(
            f"The plan has slots outside 0..{len(state) - 1}: they are in {planned[0]}..{planned[-1]}."
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
