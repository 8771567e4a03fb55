"""log.txt in a run directory: what the commands wrote, with times, on a disk and on an object store."""

from __future__ import annotations

import logging
import re

import pytest

from raysel.core import storage
from raysel.errors import DataError, RunError
from raysel.workflow import log
from raysel.workflow.log import logged


def lines(file):
    found = storage.read_bytes(file).decode().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  ", line) for line in found)
    return [line[27:] for line in found]


def test_lines_that_are_missing_at_the_end_are_said(tmp_path, monkeypatch, caplog):
    file = tmp_path / "log.txt"
    with monkeypatch.context() as patch, logged(file) as written:
        patch.setattr(log, "write_text", fails)
        written.write("one")
        patch.undo()
    assert lines(file) == ["one"] and not caplog.records  # written at the end
    with monkeypatch.context() as patch, pytest.raises(DataError), logged(file) as written:
        written.write("two")
        patch.setattr(log, "write_text", fails)
        raise DataError("Column 'x' is missing.")
    assert lines(file) == ["one", "two"]
    said = f"{file} lacks its last lines, because it could not be written (The store cannot be reached)."
    assert caplog.messages == [said]


def check(folder, monkeypatch):
    file = folder / "log.txt"
    with logged(file) as first:
        first.write("embed  1.0 s\na table\n  of lines")
        logging.getLogger("raysel.data.listing").warning("%s files were skipped.", 3)
        logging.getLogger("raysel.data.listing").info("not shown")
        assert lines(file) == ["embed  1.0 s", "a table", "  of lines", "3 files were skipped."]
    with pytest.raises(DataError), logged(file):
        raise DataError("Column 'x' is missing.\nmore")
    with pytest.raises(KeyboardInterrupt), logged(file) as third:
        with monkeypatch.context() as patch:  # a write that fails is made up for by the next
            patch.setattr(log, "write_text", fails)
            third.write("one")
        third.write("two")
        raise KeyboardInterrupt
    logging.getLogger("raysel").warning("after the end")
    assert lines(file)[4:] == ["error: Column 'x' is missing.", "one", "two", "error: KeyboardInterrupt."]


def fails(*given):
    raise RunError("The store cannot be reached.")


def test_a_log_on_a_disk(tmp_path, monkeypatch):
    check(tmp_path, monkeypatch)


def test_a_log_on_an_object_store(s3, monkeypatch):
    check(storage.output(s3), monkeypatch)
