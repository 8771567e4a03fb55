"""Vectors that a column holds already. Without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raysel.data.decode import Takes
from raysel.data.embedders.embedder import check_no_argument


@dataclass(frozen=True)
class ColumnEmbedder:
    """Returns the column as it is."""

    name: str = "column"
    takes: Takes = "matrix"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows."""
        return rows

    def __fingerprint__(self) -> Any:
        return (1,)


def stored_column(spec: str, argument: str) -> ColumnEmbedder:
    """Use the numbers in the column as vectors, without changing them.

    Parameters
    ----------
    spec : str
        Complete name, such as ``column``.
    argument : str
        Empty.

    Returns
    -------
    ColumnEmbedder
        An embedder that needs no fit.

    Raises
    ------
    ConfigError
        If the name has another form.
    """
    check_no_argument(spec, argument)
    return ColumnEmbedder()
