"""Whose code a function, class or module is: the user's own, or a package's that a version identifies."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

from raysel.version import __version__

_RAYSEL = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_PYTHON = tuple(
    {
        place(os.path.abspath(path)) + os.sep
        for key in ("stdlib", "platstdlib")
        if (path := sysconfig.get_paths().get(key))
        for place in (str, os.path.realpath)
    }
)


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the libraries that compute a result, for its key.

    Parameters
    ----------
    *names : str
        Names of distributions, for example ``"numpy"`` or ``"scikit-learn"``.

    Returns
    -------
    dict of str to str
        Version by name, sorted; libraries that are not installed are left out.

    Examples
    --------
    >>> sorted(raysel.core.fingerprint.library_versions("numpy", "pyarrow"))
    ['numpy', 'pyarrow']
    """
    found = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def package_of_file(file: str, module: str) -> str | None:
    """Name and version of the package that ``file`` of ``module`` belongs to; None for the user's own code."""
    kind = _kind(file)
    if kind == "own":
        return None
    return "python" if kind == "python" else _package(module.partition(".")[0])


def package_of_module(name: str) -> str | None:
    """Name and version of the package that a module belongs to; None for the user's own code."""
    if name == "__main__":
        return None
    module = sys.modules.get(name)
    file = _file(module) if module is not None else _found(name)
    if file is not None:
        return package_of_file(file, name)
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return "python"
    if top != name:  # C modules below a package, such as torch._C._nn
        return package_of_module(top)
    return None


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    spec = getattr(module, "__spec__", None)
    if getattr(spec, "origin", None) in ("built-in", "frozen"):
        return "<frozen>"
    places = list(getattr(module, "__path__", []))  # a package without __init__.py
    return os.path.join(places[0], "") if places else None


def _found(name: str) -> str | None:
    """File of a module that is not imported, without importing it."""
    try:
        spec: Any = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.origin in ("built-in", "frozen"):
        return "<frozen>"
    places = list(spec.submodule_search_locations or [])
    return spec.origin or (os.path.join(places[0], "") if places else None)


@lru_cache(maxsize=8192)
def _kind(file: str) -> Literal["own", "python", "installed", "raysel"]:
    if file.startswith("<frozen"):
        return "python"
    path = os.path.abspath(file)
    if not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep)):
        return "installed"
    if path.startswith(_RAYSEL):
        return "raysel"
    return "python" if path.startswith(_PYTHON) else "own"


@lru_cache(maxsize=1024)
def _package(top: str) -> str:
    if top == "raysel":
        return f"raysel=={__version__}"
    try:
        return f"{top}=={metadata.version(top)}"
    except (metadata.PackageNotFoundError, ValueError):
        pass
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return f"{top}=={version}"
    names = sorted(set(metadata.packages_distributions().get(top, [])))
    return ",".join(f"{name}=={metadata.version(name)}" for name in names) or top
