"""What the names in code stand for: modules, members, closure cells and attributes."""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import operator
import os
import sys
import types
from typing import Any

import numpy as np

from raysel.core.fingerprint.code import Read
from raysel.core.fingerprint.origin import package_of_module
from raysel.core.fingerprint.trees import plain_value

MISSING = object()
MODULE_NAMES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__path__",
    "__spec__",
}


def cell_value(cell: Any) -> Any:
    """Return what a closure cell holds, MISSING for an empty one."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def is_file_name(name: str) -> bool:
    """Return whether code with this file name comes from a file, not from a prompt or a notebook."""
    return not name.startswith("<") or name.startswith("<frozen")


def is_importable(value: Any) -> bool:
    """Whether the value is what its module and qualified name say."""
    module = sys.modules.get(value.__module__ or "")
    if module is None or package_of_module(module.__name__) is None:
        return False
    try:
        return operator.attrgetter(value.__qualname__)(module) is value
    except AttributeError:
        return False


def imported(name: str, function: types.FunctionType) -> Any:
    """Return the module that an import statement names.

    Name and version of a package that is not the user's own.
    """
    names = function.__globals__
    found = names.get("__builtins__", builtins)
    load = (found if isinstance(found, dict) else vars(found)).get("__import__", builtins.__import__)
    bare = name.lstrip(".")
    try:
        if load is builtins.__import__:  # a loader's own may find neighbours of the user's file
            package = package_of_module(importlib.util.resolve_name(name, names.get("__package__") or ""))
            if package is not None:
                return package
        return load(bare, names, None, ("__name__",), len(name) - len(bare))
    except Exception:  # the statement may stand in a try block
        return MISSING


def followed(read: Read, function: types.FunctionType) -> Any:
    """Return the object that a name and its attributes stand for, modules of libraries included; nothing is imported."""
    value = sys.modules.get(read.name) if read.scope == "import" else None
    if read.scope == "global":
        value = function.__globals__.get(read.name, getattr(builtins, read.name, None))
    for name in read.chain:
        if not isinstance(value, types.ModuleType):
            break
        value = vars(value).get(name)
    return value


def code_of(names: dict[str, Any]) -> list[tuple[str, Any]]:
    """Functions, classes, modules and plain values of a namespace; a notebook's own variables begin with ``_``."""
    return [
        (name, value)
        for name, value in names.items()
        if name not in MODULE_NAMES
        and not (name.startswith("_") and "__file__" not in names)
        and (
            isinstance(value, (types.FunctionType, type, types.ModuleType)) or plain_value(value) is not None
        )
    ]


def relative_path(value: Any, names: dict[str, Any]) -> Any:
    """Return a path above or below a module's folder relative to it: the folder may lie anywhere, as for ``sys.path``."""
    folder, path = os.path.dirname(os.path.abspath(names.get("__file__") or "")), os.fspath(value)
    if not isinstance(path, str) or not os.path.isabs(path):
        return value
    return os.path.relpath(path, folder) if os.path.commonpath((path, folder)) in (path, folder) else value


def member_of(module: types.ModuleType, name: str) -> Any:
    """Return a member of a module, which may be a module of the package that is not imported yet."""
    found = getattr(module, name, MISSING)
    if found is MISSING and hasattr(module, "__path__"):
        try:
            return importlib.import_module(f"{module.__name__}.{name}")
        except Exception:
            return MISSING
    return found


def attributes_of(value: Any, state: dict[str, Any]) -> list[tuple[str, Any]]:
    """Attributes without those that a cached property has filled, and without addresses of other attributes."""
    kind = type(value)
    addresses = {id(held) for held in state.values()}
    return [
        (name, held)
        for name, held in state.items()
        if not isinstance(getattr(kind, name, None), functools.cached_property)
        and not (type(held) is int and held in addresses)  # scikit-learn keeps id(self.stop_words)
    ]


def unwrapped(value: Any) -> Any:
    """Return the function below a property, a class method or a static method."""
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def annotation_text(kind: Any) -> str:
    """Return an annotation as text without addresses."""
    text = kind if isinstance(kind, str) else getattr(kind, "__qualname__", None) or repr(kind)
    return text if " at 0x" not in text else type(kind).__name__


def dtype_text(dtype: np.dtype[Any]) -> str:
    """Return a NumPy dtype as text."""
    return str(dtype.descr) if dtype.names else dtype.str


def short_repr(value: Any) -> str:
    """Return a few words for a key in a message."""
    return (
        repr(value)
        if isinstance(value, (str, int)) and len(repr(value)) <= 40
        else f"a {type(value).__name__}"
    )
