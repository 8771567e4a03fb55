"""Calls of a public method that cannot work, answered with what to write instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from raysel.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def checked_call(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of a selector, so that a call on its class or with other arguments says what to write.

    ``select(pool, None, avoid=None)`` works with every selector, so that one line of code can call any of them.
    """
    owner, name = method.__qualname__.split(".")[-2:]
    signature = inspect.signature(method)
    positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not args or owner not in [cls.__name__ for cls in type(args[0]).__mro__]:
            raise ConfigError(
                f"{owner}.{name} was called on the class; make a selector first, as in raysel.{owner}(...).{name}(...)."
            )
        while len(args) > len(positional) and args[-1] is None:
            args = args[:-1]  # type: ignore[assignment]
        for other in [key for key in kwargs if kwargs[key] is None and key not in signature.parameters]:
            del kwargs[other]
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{owner}.{name} was called with other arguments than it has ({error}); call it as {_written(name, signature)}."
            ) from error
        return method(*args, **kwargs)

    return checked


def _written(name: str, signature: inspect.Signature) -> str:
    """Return the call of a method, without its types: ``select(pool, *, start=None)``."""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    return name + str(inspect.Signature(plain[1:]))
