"""Pick some rows for every reason of the selection, which the report shows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.cluster.blocks import gather
from raysel.core.hashing import hash_ids
from raysel.core.storage import Place
from raysel.data.decode import is_text
from raysel.data.row_index import ID
from raysel.data.vectors import to_numpy
from raysel.errors import DataError
from raysel.report.results import ReasonShown, ShownRow
from raysel.report.usage import images
from raysel.selection import Selection
from raysel.workflow.config import Workflow
from raysel.workflow.directory import RunDirectory
from raysel.workflow.steps.arrays import class_column, made
from raysel.workflow.steps.step import Step

_REASONS, _SHOWN = 5, 12  # per selected and dropped rows; rows per reason
_LETTERS = 300  # of a text


@dataclass(frozen=True)
class Gallery(Step):
    """Examples of selected and dropped rows. Its seconds are the report's expense, not the selection's."""

    name: str = "gallery"

    @property
    def about(self) -> str:
        """What the step makes."""
        return "examples of selected and dropped rows, for the report"

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Rows, the steps that selected them, and the column that is shown."""
        return {
            "rows": run.digests("pool"),
            "selected": [
                done.directory.name
                for name, done in run.finished.items()
                if name.startswith(("select", "gime"))
            ],
            "validation": run.drawn and run.drawn.key,
            "column": _column(run.workflow),
            "seed": run.workflow.seed,
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return ``reasons``; empty if the rows are neither images nor texts."""
        column, selection = _column(run.workflow), run.rows
        assert selection is not None
        if column is None:
            return {"reasons": []}
        groups = examples(selection, run.workflow.seed)
        wanted = np.unique(np.concatenate([ids for *_, ids in groups]))
        found = gather(
            Selection.of(wanted).rows(run.read("pool").select_columns([ID, column])), [ID, column], "pool"
        )
        shown = _shown(found, column)
        return {
            "reasons": [
                asdict(ReasonShown(reason, kept, rows, tuple(shown[i] for i in ids.tolist())))
                for reason, kept, rows, ids in groups
                if shown
            ]
        }


def examples(selection: Selection, seed: int) -> list[tuple[str, bool, int, np.ndarray]]:
    """Return the most frequent reasons: text, whether the rows were selected, their number, and the ids of some of them.

    Reasons that differ only in their numbers are one reason.
    """
    found = []
    for kept, table in ((True, selection.table), (False, selection.dropped)):
        if table is None or not table.num_rows:
            continue
        coded = (
            table["reason"].combine_chunks().dictionary_encode()
            if not pa.types.is_dictionary(table["reason"].type)
            else table["reason"].combine_chunks()
        )
        texts = _merged(coded.dictionary.to_pylist())
        names = list(dict.fromkeys(texts))
        codes = np.array([names.index(text) for text in texts], np.int64)[coded.indices.to_numpy()]
        ids = table[ID].to_numpy()
        draws = hash_ids(ids, seed)
        for code, rows in Counter(codes.tolist()).most_common(_REASONS):
            here = np.flatnonzero(codes == code)
            found.append((names[code], kept, rows, np.sort(ids[here[np.argsort(draws[here])[:_SHOWN]]])))
    return found


def _merged(reasons: list[str]) -> list[str]:
    """Return the reasons, with # in place of the numbers where several reasons differ only in them."""
    patterns = [re.sub(r"-?\d+([.,]\d+)*(e[+-]?\d+)?", "#", text) for text in reasons]
    count = Counter(patterns)
    return [one if count[pattern] == 1 else pattern for one, pattern in zip(reasons, patterns, strict=True)]


def _column(workflow: Workflow) -> str | None:
    """Return the only input of the model; None if there are several."""
    task = made(workflow)
    inputs = [name for name in task.columns if name not in (class_column(task), workflow.pool.label)]
    return inputs[0] if len(inputs) == 1 else None


def _shown(table: pa.Table, column: str) -> dict[int, ShownRow]:
    """Return what is shown of every row; nothing if the column holds neither images nor texts."""
    ids = table[ID].to_pylist()
    if is_text(table[column].type):
        texts = [" ".join((text or "").split())[:_LETTERS] for text in table[column].to_pylist()]
        return {i: ShownRow(i, text=text) for i, text in zip(ids, texts, strict=True)}
    try:
        pictures = images(to_numpy(table[column], column))
    except DataError:
        return {}
    return {i: ShownRow(i, image=picture) for i, picture in zip(ids, pictures or [], strict=False)}
