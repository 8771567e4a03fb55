"""Errors: one sentence that says what is wrong, where (file, column, row id, config path) and what to do."""

from __future__ import annotations


class RayselError(Exception):
    """Base of every error that raysel raises on purpose; the command line prints it without a traceback."""


class DataError(RayselError, ValueError):
    """Rows, columns, ids or vectors that cannot be used as they are."""


class ConfigError(RayselError, ValueError):
    """A parameter or a workflow key that is unknown, out of range or in conflict with another."""


class ResourceError(RayselError, RuntimeError):
    """The cluster cannot place what was asked for."""


class StateError(RayselError, RuntimeError):
    """Selection state that is stale, damaged, or belongs to another run."""


class RunError(RayselError, RuntimeError):
    """A run directory that cannot be used: it holds another run, or a step in it failed."""


def first(values: object, limit: int = 3) -> str:
    """The first few of many ids or names, for a sentence: ``"3, 17, 20 and 41 more"``."""
    items = list(values)  # type: ignore[call-overload]
    shown = ", ".join(str(item) for item in items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
