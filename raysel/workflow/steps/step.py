"""What a step of a workflow is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from raysel.workflow.directory import RunDirectory
from raysel.workflow.inputs import Look


class Step:
    """One part of a run, whose result is a folder and an answer.

    A step holds its settings. It is run once per key: everything that decides the result has to be in the key.

    Attributes
    ----------
    name : str
        Beginning of the folder's name; unique within a run.
    version : int
        Raised when the same key would give another result.
    selects : bool
        Whether the step leaves a Selection in ``selection``, of whose rows the rest of the run is made.
    resumable : tuple of str
        Names in the folder that an interrupted attempt leaves and the next one continues from.
    """

    name: str
    version: ClassVar[int] = 1
    selects: bool = False
    resumable: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """Name on the progress line."""
        return self.name

    @property
    def about(self) -> str:
        """What the step makes, in a few words for the progress line."""
        raise NotImplementedError

    def check(self, look: Look) -> None:
        """Raise ConfigError or DataError for what the files' schemas show to be wrong."""

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return everything that decides the result, as JSON types."""
        raise NotImplementedError

    def run(self, run: RunDirectory, directory: Path) -> dict[str, Any]:
        """Fill the empty folder ``directory`` and return the answer, as JSON types."""
        raise NotImplementedError
