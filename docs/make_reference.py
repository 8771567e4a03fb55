"""Write guides/workflow-keys.md from the dataclasses that a workflow is built from, as `raysel methods` prints them.

python docs/make_reference.py
"""

from __future__ import annotations

from pathlib import Path

from raysel.registry import EMBEDDERS, POLICIES, SELECTORS
from raysel.workflow.methods import one_method

PAGE = Path(__file__).parent / "guides/workflow-keys.md"
SECTIONS = {
    "workflow": "All keys",
    "pool": "`pool`, `target`, `validation`, `test`",
    "embed": "`embed`",
    "gime": "`gime`",
    "factors": "`factors`",
    "train": "`train`",
}
INTRODUCTION = """# Workflow keys

This page is what `raysel methods NAME` prints for every section and every method. It is generated from the code by
`python docs/make_reference.py`. A misspelt key is an error that names the nearest known key.

A workflow is a YAML file. Paths in it are relative to its folder. `raysel run WORKFLOW --set key.path=value` changes a
key, and `raysel init classify` writes a workflow with comments.
"""


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    parts += [_section(title, 2, name) for name, title in SECTIONS.items()]
    for title, registry in (
        ("Selectors (`select.method`)", SELECTORS),
        ("Policies (`dynamic.method`)", POLICIES),
        ("Embedders (`embed.embedder`)", EMBEDDERS),
    ):
        parts.append(f"## {title}\n")
        parts += [_section(f"`{name}`", 3, name) for name in registry.builtin]
    return "\n".join(parts)


def _section(title: str, level: int, name: str) -> str:
    """A heading, and what the command line prints, without the line that repeats the heading."""
    text = one_method(name).partition("\n\n")[2]
    return f"{'#' * level} {title}\n\n```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
