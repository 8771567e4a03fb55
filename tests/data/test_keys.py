"""Vectors are found again if and only if nothing that decides them has changed."""

from __future__ import annotations

import io
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raysel
from raysel.core.fingerprint import fingerprint
from raysel.data import pipeline, workers
from raysel.data.embedders.column import ColumnEmbedder
from raysel.data.embedders.embedder import FunctionEmbedder
from raysel.data.embedders.hashed_text import HashEmbedder
from raysel.data.embedders.pca import PCAEmbedder
from raysel.data.embedders.table import TableEmbedder
from raysel.data.files import File
from raysel.data.formats.parquet import Parquet
from raysel.data.listing import Listing, list_source
from raysel.data.row_index import RowIndex, index_parquet
from raysel.data.shards import Options
from raysel.data.sources import source_of
from raysel.data.workers import Resources
from raysel.errors import ConfigError, DataError, RunError
from raysel.train.settings import Train
from raysel.workflow.steps.train import code_digests

LOCK = threading.Lock()


def scaled(rows):
    return rows.astype(np.float32) * 2


def locked(rows):
    with LOCK:
        return rows.astype(np.float32)


def swap(path, labels, i, j):
    """Swap two values: the footer, with its statistics and sizes, stays the same."""
    other = labels.copy()
    other[[i, j]] = other[[j, i]]
    pq.write_table(pa.table({"y": other}), path)
    return other


@pytest.fixture
def labels(tmp_path):
    values = np.random.default_rng(0).integers(0, 2, 1000)
    pq.write_table(pa.table({"y": values}), tmp_path / "pool.parquet")
    return values


def number(path, known=None, trust="content"):
    return index_parquet(list_source([path]), known, trust)


# ---- row indexes -----------------------------------------------------------------------------------------------------


def test_an_index_is_of_the_content(tmp_path, labels):
    path = tmp_path / "pool.parquet"
    before = number(path)
    before.save(tmp_path / "index.json")
    i, j = 3, int(np.flatnonzero(labels != labels[3])[0])
    footer = pq.read_metadata(path)
    swap(path, labels, i, j)
    assert pq.read_metadata(path).to_dict() == footer.to_dict()
    assert number(path).digest != before.digest
    with pytest.raises(DataError, match="changed since the ids of its rows were recorded"):
        number(path, RowIndex.load(tmp_path / "index.json"))


def test_numbering_reads_no_rows(tmp_path, labels, monkeypatch):
    monkeypatch.setattr("raysel.data.row_index.stored_digests", lambda *_: pytest.fail("content was read"))
    assert number(tmp_path / "pool.parquet").rows == 1000


def test_a_file_that_changed_before_its_digest_was_read(tmp_path, labels):
    index = number(tmp_path / "pool.parquet")
    swap(tmp_path / "pool.parquet", labels, 3, 4)
    with pytest.raises(DataError, match="changed since the ids of its rows were recorded"):
        index.identity()


def test_the_identity_of_a_pool(tmp_path, labels):
    index = number(tmp_path / "pool.parquet")
    ((digest, rows),) = index.identity()
    assert rows == 1000 and digest.startswith("xxh3:") and index.identity("content") == index.identity()
    assert index.identity("mtime")[0][0].startswith("mtime:")
    assert pickle.loads(pickle.dumps(index)).identity() == index.identity()
    below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert (
        index_parquet(Listing(Parquet(), (File(below, "pool.parquet"),), "pool")).identity()
        == index.identity()
    )


def test_an_index_that_trusts_times(tmp_path, labels):
    path = tmp_path / "pool.parquet"
    number(path, trust="mtime").save(tmp_path / "index.json")
    known = RowIndex.load(tmp_path / "index.json")
    assert number(path, known, "mtime").identity() == known.identity()
    assert number(path, known).identity()[0][0].startswith("xxh3:")
    with pytest.raises(DataError, match="by its size and modification time; pass trust='mtime'"):
        known.identity("content")
    swap(path, labels, 3, 4)
    with pytest.raises(DataError, match="changed since the ids of its rows were recorded"):
        number(path, known, "mtime")


# ---- embedders -------------------------------------------------------------------------------------------------------


def test_the_digests_of_built_in_embedders_are_of_their_values():
    mean, components = np.zeros(3, np.float32), np.eye(3, dtype=np.float32)
    some = [
        ColumnEmbedder(),
        PCAEmbedder("pca:3", mean, components, 0.5),
        PCAEmbedder("pca:3", mean + 1, components, 0.5),
        PCAEmbedder("pca:3", mean, components[::-1], 0.5),
        HashEmbedder("hash:8", 8),
        HashEmbedder("hash:8", 9),
        TableEmbedder("table", ("a", "b"), {"a": 0.0}, {"a": 1.0}, 16),
        TableEmbedder("table", ("a", "b"), {"a": 0.0}, {"a": 2.0}, 16),
        FunctionEmbedder("scaled", scaled),
        FunctionEmbedder("locked", len),
    ]
    digests = [pipeline.digest(embedder) for embedder in some]
    assert len(set(digests)) == len(some)
    assert digests == [pipeline.digest(pickle.loads(pickle.dumps(embedder))) for embedder in some]
    assert pipeline.digest(some[1]) == pipeline.digest(
        PCAEmbedder("pca:3", mean.copy(), components.copy(), 0.4)
    )


def test_an_embedder_that_cannot_be_fingerprinted_needs_a_version():
    embedder = FunctionEmbedder("locked", locked)
    with pytest.raises(
        ConfigError, match=r"Embedder 'locked' reads the global 'LOCK' \(_thread\.lock\).*version="
    ):
        pipeline.digest(embedder)
    assert pipeline.digest(embedder, "1") != pipeline.digest(embedder, "2")


def test_the_digest_of_a_model_follows_its_neighbours(tmp_path):
    (tmp_path / "layers.py").write_text("WIDTH = 8\ndef block(shape, classes): return WIDTH\n")
    model = tmp_path / "models_by_keys.py"
    model.write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport layers\n"
        "def net(shape, classes):\n    return layers.block(shape, classes)\n"
    )
    import sys

    def digest():
        sys.modules.pop("layers", None)
        return code_digests(Train(model=f"{model}:net"))["model"]

    try:
        one = digest()
        assert digest() == one
        model.write_text("# moved\n\n" + model.read_text())
        assert digest() == one
        (tmp_path / "layers.py").write_text("WIDTH = 32\ndef block(shape, classes): return WIDTH\n")
        assert digest() != one
    finally:
        sys.modules.pop("layers", None)
        sys.path.remove(str(tmp_path))


def test_the_digest_of_a_text_model_sees_what_is_behind_links(tmp_path, monkeypatch):
    monkeypatch.setattr("raysel.data.embedders.sentence_transformers.need", lambda *_: None)
    (tmp_path / "m").mkdir(), (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    (tmp_path / "m/1_Dense").symlink_to(tmp_path / "elsewhere")
    found = []
    for weights in (b"one", b"one", b"two"):
        (tmp_path / "elsewhere/model.safetensors").write_bytes(weights)
        found.append(raysel.fit_embedder(f"sentence-transformers:{tmp_path}/m").digest)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("part", ["forward", "buffer", "attribute", "weights"])
def test_the_digest_of_a_network_is_of_everything_that_it_computes_with(tmp_path, part):
    text = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = torch.nn.Linear(2, 2)\n        torch.nn.init.constant_(self.fc.weight, 1.0)\n"
        "        torch.nn.init.zeros_(self.fc.bias)\n        self.scale = 2.0\n"
        "        self.register_buffer('shift', torch.full((2,), 3.0), persistent=False)\n"
        "    def forward(self, x): return self.fc(x) * self.scale + self.shift + 4.0\ndef make(): return Net()\n"
    )
    old = {"forward": "4.0", "buffer": "3.0", "attribute": "2.0", "weights": "1.0"}[part]
    path = tmp_path / "net.py"
    digests = []
    for source in (text, "# moved\n" + text, text.replace(old, "5.0")):
        path.write_text(source)
        digests.append(raysel.fit_embedder(f"torch:{path}:make").digest)
    assert digests[0] == digests[1] != digests[2]


# ---- on the cluster --------------------------------------------------------------------------------------------------


def test_a_directory_that_was_made_again_with_other_vectors(cluster, tmp_path):
    rows = raysel.read({"x": np.arange(64, dtype=np.float32)})
    place = str(tmp_path / "v")

    def vectors(factor):
        made = raysel.embed(rows, lambda x: x * np.float32(factor), column="x", directory=place)
        return made, made.to_pandas().sort_values("sample_id")["embedding"].map(
            lambda v: float(v[0])
        ).tolist()

    old, one = vectors(1)
    with pytest.raises(RunError, match=r"holds vectors that .* \(different: embedder"):
        vectors(30)
    shutil.rmtree(place)
    _, two = vectors(30)
    assert one == list(range(64)) and two == [30.0 * i for i in range(64)]
    try:
        late = old.to_pandas().sort_values("sample_id")["embedding"].map(lambda v: float(v[0])).tolist()
    except DataError as error:
        assert "now holds other vectors" in str(error)
    else:
        assert late == one  # from the memory of a worker


def test_a_version_takes_the_place_of_the_fingerprint(cluster, tmp_path):
    rows = raysel.read({"x": np.arange(8, dtype=np.float32)})
    place = str(tmp_path / "v")
    with pytest.raises(ConfigError, match="version="):
        raysel.embed(rows, locked, column="x", directory=place)
    assert raysel.embed(rows, locked, column="x", directory=place, version="1").count() == 8
    assert raysel.embed(rows, locked, column="x", directory=place, version="1").count() == 8
    with pytest.raises(RunError, match=r"other settings \(different: embedder\)"):
        raysel.embed(rows, locked, column="x", directory=place, version="2")
    with pytest.raises(ConfigError, match="version: 2 is not text"):
        raysel.embed(rows, scaled, column="x", directory=place, version=2)


def picture(value: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("stored", ["parquet", "memory"])
@pytest.mark.parametrize("takes", ["images", "text"])
def test_files_that_rows_name_by_path_count(cluster, tmp_path, stored, takes):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        Path(path).write_bytes(picture(i))
    table = pa.table({"path": paths})
    pq.write_table(table, tmp_path / "rows.parquet")

    def key():
        rows = raysel.read(str(tmp_path / "rows.parquet") if stored == "parquet" else table)
        return pipeline.key_of(
            source_of(rows, ["path"]), FunctionEmbedder("f", len, takes), ["path"], Options()
        )

    one = key()
    assert key() == one
    Path(paths[2]).write_bytes(picture(200))
    two = key()
    assert two != one
    (tmp_path / "3.png").unlink()
    assert key() not in (one, two)


def test_text_that_names_no_files_is_only_text(cluster, tmp_path):
    pq.write_table(pa.table({"t": ["some text", None]}), tmp_path / "rows.parquet")
    rows = raysel.read(str(tmp_path / "rows.parquet"))
    key = pipeline.key_of(source_of(rows, ["t"]), FunctionEmbedder("f", len, "text"), ["t"], Options())
    assert key["input"] == number(tmp_path / "rows.parquet").digest


def test_the_kind_of_device_is_in_the_key_of_a_network(cluster, monkeypatch):
    rows = raysel.read({"x": np.ones(4, np.float32)})

    class Loaded:
        name, digest = "n", "d"

        def load(self, device):
            return scaled

    found = [pipeline.key_of(source_of(rows, ["x"]), Loaded(), ["x"], Options())]
    monkeypatch.setattr(Resources, "of", lambda: Resources(1, {}, 1, {}, "cuda"))
    found.append(pipeline.key_of(source_of(rows, ["x"]), Loaded(), ["x"], Options()))
    assert found[0]["device"] == "cpu" and found[1]["device"] == "cuda"
    assert (
        pipeline.key_of(source_of(rows, ["x"]), FunctionEmbedder("f", scaled), ["x"], Options())["device"]
        == "cpu"
    )
    assert len(fingerprint(found[0])) == 32


def test_the_device_stays_that_of_the_start_when_its_nodes_are_lost_or_others_join(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"GPU": 4.0}}]
    monkeypatch.setattr(workers.ray, "nodes", lambda: nodes)
    assert Resources.of().device == "cpu"
    lost = Resources.of("cuda")  # asks for one, which an autoscaler may bring
    assert (lost.device, lost.workers, lost.worker) == ("cuda", 1, {"num_gpus": 1, "num_cpus": 0})
    nodes[1]["Alive"] = True
    assert (Resources.of().device, Resources.of().workers) == ("cuda", 4)
    assert (Resources.of("cpu").device, Resources.of("cpu").workers) == ("cpu", 2)
