"""Modules of the user's own as files: the statements that act when they are imported, and the modules they import."""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import importlib.util
import inspect
import logging
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raysel.core.fingerprint.code import file_tree, hash_nodes
from raysel.core.fingerprint.origin import package_of_module

_INERT = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Pass,
    ast.Global,
    ast.Raise,
    ast.Assert,
)
_COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def reachable(names: Iterable[str]) -> set[str]:
    """Return the user's own modules among ``names`` and their parents, and those that they import when they are imported.

    The script or notebook that runs is left out: its statements prepare one run and differ between runs.
    """
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found or not isinstance(sys.modules.get(name), types.ModuleType):
            continue
        if name in ("__main__", "__mp_main__") or package_of_module(name) is not None:
            continue
        found.add(name)
        queue += [name.rpartition(".")[0], *imports(vars(sys.modules[name]))]
    return found


def imports(names: Mapping[str, Any]) -> set[str]:
    """Return the names of the loaded modules that import statements outside functions name, in the file of a module's globals."""
    tree = file_tree(names)
    load = names.get("__builtins__")
    neighbours = isinstance(load, dict) and load.get("__import__") is not builtins.__import__
    top = str(names.get("__name__")).partition(".")[0]
    found = set()
    for node in _statements(tree.body if tree is not None else []):
        if isinstance(node, ast.Import):
            given = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            try:
                module = importlib.util.resolve_name(module, names.get("__package__") or "")
            except ImportError:
                continue
            given = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in given:
            near = f"{top}.{name}"  # where raysel's loader keeps the neighbours of a user's file
            found.add(near if neighbours and near in sys.modules else name)
    return found & sys.modules.keys()


def effects(names: dict[str, Any]) -> tuple[bytes, types.FunctionType] | None:
    """Return the digest of the statements of a module that act on something else than its names, and a function of them.

    Definitions, imports, assignments to names and to attributes of the user's own objects are left out: their values
    count where they are read. So are blocks that do not run on import, log messages and calls of cached functions.
    """
    tree = file_tree(names)
    acting = [one for one in (tree.body if tree is not None else []) if not _is_inert(one, names)]
    if not acting:
        return None
    body = [_WithoutImports().visit(copy.deepcopy(one)) for one in acting]
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(ast.Module(body, []), "<effects>", "exec", flags, dont_inherit=True)
    return hash_nodes(acting), types.FunctionType(code, names)


def file_digests(names: Mapping[str, Any], docstrings: bool) -> list[bytes]:
    """Return the digests of the complete file of a module's globals, and of those of the user's own that it imports, sorted."""
    modules = [vars(sys.modules[name]) for name in reachable(imports(names))]
    trees = [tree for each in (names, *modules) if (tree := file_tree(each)) is not None]
    return sorted({hash_nodes([tree], docstrings) for tree in trees})


class _WithoutImports(ast.NodeTransformer):
    """Names that were imported are in the module's globals already; a branch that was not taken is not imported."""

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # its imports run when it is called


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, those inside others included."""
    for statement in body:
        yield statement
        if isinstance(statement, _COMPOUND):
            yield from _statements(_inner(statement))


def _inner(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.If) and _is_not_for_import(statement.test):
        return statement.orelse
    nodes: list[Any] = list(ast.iter_child_nodes(statement))
    nodes += [
        one for node in nodes if isinstance(node, (ast.ExceptHandler, ast.match_case)) for one in node.body
    ]
    return [node for node in nodes if isinstance(node, ast.stmt)]


def _is_not_for_import(test: ast.expr) -> bool:
    """Whether this is ``__name__ == "__main__"`` or ``TYPE_CHECKING``."""
    if isinstance(test, ast.Compare):
        parts = [ast.unparse(part) for part in (test.left, *test.comparators)]
        return isinstance(test.ops[0], ast.Eq) and sorted(parts) == ["'__main__'", "__name__"]
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def _is_inert(statement: ast.stmt, names: Mapping[str, Any]) -> bool:
    if isinstance(statement, _INERT):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) or _is_quiet(statement.value, names)
    if isinstance(statement, (ast.Assign, ast.Delete)):
        return all(_is_own(target, names) for target in statement.targets)
    if isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        return _is_own(statement.target, names)
    if isinstance(statement, _COMPOUND):
        return all(_is_inert(one, names) for one in _inner(statement))
    return type(statement).__name__ == "TypeAlias"


def _is_own(target: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether what is assigned to is a name of the module or an attribute of something of the user's own."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return all(_is_own(part, names) for part in target.elts)
    if isinstance(target, ast.Starred):
        return _is_own(target.value, names)
    if not isinstance(target, ast.Attribute):
        return isinstance(target, ast.Name) and target.id != "_"  # to which one assigns for the effect
    holder = _value(target.value, names)
    if isinstance(holder, types.ModuleType):
        return package_of_module(holder.__name__) is None
    kind = holder if isinstance(holder, (type, types.FunctionType)) else type(holder)
    return package_of_module(kind.__module__ or "") is None


def _is_quiet(call: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether an expression calls a cached function or a logger, neither of which counts for what it holds."""
    if not isinstance(call, ast.Call):
        return False
    holder = _value(call.func.value, names) if isinstance(call.func, ast.Attribute) else None
    return isinstance(holder, logging.Logger) or isinstance(
        _value(call.func, names), functools._lru_cache_wrapper
    )


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return what a dotted name stands for, without running a property; None for everything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (holder := _value(node.value, names)) is not None:
        return inspect.getattr_static(holder, node.attr, None)
    return None
