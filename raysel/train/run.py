"""What is fixed for a complete run of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysel.errors import StateError


@dataclass(frozen=True)
class Run:
    """What is fixed for a complete run.

    Attributes
    ----------
    policy : dict
        The policy's parameters.
    samples : int
        Number of samples that the policy selects from.
    num_epochs, seed : int
        Number of epochs, and the seed of all draws.
    max_steps : int or None
        Greatest number of optimizer steps.
    pool_rows : int or None
        Length that the training data must have; None if it is not known.
    chosen : str
        Digest of the samples' ids and weights.
    """

    policy: dict[str, Any]
    samples: int
    num_epochs: int
    seed: int
    max_steps: int | None
    pool_rows: int | None
    chosen: str = ""

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint of this run holds about it, as JSON does: a tuple is a list there."""
        fields = {name: value for name, value in asdict(self).items() if name != "pool_rows"}
        return dict(json.loads(json.dumps(fields)))

    def check(self, about: Mapping[str, Any], directory: Path) -> None:
        """Raise StateError unless this run can resume from a checkpoint, whose ``session.json`` holds ``about``."""
        mine, theirs = self.identity(), about["run"]
        saved = theirs["num_epochs"]
        if saved < self.num_epochs and about["within"]:
            raise StateError(
                f"The checkpoint {directory} was saved in the middle of epoch {about['epoch']} of a run of {saved} epochs. "
                f"Finish this epoch with num_epochs={saved}, and then resume with num_epochs={self.num_epochs}."
            )
        if saved > self.num_epochs:
            raise StateError(
                f"The checkpoint {directory} belongs to a run of {saved} epochs, but this run has "
                f"{self.num_epochs}; a run can be continued with more epochs, not with fewer."
            )
        other = [name for name in mine if name != "num_epochs" and theirs.get(name) != mine[name]]
        if other:
            raise StateError(
                f"The checkpoint {directory} belongs to another run: its {other[0]} is "
                f"{theirs.get(other[0])}, but that of this run is {mine[other[0]]}. Use the settings of that run, or give this "
                "run another directory for its checkpoints."
            )
