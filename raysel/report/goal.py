"""The metric that a run reports, the direction in which it improves, and how its values are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raysel.errors import DataError
from raysel.report import numbers

_LABELS = {"rmse": "RMSE", "mae": "MAE", "mse": "MSE", "iou": "IoU", "mean_iou": "mean IoU", "f1": "F1"}
_SHARE = re.compile(r"(.*_)?(accuracy|iou|dice|precision|recall|f1|error_rate)")


@dataclass(frozen=True)
class Goal:
    """Which metric of the task is reported, and whether larger values are better.

    Attributes
    ----------
    metric : str
        Name of the metric.
    direction : {"max", "min"}
        "max" if larger values are better, "min" if smaller values are better.
    """

    metric: str = "accuracy"
    direction: Literal["max", "min"] = "max"

    @property
    def share(self) -> bool:
        """Whether values are shares of 1, by the name of the metric; they are written as percentages."""
        return is_share(self.metric)

    @property
    def accuracy(self) -> bool:
        """Whether the goal is a higher accuracy, for which there are words of its own."""
        return self == Goal()

    @property
    def label(self) -> str:
        """The name of the metric within a sentence, such as "accuracy" or "RMSE"."""
        return label_of(self.metric)

    @property
    def head(self) -> str:
        """The name of the metric at the start of a sentence."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def plural(self) -> str:
        """The name of several values of the metric within a sentence."""
        return "accuracies" if self.accuracy else f"values of the {self.label}"

    @property
    def short(self) -> str:
        """The name of the metric in at most 12 characters."""
        return self.label if len(self.label) <= 12 else f"{self.label[:11].rstrip()}."

    @property
    def rule(self) -> str:
        """The direction in words: "higher is better" or "lower is better"."""
        return "higher is better" if self.direction == "max" else "lower is better"

    @property
    def hint(self) -> str:
        """The rule in parentheses for a metric that a smaller value improves, else an empty string."""
        return f" ({self.rule})" if self.direction == "min" else ""

    def value(self, metrics: Mapping[str, float | None]) -> float | None:
        """Return the value of the reported metric; None if it was not measured or is not finite."""
        found = metrics.get(self.metric)
        return found if found is not None and math.isfinite(found) else None

    def better(self, one: float, other: float) -> bool:
        """Return whether ``one`` is a better value than ``other``."""
        return one > other if self.direction == "max" else one < other

    def text(self, value: float | None) -> str:
        """Return a value as text: a share in percent, any other metric with four digits."""
        return metric_text(self.metric, value)

    def change(self, one: float, other: float) -> str:
        """Return how far ``one`` is from ``other``, such as "0.5 points lower"; empty if both are written alike.

        The text has percentage points for a share, else the absolute and the relative difference.
        """
        away = one - other
        if (abs(away) < 0.0005) if self.share else (self.text(one) == self.text(other)):
            return ""
        side = "higher" if away > 0 else "lower"
        if self.share:
            size = f"{100 * abs(away):.1f} points {side}"
        else:
            ratio = relative(away, other)
            size = numbers.metric(abs(away))
            size += f" {side}" if ratio is None else f" ({numbers.percent(abs(ratio))}) {side}"
        if self.share and self.direction == "max":
            return size
        return f"{size}, which is {'better' if self.better(one, other) else 'worse'}"


def is_share(metric: str) -> bool:
    """Return whether the values of a metric are shares of 1, by its name."""
    return _SHARE.fullmatch(metric) is not None


def label_of(metric: str) -> str:
    """Return the name of a metric within a sentence."""
    return _LABELS.get(metric, metric.replace("_", " "))


def metric_text(metric: str, value: float | None) -> str:
    """Return a value of a metric as text: a share in percent, any other metric with four digits."""
    if value is None or not math.isfinite(value):
        return numbers.MISSING
    return numbers.percent(value) if is_share(metric) else numbers.metric(value)


def relative(difference: float, reference: float) -> float | None:
    """Return a difference as a share of the value that it is measured from; None for a value of 0."""
    return difference / abs(reference) if reference else None


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return metrics with None in place of numbers that are NaN or infinite."""
    return {name: v if v is not None and math.isfinite(v) else None for name, v in metrics.items()}


def checked(metrics: Any, where: str) -> dict[str, float | None]:
    """Return metrics as a dict of finite numbers and None.

    Raises
    ------
    DataError
        If ``metrics`` is not a mapping of names to finite numbers, or a share is not between 0 and 1.
    """
    if not isinstance(metrics, Mapping):
        raise DataError(
            f"{where}: 'metrics' must be a mapping from the name of a metric to a number, not a {type(metrics).__name__}."
        )
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise DataError(f"{where}: {name} must be a finite number, not {value!r}.")
        if number is not None and is_share(str(name)) and not 0 <= number <= 1:
            raise DataError(f"{where}: {name} must be between 0 and 1, not {value!r}.")
        found[str(name)] = number
    return found
