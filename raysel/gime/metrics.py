"""The metrics by name: the eleven, and functions of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from raysel.cluster.code import load_object
from raysel.errors import ConfigError, RayselError, reason_of, shown
from raysel.gime.block import Figure, View
from raysel.gime.estimates import Estimate, exact
from raysel.registry import METRICS

Metric = Callable[[View], Sequence[Figure]]
Own = Sequence[str | Metric]


def metric_functions(own: Own = ()) -> dict[str, Metric]:
    """Return the eleven metrics, and those of the user's own after them, by name.

    Parameters
    ----------
    own : sequence of str or callable
        Functions of a `raysel.gime.View`, or their names: a registered one, ``file.py:Name`` or
        ``package.module:Name``. Loading a file runs its code. A function's name is the name of the metric.

    Raises
    ------
    ConfigError
        For what is no function, and for a name that another metric has.
    """
    found: dict[str, Metric] = {name: METRICS.find(name, "metrics", load_object) for name in METRICS.builtin}
    for given in check_own(own):
        function = METRICS.find(given, "metrics", load_object) if isinstance(given, str) else given
        if not callable(function):
            raise ConfigError(f"metrics: {shown(given)} is not a function that takes a raysel.gime.View.")
        name = given if isinstance(given, str) and ":" not in given else getattr(function, "__name__", "")
        if not name.isidentifier():
            raise ConfigError(f"metrics: {shown(given)} has no name; define the metric with def.")
        if name in found:
            raise ConfigError(f"metrics: There is more than one metric '{name}'; rename your function.")
        found[name] = function
    return found


def check_own(own: object) -> Own:
    """Raise ConfigError unless this is a list of functions or names; no code of the user's is run."""
    if isinstance(own, str) or not isinstance(own, Sequence):
        raise ConfigError(f"metrics: {shown(own)} is not a list of functions or of their names.")
    for given in own:
        if isinstance(given, str) and ":" not in given and given not in METRICS.names():
            METRICS.find(given, "metrics", load_object)  # raises, with the nearest name
    return own


def figures(functions: Mapping[str, Metric], view: View) -> Iterator[tuple[str, Figure]]:
    """Yield every statistic of the metrics, each with the name of its metric.

    Raises
    ------
    ConfigError
        If a function of the user's own raises an error, or returns anything but a list of Figures.
    """
    for name, function in functions.items():
        if name in METRICS.builtin:
            yield from ((name, figure) for figure in function(view))
        else:
            yield from ((name, figure) for figure in _figures(name, function, view))


def _figures(name: str, function: Metric, view: View) -> list[Figure]:
    try:
        found = list(function(view))
    except RayselError:
        raise
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"metrics: '{name}' raised {type(error).__name__} ({reason_of(error)}); a metric can read only "
            "what the columns of the binding provide, see raysel.gime.View."
        ) from error
    for at, figure in enumerate(found):
        if not isinstance(figure, Figure):
            raise ConfigError(
                f"metrics: '{name}' must return a list of raysel.gime.Figure, but one of the returned elements is {shown(figure)}."
            )
        if isinstance(figure.value, (int, float)):
            found[at] = figure._replace(value=exact(float(figure.value)))
        elif not isinstance(figure.value, (Estimate, type(None))):
            raise ConfigError(
                f"metrics: '{name}' returned the value {shown(figure.value)} for '{figure.statistic}'; give a float, an Estimate or None."
            )
    if not found or len({figure.statistic for figure in found}) < len(found):
        raise ConfigError(
            f"metrics: '{name}' must return at least one statistic, each with a name of its own."
        )
    return found
