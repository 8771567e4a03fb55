"""Read docstrings in NumPy style: the summary, and the documentation of every parameter."""

from __future__ import annotations

import inspect
import re
from typing import Any


def summary(documented: Any) -> str:
    """Return the first line of an object's own docstring, which is empty for an object without one."""
    return _lines(documented)[0]


def parameters(documented: Any) -> dict[str, str]:
    """Return the documentation of every name in the sections "Parameters" and "Attributes".

    Parameters
    ----------
    documented : object
        A class or a function.

    Returns
    -------
    dict of str to str
        Names to their text as one line. Names that share an entry, ``low, high : float``, share its text.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    section, lines = "", _lines(documented)
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", after):
            section, names = line.strip(), []
        elif section not in ("Parameters", "Attributes") or re.fullmatch(r"-{3,}", line):
            continue
        elif re.fullmatch(r"\w+(, \w+)*( : .*)?", line):
            names = line.partition(" : ")[0].split(", ")
            found |= dict.fromkeys(names, "")
        elif line[:1].isspace():
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
        else:
            names = []  # what follows a blank line is not part of the entry
    return found


def _lines(documented: Any) -> list[str]:
    own = documented.__dict__.get("__doc__") if isinstance(documented, type) else documented.__doc__
    return inspect.cleandoc(own or "").splitlines() or [""]
