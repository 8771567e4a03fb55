"""RepDiv: representative samples first, diverse ones later (Zhou et al., 2026, arXiv:2603.04981)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysel.core.arrays import positions
from raysel.dynamic.budget import Budget, ratio_of
from raysel.dynamic.plan import TIES, Plan, check_epoch, chunks, fraction, full, part, uniform, unweighted
from raysel.dynamic.shards import kth, lowest, ordered, plan_whole
from raysel.dynamic.state import Array, SampleState, frozen, observe
from raysel.errors import ConfigError, DataError, first

ID, LABEL = "sample_id", "label"
Floats = npt.NDArray[np.float32]
_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of n samples: 12 bytes per sample, and 8 more for ids other than 0..n-1.

    Attributes
    ----------
    rep, div : array of float32, shape (n,)
        Representativeness and diversity, in [0, 1].
    classes : array of int32, shape (n,)
        Codes 0..number-1, each of which occurs, in the order of their first occurrence.
    number : int
        Number of classes.
    ids : array of int64, shape (n,), optional
        Ascending; None once the scores are in the order of a run's slots.
    """

    rep: Floats
    div: Floats
    classes: npt.NDArray[np.int32]
    number: int
    ids: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rep)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Scores:
        """Read scores from a table.

        Parameters
        ----------
        table : pyarrow.Table
            ``sample_id`` (integers), ``rep`` and ``div`` (floats in [0, 1]) and, if there are classes,
            ``label`` (any type that Arrow can compare, without nulls). Rows may be in any order.

        Returns
        -------
        Scores
            The scores in ascending order of their ids.

        Raises
        ------
        DataError
            With the ids of the rows that cannot be used.
        """
        for name in (ID, "rep", "div"):
            if name not in table.column_names:
                raise DataError(
                    f"The scores have no column '{name}'; their columns are {table.column_names}."
                )
        if table.num_rows == 0:
            raise DataError("The scores have no rows.")
        if not pa.types.is_integer(table[ID].type) or table[ID].null_count:
            raise DataError(f"The scores' sample_id must be integers without nulls, not {table[ID].type}.")
        ids = table[ID].to_numpy()
        beyond = ids > np.iinfo(np.int64).max
        if beyond.any():
            raise DataError(f"The scores' sample_id must fit int64; it does not for {first(ids[beyond])}.")
        ids = ids.astype(np.int64, copy=False)
        if not (ids[1:] > ids[:-1]).all():
            order = np.argsort(ids, kind="stable")
            ids, table = ids[order], table.take(pa.array(order))
            again = ids[1:][ids[1:] == ids[:-1]]
            if len(again):
                raise DataError(
                    f"The scores hold these ids more than once; give one row per id: {first(np.unique(again))}."
                )
        found: dict[str, Floats] = {}
        for name in ("rep", "div"):
            if not pa.types.is_floating(table[name].type):
                raise DataError(
                    f"The scores' column '{name}' must hold floating-point numbers, not {table[name].type}."
                )
            values = table[name].to_numpy().astype(np.float32, copy=False)  # a null becomes NaN
            wrong = ~((values >= 0) & (values <= 1))
            if wrong.any():
                raise DataError(
                    f"The scores' column '{name}' must lie in [0, 1]; it does not for sample_id {first(ids[wrong])}."
                )
            found[name] = frozen(values)
        codes = np.zeros(len(ids), np.int32)
        if LABEL in table.column_names:
            labels = table[LABEL].combine_chunks()
            if labels.null_count:
                missing = ids[labels.is_null().to_numpy(zero_copy_only=False)]
                raise DataError(
                    f"The scores have no label for sample_id {first(missing)}; label all samples or none."
                )
            if not pa.types.is_dictionary(labels.type):
                labels = labels.dictionary_encode()
            codes = labels.indices.to_numpy().astype(np.int32, copy=False)
        return cls(found["rep"], found["div"], *_dense(codes), frozen(ids))

    def for_ids(self, ids: npt.NDArray[np.int64] | int) -> Scores:
        """Return the scores of these ids, which become the slots 0, 1, ...

        Classes without a sample among them are removed.

        Parameters
        ----------
        ids : array of int64, ascending, or int
            The ids; a number n means 0..n-1.

        Returns
        -------
        Scores
            The scores in slot order, without ids.

        Raises
        ------
        DataError
            With the ids that have no score.
        """
        if self.ids is None:
            raise DataError(
                "These scores are already in the order of the samples of a run and have no ids; give the "
                "original scores, which have ids."
            )
        wanted = np.arange(ids, dtype=np.int64) if isinstance(ids, (int, np.integer)) else np.asarray(ids)
        if np.array_equal(wanted, self.ids):
            return replace(self, ids=None)
        place, found = positions(self.ids, wanted)
        absent = wanted[~found]
        if len(absent):
            raise DataError(
                f"{len(absent)} of {len(wanted)} samples have no score (sample_id {first(absent)}); compute the scores "
                "of the data set that is selected from."
            )
        return Scores(frozen(self.rep[place]), frozen(self.div[place]), *_dense(self.classes[place]))

    def cut(self, start: int, stop: int) -> Scores:
        """Return the scores of the slots start..stop; the number of classes does not change."""
        here = slice(start, stop)
        ids = None if self.ids is None else self.ids[here]
        return Scores(self.rep[here], self.div[here], self.classes[here], self.number, ids)

    def digest(self) -> str:
        """Return 32 hexadecimal digits that change if any score or class does."""
        digest = hashlib.blake2b(f"repdiv-scores/1 {len(self)}".encode(), digest_size=16)
        for array in (self.rep, self.div, self.classes):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class RepDiv:
    """Train on representative samples first and on diverse samples later, with equally many samples per class.

    In every epoch before the tail, the floor(ratio * n) samples of highest priority are selected. The
    priority of a sample that has been selected u times is

        H = alpha * rep + (1 - alpha) * div - penalty * ln(1 + u)
        alpha = a_min + (1 - a_min) * (1 - sigmoid(k_s * (t - t_mid * T)))    in epoch t = 1..T

    rounded to float32. If samples have equal priorities, a random number per sample decides. Of every class,
    floor(count / classes) samples are selected, or all of its samples if it has fewer; count is floor(ratio * n).
    The epoch is then filled up with the samples of any class that have the highest priorities. The last
    round(tail * T) epochs (half to even) train on all samples. All weights are 1.

    Parameters
    ----------
    scores : pyarrow.Table or Scores, optional
        Columns ``sample_id``, ``rep``, ``div`` (see `raysel.factor_scores`) and ``label``. Without labels all
        samples are one class. A workflow computes the scores itself, with the settings under ``factors``.
    ratio : float
        Share of the samples per epoch, in (0, 1].
    a_min : float
        Each sample has a score for representativeness and a score for diversity, which are added with weights. The weight
        of representativeness falls over the epochs, from about 1 to about ``a_min``, in [0, 1], along a sigmoid. The
        weight of diversity is 1 minus this weight.
    t_mid : float
        Share of the epochs, in [0, 1], after which the weight of representativeness is half-way between 1 and
        ``a_min``.
    k_s : float, optional
        Slope per epoch of the sigmoid along which the weight of representativeness falls. By default, the
        slope is 10 divided by the number of epochs.
    penalty : float
        How strongly samples that were selected often in earlier epochs are avoided; 0 for not at all.
    tail : float
        Share of the epochs, in [0, 1], at the end of the training, that train on all samples.
    alpha : float, optional
        Constant weight of representativeness, in [0, 1], in place of the weight that falls over the epochs: 1
        for representativeness alone, 0 for diversity alone.

    Raises
    ------
    ConfigError
        For a parameter that is out of range, and for more classes than samples to select.

    References
    ----------
    Zhou et al., Rethinking Representativeness and Diversity in Dynamic Data Selection, 2026,
    arXiv:2603.04981.

    Examples
    --------
    >>> rep, div = [1.0, 0.8, 0.1, 0.0], [0.0, 0.1, 0.9, 1.0]
    >>> scores = pa.table({"sample_id": [0, 1, 2, 3], "rep": rep, "div": div})
    >>> policy = raysel.RepDiv(scores, ratio=0.5)
    >>> state = raysel.dynamic.SampleState.empty(4)
    >>> policy.plan(state, epoch=0, num_epochs=20, seed=0).slots.tolist()   # the most representative ones
    [0, 1]
    """

    scores: Any = field(default=None, repr=False, compare=False, metadata={"yaml": False})
    ratio: float = 0.7
    a_min: float = 0.2
    t_mid: float = 0.6
    k_s: float | None = None
    penalty: float = 0.2
    tail: float = 0.15
    alpha: float | None = None
    scores_digest: str = field(default="", init=False, repr=False)
    title: ClassVar[str] = "RepDiv"
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        scores = self.scores
        if isinstance(scores, pa.Table):
            scores = Scores.from_arrow(scores)
        if scores is not None and not isinstance(scores, Scores):
            raise ConfigError(
                f"RepDiv.scores must be an Arrow table of sample_id, rep, div and label, got a {type(scores).__name__}."
            )
        checked: dict[str, Any] = {
            "scores": scores,
            "scores_digest": "" if scores is None else scores.digest(),
            "ratio": fraction("RepDiv.ratio", self.ratio, zero=False),
            "penalty": _positive("RepDiv.penalty", self.penalty),
        }
        for name in ("a_min", "t_mid", "tail"):
            checked[name] = fraction(f"RepDiv.{name}", getattr(self, name))
        if self.alpha is not None:
            checked["alpha"] = fraction("RepDiv.alpha", self.alpha)
        if self.k_s is not None:
            checked["k_s"] = _positive("RepDiv.k_s", self.k_s)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def at_budget(cls, budget: Budget) -> RepDiv:
        """Return RepDiv with the budget's tail and number of passes, without scores."""
        ratio = ratio_of(budget.rows_per_epoch("repdiv"), budget.rows)
        return cls(ratio=ratio, tail=budget.tail / budget.epochs)

    def with_scores(self, scores: pa.Table | Scores) -> RepDiv:
        """Return the same policy with scores.

        Parameters
        ----------
        scores : pyarrow.Table or Scores
            See the class.

        Returns
        -------
        RepDiv
            The policy with the scores of the samples.

        Raises
        ------
        DataError
            With the ids of the rows that cannot be used.

        Examples
        --------
        >>> scores = pa.table({"sample_id": [0, 1], "rep": [1.0, 0.0], "div": [0.0, 1.0]})
        >>> raysel.RepDiv(ratio=0.5).with_scores(scores).count(2)
        1
        """
        return replace(self, scores=scores)

    def for_ids(self, ids: npt.NDArray[np.int64] | int) -> RepDiv:
        """Return the policy of a run over these ids.

        Parameters
        ----------
        ids : array of int64, ascending, or int
            The ids; a number n means 0..n-1.

        Returns
        -------
        RepDiv
            The policy with scores in the order of the run's slots.

        Raises
        ------
        DataError
            With the ids that have no score.
        ConfigError
            If there are more classes than samples to select.

        Examples
        --------
        >>> scores = pa.table({"sample_id": [3, 5, 9], "rep": [1.0, 0.0, 0.5], "div": [0.0, 1.0, 0.5]})
        >>> len(raysel.RepDiv(scores).for_ids(np.array([3, 9])).scores)
        2
        """
        policy = replace(self, scores=self._scores().for_ids(ids))
        policy.count(len(policy.scores))
        return policy

    def shard(self, start: int, stop: int, n: int) -> RepDiv:
        """Return the same policy for the slots start..stop of n."""
        self._check(n)
        policy = copy.copy(self)
        object.__setattr__(policy, "scores", self.scores.cut(start, stop))
        return policy

    def plan_shard(
        self, state: SampleState, start: int, n: int, *, epoch: int, num_epochs: int, seed: int
    ) -> Generator[Any, Any, Plan]:
        """Return this shard's part of the plan, which depends on how often each sample was selected."""
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        scores: Scores = self.scores
        self._check(len(state))
        count = self.count(n)
        if count == n or epoch >= num_epochs - self.tail_epochs(num_epochs):
            return full(len(state), start)
        height = priority(
            scores.rep, scores.div, state.selected, self.alpha_in(epoch, num_epochs), self.penalty
        )
        keys = ordered(np.subtract(np.float32(0), height, out=height))  # the highest come first
        # The same draws in every epoch: without a penalty and a curriculum, the same samples in every epoch.
        draws = uniform(seed, 0, start, start + len(state), purpose=TIES)
        classes = None if scores.number == 1 else scores.classes
        quota = count // scores.number
        keep = yield from _first(
            keys, draws, lambda sizes: np.minimum(quota, sizes), start, classes, scores.number
        )
        left = count - (yield int(np.count_nonzero(keep)))
        if left:
            others = np.flatnonzero(~keep)
            more = yield from _first(keys[others], draws[others], lambda sizes: np.array([left]), start)
            keep[others[more]] = True
        return unweighted(keep, start)

    def plan(self, state: SampleState, *, epoch: int, num_epochs: int, seed: int) -> Plan:
        """Return the plan of ``epoch`` (0-based) of ``num_epochs``; see `raysel.dynamic.Policy.plan`."""
        return plan_whole(self, state, epoch=epoch, num_epochs=num_epochs, seed=seed)

    def update(self, state: SampleState, plan: Plan, slots: Array, losses: Array) -> SampleState:
        """Return the state with the epoch's losses and one more selection per planned sample."""
        return observe(state, plan.slots, slots, losses)

    def parameters(self) -> dict[str, Any]:
        """Return the policy's name and parameters; for the scores, their digest."""
        names = ("ratio", "a_min", "t_mid", "k_s", "penalty", "tail", "alpha")
        return {
            "policy": "RepDiv",
            "scores": self.scores_digest,
            **{name: getattr(self, name) for name in names},
        }

    def alpha_in(self, epoch: int, num_epochs: int) -> float:
        """Return the weight of representativeness in an epoch.

        Parameters
        ----------
        epoch : int
            Epoch, 0-based.
        num_epochs : int
            Number of epochs of the run.

        Returns
        -------
        float
            The weight ``alpha``, in [0, 1].

        Raises
        ------
        ConfigError
            If ``epoch`` is not one of the run.

        Examples
        --------
        >>> policy = raysel.RepDiv(a_min=0.2)
        >>> policy.alpha_in(0, 20) > policy.alpha_in(19, 20) > 0.2
        True
        """
        epoch, num_epochs = check_epoch(epoch, num_epochs)
        if self.alpha is not None:
            return self.alpha
        slope = 10 / num_epochs if self.k_s is None else self.k_s
        falling = (1 - math.tanh(slope * (epoch + 1 - self.t_mid * num_epochs) / 2)) / 2  # 1 - sigmoid
        return self.a_min + (1 - self.a_min) * falling

    def tail_epochs(self, num_epochs: int) -> int:
        """Return the number of epochs at the end that take all data.

        Parameters
        ----------
        num_epochs : int
            Number of epochs of the run.

        Returns
        -------
        int
            The number of epochs: round(tail * num_epochs), half to even.

        Examples
        --------
        >>> raysel.RepDiv(tail=0.15).tail_epochs(20)
        3
        """
        return round(Fraction(repr(self.tail)) * num_epochs)

    def count(self, n: int) -> int:
        """Return the number of samples of an epoch before the tail.

        Parameters
        ----------
        n : int
            Number of samples to select from.

        Returns
        -------
        int
            The number of samples: floor(ratio * n), at least 1.

        Raises
        ------
        ConfigError
            If that is less than the number of classes, or the policy has no scores.

        Examples
        --------
        >>> falling = np.linspace(1, 0, 10)
        >>> scores = pa.table({"sample_id": range(10), "rep": falling, "div": 1 - falling})
        >>> raysel.RepDiv(scores, ratio=0.7).count(10)
        7
        """
        count, number = min(max(part(self.ratio, n), 1), n), self._scores().number
        if count < number:
            raise ConfigError(
                f"RepDiv.ratio of {self.ratio:g} selects {count} of {n} samples, but RepDiv needs at least one sample for each of "
                f"the {number} classes. Raise ratio to {math.ceil(1000 * number / n) / 1000:g} or more, or give scores without the "
                "column 'label'."
            )
        return count

    def cost(self, n: int, num_epochs: int) -> float:
        """Return the number of samples that a run trains on, divided by that of a run on all samples in every epoch.

        Parameters
        ----------
        n : int
            Number of samples to select from.
        num_epochs : int
            Number of epochs T of the run.

        Returns
        -------
        float
            The share ((T - tail_epochs) * count + tail_epochs * n) / (T * n).

        Raises
        ------
        ConfigError
            As :meth:`count` raises.

        Examples
        --------
        >>> falling = np.linspace(1, 0, 10)
        >>> scores = pa.table({"sample_id": range(10), "rep": falling, "div": 1 - falling})
        >>> raysel.RepDiv(scores, ratio=0.5, tail=0.2).cost(10, num_epochs=10)
        0.6
        """
        tail = self.tail_epochs(num_epochs)
        return ((num_epochs - tail) * self.count(n) + tail * n) / (num_epochs * n)

    def _scores(self) -> Scores:
        if self.scores is None:
            raise ConfigError("RepDiv has no scores yet; give them as RepDiv(scores) or with_scores(scores).")
        scores: Scores = self.scores
        return scores

    def _check(self, n: int) -> None:
        if len(self._scores()) != n:
            raise ConfigError(
                f"RepDiv has the scores of {len(self.scores)} samples, but the run has {n}; use policy.for_ids(ids) instead of the "
                "policy, where ids are the sample_id of the run."
            )


def priority(
    rep: Floats, div: Floats, selected: npt.NDArray[np.int32], alpha: float, penalty: float
) -> Floats:
    """Return alpha * rep + (1 - alpha) * div - penalty * ln(1 + selected): float64, rounded to float32."""
    most = int(selected.max()) if len(selected) else 0
    cost = penalty * np.log1p(np.arange(most + 1, dtype=np.float64))
    height = np.empty(len(rep), np.float32)
    for start, stop in chunks(len(rep)):
        exact = (
            rep[start:stop].astype(np.float64) * alpha
        )  # NumPy 1 would multiply float32 by a scalar in float32
        exact += div[start:stop].astype(np.float64) * (1 - alpha)
        exact -= cost[selected[start:stop]]
        height[start:stop] = exact
    return height


def _first(
    keys: npt.NDArray[np.uint32],
    draws: npt.NDArray[np.uint32],
    count: Callable[[Array], Array],
    start: int,
    groups: Array | None = None,
    number: int = 1,
) -> Generator[Any, Any, npt.NDArray[np.bool_]]:
    """Do as :func:`raysel.dynamic.shards.lowest`, with ties broken by the lowest draw, then slot."""
    key, ties = yield from kth(keys, lambda sizes: np.minimum(count(sizes), sizes) - 1, groups, number)
    marks = np.empty(len(keys), np.bool_)
    level = []
    for begin, end in chunks(len(keys)):
        of = slice(0, 1) if groups is None else groups[begin:end]
        bound, some = key[of], ties[of] > 0
        np.logical_and(keys[begin:end] < bound, some, out=marks[begin:end])
        level.append(begin + np.flatnonzero((keys[begin:end] == bound) & some))
    tied = np.concatenate(level) if level else np.zeros(0, np.int64)
    among = yield from lowest(
        draws[tied], lambda sizes: ties, start, None if groups is None else groups[tied], number
    )
    marks[tied[among]] = True
    return marks


def _dense(codes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], int]:
    """Return the codes as 0..number-1 in the order of their first occurrence, and their number."""
    begin = np.full(int(codes.max(initial=0)) + 1, len(codes))
    for start in reversed(
        range(0, len(codes), _ROWS)
    ):  # of equal places the last to be written stays: the first
        here = codes[start : start + _ROWS]
        begin[here[::-1]] = np.arange(start + len(here) - 1, start - 1, -1)
    number = int(np.count_nonzero(begin < len(codes)))
    rank = np.empty(len(begin), np.int32)
    rank[np.argsort(begin, kind="stable")] = np.arange(len(begin), dtype=np.int32)
    return frozen(rank[codes]), number


def _positive(name: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r}.")
    return number
