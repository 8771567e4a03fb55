"""Write selected rows as files that other tools read, with a card that says what they are."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysel.core import storage
from raysel.core.arrays import positions
from raysel.core.arrow import plain_values
from raysel.core.markdown import literal
from raysel.data.identity import check_dataset, row_ids
from raysel.data.row_index import ID
from raysel.errors import ConfigError, DataError, shown
from raysel.version import __version__

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysel.selection import Selection

Format = Literal["parquet", "jsonl", "webdataset"]
_SUFFIX = {"parquet": "parquet", "jsonl": "jsonl", "webdataset": "tar"}
_FILE_BYTES = 256 << 20  # of Arrow data per file
_CARD = "README.md"
_STATUS, _SELECTED, _WEIGHT = "status", "selected", "weight"


def export(
    selection: Selection,
    dataset: Dataset,
    path: str | os.PathLike[str],
    format: Format = "parquet",
    dropped: bool = False,
) -> None:
    """Write the selected rows; see :meth:`raysel.Selection.export`."""
    from raysel.cluster.blocks import column_names

    if format not in _SUFFIX:
        raise ConfigError(f"format: {format!r} is unknown; use {', '.join(_SUFFIX)}.")
    write = {"parquet": _parquet, "jsonl": _json_lines, "webdataset": _tar}[format]
    check_dataset(dataset, "dataset")
    own = not dropped and bool((selection.weights == 1).all()) and _WEIGHT in column_names(dataset)
    if dropped:
        rows = _with_status(selection, dataset)
    else:
        rows = selection.rows(dataset) if own else selection.apply(dataset)
    with storage.new_folder(storage.output(path)) as folder:
        files, count, total = 0, 0, 0
        for table in _tables(rows):
            folder.write(f"data-{files:05d}.{_SUFFIX[format]}", write(table))
            files, total = files + 1, total + len(table)
            count += pc.sum(pc.equal(table[_STATUS], _SELECTED)).as_py() if dropped else len(table)
        if count != len(selection):
            raise DataError(
                f"The dataset has {count:,} of the {len(selection):,} selected rows; export the rows that the selection was "
                "made from."
            )
        folder.write(_CARD, card(selection, format, files, total if dropped else None, own).encode())


def _with_status(selection: Selection, dataset: Dataset) -> Dataset:
    """Return all rows of a dataset, with the status, score and reason of each."""
    import ray

    from raysel.cluster.blocks import plain_errors
    from raysel.selection import constant_text

    selection.check_pool(dataset)
    coded = pa.dictionary(pa.int32(), pa.string())
    parts = []
    for status, part in ((_SELECTED, selection.table), ("dropped", selection.dropped)):
        if part is not None:
            known = part.select([name for name in (ID, "score", "reason") if name in part.column_names])
            at = known.column_names.index("reason")
            known = known.set_column(at, "reason", known["reason"].cast(coded))
            parts.append(known.append_column(_STATUS, constant_text(status, len(part))))
    told = pa.concat_tables(parts, promote_options="default").unify_dictionaries().sort_by(ID)
    marked = dataset.map_batches(
        _mark, fn_args=(ray.put(told.combine_chunks()),), batch_format="pyarrow", batch_size=None
    )
    return plain_errors(marked)


def _mark(table: pa.Table, shared: Any) -> pa.Table:
    import ray

    told = ray.get(shared) if isinstance(shared, ray.ObjectRef) else shared
    for name in (_STATUS, "score", "reason"):
        if name in table.column_names:
            raise DataError(
                f"The dataset already has a column '{name}', but an export with dropped=True writes a column of this name; rename "
                "your column, or drop it from the dataset before the export."
            )
    places, found = positions(told[ID].to_numpy(), row_ids(table, "the dataset"))
    rows = told.take(pa.array(places, mask=~found))
    status = pc.fill_null(rows[_STATUS].cast(pa.string()), "dropped")
    table = table.append_column(_STATUS, status).append_column("score", rows["score"])
    return table.append_column("reason", rows["reason"].cast(pa.string()))


def _tables(rows: Dataset) -> Iterator[pa.Table]:
    """Yield the rows in their order, in tables of up to 256 MB."""
    from raysel.cluster.blocks import plain_errors
    from raysel.cluster.errors import name_losses, unwrap_errors

    rows = plain_errors(rows)
    rows.context.execution_options.preserve_order = True
    held: list[pa.Table] = []
    with name_losses(), unwrap_errors():
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if not len(table):
                continue
            held.append(table)
            if sum(part.nbytes for part in held) >= _FILE_BYTES:
                yield pa.concat_tables(held)
                held = []
    if held:
        yield pa.concat_tables(held)


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink)
    return sink.getvalue()


def _json_lines(table: pa.Table) -> bytes:
    try:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(table)).encode()
    except TypeError:
        raise DataError(f"{_not_json(table)} Export to Parquet, or select other columns first.") from None


def _tar(table: pa.Table) -> bytes:
    """Return a WebDataset shard: per row a member of each column of bytes, and one of JSON with the other columns."""
    raw = [
        name
        for name in table.column_names
        if pa.types.is_binary(table[name].type) or pa.types.is_large_binary(table[name].type)
    ]
    for name in raw:
        if name == "json" or not re.fullmatch(r"[^/\\\x00-\x1f]+", name):  # a reader may make a path of it
            raise DataError(
                f"Column {shown(name)} cannot be exported to WebDataset, where its name is the end of a file "
                "name: the name must hold no slash, no backslash and no control character, and must not be "
                "'json'. Rename the column, or export to Parquet."
            )
    rest = table.drop_columns(raw)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        members = {name: table[name].to_pylist() for name in raw}
        try:
            for at, row in enumerate(_rows(rest)):
                key = f"{row[ID]:012d}"
                for name in raw:
                    if members[name][at] is not None:
                        _add(tar, f"{key}.{name}", members[name][at])
                _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())
        except TypeError:
            raise DataError(f"{_not_json(rest)} Export to Parquet, or select other columns first.") from None
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows of Python values; tensors as nested lists."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if isinstance(column.type, pa.FixedShapeTensorType):
            columns[name] = [value.tolist() for value in column.combine_chunks().to_numpy_ndarray()]
        else:
            columns[name] = plain_values(column).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _not_json(table: pa.Table) -> str:
    for name in table.column_names:
        try:
            json.dumps(_rows(table.select([name])))
        except TypeError:
            return f"Column '{name}' holds {table[name].type}, which JSON cannot hold."
    return "The rows hold values that JSON cannot hold."


def card(selection: Selection, format: str, files: int, rows: int | None = None, own: bool = False) -> str:
    """Return a data card in Markdown: what the rows are, how they were selected, from what, and how many.

    Parameters
    ----------
    selection : Selection
        What is exported.
    format : str
        Format of the files.
    files : int
        Number of files.
    rows : int, optional
        Number of rows in the files, if dropped rows are among them.
    own : bool
        Whether the column ``weight`` is one of the data.
    """
    info = selection.info
    steps = []
    while info:
        steps.append(info)
        info = info.get("before", {})
    reasons = Counter(selection.table["reason"].to_pylist())
    count = f"{len(selection):,} rows" if rows is None else f"{len(selection):,} of the {rows:,} rows"
    lines = [
        "# Selected training data",
        "",
        f"{count} in {files:,} {'file' if files == 1 else 'files'} ({format}), selected by raysel {__version__}.",
        "",
        "## How the rows were selected",
        "",
    ]
    for number, step in enumerate(reversed(steps), 1):
        plain_values = {
            k: v for k, v in step.items() if isinstance(v, (str, int, float, bool)) and k != "method"
        }
        values = ", ".join(f"{literal(name)} = {literal(value)}" for name, value in plain_values.items())
        lines.append(f"{number}. {literal(step.get('method', 'unknown method'))}: {values}")
    lines += ["", "## From which data", ""]
    if selection.pool is None:
        lines.append("The files that the rows are from are not known.")
    else:
        lines += ["| file | rows | digest |", "|---|---|---|"]
        lines += [
            f"| {literal(file.name)} | {file.rows:,} | {literal(file.digest)} |"
            for file in selection.pool.files
        ]
    lines += ["", "## Why each row was selected", "", "| reason | rows |", "|---|---|"]
    lines += [f"| {literal(reason)} | {rows:,} |" for reason, rows in reasons.most_common(50)]
    if rows is not None:
        added = " and `status` (selected or dropped), `score` and `reason`."
    elif own:
        added = ". The column `weight` is one of the data; the weight of every row in training is 1."
    else:
        added = " and `weight` (the weight of the row in training)."
    lines += [
        "",
        "## Columns",
        "",
        f"The columns of the data, `{ID}` (the number of the row in the pool){added}",
    ]
    return "\n".join(lines) + "\n"
