"""Read YAML as a workflow may hold it: numbers as in YAML 1.2, no key twice, and no more than a person writes."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from raysel.errors import ConfigError, reason_of, shown

_BYTES, _VALUES, _DEPTH = 1 << 20, 100_000, 50  # of a file, in all and nested: more is no workflow


def read(path: str | os.PathLike[str]) -> Any:
    """Return the value that a YAML file holds. Raises ConfigError, with the file, for one that cannot be used."""
    file = Path(path)
    try:
        if not file.is_file():
            raise ConfigError(
                f"{file} cannot be read: {'it is a folder' if file.is_dir() else 'there is no such file'}."
            )
        if file.stat().st_size > _BYTES:
            raise ConfigError(
                f"{file} is larger than 1 MB, the largest size of a workflow; give the YAML file of a workflow."
            )
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); save it as UTF-8."
        ) from error
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown(str(file))} cannot be read ({reason_of(error)}).") from error
    return parse(text, str(file))


def parse(text: str, where: str) -> Any:
    """Return the value of YAML text. Raises ConfigError, beginning with ``where``."""
    try:
        value = yaml.load(text, Loader=_Loader)
        _count(value, [0])
    except yaml.YAMLError as error:
        advice = " Indent with spaces, not with tabs." if r"\t" in str(error) else ""
        raise ConfigError(
            f"{where} is not YAML ({' '.join(str(error).split()).rstrip('.')}).{advice}"
        ) from error
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply for a workflow.") from None
    return value


def _count(value: Any, seen: list[int], depth: int = 0) -> None:
    """Raise YAMLError for more values than a workflow has; aliases can make many of a few."""
    seen[0] += 1
    if seen[0] > _VALUES:
        raise yaml.YAMLError(f"it has more than {_VALUES:,} values, counting those that aliases repeat")
    if isinstance(value, (dict, list)) and depth <= _DEPTH:  # what holds itself is refused under its key
        for item in value.values() if isinstance(value, dict) else value:
            _count(item, seen, depth + 1)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:  # !!int x, 2024-13-45
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{shown(node.value)} is no {node.tag.rpartition(':')[2]} ({reason_of(error)})",
                node.start_mark,
            ) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            names = [
                self.construct_object(key, deep=True)
                for key, _ in node.value
                if key.tag != "tag:yaml.org,2002:merge"
            ]
            wrong = [
                f"the key {shown(key)} is not text; write it in quotes"
                for key in names
                if not isinstance(key, str)
            ]
            if not wrong:
                wrong = [
                    f"the key '{key}' is given twice" for key, times in Counter(names).items() if times > 1
                ]
            if wrong:
                raise yaml.constructor.ConstructorError(None, None, wrong[0], node.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"merged keys make more than {_VALUES:,} values", node.start_mark
            )


# Numbers as YAML 1.2 and everybody else read them: YAML 1.1, which the library reads, takes 5e-4 for text, 1:30 for
# ninety and 010 for eight.
_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)",
    "tag:yaml.org,2002:float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))
