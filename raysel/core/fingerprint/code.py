"""Code objects: the normalised source behind one, its instructions without positions, and the names that it reads.

The code object is the truth, and its source is a normal form of it. Source is used only where compiling it gives the
code object again: a file that was edited after it was imported does not describe the code that runs.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import itertools
import linecache
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

_SILENT = {"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME"}
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_CELL = {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}
_HAS_DOCSTRING = 0x4000000  # a flag of Python 3.13
_UNSEEN_FIELDS = {"ctx", "kind", "type_comment", "type_ignores"}


# ---- source ----------------------------------------------------------------------------------------------------------


def source_digest(code: CodeType, names: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Digest of the syntax tree of a function, without positions, comments, docstring, name and decorators.

    Parameters
    ----------
    code : types.CodeType
        Code object of a function or lambda.
    names : mapping
        Globals of the function; ``__file__`` finds a script that was started by a relative path.

    Returns
    -------
    (str, bytes) or None
        ``("source", digest)`` where the source is at hand and compiles to ``code``. ``("changed", digest)`` with the
        digest of the complete file where it does not: what is imported elsewhere may be the file's code. None where there
        is no source.
    """
    text = _text(code.co_filename, names)
    parsed = _parse(text) if text else None
    if parsed is None:
        return None
    for compiled in parsed.same(code):
        node = _node_of(compiled, parsed.nodes.get((compiled.co_name, compiled.co_firstlineno), ()))
        if node is not None:
            return "source", node
    return "changed", parsed.digest


def file_tree(names: Mapping[str, Any]) -> ast.Module | None:
    """Return the syntax tree of the file of a module's globals; None if there is none, or it cannot be read or parsed."""
    file = names.get("__file__")
    text = _text(file, names) if isinstance(file, str) and file.endswith(".py") else ""
    parsed = _parse(text) if text else None
    return None if parsed is None else parsed.tree


def hash_nodes(nodes: Sequence[ast.AST], docstrings: bool = False) -> bytes:
    """Return the digest of syntax trees without positions and comments, and without docstrings unless requested."""
    return _hash(" ".join(map(ast.dump if docstrings else _dump, nodes)))


def _text(filename: str, names: Mapping[str, Any]) -> str:
    file = names.get("__file__")
    if (
        not os.path.isabs(filename)
        and isinstance(file, str)
        and os.path.basename(file) == os.path.basename(filename)
    ):
        filename = file
    linecache.checkcache(filename)
    return "".join(linecache.getlines(filename, dict(names) if "__loader__" in names else None))


@dataclass(frozen=True)
class _Parsed:
    tree: ast.Module
    digest: bytes
    codes: Mapping[str, list[CodeType]]
    nodes: Mapping[tuple[str, int], list[Any]]

    def same(self, code: CodeType) -> list[CodeType]:
        """Code of this file that equals ``code``; where lines have moved since, code with the same instructions."""
        named = self.codes.get(code.co_name, [])
        exact = [one for one in named if one == code and one.co_firstlineno == code.co_firstlineno]
        if exact or not named:
            return exact
        wanted = _without_positions(code)
        return [one for one in named if _without_positions(one) == wanted]


@lru_cache(maxsize=1024)
def _parse(text: str) -> _Parsed | None:
    try:
        tree = ast.parse(text)
        whole = compile(tree, "<source>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        digest = hash_nodes([tree])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes[node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])].append(node)
        elif isinstance(node, ast.Lambda):
            nodes["<lambda>", node.lineno].append(node)
    codes: dict[str, list[CodeType]] = defaultdict(list)
    for code in _codes(whole):
        codes[code.co_name].append(code)
    return _Parsed(tree, digest, codes, nodes)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _codes(value)


def _node_of(code: CodeType, nodes: Any) -> bytes | None:
    """Digest of the node whose code ``code`` is; of several on one line, the smallest that spans its positions."""
    if len(nodes) > 1:
        if not hasattr(code, "co_positions"):  # Python 3.10
            return None
        places = [
            (line, column)
            for line, _, column, _ in code.co_positions()
            if line is not None and column is not None and (line, column) != (code.co_firstlineno, 0)
        ]
        nodes = [
            node
            for node in nodes
            if all(
                (node.lineno, node.col_offset) <= place <= (node.end_lineno, node.end_col_offset)
                for place in places
            )
        ]
        nodes.sort(key=lambda node: (node.end_lineno - node.lineno, node.end_col_offset - node.col_offset))
        if not places:
            return None
    return _hash(_dump(nodes[0], root=True)) if nodes else None


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _dump(node: Any, root: bool = False) -> str:
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, ast.AST):
        parts = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if value is None or value == [] or name in _UNSEEN_FIELDS:
                continue
            if root and name in (
                "name",
                "decorator_list",
            ):  # decorators act through the object that they made
                continue
            if name == "body" and isinstance(value, list) and _is_docstring(node, value[0]):
                value = value[1:]
            parts.append(f"{name}={_dump(value)}")
        return f"({' '.join(parts)})"
    if isinstance(node, list):
        return f"[{' '.join(map(_dump, node))}]"
    return repr(node)


def _is_docstring(node: ast.AST, first: ast.AST) -> bool:
    return (
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module))
        and isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )


# ---- instructions ----------------------------------------------------------------------------------------------------


def instructions(code: CodeType) -> list[Any]:
    """Everything that decides what a code object does: no positions, no file name, no docstring."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    number = {step.offset: place for place, step in enumerate(steps)}
    offsets = sorted(number)
    parts: list[Any] = [
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags & ~_HAS_DOCSTRING,
        code.co_varnames[: code.co_argcount + code.co_kwonlyargcount],
        code.co_freevars,
    ]
    for step in steps:
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            target = next((number[offset] for offset in offsets if offset >= step.argval), len(steps))
            parts += [step.opname, target]
        else:
            parts += [step.opname, step.argval]
    return [*parts, getattr(code, "co_exceptiontable", b"")]


def _without_positions(code: CodeType) -> list[Any]:
    return [
        _without_positions(part) if isinstance(part, CodeType) else (type(part).__name__, repr(part))
        for part in instructions(code)
    ]


# ---- names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Read:
    """A name that code reads, and the attributes that it takes of it one after another.

    scope: "global", "closure", "import", where ``name`` is a module imported by the code itself, with leading dots if
    it is relative, or "effect" for such a module if it is imported, read or not.
    constant: a text that the code loads next, with which the value may be called or indexed.
    """

    scope: str
    name: str
    chain: tuple[str, ...] = ()
    constant: str = ""


@lru_cache(maxsize=4096)
def reads(code: CodeType) -> tuple[Read, ...]:
    """Names outside a code object that it and the functions in it read, sorted."""
    found: set[Read] = set()
    _collect(code, frozenset(code.co_freevars), {}, found)
    return tuple(sorted(found))


def all_names(code: CodeType) -> set[str]:
    """Names of the globals and attributes in a code object and the functions in it."""
    return set(code.co_names).union(
        *(all_names(inner) for inner in code.co_consts if isinstance(inner, CodeType))
    )


def _collect(code: CodeType, free: frozenset[str], outer: dict[str, Read], found: set[Read]) -> None:
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    bound = {**outer, **_imports(steps)}
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            found.add(Read("effect", _module(steps, place)))
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        chain: list[str] = []
        after = place + 1
        while after < len(steps) and steps[after].opname in _ATTRIBUTE:
            chain.append(steps[after].argval)
            after += 1
        if after < len(steps) and steps[after].opname in ("STORE_ATTR", "DELETE_ATTR"):
            continue
        following = (
            steps[after].argval if steps[after : after + 1] and steps[after].opname == "LOAD_CONST" else ""
        )
        constant = following if isinstance(following, str) else ""
        if step.opname in _GLOBAL or step.opname in _CELL or step.opname.startswith("LOAD_FAST"):
            for name in names[:-1]:
                if name in bound:
                    found.add(bound[name])
            name = names[-1]
            if name in bound:
                found.add(Read("import", bound[name].name, (*bound[name].chain, *chain), constant))
            elif step.opname in _GLOBAL:
                found.add(Read("global", name, tuple(chain), constant))
            elif step.opname in _CELL and name in free:
                found.add(Read("closure", name, tuple(chain)))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            hidden = set(inner.co_varnames)
            _collect(
                inner,
                free & frozenset(inner.co_freevars),
                {name: read for name, read in bound.items() if name not in hidden},
                found,
            )


def _imports(steps: list[dis.Instruction]) -> dict[str, Read]:
    """Names that import statements of the code bind."""
    bound: dict[str, Read] = {}
    for place, step in enumerate(steps):
        if step.opname != "IMPORT_NAME":
            continue
        wanted, module = steps[place - 1].argval, _module(steps, place)
        follow = steps[place + 1 :]
        if not wanted:
            renamed = [s for s in follow[:1] if s.opname == "IMPORT_FROM"]
            target = next((s for s in follow if s.opname.startswith("STORE_")), None)
            if target is not None:
                bound[_last(target)] = Read("import", module if renamed else module.partition(".")[0])
            continue
        for one, two in itertools.pairwise(follow):
            if one.opname == "IMPORT_FROM":
                if two.opname.startswith("STORE_"):
                    bound[_last(two)] = Read("import", module, (one.argval,))
            elif one.opname == "POP_TOP":
                break
    return bound


def _module(steps: list[dis.Instruction], place: int) -> str:
    """Name of the module that the import at ``place`` names, with leading dots if it is relative."""
    level = steps[place - 2].argval
    return "." * (level if isinstance(level, int) else 0) + str(steps[place].argval)


def _last(step: dis.Instruction) -> str:
    return step.argval[0] if isinstance(step.argval, tuple) else step.argval
