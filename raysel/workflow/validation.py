"""Validation rows that are drawn from the target or the pool, by a hash of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.hashing import hash_ids
from raysel.data.row_index import ID
from raysel.errors import ConfigError
from raysel.selection import Selection, constant_text
from raysel.workflow.config import Workflow
from raysel.workflow.inputs import Input

_STREAM = 0x56A11DA7E  # apart from the draws of selectors, which hash the same ids


@dataclass(frozen=True)
class Drawn:
    """Validation rows that were taken out of another role.

    Attributes
    ----------
    role : {"target", "pool"}
        Where they were drawn from.
    share : float
        Share that the workflow names.
    seed : int
        The workflow's seed.
    ids, rest : numpy.ndarray
        ``sample_id`` of the rows that were drawn and of those that were not, int64, ascending.
    """

    role: str
    share: float
    seed: int
    ids: np.ndarray
    rest: np.ndarray

    @property
    def key(self) -> dict[str, Any]:
        """Part of the key of every step that reads the role."""
        return {"role": self.role, "share": self.share, "seed": self.seed}

    def selection(self) -> Selection:
        """Return the rows that were not drawn, as a selection from the pool."""
        dropped = pa.table({ID: self.ids, "reason": constant_text("validation row", len(self.ids))})
        info = {"method": "", "pool_rows": len(self.ids) + len(self.rest)}
        return Selection.of(self.rest, reason="not a validation row", dropped=dropped, info=info)


def drawn_role(workflow: Workflow) -> str | None:
    """Role that the validation share is drawn from: the target if it has labels, else the pool; None without a share."""
    if not isinstance(workflow.validation, float):
        return None
    return "target" if workflow.target is not None and workflow.target.label is not None else "pool"


def draw(workflow: Workflow, inputs: Mapping[str, Input]) -> Drawn | None:
    """Draw the validation rows, None without a share. Raises ConfigError if it leaves no row on either side."""
    role = drawn_role(workflow)
    return None if role is None else draw_ids(workflow, role, inputs[role].count)


def draw_ids(workflow: Workflow, role: str, count: int) -> Drawn:
    """Draw validation rows from the ``count`` rows of a role; see :func:`draw`."""
    assert isinstance(workflow.validation, float)
    ids = np.arange(count, dtype=np.int64)
    taken = hash_ids(ids, workflow.seed ^ _STREAM) < workflow.validation
    if taken.all() or not taken.any():
        raise ConfigError(
            f"validation: The share {workflow.validation:g} selects {int(taken.sum()):,} of the {len(ids):,} rows of {role}.path, but "
            "both validation rows and other rows are needed; choose another share, or give the validation rows as files."
        )
    return Drawn(role, workflow.validation, workflow.seed, ids[taken], ids[~taken])
