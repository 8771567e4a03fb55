"""Representativeness and diversity of samples from their active units (arXiv:2603.04981, section 3).

There are two passes over the data, each ``of(block) -> state`` and ``state + state``, exact and in any order,
so that the result does not depend on blocks: :class:`FactorCounts`, whose :meth:`~FactorCounts.weights` are
the contributions of each unit, then :class:`RawScores`, whose smallest and largest values scale them to [0,
1]. :func:`rep_div` does all of it in one call.

The active units of n samples are a SciPy sparse matrix or an array (n, units), active where above 0, or an
integer array (n, k) of unit numbers with -1 for none (``Codes.active``).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from raysel.errors import ConfigError, DataError, first

Array = npt.NDArray[Any]
_MOST_UNITS = 1 << 24
_ALIKE = 1e-12  # sums of the same parts in another order differ by less of themselves


def rep_div(
    active: Any, labels: Any = None, top_fraction: float = 0.1
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Score every sample by representativeness and diversity.

    Parameters
    ----------
    active : sparse matrix or array, shape (n, units), or array of int, shape (n, k)
        Active units of each sample: above 0, or unit numbers with -1 for none (``Codes.active``).
    labels : array, shape (n,), optional
        Classes, of any kind that can be sorted. Without them no unit is shared between classes (c_j = 1).
    top_fraction : float
        Share of the live units that count as frequent, in (0, 1]; at least one of them does.

    Returns
    -------
    rep, div : array of float32, shape (n,)
        Scores, scaled to [0, 1] over these samples; 0 if they are all equal.

    Raises
    ------
    ConfigError
        For a share outside (0, 1].
    DataError
        If no unit is active on any sample, and if there is not one label per sample.

    References
    ----------
    Zhou et al., 2026, arXiv:2603.04981, section 3.

    Examples
    --------
    >>> from raysel.factors import rep_div
    >>> rep, div = rep_div(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), top_fraction=0.5)
    >>> rep.tolist(), div.tolist()   # unit 0 is frequent, unit 1 is rare
    ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    """
    matrix = as_matrix(active)
    codes = None if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    raw = FactorCounts.of(matrix, codes).weights(top_fraction).score(matrix)
    return Span.of(raw).scale(raw)


@dataclass(frozen=True, eq=False)
class FactorCounts:
    """Counts of each unit from one pass over the data; ``+`` joins the counts of two blocks.

    Attributes
    ----------
    rows : int
        Number of samples.
    count : array of int64, shape (units,)
        Number of samples on which each unit is active.
    seen : array of bool, shape (classes, units), or None
        Whether the unit is active on a sample of the class; None without labels.
    """

    rows: int
    count: npt.NDArray[np.int64]
    seen: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, active: Any, classes: Any = None) -> FactorCounts:
        """Return the counts of one block.

        ``classes`` (n,) are codes 0, 1, ... that mean the same in every block, or None.
        """
        matrix = as_matrix(active)
        rows, units = matrix.shape
        count = np.bincount(matrix.indices, minlength=units)
        if classes is None:
            return cls(rows, count, None)
        classes = np.asarray(classes)
        if classes.shape != (rows,):
            raise DataError(
                f"Give one label per sample; the labels have shape {classes.shape}, but there are {rows} samples."
            )
        if classes.dtype.kind not in "iu" or (rows and int(classes.min()) < 0):
            raise DataError(
                f"Class codes must be whole numbers of at least 0, got {classes.dtype}: {first(classes)}."
            )
        seen = np.zeros((int(classes.max()) + 1 if rows else 0, units), np.bool_)
        seen[np.repeat(classes, np.diff(matrix.indptr)), matrix.indices] = True
        return cls(rows, count, seen)

    def __add__(self, other: FactorCounts) -> FactorCounts:
        if (self.seen is None) != (other.seen is None):
            raise DataError(
                "Counts of active units that were made with labels cannot be added to counts that were made without; give labels "
                "for all blocks or for none."
            )
        units = max(len(self.count), len(other.count))
        seen = None
        if self.seen is not None and other.seen is not None:
            classes = max(len(self.seen), len(other.seen))
            seen = _padded(self.seen, (classes, units)) | _padded(other.seen, (classes, units))
        count = _padded(self.count, (units,)) + _padded(other.count, (units,))
        return FactorCounts(self.rows + other.rows, count, seen)

    def recoded(self, codes: list[int]) -> FactorCounts:
        """Return the same counts with class i renamed to ``codes[i]``, each another number.

        Unchanged without classes.
        """
        if self.seen is None:
            return self
        seen = np.zeros((max(codes, default=-1) + 1, len(self.count)), np.bool_)
        seen[codes[: len(self.seen)]] = self.seen
        return FactorCounts(self.rows, self.count, seen)

    def rare(self, fraction: float = 0.1) -> npt.NDArray[np.int64]:
        """Return this share of the live units (at least one): those active on the fewest samples, ascending."""
        live = np.flatnonzero(self.count)
        order = np.argsort(self.count[live], kind="stable")
        return np.sort(live[order[: max(int(fraction * len(live)), 1)]])

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The number c_j of classes in which each unit is active, int64 (units,); without labels 1."""
        if self.seen is None:
            return np.ones(len(self.count), np.int64)
        return self.seen.sum(axis=0, dtype=np.int64)

    def weights(self, top_fraction: float = 0.1) -> Weights:
        """Return what each unit adds to a sample's Rep and Div; ties go to the lowest unit.

        Raises
        ------
        ConfigError
            For a share outside (0, 1].
        DataError
            If every unit is dead.
        """
        if isinstance(top_fraction, bool) or not 0 < top_fraction <= 1:
            raise ConfigError(f"top_fraction must be a number in (0, 1], got {top_fraction!r}.")
        live = np.flatnonzero(self.count)
        if len(live) == 0:
            raise DataError(
                f"No unit is active on any of {self.rows} samples, so the samples cannot be distinguished; train the autoencoder "
                "for more epochs or at a lower learning rate, in mode 'topk', and on these embeddings."
            )
        frequent = max(int(Fraction(repr(float(top_fraction))) * len(live)), 1)
        top = live[np.argsort(-self.count[live], kind="stable")[:frequent]]
        rep, div = np.zeros(len(self.count)), np.zeros(len(self.count))
        rep[top] = 1.0 / self.classes[top]
        div[live] = 1.0 / self.count[live]
        return Weights(rep, div)


@dataclass(frozen=True, eq=False)
class RawScores:
    """Rep and Div of some samples before they are scaled, float64 (n,) each."""

    rep: npt.NDArray[np.float64]
    div: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Weights:
    """What a unit adds to a sample's Rep (1 / c_j if frequent) and Div (1 / count_j): float64 (units,)."""

    rep: npt.NDArray[np.float64]
    div: npt.NDArray[np.float64]

    def score(self, active: Any) -> RawScores:
        """Return the scores of one block.

        A sample's units are added in ascending order, so they depend on it alone.
        """
        matrix = as_matrix(active)
        units = len(self.rep)
        if matrix.shape[1] > units:
            if len(matrix.indices) and int(matrix.indices.max()) >= units:
                raise DataError(
                    f"Unit {int(matrix.indices.max())} of the autoencoder is active in this block, but the "
                    f"counts cover only {units} units; count every block before it is scored."
                )
            matrix = sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), (matrix.shape[0], units))
        return RawScores(matrix @ self.rep[: matrix.shape[1]], matrix @ self.div[: matrix.shape[1]])


@dataclass(frozen=True)
class Span:
    """The smallest and largest raw Rep and Div of some samples.

    ``+`` joins two, and an empty one changes nothing.
    """

    rep: tuple[float, float] = (np.inf, -np.inf)
    div: tuple[float, float] = (np.inf, -np.inf)

    @classmethod
    def of(cls, raw: RawScores) -> Span:
        """Return the span of some raw scores."""
        if len(raw.rep) == 0:
            return cls()
        return cls((float(raw.rep.min()), float(raw.rep.max())), (float(raw.div.min()), float(raw.div.max())))

    def __add__(self, other: Span) -> Span:
        (a, b), (c, d) = (self.rep, other.rep), (self.div, other.div)
        return Span((min(a[0], b[0]), max(a[1], b[1])), (min(c[0], d[0]), max(c[1], d[1])))

    def scale(self, raw: RawScores) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return Rep and Div in [0, 1], float32.

        0 throughout if all samples score the same up to rounding.
        """
        return _scaled(raw.rep, *self.rep), _scaled(raw.div, *self.div)


def as_matrix(active: Any, units: int = 0) -> sparse.csr_array:
    """Return the active units as a CSR matrix of float64 ones (n, units), ascending, without repeats.

    ``units`` is the least number of columns for an array of unit numbers.

    Raises
    ------
    DataError
        For neither of the forms that the module names.
    """
    if sparse.issparse(active):
        given = isinstance(active, sparse.csr_array) and active.dtype == np.float64
        if given and active.has_canonical_format and (active.data == 1.0).all():
            return active  # such as this function has made
        matrix = sparse.csr_array(active, copy=True)
        matrix.sum_duplicates()
        matrix.data = matrix.data > 0
        matrix.eliminate_zeros()
        return sparse.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), matrix.shape)
    array = np.asarray(active)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(
            "The active units must be a sparse matrix (samples, units) or an array of unit numbers (samples, k), "
            f"got {array.dtype}{list(array.shape)}."
        )
    if array.dtype.kind in "bf":
        return as_matrix(sparse.csr_array(array > 0))
    units = max(units, int(array.max()) + 1 if array.size else 0)
    if array.size and (int(array.min()) < -1 or units > _MOST_UNITS):
        raise DataError(
            f"Unit numbers must be in 0..{_MOST_UNITS - 1}, or -1 for none, got {array.min()}..{array.max()}."
        )
    array = np.sort(array.astype(np.int32, copy=False), axis=1)
    here = array >= 0
    here[:, 1:] &= array[:, 1:] != array[:, :-1]
    ends = np.concatenate([[0], np.cumsum(here.sum(axis=1))])
    indices = array[here]
    return sparse.csr_array((np.ones(len(indices)), indices, ends), (len(array), units))


def _padded(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape == shape:
        return array
    return np.pad(array, [(0, wanted - had) for wanted, had in zip(shape, array.shape, strict=True)])


def _scaled(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float32]:
    if not high - low > _ALIKE * high:
        return np.zeros(len(values), np.float32)
    return ((values - low) / (high - low)).astype(np.float32)
