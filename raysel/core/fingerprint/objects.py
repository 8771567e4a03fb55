"""The digest of an object: a graph of what it consists of and reads, with one node per object that is no plain value.

Numbers and text are values inside a node; functions, classes, containers and instances are nodes that refer to each
other, so that cycles need no special case. The graph is refined as in the minimisation of automata: every node's
colour is renewed from the colours of the nodes that it refers to until no two nodes come apart any more. The digest
therefore depends neither on where the traversal began nor on whether equal parts are one object or several.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import logging
import math
import operator
import os
import struct
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import xxhash

from raysel.core.fingerprint import modules
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
from raysel.core.fingerprint.origin import package_of_file, package_of_module
from raysel.errors import ConfigError

Tree = bytes | int | tuple[bytes, list[Any]]  # a value, the number of a node, or a kind with parts
Path = tuple[Any, str] | None  # the path to the object that refers to this one, and how it does

_MISSING = object()
_UNORDERED = b"unordered"
_MODULE_NAMES = {
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
        return _Graph.of(("given", "digest", type(value).__qualname__, given), "", "").hex()
    try:
        return _Graph.of(value, what or _named(value), remedy).hex()
    except ConfigError:
        version = getattr(value, "version", None)
        if not isinstance(version, (str, int)) or isinstance(value, types.ModuleType):
            raise
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return _Graph.of(("given", "version", name, version), "", "").hex()


def _named(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        return f"function '{value.__qualname__}'"
    return f"class '{value.__qualname__}'" if isinstance(value, type) else f"the {type(value).__qualname__}"


class _Graph:
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
        graph = cls(what, remedy)
        root = graph.tree(value, None)
        graph.drain()
        graph.effects = True
        if found := list(graph.of_modules()):
            root = _pack(b"modules", [root, _pack(_UNORDERED, found)])
        return graph.digest(root)

    def drain(self) -> None:
        while self.waiting:
            number, held, path = self.waiting.popleft()
            try:
                self.trees[number] = self.node(held, path)
            except ConfigError:
                if not self.effects:
                    raise
                self.trees[number] = _text(
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
                    yield _pack(b"effects", [acting[0], *self.reads(acting[1], None)])
            for key in self.dynamic.keys() & more:
                names = self.dynamic[key]
                if file_tree(names) is not None:
                    yield _pack(b"files", modules.file_digests(names, docstrings=key[1]))
                else:  # a notebook
                    yield self.attributes(_code(names), None)
            self.drain()

    def digest(self, root: Tree) -> bytes:
        targets = [self.target(number) for number in range(len(self.trees))]
        nodes = sorted(set(targets))
        colours = [b""] * len(self.trees)

        def recolour(colour: Callable[[int], bytes]) -> list[bytes]:
            renewed = {number: colour(number) for number in nodes}
            return [renewed[target] for target in targets]

        colours = recolour(lambda number: _hash(_mix(self.trees[number], None)))
        count = len(set(colours))
        while True:
            old = colours
            colours = recolour(lambda number, old=old: _hash(old[number] + _mix(self.trees[number], old)))  # type: ignore[misc]
            finer = len(set(colours))
            if finer == count:
                rules = sorted({(old[number], colours[number]) for number in nodes})
                return _hash(_hash(_mix(root, old)) + b"".join(one + two for one, two in rules))
            count = finer

    def target(self, number: int) -> int:
        """Return the node for this one: a wrapper that changes no result is what it wraps."""
        seen = {number}
        while isinstance(tree := self.trees[number], int) and tree not in seen:
            number = tree
            seen.add(number)
        return number

    def fail(self, value: Any, path: Path) -> ConfigError:
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
        return ConfigError(f"{reads} raysel cannot detect whether its content changes; {self.remedy}.")

    # ---- trees -------------------------------------------------------------------------------------------------------

    def tree(self, value: Any, path: Path) -> Tree:
        plain = _plain(value)
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
        return [self.tree(value, (path, step.format(i))) for i, value in enumerate(values)]

    def pairs(self, values: Iterable[tuple[Any, Any]], path: Path, ordered: bool = False) -> Tree:
        parts = [
            _pack(
                b"pair",
                [
                    self.tree(key, (path, f"the key {_short(key)}")),
                    self.tree(value, (path, f"the value of {_short(key)}")),
                ],
            )
            for key, value in values
        ]
        return _pack(b"pairs" if ordered else _UNORDERED, parts)

    def attributes(self, values: Iterable[tuple[str, Any]], path: Path) -> Tree:
        return _pack(
            b"attributes",
            [
                _pack(b"pair", [_text(name), self.tree(value, (path, f"the attribute '{name}'"))])
                for name, value in sorted(values, key=lambda pair: str(pair[0]))
            ],
        )

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def node(self, value: Any, path: Path) -> Tree:
        kind = type(value)
        own = getattr(kind, "__fingerprint__", None)
        if own is not None and kind is not type:
            return _pack(b"given", [_text(kind.__qualname__), self.tree(own(value), path)])
        if value is sys.modules:
            return _text("modules")
        if kind in (list, tuple):
            return _pack(kind.__name__.encode(), self.each(value, path))
        if kind in (set, frozenset):
            return _pack(b"set", [_pack(_UNORDERED, self.each(value, path, "an element"))])
        if kind in (dict, types.MappingProxyType):
            return _pack(b"dict", [self.pairs(value.items(), path)])
        if kind is collections.OrderedDict:
            return _pack(b"ordered", [self.pairs(value.items(), path, ordered=True)])
        if kind in (bytearray, memoryview):
            return _pack(b"buffer", [_buffer(bytes(value))])
        if isinstance(value, types.ModuleType):
            return self.module(value, path)
        if kind is types.CodeType:
            return _pack(b"code", self.each(instructions(value), path, "the constants"))
        if kind is types.CellType:
            return self.tree(_cell(value), path) if _cell(value) is not _MISSING else b"empty"
        if kind is types.FunctionType:
            return self.function(value, path)
        if isinstance(value, type):
            return self.class_(value, path)
        for find in (self.callable_, self.array):
            if (found := find(value, path)) is not None:
                return found
        return self.instance(value, path)

    def module(self, module: types.ModuleType, path: Path) -> Tree:
        """Return a module that is read as a whole."""
        package = package_of_module(module.__name__)
        if package is not None:
            return _text(package)
        self.modules.add(module.__name__)
        file, tree = getattr(module, "__file__", None), file_tree(vars(module))
        parts: list[Tree] = []
        if isinstance(file, str):
            parts.append(
                _file(file) if not file.endswith(".py") else b"" if tree is None else hash_nodes([tree])
            )
        return _pack(b"module", [*parts, self.attributes(_code(vars(module)), path)])

    # ---- functions ---------------------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType, path: Path) -> Tree:
        compiled = function.__dict__.get("_torchdynamo_orig_callable")
        if compiled is not None:
            return self.tree(compiled, path)
        registry = function.__dict__.get("registry")
        if isinstance(registry, types.MappingProxyType):  # functools.singledispatch
            return _pack(b"dispatch", [self.pairs(registry.items(), path)])
        code = function.__code__
        module = function.__globals__.get("__name__") or ""
        package = package_of_file(code.co_filename, module) if _is_file(code.co_filename) else None
        if package is not None and _is_importable(function):
            return _pack(b"name", [_text(package), _text(f"{function.__module__}:{function.__qualname__}")])
        parts: list[Tree] = []
        if package is not None:
            parts.append(_text(f"{package} {module}:{code.co_name}"))
            parts += self.each(function.__closure__ or (), path, "a closure value")
        else:
            found = source_digest(code, function.__globals__)
            if found is not None and found[0] == "source":
                parts.append(found[1])
            else:
                parts += [self.tree(code, path), found[1] if found is not None else b""]
            parts += self.reads(function, path)
        parts.append(_pack(b"defaults", self.each(function.__defaults__ or (), path, "a default value")))
        parts.append(self.attributes((function.__kwdefaults__ or {}).items(), path))
        parts.append(self.attributes(function.__dict__.items(), path))
        return _pack(b"function", parts)

    def reads(self, function: types.FunctionType, path: Path) -> list[Tree]:
        """Return what the names in a function of the user's own stand for."""
        self.modules.add(function.__globals__.get("__name__") or "")
        parts: list[Tree] = []
        names = all_names(function.__code__)
        dynamic, documented = "__subclasses__" in names, "__doc__" in names
        met = None
        for read in reads(function.__code__):
            found = _followed(read, function)
            if read.constant and (found is os.environ or found is os.getenv):
                given = _plain(os.environ.get(read.constant)) or b""
                parts.append(_pack(b"variable", [_text(read.constant), given]))
            if met == (met := (read.scope, read.name, read.chain)):
                continue
            dynamic |= any(found is one for one in _DYNAMIC)
            documented |= any(found is one for one in _DOCUMENTED)
            value = self.read(read, function, path)
            if value is not None:
                parts.append(_pack(b"read", [_text(".".join((read.name, *read.chain))), value]))
        if dynamic or documented:
            self.dynamic[id(function.__globals__), documented] = function.__globals__
        return parts

    def read(self, read: Read, function: types.FunctionType, path: Path) -> Tree | None:
        """Return what a name in a function's code refers to."""
        chain, seen = list(read.chain), [read.name]
        if read.scope in ("import", "effect"):
            value = _imported(read.name, function)
            if isinstance(value, types.ModuleType):
                self.modules.add(value.__name__)
            if read.scope == "effect":
                return None
            if isinstance(value, str):
                return _text(value)
        elif read.scope == "closure":
            place = function.__code__.co_freevars.index(read.name)
            value = _cell((function.__closure__ or ())[place])
        elif read.name in _MODULE_NAMES and read.name in function.__globals__:
            return None
        else:
            value = function.__globals__.get(read.name, getattr(builtins, read.name, _MISSING))
        while isinstance(value, types.ModuleType) and chain:
            package = package_of_module(value.__name__)
            if package is not None:
                return _text(package)
            self.modules.add(value.__name__)
            seen.append(chain.pop(0))
            if seen[-1] in _MODULE_NAMES:
                return None
            value = _member(value, seen[-1])
        if self.effects and isinstance(value, (str, os.PathLike)):
            value = _relative(value, function.__globals__)
        scope = "closure value" if read.scope == "closure" else read.scope
        return (
            b"missing" if value is _MISSING else self.tree(value, (path, f"the {scope} '{'.'.join(seen)}'"))
        )

    def callable_(self, value: Any, path: Path) -> Tree | None:
        """Callables that are neither plain functions nor instances, and the descriptors of classes."""
        if isinstance(value, types.MethodType):
            return _pack(
                b"method", [self.tree(value.__func__, path), self.tree(value.__self__, (path, "'self'"))]
            )
        if isinstance(value, functools.partial):
            inside: Path = (path, "a partial argument")
            return _pack(
                b"partial",
                [
                    self.tree(value.func, path),
                    _pack(b"positional", self.each(value.args, path, "the partial argument {}")),
                    self.pairs(value.keywords.items(), inside),
                    self.attributes(vars(value).items(), path),
                ],
            )
        if isinstance(value, functools._lru_cache_wrapper):
            return self.tree(value.__wrapped__, path)
        if isinstance(value, (staticmethod, classmethod)):
            return _pack(type(value).__name__.encode(), [self.tree(value.__func__, path)])
        if isinstance(value, property):
            return _pack(b"property", self.each((value.fget, value.fset, value.fdel), path, "a property"))
        if isinstance(value, functools.cached_property):
            return _pack(b"cached", [self.tree(value.func, path)])
        if isinstance(value, _DESCRIPTORS):
            return _text(f"descriptor {value.__objclass__.__qualname__}.{value.__name__}")
        if isinstance(value, types.MethodWrapperType):
            return _pack(b"method", [_text(value.__name__), self.tree(value.__self__, path)])
        if isinstance(value, types.BuiltinFunctionType):
            holder = value.__self__
            if holder is not None and not isinstance(holder, types.ModuleType):
                return _pack(b"method", [_text(value.__name__), self.tree(holder, (path, "'self'"))])
            module = value.__module__ or getattr(holder, "__name__", None) or "builtins"
            package = package_of_module(module)
            file = getattr(sys.modules.get(module), "__file__", None)
            place = _text(package) if package is not None else _file(file) if file else b""
            return _pack(b"name", [place, _text(f"{module}:{value.__qualname__}")])
        if isinstance(value, np.ufunc):
            if value.__name__.endswith("(vectorized)"):  # made of a Python function that it does not show
                raise self.fail(value, path)
            return _pack(
                b"name",
                [_text("numpy.ufunc"), _text(value.__name__), _text(package_of_module("numpy") or "")],
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
        package = package_of_module(cls.__module__)
        if package is not None and (_is_importable(cls) or cls.__module__ == "builtins"):
            return _pack(b"name", [_text(package), _text(f"{cls.__module__}:{cls.__qualname__}")])
        self.modules.add(cls.__module__)
        if issubclass(cls, enum.Enum):
            members = {name: member.value for name, member in cls.__members__.items()}
            rest = [
                (name, value)
                for name, value in vars(cls).items()
                if isinstance(value, (types.FunctionType, property, staticmethod, classmethod))
                and package_of_module(getattr(_unwrapped(value), "__module__", "") or "") is None
            ]
            return _pack(
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
            f"{name}: {_annotation(kind)}" for name, kind in vars(cls).get("__annotations__", {}).items()
        ]
        return _pack(
            b"class",
            [
                _text(cls.__name__),
                *map(_text, annotations),
                _pack(b"bases", self.each(cls.__bases__, path, "a base class")),
                self.tree(type(cls), (path, "the metaclass")),
                self.attributes(members.items(), path),
                self.attributes(getattr(cls, "__pydantic_fields__", {}).items(), path),
            ],
        )

    # ---- arrays, tables, tensors -------------------------------------------------------------------------------------

    def array(self, value: Any, path: Path) -> Tree | None:
        """Values of NumPy, torch, pandas and Arrow by content."""
        kind = type(value)
        if isinstance(value, np.ndarray):
            extra = (
                [self.tree(np.ma.getmaskarray(value), path)] if isinstance(value, np.ma.MaskedArray) else []
            )
            plain = (
                value.filled(0)
                if isinstance(value, np.ma.MaskedArray) and value.dtype != object
                else np.asarray(value)
            )
            name = "ndarray" if kind is np.memmap else kind.__name__
            head = [_text(name), _text(_dtype(value.dtype)), self.tree(value.shape, path), *extra]
            if value.dtype.hasobject or value.dtype.kind == "T":
                return _pack(b"array", [*head, *self.each(plain.ravel().tolist(), path)])
            return _pack(b"array", [*head, _buffer(np.ascontiguousarray(plain))])
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return _pack(b"scalar", [_text(_dtype(value.dtype)), value.tobytes()])
        if isinstance(value, np.dtype):
            return _text(f"dtype {_dtype(value)}")
        library = kind.__module__.partition(".")[0]
        if (torch := sys.modules.get("torch")) is not None:
            if isinstance(value, torch.Tensor):
                return self.tensor(value, path, torch)
            if isinstance(value, torch.nn.Module):
                return self.network(value, path, torch)
        if library == "pyarrow":
            return self.arrow(value, path)
        if library == "pandas":
            return self.pandas(value, path)
        return None

    def tensor(self, value: Any, path: Path, torch: types.ModuleType) -> Tree:
        dense = value.detach()
        if dense.is_meta or dense.is_quantized or dense.is_nested:
            raise self.fail(value, path)
        if dense.layout != torch.strided:
            parts = dense.to_sparse_coo().coalesce()
            return _pack(b"sparse", self.each((tuple(dense.shape), parts.indices(), parts.values()), path))
        plain = dense.resolve_conj().resolve_neg().cpu().contiguous().flatten()
        content = _buffer(plain.view(torch.uint8).numpy()) if plain.numel() else b""
        return _pack(b"tensor", [_text(str(dense.dtype)), self.tree(tuple(dense.shape), path), content])

    def network(self, network: Any, path: Path, torch: types.ModuleType) -> Tree:
        """Return a network by its classes, weights, buffers, attributes, hooks, and ordered submodules."""
        if isinstance(network, torch.jit.ScriptModule):
            code = [(name, getattr(part, "code", "")) for name, part in network.named_modules()]
            values = [*network.named_parameters(), *network.named_buffers()]
            return _pack(
                b"script",
                [self.tree(network.training, path), self.tree(code, path), self.pairs(values, path)],
            )
        original = network.__dict__.get("_modules", {}).get("_orig_mod")
        if original is not None:  # torch.compile
            return self.tree(original, path)
        try:
            state = network.__getstate__() if hasattr(network, "__getstate__") else network.__dict__
        except RuntimeError:  # a parametrized network refuses to be pickled
            state = network.__dict__
        if not isinstance(state, dict):
            return self.instance(network, path)
        rest, parts = {}, [self.tree(type(network), (path, "its class"))]
        for name, value in state.items():
            if name == "_modules":
                parts.append(self.pairs(value.items(), path, ordered=True))
            elif name.endswith("hooks") and isinstance(
                value, dict
            ):  # under numbers that count up in a process
                parts += [_text(name), *self.each(value.values(), path, f"{name}")]
            elif "_hooks_" not in name and name not in ("_compiled_call_impl", "_is_torch_compile"):
                rest[name] = value
        return _pack(b"network", [*parts, self.attributes(_state(network, rest), path)])

    def arrow(self, value: Any, path: Path) -> Tree | None:
        import pyarrow as pa

        if isinstance(value, pa.RecordBatch):
            value = pa.Table.from_batches([value])
        if isinstance(value, pa.Table):
            columns = [
                _pack(b"column", [_text(name), self.arrow(value[i], path)])
                for i, name in enumerate(value.column_names)
            ]
            return _pack(b"table", columns)
        if isinstance(value, pa.Array):
            value = pa.chunked_array([value])
        if isinstance(value, pa.ChunkedArray):
            parts = [_text(str(value.type))]
            if isinstance(value.type, pa.BaseExtensionType):
                value = pa.chunked_array([c.storage for c in value.chunks], value.type.storage_type)
            if pa.types.is_dictionary(value.type):
                value = value.cast(value.type.value_type)
            if value.null_count:
                parts.append(_buffer(np.ascontiguousarray(value.is_null().to_numpy(zero_copy_only=False))))
                value = value.drop_null()
            table = pa.table({"": value}).combine_chunks()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                for batch in table.to_batches():
                    stream.write_batch(batch)
            return _pack(b"values", [*parts, _buffer(sink.getvalue())])
        if isinstance(value, (pa.DataType, pa.Field, pa.Schema)):
            return _text(f"{type(value).__name__} {value}")
        if isinstance(value, pa.Scalar):
            return _pack(b"scalar", [_text(str(value.type)), self.tree(value.as_py(), path)])
        if isinstance(value, pa.Buffer):
            return _pack(b"buffer", [_buffer(value)])
        return None

    def pandas(self, value: Any, path: Path) -> Tree | None:
        import pandas as pd

        if isinstance(value, pd.DataFrame):
            columns = [self.tree(value.iloc[:, i], path) for i in range(value.shape[1])]
            return _pack(b"frame", [self.tree(value.columns, path), self.tree(value.index, path), *columns])
        if isinstance(value, pd.Series):
            return _pack(
                b"series",
                [self.tree(value.name, path), self.tree(value.index, path), self.tree(value.array, path)],
            )
        if isinstance(value, pd.MultiIndex):
            return _pack(b"index", [self.tree(list(value.names), path), *self.each(value.tolist(), path)])
        if isinstance(value, pd.RangeIndex):  # equal to an index of the same numbers
            return _pack(
                b"index",
                [self.tree(value.name, path), _text(str(value.dtype)), self.tree(value.to_numpy(), path)],
            )
        if isinstance(value, pd.Index):
            return _pack(
                b"index",
                [
                    self.tree(value.name, path),
                    _text(str(value.dtype)),
                    self.tree(value.array if value.dtype.kind == "O" else value.to_numpy(), path),
                ],
            )
        if isinstance(value, pd.Categorical):
            return _pack(b"category", self.each((value.codes, value.categories, value.ordered), path))
        if isinstance(value, pd.api.extensions.ExtensionArray):
            plain: Any
            try:
                plain = value.to_numpy()
            except (TypeError, ValueError):
                plain = value.astype(object)
            return _pack(b"values", [_text(str(value.dtype)), self.tree(np.asarray(plain), path)])
        if value is pd.NA or value is pd.NaT:
            return _text(f"pandas {value}")
        return None

    # ---- instances ---------------------------------------------------------------------------------------------------

    def instance(self, value: Any, path: Path) -> Tree:
        """Return an instance by its class and the state that copying it would copy."""
        if isinstance(value, logging.Logger) or value is os.environ:
            return _text(f"a {type(value).__name__}")
        if isinstance(value, enum.Enum):
            return _pack(
                b"member", [self.tree(type(value), path), _text(value.name), self.tree(value.value, path)]
            )
        if isinstance(value, (set, frozenset)):
            return _pack(
                b"set",
                [
                    self.tree(type(value), path),
                    _pack(_UNORDERED, self.each(value, path, "an element")),
                    self.attributes(_state(value, getattr(value, "__dict__", {})), path),
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
            return _pack(b"name", [_text(package), _text(f"{kind.__qualname__} {reduced}")])
        slots: Any = None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
        parts = [self.tree(make, path)]
        parts += [self.tree(arg, path if isinstance(arg, type) else (path, "the state")) for arg in args]
        for held in (state, slots):
            if isinstance(held, dict) and all(isinstance(name, str) for name in held):
                parts.append(self.attributes(_state(value, held), path))
            else:
                parts.append(self.tree(held, (path, "the state")))
        parts.append(_pack(b"items", self.each(items, path)))
        parts.append(self.pairs(pairs, path, ordered=isinstance(value, collections.OrderedDict)))
        return _pack(b"instance", parts)


# ---- plain values and hashing ----------------------------------------------------------------------------------------


def _plain(value: Any) -> bytes | None:
    """Return the bytes of a value that contains no other; None for everything else."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is float:
        return b"f" + (struct.pack(">d", value) if not math.isnan(value) else b"nan")
    if kind is int:
        return b"i%x" % value if value >= 0 else b"i-%x" % -value
    if kind is bool or value is None or value is Ellipsis or value is NotImplemented:
        return b"c" + str(value).encode()
    if kind is bytes:
        return b"b" + (value if len(value) <= 32 else _buffer(value))
    if kind is complex:
        return b"z" + b"".join(_plain(part) or b"" for part in (value.real, value.imag))
    return None


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"s" + (raw if len(raw) <= 64 else b"\0%d" % len(raw) + _buffer(raw))


def _buffer(data: Any) -> bytes:
    return xxhash.xxh3_128_digest(data)


def _pack(kind: bytes, parts: list[Any]) -> Tree:
    """Return a tree; its digest at once if it refers to no node."""
    tree = kind, parts
    return tree if any(not isinstance(part, bytes) for part in parts) else b"d" + _mix(tree, None)


def _mix(tree: Tree, colours: list[bytes] | None) -> bytes:
    if isinstance(tree, bytes):
        return tree
    if isinstance(tree, int):
        return b"n" + colours[tree] if colours is not None else b"n"
    kind, parts = tree
    mixed = [_mix(part, colours) for part in parts]
    if kind is _UNORDERED:
        mixed.sort()
    digest = hashlib.blake2b(b"%d:%s" % (len(kind), kind), digest_size=16)
    for part in mixed:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# ---- looking things up -----------------------------------------------------------------------------------------------


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _is_file(name: str) -> bool:
    return not name.startswith("<") or name.startswith("<frozen")


def _is_importable(value: Any) -> bool:
    """Whether the value is what its module and qualified name say."""
    module = sys.modules.get(value.__module__ or "")
    if module is None or package_of_module(module.__name__) is None:
        return False
    try:
        return operator.attrgetter(value.__qualname__)(module) is value
    except AttributeError:
        return False


def _imported(name: str, function: types.FunctionType) -> Any:
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
        return _MISSING


def _followed(read: Read, function: types.FunctionType) -> Any:
    """Return the object that a name and its attributes stand for, modules of libraries included; nothing is imported."""
    value = sys.modules.get(read.name) if read.scope == "import" else None
    if read.scope == "global":
        value = function.__globals__.get(read.name, getattr(builtins, read.name, None))
    for name in read.chain:
        if not isinstance(value, types.ModuleType):
            break
        value = vars(value).get(name)
    return value


def _code(names: dict[str, Any]) -> list[tuple[str, Any]]:
    """Functions, classes, modules and plain values of a namespace; a notebook's own variables begin with ``_``."""
    return [
        (name, value)
        for name, value in names.items()
        if name not in _MODULE_NAMES
        and not (name.startswith("_") and "__file__" not in names)
        and (isinstance(value, (types.FunctionType, type, types.ModuleType)) or _plain(value) is not None)
    ]


def _relative(value: Any, names: dict[str, Any]) -> Any:
    """Return a path above or below a module's folder relative to it: the folder may lie anywhere, as for ``sys.path``."""
    folder, path = os.path.dirname(os.path.abspath(names.get("__file__") or "")), os.fspath(value)
    if not isinstance(path, str) or not os.path.isabs(path):
        return value
    return os.path.relpath(path, folder) if os.path.commonpath((path, folder)) in (path, folder) else value


def _member(module: types.ModuleType, name: str) -> Any:
    found = getattr(module, name, _MISSING)
    if found is _MISSING and hasattr(module, "__path__"):
        try:
            return importlib.import_module(f"{module.__name__}.{name}")
        except Exception:
            return _MISSING
    return found


def _state(value: Any, state: dict[str, Any]) -> list[tuple[str, Any]]:
    """Attributes without those that a cached property has filled, and without addresses of other attributes."""
    kind = type(value)
    addresses = {id(held) for held in state.values()}
    return [
        (name, held)
        for name, held in state.items()
        if not isinstance(getattr(kind, name, None), functools.cached_property)
        and not (type(held) is int and held in addresses)  # scikit-learn keeps id(self.stop_words)
    ]


def _unwrapped(value: Any) -> Any:
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def _annotation(kind: Any) -> str:
    text = kind if isinstance(kind, str) else getattr(kind, "__qualname__", None) or repr(kind)
    return text if " at 0x" not in text else type(kind).__name__


def _dtype(dtype: np.dtype[Any]) -> str:
    return str(dtype.descr) if dtype.names else dtype.str


def _file(path: str) -> bytes:
    return _text(file_digest(path))


def _short(value: Any) -> str:
    return (
        repr(value)
        if isinstance(value, (str, int)) and len(repr(value)) <= 40
        else f"a {type(value).__name__}"
    )
