"""What a table's columns mean for the metrics: declared, checked, saved with results, never guessed."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.numbers import plain
from raysel.errors import COLUMNS, ConfigError, DataError, first, reason_of, shown
from raysel.gime.columns import NOTHING, UNZONED, ZONED, kind, one_kind

Columns = str | Sequence[str]
_KEYS = ("entity", "classes", "relation", "content", "carrier")
_SINGLE = ("event_time", "record_time", "size")


@dataclass(frozen=True)
class Target:
    """Summary of a target table, made by `raysel.gime.with_target`.

    Attributes
    ----------
    rows : int
        Number of rows of the target.
    scale : mapping of str to (tuple of float, float)
        For each numeric content column its centres and its spread.
    summary : str
        The saved state of the target, in base64.
    """

    rows: int
    scale: Mapping[str, tuple[tuple[float, ...], float]] = field(repr=False)
    summary: str = field(repr=False)


@dataclass(frozen=True)
class Binding:
    """The meaning of each column, which you declare.

    Only declared (bound) columns are read. A metric is null if it needs a column that is not bound.

    Parameters
    ----------
    entity : str or list of str
        Columns that identify the entity that a row describes, such as a customer.
    event_time : str, optional
        Column with the time of the event: timestamps, dates or ISO 8601 text.
    record_time : str, optional
        Column with the time when the event was recorded: timestamps, dates or ISO 8601 text.
    reference_time : str, optional
        Time in ISO 8601 format that is used as the recording time of every row, instead of ``record_time``.
    size : str, optional
        Column with the size of the entity, a number of at least 0.
    classes : str or list of str
        Columns that together define the class of a row.
    relation : str or list of str
        Columns that relate rows: two rows are related if they have the same value in one of these columns.
    content : str or list of str
        Columns with the content of a row. Rows that are equal in all these columns are copies. Columns of
        numbers, or of lists of equal length, are compared with the same columns of the target.
    carrier : str or list of str
        Columns that identify where a row is stored, such as a file or a source.
    reference : mapping of str to str
        Maps a column to another column that holds the correct value in each row.
    bounds : mapping of str to (float or None, float or None)
        Maps a column of numbers to its minimum and maximum valid value; null for no limit.
    target : Target, optional
        Summary of a target table, set by `raysel.gime.with_target`.

    Raises
    ------
    ConfigError
        For a value of another form, and if no column is named.

    Notes
    -----
    Objective Information Theory calls the entity o, the event time T_h, the record time T_m, the content g (the
    states), the carrier c, and the relation that defines the classes R.

    Examples
    --------
    >>> binding = raysel.gime.Binding(entity="user", classes="label", event_time="at")
    >>> binding.columns
    ['user', 'label', 'at']
    """

    entity: Columns = ()
    event_time: str | None = None
    record_time: str | None = None
    reference_time: str | None = None
    size: str | None = None
    classes: Columns = ()
    relation: Columns = ()
    content: Columns = ()
    carrier: Columns = ()
    reference: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    target: Target | None = field(default=None, metadata={"yaml": False})

    def __post_init__(self) -> None:
        for name in _KEYS:
            given = plain(getattr(self, name))
            names = (given,) if isinstance(given, str) else given
            if not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
                raise ConfigError(f"binding.{name}: {shown(given)} is not a column or a list of columns.")
            if len(set(names)) < len(names):
                raise ConfigError(
                    f"binding.{name}: {list(names)} contains a column twice; name each column once."
                )
            object.__setattr__(self, name, tuple(names))
        for name in (*_SINGLE, "reference_time"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, str) or not given):
                what = "a moment in ISO 8601" if name == "reference_time" else "a column"
                raise ConfigError(f"binding.{name}: {shown(given)} is not {what}.")
        if self.record_time is not None and self.reference_time is not None:
            raise ConfigError("binding: Give record_time or reference_time, not both.")
        if self.reference_time is not None:
            self.reference_moment()
        if not isinstance(self.reference, Mapping) or not all(
            isinstance(name, str) for pair in self.reference.items() for name in pair
        ):
            raise ConfigError(
                f"binding.reference: {shown(self.reference)} is not a mapping of columns to columns."
            )
        object.__setattr__(self, "reference", dict(self.reference))
        object.__setattr__(self, "bounds", _bounds(self.bounds))
        if not isinstance(self.target, (Target, type(None))):
            raise ConfigError(
                "binding.target: The value is not a target; set it with raysel.gime.with_target(binding, table)."
            )
        if not self.columns:
            raise ConfigError(
                "binding: The binding names no column, so there is nothing to measure; name at least one."
            )

    @property
    def columns(self) -> list[str]:
        """The columns that are needed, each once."""
        found = [name for role in _KEYS for name in getattr(self, role)]
        found += [name for role in _SINGLE if (name := getattr(self, role)) is not None]
        found += [name for pair in self.reference.items() for name in pair] + list(self.bounds)
        return list(dict.fromkeys(found))

    def reference_moment(self) -> tuple[int, str]:
        """Return ``reference_time`` in nanoseconds since 1970, and whether it has a zone."""
        text = pa.array([self.reference_time], pa.string())
        for to, what in ((pa.timestamp("ns"), UNZONED), (pa.timestamp("ns", "UTC"), ZONED)):
            try:
                return pc.cast(text, to).cast(pa.int64())[0].as_py(), what
            except pa.ArrowInvalid:
                continue
        raise ConfigError(
            f"binding.reference_time: {self.reference_time!r} is not a moment in ISO 8601 between 1677 and 2262, such as "
            "2024-05-01 or 2024-05-01T12:00:00Z."
        )

    def to_json(self) -> str:
        """Return one line that :meth:`from_json` reads, without what is not bound."""
        found = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(found, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Binding:
        """Read a binding that :meth:`to_json` returned.

        Parameters
        ----------
        text : str
            JSON.

        Returns
        -------
        Binding
            The binding.

        Raises
        ------
        ConfigError
            If the text is not a binding.
        """
        try:
            raw = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"binding: {shown(text)} is not JSON ({reason_of(error)}).") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"binding: A JSON object is needed, not {type(raw).__name__}.")
        known = [f.name for f in fields(cls)]
        for name in raw:
            if name not in known:
                raise ConfigError(f"binding.{name}: There is no such key{did_you_mean(name, known)}.")
        if isinstance(kept := raw.get("target"), dict):
            try:
                scale = {n: (tuple(map(float, c)), float(s)) for n, (c, s) in kept["scale"].items()}
                raw["target"] = Target(int(kept["rows"]), scale, str(kept["summary"]))
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ConfigError(
                    f"binding.target: This is not a saved target ({reason_of(error)})."
                ) from error
        return cls(**raw)

    def digest(self) -> str:
        """Return 32 hexadecimal digits that change if any meaning, or the target, does."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def check(self, schema: pa.Schema, what: str = "table") -> None:
        """Raise DataError unless every bound column is in ``schema``, with a type that its meaning allows."""
        for role, name in self._roles():
            if name not in schema.names:
                raise DataError(
                    f"The {what} has no column '{name}', which the binding names as {role}{did_you_mean(name, schema.names)}; "
                    f"its columns are {first(schema.names, COLUMNS) or 'none'}."
                )
            if schema.names.count(name) > 1:
                raise DataError(f"The {what} has more than one column '{name}'; rename one of them.")
            holds = kind(schema.field(name).type, name)
            if role in ("event_time", "record_time") and holds not in (ZONED, UNZONED, "text", NOTHING):
                raise DataError(
                    f"The {what}'s column '{name}' is bound as {role} but holds {holds}. Convert the column "
                    "to timestamps, because raysel does not guess the unit and the origin of the values."
                )
            if (
                role in ("size", "bounds")
                and holds not in ("number", "bool", NOTHING)
                and not holds.startswith("decimal")
            ):
                raise DataError(
                    f"The {what}'s column '{name}' is bound as {role} but holds {holds}, not numbers; name "
                    "another column, or convert this one."
                )

        for name, other in self.reference.items():
            one, two = (kind(schema.field(column).type, column) for column in (name, other))
            if one_kind(one, two) is None:
                raise DataError(
                    f"The {what}'s column '{name}' holds {one}, but its reference '{other}' holds {two}, so "
                    "their values are never equal; convert one to the type of the other."
                )

    def within(self, names: Sequence[str]) -> Binding | None:
        """Restrict the binding to the columns that a target has.

        Parameters
        ----------
        names : sequence of str
            Columns of the target.

        Returns
        -------
        Binding or None
            ``entity``, ``event_time`` and ``classes`` if all their columns are in ``names``, and the content
            columns that are; None if nothing is left.
        """
        have = set(names)
        entity, classes = (role if have.issuperset(role) else () for role in (self.entity, self.classes))
        content = [name for name in self.content if name in have]
        event_time = self.event_time if self.event_time in have else None
        if not (entity or classes or content or event_time):
            return None
        return Binding(entity=entity, event_time=event_time, classes=classes, content=content)

    def _roles(self) -> list[tuple[str, str]]:
        found = [(role, name) for role in _KEYS for name in getattr(self, role)]
        found += [(role, name) for role in _SINGLE if (name := getattr(self, role)) is not None]
        found += [("reference", name) for pair in self.reference.items() for name in pair]
        return found + [("bounds", name) for name in self.bounds]


def _bounds(given: Any) -> dict[str, tuple[float | None, float | None]]:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"binding.bounds: {shown(given)} is not a mapping of columns to pairs (least, greatest)."
        )
    found = {}
    for name, ends in given.items():
        found[str(name)] = least_and_greatest(f"binding.bounds.{name}", ends)
    return found


def least_and_greatest(where: str, ends: Any) -> tuple[float | None, float | None]:
    """Return a pair of limits as floats, either of them None; ConfigError for anything else."""
    if isinstance(ends, np.ndarray):
        ends = ends.tolist()
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise ConfigError(
            f"{where}: {shown(ends)} is not a pair (least, greatest); one of the two may be None."
        )
    low, high = map(plain, ends)
    for end in (low, high):
        if end is not None and (isinstance(end, bool) or not isinstance(end, (int, float)) or end != end):
            raise ConfigError(f"{where}: {shown(end)} is not a number.")
    try:
        low, high = (None if end is None else float(end) for end in (low, high))
    except OverflowError:
        raise ConfigError(f"{where}: {shown(ends)} is out of the range of floats.") from None
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{where}: The least value {low:g} is above the greatest, {high:g}.")
    return low, high


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean ...?)" with the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
