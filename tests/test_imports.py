"""Which module may import which: pure modules import no Ray, packages import downwards, and there are no cycles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "raysel"
SHELLS = {"distributed.py", "service.py"}  # the Ray modules of pure packages
PURE_PACKAGES = ("core", "gio", "gime", "factors", "dynamic", "report")
ORDER = (
    "core",
    "cluster",
    "data",
    "gio",
    "gime",
    "factors",
    "select",
    "dynamic",
    "train",
    "report",
    "workflow",
)
PURE = [
    path
    for name in PURE_PACKAGES
    for path in sorted((PACKAGE / name).rglob("*.py"))
    if path.name not in SHELLS
]


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


def test_importing_the_pure_modules_loads_no_ray():
    names = (".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in PURE)
    modules = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_package_imports_only_packages_before_it():
    wrong = []
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        package = path.relative_to(PACKAGE).parts[0]
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("raysel.") else None
            if other in ORDER and ORDER.index(other) > ORDER.index(package):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_no_module_imports_itself_through_others():
    """Imports inside functions count too; those for type checkers alone do not."""
    modules = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            ):
                node.body = []
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {each if each in modules else node.module for each in inner}
        graph[name] = (found & modules.keys()) - {name, "raysel"}  # whose names are loaded when they are used
    layered = ("raysel.workflow", "raysel.core", "raysel.cluster", "raysel.report", "raysel.dynamic")
    graph = {name: found for name, found in graph.items() if name.startswith(layered)}
    while graph:  # take away modules that import none of the rest
        free = {name for name, found in graph.items() if not found & graph.keys()}
        assert free, f"these modules import each other in a circle: {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in free}


OTHERS_PRIVATE = {  # which torch, Ray, Lightning and Hugging Face offer no public name for
    "client._do_request", "functools._lru_cache_wrapper", "value._function", "dataset._logical_plan", "trainer._train_batch_size",
    "callback._save_on_train_epoch_end", "callback._every_n_train_steps", "callback._train_time_interval",
}  # fmt: skip


def test_no_module_uses_private_members_of_another():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        own |= {
            node.target.id
            for node in nodes
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        used = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
        of_self = [node for node in used if ast.unparse(node.value) in ("self", "cls", "super()")]
        own |= {node.attr for node in of_self if isinstance(node.ctx, ast.Store)} | {
            "_fields",
            "_replace",
        }  # of tuples
        found |= {ast.unparse(node) for node in used if node not in of_self and node.attr not in own}
    assert found == OTHERS_PRIVATE


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
