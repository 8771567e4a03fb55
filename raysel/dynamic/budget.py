"""The samples that a run back-propagated, and the shares at which another policy back-propagates as many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raysel.dynamic.plan import part
from raysel.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """Number of samples that a run of a policy back-propagated.

    A policy with a class method ``at_budget(budget)`` can be held to it: the method returns the policy that spends as
    much, or raises ConfigError.

    Attributes
    ----------
    rows : int
        Samples that the policy selected among.
    epochs : int
        Epochs of the run.
    passes : int
        Samples back-propagated over all epochs.
    delta : float
        The tail on all the data begins at epoch floor(epochs * delta); 1 for no tail.
    """

    rows: int
    epochs: int
    passes: int
    delta: float

    @property
    def tail(self) -> int:
        """Number of epochs at the end that take all the data."""
        return self.epochs - part(self.delta, self.epochs)

    @property
    def saving(self) -> float:
        """Share of all passes that was left out."""
        return 1 - self.passes / (self.rows * self.epochs)

    def rows_per_epoch(self, name: str) -> int:
        """Return the samples of each epoch before the tail, for a policy that takes equally many in each.

        Raises
        ------
        ConfigError
            If the tail alone spends more than the budget; the message begins with ``name``.
        """
        before = self.epochs - self.tail
        count = round((self.passes - self.rows * self.tail) / before) if before else self.rows
        if count < 1:
            raise ConfigError(
                f"{name}: A budget of {self.passes:,} samples is too small, because {self.tail} of the {self.epochs} "
                f"epochs train on all rows and need {self.rows * self.tail:,} samples. Raise the budget (in raysel compare, it is "
                "the number of samples that the policy of the workflow back-propagates), let fewer epochs train on all rows, or "
                "leave out this policy."
            )
        return count


def tail_delta(policy: Any, epochs: int) -> float:
    """Return the share of ``epochs`` at which the policy's tail on all the data begins; 1 for no tail."""
    if hasattr(policy, "tail_epochs"):
        return ratio_of(epochs - policy.tail_epochs(epochs), epochs)
    return float(getattr(policy, "delta", 1.0))


def ratio_of(count: int, rows: int) -> float:
    """Return a share of ``rows`` from which policies, which round down, compute ``count``."""
    return 1.0 if count >= rows else (count + 0.5) / rows
