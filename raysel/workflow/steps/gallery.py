"""Pick some rows for every reason of the selection, which the report shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysel.core.arrow import combined
from raysel.core.hashing import hash_ids
from raysel.core.storage import Place
from raysel.data.decode import decode, decoder_versions, is_text
from raysel.data.row_index import ID
from raysel.errors import DataError
from raysel.report.results import ReasonShown, ShownRow
from raysel.report.usage import images
from raysel.selection import Selection
from raysel.workflow.directory import RunDirectory
from raysel.workflow.steps.arrays import inputs
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
        """Rows, the steps that selected them, and the columns that may be shown."""
        return {
            "rows": run.digests("pool"),
            "selected": [
                done.directory.name
                for name, done in run.finished.items()
                if name.startswith(("select", "gime"))
            ],
            "validation": run.drawn and run.drawn.key,
            "columns": _columns(run),
            "seed": run.workflow.seed,
            "versions": decoder_versions(),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Return ``reasons``; empty if the rows are neither images nor texts."""
        columns, selection = _columns(run), run.rows
        assert selection is not None
        groups = examples(selection, run.workflow.seed)
        wanted = np.unique(np.concatenate([ids for *_, ids in groups]))
        rows = shown(run.some_rows("pool", wanted, columns), columns)
        found = [
            ReasonShown(reason, kept, count, tuple(rows[i] for i in ids.tolist() if i in rows))
            for reason, kept, count, ids in groups
        ]
        return {"reasons": [asdict(one) for one in found] if rows else []}


def _columns(run: RunDirectory) -> list[str]:
    """Return the columns that may be shown: those of the model; without a training, that of the embedder."""
    flow = run.workflow
    if flow.trains:
        return inputs(flow)
    return [name for name in run.inputs["pool"].schema.names if name in flow.embed.columns]


def examples(selection: Selection, seed: int) -> list[tuple[str, bool, int, np.ndarray]]:
    """Return the most frequent reasons: text, whether the rows were selected, their number, and the ids of some of them.

    Reasons that differ only in their numbers are one reason.
    """
    found = []
    for kept, table in ((True, selection.table), (False, selection.dropped)):
        if table is None or not table.num_rows:
            continue
        reasons = combined(table["reason"])
        coded = reasons if pa.types.is_dictionary(reasons.type) else reasons.dictionary_encode()
        texts = [*_merged(coded.dictionary.to_pylist()), ""]  # the last for rows without a reason
        names = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        codes = np.array([names[text] for text in texts], np.int64)[
            coded.indices.fill_null(len(texts) - 1).to_numpy()
        ]
        ids = table[ID].to_numpy()
        draws, count = hash_ids(ids, seed), np.bincount(codes, minlength=len(names))
        for code in np.argsort(-count, kind="stable")[: min(_REASONS, np.count_nonzero(count))]:
            here = np.flatnonzero(codes == code)
            some = np.sort(ids[here[np.argsort(draws[here])[:_SHOWN]]])
            found.append((list(names)[code], kept, int(count[code]), some))
    return found


def _merged(reasons: list[str]) -> list[str]:
    """Return the reasons, with # in place of the numbers where several reasons differ only in them."""
    patterns = [re.sub(r"-?\d+([.,]\d+)*(e[+-]?\d+)?", "#", text) for text in reasons]
    count = Counter(patterns)
    return [one if count[pattern] == 1 else pattern for one, pattern in zip(reasons, patterns, strict=True)]


def shown(table: pa.Table, columns: Sequence[str]) -> dict[int, ShownRow]:
    """Return what the report shows of rows, by id: the first of the columns that has images or texts; empty if none has.

    Rows without a value, and images that cannot be decoded, are left out.
    """
    for column in columns:
        try:
            rows = decode(table, [column], "stored")
        except DataError:  # such as lists of several lengths, which are not shown
            continue
        if is_text(table[column].type):
            texts = [" ".join(text.split())[:_LETTERS] for text in rows.rows]
            return {i: ShownRow(i, text=text) for i, text in zip(rows.ids.tolist(), texts, strict=True)}
        pictures = images(rows.rows)
        if pictures:
            return {i: ShownRow(i, image=one) for i, one in zip(rows.ids.tolist(), pictures, strict=True)}
    return {}
