"""What an embedder is, and the checks of what it returns. Without Ray.

An embedder is a picklable callable with a name: ``embedder(rows) -> vectors (n, d) float32``. Optional
attributes:

- ``takes``: the form of the rows (see ``decode.Takes``), by default "any"
- ``tile``: number of ids that are embedded together, because a row's last bits depend on the other rows
- ``load(device)``: returns the callable to use instead, once per worker (a network and its weights)
- ``digest``: text that changes when the vectors may; by default the fingerprint
- ``prepare``: applied to every decoded image where it is decoded

The registry maps a name to a callable ``(spec, argument)``: for ``pca:32`` it receives ``"pca:32"`` and ``"32"``. The
call checks the argument and is cheap: it runs no code of the user's and loads nothing. It returns an embedder, or an
object with one of

- ``fit(dataset, columns)``: returns the embedder, fitted on rows
- ``open()``: returns the embedder, with its weights found

and optionally ``takes``, ``check(width)``, which raises ConfigError for a column of ``width`` elements that it cannot be
used on, and ``check_type(kind, name)``, which raises DataError for a column of an Arrow type that it cannot be used on.
A class may have a static method ``absolute(argument, place)``, which returns the argument with ``place(path)`` for
every relative path in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from raysel.data.decode import Takes
from raysel.errors import ConfigError, DataError, first

if TYPE_CHECKING:
    from ray.data import Dataset


FITTED_ON = "dataset that the embedder is fitted on"  # in messages


class Embedder(Protocol):
    """A picklable callable with a name; further attributes are optional (see the module)."""

    @property
    def name(self) -> str:
        """Name for people and for the keys of vectors."""
        ...

    def __call__(self, rows: Any) -> np.ndarray:
        """Return one vector per row: (n, d) float32."""
        ...


class Learner(Protocol):
    """An embedder that has to be fitted before it embeds."""

    def fit(self, dataset: Dataset, columns: list[str]) -> Embedder:
        """Return the fitted embedder."""
        ...


@dataclass(frozen=True)
class FunctionEmbedder:
    """A plain Python function; a row's vector must not depend on the other rows."""

    name: str
    function: Callable[[Any], np.ndarray]
    takes: Takes = "any"

    def __call__(self, rows: Any) -> np.ndarray:
        """Return what the function returns."""
        return self.function(rows)


def number_of_elements(spec: str, argument: str) -> int:
    """Return the argument of ``KIND:N``; raise ConfigError if it is no number of elements."""
    kind = spec.partition(":")[0]
    if not (argument.isascii() and argument.isdecimal()) or int(argument) < 1:
        raise ConfigError(
            f"embedder: '{spec}' must end with the number of elements of a vector, which is at least 1; write {kind}:32, for example."
        )
    return int(argument)


def check_no_argument(spec: str, argument: str) -> None:
    """Raise ConfigError if there is an argument after the name."""
    if argument or spec.endswith(":"):
        name = spec.partition(":")[0]
        raise ConfigError(
            f"embedder: '{spec}' has an argument, but the embedder '{name}' takes none; write {name}."
        )


def check_vectors(vectors: Any, ids: np.ndarray, name: str, dimension: int | None = None) -> np.ndarray:
    """Return ``vectors`` if they are valid for these ids, (n, d) float32; raise DataError otherwise."""
    where = f"the rows from sample_id {first(ids[:1])}"
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        got = (
            f"{vectors.dtype} of shape {vectors.shape}"
            if isinstance(vectors, np.ndarray)
            else f"a {type(vectors).__name__}"
        )
        raise DataError(
            f"Embedder {name} returned {got} for {where}; it must return float32 of shape (rows, dimension)."
        )
    if len(vectors) != len(ids):
        raise DataError(
            f"Embedder {name} returned {len(vectors):,} vectors for {len(ids):,} rows ({where}); it must return one vector per row."
        )
    if vectors.shape[1] == 0:
        raise DataError(
            f"Embedder {name} returned vectors without elements for {where}; a vector must have at least one element."
        )
    if dimension is not None and vectors.shape[1] != dimension:
        raise DataError(
            f"Embedder {name} returned vectors of {vectors.shape[1]} dimensions for {where}, but of {dimension} dimensions for "
            "earlier rows; all vectors must have the same number of dimensions."
        )
    return vectors


def rows_of(rows: Any, start: int, stop: int) -> Any:
    """Return the rows ``start`` to ``stop`` of an embedder's input."""
    return rows.slice(start, stop - start) if isinstance(rows, pa.Table) else rows[start:stop]


def length_of(rows: Any) -> int:
    """Return the number of rows of an embedder's input."""
    return rows.num_rows if isinstance(rows, pa.Table) else len(rows)
