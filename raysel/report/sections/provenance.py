"""What a page was made from: the configuration and the versions of the libraries."""

from __future__ import annotations

import json

from raysel.report import html
from raysel.report.results import CompareResults, RunResults


def configuration(results: RunResults | CompareResults) -> str:
    """Return the section with the complete configuration, folded."""
    if not results.config:
        return ""
    text = json.dumps(results.config, indent=2, ensure_ascii=False, default=str)
    return html.section(
        "Configuration",
        f"<details>\n<summary>Show the complete configuration</summary>\n<pre>{html.text(text, lines=True)}</pre>\n</details>",
    )


def versions(results: RunResults | CompareResults) -> str:
    """Return the footer with the versions of the libraries that the run used."""
    used = {**({"raysel": results.raysel} if results.raysel else {}), **results.versions}
    if not used:
        return ""
    words = " · ".join(f"{html.text(name)}{html.NBSP}{html.text(version)}" for name, version in used.items())
    return f"<footer>\n<h2>Versions</h2>\n<p>{words}</p>\n</footer>"
