"""Numbers of NumPy and torch as Python's, and checks of those that a user gives."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from raysel.errors import ConfigError, shown


def plain(value: Any) -> Any:
    """Return a NumPy number, an array without dimensions or such a tensor as Python's value; others unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def python_numbers(value: Any) -> Any:
    """Return ``value`` with NumPy's numbers as Python's, in nested dicts, lists and tuples; itself if it has none."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        found = {key: python_numbers(entry) for key, entry in value.items()}
        return value if all(found[key] is entry for key, entry in value.items()) else found
    if type(value) in (list, tuple):
        entries = [python_numbers(entry) for entry in value]
        return value if all(map(operator.is_, entries, value)) else type(value)(entries)
    return value


def whole(name: str, value: object, least: int | None = None) -> int:
    """Return ``value`` as an int; raise ConfigError unless it is a whole number of at least ``least``."""
    value = plain(value)
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        at_least = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{name} must be a whole number{at_least}, got {shown(value)}.")
    return number
