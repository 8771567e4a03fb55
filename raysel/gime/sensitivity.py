"""Find which metrics the performance of a task depends on, and thresholds for them, from subsets of equal size.

The publication (Xu et al., arXiv:2501.02004) finds sensitive metrics on past runs and sets thresholds on
them. The procedure here is our own: partial rank correlations with control of false discoveries on one part
of the subsets, and thresholds tested in a fixed sequence on the other part, since a scan over thresholds on
the same subsets proves nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysel.core.numbers import plain, whole
from raysel.errors import ConfigError, DataError, shown
from raysel.gime.binding import Binding, did_you_mean
from raysel.gime.columns import Array, hash_column, kind
from raysel.gime.metrics import Own, metric_functions
from raysel.gime.state import measure
from raysel.registry import METRICS

Floats = npt.NDArray[np.float64]
Performance = Callable[[pa.Table], float]
Positions = npt.NDArray[np.int64]
Each = Callable[[Callable[[pa.Table], Any], pa.Table, Sequence[Positions]], Iterable[Any]]

CALIBRATION = 30  # subsets that choose the metrics; fewer say little about 10 of them
_STEPS = 8  # thresholds tried for each metric


@dataclass(frozen=True)
class Sensitivity:
    """The result of a calibration.

    Attributes
    ----------
    thresholds : mapping of str to (float or None, float or None)
        For each sensitive statistic ("variety.classes") the least and greatest value, one of them None, for
        which the performance was shown to hold; empty if nothing could be shown.
    correlations : pyarrow.Table
        ``statistic``, ``rho`` (partial Spearman), ``p``, ``q`` (Benjamini-Hochberg), ``sensitive``,
        ``reason``.
    evidence : pyarrow.Table
        Every threshold tested, in order: ``statistic``, ``low``, ``high``, ``subsets`` (that meet it),
        ``successes``, ``bound`` (lower confidence bound of the share of successes), ``held``.
    subsets : pyarrow.Table
        ``subset``, ``held_out``, ``performance``, and the metrics.
    info : mapping
        The parameters, ``full`` and ``floor`` performance, ``rows_trained`` and ``seconds``, for the ledger.
    """

    thresholds: Mapping[str, tuple[float | None, float | None]]
    correlations: pa.Table
    evidence: pa.Table
    subsets: pa.Table
    info: Mapping[str, Any]

    def __repr__(self) -> str:
        found = ", ".join(f"{name} in [{low}, {high}]" for name, (low, high) in self.thresholds.items())
        return f"<Sensitivity by {self.subsets.num_rows} subsets: {found or 'no threshold'}>"

    @property
    def limits(self) -> Mapping[str, tuple[float | None, float | None]]:
        """The thresholds, and at least as many rows as the subsets had, since nothing was shown for fewer."""
        if not self.thresholds:
            return {}
        return {**self.thresholds, "volume.rows": (float(self.info["rows"]), None)}


def sensitivity(
    table: pa.Table,
    binding: Binding,
    performance: Performance,
    *,
    mix: str,
    rows: int,
    count: int = 120,
    statistics: Sequence[str] | None = None,
    tolerance: float = 0.01,
    share: float = 0.9,
    confidence: float = 0.95,
    false_discoveries: float = 0.1,
    seed: int = 0,
    each: Each | None = None,
    metrics: Own = (),
) -> Sensitivity:
    """Train on many subsets of equal size, and find the metrics that the performance depends on.

    The first 30 subsets (or the first quarter, if that is more) determine the metrics and the thresholds to test. The
    other subsets test these thresholds: from the strictest threshold that enough subsets satisfy to the loosest, until
    one fails. A subset is successful if its performance is at most ``tolerance`` below that of the complete table. A
    threshold passes if at least the share ``share`` of the subsets that satisfy it are successful, with the confidence
    ``confidence`` for all thresholds together.

    Parameters
    ----------
    table : pyarrow.Table
        Rows with the bound columns, ``mix`` and the columns that ``performance`` reads.
    binding : Binding
        What the columns mean.
    performance : callable
        Takes a table and returns the performance of a model trained on it, higher is better; see
        `raysel.gime.proxy`.
    mix : str
        Column whose values' shares vary from subset to subset.
    rows : int
        Rows per subset, at most half of the table.
    count : int
        Number of subsets.
    statistics : sequence of str, optional
        Statistics to consider, such as "scope.entities". Default: all statistics that differ between the subsets; of
        several statistics that are correlated with each other, only the first.
    tolerance : float
        How far the performance of a successful subset may be below that of the complete table.
    share : float
        Share of the subsets that satisfy a threshold and must be successful, in (0, 1).
    confidence : float
        Confidence with which this share must be reached, for all thresholds together, in (0, 1).
    false_discoveries : float
        Largest expected share of statistics that are chosen although the performance does not depend on them, in
        (0, 1).
    seed : int
        Seed of the subsets.
    each : callable, optional
        Applies a function to parts of the table, given by their positions, and returns the results in the
        order of the parts. Default: one after another in this process.
    metrics : sequence of callable or str
        Metrics of your own, as for `raysel.gime.measure`.

    Returns
    -------
    Sensitivity
        Thresholds, correlations and the evidence for each.

    Raises
    ------
    ConfigError
        If ``count`` subsets cannot show ``share``, or a parameter is out of range.
    DataError
        If no metric varies, or the performance is not finite or the same for every subset.

    References
    ----------
    Xu et al., arXiv:2501.02004; Benjamini & Hochberg (1995).
    """
    rows, count, seed = whole("rows", rows, 1), whole("count", count, 1), whole("seed", seed, 0)
    share, confidence, false_discoveries, tolerance = map(
        plain, (share, confidence, false_discoveries, tolerance)
    )
    if not all(_is_number(each) and 0 < each < 1 for each in (share, confidence, false_discoveries)):
        raise ConfigError(
            "'share', 'confidence' and 'false_discoveries' must be numbers above 0 and below 1."
        )
    if not _is_number(tolerance):
        raise ConfigError(f"tolerance: {shown(tolerance)} is not a number.")
    if mix not in table.column_names:
        raise DataError(f"The table has no column '{mix}'{did_you_mean(mix, table.column_names)}.")
    first = max(CALIBRATION, count // 4)
    needed = math.ceil(math.log(1 - confidence) / math.log(share))
    if count - first < needed:
        raise ConfigError(
            f"count: Of {count} subsets, {max(count - first, 0)} are left to test the thresholds, because the first {first} are needed "
            "to compute the correlations. A subset is successful if its performance is at most 'tolerance' below that of the complete "
            f"table. Even if all of the remaining subsets are successful, they do not show with confidence {confidence} that the share of successful subsets is at least {share}; "
            f"give at least {first + needed} subsets."
        )
    started = time.perf_counter()
    parts = mixed_subsets(hash_column(table[mix], mix), count, rows, seed)

    metrics = list(metric_functions(metrics).values())[len(METRICS.builtin) :]
    run = partial(_trial, binding=binding, performance=performance, metrics=metrics)
    *results, (_, full) = (each or _in_turn)(run, table, [*parts, np.arange(table.num_rows)])
    scores = np.array([score for _, score in results], np.float64)
    if not (np.isfinite(scores).all() and math.isfinite(full)):
        raise DataError(
            "The function performance did not return a finite number for some subset; it must return a "
            "finite number for every table."
        )
    names = [name for name in results[0][0] if all(name in metrics for metrics, _ in results)]
    values = {name: np.array([metrics[name] for metrics, _ in results]) for name in names}
    if statistics is not None:
        for name in statistics:
            if name not in values:
                raise ConfigError(
                    f"statistics: {name!r} does not exist, or could not be computed for every subset{did_you_mean(name, names)}. "
                    "Correct or remove this name."
                )
        values = {name: values[name] for name in statistics}
    floor = full - tolerance

    correlations = _correlations(
        {n: v[:first] for n, v in values.items()}, scores[:first], false_discoveries, statistics is None
    )
    sensitive = [r for r in correlations if r["sensitive"]]
    thresholds, evidence = {}, []
    for row in sensitive:
        tried, held = least_strict(
            values[row["statistic"]],
            scores >= floor,
            first,
            row["rho"] > 0,
            share,
            (1 - confidence) / len(sensitive),
        )
        evidence += [{"statistic": row["statistic"], **step} for step in tried]
        if held is not None:
            thresholds[row["statistic"]] = (held, None) if row["rho"] > 0 else (None, held)
    info = {
        "mix": mix, "rows": rows, "count": count, "tolerance": tolerance, "share": share, "confidence": confidence,
        "false_discoveries": false_discoveries, "seed": seed, "calibration": first, "full": full, "floor": floor,
        "rows_trained": count * rows + table.num_rows, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    subsets = {
        "subset": np.arange(count),
        "held_out": np.arange(count) >= first,
        "performance": scores,
        **values,
    }
    return Sensitivity(
        thresholds,
        pa.Table.from_pylist(correlations, _CORRELATIONS),
        pa.Table.from_pylist(evidence, _EVIDENCE),
        pa.table(subsets),
        info,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in_turn(run: Callable[[pa.Table], Any], table: pa.Table, parts: Sequence[Positions]) -> list[Any]:
    return [run(table.take(pa.array(part))) for part in parts]


def _trial(
    part: pa.Table, binding: Binding, performance: Performance, metrics: Own
) -> tuple[dict[str, float], float]:
    found = measure(part, binding, metrics=metrics).to_pylist()
    values = {f"{r['metric']}.{r['statistic']}": r["value"] for r in found if r["value"] is not None}
    return values, performance(part)


_CORRELATIONS = pa.schema(
    [("statistic", pa.string()), ("rho", pa.float64()), ("p", pa.float64()), ("q", pa.float64()), ("sensitive", pa.bool_()), ("reason", pa.string())]
)  # fmt: skip
_EVIDENCE = pa.schema(
    [("statistic", pa.string()), ("low", pa.float64()), ("high", pa.float64()), ("subsets", pa.int64()), ("successes", pa.int64()), ("bound", pa.float64()), ("held", pa.bool_())]
)  # fmt: skip


def mixed_subsets(keys: Array, count: int, rows: int, seed: int) -> list[Positions]:
    """Return ``count`` subsets of ``rows`` positions each, ascending, without repeats within one.

    The shares of the values of ``keys`` are drawn for each subset (Dirichlet 1/2), as far as there are rows
    of a value.

    Raises
    ------
    ConfigError
        Unless ``rows`` is at least 1 and at most half of the rows: subsets must be able to differ.
    """
    if not 1 <= rows <= len(keys) // 2:
        raise ConfigError(
            f"rows: Subsets of {rows:,} of {len(keys):,} rows cannot differ enough; give at least 1 row, and "
            "at most half of the rows."
        )
    group = np.unique(keys, return_inverse=True)[1]
    members = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    sizes = np.array([len(m) for m in members])
    found = []
    for at in range(count):
        rng = np.random.default_rng([seed, at])
        wanted = rng.dirichlet(np.full(len(sizes), 0.5)) + 1e-9
        take = np.zeros(len(sizes), np.int64)
        while (
            left := rows - int(take.sum())
        ) > 0:  # what a value lacks goes to the others in their proportion
            open_ = np.where(take < sizes, wanted, 0.0)
            more = np.minimum(np.floor(left * open_ / open_.sum()).astype(np.int64), sizes - take)
            if not more.any():
                more[np.argsort(-open_, kind="stable")[: min(left, int((open_ > 0).sum()))]] = 1
            take += more
        chosen = [rng.choice(m, t, replace=False) for m, t in zip(members, take, strict=True) if t]
        found.append(np.sort(np.concatenate(chosen)))
    return found


def partial_rank_correlations(values: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Return Spearman's correlation of each column with the scores, given the others, and its p (two-sided).

    Parameters
    ----------
    values : array of float64, shape (m, k)
        One column per metric.
    scores : array of float64, shape (m,)
        Performance of each subset.

    Returns
    -------
    rho, p : array of float64, shape (k,)
        Correlations, and p-values by the t distribution with m - k - 1 degrees of freedom.

    Raises
    ------
    ConfigError
        If no degree of freedom is left.
    """
    from scipy import stats  # takes longer to import than all of raysel that does not compute

    m, k = values.shape
    freedom = m - k - 1
    if freedom < 1:
        raise ConfigError(
            f"The first {m} subsets, on which correlations are computed, are too few to tell the effects of {k} statistics "
            f"apart; set 'count', the number of subsets, to at least {4 * (k + 2)}, or list fewer 'statistics'."
        )
    ranks = stats.rankdata(np.column_stack([values, scores]), axis=0)
    rho = np.zeros(k)
    for at in range(
        k
    ):  # by residuals: a matrix to invert would be singular where a metric is the performance itself
        others = np.column_stack([np.ones(m), np.delete(ranks[:, :k], at, axis=1)])
        rest = ranks[:, [at, k]] - others @ np.linalg.lstsq(others, ranks[:, [at, k]], rcond=None)[0]
        length = np.linalg.norm(rest, axis=0)
        if (
            length > 1e-9 * m**1.5
        ).all():  # else the other metrics say all that this one does, or all there is to say
            rho[at] = np.clip(rest[:, 0] @ rest[:, 1] / length.prod(), -1.0, 1.0)
    with np.errstate(divide="ignore"):
        t = np.abs(rho) * np.sqrt(freedom / (1.0 - rho * rho))
    return rho, 2 * stats.t.sf(t, freedom)


def _correlations(
    values: Mapping[str, Floats], scores: Floats, rate: float, thin: bool
) -> list[dict[str, Any]]:
    from scipy import stats

    varying = [name for name, v in values.items() if np.ptp(v) > 0]
    if not varying:
        raise DataError(
            "Every metric has the same value on all subsets. Choose another column as 'mix', or name more "
            "columns in the binding."
        )
    if np.ptp(scores) == 0:
        raise DataError(
            "Every subset scored the same, so no metric can be correlated with performance; use a harder test, or smaller subsets ('rows')."
        )
    twins = _twins({name: values[name] for name in varying}, len(scores) // 3) if thin else {}
    kept = [name for name in varying if name not in twins]
    rho, p = partial_rank_correlations(np.column_stack([values[name] for name in kept]), scores)
    q = stats.false_discovery_control(p, method="bh")
    rows = []
    for name in values:
        if name in kept:
            at = kept.index(name)
            rows.append(
                {
                    "statistic": name,
                    "rho": float(rho[at]),
                    "p": float(p[at]),
                    "q": float(q[at]),
                    "sensitive": bool(q[at] <= rate),
                }
            )
        else:
            why = (
                f"left out, because it is correlated with {twins[name]}" if name in twins else "does not vary"
            )
            rows.append({"statistic": name, "sensitive": False, "reason": why})
    return rows


def _twins(values: Mapping[str, Floats], most: int) -> dict[str, str]:
    """Return columns to leave out, so that ``most`` remain, each with an earlier one that it moves with.

    Only the metrics are read, never the performance, so the performance does not affect what remains.
    """
    from scipy import stats

    names = list(values)
    near = np.abs(
        np.corrcoef(stats.rankdata(np.column_stack(list(values.values())), axis=0), rowvar=False)
    ).reshape(len(names), -1)
    out: dict[str, str] = {}
    for least in (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0):
        kept: list[int] = []
        out = {}
        for at, name in enumerate(names):
            twin = next((k for k in kept if near[at, k] >= least), None)
            if twin is None:
                kept.append(at)
            else:
                out[name] = names[twin]
        if len(kept) <= most:
            break
    return out


def least_strict(
    values: Floats, good: npt.NDArray[np.bool_], first: int, at_least: bool, share: float, alpha: float
) -> tuple[list[dict[str, Any]], float | None]:
    """Return every threshold tested, in order, and the loosest that holds (None if none does).

    The thresholds are set by the first ``first`` values: from the one that, by them, just enough of the other
    subsets meet to show ``share`` if all succeed, to the one that all meet. Each is tested on the others at
    level ``alpha`` (the Clopper-Pearson bound of the share of ``good`` among those that meet it), in that
    order, until one fails. All that hold therefore do so at ``alpha`` together (fixed sequence). One that too
    few of the others meet to show anything is skipped, by their values alone.
    """
    from scipy import stats

    sign = 1.0 if at_least else -1.0
    strength = np.sort(sign * values[:first])[::-1]  # strongest first
    rest, success = sign * values[first:], good[first:]
    needed = math.log(alpha) / math.log(share)  # subsets, if all of them succeed
    tried: list[dict[str, Any]] = []
    held = None
    for part in np.linspace(min(1.2 * needed / max(len(rest), 1), 1.0), 1.0, _STEPS):
        limit = float(strength[min(math.ceil(part * first), first) - 1])
        if tried and limit == sign * (tried[-1]["low"] if at_least else tried[-1]["high"]):
            continue
        meets = rest >= limit
        n, k = int(meets.sum()), int((meets & success).sum())
        if n < needed and part < 1.0:
            continue
        bound = float(stats.beta.ppf(alpha, k, n - k + 1)) if k else 0.0
        threshold = sign * limit
        tried.append(
            {
                "low": threshold if at_least else None,
                "high": None if at_least else threshold,
                "subsets": n,
                "successes": k,
                "bound": bound,
                "held": bound >= share,
            }
        )
        if bound < share:
            break
        held = threshold
    return tried, held


def proxy(features: Sequence[str], label: str, test: pa.Table, scoring: str | None = None) -> Performance:
    """Return a function that trains a small scikit-learn model on a table and scores it on ``test``.

    The model is a logistic regression, or a ridge regression if ``label`` holds floats. A table with one
    class predicts it.

    Parameters
    ----------
    features : sequence of str
        Columns of numbers, which are standardised (a missing one is the mean), and of text, which is one-hot
        encoded.
    label : str
        Column to predict.
    test : pyarrow.Table
        Rows to score on.
    scoring : str, optional
        Name of a scikit-learn scorer, such as "roc_auc" or "neg_root_mean_squared_error". Default: accuracy
        or R².

    Returns
    -------
    callable
        The parameter ``performance`` of `raysel.gime.sensitivity`.

    Raises
    ------
    DataError
        For a missing column, and rows of the test without a label.
    ConfigError
        For an unknown scorer.
    """
    from sklearn.metrics import get_scorer_names

    for name in (*features, label):
        if name not in test.column_names:
            raise DataError(f"The test table has no column '{name}'{did_you_mean(name, test.column_names)}.")
    if test[label].null_count or not test.num_rows:
        raise DataError(
            f"The test table has no rows, or has rows without a value in '{label}'; give at least one row, and a value in every "
            "row."
        )
    if scoring is not None and scoring not in get_scorer_names():
        raise ConfigError(
            f"scoring: There is no scorer in scikit-learn called {scoring!r}{did_you_mean(scoring, get_scorer_names())}."
        )
    text = [
        name
        for name in features
        if kind(test.schema.field(name).type, name) == "text"
        or pa.types.is_dictionary(test.schema.field(name).type)
    ]
    continuous = pa.types.is_floating(test.schema.field(label).type)
    inputs, truth = test.select(list(features)).to_pandas(), test[label].to_pandas()

    def performance(train: pa.Table) -> float:
        from sklearn.compose import make_column_transformer
        from sklearn.dummy import DummyClassifier
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.metrics import check_scoring
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        train = train.filter(train[label].is_valid())
        if not train.num_rows:
            raise DataError(
                f"A subset has no row with a value in '{label}'; use larger subsets ('rows'), or drop rows without a value."
            )
        known = train[label].to_pandas()
        if not continuous and known.nunique() < 2:
            every = [*truth, known.iloc[0]]
            model = DummyClassifier(strategy="constant", constant=known.iloc[0]).fit(every, every)
        else:
            numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
            columns = make_column_transformer(
                (numbers, [name for name in features if name not in text]),
                (OneHotEncoder(handle_unknown="ignore"), text),
            )
            model = make_pipeline(columns, Ridge() if continuous else LogisticRegression(max_iter=200))
            model.fit(train.select(list(features)).to_pandas(), known)
        return float(check_scoring(model, scoring)(model, inputs, truth))

    return performance
