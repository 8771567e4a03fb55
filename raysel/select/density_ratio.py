"""Select rows by the density ratio of target to pool, which a classifier estimates row by row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from raysel.core.budgets import check_budget
from raysel.core.calls import checked_call
from raysel.core.numbers import whole
from raysel.core.parameters import check_fields
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, as_matrix
from raysel.quotas import PerClass, check_per_class
from raysel.select.ratio import Ratio, draw_by_ratio, fit_ratio
from raysel.selection import Selection

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.data.vector_blocks import VectorBlocks

_FITTED_ON = 20_000  # rows of the pool and of the target that the classifier is fitted on
_LOST = 0.2  # share of what the target looks like that may be dropped


@dataclass(frozen=True)
class DensityRatio:
    """Train a classifier to tell target rows from pool rows, and select the pool rows most similar to the target.

    The classifier scores every row by the logarithm of the ratio of the target's density to the pool's density. If it
    cannot tell pool and target apart, all rows may be selected. Otherwise, rows are excluded whose score is below the score
    that 80 % of the target rows reach, whatever the share of good rows in the pool. The selected rows are drawn from the
    other rows. The more target rows a cluster has, and the higher the ratios of its pool rows are, the more of its rows
    are drawn.

    Parameters
    ----------
    budget : float, int or str
        Number of rows to select: a share of the pool (float), a number of rows (int), or a size in bytes
        (text such as ``"200MB"``). A size in bytes is divided by the mean size of a row of the pool, all
        columns included, in Arrow format.
    clusters : int
        Number of k-means clusters into which the pool is divided. The selected rows are spread over the clusters.
    per_class : {"uniform", "pool", "target"} or dict of str to float, optional
        Rows per class: ``uniform`` for equally many rows, ``pool`` or ``target`` for the proportions of the
        pool or of the target, or a mapping from each class to its share. If a class has too few rows, the other classes
        get more rows. By default, the classes are not used.
    label : str, optional
        Column with the class of each row, for ``per_class``. In a workflow, the default is the column that the key
        ``pool.label`` names.
    column : str
        Column with the vectors.
    seed : int
        Seed of all random numbers. In a workflow, the default is the seed of the workflow; in Python, it is 0.

    Raises
    ------
    ConfigError
        For a parameter that is out of range.

    Notes
    -----
    The classifier is a balanced logistic regression on at most 20,000 rows of the pool and 20,000 rows of the target. It is linear or
    uses 1,024 random Fourier features, whichever has the lower loss on held-out rows. The score of a row comes from a model that was not fitted on the row.

    References
    ----------
    Related to DSIR (Xie et al. 2023, Data Selection for Language Models via Importance Resampling, arXiv:2302.03169) and to
    learning from positive and unlabelled rows.

    Examples
    --------
    >>> chosen = raysel.DensityRatio(budget=0.3).select(rows, rows)   # rows: 10 rows with vectors
    >>> len(chosen)
    3
    """

    budget: float | int | str
    clusters: int = 1500
    per_class: PerClass | None = None
    label: str | None = None
    column: str = EMBEDDING
    seed: int = 0
    title: ClassVar[str] = "density ratio"
    uses_vectors: ClassVar[bool] = True
    uses_target: ClassVar[bool] = True
    uses_avoid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what is wrong whatever the pool."""
        object.__setattr__(self, "budget", check_budget(self.budget, in_bytes=True))
        check_fields(self)
        check_per_class(self.per_class)
        whole("clusters", self.clusters, 1)

    @checked_call
    def select(
        self, pool: Dataset, target: Dataset, *, avoid: Dataset | None = None, start: Selection | None = None
    ) -> Selection:
        """Select the pool rows that look like target rows.

        Parameters
        ----------
        pool : ray.data.Dataset
            Rows with ``sample_id`` (int64) and the vector column.
        target : ray.data.Dataset
            Sample of the distribution to match. Labels are not used.
        avoid : ray.data.Dataset, optional
            Rows that must not be learned. A second classifier is fitted to distinguish target rows from these rows. A pool row
            is excluded if it looks more like a row to avoid than like a target row.
        start : Selection, optional
            Earlier selection from this pool to extend. Its rows are kept and count towards the budget.

        Returns
        -------
        Selection
            The score is the logarithm of the density ratio; dropped rows have it too. ``info`` has the gain of the classifier
            over a constant prediction and its standard error (``gain``, ``gain_error``), whether it can tell pool and target apart
            (``separates``), the lowest score that may be selected (``cut``) and the share of the pool that reaches it
            (``share_above``).

        Raises
        ------
        DataError
            For vectors that cannot be used, and a ``start`` from another pool.
        ConfigError
            For a budget that the pool does not allow.

        Examples
        --------
        >>> chosen = raysel.DensityRatio(budget=0.3).select(rows, rows)
        >>> chosen.info["separates"]
        False
        """
        import ray

        from raysel.cluster.blocks import map_blocks
        from raysel.gio.distributed import quantise
        from raysel.gio.quantize import assign
        from raysel.selector_inputs import TARGET_ROWS, make_selection, open_inputs

        inputs = open_inputs(self, pool, start, target, avoid=avoid, avoided=self._avoided)
        aims = inputs.target.sample(TARGET_ROWS, self.seed)
        some = inputs.pool.sample(_FITTED_ON, self.seed)
        model = map_blocks(_fit, [ray.put((*some, *aims))], self.seed)[0]
        parts = map_blocks(_score, inputs.pool.blocks, self.column, ray.put(model))
        ids = np.concatenate([part[0] for part in parts])
        score = np.concatenate([part[1] for part in parts])[np.argsort(ids, kind="stable")]
        groups = quantise(inputs.pool, self.clusters, self.seed)
        cut = float(np.quantile(model.target_scores, _LOST, method="lower")) if model.separates else -np.inf
        keep = score >= cut
        place = draw_by_ratio(
            inputs.ids, score, groups.cluster, assign(aims[1], groups.centroids)[0], keep, self.seed
        )
        new = inputs.quotas.take(lambda rows, count: rows[np.argsort(place[rows])[:count]], inputs.free)
        below = int(np.count_nonzero(~keep[new]))
        texts = [
            "drawn among the rows that look like the target",
            "selected only because fewer rows than the budget look like the target",
            "looks like the target, but was not drawn",
            "looks less like the target than 80 % of the target's own rows",
        ]
        if not model.separates:
            texts[0] = "drawn from all pool rows, because the pool looks like the target"
            texts[2] = "not drawn; all pool rows could be drawn, because the pool looks like the target"
        reason = np.where(keep, 2, 3)
        reason[new] = np.where(keep[new], 0, 1)
        return make_selection(
            inputs,
            inputs.ids[new],
            score=score,
            reason=reason,
            texts=texts,
            info={
                "method": "density ratio",
                **asdict(self),
                "score": "logarithm of the ratio of the target's density to the pool's",
                "separates": model.separates,
                "gain": model.gain,
                "gain_error": model.error,
                "classifier": "Fourier features" if len(model.features.phases) else "linear",
                "penalty": model.strength,
                "cut": cut if model.separates else None,
                "share_above": float(keep.mean()),
                "rows_below": below,
                "notes": _notes(model, float(keep.mean()), below),
            },
            columns={"cluster": groups.cluster},
        )

    def _avoided(
        self, pool: VectorBlocks, target: VectorBlocks, avoid: VectorBlocks
    ) -> tuple[np.ndarray, str]:
        """Return which pool rows have a higher density among the rows to avoid than in the target, and a sentence about them."""
        import ray

        from raysel.cluster.blocks import map_blocks

        sides = [side.sample(_FITTED_ON, self.seed) for side in (avoid, target)]
        model = map_blocks(_fit, [ray.put((*sides[0], *sides[1]))], self.seed)[0]
        if not model.separates:
            return np.zeros(pool.rows, bool), (
                "A classifier cannot separate target rows from the rows to avoid, so no row was excluded because of the rows to avoid."
            )
        parts = map_blocks(_score, pool.blocks, self.column, ray.put(model))
        ids, score = (np.concatenate(one) for one in zip(*parts, strict=True))
        out = score[np.argsort(ids, kind="stable")] < 0
        return out, (
            f"{np.count_nonzero(out):,} of {len(out):,} pool rows were excluded, because they look more like the rows to avoid "
            "than like the target."
        )


def _notes(model: Ratio, share: float, below: int) -> list[str]:
    """Return what the report says of the classifier."""
    gain = (
        f"its loss is {model.gain:.3f} ± {model.error:.3f} nats lower than the loss of a constant prediction"
    )
    if not model.separates:
        return [
            f"The classifier cannot separate target rows from pool rows ({gain}), so no row was excluded."
        ]
    notes = [
        f"The classifier can separate target rows from pool rows ({gain}). The limit is the score that 80 % of the target rows "
        f"reach. {share:.1%} of the pool rows reach this limit; all other rows were excluded."
    ]
    if below:
        notes.append(
            f"The budget is larger than the number of rows that reach the limit, so {below:,} excluded rows were added."
        )
    return notes


def _fit(samples: Any, seed: int) -> Ratio:
    pool_ids, pool, target_ids, target = samples
    return fit_ratio(pool_ids, pool, target_ids, target, seed)


def _score(table: pa.Table, column: str, model: Any) -> tuple[np.ndarray, np.ndarray]:
    ids = table[ID].to_numpy()
    return ids, model.scores(ids, as_matrix(table[column], column, ids))
