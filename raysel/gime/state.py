"""States: ``partial`` makes one per block, ``merge`` joins two, ``finalize`` computes the eleven metrics.

Merging is associative and commutative to the last bit, so that the result depends neither on the split into
blocks nor on the order of merging. States are immutable. They can be saved as Arrow IPC and merged with new
data later.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core import storage
from raysel.core.arrow import plain_values
from raysel.errors import COLUMNS, ConfigError, DataError, StateError, first, reason_of, shown
from raysel.gime import links, mismatch, objects, states, times
from raysel.gime.binding import Binding, Target, did_you_mean
from raysel.gime.block import Block, View
from raysel.gime.columns import kind, nanoseconds, one_kind
from raysel.gime.columns import times as moments
from raysel.gime.grouped import Codes
from raysel.gime.histograms import BINS, Histogram
from raysel.gime.keys import KEYS, TUG_ROWS, TUG_WIDTH, Keys
from raysel.gime.metrics import Own, figures, metric_functions
from raysel.gime.parts import MOST, Parts, merge_parts, spread
from raysel.gime.waves import WAVES

FORMAT = "gime-state/2"
By = str | timedelta | None

_COLLECT = (states.collect, objects.collect, times.collect, links.collect, mismatch.collect)
_ROWS = 1 << 18  # rows collected at once: their temporaries stay small


@dataclass(frozen=True, eq=False)
class State:
    """The mergeable summary of some rows, from which the metrics are computed.

    Attributes
    ----------
    binding : Binding
        What the columns mean.
    by : str, datetime.timedelta or None
        A column, or a window of event time, to group by; None for one group, whose label is None.
    groups : tuple of str or None
        Labels of the groups, ascending, null first.
    kinds : dict of str to str
        What each column holds.
    parts : Parts
        The accumulators of each group.

    Examples
    --------
    >>> binding = raysel.gime.Binding(classes="label")
    >>> table = pa.table({"label": ["a", "b", "a"]})
    >>> one, other, both = (raysel.gime.partial(part, binding) for part in (table[:1], table[1:], table))
    >>> raysel.gime.merge(one, other).digest() == both.digest()
    True
    """

    binding: Binding
    by: By
    groups: tuple[str | None, ...]
    kinds: dict[str, str]
    parts: Parts

    def __repr__(self) -> str:
        groups = f"{len(self.groups):,} groups by {self.by}" if self.by is not None else "one group"
        return f"<State of the metrics of {', '.join(self.binding.columns)}, {groups}>"

    def digest(self) -> str:
        """Return 32 hexadecimal digits that change if anything in the state does (BLAKE2b, 128 bits)."""
        head = json.dumps(
            [FORMAT, self.binding.digest(), _by_text(self.by), self.groups, sorted(self.kinds.items())]
        )
        digest = hashlib.blake2b(head.encode(), digest_size=16)
        for name, values in sorted(_flatten(self.parts).items()):
            digest.update(f"{name} {len(values)} ".encode())
            digest.update(
                "\n".join(values).encode() if isinstance(values, list) else np.ascontiguousarray(values).data
            )
        return digest.hexdigest()

    def nbytes(self) -> int:
        """Return the bytes of its arrays."""
        parts = _flatten(self.parts).values()
        return sum(sum(map(len, v)) if isinstance(v, list) else v.nbytes for v in parts)

    def to_arrow(self) -> pa.Table:
        """Return one row with a list column per array.

        Binding, format and digest are in the schema's metadata.
        """
        arrays = {
            name: pa.array([values]) if isinstance(values, list) else _listed(values)
            for name, values in _flatten(self.parts).items()
        }
        metadata = {
            "raysel.format": FORMAT,
            "raysel.sizes": json.dumps(_sizes()),
            "raysel.binding": self.binding.to_json(),
            "raysel.by": _by_text(self.by),
            "raysel.groups": json.dumps(self.groups),
            "raysel.kinds": json.dumps(self.kinds),
            "raysel.digest": self.digest(),
        }
        return pa.table(arrays).replace_schema_metadata(metadata)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> State:
        """Read the state that :meth:`to_arrow` returned.

        Raise StateError if the table is damaged or something else.
        """
        if not isinstance(table, pa.Table):
            raise StateError(
                f"A state of the GIME metrics is read from an Arrow table, not from {shown(table)}."
            )
        metadata = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (table.schema.metadata or {}).items()
        }
        found = metadata.get("raysel.format")
        if found != FORMAT:
            raise StateError(
                "This table is not a state of the GIME metrics that this version can read: its format is "
                f"{shown(found) if found else 'not given'}, but {FORMAT!r} is expected; measure again."
            )
        if metadata.get("raysel.sizes") != json.dumps(_sizes()):
            raise StateError(
                "This state of the GIME metrics was made with sketches of other sizes "
                f"({shown(metadata.get('raysel.sizes'))}); measure again."
            )
        try:
            table.validate(full=True)
            state = cls(
                Binding.from_json(metadata["raysel.binding"]),
                _by_of(metadata["raysel.by"]),
                tuple(json.loads(metadata["raysel.groups"])),
                json.loads(metadata["raysel.kinds"]),
                _unflatten(table, len(json.loads(metadata["raysel.groups"]))),
            )
            whole = metadata["raysel.digest"] == state.digest()
        except Exception as error:  # what is damaged may raise anything
            raise StateError(
                f"This saved state of GIME is damaged ({reason_of(error)}); measure its rows again."
            ) from error
        if not whole:
            raise StateError(
                "This saved state of GIME is damaged: its content does not match its digest; measure its rows again."
            )
        return state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an Arrow IPC file, which appears under its name only when it is complete."""
        place = storage.output(path)
        storage.make_folder(place.parent)
        storage.write_bytes(place, _to_ipc(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read what :meth:`save` wrote; raise StateError if it is missing or damaged."""
        try:
            return _from_ipc(storage.read_bytes(path))
        except StateError as error:
            raise StateError(f"{path}: {error}") from error
        except OSError as error:
            raise StateError(
                f"{path}: The state of the GIME metrics cannot be read ({reason_of(error)})."
            ) from error


def measure(table: pa.Table, binding: Binding, by: By = None, metrics: Own = ()) -> pa.Table:
    """Measure a table, or each of its groups, by the eleven metrics.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the bound columns.
    binding : Binding
        What the columns mean.
    by : str or datetime.timedelta, optional
        Column, or window of event time from 1970 on, whose groups are measured one by one. Default: one
        group.
    metrics : sequence of callable or str
        Metrics of your own, in addition to the eleven: functions of a `raysel.gime.View` that return a list of
        `raysel.gime.Figure`, or their names as ``file.py:Name``.

    Returns
    -------
    pyarrow.Table
        One row per statistic: ``metric``, ``statistic``, ``value``, ``unit``, ``bound`` and ``reason``, see
        `raysel.gime.finalize`; with ``by`` also ``group``, first.

    Raises
    ------
    ConfigError
        For a grouping that is not possible.
    DataError
        As `raysel.gime.partial` raises.

    References
    ----------
    Xu et al., arXiv:2501.02004.

    Examples
    --------
    >>> table = pa.table({"label": ["a", "b", "a", "b"]})
    >>> found = raysel.gime.measure(table, raysel.gime.Binding(classes="label")).to_pylist()
    >>> [(row["value"], row["unit"]) for row in found if row["statistic"] == "classes"]
    [(2.0, 'classes')]
    """
    return finalize(partial(table, binding, by), metrics)


def partial(table: pa.Table, binding: Binding, by: By = None) -> State:
    """Return the state of some rows.

    Parameters
    ----------
    table : pyarrow.Table
        Rows; only the bound columns and ``by`` are read.
    binding : Binding
        What the columns mean.
    by : str or datetime.timedelta, optional
        Column, or window of event time, to group by.

    Returns
    -------
    State
        The state of the rows.

    Raises
    ------
    DataError
        For a column that is missing or of a wrong type, and, with the row, for times that cannot be read or
        stored, negative sizes and mixed time zones. Rows are counted from the first of ``table``.
    ConfigError
        For a grouping that is not possible.
    """
    binding.check(table.schema)
    return _partial(table, binding, by, binding.target.scale if binding.target else None)


def _partial(table: pa.Table, binding: Binding, by: By, scale: Any) -> State:
    wanted = _check_by(binding, by, table.schema)
    table = table.select(list(dict.fromkeys([*binding.columns, *wanted])))
    found = [
        _slice(table.slice(start, _ROWS), start, binding, by, scale)
        for start in range(0, max(table.num_rows, 1), _ROWS)
    ]
    return reduce(merge, found)


def _slice(table: pa.Table, first_row: int, binding: Binding, by: By, scale: Any) -> State:
    groups, codes = grouping(table, first_row, binding, by)
    block = Block(table, binding, codes, len(groups), scale, first_row)
    for collect in _COLLECT:
        collect(block)
    kinds = {by: _labelled(table.schema.field(by).type, by)} if isinstance(by, str) else {}
    return State(binding, by, groups, kinds | block.kinds, block.parts)


def _labelled(of: pa.DataType, by: str) -> str:
    """Return what a column to group by holds.

    Values of mixed kinds could have equal labels, or one value two labels.
    """
    return "date" if pa.types.is_date(of) else kind(of, by)


def columns(binding: Binding, by: By = None) -> list[str]:
    """Return the columns that `partial` reads."""
    return list(dict.fromkeys([*binding.columns, *([by] if isinstance(by, str) else [])]))


def _check_by(binding: Binding, by: By, schema: pa.Schema) -> list[str]:
    if isinstance(by, timedelta):
        if binding.event_time is None:
            raise ConfigError("by: A window of time needs event_time in the binding.")
        if by <= timedelta(0):
            raise ConfigError(f"by: The window must be longer than zero, got {by}.")
        if _nanoseconds(by) > MOST:
            raise ConfigError(
                f"by: A window of {by} is longer than 292 years, the longest time in 64-bit nanoseconds; give a shorter one."
            )
        return []
    if by is None:
        return []
    if not isinstance(by, str):
        raise ConfigError(f"by: {by!r} is neither a column nor a window of time (a timedelta).")
    if by not in schema.names:
        raise DataError(
            f"The table has no column '{by}' to group by{did_you_mean(by, schema.names)}; its columns are {', '.join(schema.names)}."
        )
    return [by]


def grouping(
    table: pa.Table, first_row: int, binding: Binding, by: By
) -> tuple[tuple[str | None, ...], Codes | None]:
    """Return labels, ascending with null first, and each row's code among them (None for one group)."""
    if by is None:
        return (None,), None
    if isinstance(by, timedelta):
        at, there, _ = moments(table[str(binding.event_time)], str(binding.event_time), first_row)
        width = _nanoseconds(by)
        start = pa.array(at // width * width, pa.timestamp("ns"), mask=~there)
        found = start.dictionary_encode()
        texts = found.dictionary.cast(pa.string())
    else:
        array = _in_one_unit(plain_values(table[by]), by, first_row)
        try:
            found = array.dictionary_encode()
            texts = found.dictionary.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise DataError(
                f"Column '{by}' holds {array.type}, which cannot define groups; give a column of text, numbers or times."
            ) from None
    names: list[str | None] = texts.to_pylist()
    labels = sorted({name for name in names if name is not None})
    places = {name: place for place, name in enumerate([None, *labels])}
    code = np.array([places[name] for name in names] + [0], np.int64)
    codes = code[found.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)]
    if len(codes) and (codes == 0).any():
        return (None, *labels), codes
    return tuple(labels), codes - 1


def _in_one_unit(array: pa.Array, name: str, first_row: int) -> pa.Array:
    """Return moments, clock times and durations in nanoseconds.

    Zoned moments are in UTC, so that one value has one label.
    """
    of, is_ = array.type, pa.types
    if is_.is_timestamp(of):
        array = nanoseconds(array, name, first_row)
        return array if of.tz is None else array.cast(pa.timestamp("ns", "UTC"))
    if is_.is_time(of):
        return (array.cast(pa.time32("ms")) if is_.is_time32(of) else array).cast(pa.time64("ns"))
    return array.cast(pa.duration("ns")) if is_.is_duration(of) else array


def _nanoseconds(window: timedelta) -> int:
    return (window.days * 86_400 + window.seconds) * 10**9 + window.microseconds * 1000


def merge(one: State, other: State) -> State:
    """Return the state of the rows of both states, bit for bit the state that `partial` returns for all these rows.

    Parameters
    ----------
    one, other : State
        States of the same binding and grouping.

    Returns
    -------
    State
        The joined state.

    Raises
    ------
    StateError
        For states of different bindings or groupings.
    DataError
        For columns that hold different kinds of values.
    """
    if one.binding != other.binding:
        raise StateError(
            "These states of the GIME metrics were made with different bindings, so they cannot be joined; "
            "measure again."
        )
    if one.by != other.by:
        raise StateError(
            f"These states of the GIME metrics are grouped differently ({_by_text(one.by)}, "
            f"{_by_text(other.by)}); measure again."
        )
    kinds = {name: _one_kind(name, one.kinds[name], other.kinds[name]) for name in one.kinds}
    if one.groups == other.groups:
        return replace(one, kinds=kinds, parts=merge_parts(one.parts, other.parts))
    groups = sorted({*one.groups, *other.groups}, key=lambda label: (label is not None, label or ""))
    place = {label: at for at, label in enumerate(groups)}
    parts = [
        spread(state.parts, np.array([place[label] for label in state.groups], np.int64), len(groups))
        for state in (one, other)
    ]
    return State(one.binding, one.by, tuple(groups), kinds, merge_parts(*parts))


def _one_kind(name: str, one: str, other: str) -> str:
    found = one_kind(one, other)
    if found is not None:
        return found
    raise DataError(f"Column '{name}' holds {one} in some rows and {other} in others; store one type.")


def empty(table: pa.Table, binding: Binding, by: By = None) -> State:
    """Return the state of no rows of a table like ``table``: merging it changes nothing."""
    return partial(table.slice(0, 0), binding, by)


def finalize(state: State, metrics: Own = ()) -> pa.Table:
    """Compute the metrics from a state: one row per statistic, in the order of the registry, for each group.

    Parameters
    ----------
    state : State
        The state of all rows.
    metrics : sequence of callable or str
        Metrics of your own, as for `raysel.gime.measure`.

    Returns
    -------
    pyarrow.Table
        ``group`` (text, only if grouped), ``metric``, ``statistic``, ``value`` (float64; null with a reason,
        never 0, if its input is missing), ``unit``, ``bound`` (the largest absolute error of the value: 0 if
        exact, else three standard errors of a sketch or an interval, as the metric's docstring says) and
        ``reason`` (why there is no value, or a remark on it). The schema's metadata has the binding.
    """
    target, functions = target_view(state.binding.target), metric_functions(metrics)
    rows = [
        (label, metric, figure)
        for place, label in enumerate(state.groups)
        for metric, figure in figures(functions, View(state.binding, state.parts, place, state.kinds, target))
    ]
    found = [figure for _, _, figure in rows]
    result = {
        "metric": pa.array([metric for _, metric, _ in rows], pa.string()),
        "statistic": pa.array([f.statistic for f in found], pa.string()),
        "value": pa.array([None if f.value is None else f.value.value for f in found], pa.float64()),
        "unit": pa.array([f.unit for f in found], pa.string()),
        "bound": pa.array([None if f.value is None else f.value.bound for f in found], pa.float64()),
        "reason": pa.array([f.reason for f in found], pa.string()),
    }
    if state.by is not None:
        result = {"group": pa.array([label for label, _, _ in rows], pa.string()), **result}
    return pa.table(result).replace_schema_metadata({"raysel.binding": state.binding.to_json()})


# ---- the target --------------------------------------------------------------------------------------------


def with_target(binding: Binding, table: pa.Table) -> Binding:
    """Return ``binding`` with a summary of a target table, to which ``mismatch`` then measures the distance.

    Parameters
    ----------
    binding : Binding
        What the columns mean.
    table : pyarrow.Table
        The target. The columns that the binding names are used; components that need one that it lacks are
        null, with the reason.

    Returns
    -------
    Binding
        The binding with ``target`` set.

    Raises
    ------
    DataError
        If the target has none of the columns, no row, or values that cannot be used.
    """
    kept = check_target(binding, table)
    if not table.num_rows:
        raise DataError("The target is empty: there are no rows to compare with.")
    scale = mismatch.scale_of(Block(table, kept, None, 1))
    state = _partial(table, kept, None, scale)
    others = {
        name: kind(table.schema.field(name).type, name)
        for name in binding.columns
        if name in table.column_names
    }
    if (written := binding.record_time) in others:  # text is a time once it is read
        others[str(written)] = moments(table[str(written)], str(written), 0)[2]
    state = replace(state, kinds=others | state.kinds)
    summary = base64.b64encode(zlib.compress(_to_ipc(state), 6)).decode()
    return replace(binding, target=Target(table.num_rows, scale, summary))


def check_target(binding: Binding, table: pa.Table) -> Binding:
    """Return the binding of a target's columns. Raises DataError if it has none of the binding, or of another type."""
    kept = binding.within(table.column_names)
    if kept is None:
        raise DataError(
            "The target has none of the columns that the binding names as entity, event_time, classes or content; "
            f"its columns are {first(table.column_names, COLUMNS) or 'none'}."
        )
    kept.check(table.schema, "target")
    return kept


def target_view(target: Target | None) -> View | None:
    """Return the accumulators of a target; None without one."""
    if target is None:
        return None
    state = _unpacked(target.summary)
    return View(state.binding, state.parts, 0, state.kinds)


@lru_cache(maxsize=4)
def _unpacked(summary: str) -> State:
    try:
        return _from_ipc(zlib.decompress(base64.b64decode(summary, validate=True)))
    except (ValueError, zlib.error, StateError) as error:
        raise ConfigError(
            f"binding.target.summary: This is not a saved target ({reason_of(error)}); make it again with with_target."
        ) from error


# ---- files -------------------------------------------------------------------------------------------------


def _sizes() -> dict[str, int]:
    return {
        "keys": KEYS,
        "tug": TUG_ROWS * TUG_WIDTH,
        "bins": BINS,
        "waves": WAVES,
    }


def _by_text(by: By) -> str:
    return json.dumps({"window_ns": _nanoseconds(by)} if isinstance(by, timedelta) else by)


def _by_of(text: str) -> By:
    found = json.loads(text)
    return timedelta(microseconds=found["window_ns"] // 1000) if isinstance(found, dict) else found


def _listed(values: Any) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)


def _flatten(parts: Parts) -> dict[str, Any]:
    """Return each array under the JSON of its path; sums as hexadecimal text."""
    found: dict[tuple[str, ...], Any] = {}
    for where in ("counts", "low", "high", "waves"):
        for name, values in getattr(parts, where).items():
            found[where, name] = values
    for name, totals in parts.sums.items():
        found["sums", name] = [format(total, "x") for total in totals]
    for name, keys in parts.keys.items():
        found |= {
            ("keys", name, "sizes"): keys.sizes,
            ("keys", name, "hash"): keys.hash,
            ("keys", name, "cut"): keys.cut,
        }
        if keys.tug is not None:
            found["keys", name, "tug"] = keys.tug
        for column, values in keys.columns.items():
            found["keys", name, "column", column] = values
    for name, bins in parts.histograms.items():
        for column in ("sizes", "edge", "count", "level"):
            found["histograms", name, column] = getattr(bins, column)
        found["histograms", name, "relative"] = np.array([bins.relative])
    return {json.dumps(path): values for path, values in found.items()}


def _unflatten(table: pa.Table, groups: int) -> Parts:
    if table.num_rows != 1:
        raise ValueError(f"It has {table.num_rows} rows instead of one.")
    arrays = {
        tuple(json.loads(name)): table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in table.column_names
    }
    parts = Parts()
    for (where, name, *rest), values in arrays.items():
        if where == "sums":
            parts.sums[name] = [int(text, 16) for text in values]
        elif where == "waves":
            parts.waves[name] = values.reshape(groups, -1)
        elif where in ("counts", "low", "high"):
            getattr(parts, where)[name] = values
        elif where == "keys" and rest == ["hash"]:
            tug = arrays.get((where, name, "tug"))
            cut = arrays[where, name, "cut"]
            parts.keys[name] = Keys(
                arrays[where, name, "sizes"],
                values,
                {path[3]: column for path, column in arrays.items() if path[:3] == (where, name, "column")},
                cut,
                None if tug is None else tug.reshape(int(cut.sum()), -1),
            )
        elif where == "histograms" and rest == ["edge"]:
            sizes, count, level = (arrays[where, name, column] for column in ("sizes", "count", "level"))
            parts.histograms[name] = Histogram(
                sizes, values, count, level, bool(arrays[where, name, "relative"][0])
            )
    return parts


def _to_ipc(state: State) -> bytes:
    sink = pa.BufferOutputStream()
    table = state.to_arrow()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_ipc(data: bytes) -> State:
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    except Exception as error:  # what is damaged may raise anything
        raise StateError(f"This is not a saved state of the GIME metrics ({reason_of(error)}).") from error
    return State.from_arrow(table)
