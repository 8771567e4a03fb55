"""Results of a run, a comparison and a measurement as typed objects, saved as JSON and read by reports and users."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from raysel.core.storage import Place, output, read_bytes, write_text
from raysel.errors import DataError, RunError, reason_of
from raysel.report.goal import Goal
from raysel.report.ledger import Ledger

__all__ = [
    "Arm",
    "CalibrationCost",
    "Cell",
    "Chosen",
    "ClassCount",
    "CompareResults",
    "ComparedPolicy",
    "Curve",
    "Data",
    "Epoch",
    "Extremes",
    "Goal",
    "LabelCheck",
    "Leaked",
    "MeasureResults",
    "Measured",
    "Metric",
    "Metrics",
    "PolicyUse",
    "ReasonShown",
    "RunResults",
    "Scored",
    "ShownLabel",
    "ShownRow",
    "Usage",
    "statistic",
]

R = TypeVar("R", bound="_Saved")
FORMAT = 3
"""Version of the files ``results.json``, ``compare.json`` and ``measure.json``."""


@dataclass(frozen=True)
class _Header:
    """The only field that files of every format have; those of format 1 did not write it."""

    format: int = 1


@dataclass(frozen=True)
class _Saved:
    format: int = field(default=FORMAT, kw_only=True)
    path: str = field(default="", kw_only=True, compare=False)

    def __repr__(self) -> str:
        """Return the name of the workflow and the path: the fields hold everything that a report shows."""
        return f"<{type(self).__name__} of {getattr(self, 'name', '')!r} in {self.path!r}>"

    def save(self, path: str | os.PathLike[str]) -> Place:
        """Write the results as JSON. The file appears under its name only when it is complete."""
        text = TypeAdapter(type(self)).dump_json(self, indent=1, exclude={"path"}).decode()
        write_text(path, text + "\n")
        return output(path)

    def json(self) -> str:
        """Return the results, with their path, as one line of JSON."""
        return TypeAdapter(type(self)).dump_json(self).decode()

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what :meth:`save` wrote.

        Raises
        ------
        RunError
            If the file is missing, damaged, or was written in another format.
        """
        try:
            text = read_bytes(path)
            # The format comes first: in a file of another one, every other field may be missing or differ.
            header = TypeAdapter(_Header).validate_json(text, strict=True)
            if header.format != FORMAT:
                raise RunError(
                    f"No report can be written from {path}: the file has format {header.format}, but this version of "
                    f"raysel reads format {FORMAT}; run the workflow again."
                )
            found: R = TypeAdapter(cls).validate_json(text, strict=True)
        except OSError as error:
            raise RunError(
                f"No report can be written from {path} ({reason_of(error)}); give the directory of a finished run."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            reason = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise RunError(
                f"No report can be written from {path}: {place} is damaged ({reason}); run the workflow again."
            ) from error
        object.__setattr__(found, "path", str(output(path).resolve().parent))
        return found


# ---- a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """One epoch of one arm.

    Attributes
    ----------
    epoch : int
        Number of the epoch, counted from 0.
    planned, trained, steps : int
        Samples in the plan, samples back-propagated, and optimizer steps.
    loss : float or None
        Mean loss over the samples that the arm trained on.
    metrics : dict of str to float or None
        Metrics of the task on the validation rows; empty without validation rows. None stands for a value that is not
        finite.
    seconds, planning_seconds, evaluation_seconds : float
        Wall-clock time of the epoch, and the parts of it spent on planning and on evaluation.
    nonfinite : int
        Samples whose loss was NaN or infinite.
    digest : str
        Digest of the committed selection state.
    """

    epoch: int
    planned: int
    trained: int
    steps: int
    loss: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    planning_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    nonfinite: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Arm:
    """One training of a run: title, number of rows, epochs, the metrics of the task on the test rows, and its folder.

    ``metrics`` is empty without test rows. None stands for a value that is not finite.
    """

    name: str
    title: str
    rows: int
    epochs: tuple[Epoch, ...] = ()
    metrics: dict[str, float | None] = field(default_factory=dict)
    folder: str = ""


@dataclass(frozen=True)
class Data:
    """Number of rows per role, and the names of the classes.

    ``validation_from`` is the role that the validation rows were drawn from; None if they have files of their own.
    """

    pool: int
    target: int = 0
    validation: int = 0
    test: int = 0
    avoid: int = 0
    classes: tuple[str, ...] = ()
    validation_from: str | None = None


@dataclass(frozen=True)
class ClassCount:
    """Rows of one class in the pool, among the selected rows, and in the target (None without labels)."""

    label: str
    pool: int
    kept: int
    target: int | None = None


@dataclass(frozen=True)
class Curve:
    """KL divergence in nats after each step of the selection, and the number of rows selected by then.

    A divergence that is NaN or infinite is read back as None, since JSON has no such numbers.
    """

    rows: tuple[int, ...] = ()
    kl: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Leaked:
    """Number of test rows that are among the training rows: near duplicates from a cosine on, or copies (None)."""

    rows: int
    cosine: float | None = None


@dataclass(frozen=True)
class ShownRow:
    """A row that the report shows: a base64-encoded PNG image or a text, and the number of epochs that selected the row."""

    id: int
    image: str | None = None
    text: str | None = None
    times: int | None = None


@dataclass(frozen=True)
class ReasonShown:
    """A reason for which rows were selected (``kept``) or dropped, the number of these rows, and some of them."""

    reason: str
    kept: bool
    rows: int
    samples: tuple[ShownRow, ...]


@dataclass(frozen=True)
class Chosen:
    """Summary of the static selection.

    Names of the methods, rows selected and in the pool, KL curve, classes, sentences of the selectors, the folder of
    the Selection in the run directory, and examples for every reason.
    """

    method: str
    kept: int
    pool: int
    curve: Curve = Curve()
    classes: tuple[ClassCount, ...] = ()
    notes: tuple[str, ...] = ()
    folder: str = ""
    reasons: tuple[ReasonShown, ...] = ()


@dataclass(frozen=True)
class ShownLabel:
    """A row whose label may be wrong: its label, the most frequent one of its neighbours, and what is shown of the row."""

    id: int
    label: str
    neighbours: str
    image: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class LabelCheck:
    """Labels that may be wrong, by losses.

    Attributes
    ----------
    rows, ranked : int
        Number of rows with a loss, and of those in the ranking.
    other : int
        Number of ranked rows with a higher loss than their neighbours, most of which have another label.
    file : str
        The ranking, in the run directory.
    samples : tuple of ShownLabel
        The first rows of the ranking.
    """

    rows: int
    ranked: int
    other: int
    file: str
    samples: tuple[ShownLabel, ...] = ()


@dataclass(frozen=True)
class Metric:
    """One statistic of one metric, as in :func:`raysel.gime.measure`."""

    metric: str
    statistic: str
    value: float | None
    unit: str | None = None
    bound: float | None = None
    reason: str | None = None


Metrics = dict[str, tuple[Metric, ...]]
"""Names of sets or groups to their metrics."""


def statistic(metrics: Iterable[Metric], metric: str, name: str) -> Metric | None:
    """Return the statistic ``name`` of ``metric``, or None if it is not among ``metrics``."""
    return next((found for found in metrics if (found.metric, found.statistic) == (metric, name)), None)


@dataclass(frozen=True)
class CalibrationCost:
    """Number of subsets, rows per subset, rows trained on in all, and seconds of a calibration."""

    count: int
    rows: int
    rows_trained: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Metrics of the pool, the selected rows and the target; thresholds, and the values of the selected rows."""

    sets: Metrics
    thresholds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    reached: Mapping[str, float] = field(default_factory=dict)
    calibration: CalibrationCost | None = None


@dataclass(frozen=True)
class PolicyUse:
    """How often a policy selected each sample over a run.

    Attributes
    ----------
    title : str
        Name of the policy.
    gini, variation : float
        Gini coefficient of the counts, and their total variation from a uniform draw.
    times : tuple of (int, int)
        Pairs (times selected, number of samples), ascending.
    rare : tuple of float
        After each epoch, the share of the rare factors seen so far.
    """

    title: str
    gini: float
    variation: float
    times: tuple[tuple[int, int], ...]
    rare: tuple[float, ...]


@dataclass(frozen=True)
class Extremes:
    """Samples of one class that were selected most and least often."""

    label: str
    most: tuple[ShownRow, ...]
    least: tuple[ShownRow, ...]


@dataclass(frozen=True)
class Scored:
    """Input of the factor scores: samples, factors and classes; ``classes`` is None without labels."""

    samples: int
    units: int
    live_units: int
    active: float
    classes: int | None = None


@dataclass(frozen=True)
class Usage:
    """How RepDiv used the samples; ``policies`` is empty if there were too many samples to compute it."""

    scored: Scored
    rare_units: int
    unexplained: float | None = None
    policies: tuple[PolicyUse, ...] = ()
    alpha: tuple[float, ...] = ()
    extremes: Extremes | None = None


@dataclass(frozen=True, repr=False)
class RunResults(_Saved):
    """Results of a run, as `raysel.run` returns them and the report shows them.

    Attributes
    ----------
    name, raysel, versions, seed, config
        Name of the workflow, versions, seed and configuration.
    created : str
        Time of these results in ISO 8601. It is ignored when two results are compared.
    data : Data
        Number of rows per role.
    inputs : dict
        Digest of the rows of every role.
    trusted : tuple of str
        Roles whose files are identified by modification time and size, not by content (``trust: mtime``).
    selection, metrics, usage
        Summaries of the static selection, the metrics and the use of samples; None if the run had no such step.
    arms : dict
        Arms by name.
    ledger : Ledger
        Costs of every arm.
    goal : Goal
        The metric that the report compares the arms by.
    labels : LabelCheck, optional
        Labels that may be wrong; None if they were not checked.
    leaked : Leaked, optional
        Test rows that are also training rows; None if it was not checked.
    path : str
        The run directory.
    format : int
        Version of the file format.
    """

    name: str
    created: str = field(compare=False)
    raysel: str
    versions: dict[str, str]
    seed: int
    config: dict[str, Any]
    data: Data
    arms: dict[str, Arm]
    ledger: Ledger
    inputs: dict[str, str] = field(default_factory=dict)
    trusted: tuple[str, ...] = ()
    selection: Chosen | None = None
    metrics: Measured | None = None
    usage: Usage | None = None
    goal: Goal = field(default_factory=Goal)
    labels: LabelCheck | None = None
    leaked: Leaked | None = None

    def __post_init__(self) -> None:
        if self.ledger.entries and self.ledger.goal != self.goal:
            raise DataError(
                "The ledger and the key 'goal' name different metrics, or disagree on whether larger values are better."
            )

    @property
    def only_selects(self) -> bool:
        """Whether the workflow has no key ``train``, so that there are no arms."""
        return self.config.get("train", {}) is None

    def score(self, arm: str) -> float | None:
        """Return the reported metric of an arm on the test rows; None if there is no such arm or number."""
        found = self.arms.get(arm)
        return None if found is None else self.goal.value(found.metrics)


# ---- a comparison --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One policy trained with one seed.

    Attributes
    ----------
    policy : dict
        The policy's name and parameters.
    max_steps : int or None
        Optimizer steps after which training stopped.
    metrics : dict of str to float or None
        Metrics of the task on the test rows after the last epoch. None stands for a value that is not finite.
    """

    seed: int
    policy: dict[str, Any]
    epochs: tuple[Epoch, ...]
    metrics: dict[str, float | None]
    max_steps: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ComparedPolicy:
    """One policy of a comparison, with one cell per seed.

    ``budget`` is "sets" for the workflow's own policy, "held" for a policy that trains on as many samples, and
    "free" for one that runs with its defaults.
    """

    title: str
    budget: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, repr=False)
class CompareResults(_Saved):
    """Results of a comparison, as `raysel.compare` returns them.

    Attributes
    ----------
    created : str
        Time of these results in ISO 8601. It is ignored when two results are compared.
    rows : int
        Rows that every policy selects from: those of the pool, or those that the static selection selected.
    epochs : int
        Number of epochs; full data trains on ``rows * epochs`` samples.
    batch_size : int
        Rows per optimizer step, over all workers together.
    own : str
        Name of the workflow's own policy in ``policies``.
    policies : dict
        The compared policies by name, in the order of the table.
    goal : Goal
        The metric that the policies are compared by.
    """

    name: str
    created: str = field(compare=False)
    raysel: str
    versions: dict[str, str]
    seeds: tuple[int, ...]
    config: dict[str, Any]
    data: Data
    rows: int
    epochs: int
    batch_size: int
    own: str
    policies: dict[str, ComparedPolicy]
    trusted: tuple[str, ...] = ()
    goal: Goal = field(default_factory=Goal)


# ---- a measurement -------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class MeasureResults(_Saved):
    """Metrics of the pool, its groups and the target, as `raysel.measure` returns them."""

    name: str
    sets: Metrics
    groups: Metrics = field(default_factory=dict)
