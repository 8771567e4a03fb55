"""What a Ray Dataset's plan says: rows that are only read, and columns that are only selected and renamed.

Ray has no public view of a plan, so this reads the logical plan. If a later Ray has another one, nothing is
recognised: the rows are read through Ray Data instead, which is slower and gives the same values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from ray.data import Dataset, Datasource

Read = Callable[[], Iterable[pa.Table]]  # reads some of the rows, on any node


class TableSource(Datasource):
    """A source whose rows plain tasks can read, too, which cost the driver far less than those of Ray Data."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the names of all columns."""

    @abstractmethod
    def reads(self, columns: Sequence[str], cpus: int) -> list[Read]:
        """Return what reads these columns of all rows, in the order of the rows and in parts enough for ``cpus`` CPUs."""


def source_columns(dataset: Dataset) -> tuple[TableSource, dict[str, str]] | None:
    """Return the source whose rows ``dataset`` holds, if it holds all of them with unchanged values.

    Returns
    -------
    (TableSource, dict) or None
        The source, and for each column of ``dataset`` the name of that column in the source.
    """
    step, projections = below_projections(dataset)
    source = getattr(step, "datasource", None)
    if not isinstance(source, TableSource) or any(one is None for one in projections):
        return None
    names = {name: name for name in source.columns()}
    for projection in reversed(projections):
        assert projection is not None
        if not set(projection.values()) <= set(names):
            return None
        names = {name: names[below] for name, below in projection.items()}
    return source, names


def below_projections(dataset: Dataset) -> tuple[Any, list[dict[str, str] | None]]:
    """Return the last step that does more than select and rename columns, and each projection after it."""
    step: Any = getattr(getattr(dataset, "_logical_plan", None), "dag", None)
    projections = []
    while type(step).__name__ == "Project":
        projections.append(_projection(getattr(step, "exprs", [None])))
        step = step.input_dependencies[0]
    return step, projections


def _projection(expressions: Sequence[Any]) -> dict[str, str] | None:
    """Return the column names before the step by the names after it; None if a value is computed."""
    names: dict[str, str] = {}
    for expression in expressions:
        column = expression.expr if type(expression).__name__ == "AliasExpr" else expression
        if type(column).__name__ != "ColumnExpr":
            return None
        names[expression.name] = column.name
    return names
