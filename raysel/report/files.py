"""Writing a file so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path

from raysel.errors import RunError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text to a temporary file beside ``path`` and move it into place.

    Returns the path. Raises RunError when the folder is missing or cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"Cannot write {path} ({reason}); check that its folder exists and is writable."
        ) from error
    return path
