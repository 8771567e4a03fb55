"""The documentation names only what exists: files, links, keys, options, functions. Its examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml

import raysel
from raysel.cli import cli
from raysel.workflow import config, yaml_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORKFLOW = {
    "name": "example",
    "pool": {"path": "pool.parquet", "label": "label"},
    "target": {"path": "target.parquet"},
    "train": {"model": "models.py:mlp", "input": "pixels"},
}
GENERATED = ("workflows/data/", "benchmarks/results/")  # by scripts, so not in the repository
NAMED = re.compile(
    r"(?<![\w/.])((?:workflows|benchmarks|docs|deploy|tests|raysel)/[\w/-]+\.(?:py|yaml|yml|md|json|parquet))\b"
)


class Block(NamedTuple):
    """A fenced block: its page, the number of its first line, its language, the test that it is marked for."""

    page: Path
    line: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fenced(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    pattern = r"(?:^<!-- test: (run(?: on ray)?) -->\n)?^( *)```(\w*)\n(.*?)^\2```$"
    for found in re.finditer(pattern, text, re.S | re.M):
        marker, indent, language, inside = found.groups()
        lines = "".join(line.removeprefix(indent) for line in inside.splitlines(keepends=True))
        yield Block(page, text[: found.start(4)].count("\n") + 1, language, marker or "", lines)


BLOCKS = [block for page in PAGES for block in fenced(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- links and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    for name in NAMED.findall(page.read_text(encoding="utf-8")):
        assert name.startswith(GENERATED) or (ROOT / name).exists(), f"{page.name} names {name}"


def test_every_page_that_code_names_exists():
    files = [
        p for folder in ("raysel", "workflows", "benchmarks", "deploy") for p in (ROOT / folder).rglob("*.*")
    ]
    for file in [ROOT / "cluster.yaml", *files]:
        if file.suffix in (".py", ".yaml"):
            for name in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{file.relative_to(ROOT)} names {name}"


def test_every_page_is_in_the_navigation_of_the_site():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "deploy/mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {
        str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")
    }


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    missing = [
        name for name in raysel.__all__ if name != "__version__" and f"::: raysel.{name}\n" not in text
    ]
    assert not missing


# ---- generated pages -----------------------------------------------------------------------------------------


def test_the_page_of_workflow_keys_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs/make_reference.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = made.render()
    assert text == made.PAGE.read_text(encoding="utf-8"), "run python docs/make_reference.py"
    known = set(re.findall(r"^##+ (.*)$", text, re.M))
    for name in [*config.keys(config.Workflow)]:
        assert f"  {name} " in text or any(f"`{name}`" in heading for heading in known)


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        str(ROOT / "deploy/mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'id="raysel.GIO.select"' in (tmp_path / "reference/selectors.html").read_text(encoding="utf-8")


# ---- command lines -------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Every ``raysel`` command line in a shell block or in code within a sentence."""
    found = []
    for block in BLOCKS:
        if block.language == "bash":
            joined = block.text.replace("\\\n", " ")
            found += [(str(block), line) for line in joined.splitlines() if not line.lstrip().startswith("#")]
    for page in PAGES:
        found += [(page.name, code) for code in re.findall(r"`(raysel [^`]+)`", prose(page))]
    pattern = r"(?:^|[\s\"/])raysel ((?:[a-z]|-h|--help).*?)(?=$|&&|\||;|\"|  #|\s#)"
    return [(where, rest) for where, line in found for rest in re.findall(pattern, line)]


def test_every_command_line_has_options_that_exist():
    lines = commands()
    assert len(lines) > 40
    for where, line in lines:
        name, *arguments = shlex.split(line)
        assert name in cli.commands, f"{where}: raysel {line}"
        command = cli.commands[name]
        words = [word for word in arguments if not word.startswith("-")]
        try:
            with command.make_context(name, list(arguments), parent=_group()) as context:
                checked = context.params
        except click.MissingParameter:
            assert not words, f"{where}: raysel {line}"
            continue
        except click.UsageError as error:
            pytest.fail(f"{where}: raysel {line}: {error.format_message()}")
        workflow = checked.get("workflow")
        if workflow is not None and str(workflow).startswith("workflows/"):
            flow = config.load(ROOT / workflow, list(checked["overrides"]))
            if name == "compare":
                from raysel.workflow.compare import policy_names

                policy_names(flow, [one for one in checked["policies"].split(",") if ":" not in one])


def test_no_command_line_is_joined_with_the_next():
    for block in (one for one in BLOCKS if one.language == "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            assert not re.match(r"\s*--", line) and not re.search(r"#.* (raysel|python|pip) ", line), (
                f"{block}: {line}"
            )


def _group():
    """The group's context, from which commands take the names of their help option."""
    return click.Context(cli, info_name="raysel", **cli.context_settings)


def test_a_wrong_command_line_would_be_found():
    assert "nothing" not in cli.commands
    with pytest.raises(click.UsageError):
        cli.commands["run"].make_context("run", ["workflow.yaml", "--nothing"], parent=_group())


# ---- workflows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_every_yaml_block_is_a_part_of_a_workflow(block):
    tree = yaml.load(block.text, Loader=yaml_file._Loader)
    flow = config.parse({**WORKFLOW, **tree}, ROOT / "docs")
    assert flow.describe()


# ---- Python --------------------------------------------------------------------------------------------------


def dotted(node: ast.AST) -> list[str]:
    """``["raysel", "gio", "Stop"]`` for the expression ``raysel.gio.Stop``, else empty."""
    if isinstance(node, ast.Name):
        return [node.id] if node.id == "raysel" else []
    above = dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*above, node.attr] if above else []


def names_of_raysel(tree: ast.AST) -> Iterator[list[str]]:
    """What a block reads and imports of raysel."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "raysel":
            yield from ([*str(node.module).split("."), alias.name] for alias in node.names)
        elif path := dotted(node):
            yield path


def resolve(path: list[str]) -> Any:
    """The object; its syntax tree if a package that its module needs is not installed."""
    found: Any = raysel
    for number, name in enumerate(path[1:], 2):
        if isinstance(found, types.ModuleType) and not hasattr(found, name):
            try:
                importlib.import_module(".".join(path[:number]))
            except ModuleNotFoundError as error:
                raise AssertionError(f"{'.'.join(path)} does not exist") from error
            except ImportError:
                tree = ast.parse(ROOT.joinpath(*path[:number]).with_suffix(".py").read_text(encoding="utf-8"))
                defined = {
                    node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                }
                return defined[path[number]] if len(path) > number else tree
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_compiles_and_names_what_exists(block):
    tree = ast.parse(block.text)
    compile(tree, str(block), "exec")
    for path in names_of_raysel(tree):
        resolve(path)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if path := dotted(call.func):
            given = {keyword.arg for keyword in call.keywords if keyword.arg}
            parameters = inspect.signature(resolve(path)).parameters
            takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            assert takes_any or given <= parameters.keys(), f"{block}: {ast.unparse(call.func)}: {given}"


def run_page(page: Path, marker: str) -> None:
    """Run the marked blocks of a page one after another, in one namespace."""
    import torch

    data = torch.utils.data.TensorDataset(torch.randn(96, 4), torch.arange(96) % 3)
    module = types.ModuleType("documented")
    module.__dict__.update(dataset=data, make_model=lambda: torch.nn.Linear(4, 3))
    sys.modules["documented"] = module  # dataclasses look their module up
    try:
        for block in (b for b in PYTHON if b.page == page and b.marker == marker):
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), module.__dict__)
    finally:
        del sys.modules["documented"]


def marked(marker: str) -> list[Path]:
    return [page for page in PAGES if any(b.page == page and b.marker == marker for b in PYTHON)]


@pytest.mark.parametrize("page", marked("run"), ids=lambda page: page.stem)
def test_marked_examples_run(page):
    run_page(page, "run")


@pytest.mark.slow  # most of them train
@pytest.mark.parametrize("page", marked("run on ray"), ids=lambda page: page.stem)
def test_marked_examples_run_on_ray(page, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem == "quickstart":
        shutil.copytree(ROOT / "workflows", "workflows", ignore=shutil.ignore_patterns("data"))
        subprocess.run([sys.executable, "workflows/digits.py"], check=True, capture_output=True)
    run_page(page, "run on ray")
