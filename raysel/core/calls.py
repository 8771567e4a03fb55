"""Calls of a public method that cannot work, answered with what to write instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from raysel.errors import ConfigError

M = TypeVar("M", bound=Callable[..., Any])


def checked_call(method: M) -> M:
    """Decorate a method of a selector, so that a call on its class or with other arguments says what to write.

    ``select(pool, None, avoid=None)`` works with every selector, so that one line of code can call any of them.
    """
    owner, name = method.__qualname__.split(".")[-2:]
    signature = inspect.signature(method)
    positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not args or owner not in [cls.__name__ for cls in type(args[0]).__mro__]:
            raise ConfigError(
                f"{owner}.{name} was called on the class; make a selector first, as in raysel.{owner}(...).{name}(...)."
            )
        while len(args) > len(positional) and args[-1] is None:
            args = args[:-1]
        kwargs = {
            key: value for key, value in kwargs.items() if value is not None or key in signature.parameters
        }
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{owner}.{name} was called with arguments that do not fit its parameters ({error}); call it as {_written(name, signature)}."
            ) from error
        return method(*args, **kwargs)

    return cast(M, checked)


def _written(name: str, signature: inspect.Signature) -> str:
    """Return the call of a method, without its types: ``select(pool, *, start=None)``."""
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    return name + str(inspect.Signature(plain[1:]))
