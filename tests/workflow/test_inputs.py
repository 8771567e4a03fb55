"""A workflow reads whatever ``raysel.read`` reads, with the same ids, and says what it took."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.data.identity import identity
from raysel.data.row_index import ID
from raysel.errors import ConfigError, DataError
from raysel.workflow import config, steps
from raysel.workflow.directory import Progress, open_run
from raysel.workflow.inputs import seen
from raysel.workflow.load import load_check
from raysel.workflow.run import run
from raysel.workflow.steps import train
from tests.data.test_formats import saved_dataset, tar, write
from tests.workflow.test_reuse import not_trained

FLOW = """
name: small
pool: {path: POOL, label: kind}
embed: {column: v, embedder: hash:16}
select: {method: random, budget: 4}
train: {model: "model.py:make", input: x, epochs: 1, workers: 1}
"""


MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = torch.nn.Linear(1, classes)
    def forward(self, x):
        return self.layer(x.float().reshape(len(x), -1))
def make(shape, classes):
    return Net(classes)
"""


def flow(folder, pool, text=FLOW, **pool_keys):
    (folder / "model.py").write_text(MODEL)
    (folder / "flow.yaml").write_text(text.replace("POOL", json.dumps(str(pool))))
    return config.load(folder / "flow.yaml", [f"pool.{name}={value}" for name, value in pool_keys.items()])


def sources(folder):
    """The same ten rows in every format that is a source of a workflow."""
    rows = pa.table(
        {"v": [f"text {i} of {i % 3}" for i in range(10)], "x": np.arange(10) / 2, "kind": np.arange(10) % 3}
    )
    records = rows.to_pylist()
    write(folder / "pool.csv", "v,x,kind\n" + "".join(f"{r['v']},{r['x']},{r['kind']}\n" for r in records))
    write(folder / "pool.json", json.dumps(records))
    write(folder / "lines/a.jsonl", "\n".join(json.dumps(record) for record in records[:4]))
    write(folder / "lines/b.jsonl", "\n".join(json.dumps(record) for record in records[4:]))
    with pa.ipc.new_stream(str(folder / "pool.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    np.savez(folder / "pool.npz", **{name: np.array(rows[name].to_pylist()) for name in rows.column_names})
    places = ["pool.csv", "pool.json", "lines", "lines/*.jsonl", "pool.arrow", "pool.npz"]
    write(folder / "a b/pool.csv", (folder / "pool.csv").read_bytes())
    return rows, [*(folder / place for place in places), f"file://{folder}/a%20b"]


def test_every_format_has_the_rows_and_ids_that_reading_gives(tmp_path):
    rows, places = sources(tmp_path)
    for place in places:
        with open_run(flow(tmp_path, place), tmp_path / "run", fresh=True) as this:
            pool = this.inputs["pool"]
            found = pa.concat_tables([pq.read_table(file.path) for file in pool.index.files])
            assert found.select(rows.column_names).to_pylist() == rows.to_pylist(), place
            assert pool.count == 10 and pool.index.offsets[0] == 0
            first = pool.digest
            found = steps.check(this.workflow)
            assert not found.exact and steps.check(this.workflow, found=seen(found, this.inputs)).exact
        with open_run(flow(tmp_path, place), tmp_path / "run") as this:
            assert this.inputs["pool"].digest == first
    saved_dataset(tmp_path / "saved")
    tar(tmp_path / "web.tar", [("0.txt", b"a"), ("0.cls", b"1"), ("1.txt", b"b"), ("1.cls", b"0")])
    write(tmp_path / "images/cat/_1.jpg", b"x")
    write(tmp_path / "images/dog/2.jfif", b"y")
    for place, label, count in (("saved", "label", 4), ("web.tar", "cls", 2), ("images", "label", 2)):
        with open_run(flow(tmp_path, tmp_path / place, label=label), tmp_path / "run", fresh=True) as this:
            assert this.inputs["pool"].count == count and label in this.inputs["pool"].schema.names


def test_what_was_read_is_said_and_a_changed_file_is_noticed(tmp_path, capsys):
    sources(tmp_path)
    write(tmp_path / "lines/notes.txt", "")

    def go(place="lines", **keys):
        with open_run(
            flow(tmp_path, tmp_path / place, **keys), tmp_path / "run", Progress(sys.stderr)
        ) as this:
            return this.inputs["pool"], capsys.readouterr().err

    pool, said = go()
    assert (
        f"10 rows in 2 JSON files of {tmp_path}/lines. They are converted to 2 Parquet files of 0.0 MB."
        in said
    )
    assert "1 file is not read, because the directory is read as JSON (notes.txt)." in said
    assert "They are reused as 2 Parquet files" in go()[1]
    write(
        tmp_path / "lines/0.jsonl", json.dumps({"v": "new", "x": 0.5, "kind": 1})
    )  # sorts first, and comes last
    grown, said = go()
    assert [file.rows for file in grown.index.files] == [4, 6, 1] and "The files of pool.path changed" in said
    assert [file.name for file in grown.identity.files] == ["a.jsonl", "b.jsonl", "0.jsonl"]
    assert grown.identity.files[:2] == pool.identity.files and grown.digest != pool.digest
    write(tmp_path / "lines/a.jsonl", json.dumps({"v": "other", "x": 0.5, "kind": 1}))
    again, said = go()
    assert [file.rows for file in again.index.files] == [1, 1, 6] and "The files of pool.path changed" in said
    write(tmp_path / "latin.csv", "v,x,kind\ncafé,1,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"pool\.path: .*latin\.csv is not text in UTF-8"):
        go("latin.csv")
    assert go("latin.csv", encoding="latin-1")[0].count == 1


def test_validate_looks_at_the_beginning_and_converts_nothing(tmp_path):
    sources(tmp_path)
    for place in ("pool.csv", "lines", "pool.npz"):
        found = steps.check(flow(tmp_path, tmp_path / place))
        assert found.schemas["pool"].names == ["v", "x", "kind"] and "pool" not in found.counts
        (sentence,) = found.sentences()
        assert (
            str(tmp_path / place) in sentence
            and "raysel checks the number of rows and all other values when it reads the data" in sentence
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=r"pool\.label: There is no label column 'sort'"):
        steps.check(flow(tmp_path, tmp_path / "pool.csv", label="sort"))
    with pytest.raises(DataError, match=r"train\.input: There is no column 'x' in the files of pool\.path"):
        steps.check(flow(tmp_path, write(tmp_path / "b.csv", "v,kind\na,1\n")))
    load_check(flow(tmp_path, tmp_path / "pool.csv"))
    with pytest.raises(ConfigError, match=r"train\.model: .*model\.py:make returned a NoneType"):
        broken = flow(tmp_path, tmp_path / "pool.csv")
        write(tmp_path / "model.py", "def make(shape, classes):\n    return None\n")
        load_check(broken)


def test_a_csv_runs_as_its_rows_read_by_hand(cluster, tmp_path, monkeypatch):
    rows, (place, *_) = sources(tmp_path)
    monkeypatch.setattr(train, "fit", not_trained)
    results = run(flow(tmp_path, place), tmp_path / "run")
    assert results.data.pool == 10 and results.selection.kept == 4
    chosen = raysel.Selection.load(next((tmp_path / "run").glob("steps/select-*/selection")))
    by_hand = raysel.read(place)
    assert chosen.pool == identity(by_hand)  # so that it can be applied to them
    got = chosen.apply(by_hand).select_columns([ID, "v"]).take_all()
    assert sorted((row[ID], row["v"]) for row in got) == [
        (i, rows["v"][i].as_py()) for i in chosen.ids.tolist()
    ]
    with pytest.raises(ConfigError, match=r"select\.budget: 11 rows are more than the 10 rows of the pool"):
        run(flow(tmp_path, place, FLOW.replace("budget: 4", "budget: 11")), tmp_path / "run")


def test_measured_lines_are_not_read_again(cluster, tmp_path):
    sources(tmp_path)
    text = FLOW + "gime: {binding: {classes: kind, content: [x]}}\n"

    def measured(out):
        return raysel.measure(
            flow(tmp_path, tmp_path / "lines", text), tmp_path / out, progress=Progress(io.StringIO())
        )

    measured("kept")
    write(tmp_path / "lines/0.jsonl", json.dumps({"v": "new", "x": 0.5, "kind": 1}))
    grown = measured("kept")
    assert {(metric.metric, metric.statistic): metric.value for metric in grown.sets["pool"]}[
        ("volume", "rows")
    ] == 11
    assert measured("again") == grown
    write(tmp_path / "lines/a.jsonl", json.dumps({"v": "other", "x": 0.5, "kind": 1}))
    with pytest.raises(
        DataError, match=r"pool\.path: .* cannot be found, .* Or remove .*kept to measure everything again"
    ):
        measured("kept")
