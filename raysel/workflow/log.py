"""The log in a run directory: what the commands wrote, with the time of each line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone

from raysel.core.storage import Place, read_bytes, write_text
from raysel.errors import RayselError, reason_of

LOG = "log.txt"


class Log(logging.Handler):
    """Lines of this and of earlier commands. The file is written again with each line: object stores cannot append."""

    def __init__(self, file: Place) -> None:
        super().__init__()
        self._file, self._text, self._fault = file, "", ""
        with suppress(FileNotFoundError):
            self._text = read_bytes(file).decode(errors="replace")

    def write(self, text: str) -> None:
        """Add lines. If they cannot be written now, they are written with the next line."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with self.lock:  # type: ignore[union-attr]
            self._text += "".join(f"{time}  {line}\n" for line in text.splitlines())
            self._write()

    def _write(self) -> None:
        try:
            write_text(self._file, self._text)
            self._fault = ""
        except (RayselError, OSError) as error:
            self._fault = reason_of(error)

    def end(self) -> None:
        """Write what could not be written so far; warn if it cannot be written now either."""
        if self._fault:
            self._write()
        if self._fault:
            logging.getLogger(__name__).warning(
                f"{self._file} lacks its last lines, because it could not be written ({self._fault})."
            )

    def emit(self, record: logging.LogRecord) -> None:
        """Add a warning of raysel."""
        self.write(record.getMessage())


@contextmanager
def logged(file: Place) -> Iterator[Log]:
    """Add warnings of raysel and the error that ends the block to a log, next to what is written to it.

    A warning says at the end if the last lines could not be written.
    """
    log, logger = Log(file), logging.getLogger("raysel")
    logger.addHandler(log)
    try:
        yield log
    except BaseException as error:
        log.write(f"error: {reason_of(error)}.")
        raise
    finally:
        logger.removeHandler(log)
        log.end()
