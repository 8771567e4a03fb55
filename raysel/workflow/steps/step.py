"""What a step of a workflow is."""

from __future__ import annotations

from typing import Any, ClassVar

from raysel.core.storage import Place
from raysel.workflow.directory import RunDirectory
from raysel.workflow.inputs import Look


class Step:
    """One part of a run. Its result is a folder of files and a dict of JSON types, the answer.

    A step holds its settings. It runs once per key, so the key must contain everything that decides the result.

    Attributes
    ----------
    name : str
        Beginning of the folder's name; unique within a run.
    version : int
        Increased when the same key would give another result.
    selects : bool
        Whether the step saves a Selection in ``selection``. The rest of the run uses its rows.
    resumable : tuple of str
        Names in the folder that are kept after an interruption, so that the next attempt resumes from them.
    kept : tuple of str
        Names that are kept too, which the next attempt completes.
    """

    name: str
    version: ClassVar[int] = 1
    selects: bool = False
    resumable: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """Name on the progress line."""
        return self.name

    @property
    def about(self) -> str:
        """What the step makes, in a few words for the progress line."""
        raise NotImplementedError

    def check(self, look: Look) -> None:
        """Raise ConfigError or DataError for mistakes that the schemas of the files show."""

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return everything that decides the result, as JSON types."""
        raise NotImplementedError

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Fill the empty folder ``directory`` and return the answer, as JSON types."""
        raise NotImplementedError
