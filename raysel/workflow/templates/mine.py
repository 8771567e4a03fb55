"""A selector, a policy and an embedder of your own, which own.yaml names as mine.py:Name.

Each is a frozen dataclass. Its fields are keys that the workflow can set; raysel checks the types of the values.
``raysel methods mine.py:Nearest`` prints the fields.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

import raysel
from raysel.dynamic.plan import unweighted
from raysel.dynamic.state import observe


@dataclass(frozen=True)
class Nearest:
    """Select the pool rows that are nearest to the mean of the target.

    Parameters
    ----------
    budget : float
        Share of the pool's rows to select.
    """

    budget: float

    uses_vectors: ClassVar[bool] = (
        True  # select gets the columns sample_id and embedding; with False, the columns of the files
    )
    uses_target: ClassVar[bool] = True  # select also gets the target

    def select(self, pool, target):
        """Return a raysel.Selection; pool and target are Ray Datasets."""
        centre = np.mean([row["embedding"] for row in target.iter_rows()], axis=0)

        def distances(batch):
            vectors = np.stack(batch["embedding"])
            return {"sample_id": batch["sample_id"], "distance": np.linalg.norm(vectors - centre, axis=1)}

        rows = pool.map_batches(distances).to_pandas().sort_values(["distance", "sample_id"])
        chosen = rows.head(max(1, round(self.budget * len(rows))))
        return raysel.Selection.of(
            chosen["sample_id"].to_numpy(),
            score=-chosen["distance"].to_numpy(),
            reason="near the target",
            info={"method": "nearest", "pool_rows": len(rows), "score": "minus the distance"},
        )


@dataclass(frozen=True)
class HideEasy:
    """Leave out the samples with the smallest losses in every epoch except the first.

    Parameters
    ----------
    share : float
        Share of the samples that is left out.
    """

    share: float = 0.3

    def plan(self, state, *, epoch, num_epochs, seed):
        """Return the samples that the epoch trains on. The result must depend on the arguments only."""
        seen = np.flatnonzero(np.isfinite(state.loss))
        easy = seen[np.argsort(state.loss[seen], kind="stable")[: int(self.share * len(state))]]
        keep = np.ones(len(state), dtype=bool)
        keep[easy] = False
        return unweighted(keep)

    def update(self, state, plan, slots, losses):
        """Return the state after an epoch, with its losses."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self):
        """Return the name and the parameters, for the report and for reusing finished trainings."""
        return {"policy": "HideEasy", **asdict(self)}


@dataclass(frozen=True)
class Damped:
    """Raise the magnitude of every number to a power below 1, so that outliers count less.

    Parameters
    ----------
    power : float
        The exponent, between 0 and 1.
    """

    power: float = 0.5

    name: ClassVar[str] = "damped"

    def __call__(self, rows):
        """Return one float32 vector per row; the vector of a row may depend on that row only."""
        return (np.sign(rows) * np.abs(rows) ** self.power).astype(np.float32)
