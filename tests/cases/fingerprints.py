"""A process that prints the fingerprint of ``make()`` of each module in a folder: ``python fingerprints.py FOLDER``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from raysel.core.fingerprint import fingerprint

STOP = {"the", "and", "of", "to", "in", "a"}


def words(x):
    return x * len(STOP) + (x in {"the", "and", "of"})


class Own:
    name = "own"

    def __call__(self, x):
        return x


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    found = {}
    for path in sorted(folder.glob("case_*.py")):
        try:
            found[path.stem] = fingerprint(importlib.import_module(path.stem).make())
        except Exception as error:  # one case that fails does not hide the others
            found[path.stem] = f"{type(error).__name__}: {error}"
    found |= {
        "script: " + name: fingerprint(thing) for name, thing in (("function", words), ("class", Own()))
    }
    print(json.dumps(found))
