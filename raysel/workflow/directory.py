"""The run directory: whose it is, which steps are finished in it, and what they left.

run/
  manifest.json            format, name and versions
  index/ROLE.json          the order of the input files, which fixes every row's id
  inputs/ROLE/             input files that are not Parquet, as Parquet
  steps/NAME-KEY/          one folder per step; KEY is a digest of everything that decides its result; done.json is last
  results/DIGEST.json      results of every configuration that was run here
  results.json             results of the last one, which report.html shows
  log.txt                  what the commands wrote, with the time of each line
  compare.json, .md, .png, .html   what ``raysel compare`` leaves, in the same directory and from the same steps
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

import raysel
from raysel.cluster.blocks import map_blocks
from raysel.cluster.errors import name_losses
from raysel.cluster.observe import count, observed
from raysel.cluster.shared import check_shared
from raysel.cluster.wait import alive, lost_since
from raysel.core.arrays import positions
from raysel.core.storage import (
    Place,
    entries,
    exists,
    is_folder,
    make_folder,
    modified,
    output,
    read_json,
    remove,
    write_json,
)
from raysel.core.storage import read_table as stored_table
from raysel.data.datasource import rows_of
from raysel.data.row_index import ID
from raysel.errors import DataError, RunError, first, reason_of
from raysel.selection import Selection
from raysel.workflow.config import Workflow, digest
from raysel.workflow.inputs import Input, number
from raysel.workflow.lock import LOCK, alone
from raysel.workflow.log import LOG, logged
from raysel.workflow.validation import Drawn, draw

if TYPE_CHECKING:
    from raysel.workflow.steps.step import Step

FORMAT = 2
DONE = "done.json"
_REPEAT_S = 60.0  # between two lines about a step that runs
_STARTED = "started.json"  # its time of modification is the start of the attempt
_MANIFEST, _KIND = "manifest.json", "raysel run"
_FORMAT_1 = {
    "created",
    "name",
    "seed",
    "versions",
    "config",
}  # keys of a manifest that does not say whose it is
_OURS = (  # everything else that a run or a comparison writes
    *("steps", "index", "inputs", "results", "results.json", "ledger.json", "report.html", LOG),
    *(f"compare.{kind}" for kind in ("json", "md", "png", "html")),
)


class Progress:
    """One line per step on stderr: updated in place in a terminal; elsewhere written once per minute and at its end.

    Attributes
    ----------
    log : callable
        Receives every line that stays.
    """

    def __init__(self, stream: Any = None, *, quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live, self._quiet = self._stream.isatty() and not quiet, quiet
        self._text = ""
        self.log: Callable[[str], None] = lambda text: None

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """While a step runs, write its last status once per minute, with the nodes that the cluster has lost."""
        ended, began, nodes = threading.Event(), time.monotonic(), alive()

        def repeat() -> None:
            while not ended.wait(_REPEAT_S):
                minutes = (time.monotonic() - began) / 60
                write = self.note if self._live else self.done
                write(name, f"{self._text.removesuffix(' ...')}, {minutes:.0f} min{lost_since(nodes)}")

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def note(self, name: str, text: str) -> None:
        """Show a short status of the step ``name``."""
        self._text = text
        if self._live:
            self._stream.write(f"\r\x1b[2K  {name:<14} {text}")
            self._stream.flush()

    def done(self, name: str, text: str) -> None:
        """Write a line that stays."""
        self.log(f"{name:<14} {text}")
        if self._quiet:
            return
        self._stream.write(f"{chr(13) + chr(27) + '[2K' if self._live else ''}  {name:<14} {text}\n")
        self._stream.flush()


@dataclass(frozen=True)
class Done:
    """A finished step: its folder, its answer, the seconds that it took, and whether an earlier run finished it.

    The seconds include those of interrupted attempts whose work was resumed.
    """

    directory: Place
    answer: dict[str, Any]
    seconds: float
    reused: bool = False


@dataclass
class RunDirectory:
    """A run directory that this process holds.

    Attributes
    ----------
    workflow, out, progress
        The workflow, the directory, and where progress is shown.
    inputs : dict of str to Input
        Numbered rows by role.
    finished : dict of str to Done
        Steps of this run that are finished, by name.
    drawn : Drawn or None
        Validation rows that were drawn from the target or the pool.
    base, rows : Selection or None
        Rows of the pool that may be trained on, and those that the selectors have kept so far; None for all.
    check_held : callable
        Raises RunError if this process no longer holds the directory.
    """

    workflow: Workflow
    out: Place
    progress: Progress
    inputs: dict[str, Input] = field(default_factory=dict)
    finished: dict[str, Done] = field(default_factory=dict)
    drawn: Drawn | None = None
    base: Selection | None = None
    rows: Selection | None = None
    check_held: Callable[[], None] = lambda: None

    def place(self, step: Step) -> tuple[Place, Any, Done | None]:
        """Folder and key of a step, and what it left there; None if it did not finish."""
        key = {"step": step.name, "version": step.version, "raysel": raysel.__version__, **step.key(self)}
        directory = self.out / "steps" / f"{step.name}-{digest(key)}"
        return directory, key, _finished(directory)

    def do(self, step: Step) -> Done:
        """Run a step, or take what it left when it ran before with the same key."""
        directory, key, done = self.place(step)
        if done is not None:
            self.progress.done(step.title, f"{'reused':>9}")
        else:
            done = self._run(step, directory, key)
        return self.take(step, done)

    def take(self, step: Step, done: Done) -> Done:
        """Note that a step is finished."""
        self.finished[step.name] = done
        if step.selects:
            self.rows = Selection.load(done.directory / "selection")
        return done

    def _run(self, step: Step, directory: Place, key: Any) -> Done:
        self.check_held()
        earlier = _spent(directory, step.resumable)
        for left in entries(directory):
            if left not in (*step.resumable, *step.kept):  # what an interrupted attempt may continue from
                remove(directory / left)
        make_folder(directory)
        write_json(directory / "key.json", key)
        write_json(directory / _STARTED, {"earlier": earlier})
        self.progress.note(step.title, f"{step.about} ...")
        before, began = self._stamps(), time.perf_counter()
        with name_losses(step.title), self.progress.running(step.title), observed(step.title):
            answer = step.run(self, directory)
            if step.selects:
                count("raysel_rows_selected", len(Selection.load(directory / "selection")))
        done = Done(directory, answer, earlier + time.perf_counter() - began)
        if self._stamps() != before:
            for entry in self.inputs.values():
                entry.check_unchanged(step.title)
        self.keep(done)
        self.progress.done(step.title, f"{done.seconds:7.1f} s  {step.about}")
        return done

    def keep(self, done: Done) -> None:
        """Write a step's answer, after which it counts as finished."""
        self.check_held()
        make_folder(done.directory)
        found = {"answer": done.answer, "seconds": done.seconds}
        write_json(done.directory / DONE, {**found, "digest": digest([done.answer, done.seconds])})

    def read(self, role: str) -> Dataset:
        """Rows of a role as its files hold them."""
        return self.inputs[role].read()

    def pool(self) -> Dataset:
        """Rows of the pool that are still selected, without the validation rows."""
        return self.among(self.rows)

    def among(self, rows: Selection | None, columns: Sequence[str] | None = None) -> Dataset:
        """Rows of the pool that a selection names, with some columns of the files or all; the others are not read."""
        pool = self.read("pool")
        if columns is not None:
            pool = pool.select_columns([ID, *columns])
        return pool if rows is None else rows.rows(pool)

    def some_rows(self, role: str, ids: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return a few rows of a role by their ids, on the driver. Only row groups that hold such rows are read."""
        entry = self.inputs[role]
        pieces = entry.index.pieces()
        if ID not in entry.schema.names:  # then the ids are positions
            ends = np.searchsorted(
                np.sort(ids), [[piece.start, piece.start + piece.rows] for piece in pieces]
            )
            pieces = [piece for piece, (start, end) in zip(pieces, ends, strict=True) if start < end]
        return pa.concat_tables(map_blocks(rows_of, pieces, ids, [ID, *columns]))

    def target(self) -> Dataset:
        """Rows of the target, without the validation rows."""
        target = self.read("target")
        if self.drawn is None or self.drawn.role != "target":
            return target
        return self.drawn.selection().rows(target)

    def selectable(self, role: str) -> Dataset:
        """Rows of a role as the selectors receive them."""
        return {"pool": self.pool, "target": self.target}.get(role, lambda: self.read(role))()

    def vectors(self, role: str) -> Dataset:
        """Vectors of the pool rows that are still selected, or of another role."""
        found = raysel.read(str(self.finished["embed"].directory / "vectors" / role))
        return self.rows.rows(found) if role == "pool" and self.rows is not None else found

    def count(self, rows: Selection | None) -> int:
        """Return the number of rows; of the complete pool for None."""
        return self.inputs["pool"].count if rows is None else len(rows)

    def of_the_pool(self, chosen: Selection, before: Selection | None = None) -> Selection:
        """Return the selection, made from the rows of an earlier one or from all, as one of the pool's files.

        Raises
        ------
        DataError
            If it was made from other rows, or holds rows that the earlier one had left out.
        """
        pool = self.inputs["pool"]
        if chosen.pool is not None:
            chosen.pool.check(pool.identity)
        known = chosen.ids < pool.count if before is None else positions(before.ids, chosen.ids)[1]
        strange = chosen.ids[~known]
        if len(strange):
            raise DataError(
                f"The selector returned {len(strange):,} rows that it was not given (sample_id {first(strange)}); it must "
                "select only from the rows that it was given."
            )
        info = {"method": "own", **chosen.info, "pool_rows": pool.count}
        chosen = replace(chosen, pool=pool.identity, info=info)
        return chosen if before is None else chosen.after(before)

    def digests(self, *roles: str) -> dict[str, str]:
        """Part of a key: content and order of the roles' files."""
        return {role: self.inputs[role].digest for role in roles if role in self.inputs}

    def _stamps(self) -> dict[str, tuple[int, ...]]:
        """Size and times of every local input file."""
        found: dict[str, tuple[int, ...]] = {}
        for entry in self.inputs.values():
            for file in entry.index.files:
                try:
                    stat = os.stat(file.path)
                except OSError:  # on an object store, or gone, which the reading says
                    continue
                found[file.path] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        return found


def digest_of(rows: Selection | None) -> str:
    """Part of a key: the selected rows and their weights."""
    return "all" if rows is None else rows.digest()


def _spent(directory: Place, resumable: Sequence[str]) -> float:
    """Return the seconds that interrupted attempts took, up to the last file that the next one resumes from."""
    started = directory / _STARTED
    try:
        earlier, began = float(read_json(started)["earlier"]), modified(started)
    except FileNotFoundError:
        return 0.0
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise damaged(started, error) from error
    last = max((modified(directory / name) for name in resumable), default=0.0)
    return earlier + max(last - began, 0.0) if last else 0.0


def _finished(directory: Place) -> Done | None:
    file = directory / DONE
    try:
        left = read_json(file)
        if "digest" not in left:  # by an earlier version; the step runs again
            return None
        if left["digest"] != digest([left["answer"], left["seconds"]]):
            raise ValueError("The content does not match the digest.")
        return Done(directory, left["answer"], left["seconds"], reused=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(file, error) from error


def damaged(file: Place, error: Exception) -> RunError:
    """Return the error for a file of a step's folder that cannot be read."""
    return RunError(f"{file} is damaged ({reason_of(error)}); remove the folder {file.parent} and run again.")


def read_table(file: Place) -> pa.Table:
    """Return a Parquet file of a step's folder. Raises RunError if it is damaged."""
    try:
        return stored_table(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(file, error) from error


# ---- whose directory it is -----------------------------------------------------------------------------------


@contextmanager
def open_run(
    workflow: Workflow,
    out: str | os.PathLike[str] | None,
    progress: Progress | None = None,
    *,
    fresh: bool = False,
) -> Iterator[RunDirectory]:
    """Hold a run directory, its inputs' rows numbered.

    Parameters
    ----------
    out : path or URI, optional
        By default ``runs/NAME``.
    fresh : bool
        Remove what earlier runs left in it.

    Raises
    ------
    ConfigError
        If ``out`` cannot be written to.
    RunError
        If the directory holds something else, was written in another format, another process is at work in it, or a
        node of the cluster does not see it.
    """
    directory = (Path("runs") / workflow.name if out is None else output(out)).resolve()
    progress = progress or Progress()
    _check(directory, fresh)
    make_folder(directory)
    with ExitStack() as held:
        check_held = held.enter_context(alone(directory, lambda text: progress.done("waiting", text)))
        _check(directory, fresh)  # another process may have come first
        if fresh:
            for name in (
                *_OURS,
                _MANIFEST,
            ):  # the manifest last: the rest of a killed --fresh is still a run's
                remove(directory / name)
        run = RunDirectory(workflow, directory, progress, check_held=check_held)
        _claim(directory, workflow)
        log = held.enter_context(logged(directory / LOG))
        log.write(f"raysel {raysel.__version__}")
        progress.log = log.write
        check_shared(directory)
        run.inputs, changed = number(workflow, directory, lambda text: run.progress.note("inputs", text))
        for role, entry in run.inputs.items():
            for sentence in entry.sentences():
                run.progress.done(role, sentence)
        for sentence in changed:
            run.progress.done("inputs", sentence)
        run.drawn = draw(workflow, run.inputs)
        if run.drawn is not None and run.drawn.role == "pool":
            run.base = run.rows = run.of_the_pool(run.drawn.selection())
        yield run


def manifest(directory: Place) -> dict[str, Any] | None:
    """Manifest of a run directory, None if it is not one. Raises RunError if it is damaged or of another format."""
    path = directory / _MANIFEST
    found = _read_manifest(path)
    if found is None:
        return None
    if "created" not in found:
        raise RunError(f"{path} is damaged; use --fresh to start over, or choose another --out.")
    if found.get("format") != FORMAT:
        raise RunError(
            f"{directory} was written in format {found.get('format', 1)}, but this version of raysel uses format {FORMAT}; "
            "use --fresh to start over, or choose another --out."
        )
    return found


def _read_manifest(path: Place) -> dict[str, Any] | None:
    """Return the manifest of a run of raysel; {} for a damaged one, None for another file or none."""
    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        # A manifest is written completely or not at all, so that this is one only where a run has left its steps too.
        return {} if is_folder(path.parent / "steps") and is_folder(path.parent / "index") else None
    ours = isinstance(found, dict) and (found.get("kind") == _KIND or found.keys() >= _FORMAT_1)
    return found if ours else None


def _check(directory: Place, fresh: bool) -> None:
    """Raise RunError unless the directory is empty, missing, or a run's."""
    if not exists(directory):
        return
    if is_folder(directory) and _read_manifest(directory / _MANIFEST) is not None:
        if not fresh:
            manifest(directory)
        return
    # A process that was killed in its first moments leaves no more than this.
    if not is_folder(directory) or any(
        not name.startswith((LOCK, f".{_MANIFEST}.")) for name in entries(directory)
    ):
        raise RunError(f"{directory} is not empty and not a run directory of raysel; choose another --out.")


def _claim(directory: Place, workflow: Workflow) -> None:
    """Make the directory a run's."""
    if manifest(directory) is None:
        found = {
            "kind": _KIND,
            "format": FORMAT,
            "name": workflow.name,
            "created": now(),
            "versions": versions(),
        }
        write_json(directory / _MANIFEST, found)
    for name in ("index", "steps", "results"):
        make_folder(directory / name)


def now() -> str:
    """Return the time in UTC, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("raysel", "ray", "torch", "numpy", "pyarrow", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = raysel.__version__ if name == "raysel" else "unknown"
    return found
