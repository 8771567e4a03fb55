"""What ``raysel init`` writes: a commented workflow and the scripts that it needs."""

from __future__ import annotations

import importlib.resources
import os
import shlex
from dataclasses import dataclass

from raysel.core.registry import nearest
from raysel.core.storage import local_output
from raysel.errors import ConfigError, first


@dataclass(frozen=True)
class _Template:
    """Files of a template next to its workflow, and the commands that follow ``raysel validate``."""

    files: tuple[str, ...]
    commands: tuple[str, ...]


_TEMPLATES = {
    "classify": _Template(("prepare.py", "models.py"), ("run {}",)),
    "dynamic": _Template(("prepare.py", "models.py"), ("compare {}",)),
    "own": _Template(("prepare.py", "models.py", "mine.py"), ("run {}", "compare {}")),
}


def listed() -> str:
    """Return the templates, one line each, and how to write one."""
    width = max(map(len, _TEMPLATES)) + 2
    lines = [f"  {name:<{width}}{_summary(name)}" for name in _TEMPLATES]
    return "\n".join(
        ["Templates:", *lines, "", "'raysel init NAME --out DIR' writes the files of a template."]
    )


def write(template: str, out: str | os.PathLike[str]) -> str:
    """Write the files of a template.

    Parameters
    ----------
    template : str
        Name of a template.
    out : path
        Folder to write to; it is made if it is missing.

    Returns
    -------
    str
        The files, and the commands to type next.

    Raises
    ------
    ConfigError
        If there is no such template, if the folder cannot be written, or if it has one of the files already, which is
        never overwritten. Nothing is written then.
    """
    if template not in _TEMPLATES:
        raise ConfigError(f"There is no template '{template}'. {nearest(template, _TEMPLATES)}")
    found, folder = _TEMPLATES[template], local_output(out)
    workflow = f"{template}.yaml"
    names = [workflow, *found.files]
    if there := [str(folder / name) for name in names if os.path.lexists(folder / name)]:
        raise ConfigError(
            f"These files exist already and would be overwritten: {first(there, 5)}. Give another folder as --out."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(_text(name))
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); give another folder as --out."
        ) from error
    place = shlex.quote(str(folder / workflow))
    steps = [
        f"python {shlex.quote(str(folder / 'prepare.py'))}",
        f"raysel validate {place} --load",
        *(f"raysel {command.format(place)}" for command in found.commands),
    ]
    lines = [f"Wrote {folder / name}" for name in names]
    lines += [
        "",
        "prepare.py generates artificial data until you edit its lines marked EDIT. Run these commands next:",
    ]
    return "\n".join([*lines, *(f"  {step}" for step in steps)])


def _summary(template: str) -> str:
    """Return the first line of a template's workflow, which is a comment."""
    return _text(f"{template}.yaml").splitlines()[0].lstrip("# ")


def _text(name: str) -> str:
    return (importlib.resources.files("raysel.workflow") / "templates" / name).read_text(encoding="utf-8")
