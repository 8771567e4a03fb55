"""Errors. A message says what is wrong, where (file, column, row id, configuration path) and what to do."""

from __future__ import annotations


class RayselError(Exception):
    """Base class of all errors that raysel raises; the command line prints them without a traceback."""


class DataError(RayselError, ValueError):
    """Raised for rows, columns, ids or vectors that cannot be used as they are."""


class ConfigError(RayselError, ValueError):
    """Raised for a parameter or a workflow key that is unknown, out of range or in conflict with another."""


class ResourceError(RayselError, RuntimeError):
    """Raised if the cluster cannot place the requested workers or tasks."""


class StateError(RayselError, RuntimeError):
    """Raised for selection state that is stale or damaged, or belongs to another run."""


class RunError(RayselError, RuntimeError):
    """Raised for a run directory that cannot be used: it holds another run, or a step in it failed."""


def first(values: object, limit: int = 3) -> str:
    """Return the first few of many ids or names, for a sentence: ``"3, 17, 20 and 41 more"``."""
    items = list(values)  # type: ignore[call-overload]
    shown = ", ".join(str(item) for item in items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
