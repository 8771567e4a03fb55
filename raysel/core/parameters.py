"""Build a frozen dataclass from a tree of YAML values, and describe one as such a tree.

A method is its own configuration: the fields of its dataclass are the keys that a workflow may give. Types are checked
by pydantic in its JSON mode: booleans are not numbers, numbers are not text, and unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from raysel.core.numbers import plain
from raysel.core.registry import nearest
from raysel.errors import ConfigError, RayselError, shown

T = TypeVar("T")


def keys(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Fields of the dataclass ``cls`` that a workflow may give, by name."""
    return {
        field.name: field
        for field in dataclasses.fields(cls)
        if field.init and field.metadata.get("yaml", True)
    }


def build(cls: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Return ``cls(**tree)``, with nested dataclasses built from nested mappings.

    Parameters
    ----------
    cls : type
        A dataclass.
    tree : Mapping
        Values as YAML reads them.
    where : str
        Configuration path of the tree, which begins every error message.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest known one), a missing key, and a value of another type or out of range.
    """
    _check_values(tree, where)
    allowed = keys(cls)
    for name in tree:
        if name not in allowed:
            raise _unknown([name], allowed, where)
    try:
        made: T = _adapter(typing.cast(Any, cls)).validate_json(json.dumps(tree), strict=True, extra="forbid")
        return made
    except ValidationError as error:
        raise _problem(error, cls, tree, where) from None


def check_fields(made: Any) -> None:
    """Check the types of a frozen dataclass's fields, and keep numbers of NumPy as Python's; for ``__post_init__``.

    Raises
    ------
    ConfigError
        With the field, its value, and what it should be.
    """
    for name, adapter in _field_adapters(typing.cast(Any, type(made))).items():
        value = plain(getattr(made, name))
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            said = " or ".join(dict.fromkeys(map(_expected, error.errors(include_url=False))))
            raise ConfigError(f"{name}: {shown(value)} should be {said}.") from None
        object.__setattr__(made, name, value)


def describe(value: Any) -> Any:
    """Return ``value`` as JSON types; a dataclass as the mapping from which :func:`build` makes an equal one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: describe(getattr(value, name)) for name in keys(type(value))}
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Path) else value


def type_name(cls: type, name: str) -> str:
    """Type of the field ``name`` of the dataclass ``cls`` as it is written for people: ``float or int or str``."""
    hint = typing.get_type_hints(cls, include_extras=False).get(name, Any)
    return _written(hint)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Default of a field; ``dataclasses.MISSING`` if the key has to be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


# ---- checking ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    _field_adapters(cls)  # whose errors name the field
    return TypeAdapter(cls)


@lru_cache(maxsize=256)
def _field_adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    hints, adapters = typing.get_type_hints(cls, include_extras=True), {}
    for field in dataclasses.fields(cls):
        try:
            adapters[field.name] = TypeAdapter(hints[field.name])
        except PydanticSchemaGenerationError:
            raise ConfigError(
                f"{cls.__name__}.{field.name} has the type {_written(hints[field.name])}, but a YAML file cannot "
                "contain values of this type; give the field another type, such as str."
            ) from None
    return adapters


def _check_values(value: Any, where: str, depth: int = 0) -> None:
    """Raise ConfigError for what JSON cannot hold."""
    if depth > 50:
        raise ConfigError(f"'{where}' contains itself through an anchor (&name) of YAML; remove the anchor.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_values(item, _join(where, name), depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_values(item, _join(where, number), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"'{where}' is {value}; give a finite number.")
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise ConfigError(
            f"'{where}': YAML reads this value as a {type(value).__name__}, which raysel does not accept; write it in quotes to "
            "make it text."
        )


def _problem(error: ValidationError, cls: type, tree: Mapping[str, Any], where: str) -> ConfigError:
    """Return the first problem as a sentence; unknown keys come first, since others may follow from them."""
    problems = sorted(error.errors(), key=lambda p: p["type"] != "unexpected_keyword_argument")
    problem = problems[0]
    path = [part for part in problem["loc"] if part in _parts(problem["loc"], tree, problem["type"])]
    place = ".".join([*filter(None, [where]), *map(str, path)])
    if problem["type"] == "unexpected_keyword_argument":
        return _unknown(path, keys(_class_at(cls, path[:-1])), where)
    if problem["type"] == "missing":
        return ConfigError(f"The key '{place}' is missing.")
    if problem["type"] == "value_error":  # raised by the dataclass itself
        raised = problem["ctx"]["error"]
        return ConfigError(_placed(raised, place, cls if not path else _class_at(cls, path)))
    # Of a union every member has a problem: all the same value's, of which one message is enough.
    union = [p for p in problems if p["loc"][: len(path)] == problem["loc"][: len(path)]]
    said = " or ".join(dict.fromkeys(map(_expected, union)))
    return ConfigError(f"'{place}' is {_yaml(problem['input'])}; it should be {said}.")


def _expected(problem: Mapping[str, Any]) -> str:
    """Return what pydantic expected, in the words of YAML."""
    if problem["type"] == "string_pattern_mismatch":
        return f"text that matches {problem['ctx']['pattern']}"
    said = _lower(problem["msg"]).removeprefix("input should be ").removeprefix("string should ")
    words = {
        "an object": "a mapping",
        "a valid array": "a list",
        "a valid string": "text",
        "a valid boolean": "true or false",
        "a valid number": "a number",
        "a valid integer": "an integer",
    }
    return words.get(said, said)


def _yaml(value: Any) -> str:
    """Return a value as a message shows it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else shown(value)
    )


def _parts(loc: tuple[int | str, ...], tree: Any, kind: str) -> list[int | str]:
    """Return the parts of a location that the tree has; pydantic adds the members of unions and constraints."""
    here: Any = tree
    found: list[int | str] = []
    for part in loc:
        if isinstance(here, Mapping):
            inside = part in here
        else:
            inside = isinstance(here, (list, tuple)) and isinstance(part, int) and part < len(here)
        if inside:
            here = here[part]
        elif not (kind == "missing" and part == loc[-1]):
            continue
        found.append(part)
    return found


def _placed(error: Exception, place: str, cls: type) -> str:
    """Return the message of a dataclass's own check, which begins with a field's name, under its path."""
    message = str(error)
    message = message.removeprefix(f"{cls.__name__}.")
    if not isinstance(error, RayselError):
        message = f"{type(error).__name__}: {message}"
    message = message if message.endswith((".", "?")) else f"{message}."
    starts = any(message.startswith(name) for name in keys(cls)) if dataclasses.is_dataclass(cls) else False
    if not place:
        return message
    return f"{place}.{message}" if starts else f"{place}: {message}"


def _unknown(path: list[Any], allowed: Mapping[str, Any], where: str) -> ConfigError:
    *parents, name = map(str, path)
    prefix = ".".join([*filter(None, [where]), *parents])
    hint = nearest(name, allowed, lambda key: _join(prefix, key))
    return ConfigError(f"The key '{_join(prefix, name)}' is unknown. {hint}")


def _class_at(cls: Any, path: list[Any]) -> Any:
    """Return the dataclass at ``path`` below the dataclass ``cls``."""
    for part in path:
        if dataclasses.is_dataclass(cls) and isinstance(part, str):
            cls = typing.get_type_hints(cls).get(part, cls)
        found = [each for each in _members(cls) if dataclasses.is_dataclass(each)]
        cls = found[0] if found else cls
    return cls


_YAML_WORDS = ("null", "true", "false")  # which YAML reads as text in quotes alone


def _members(hint: Any) -> list[Any]:
    inner = [member for arg in typing.get_args(hint) for member in _members(arg)]
    return [hint, *inner]


def _written(hint: Any) -> str:
    if hint is type(None):
        return "null"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_written, args)))
    if origin is typing.Literal:
        return " or ".join(f'"{arg}"' if arg in _YAML_WORDS else f"{arg}" for arg in args)
    if origin is typing.Annotated:
        return _written(args[0])
    if origin is not None and inspect.isclass(origin) and args:
        inner = [_written(arg) for arg in args if arg is not ...]
        if issubclass(origin, Mapping):
            return f"mapping of {' to '.join(inner)}"
        return f"list of {', '.join(dict.fromkeys(inner))}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return {str: "text", bool: "true or false", dict: "mapping", Any: "any value"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
