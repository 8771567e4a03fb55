"""Words that a reader would stumble over are not used in documentation, docstrings, comments and messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("raysel", "workflows", "benchmarks")
INSTEAD = {
    r"h[au]ngs? on": "depends on",
    r"go(es|ing|ne)? on": "continues, resumes",
    r"(is|are|was|were) told(?! apart)|tells? each other": "receives",
    r"answers|(must|should|let it|that) answer": "returns",
    r"asks (for|it|to|every)|(is|are|was|were) asked( for)?": "reads, requests, calls",
    r"anew": "again",
    r"beside": "next to, in addition to",
    r"in turns?": "one after another",
    r"mend(s|ed|ing)?": "fix",
    r"what is left": "the rest",
    r"whole(?!\s+(numbers?|groups?|clusters?|thousands)\b)(?<!as a whole)": "complete",
    r"(pure|ray) rooms?|front door|house|(no|has|finds?|enough) room": "package, module, interface; resources",
    r"(one|bytes|bits|rows|labels?|sums?|few|tasks?|seconds) an? "
    r"(class|sample|row|worker|shard|group|second|epoch|step|unit|task|process|batch|block|chunk|rank)": "per",
    r"of this machine, this once|oftener": "plain words",
}
PATTERN = re.compile("|".join(rf"(?P<w{at}>\b(?:{words})\b)" for at, words in enumerate(INSTEAD)), re.I)


def prose(path: Path) -> str:
    """Markdown without code blocks and code in a line; YAML and other text as it is."""
    text = path.read_text()
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S) if path.suffix == ".md" else text


def comments(source: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def strings(tree: ast.AST) -> Iterator[tuple[ast.Constant, bool]]:
    """Every string, and whether it is a docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, id(node) in docstrings


def texts() -> dict[str, str]:
    """What people read in a file: documents, and the docstrings and comments of Python files."""
    found = {}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        found[str(path.relative_to(ROOT))] = prose(path)
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*")):
        name = str(path.relative_to(ROOT))
        if path.suffix == ".py":
            source = path.read_text()
            docstrings = [node.value for node, documents in strings(ast.parse(source)) if documents]
            found[name] = "\n".join([*docstrings, *comments(source)])
        elif path.suffix in (".yaml", ".md") and not {"data", "runs"} & set(path.parts):
            found[name] = prose(path)
    return found


def messages() -> dict[str, str]:
    """Every other string of a Python file: errors, help, captions."""
    return {
        str(path.relative_to(ROOT)): "\n".join(
            node.value for node, documents in strings(ast.parse(path.read_text())) if not documents
        )
        for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    }


def found(text: str) -> list[str]:
    words = list(INSTEAD.values())
    return [
        f"'{match[0]}' in '{' '.join(text[max(match.start() - 40, 0) : match.end() + 30].split())}': "
        f"{words[int(str(match.lastgroup)[1:])]}"
        for match in PATTERN.finditer(text)
    ]


@pytest.mark.parametrize("read", [texts, messages])
def test_plain_words(read):
    assert not {name: words for name, text in read().items() if (words := found(text))}


def test_a_word_is_found_and_similar_ones_are_not():
    assert found("The plan hangs on the seed.") and found("one label a sample") and found("Whole rows.")
    assert not found("a whole number of rows, one per sample; it depends on the group as a whole")
