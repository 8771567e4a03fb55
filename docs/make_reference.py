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

A *workflow* is a YAML file that names the data, the methods and the model. This page lists all keys of a workflow. For
each section and each method, `raysel methods NAME` prints the same text. The page is generated from the code by
`python docs/make_reference.py`.

- Paths in a workflow are relative to the folder of the workflow file.
- `raysel run WORKFLOW --set key.path=value` changes one key for this run.
- A misspelt key raises an error that suggests the most similar key.
- `raysel init classify` writes a workflow with a comment for each key.
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
    """A heading, and what the command line prints, without the line that repeats the heading.

    The purpose of one section is left out where the heading names several, which have the same keys.
    """
    text = one_method(name).partition("\n\n")[2]
    text = text.partition("\n\n")[2] if "`, `" in title else text
    return f"{'#' * level} {title}\n\n```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
