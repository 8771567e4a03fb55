"""Load the user's own code, named as ``file.py:Name`` or ``package.module:Name``; loading it runs it.

The folder of the user's file becomes a package of its own in this process, ``raysel_user_<digest of its path>``, and
``import layers`` in one of its modules finds the neighbour ``layers.py`` as ``raysel_user_<digest>.layers``. So neighbours
are found without a change of ``sys.path``, two folders may hold files of the same name, a neighbour hides an installed
module from the user's modules alone, and a changed file can be executed again with the modules that import it.
"""

from __future__ import annotations

import builtins
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from raysel.core.registry import is_reference
from raysel.errors import ConfigError, first

PREFIX = "raysel_user_"  # of the names of the user's modules

_LOCK = threading.RLock()
_FILES: dict[str, str] = {}  # name of a module -> its file, where the name does not give it
_SOURCES: dict[str, bytes] = {}  # name of a module of the user's -> the source that was executed
_IMPORTS: dict[str, set[str]] = {}  # name of such a module -> those that it imports
_OTHERS: dict[
    str, dict[str, ModuleType]
] = {}  # and modules from elsewhere that it has imported, which may be replaced


def load_object(spec: str, where: str, kind: str = "object") -> Any:
    """Return the attribute that ``file.py:Name`` or ``package.module:Name`` names.

    The file may import its neighbours. It and they are pickled by value, so that the cluster's nodes need not have the
    files; an import inside a function runs there, and finds what is installed there. A file is executed again after it
    or a neighbour that it imports has changed. A module is looked for in the current directory first, where it is
    loaded like a file, unless the running program has imported it already.

    Parameters
    ----------
    spec : str
        A path, relative to the current directory, or the name of a module; then a colon and the name of a
        function, a class or any other attribute.
    where : str
        The workflow's key or the argument that holds ``spec``, for messages.
    kind : str
        What is expected, for messages: ``"function"``, ``"policy"``.

    Returns
    -------
    object
        The attribute, the same one as long as nothing has changed.

    Raises
    ------
    ConfigError
        If ``spec`` is not of this form, or there is no such file, module or name, or loading fails.
    """
    place, _, name = spec.rpartition(":")
    if not is_reference(spec):
        raise ConfigError(
            f"{where}: '{spec}' does not name a {kind}; write file.py:Name or package.module:Name."
        )
    module = load_module(place, where)
    try:
        return getattr(module, name)
    except AttributeError:
        known = [each for each in dir(module) if not each.startswith("_")]
        near = difflib.get_close_matches(name, known)
        hint = (
            f"Did you mean {' or '.join(near)}?"
            if near
            else f"It contains these names: {first(known) or 'none'}."
        )
        raise ConfigError(f"{where}: {place} has no {kind} '{name}'. {hint}") from None
    except Exception as error:  # a module may load its attributes when they are first read
        raise ConfigError(f"{where}: {spec} cannot be loaded ({_reason(error)}).") from error


def load_function(spec: str, where: str) -> Callable[..., Any]:
    """Return the function or class that ``spec`` names; see :func:`load_object`, ConfigError if it cannot be called."""
    found = load_object(spec, where, "function")
    if not callable(found):
        raise ConfigError(
            f"{where}: '{spec}' is not a function but a value of type {type(found).__name__}; name a function."
        )
    return found


def load_module(place: str, where: str) -> ModuleType:
    """Return the module of a file (``.py``) or of this name; see :func:`load_object` for how it is loaded."""
    is_file = place.endswith(".py")
    path = Path(place).expanduser().resolve() if is_file else Path.cwd()
    if is_file and not path.is_file():
        raise ConfigError(f"{where}: The file {path} does not exist.")
    try:
        with _LOCK:
            return _load_file(path) if is_file else _load_named(place, path)
    except (Exception, SystemExit) as error:  # it is the user's code that runs here: anything can happen
        named = path if is_file else place
        raise ConfigError(f"{where}: {named} cannot be loaded ({_reason(error)}).") from error


def user_modules(module: ModuleType) -> list[ModuleType]:
    """Return the user's modules that ``module`` consists of: itself and, by name, those it has imported, theirs too.

    Empty for a module that was not loaded from a user's file.
    """
    names, queue = set[str](), [module.__name__]
    while queue:
        name = queue.pop()
        if name in _SOURCES and name not in names:
            names.add(name)
            queue += _needs(name)
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _load_file(path: Path) -> ModuleType:
    package = _package(path.parent)
    name = f"{package}.{path.stem}"
    found = PathFinder.find_spec(path.stem, [str(path.parent)])
    if found is None or found.origin != str(path):  # "my-net.py", or "net.py" next to a folder "net"
        digest = hashlib.sha256(path.name.encode()).hexdigest()[:8]
        name = re.sub(r"\W", "_", name.removeprefix(f"{package}."))
        name = f"{package}.{name}_{digest}"
        _FILES[name] = str(path)
    return importlib.import_module(name)


def _load_named(name: str, folder: Path) -> ModuleType:
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if not (loaded and Path(loaded).is_relative_to(folder)):  # else the program has imported it already
        package = _package(folder)
        if _is_neighbour(package, name.partition(".")[0]):
            return importlib.import_module(f"{package}.{name}")
    return importlib.import_module(name)


def _package(folder: Path) -> str:
    """Return the name of the folder's package, made if it is new, else without modules that have changed."""
    name = PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    importlib.invalidate_caches()  # files may be younger than Python's listing of the folder
    if name in sys.modules:
        _forget_changed(name)
        return name
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[name])  # holds for all modules in it
    return name


def _forget_changed(package: str) -> None:
    """Forget the modules of a package whose files have changed, and those that import them."""
    known = [name for name in _SOURCES if name.startswith(f"{package}.") and name in sys.modules]
    gone = {name for name in known if _read(sys.modules[name].__file__) != _SOURCES[name]}
    gone |= {
        name
        for name in known
        if any(sys.modules.get(other) is not module for other, module in _OTHERS.get(name, {}).items())
    }
    while more := {name for name in known if name not in gone and _needs(name) & gone}:
        gone |= more
    for name in gone:
        del sys.modules[name], _SOURCES[name]
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:  # where ``from parent import child`` looks first
            vars(sys.modules[parent]).pop(child, None)


def _needs(name: str) -> set[str]:
    return _IMPORTS.get(name, set()) | {name.rpartition(".")[0]}


def _read(file: str | None) -> bytes | None:
    try:
        return Path(file or "").read_bytes()
    except OSError:
        return None


class _Finder:
    """Finds the modules of the user's packages."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(PREFIX):
            return None
        if file := _FILES.get(name):
            return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, file))
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes a file of the user's: its present source, never cached bytecode, with imports that find neighbours."""

    def get_code(self, fullname: str) -> Any:
        _SOURCES[fullname] = self.get_data(self.path)
        return self.source_to_code(_SOURCES[fullname], self.path)

    def exec_module(self, module: ModuleType) -> None:
        _IMPORTS[module.__name__], _OTHERS[module.__name__] = set(), {}
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Return what an import statement in one of the user's modules does."""
    context = globals or {}
    importer = str(context.get("__name__"))
    package, top = importer.partition(".")[0], name.partition(".")[0]
    if level:
        full = importlib.util.resolve_name("." * level + name, context["__package__"])
        found = builtins.__import__(name, globals, locals, fromlist or (), level)
    elif _is_neighbour(package, top, importer):
        full = f"{package}.{name}"
        found = builtins.__import__(full, globals, locals, fromlist or ())
        if not fromlist:
            found = sys.modules[f"{package}.{top}"]
    else:
        found = builtins.__import__(name, globals, locals, fromlist or ())
        _OTHERS.setdefault(importer, {})[name] = sys.modules[name]
        return found
    used = {full, *(f"{full}.{each}" for each in fromlist or ())}
    _IMPORTS.setdefault(importer, set()).update(used & sys.modules.keys())
    return found


def _is_neighbour(package: str, top: str, importer: str = "") -> bool:
    """Whether ``import top`` in a user's package means a neighbour, as it does for a script in that folder."""
    if top == "raysel" or any(finder.find_spec(top) for finder in (BuiltinImporter, FrozenImporter)):
        return False
    full = f"{package}.{top}"
    if full in sys.modules and full != importer:
        return True
    spec = PathFinder.find_spec(top, list(sys.modules[package].__path__))
    if spec is None:
        return False
    try:
        other = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module without a spec, as __main__ is
        other = None
    if other is None:
        return True
    if not spec.has_location or (full == importer and spec.submodule_search_locations is None):
        return False  # a plain folder of that name; a file that imports what it is called like
    # The folder may be on sys.path, and what is installed may lie in it (an editable checkout, site-packages).
    return other.origin != spec.origin or top not in _installed()


@functools.lru_cache(1)
def _installed() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


def _reason(error: BaseException) -> str:
    """Class, place in the user's files and first line of an error."""
    at, text = None, str(error)
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith(PREFIX):
            at = (frame.f_code.co_filename, line)
    if isinstance(error, SyntaxError) and error.filename and error.lineno and Path(error.filename).exists():
        at, text = (error.filename, error.lineno), error.msg
    place = f" in line {at[1]} of {Path(at[0]).name}" if at else ""
    said = re.sub(rf"{PREFIX}\w+\.", "", (text.strip().splitlines() or [""])[0])
    return f"{type(error).__name__}{place}" + (f": {said}" if said else "")
