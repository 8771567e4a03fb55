"""Everything that is written takes a path, a file:// URI or the URI of an object store, or refuses it in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raysel
from raysel.core import storage
from raysel.data.listing import list_source
from raysel.data.row_index import RowIndex, index_parquet
from raysel.errors import ConfigError, DataError, RayselError
from raysel.workflow import config, init
from raysel.workflow.directory import open_run


def selection(place):
    raysel.Selection.of([1, 2]).save(place)
    return lambda: raysel.Selection.load(place).ids.tolist() == [1, 2]


def state(place):
    binding = raysel.gime.Binding(content="x")
    found = raysel.gime.partial(pa.table({"x": [1.0, 2.0]}), binding)
    found.save(place)
    return lambda: raysel.gime.State.load(place).digest() == found.digest()


def autoencoder(place):
    found = raysel.factors.fit_autoencoder(
        np.random.default_rng(0).normal(size=(20, 3)), units=4, k=2, epochs=1
    )
    found.save(place)
    return lambda: type(found).load(place).k == 2


def checkpoints(place):
    dynamic = raysel.DynamicSelection.local(raysel.FullData(), 4, num_epochs=1, checkpoints=place)
    session = dynamic.session()
    for _ in session.epochs():
        for batch in session.loader(torch.utils.data.TensorDataset(torch.arange(4.0)), batch_size=4):
            session.loss(batch, torch.ones(4, requires_grad=True))
        session.report()
    again = raysel.DynamicSelection.local(raysel.FullData(), 4, num_epochs=1, checkpoints=place)
    return lambda: again.session().epoch == 1


def run_directory(place):
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [0, 1]}), "pool.parquet")
    Path("flow.yaml").write_text(
        "name: t\npool: {path: pool.parquet, label: y}\ntrain: {model: 'm.py:f', input: x}\n"
    )
    with open_run(config.load("flow.yaml"), place) as run:
        return lambda: storage.exists(run.out / "manifest.json")


def template(place):
    written = init.write("classify", place)
    return lambda: "prepare.py" in written


def index(place):
    pq.write_table(pa.table({"x": [1.0, 2.0]}), "pool.parquet")
    index_parquet(list_source(["pool.parquet"])).save(place)
    return lambda: RowIndex.load(place).rows == 2


ONLY_LOCAL = [checkpoints, template]
WRITERS = [selection, state, autoencoder, run_directory, index, *ONLY_LOCAL]


class Rows:
    """What counts as a Ray Dataset until its rows are needed."""

    context = map_batches = None


def test_vectors_are_not_written_where_nothing_can_be_written():
    for place in (Path("hf://bucket/vectors"), "https://host/vectors"):
        with pytest.raises(ConfigError, match=r"^\w+://\w+/vectors cannot be written to"):
            raysel.embed(Rows(), "column", column="x", directory=place)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_outputs_by_uri(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(f"file://{tmp_path}/an%20output")()
    assert (tmp_path / "an output").exists()
    before = sorted(tmp_path.iterdir())
    refused = ["hf://bucket/out", Path("https://bucket/out")]
    refused += ["s3://bucket/out", Path("gs://bucket/out")] if write in ONLY_LOCAL else []
    for remote in refused:
        with pytest.raises(ConfigError, match=r"^\w+://bucket/out cannot be written to, because .*\.$"):
            write(remote)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "write", [w for w in WRITERS if w not in ONLY_LOCAL], ids=lambda write: write.__name__
)
def test_outputs_on_an_object_store(write, s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write(f"{s3}/an%20output")()
    assert storage.exists(f"{s3}/an output")
    assert set(os.listdir(tmp_path)) <= {"pool.parquet", "flow.yaml"}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_outputs_that_no_folder_can_have(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place in (
        tmp_path / ("n" * 300),
        "file/below",
        f"file://{tmp_path}/%ff",
        "file://host/x",
        "a\0b",
        "",
    ):
        with pytest.raises(RayselError):
            write(place)
    assert set(os.listdir(tmp_path)) <= {"file", "pool.parquet", "flow.yaml"}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing", "nothing is not a saved selection (it does not exist)."),
        (
            "empty",
            "empty is not a saved selection (_done.json is missing; it is written last, so the folder is incomplete).",
        ),
        ("file://host/x", "names the machine 'host'; write file:///host/x for a local path."),
        (
            "file:///x?y",
            "is not the URI of a local file, because ? and # separate the parts of a URI; write %3F for ? and %23 for #.",
        ),
        (
            "file:///%ff",
            "is not the URI of a local file, because the bytes written with % are not UTF-8; write the path without file://.",
        ),
        ("nonsense://x", "cannot be opened (Protocol not known: nonsense)."),
    ],
)
def test_selections_that_are_not_there(place, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        raysel.Selection.load(place)
    assert str(caught.value).endswith(words)
