"""The user's own code, named in a workflow: loading it runs it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysel.errors import ConfigError


def load_function(place: str, name: str, where: str) -> Callable[..., Any]:
    """The function ``name`` of the file (``.py``) or module ``place``; ConfigError, beginning with ``where``, if there is none.

    A file's functions are pickled by value, so the cluster's nodes need not have the file.
    """
    try:
        if place.endswith(".py"):
            path = Path(place).expanduser().resolve()
            if not path.exists():
                raise ConfigError(f"{where}: there is no file {path}.")
            found = importlib.util.spec_from_file_location(f"raysel_user_{path.stem}", path)
            assert found is not None and found.loader is not None  # a path that ends in .py has both
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module
            found.loader.exec_module(module)
            from ray import cloudpickle

            cloudpickle.register_pickle_by_value(module)
        else:
            module = importlib.import_module(place)
    except ConfigError:
        raise
    except Exception as error:  # it is the user's code that runs here: anything can happen
        line = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"{where}: {place} cannot be loaded ({type(error).__name__}: {line[0]})."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{where}: {place} has no function '{name}'.")
    return function
