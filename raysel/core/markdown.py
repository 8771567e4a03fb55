"""Text inside Markdown."""

from __future__ import annotations

import re


def literal(text: object) -> str:
    r"""Return one line that Markdown shows as it is: no markup, no HTML, no end of a table's cell.

    Examples
    --------
    >>> literal("a|b <script>")
    'a\\|b &lt;script>'
    """
    line = " ".join(str(text).split())
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", line)
    line = re.sub(r"([\\`|\[\]])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;")
