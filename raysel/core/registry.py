"""A table of names to classes per kind of component, open to entry points and to files of the user."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysel.errors import ConfigError

Load = Callable[[str, str], Any]


@dataclass(frozen=True)
class Registry:
    """Table of the components of one kind, by name.

    Attributes
    ----------
    kind : str
        What the components are, in the plural. Installed packages add to the table with an entry point of the
        group ``raysel.<kind>``.
    builtin : Mapping of str to str
        Names of the components that ship with raysel, with ``module:Class`` for each.
    """

    kind: str
    builtin: Mapping[str, str]

    def names(self) -> list[str]:
        """Names that can be looked up, those of raysel first."""
        return [*self.builtin, *sorted(self._plugins().keys() - self.builtin.keys())]

    def find(self, spec: str, where: str, load: Load) -> Any:
        """Return the component that ``spec`` names.

        Parameters
        ----------
        spec : str
            A name of this table, ``file.py:Name`` or ``package.module:Name``. Naming a file or a package runs
            its code.
        where : str
            Configuration path for error messages.
        load : callable
            Loads ``file.py:Name`` and ``package.module:Name``; see `raysel.cluster.code.load_object`.

        Raises
        ------
        ConfigError
            If there is no such name, with the nearest one.
        """
        if spec in self.builtin:
            module, _, name = self.builtin[spec].partition(":")
            return getattr(importlib.import_module(module), name)
        if (plugin := self._plugins().get(spec)) is not None:
            try:
                return plugin.load()
            except Exception as error:  # code of an installed package: anything can happen
                raise ConfigError(
                    f"{where}: '{spec}' from the installed package ({plugin.value}) cannot be loaded "
                    f"({type(error).__name__}: {error})."
                ) from error
        if is_reference(spec):
            return load(spec, where)
        raise ConfigError(
            f"{where} is '{spec}', but there is no such name. {nearest(spec.partition(':')[0], self.names())} "
            "To use a class of your own, name it as file.py:Name."
        )

    def _plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=f"raysel.{self.kind}")}


def is_reference(spec: str) -> bool:
    """Return whether ``spec`` has the form ``file.py:Name`` or ``package.module:Name``."""
    place, _, name = spec.rpartition(":")
    dotted = all(part.isidentifier() for part in place.split("."))
    return name.isidentifier() and (place.endswith(".py") or dotted)


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return a sentence about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    if not known:
        return "There are none."
    same = [one for one in known if one.casefold() == name.casefold()]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{show(close[0])}'?" if close else f"The known names are {', '.join(known)}."
