"""The mathematics never loads Ray: pure rooms stay usable in a notebook, and testable in milliseconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "raysel"
SHELLS = {"distributed.py", "service.py"}  # the thin Ray shells inside pure rooms
ROOMS = ("core", "gio", "gime", "factors", "dynamic", "report")
ORDER = ("core", "cluster", "data", "gio", "gime", "factors", "dynamic", "train", "report", "workflow")
PURE = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py")) if path.name not in SHELLS]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_pure_module_imports_no_ray(path):
    assert not {name for name in imports(path) if name.split(".")[0] == "ray"}


def test_importing_the_pure_rooms_loads_no_ray():
    names = (".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in PURE)
    modules = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_imports_go_from_right_to_left():
    """A room imports only rooms to its left; what chains them (workflow) and the front door come last."""
    wrong = []
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("raysel.") else None
            if other in ORDER and ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_core_imports_nothing_of_raysel_but_its_errors_and_version():
    wrong = []
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        for name in imports(path):
            if name.split(".")[0] == "raysel" and name.split(".")[1:2] not in (
                ["core"],
                ["errors"],
                ["version"],
            ):
                wrong.append(f"{path.name} imports {name}")
    assert not wrong


def test_the_public_face_is_what_the_documentation_says():
    import raysel

    for name in raysel.__all__:
        assert getattr(raysel, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'gois'"):
        raysel.gois  # noqa: B018
