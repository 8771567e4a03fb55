"""What ``raysel methods`` prints: everything that a workflow can name, by the docstrings of its classes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raysel.cluster.code import load_object
from raysel.core import docstrings
from raysel.core.parameters import default_of, describe, keys, type_name
from raysel.core.registry import Registry, nearest
from raysel.errors import ConfigError
from raysel.registry import EMBEDDERS, METRICS, POLICIES, SELECTORS, TASKS
from raysel.workflow.config import Workflow

_WIDTH = 100
_QUOTED = re.compile(r'"[^"]*"')
_EXAMPLES = {"budget": 0.3}  # values of required parameters in the examples


@dataclass(frozen=True)
class _Kind:
    """A kind of component: its registry, what one is called, the key of a workflow that names it, and what it does."""

    registry: Registry
    one: str
    key: str
    about: str


_SELECTOR = _Kind(
    SELECTORS,
    "selector",
    "select",
    "A selector selects rows of the pool before the training. The pool is the set of rows to select from; the target is a "
    "sample of the data that the model is for.",
)
_POLICY = _Kind(
    POLICIES,
    "policy",
    "dynamic",
    "Before each epoch, a policy selects the samples that the epoch trains on, and gives each of them a weight in the loss.",
)
_EMBEDDER = _Kind(
    EMBEDDERS,
    "embedder",
    "embed.embedder",
    "An embedder computes one vector per row. Selectors compare rows by these vectors.",
)
_TASK = _Kind(
    TASKS,
    "task",
    "train.task",
    "A task says what is trained: how rows become batches, which losses are computed, and which metric is reported. In a "
    "workflow, the keys 'train.input' and 'pool.label' set its parameters 'input' and 'label'.",
)
_METRIC = _Kind(
    METRICS,
    "metric",
    "gime.metrics",
    "A metric of GIME describes a set of rows, such as the pool, by one or more numbers, its statistics.",
)
_KINDS = (_SELECTOR, _POLICY, _EMBEDDER, _TASK, _METRIC)


@dataclass(frozen=True)
class _Parameter:
    """A key below a method or a section, as it is printed."""

    name: str
    kind: str
    default: str
    text: str


def all_methods() -> str:
    """Return the registered selectors, policies and embedders and the sections of a workflow, one line each."""
    groups: list[tuple[str, dict[str, str]]] = []
    for kind in _KINDS:
        heading = f"{kind.registry.kind.capitalize()} (key '{kind.key}'):"
        about = f"{heading}\n{textwrap.fill(kind.about, _WIDTH)}"
        groups.append((about, {name: _summary(kind, name) for name in kind.registry.names()}))
    lines = {name: _purpose(name, cls) for name, cls in _sections().items()}
    groups.append(("Sections of a workflow, the YAML file with all settings of a run:", lines))
    width = max(len(name) for _, lines in groups for name in lines) + 4
    blocks = [
        "\n".join([heading, *(_entry(f"  {name}", text, width) for name, text in lines.items())])
        for heading, lines in groups
    ]
    end = (
        "'raysel methods NAME' prints the parameters of a method or the keys of a section. To use a class of your own, "
        "name it as file.py:Name, here and in a workflow."
    )
    return "\n\n".join([*blocks, textwrap.fill(end, _WIDTH)])


def one_method(name: str) -> str:
    """Return the documentation of a method or of a section of a workflow.

    Parameters
    ----------
    name : str
        A registered name, a section such as ``train``, or ``file.py:Name`` or ``package.module:Name``, which runs the
        code of the file or package.

    Returns
    -------
    str
        Where it stands in a workflow, its summary, and its parameters with type, default and documentation; for a
        method also an example. At most 100 columns.

    Raises
    ------
    ConfigError
        For an unknown name, with the nearest known one, and for an object that a workflow cannot name.
    """
    if name in (sections := _sections()):
        return _section(name, sections[name])
    kinds = [kind for kind in _KINDS if name in kind.registry.names()]
    bare = name.partition(":")[0]
    if not kinds and bare in EMBEDDERS.builtin:
        kinds, name = [_EMBEDDER], bare
    if kinds:
        found = [_method(kind, name, kind.registry.find(name, name, load_object)) for kind in kinds]
        return "\n\n".join(found)
    if ":" in name:
        made = load_object(name, "raysel methods", "method")
        return _method(_kind_of(made, name), name, made)
    known = list(dict.fromkeys([*(n for kind in _KINDS for n in kind.registry.names()), *sections]))
    raise ConfigError(
        f"'{name}' is neither a method nor a section of a workflow. {nearest(name, known)} To use a class of "
        "your own, name it as file.py:Name."
    )


# ---- methods -------------------------------------------------------------------------------------------------


def _summary(kind: _Kind, name: str) -> str:
    try:
        return docstrings.summary(kind.registry.find(name, name, load_object))
    except ConfigError as error:  # of another package, which must not hide the rest
        return str(error)


def _kind_of(made: Any, name: str) -> _Kind:
    """Return the kind of a class or function of the user's own, by its methods."""
    if callable(getattr(made, "select", None)):
        return _SELECTOR
    if callable(getattr(made, "plan", None)) and callable(getattr(made, "update", None)):
        return _POLICY
    if inspect.isfunction(made) and list(inspect.signature(made).parameters) == ["view"]:
        return _METRIC
    made_of_rows = inspect.isfunction(made) and len(inspect.signature(made).parameters) == 1
    if made_of_rows or hasattr(made, "fit") or (isinstance(made, type) and "__call__" in dir(made)):
        return _EMBEDDER
    raise ConfigError(
        f"'{name}' is neither a selector (it has no method 'select'), nor a policy ('plan' and 'update'), nor an "
        "embedder (a function of rows, or a class with '__call__' or 'fit')."
    )


def _method(kind: _Kind, name: str, made: Any) -> str:
    written, parameters = name, _parameters(made)
    if kind is _EMBEDDER and name in EMBEDDERS.builtin:
        written, parameters = _written_after_a_colon(name, made)
    lines = [f"{name} ({kind.one}, key '{kind.key}')", ""]
    summary = _plain(docstrings.summary(made)) or "It has no docstring."
    lines += [textwrap.fill(summary, _WIDTH), "", textwrap.fill(kind.about, _WIDTH), ""]
    if kind is _METRIC:
        about = (inspect.getdoc(made) or "").split("\n\n")[1:]
        about.append(
            "The binding says what each column means. It is the key 'gime.binding' of the workflow; see 'raysel methods gime'."
        )
        return "\n".join([*lines, *(textwrap.fill(_plain(part), _WIDTH) for part in about)]).rstrip()
    lines += _table(parameters)
    return "\n".join([*lines, "Example:", textwrap.indent(_example(kind, written, parameters), "  ")])


def _written_after_a_colon(name: str, made: Any) -> tuple[str, list[_Parameter]]:
    """Return example and parameters of an embedder with one argument, ``pca:32``, or none, ``table``."""
    (_, spec), (_, argument) = docstrings.parameters(made).items()
    found = re.search(r"``(.+?)``", spec)
    written = found[1] if found else name
    takes = ":" in written
    return written, [_Parameter(f"{name}:...", "text", "required", argument)] if takes else []


def _example(kind: _Kind, written: str, parameters: list[_Parameter]) -> str:
    shown = [p for p in parameters if p.default == "required" and "." not in p.name]
    shown = shown or [p for p in parameters if p.default not in ("required", "default null", "optional")][:1]
    values = [f"{p.name}: {_value(p)}" for p in shown]
    if kind is _TASK:
        given = [f"{p.name}: {_value(p)}" for p in shown if p.name not in ("input", "label")]
        return f"train:\n  task: {{{', '.join([f'method: {written}', *given])}}}\n  input: features"
    if kind is not _EMBEDDER:
        return "\n  ".join([f"{kind.key}:", f"method: {written}", *values])
    if written.partition(":")[0] in EMBEDDERS.builtin or not values:
        return f"embed:\n  embedder: {written}\n  column: features"
    return "\n".join(
        ["embed:", f"  embedder: {{{', '.join([f'method: {written}', *values])}}}", "  column: features"]
    )


def _value(parameter: _Parameter) -> Any:
    if parameter.default != "required":
        return parameter.default.removeprefix("default ")
    return _EXAMPLES.get(parameter.name, "...")


# ---- sections ------------------------------------------------------------------------------------------------


def _sections() -> dict[str, Any]:
    """Sections of a workflow that have keys of their own, and their dataclasses; all keys first."""
    found = {name: _dataclass_in(hint) for name, hint in typing.get_type_hints(Workflow).items()}
    return {"workflow": Workflow, **{name: found[name] for name in keys(Workflow) if found[name] is not None}}


def _purpose(name: str, cls: Any) -> str:
    """Return in one sentence what a section is for; sections of the same dataclass differ only in this."""
    if cls is Workflow:
        return docstrings.summary(cls)
    return docstrings.parameters(Workflow)[name].partition(". ")[0].rstrip(".") + "."


def _section(name: str, cls: Any) -> str:
    where = "the keys of a workflow" if cls is Workflow else f"section '{name}' of a workflow"
    lines = [f"{name} ({where})", "", textwrap.fill(_plain(_purpose(name, cls)), _WIDTH), ""]
    parameters = _parameters(cls, nested=cls is not Workflow)
    if cls is Workflow:
        texts = docstrings.parameters(cls)
        for kind in (_SELECTOR, _POLICY):
            text = f"{texts[kind.key]} 'raysel methods' lists the {kind.registry.kind}."
            parameters.append(_Parameter(kind.key, "mapping with the key 'method'", "optional", text))
    return "\n".join([*lines, *_table(parameters, "Keys:")]).rstrip()


# ---- parameters ----------------------------------------------------------------------------------------------


def _parameters(made: Any, prefix: str = "", nested: bool = True) -> list[_Parameter]:
    """Parameters of a class or function; those of a nested dataclass follow it as ``name.key``."""
    if not isinstance(made, type):
        return []  # a function takes rows, and a workflow gives it nothing else
    if not dataclasses.is_dataclass(made):
        return list(_signature(made))
    texts, hints = docstrings.parameters(made), typing.get_type_hints(made)
    found: list[_Parameter] = []
    for name, field in keys(made).items():
        default = default_of(field)
        if default is dataclasses.MISSING:
            shown = "required"
        elif dataclasses.is_dataclass(default):
            shown = "optional"
        else:
            shown = f"default {_yaml(default)}"
        found.append(_Parameter(prefix + name, type_name(made, name), shown, texts.get(name, "")))
        inner = _dataclass_in(hints[name])
        if nested and inner is not None:
            found += _parameters(inner, f"{prefix}{name}.")
    return found


def _signature(cls: type) -> Iterator[_Parameter]:
    """Parameters of a class that is no dataclass, by its constructor."""
    texts = docstrings.parameters(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = parameter.annotation
        kind = "any value" if hint is parameter.empty else inspect.formatannotation(hint)
        missing = parameter.default is parameter.empty
        default = "required" if missing else f"default {_yaml(parameter.default)}"
        yield _Parameter(name, kind, default, texts.get(name, ""))


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass in a type such as ``Stop | None``, None if there is none."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_dataclass_in, typing.get_args(hint))), None)


def _yaml(value: Any) -> str:
    plain = describe(value)
    return plain if isinstance(plain, str) and plain else json.dumps(plain, default=str)


def _table(parameters: list[_Parameter], heading: str = "Parameters:") -> list[str]:
    if not parameters:
        return ["It has no parameters.", ""]
    width = max(len(p.name) for p in parameters) + 4
    lines = [heading]
    for p in parameters:
        lines.append(_entry(f"  {p.name}", f"{p.kind}, {p.default}", width))
        if p.text:
            lines.append(textwrap.indent(textwrap.fill(_plain(p.text), _WIDTH - width), " " * width))
    return [*lines, ""]


def _entry(name: str, text: str, width: int) -> str:
    """Return a name and its text, which continues in its own column."""
    head, *rest = textwrap.wrap(_plain(text), _WIDTH - width) or [""]
    return "\n".join([f"{name:<{width}}{head}".rstrip(), *(f"{' ' * width}{line}" for line in rest)])


def _plain(text: str) -> str:
    """Text without the markup of docstrings: code in quotes, which text in quotes has already."""
    text = re.sub(r"``(.+?)``", lambda code: code[1] if _QUOTED.fullmatch(code[1]) else f"'{code[1]}'", text)
    return re.sub(r"(:\w+:)?`(.+?)`", r"\2", text)
