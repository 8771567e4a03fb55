"""Writing a file so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path

from raysel.errors import RunError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """:func:`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write to a temporary file beside ``path`` and move it into place.

    Returns the path. Raises RunError when the folder is missing or cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
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
