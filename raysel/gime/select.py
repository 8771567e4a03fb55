"""Groups of least volume whose rows together satisfy thresholds on the metrics.

The publication says only that data outside the thresholds are dropped; the procedure is our own. Metrics of a
union are computed from the groups' states, so no row is read again. Finding the least volume is at least as
hard as weighted set cover, so this is a greedy search.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.numbers import plain, whole
from raysel.errors import ConfigError, DataError, shown
from raysel.gime.binding import Binding, did_you_mean, least_and_greatest
from raysel.gime.block import View
from raysel.gime.columns import hash_column
from raysel.gime.estimates import Estimate, exact
from raysel.gime.metrics import Metric, Own, check_own, figures, metric_functions
from raysel.gime.parts import Parts, merge_parts
from raysel.gime.state import State, partial, target_view

_NEAR = 0.2  # gains by so much below the best are hardly less

Thresholds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Choice:
    """The groups that were selected.

    Attributes
    ----------
    groups : tuple of str or None
        Labels, in the order in which they were picked.
    reasons : mapping of label to str
        Why each group was selected or not.
    reached : mapping of str to float
        The value of each threshold's statistic, and of each floor's class, over the rows of all selected
        groups.
    bounds : mapping of str to float
        The largest absolute error of each, 0 if exact; see `raysel.gime.finalize`.
    """

    groups: tuple[str | None, ...]
    reasons: Mapping[str | None, str] = field(repr=False)
    reached: Mapping[str, float]
    bounds: Mapping[str, float]


def select_groups(
    state: State,
    thresholds: Thresholds,
    floors: Mapping[Any, int] | None = None,
    kind: Callable[[str | None], Any] | None = None,
    metrics: Own = (),
) -> Choice:
    """Select groups whose rows together satisfy all thresholds and floors.

    Groups are picked by how much shortfall each of their rows makes up. Then groups that the others make
    unnecessary are dropped, the largest first, until every remaining group is needed.

    Parameters
    ----------
    state : State
        The state of all rows, made with ``by``.
    thresholds : mapping of str to (float or None, float or None)
        For a statistic such as "variety.classes", the least and greatest value. A statistic that is null
        fails. If it is sketched, the low end of its bound must reach the least value, and the high end must
        not exceed the greatest.
    floors : mapping of label to int, optional
        For a class, the least number of its rows. The binding must name one class column, of at most 2,048
        classes.
    kind : callable, optional
        Takes a group's label. Groups with the same result are alike: only the first one left of each kind is
        tried, and where thresholds leave a choice, groups are picked in the proportions of their kinds.
        Default: no groups are alike.
    metrics : sequence of callable or str
        Metrics of your own that thresholds may name, as for `raysel.gime.measure`.

    Returns
    -------
    Choice
        The selected groups, with reasons.

    Raises
    ------
    ConfigError
        If no choice was found; the message names the thresholds that conflict.
    DataError
        If there is no group, or there are too many classes for floors.
    """
    if state.by is None:
        raise ConfigError(
            "These metrics describe one set of rows, not groups; measure with by=, so that there are groups to select from."
        )
    if not state.groups:
        raise DataError("There are no groups to select from: the data are empty.")
    floors = floors_of(floors or {})
    classes = {f"rows of class {label!r}": label for label in floors}
    if classes and len(state.binding.classes) != 1:
        raise ConfigError(
            "floors: Floors count the rows of each class, so the binding must name exactly one class column."
        )
    least = {name: (float(floors[label]), None) for name, label in classes.items()}
    functions = metric_functions(metrics)
    limits: Thresholds = {**_checked(state, thresholds, functions), **least}
    if not limits:
        raise ConfigError(
            "thresholds: Rows or groups are selected until all thresholds and floors are satisfied, so without any of them nothing "
            "would be selected; give at least one threshold or floor."
        )
    search = _Search(state, limits, classes, kind or (lambda label: label), functions)
    picked = search.greedy(list(limits))
    if picked is None:
        raise ConfigError(search.why_not())
    kept = search.prune([group for group, _ in picked], list(limits))
    reasons: dict[str | None, str] = {}
    for rank, (group, text) in enumerate(picked):
        dropped = "the other chosen groups satisfy all thresholds without it"
        reasons[state.groups[group]] = f"pick {rank + 1}: {text}" if group in kept else dropped
    for label in state.groups:
        reasons.setdefault(label, "the chosen groups satisfy all thresholds without it")
    reached = search.values(search.union(kept))
    return Choice(
        tuple(state.groups[g] for g in kept),
        reasons,
        {name: found.value for name, found in reached.items()},
        {name: found.bound for name, found in reached.items()},
    )


def check_thresholds(thresholds: Thresholds, binding: Binding, schema: pa.Schema, own: Own) -> None:
    """Raise ConfigError for a threshold on a statistic that a table with these columns does not have.

    Statistics of metrics of the user's own are not checked, so that no code of theirs is run.
    """
    names = [
        given.rpartition(":")[2] if isinstance(given, str) else given.__name__ for given in check_own(own)
    ]
    builtin = {name: ends for name, ends in thresholds.items() if name.split(".")[0] not in names}
    none = pa.schema([schema.field(name) for name in binding.columns]).empty_table()
    _checked(partial(none, binding), builtin, metric_functions())


def _checked(
    state: State, thresholds: Thresholds, functions: Mapping[str, Metric]
) -> dict[str, tuple[float | None, float | None]]:
    found, known = limits_of(thresholds), _statistics(state, functions)
    for name in found:
        if name not in known:
            raise ConfigError(
                f"thresholds.{name}: There is no such statistic{did_you_mean(name, known)}. Write METRIC.STATISTIC, for example "
                "'variety.classes'."
            )
    return found


def limits_of(thresholds: Any) -> dict[str, tuple[float | None, float | None]]:
    """Return thresholds as floats. Raises ConfigError for what is none, whatever the metrics are."""
    if not isinstance(thresholds, Mapping):
        raise ConfigError(
            f"thresholds: {shown(thresholds)} is not a mapping of statistics to pairs (least, greatest)."
        )
    found = {}
    for name, ends in thresholds.items():
        found[name] = low, high = least_and_greatest(f"thresholds.{name}", ends)
        if low is None and high is None:
            raise ConfigError(
                f"thresholds.{name}: The least and the greatest value are both missing; give a number for at least one of them."
            )
    return found


def floors_of(floors: Any) -> dict[Any, int]:
    """Return floors with numbers and labels as Python's. Raises ConfigError for what is none."""
    if not isinstance(floors, Mapping):
        raise ConfigError(f"floors: {shown(floors)} is not a mapping of classes to numbers of rows.")
    return {plain(label): whole(f"floors.{label}", rows, 1) for label, rows in floors.items()}


def _statistics(state: State, functions: Mapping[str, Metric]) -> list[str]:
    view = View(state.binding, state.parts, 0, state.kinds, target_view(state.binding.target))
    return [f"{metric}.{figure.statistic}" for metric, figure in figures(functions, view)]


class _Search:
    """The greedy search over unions of groups; a union is the merged accumulators of its groups."""

    def __init__(
        self,
        state: State,
        limits: Thresholds,
        classes: Mapping[str, Any],
        kind: Callable[[str | None], Any],
        functions: Mapping[str, Metric],
    ) -> None:
        self._kinds = [kind(label) for label in state.groups]
        self._state = state
        self._limits = limits
        self._target = target_view(state.binding.target)
        limited = {name.split(".")[0] for name in limits}
        self._metrics = {name: function for name, function in functions.items() if name in limited}
        self._rows = state.parts.counts["rows"]
        self._classes = {name: hash_column(pa.array([label]), "class")[0] for name, label in classes.items()}
        self._parts = [_alone(state.parts, group) for group in range(len(state.groups))]
        self._parts = self._slim(self._parts)

    def union(self, groups: Sequence[int]) -> Parts:
        """Return the merged accumulators of the groups."""
        return reduce(merge_parts, (self._parts[group] for group in groups))

    def _slim(self, parts: list[Parts]) -> list[Parts]:
        """Return the accumulators without the sketches that no limited figure reads.

        Merging them would take most of the time. Which ones are read is recorded while the figures of all
        groups together are computed. Those of some of the rows read no others.
        """
        seen: dict[str, set[str]] = {where: set() for where in ("keys", "histograms", "waves")}
        whole = reduce(merge_parts, parts)
        self.values(replace(whole, **{where: _Noted(getattr(whole, where), seen[where]) for where in seen}))
        return [
            replace(one, **{where: {n: getattr(one, where)[n] for n in seen[where]} for where in seen})
            for one in parts
        ]

    def values(self, parts: Parts) -> dict[str, Estimate]:
        """Return the limited figures of a union; one that is null is left out."""
        view = View(self._state.binding, parts, 0, self._state.kinds, self._target)
        found: dict[str, Estimate] = {}
        for metric, figure in figures(self._metrics, view):
            name = f"{metric}.{figure.statistic}"
            if name in self._limits and figure.value is not None:
                found[name] = figure.value
        if self._classes:
            sample = view.keys("classes")
            if sample.cut:
                raise DataError(
                    "floors: The class column has more than 2,048 different values, so raysel does not count "
                    "the rows of each class; name a column with fewer classes in the binding."
                )
            for name, key in self._classes.items():
                found[name] = exact(float(sample.columns["count"][sample.hash == key].sum()))
        return found

    def shortfall(self, parts: Parts, names: Sequence[str]) -> dict[str, float]:
        """Return how far each threshold is from being met.

        0 if it is, 1 if the figure is null or has nothing of the limit, and near 1 if it is far above.
        """
        values, found = self.values(parts), {}
        for name in names:
            low, high = self._limits[name]
            value = values.get(name)
            miss = 0.0
            if value is None:
                miss = 1.0
            elif low is not None and value.low < low:
                miss = min((low - value.low) / (abs(low) or 1.0), 1.0)
            elif high is not None and value.high > high:
                over = (value.high - high) / (abs(high) or 1.0)
                miss = over / (1.0 + over)  # however far it is, less far is better
            if miss:
                found[name] = miss
        return found

    def greedy(self, names: Sequence[str]) -> list[tuple[int, str]] | None:
        """Pick groups until all thresholds are satisfied; None if that is not possible."""
        return self._greedy(names, careful=False) or self._greedy(names, careful=True)

    def _greedy(self, names: Sequence[str], careful: bool) -> list[tuple[int, str]] | None:
        left = list(range(len(self._parts)))
        parts, now, missing = None, float(len(names)), dict.fromkeys(names, 1.0)
        picked: list[tuple[int, str]] = []
        sizes, taken = Counter(self._kinds), Counter[Any]()
        while left:
            found, before = [], missing
            for group in {self._kinds[g]: g for g in reversed(left)}.values():
                union = self._parts[group] if parts is None else merge_parts(parts, self._parts[group])
                missing = self.shortfall(union, names)
                rows = max(int(self._rows[group]), 1)
                # enough at once: the smallest that is
                gain = round((now - sum(missing.values())) / rows, 12) if missing else np.inf
                found.append((gain, rows, group, union, missing))
            if careful:
                harmless = [
                    one for one in found if all(miss <= before.get(n, 0.0) for n, miss in one[4].items())
                ]
                found = harmless or found
            top = max(gain for gain, *_ in found)
            near = top if math.isinf(top) or len(sizes) == len(self._kinds) else top - _NEAR * abs(top)
            # Where the thresholds hardly care, kinds in their proportions: one after the other would tie together what sets them apart,
            # a class to a season, and a model would learn that.
            _, _, group, parts, missing = min(
                (one for one in found if one[0] >= near),
                key=lambda one: (
                    taken[self._kinds[one[2]]] / sizes[self._kinds[one[2]]],
                    -one[0],
                    one[1],
                    one[2],
                ),
            )
            left.remove(group)
            taken[self._kinds[group]] += 1
            now = sum(missing.values())
            picked.append(
                (
                    group,
                    f"still short of {', '.join(missing)}"
                    if missing
                    else "all thresholds are satisfied with it",
                )
            )
            if not missing:
                return picked
        return None

    def prune(self, groups: list[int], names: Sequence[str]) -> list[int]:
        """Drop groups that the others make unnecessary, the largest first, until every group is needed."""
        kept, pruned = groups, True
        while pruned:
            pruned, unions = False, None
            for group in sorted(kept, key=lambda g: (-int(self._rows[g]), g)):
                if len(kept) == 1:
                    break
                before, after = unions = unions or (self._unions(kept), self._unions(kept[::-1])[::-1])
                at = kept.index(group)
                around = [
                    *before[:at][-1:],
                    *after[at + 1 :][:1],
                ]  # the union of all others, in one part or two
                if not self.shortfall(reduce(merge_parts, around), names):
                    kept, pruned, unions = [*kept[:at], *kept[at + 1 :]], True, None
        return kept

    def _unions(self, groups: Sequence[int]) -> list[Parts]:
        """Return the unions of the first group, the first two, and so on."""
        return list(accumulate((self._parts[group] for group in groups), merge_parts))

    def why_not(self) -> str:
        """Return a sentence with thresholds that conflict: without any one of them a choice is found."""
        conflict = list(self._limits)
        for name in list(conflict):
            rest = [n for n in conflict if n != name]
            if rest and self.greedy(rest) is None:
                conflict = rest
        told = ", ".join(
            f"{name} in [{_end(self._limits[name][0])}, {_end(self._limits[name][1])}]" for name in conflict
        )
        reached = self.values(self.union(list(range(len(self._parts)))))
        whole = ", ".join(
            f"{name} {_told(reached[name])}" if name in reached else f"{name} null" for name in conflict
        )
        if len(conflict) == 1:
            return f"thresholds: No selection of groups was found that satisfies {told} (all groups together: {whole}); loosen this threshold."
        return f"thresholds: No selection of groups was found that satisfies {told} together (all groups together: {whole}). Without any one of these thresholds, there is a selection; loosen or remove one of them."


class _Noted(dict[str, Any]):
    """A dict that records which of its keys are read."""

    def __init__(self, known: Mapping[str, Any], seen: set[str]) -> None:
        super().__init__(known)
        self._seen = seen

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return super().__getitem__(name)


def _end(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _told(found: Estimate) -> str:
    return f"{found.value:.6g}" + (f" within {found.bound:.3g}" if found.bound else "")


def _alone(parts: Parts, group: int) -> Parts:
    """Return the accumulators of one group."""
    one = slice(group, group + 1)
    return Parts(
        {name: v[one] for name, v in parts.counts.items()},
        {name: v[one] for name, v in parts.low.items()},
        {name: v[one] for name, v in parts.high.items()},
        {name: v[one] for name, v in parts.sums.items()},
        {name: v.alone(group) for name, v in parts.keys.items()},
        {name: v.of(group) for name, v in parts.histograms.items()},
        {name: v[one] for name, v in parts.waves.items()},
    )
