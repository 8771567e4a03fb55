"""Docstrings of what users call are complete, in NumPy style."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from numpydoc.validate import validate

import raysel

SHORT = {"GL08", "SS02", "SS03", "SS04", "SS05"}
HELD = SHORT | {"PR01", "PR02", "PR03", "PR04", "PR07", "RT01", "RT03", "YD01"}
CALLED = HELD | {"EX01"}
# Implementations of an interface say in one line what they do: the interface documents the parameters.
INTERFACES = {"plan", "plan_shard", "update", "parameters", "shard", "check", "at_budget", "configure"}


def members(made: type, checks: set[str]) -> dict[str, set[str]]:
    """Public methods and properties of a class, with the checks that each has to pass."""
    found = {}
    for name, value in vars(made).items():
        if not name.startswith("_") and (callable(getattr(made, name)) or isinstance(value, property)):
            short = isinstance(value, property) or (name in INTERFACES and not hasattr(made, "_is_protocol"))
            found[f"{place(made)}.{name}"] = SHORT if short else checks
    return found


def place(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def public() -> dict[str, set[str]]:
    """Full names of the public interface, with the checks that each has to pass."""
    found = {}
    for name in sorted(set(raysel.__all__) - {"__version__"}):
        made = getattr(raysel, name)
        found[place(made)] = CALLED
        found |= members(made, CALLED) if inspect.isclass(made) else {}
    return found


def held() -> dict[str, set[str]]:
    """The same of what users hold in their hands besides: not every method needs an example."""
    from raysel import dynamic, errors, factors, gime, gio
    from raysel.train.batch import Batch
    from raysel.train.session import Session

    found = {}
    made_here = HELD - {"PR01"}  # of what users do not construct, attributes are documented, not parameters
    for made in (Session, Batch, dynamic.Policy, dynamic.plan.ShardedPolicy):
        found |= {place(made): made_here, **members(made, HELD)}
    for made in (
        dynamic.Plan,
        dynamic.SampleState,
        gio.Stop,
        gio.Picks,
        gime.Binding,
        gime.State,
        factors.Autoencoder,
    ):
        found[place(made)] = made_here
    for function in (
        *(gio.exact_select, gio.gradient_select, gio.kl, factors.rep_div, factors.fit_autoencoder),
        *(gime.measure, gime.partial, gime.merge, gime.finalize, gime.with_target, gime.select_groups),
        *(gime.sensitivity, gime.proxy, gime.row_scores, gime.key_counts, gime.pieces),
    ):
        found[place(function)] = HELD
    names = ("RayselError", "DataError", "ConfigError", "ResourceError", "StateError", "RunError")
    return found | {f"raysel.errors.{name}": SHORT for name in names if hasattr(errors, name)}


@pytest.mark.parametrize(("name", "checks"), (public() | held()).items())
def test_the_interface_is_documented(name, checks):
    assert not [text for code, text in validate(name)["errors"] if code in checks]
