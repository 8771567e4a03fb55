"""The digest of an object: a graph of what it consists of and reads, with one node per object that is no plain value.

Numbers and text are values inside a node; functions, classes, containers and instances are nodes that refer to each
other, so that cycles need no special case. :mod:`raysel.core.fingerprint.trees` computes the digest of the graph.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import enum
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from raysel.core.fingerprint import modules
from raysel.core.fingerprint.arrays import array
from raysel.core.fingerprint.code import (
    Read,
    all_names,
    file_tree,
    hash_nodes,
    instructions,
    reads,
    source_digest,
)
from raysel.core.fingerprint.files import file_digest
from raysel.core.fingerprint.names import (
    MISSING,
    MODULE_NAMES,
    annotation_text,
    attributes_of,
    cell_value,
    code_of,
    followed,
    imported,
    is_file_name,
    is_importable,
    member_of,
    relative_path,
    short_repr,
    unwrapped,
)
from raysel.core.fingerprint.origin import package_of_file, package_of_module
from raysel.core.fingerprint.trees import (
    UNORDERED,
    Tree,
    content_digest,
    digest,
    pack,
    plain_value,
    text_bytes,
)
from raysel.errors import ConfigError

Path = tuple[Any, str] | None  # the path to the object that refers to this one, and how it does

_CLASS_NAMES = {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "__qualname__",
    "__signature__",
    "__slotnames__",  # which pickling an instance leaves on its class
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}
_DESCRIPTORS = (
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)
_DYNAMIC = (  # what finds code by a name that is made at run time
    builtins.eval,
    builtins.exec,
    builtins.globals,
    builtins.locals,
    builtins.vars,
    builtins.__import__,
    importlib.import_module,
    inspect.getdoc,
    inspect.getsource,
    inspect.getsourcelines,
    sys.modules,
)
_DOCUMENTED = (inspect.getdoc, inspect.getsource, inspect.getsourcelines)


def fingerprint(value: Any, what: str | None = None, remedy: str = "give version= instead") -> str:
    """Return the digest of everything that decides what a function, class, instance or value computes.

    Two objects have the same fingerprint if the same code made them from the same values. Process, directory, order of
    imports, line numbers and comments make no difference. Your own code is followed through globals, closures, defaults,
    base classes and imports. Of installed packages, only name and version are included. Source is compared as a syntax
    tree, which can differ between minor versions of Python; the version of Python itself is not included.

    Also included are statements in your own modules that have an effect when they are imported, such as
    ``torch.set_default_dtype(...)``, but not those in the script or notebook that runs. If code looks names up at run
    time (``globals``, ``eval``, ``sys.modules``, ``importlib.import_module``, ``__subclasses__``, ``__doc__``), its
    complete file is included, with your own modules that the file imports. Environment variables are included if code
    reads them by a constant name. Environment variables with computed names, and files that code reads when it runs,
    cannot be included: give a version instead.

    Parameters
    ----------
    value : object
        Function, class, instance, module or plain value. An object with a text attribute ``digest`` is identified by
        it. An object that cannot be fingerprinted is identified by its attribute ``version``, if it has one.
    what : str, optional
        Name of the object in error messages. Default: its kind and name.
    remedy : str, optional
        What to do if the object cannot be fingerprinted, as the last words of the error message.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ConfigError
        If the object reads something that has no stable content: open files, locks, generators, connections.

    Examples
    --------
    >>> raysel.core.fingerprint.fingerprint({1: "a", 2: "b"}) == raysel.core.fingerprint.fingerprint({2: "b", 1: "a"})
    True
    """
    given = getattr(value, "digest", None)
    if isinstance(given, str) and not isinstance(value, (type, types.ModuleType)):
        return Graph.of(("given", "digest", type(value).__qualname__, given), "", "").hex()
    try:
        return Graph.of(value, what or _named(value), remedy).hex()
    except ConfigError:
        version = getattr(value, "version", None)
        if not isinstance(version, (str, int)) or isinstance(value, types.ModuleType):
            raise
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return Graph.of(("given", "version", name, version), "", "").hex()


def _named(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        return f"function '{value.__qualname__}'"
    return f"class '{value.__qualname__}'" if isinstance(value, type) else f"the {type(value).__qualname__}"


class Graph:
    """Nodes in the order in which they were met, and the objects that wait to become nodes."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        self.trees: list[Tree] = []
        self.numbers: dict[int, int] = {}
        self.waiting: deque[tuple[int, Any, Path]] = deque()
        self.alive: list[Any] = []  # an address names an object only as long as the object exists
        self.modules: set[str] = set()  # whose code was met
        self.dynamic: dict[Any, dict[str, Any]] = {}  # globals with computed names; docstrings may count
        self.effects = False  # whether what is met now is met only by what importing a module does

    @classmethod
    def of(cls, value: Any, what: str, remedy: str) -> bytes:
        """Return the digest of a value, with what its modules do on import."""
        graph = cls(what, remedy)
        root = graph.tree(value, None)
        graph.drain()
        graph.effects = True
        if found := list(graph.of_modules()):
            root = pack(b"modules", [root, pack(UNORDERED, found)])
        return digest(graph.trees, root)

    def drain(self) -> None:
        """Turn the waiting objects into nodes."""
        while self.waiting:
            number, held, path = self.waiting.popleft()
            try:
                self.trees[number] = self.node(held, path)
            except ConfigError:
                if not self.effects:
                    raise
                self.trees[number] = text_bytes(
                    f"a {type(held).__qualname__}"
                )  # the object itself does not read it

    def of_modules(self) -> Iterable[Tree]:
        """Return what the modules of the code that was met do on import, and files whose names are found at run time."""
        done: set[Any] = set()
        while more := (modules.reachable(self.modules) | self.dynamic.keys()) - done:
            done |= more
            for name in sorted(one for one in more if isinstance(one, str)):
                acting = modules.effects(vars(sys.modules[name]))
                if acting is not None:
                    yield pack(b"effects", [acting[0], *self.reads(acting[1], None)])
            for key in self.dynamic.keys() & more:
                names = self.dynamic[key]
                if file_tree(names) is not None:
                    yield pack(b"files", modules.file_digests(names, docstrings=key[1]))
                else:  # a notebook
                    yield self.attributes(code_of(names), None)
            self.drain()

    def fail(self, value: Any, path: Path) -> ConfigError:
        """Return the error for a value without stable content, with the path to it."""
        steps = []
        while path is not None:
            path, step = path
            steps.append(step)
        kind = type(value)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        what = f"{self.what[:1].upper()}{self.what[1:]}"
        reads = f"{what} reads {' of '.join(steps)} ({name})." if steps else f"{what} is a {name}."
        return ConfigError(
            f"{reads} raysel cannot detect whether the content of this object changes; {self.remedy}."
        )

    # ---- trees -------------------------------------------------------------------------------------------------------

    def tree(self, value: Any, path: Path) -> Tree:
        """Return the tree of a value; an object that is no plain value becomes a node."""
        plain = plain_value(value)
        if plain is not None:
            return plain
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.trees)
            self.trees.append(b"")
            self.alive.append(value)
            self.waiting.append((number, value, path))
        return number

    def each(self, values: Iterable[Any], path: Path, step: str = "element {}") -> list[Tree]:
        """Return the trees of several values in their order."""
        return [self.tree(value, (path, step.format(i))) for i, value in enumerate(values)]

    def pairs(self, values: Iterable[tuple[Any, Any]], path: Path, ordered: bool = False) -> Tree:
        """Return the tree of keys and values."""
        parts = [
            pack(
                b"pair",
                [
                    self.tree(key, (path, f"the key {short_repr(key)}")),
                    self.tree(value, (path, f"the value of {short_repr(key)}")),
                ],
            )
            for key, value in values
        ]
        return pack(b"pairs" if ordered else UNORDERED, parts)

    def attributes(self, values: Iterable[tuple[str, Any]], path: Path) -> Tree:
        """Return the tree of named values, sorted by name."""
        return pack(
            b"attributes",
            [
                pack(b"pair", [text_bytes(name), self.tree(value, (path, f"the attribute '{name}'"))])
                for name, value in sorted(values, key=lambda pair: str(pair[0]))
            ],
        )

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node(self, value: Any, path: Path) -> Tree:
        """Return the tree of an object that is no plain value."""
        kind = type(value)
        own = getattr(kind, "__fingerprint__", None)
        if own is not None and kind is not type:
            return pack(b"given", [text_bytes(kind.__qualname__), self.tree(own(value), path)])
        if value is sys.modules:
            return text_bytes("modules")
        if kind in (list, tuple):
            return pack(kind.__name__.encode(), self.each(value, path))
        if kind in (set, frozenset):
            return pack(b"set", [pack(UNORDERED, self.each(value, path, "an element"))])
        if kind in (dict, types.MappingProxyType):
            return pack(b"dict", [self.pairs(value.items(), path)])
        if kind is collections.OrderedDict:
            return pack(b"ordered", [self.pairs(value.items(), path, ordered=True)])
        if kind in (bytearray, memoryview):
            return pack(b"buffer", [content_digest(bytes(value))])
        if isinstance(value, types.ModuleType):
            return self.module(value, path)
        if kind is types.CodeType:
            return pack(b"code", self.each(instructions(value), path, "the constants"))
        if kind is types.CellType:
            return self.tree(cell_value(value), path) if cell_value(value) is not MISSING else b"empty"
        if kind is types.FunctionType:
            return self.function(value, path)
        if isinstance(value, type):
            return self.class_(value, path)
        if (found := self.callable_(value, path)) is not None:
            return found
        if (found := array(self, value, path)) is not None:
            return found
        return self.instance(value, path)

    def module(self, module: types.ModuleType, path: Path) -> Tree:
        """Return a module that is read as a whole."""
        package = package_of_module(module.__name__)
        if package is not None:
            return text_bytes(package)
        self.modules.add(module.__name__)
        file, tree = getattr(module, "__file__", None), file_tree(vars(module))
        parts: list[Tree] = []
        if isinstance(file, str):
            parts.append(
                text_bytes(file_digest(file))
                if not file.endswith(".py")
                else b""
                if tree is None
                else hash_nodes([tree])
            )
        return pack(b"module", [*parts, self.attributes(code_of(vars(module)), path)])

    # ---- functions ---------------------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType, path: Path) -> Tree:
        """Return a function by its source, what it reads, closure, defaults and attributes."""
        compiled = function.__dict__.get("_torchdynamo_orig_callable")
        if compiled is not None:
            return self.tree(compiled, path)
        registry = function.__dict__.get("registry")
        if isinstance(registry, types.MappingProxyType):  # functools.singledispatch
            return pack(b"dispatch", [self.pairs(registry.items(), path)])
        code = function.__code__
        module = function.__globals__.get("__name__") or ""
        package = package_of_file(code.co_filename, module) if is_file_name(code.co_filename) else None
        if package is not None and is_importable(function):
            return pack(
                b"name", [text_bytes(package), text_bytes(f"{function.__module__}:{function.__qualname__}")]
            )
        parts: list[Tree] = []
        if package is not None:
            parts.append(text_bytes(f"{package} {module}:{code.co_name}"))
            parts += self.each(function.__closure__ or (), path, "a closure value")
        else:
            found = source_digest(code, function.__globals__)
            if found is not None and found[0] == "source":
                parts.append(found[1])
            else:
                parts += [self.tree(code, path), found[1] if found is not None else b""]
            parts += self.reads(function, path)
        parts.append(pack(b"defaults", self.each(function.__defaults__ or (), path, "a default value")))
        parts.append(self.attributes((function.__kwdefaults__ or {}).items(), path))
        parts.append(self.attributes(function.__dict__.items(), path))
        return pack(b"function", parts)

    def reads(self, function: types.FunctionType, path: Path) -> list[Tree]:
        """Return what the names in a function of the user's own stand for."""
        self.modules.add(function.__globals__.get("__name__") or "")
        parts: list[Tree] = []
        names = all_names(function.__code__)
        dynamic, documented = "__subclasses__" in names, "__doc__" in names
        met = None
        for read in reads(function.__code__):
            found = followed(read, function)
            if read.constant and (found is os.environ or found is os.getenv):
                given = plain_value(os.environ.get(read.constant)) or b""
                parts.append(pack(b"variable", [text_bytes(read.constant), given]))
            if met == (met := (read.scope, read.name, read.chain)):
                continue
            dynamic |= any(found is one for one in _DYNAMIC)
            documented |= any(found is one for one in _DOCUMENTED)
            value = self.read(read, function, path)
            if value is not None:
                parts.append(pack(b"read", [text_bytes(".".join((read.name, *read.chain))), value]))
        if dynamic or documented:
            self.dynamic[id(function.__globals__), documented] = function.__globals__
        return parts

    def read(self, read: Read, function: types.FunctionType, path: Path) -> Tree | None:
        """Return what a name in a function's code refers to."""
        chain, seen = list(read.chain), [read.name]
        if read.scope in ("import", "effect"):
            value = imported(read.name, function)
            if isinstance(value, types.ModuleType):
                self.modules.add(value.__name__)
            if read.scope == "effect":
                return None
            if isinstance(value, str):
                return text_bytes(value)
        elif read.scope == "closure":
            place = function.__code__.co_freevars.index(read.name)
            value = cell_value((function.__closure__ or ())[place])
        elif read.name in MODULE_NAMES and read.name in function.__globals__:
            return None
        else:
            value = function.__globals__.get(read.name, getattr(builtins, read.name, MISSING))
        while isinstance(value, types.ModuleType) and chain:
            package = package_of_module(value.__name__)
            if package is not None:
                return text_bytes(package)
            self.modules.add(value.__name__)
            seen.append(chain.pop(0))
            if seen[-1] in MODULE_NAMES:
                return None
            value = member_of(value, seen[-1])
        if self.effects and isinstance(value, (str, os.PathLike)):
            value = relative_path(value, function.__globals__)
        scope = "closure value" if read.scope == "closure" else read.scope
        return b"missing" if value is MISSING else self.tree(value, (path, f"the {scope} '{'.'.join(seen)}'"))

    def callable_(self, value: Any, path: Path) -> Tree | None:
        """Callables that are neither plain functions nor instances, and the descriptors of classes."""
        if isinstance(value, types.MethodType):
            return pack(
                b"method", [self.tree(value.__func__, path), self.tree(value.__self__, (path, "'self'"))]
            )
        if isinstance(value, functools.partial):
            inside: Path = (path, "a partial argument")
            return pack(
                b"partial",
                [
                    self.tree(value.func, path),
                    pack(b"positional", self.each(value.args, path, "the partial argument {}")),
                    self.pairs(value.keywords.items(), inside),
                    self.attributes(vars(value).items(), path),
                ],
            )
        if isinstance(value, functools._lru_cache_wrapper):
            return self.tree(value.__wrapped__, path)
        if isinstance(value, (staticmethod, classmethod)):
            return pack(type(value).__name__.encode(), [self.tree(value.__func__, path)])
        if isinstance(value, property):
            return pack(b"property", self.each((value.fget, value.fset, value.fdel), path, "a property"))
        if isinstance(value, functools.cached_property):
            return pack(b"cached", [self.tree(value.func, path)])
        if isinstance(value, _DESCRIPTORS):
            return text_bytes(f"descriptor {value.__objclass__.__qualname__}.{value.__name__}")
        if isinstance(value, types.MethodWrapperType):
            return pack(b"method", [text_bytes(value.__name__), self.tree(value.__self__, path)])
        if isinstance(value, types.BuiltinFunctionType):
            holder = value.__self__
            if holder is not None and not isinstance(holder, types.ModuleType):
                return pack(b"method", [text_bytes(value.__name__), self.tree(holder, (path, "'self'"))])
            module = value.__module__ or getattr(holder, "__name__", None) or "builtins"
            package = package_of_module(module)
            file = getattr(sys.modules.get(module), "__file__", None)
            place = (
                text_bytes(package) if package is not None else text_bytes(file_digest(file)) if file else b""
            )
            return pack(b"name", [place, text_bytes(f"{module}:{value.__qualname__}")])
        if isinstance(value, np.ufunc):
            if value.__name__.endswith("(vectorized)"):  # made of a Python function that it does not show
                raise self.fail(value, path)
            return pack(
                b"name",
                [
                    text_bytes("numpy.ufunc"),
                    text_bytes(value.__name__),
                    text_bytes(package_of_module("numpy") or ""),
                ],
            )
        if type(value).__module__.partition(".")[0] == "ray":
            if isinstance(
                getattr(value, "_function", None), types.FunctionType
            ):  # a function with @ray.remote
                return self.tree(value._function, path)
            raise self.fail(value, path)
        return None

    # ---- classes -----------------------------------------------------------------------------------------------------

    def class_(self, cls: type, path: Path) -> Tree:
        """Return a class by its members, bases, metaclass and annotations."""
        package = package_of_module(cls.__module__)
        if package is not None and (is_importable(cls) or cls.__module__ == "builtins"):
            return pack(b"name", [text_bytes(package), text_bytes(f"{cls.__module__}:{cls.__qualname__}")])
        self.modules.add(cls.__module__)
        if issubclass(cls, enum.Enum):
            members = {name: member.value for name, member in cls.__members__.items()}
            rest = [
                (name, value)
                for name, value in vars(cls).items()
                if isinstance(value, (types.FunctionType, property, staticmethod, classmethod))
                and package_of_module(getattr(unwrapped(value), "__module__", "") or "") is None
            ]
            return pack(
                b"enum",
                [
                    self.pairs(members.items(), path, ordered=True),
                    self.attributes(rest, path),
                    *self.each(cls.__bases__, path, "a base class"),
                ],
            )
        members = {
            name: value
            for name, value in vars(cls).items()
            if name not in _CLASS_NAMES and not name.startswith("__pydantic_")
        }
        annotations = [
            f"{name}: {annotation_text(kind)}" for name, kind in vars(cls).get("__annotations__", {}).items()
        ]
        return pack(
            b"class",
            [
                text_bytes(cls.__name__),
                *map(text_bytes, annotations),
                pack(b"bases", self.each(cls.__bases__, path, "a base class")),
                self.tree(type(cls), (path, "the metaclass")),
                self.attributes(members.items(), path),
                self.attributes(getattr(cls, "__pydantic_fields__", {}).items(), path),
            ],
        )

    # ---- instances ---------------------------------------------------------------------------------------------------

    def instance(self, value: Any, path: Path) -> Tree:
        """Return an instance by its class and the state that copying it would copy."""
        if isinstance(value, logging.Logger) or value is os.environ:
            return text_bytes(f"a {type(value).__name__}")
        if isinstance(value, enum.Enum):
            return pack(
                b"member",
                [self.tree(type(value), path), text_bytes(value.name), self.tree(value.value, path)],
            )
        if isinstance(value, (set, frozenset)):
            return pack(
                b"set",
                [
                    self.tree(type(value), path),
                    pack(UNORDERED, self.each(value, path, "an element")),
                    self.attributes(attributes_of(value, getattr(value, "__dict__", {})), path),
                ],
            )
        reducer = copyreg.dispatch_table.get(type(value))
        try:
            reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
            if not isinstance(reduced, str):
                make, args, state, items, pairs = (*reduced, None, None, None, None)[:5]
                items, pairs = list(items or ()), list(pairs or ())
        except Exception:  # whatever the foreign code raises, there is no state to read
            raise self.fail(value, path) from None
        if isinstance(reduced, str):
            kind = type(value)
            package = package_of_module(kind.__module__) or ""
            return pack(b"name", [text_bytes(package), text_bytes(f"{kind.__qualname__} {reduced}")])
        slots: Any = None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
        parts = [self.tree(make, path)]
        parts += [self.tree(arg, path if isinstance(arg, type) else (path, "the state")) for arg in args]
        for held in (state, slots):
            if isinstance(held, dict) and all(isinstance(name, str) for name in held):
                parts.append(self.attributes(attributes_of(value, held), path))
            else:
                parts.append(self.tree(held, (path, "the state")))
        parts.append(pack(b"items", self.each(items, path)))
        parts.append(self.pairs(pairs, path, ordered=isinstance(value, collections.OrderedDict)))
        return pack(b"instance", parts)
