"""How many rows of each class a selector takes. Without Ray, except for reading the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysel.core.arrow import plain_values
from raysel.data.row_index import ID
from raysel.errors import ConfigError, DataError, first

if TYPE_CHECKING:
    from ray.data import Dataset

PerClass = Literal["uniform", "pool", "target"] | dict[str | int, float]


def check_per_class(per_class: PerClass | None) -> None:
    """Raise ConfigError unless the shares of the classes can be used."""
    if isinstance(per_class, Mapping):
        wrong = [f"{name}: {share!r}" for name, share in per_class.items() if not 0 <= share < float("inf")]
        if wrong or not sum(per_class.values()) > 0:
            raise ConfigError(
                f"per_class: {first(wrong) or 'the shares'} cannot be used; give a share of at least 0 per class, and more than 0 "
                "for at least one class."
            )


def divide(sizes: NDArray[np.int64], shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return rows per class: ``count`` in proportion to ``shares``, and of no class more than it has.

    What a class cannot give is divided among the others in proportion to their shares; remainders go to the largest
    fractions, of equals to the first.

    Raises
    ------
    ConfigError
        If the classes with a share have fewer rows than ``count``.
    """
    open_ = (shares > 0) & (sizes > 0)
    if sizes[open_].sum() < count:
        raise ConfigError(
            f"per_class: {count:,} rows cannot be selected, because the classes with a share have only "
            f"{int(sizes[open_].sum()):,} rows; lower the budget or give other classes a share."
        )
    found = np.zeros(len(sizes), np.int64)
    while True:
        left = count - int(found.sum())
        exact = np.where(open_, shares, 0.0) / max(shares[open_].sum(), np.finfo(float).tiny) * left
        full = open_ & (exact >= sizes)
        if not full.any():
            break
        found[full] = sizes[full]
        open_ &= ~full
    floor = np.floor(exact).astype(np.int64)
    rest = left - int(floor.sum())
    order = np.argsort(np.where(open_, floor - exact, np.inf), kind="stable")
    floor[order[:rest]] += 1
    return found + floor


class Quotas:
    """Classes of the pool rows, and how many rows of each are still to be taken.

    Attributes
    ----------
    codes : array of int64, shape (n,)
        Class of every row, in ascending order of the ids.
    rows : array of int64
        Rows to take per class.
    names : list
        The classes.
    """

    def __init__(self, codes: NDArray[np.int64], rows: NDArray[np.int64], names: list[Any]) -> None:
        self.codes, self.rows, self.names = codes, rows, names

    def take(
        self, choose: Callable[[NDArray[np.int64], int], NDArray[np.int64]], free: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the positions that ``choose(positions, count)`` takes of each class, among ``free`` positions."""
        parts = [
            choose(free[self.codes[free] == code], int(rows)) for code, rows in enumerate(self.rows) if rows
        ]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def quotas_of(
    per_class: PerClass | None,
    label: str | None,
    pool: Dataset,
    target: Dataset | None,
    ids: NDArray[np.int64],
    count: int,
    kept: NDArray[np.bool_],
    avoided: NDArray[np.bool_] | None = None,
) -> Quotas:
    """Return the quotas of a selection; one class without ``per_class``.

    Parameters
    ----------
    per_class, label
        Shares of the classes, and the column that holds them.
    pool, target : ray.data.Dataset
        Rows with the column ``label``; the target's are read for ``per_class="target"`` alone.
    ids : array of int64, shape (n,)
        Of the pool, ascending.
    count : int
        Rows to select, with those that are kept.
    kept : array of bool, shape (n,)
        Rows that are selected already.
    avoided : array of bool, shape (n,), optional
        Rows that must not be selected.
    """
    if per_class is not None and label is None:
        raise ConfigError(
            "label: 'per_class' needs the classes of the rows; set 'label' to the column that holds them."
        )
    if per_class is None or label is None:
        return Quotas(np.zeros(len(ids), np.int64), np.array([count - int(kept.sum())]), ["all"])
    names, codes = _labels(pool, label, "pool", ids)
    sizes = np.bincount(codes if avoided is None else codes[~avoided], minlength=len(names))
    if isinstance(per_class, Mapping):
        known = {str(name): code for code, name in enumerate(names)}
        strange = [name for name in per_class if str(name) not in known]
        if strange:
            raise ConfigError(
                f"per_class: There is no class {first(strange)} in column '{label}' of the pool; its classes are "
                f"{first(names, 10)}."
            )
        shares = np.zeros(len(names))
        for name, share in per_class.items():
            shares[known[str(name)]] = share
    elif per_class == "target":
        if target is None:
            raise ConfigError(
                "per_class: The value 'target' needs target rows; pass them as the second argument."
            )
        theirs, of = _labels(target, label, "target", None)
        counts = dict(zip(theirs, np.bincount(of, minlength=len(theirs)).tolist(), strict=True))
        shares = np.array([counts.get(name, 0) for name in names], np.float64)
        if not shares.any():
            raise DataError(
                f"per_class: Pool and target have no class in common in column '{label}'; set 'label' to another column, or "
                "'per_class' to other shares."
            )
    else:
        shares = np.ones(len(names)) if per_class == "uniform" else sizes.astype(np.float64)
    rows = divide(sizes, shares, count)
    held = np.bincount(codes[kept], minlength=len(names))
    if held.any():
        rows = divide(sizes - held, np.maximum(rows - held, 0).astype(np.float64), count - int(held.sum()))
    return Quotas(codes, rows, names)


def _labels(
    data: Dataset, label: str, what: str, ids: NDArray[np.int64] | None
) -> tuple[list[Any], NDArray[np.int64]]:
    """Return the classes, sorted, and the code of every row in ascending order of the ids."""
    from raysel.cluster.blocks import gather

    table = gather(data, list(dict.fromkeys([ID, label])), what)
    column = plain_values(table[label])
    if column.null_count:
        raise DataError(
            f"label: {column.null_count:,} rows of the {what} have no value in column '{label}'; label or drop them first."
        )
    try:
        found = column.dictionary_encode()
        values = found.dictionary.to_pylist()
        names = sorted(values)
    except (NotImplementedError, TypeError):
        raise DataError(
            f"label: Column '{label}' of the {what} holds {column.type}; a class must be an integer, a boolean or text."
        ) from None
    place = {name: code for code, name in enumerate(names)}
    codes = np.array([place[value] for value in values], np.int64)[found.indices.to_numpy()]
    return names, codes[np.argsort(table[ID].to_numpy(), kind="stable")]
