"""Principal components of a numeric column, fitted on all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from raysel.cluster.blocks import column_names, stream_blocks
from raysel.core.fingerprint import library_versions
from raysel.data import shards
from raysel.data.decode import Takes, decode
from raysel.data.embedders.embedder import FITTED_ON, number_of_elements
from raysel.data.principal_components import Grid, Moments, Range, components
from raysel.data.product import project
from raysel.data.row_index import ID
from raysel.data.vectors import not_finite
from raysel.errors import ConfigError, DataError, first


@dataclass(frozen=True, eq=False)
class PCAEmbedder:
    """Projects onto principal components: ``(x - mean) @ components.T``.

    Attributes
    ----------
    name : str
        Name of the embedder.
    mean : array of float32, shape (D,)
        Mean of the rows.
    components : array of float32, shape (N, D)
        Components of unit length, largest variance first.
    explained : float
        Share of the variance that the N components have.
    """

    name: str
    mean: np.ndarray
    components: np.ndarray
    explained: float
    takes: Takes = "numbers"

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the projections of the rows."""
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"Embedder {self.name} was fitted on rows of {len(self.mean)} elements, but these rows have "
                f"{rows.shape[1]}; embed the same columns as in the fit."
            )
        return project(rows, self.mean, self.components.T)

    def __fingerprint__(self) -> Any:
        return 1, self.mean, self.components, library_versions("numpy")


@dataclass(frozen=True)
class PCA:
    """Project a numeric column onto its principal components (PCA), which are fitted on the pool.

    Parameters
    ----------
    spec : str
        Complete name, such as ``pca:32``.
    argument : str
        Number of components.

    Raises
    ------
    ConfigError
        If the name has another form.
    """

    spec: str
    argument: str
    takes: ClassVar[Takes] = "numbers"

    def __post_init__(self) -> None:
        number_of_elements(self.spec, self.argument)

    def check(self, width: int, rows: int | None = None) -> None:
        """Raise ConfigError if a column of ``width`` elements, or so few rows, have fewer components."""
        count = int(self.argument)
        if count > width:
            raise ConfigError(
                f"embedder: '{self.spec}' has {count} components, but the column has {width} elements; choose at most {width}."
            )
        if rows is not None and count > rows:
            raise ConfigError(
                f"embedder: '{self.spec}' has {count} components, but there are {rows} rows to learn from; choose at most "
                f"{rows}."
            )

    def fit(self, dataset: Dataset, columns: list[str]) -> PCAEmbedder:
        """Learn the components from the only one of ``columns``."""
        if len(columns) > 1:
            raise ConfigError(
                f"column: '{self.spec}' is fitted on one column, not {len(columns)} ({', '.join(columns)}); the embedder 'table' "
                "takes several."
            )
        name = columns[0]
        wanted = [ID, name] if ID in column_names(dataset) else [name]
        span = _range_of(dataset, wanted, name)
        self.check(len(span.low), span.rows)
        grid = Grid.over(span)
        total: Moments | None = None
        for moments in stream_blocks(dataset, wanted, FITTED_ON, _moments, name, grid):
            total = moments if total is None else total + moments
        assert total is not None
        return PCAEmbedder(self.spec, *components(total, grid, int(self.argument)))


def _range_of(dataset: Dataset, wanted: list[str], name: str) -> Range:
    """Return the range of all rows; raise DataError for NaN, no rows and rows of different lengths."""
    span: Range | None = None
    bad = 0
    some: list[int] = []
    for part, wrong in stream_blocks(dataset, wanted, FITTED_ON, _range, name):
        bad, some = bad + len(wrong), sorted([*some, *wrong.tolist()])[:4]
        if part is not None:
            if span is not None and len(span.low) != len(part.low):
                raise DataError(
                    f"Column '{name}' of the {FITTED_ON} holds vectors of different lengths: "
                    f"{first(sorted((len(span.low), len(part.low))))}. Give all rows of the column vectors of one length."
                )
            span = part if span is None else span + part
    if bad:
        more = f" and {bad - 3:,} more" if bad > 3 else ""
        raise DataError(
            f"Column '{name}' of the {FITTED_ON} holds NaN or infinite values in {bad:,} rows (sample_id "
            f"{first(some[:3])}{more}); repair or drop these rows first."
        )
    if span is None:
        raise DataError(f"The {FITTED_ON} is empty: there are no rows to learn from.")
    return span


def _values(table: pa.Table, name: str) -> np.ndarray:
    numbered = table if ID in table.column_names else table.append_column(ID, pa.array(range(len(table))))
    rows = decode(numbered, [name], "numbers")
    if rows.rejected:
        shards.refuse(rows.rejected, rows.ids)
    return rows.rows


def _range(table: pa.Table, name: str) -> tuple[Range | None, np.ndarray]:
    values = _values(table, name)
    ids = table[ID].to_numpy() if ID in table.column_names else np.arange(len(values))
    if values.dtype.kind == "f" and len(bad := not_finite(values)):
        return None, ids[bad]
    return Range.of(values), ids[:0]


def _moments(table: pa.Table, name: str, grid: Grid) -> Moments:
    return Moments.of(_values(table, name), grid)
