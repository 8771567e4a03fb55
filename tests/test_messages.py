"""Every error message of raysel is one or two complete sentences."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import raysel.errors

ROOT = Path(__file__).parents[1] / "raysel"
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
ERRORS = {
    name
    for name, each in vars(raysel.errors).items()
    if inspect.isclass(each) and issubclass(each, Exception)
} | {
    node.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Error") for base in node.bases)
}
BUILTIN = {"ValueError", "TypeError", "ImportError"}
FUNCTIONS: dict[str, list[ast.FunctionDef]] = {}  # those that return text
for _tree in TREES.values():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.FunctionDef) and _node.returns and ast.unparse(_node.returns) == "str":
            FUNCTIONS.setdefault(_node.name, []).append(_node)

END = re.compile(r"[.?]['\")]*$")
KEY = re.compile(r"^[\w.{}]+: ")  # a configuration path, an argument or a file


def messages() -> Iterator[tuple[str, ast.AST, ast.expr]]:
    """Place, enclosing function or module, and first argument of every error that is made in raysel."""
    for path, tree in sorted(TREES.items()):
        scopes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Module))]
        inner = {id(node): scope for scope in scopes for node in ast.walk(scope)}  # the innermost comes last
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in ERRORS | BUILTIN:
                yield f"{path}:{node.lineno}", inner[id(node)], node.args[0]


def _name(function: ast.expr) -> str:
    """Name of what is called; ``type(error)(...)`` makes an error of raysel again."""
    if isinstance(function, ast.Call) and _name(function.func) == "type":
        return "RayselError"
    return getattr(function, "id", None) or getattr(function, "attr", "")


def values(expression: ast.expr, scope: ast.AST, seen: frozenset[str] = frozenset()) -> Iterator[ast.expr]:
    """Texts that an expression may have: literals and f-strings, through names, functions and conditions."""
    if isinstance(expression, ast.IfExp):
        yield from values(expression.body, scope, seen)
        yield from values(expression.orelse, scope, seen)
    elif isinstance(expression, ast.Call) and (called := FUNCTIONS.get(_name(expression.func))):
        for function in called:
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield from values(node.value, function)
    elif isinstance(expression, ast.Call) and _name(expression.func) == "removeprefix":
        yield from values(expression.func.value, scope, seen)  # type: ignore[attr-defined]
    elif isinstance(expression, ast.Name):
        if expression.id in seen:
            return  # the name is assigned from itself
        assigned = _assigned(expression.id, scope)
        for value in assigned:
            yield from values(value, scope, seen | {expression.id})
        if not assigned:
            yield expression
    else:
        yield expression


def _assigned(name: str, scope: ast.AST) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]


def parts(expression: ast.expr) -> list[ast.expr]:
    """Literals and placeholders of a text in order."""
    if isinstance(expression, ast.JoinedStr):
        return list(expression.values)
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Add):
        return [*parts(expression.left), *parts(expression.right)]
    return [expression]


def is_error(expression: ast.expr, scope: ast.AST) -> bool:
    """Whether this is the text of an error that was caught, which is checked where it is made."""
    caught = {node.name for node in ast.walk(scope) if isinstance(node, ast.ExceptHandler)}
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    return any(name in caught or name in ("error", "message") for name in names)


def begins(text: list[ast.expr], names: set[str]) -> bool:
    """Whether a message begins with a capital letter, or with the key, argument, file or name that it is about."""
    shown = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in text)
    key = KEY.match(shown)
    word = re.match(r"[a-z][\w.{}]*", shown[key.end() :] if key else shown)  # a sentence begins after "KEY: "
    return word is None or bool(re.search(r"\w[._][\w{]", word[0])) or (not key and word[0] in names)


def names_of(scope_file: ast.AST) -> set[str]:
    """Arguments and fields that the functions and classes of a file have."""
    found = {node.arg for node in ast.walk(scope_file) if isinstance(node, ast.arg)}
    return found | {
        node.target.id
        for node in ast.walk(scope_file)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def ends(text: list[ast.expr], scope: ast.AST) -> bool:
    """Whether a message ends with a full stop or a question mark."""
    tail = text[-1]
    if isinstance(tail, ast.Constant):
        return bool(END.search(str(tail.value)))
    value = tail.value if isinstance(tail, ast.FormattedValue) else tail
    if is_error(value, scope):
        return True
    found = list(values(value, scope))
    return found != [value] and all(_ends(each, scope) for each in found)


def _ends(value: ast.expr, scope: ast.AST) -> bool:
    if isinstance(value, ast.Constant) and value.value == "":
        return True  # nothing is added
    return ends(parts(value), scope)


def test_the_check_sees_what_is_wrong() -> None:
    def judged(text: str) -> tuple[bool, bool]:
        made = parts(ast.parse(text, mode="eval").body)
        return begins(made, {"epoch"}), ends(made, ast.Module([], []))

    assert judged("'The pool is empty.'") == (True, True)
    assert judged("f'{path} is damaged; run again.'") == (True, True)
    assert judged("'epoch must be below 3.'") == (True, True)
    assert judged("'did it work? Did you mean this?'") == (False, True)
    assert judged("'the pool is empty'") == (False, False)
    assert judged("'budget: the pool is empty.'") == (False, True)
    assert judged("'budget: The pool is empty.'") == (True, True)
    assert judged("f'{path}: no such file.'") == (False, True)
    assert judged("f'The pool is empty: {what}'") == (True, False)


MESSAGES = list(messages())


@pytest.mark.parametrize("file", sorted({place.partition(":")[0] for place, _, _ in MESSAGES}))
def test_messages_are_complete_sentences(file: str) -> None:
    names = names_of(TREES[Path(file)])
    wrong = []
    for place, scope, argument in MESSAGES:
        if place.partition(":")[0] != file:
            continue
        for text in values(argument, scope):
            made = parts(text)
            if len(made) == 1 and not isinstance(made[0], (ast.Constant, ast.FormattedValue)):
                continue  # a caught error's text, or a message that is checked where it is made
            if not begins(made, names) or not ends(made, scope):
                wrong.append(f"{place}: {ast.unparse(text)}")
    assert not wrong, "\n".join(wrong)
