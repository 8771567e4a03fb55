"""Docstrings of the public interface are complete, in NumPy style."""

from __future__ import annotations

import inspect

import pytest
from numpydoc.validate import validate

import raysel

CHECKS = {"GL08", "SS02", "SS03", "SS04", "SS05", "PR01", "PR02", "PR03", "PR04", "PR07", "RT01", "RT03", "YD01", "EX01"}  # fmt: skip
# Implementations of an interface: the interface documents the parameters, they say in one line what they do.
INTERFACES = {"plan", "plan_shard", "update", "parameters", "shard", "check", "at_budget", "configure"}
SHORT = {"GL08", "SS02", "SS03", "SS04", "SS05"}


def public() -> dict[str, set[str]]:
    """Full names of the public interface, with the checks that each has to pass."""
    found = {}
    for name in sorted(set(raysel.__all__) - {"__version__"}):
        made = getattr(raysel, name)
        place = f"{made.__module__}.{made.__qualname__}"
        found[place] = CHECKS
        for member, value in vars(made).items() if inspect.isclass(made) else ():
            if not member.startswith("_") and (
                callable(getattr(made, member)) or isinstance(value, property)
            ):
                short = member in INTERFACES or isinstance(value, property)
                found[f"{place}.{member}"] = SHORT if short else CHECKS
    return found


@pytest.mark.parametrize("place", public())
def test_the_public_interface_is_documented(place):
    found = validate(place)["errors"]
    assert not [text for code, text in found if code in public()[place]]
