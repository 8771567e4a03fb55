"""The ledger: the costs of every arm of a run, and its savings against training on the full pool."""

from __future__ import annotations

import json
import math
import operator
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysel.core.storage import Place, output, read_json, write_text
from raysel.errors import DataError, RunError, first, reason_of
from raysel.report import numbers
from raysel.report.goal import Goal, checked

STAGES = ("embedding", "metrics", "selection", "start-up", "planning", "training", "other")
REFERENCE = "full"
_UNSAID = {"start-up": 0.0}
WIDTH = 100

_COUNTS = ("rows", "epochs", "samples_forward", "samples_backward", "samples_proxy", "steps")
_REQUIRED = ("rows", "epochs")


@dataclass(frozen=True)
class LedgerEntry:
    """Costs of one arm.

    None means *not measured*, and makes None what is computed from it.

    Attributes
    ----------
    arm, title : str
        Key of the arm, and its name in tables.
    rows, epochs : int
        Rows that the arm could train on, and number of epochs.
    samples_forward, samples_backward : int or None
        Samples in forward passes and in backward passes; a row counts once for each epoch that used it.
    samples_proxy : int or None
        Rows that the small models of a calibration were trained on. Its time is part of the stage ``metrics``.
    steps : int or None
        Optimizer steps.
    seconds : mapping of str to float or None
        Wall-clock seconds of each of STAGES, 0.0 for a stage that the arm does not have. ``start-up`` is the time in which
        workers that train several arms started, which is counted in each arm; it is 0.0 by default, and the start of an arm's
        own workers is part of ``other``. ``other`` is the time of starting workers, evaluation, checkpoints, and epochs repeated after a failure.
    metrics : mapping of str to float or None
        Metrics of the task on the test rows; empty without test rows.
    reused : tuple of str
        Stages whose seconds were measured in earlier runs in the same directory, because their results were reused. It is
        ignored when two entries are compared.

    Raises
    ------
    DataError
        For a number that is not finite, a cost that is negative, and a share that is not between 0 and 1.
    """

    arm: str
    title: str
    rows: int
    epochs: int
    samples_forward: int | None = None
    samples_backward: int | None = None
    samples_proxy: int | None = 0
    steps: int | None = None
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reused: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            object.__setattr__(self, name, _count(f"Ledger arm {self.arm!r}", name, getattr(self, name)))
        unknown = [stage for stage in self.seconds if stage not in STAGES]
        if unknown:
            raise DataError(
                f"The entry of the arm {self.arm!r} in the ledger has unknown stages under 'seconds' "
                f"({first(unknown)}); the stages are {', '.join(STAGES)}."
            )
        spent = {
            stage: _time(
                f"Ledger arm {self.arm!r}", f"seconds of {stage}", self.seconds.get(stage, _UNSAID.get(stage))
            )
            for stage in STAGES
        }
        object.__setattr__(self, "seconds", spent)
        object.__setattr__(self, "metrics", checked(self.metrics, f"Ledger arm {self.arm!r}"))

    @property
    def total_seconds(self) -> float | None:
        """Sum of the seconds of all stages; None if one of them was not measured."""
        known = [value for value in self.seconds.values() if value is not None]
        return math.fsum(known) if len(known) == len(STAGES) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON types, without total and savings."""
        return {
            "arm": self.arm,
            "title": self.title,
            **{name: getattr(self, name) for name in _COUNTS},
            "seconds": dict(self.seconds),
            "metrics": dict(self.metrics),
            "reused": list(self.reused),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LedgerEntry:
        """Return the entry that ``to_dict`` wrote.

        Total and savings are ignored. Raise DataError if the entry is damaged.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"An entry of a ledger must be a mapping, not a {type(values).__name__}.")
        missing = [name for name in ("arm", "title", *_REQUIRED) if name not in values]
        if missing:
            raise DataError(
                f"The entry of the arm (training run) {values.get('arm', '?')!r} in the ledger has no value for: {first(missing)}."
            )
        if not isinstance(values.get("seconds", {}), Mapping):
            raise DataError(
                f"In the entry of the arm {values['arm']!r} in the ledger, 'seconds' must be a mapping from "
                "the name of a stage, such as 'selection', to a number."
            )
        return cls(
            arm=str(values["arm"]),
            title=str(values["title"]),
            **{name: values.get(name, 0 if name == "samples_proxy" else None) for name in _COUNTS},
            seconds=values.get("seconds", {}),
            metrics=values.get("metrics", {}),
            reused=tuple(values.get("reused", ())),
        )


@dataclass(frozen=True)
class Ledger:
    """Entries, one per arm, in the order they are shown; the reference is the arm called ``full``.

    Attributes
    ----------
    entries : sequence of LedgerEntry
        Costs of the arms.
    goal : Goal
        The metric that the table shows.
    full_samples : int or None
        Number of pool rows times number of epochs. The savings in samples refer to it if there is no arm ``full``.

    Raises
    ------
    DataError
        If two entries have the same arm.
    """

    entries: Sequence[LedgerEntry] = ()
    goal: Goal = field(default_factory=Goal)
    full_samples: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.entries))
        object.__setattr__(self, "full_samples", _count("Ledger", "full_samples", self.full_samples))
        arms = [entry.arm for entry in self.entries]
        twice = sorted({arm for arm in arms if arms.count(arm) > 1})
        if twice:
            raise DataError(
                f"The ledger has more than one entry for the arm {first(twice)}; give each arm, which is one "
                "training of the run, one entry."
            )

    def entry(self, arm: str) -> LedgerEntry | None:
        """Return the entry of an arm, or None."""
        return next((entry for entry in self.entries if entry.arm == arm), None)

    def saving_samples(self, arm: str) -> float | None:
        """Return 1 - samples of the arm / samples of training on the full pool; negative for more samples.

        Samples are back-propagated samples. Those of the full pool are the samples of the arm ``full``, or
        ``full_samples`` without this arm. None if the arm is missing, or a number is not known.
        """
        entry = self.entry(arm)
        return None if not entry else _saving(entry.samples_backward, self.reference_samples)

    def saving_seconds(self, arm: str) -> float | None:
        """Return 1 - seconds of the arm / seconds of the arm ``full``, all stages included; negative for more time.

        None if one of the two arms is missing, or a number was not measured.
        """
        entry, full = self.entry(arm), self.entry(REFERENCE)
        return None if not entry or not full else _saving(entry.total_seconds, full.total_seconds)

    @property
    def reference_samples(self) -> int | None:
        """Back-propagated samples of training on the full pool: those of the arm ``full``, else ``full_samples``."""
        full = self.entry(REFERENCE)
        return self.full_samples if full is None else full.samples_backward

    @property
    def reused(self) -> str:
        """A sentence that names the arms with seconds of earlier runs, and the stages; empty if there are none."""
        parts = []
        for entry in self.entries:
            spent = [stage for stage in STAGES if entry.seconds[stage] != 0]
            earlier = [stage for stage in spent if stage in entry.reused]
            if earlier:
                parts.append(f"{entry.title} ({'all stages' if earlier == spent else ', '.join(earlier)})")
        if not parts:
            return ""
        return f"The seconds of these arms are from earlier runs in this directory, whose results were reused: {'; '.join(parts)}."

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types. Totals and savings are included for readers, and computed again by :meth:`from_dict`."""
        return {
            "reference": REFERENCE,
            "goal": asdict(self.goal),
            "full_samples": self.full_samples,
            "entries": [
                {
                    **entry.to_dict(),
                    "total_seconds": entry.total_seconds,
                    "saving_samples": self.saving_samples(entry.arm),
                    "saving_seconds": self.saving_seconds(entry.arm),
                }
                for entry in self.entries
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Return the ledger that ``to_dict`` wrote; raise DataError if it is not one."""
        entries = values.get("entries") if isinstance(values, Mapping) else None
        if not isinstance(entries, (list, tuple)):
            raise DataError("A ledger must be a mapping with the key 'entries', which holds a list.")
        goal = values.get("goal")
        if not isinstance(goal, Mapping) or goal.get("direction") not in ("max", "min"):
            raise DataError(
                "The key 'goal' of a ledger must hold a metric, and the direction 'max' or 'min'."
            )
        return cls(
            [LedgerEntry.from_dict(entry) for entry in entries],
            Goal(str(goal.get("metric")), goal["direction"]),
            values.get("full_samples"),
        )

    def save(self, path: str | os.PathLike[str]) -> Place:
        """Write the ledger as JSON, completely or not at all. Raises RunError when it cannot be written."""
        write_text(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return output(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read what ``save`` wrote. Raises RunError when the file is missing or damaged."""
        try:
            return cls.from_dict(read_json(path))
        except OSError as error:
            raise RunError(
                f"The ledger {os.fspath(path)} cannot be read ({reason_of(error)}); "
                "check that the run finished."
            ) from error
        except (ValueError, TypeError) as error:  # broken JSON, broken UTF-8 and DataError are ValueErrors
            raise RunError(
                f"The ledger {os.fspath(path)} is damaged ({error}); run the workflow again."
            ) from error

    def text(self) -> str:
        """Return the table that `raysel run` prints: one row per arm, at most 100 columns wide.

        Long titles continue in the lines below. No word is divided, so a very long word makes the table wider.
        """
        return _table(self)


def _count(where: str, name: str, value: Any) -> int | None:
    if value is None and name not in _REQUIRED:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise DataError(f"{where}: {name} must be a whole number of at least 0, not {value!r}.")
    return number


def _time(where: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number >= 0 and math.isfinite(number)):
        raise DataError(f"{where}: {name} must be finite and at least 0, not {value!r}.")
    return number


def _saving(spent: float | None, reference: float | None) -> float | None:
    return None if spent is None or not reference else 1 - spent / reference


_SHORT = {
    "embedding": "embed",
    "metrics": "meas.",
    "selection": "select",
    "start-up": "start",
    "planning": "plan",
    "training": "train",
    "other": "other",
}


def _columns(ledger: Ledger, compact: bool) -> list[tuple[str, list[str]]]:
    """Blocks of right-aligned columns: (what stands above the block, lines of header and cells)."""
    entries = ledger.entries
    number = numbers.compact if compact else numbers.count

    def time(value: float | None) -> str:
        if compact and value is not None and value >= 100_000:
            return f"{value / 1000:,.0f}k"  # six columns of them must fit
        return number(round(value)) if value is not None and value >= 1000 else numbers.seconds(value)

    def column(header: str, cells: list[str]) -> list[str]:
        width = max(map(len, [header, *cells]))
        return [cell.rjust(width) for cell in [header, *cells]]

    def block(above: str, *columns: list[str]) -> tuple[str, list[str]]:
        return above, [" ".join(cells) for cells in zip(*columns, strict=True)]

    # No arm had metrics computed in most runs: their column then only takes room.
    rare = ("metrics", "start-up", "other")
    stages = [stage for stage in STAGES if stage not in rare or any(e.seconds[stage] != 0 for e in entries)]
    if _start(ledger) is not None:  # which a sentence says
        stages.remove("start-up")
    return [
        block(
            "back-propagated",
            column("rows", [number(e.rows) for e in entries]),
            column("epochs", [number(e.epochs) for e in entries]),
            column("steps", [number(e.steps) for e in entries]),
            column("samples", [number(e.samples_backward) for e in entries]),
        ),
        block(
            "-seconds-",
            *(column(_SHORT[stage], [time(e.seconds[stage]) for e in entries]) for stage in stages),
            column("total", [time(e.total_seconds) for e in entries]),
        ),
        block(
            "-saving-",
            column("samples", [numbers.saving(ledger.saving_samples(e.arm)) for e in entries]),
            column("time", [numbers.saving(ledger.saving_seconds(e.arm)) for e in entries]),
        ),
        block(
            "test",
            column(
                "acc." if ledger.goal.accuracy else ledger.goal.short,
                [ledger.goal.text(ledger.goal.value(e.metrics)) for e in entries],
            ),
        ),
    ]


def _table(ledger: Ledger) -> str:
    if not ledger.entries:
        return "The ledger is empty, because no model was trained."
    titles = [" ".join(entry.title.split()) for entry in ledger.entries]
    longest = max(map(len, titles))
    word = max(len(word) for title in ["arm", *titles] for word in title.split())
    blocks, room = _fit(ledger, compact=False)
    if room < max(min(longest, 14), word):
        blocks, room = _fit(ledger, compact=True)
    width = max(word, min(longest, room))

    above = " " * width
    lines = [[text] for text in ("arm".ljust(width), *[""] * len(ledger.entries))]
    for title, cells in blocks:
        size = max(len(title), len(cells[0]))
        # A title in dashes spans its block; another belongs to the block's last column.
        spans = title.startswith("-")
        above += "  " + (f" {title.strip('-')} ".center(size, "-") if spans else title.rjust(size))
        for line, cell in zip(lines, cells, strict=True):
            line.append(cell.rjust(size))
    rows = [above.rstrip(), "  ".join(lines[0])]
    rule = "-" * len(rows[1])
    rows.append(rule)
    for title, (_, *cells) in zip(titles, lines[1:], strict=True):
        head, *rest = textwrap.wrap(title, width, break_on_hyphens=False) or [""]
        rows.append("  ".join([head.ljust(width), *cells]).rstrip())
        rows.extend(rest)
    rows += [rule, _meaning(ledger)]
    return "\n".join(rows)


def _fit(ledger: Ledger, compact: bool) -> tuple[list[tuple[str, list[str]]], int]:
    blocks = _columns(ledger, compact)
    return blocks, WIDTH - sum(2 + max(len(title), len(cells[0])) for title, cells in blocks)


def _start(ledger: Ledger) -> float | None:
    """Return the seconds in which the workers of all arms started, if these are the same for each arm."""
    seconds = {entry.seconds["start-up"] for entry in ledger.entries}
    return seconds.pop() or None if len(seconds) == 1 else None


def _meaning(ledger: Ledger) -> str:
    full = ledger.entry(REFERENCE)
    if full is None and ledger.full_samples is not None:
        words = (
            f"Saving in samples: 1 - samples / {numbers.count(ledger.full_samples)}, where {numbers.count(ledger.full_samples)} "
            f"is the number of pool rows times the number of epochs. The saving in time is {numbers.MISSING}, because no model was trained on the full pool; to train one, set controls: [full] in the workflow."
        )
    elif full is None:
        words = (
            "No savings are given, because a saving compares with a training on the full pool, which this run does not have; "
            "set controls: [full] in the workflow."
        )
    else:
        words = f"Saving: 1 - cost / cost of {full.title}; a negative saving is an extra cost. "
        if not any(entry.seconds["start-up"] for entry in ledger.entries):
            words += "Other: start-up, evaluation, checkpoints."
        elif (start := _start(ledger)) is None:
            words += "Start: start-up of the workers, counted in each arm that they trained. Other: evaluation, checkpoints."
        else:
            words += (
                f"The start-up of the workers took {numbers.seconds(start)} s once; each total includes it. "
            )
            words += "Other: evaluation, checkpoints."
    if not ledger.goal.accuracy:
        words += f" {ledger.goal.head}: {ledger.goal.rule}."
    if ledger.reused:
        words += f" {ledger.reused}"
    return "\n".join(textwrap.wrap(words, WIDTH))
