"""Embedders by name: what a name says is checked without loading anything, and paths in it are found from anywhere."""

from __future__ import annotations

import decimal
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

import raysel
from raysel import embed, fit_embedder
from raysel.data.embed import _check_schema
from raysel.data.embedders.build import make_embedder, named_embedder
from raysel.data.embedders.table import TableEmbedder, _extremes
from raysel.errors import ConfigError, DataError
from raysel.registry import EMBEDDERS
from raysel.workflow import config

WORKFLOW = "name: x\npool: {path: p.parquet}\ntrain: {model: 'm.py:net', input: x}\n"


@pytest.mark.parametrize("name", EMBEDDERS.builtin)
def test_a_wrong_argument_is_found_without_the_package(name):
    needs_none = name in ("column", "table")
    with pytest.raises(ConfigError, match=f"^embedder: '{name}:?"):
        named_embedder(f"{name}:3" if needs_none else f"{name}:")
    if needs_none:
        assert named_embedder(name) is not None
    else:
        assert named_embedder({"torch": "torch:no.py:f"}.get(name, f"{name}:3")) is not None
    assert named_embedder("no-such-name") is None


def test_what_has_to_be_found_first_can_be_opened_and_nothing_else():
    names = {"torch": "torch:no.py:f"}
    opened = {
        name
        for name in EMBEDDERS.builtin
        if name not in ("column", "table") and hasattr(named_embedder(names.get(name, f"{name}:3")), "open")
    }
    assert opened == {"sentence-transformers", "timm", "torchvision", "open_clip", "torch"}


def test_components_are_checked_against_the_width_and_the_rows():
    pca = named_embedder("pca:4")
    pca.check(4)
    pca.check(5, rows=4)
    with pytest.raises(
        ConfigError, match="'pca:4' has 4 components, but the column has 3 elements; choose at most 3"
    ):
        pca.check(3)
    with pytest.raises(ConfigError, match="there are 3 rows to learn from; choose at most 3"):
        pca.check(5, rows=3)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("torch:net.py:f:penultimate", "torch:HERE/net.py:f:penultimate"),
        ("torch:package.module:f", "torch:package.module:f"),
        ("sentence-transformers:./m", "sentence-transformers:HERE/m"),
        ("sentence-transformers:all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2"),
        ("timm:local-dir:net", "timm:local-dir:HERE/net"),
        ("timm:resnet18", "timm:resnet18"),
        ("open_clip:local-dir:net", "open_clip:local-dir:HERE/net"),
        ("open_clip:ViT-B-32/./weights.pt", "open_clip:ViT-B-32/HERE/weights.pt"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("own.py:Name", "HERE/own.py:Name"),
        ("pca:3", "pca:3"),
    ],
)
def test_paths_in_a_name_are_those_next_to_the_workflow(tmp_path, given, wanted):
    (tmp_path / "flow.yaml").write_text(WORKFLOW)
    for text in (given, f"{{method: '{given}'}}"):
        flow = config.load(tmp_path / "flow.yaml", [f"embed.embedder={text}"])
        assert flow.embed.method.spec == wanted.replace("HERE", str(tmp_path))


# ---- models on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("raysel.data.embedders.sentence_transformers.need", lambda *_: None)
    (tmp_path / "m/0_Transformer").mkdir(parents=True)
    for name in ("config.json", "0_Transformer/config.json", "config_sentence_transformers.json"):
        (tmp_path / "m" / name).write_text("{}")
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    ]
    (tmp_path / "m/modules.json").write_text(json.dumps(modules))
    return tmp_path / "m"


def test_a_text_model_that_brings_code_is_refused(folder):
    spec = f"sentence-transformers:{folder}"
    assert raysel.fit_embedder(spec).name == spec
    for file, text, named in (
        ("modules.json", [{"type": "own.Mine"}], "own.Mine"),
        ("0_Transformer/config.json", {"auto_map": {"AutoModel": "modeling_own.Net"}}, "modeling_own.Net"),
        ("config.json", {"auto_map": {"AutoModel": "user/repo--modeling.Net"}}, "user/repo--modeling.Net"),
    ):
        before = (folder / file).read_text()
        (folder / file).write_text(json.dumps(text))
        (folder / "own.py").write_text("raise AssertionError")
        with pytest.raises(
            ConfigError,
            match=rf"contains Python code \({named}\), which raysel does not run\. Write a function",
        ):
            raysel.fit_embedder(spec)
        (folder / file).write_text(before)
    (folder / "modules.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"modules\.json is damaged"):
        raysel.fit_embedder(spec)


def test_whatever_a_factory_or_a_library_raises_names_the_embedder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text("def net():\n    raise KeyError('weights')\n")
    with pytest.raises(ConfigError, match=r"net\.py:net' cannot be loaded \(KeyError: 'weights'\)"):
        raysel.fit_embedder(f"torch:{tmp_path}/net.py:net")
    monkeypatch.setitem(__import__("sys").modules, "timm", _Broken())
    with pytest.raises(ConfigError, match=r"'timm:x' cannot be loaded \(AssertionError: no message\)"):
        make_embedder("timm:x")


class _Broken:
    def create_model(self, *_, **__):
        raise AssertionError


def test_a_module_of_the_current_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "nets_here.py").write_text(
        "import torch\nfrom layer_here import wide\ndef net(): return wide()\n"
    )
    (tmp_path / "layer_here.py").write_text("import torch\ndef wide(): return torch.nn.Linear(2, 2)\n")
    monkeypatch.chdir(tmp_path)
    run = raysel.fit_embedder("torch:nets_here:net").load("cpu")
    assert run(np.zeros((3, 2), np.float32)).shape == (3, 2)


# ---- tables ----------------------------------------------------------------------------------------------------------


def fitted(**columns):
    """The table embedder fitted on one block of rows, as ``fit`` merges many."""
    table = pa.table(columns)
    low, high = {}, {}
    for name, (least, most) in _extremes(table).items():
        low[name], high[name] = (least, most) if least <= most else (0.0, 0.0)
    return TableEmbedder("table", tuple(columns), low, high, 16), table


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([2**60 + 1, 1, None]), [[1, 0], [0, 0], [0.5, 1]]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [[1, 0], [0, 0]]),
        (pa.array([decimal.Decimal("1.1"), decimal.Decimal("2.1")]), [[0, 0], [1, 0]]),
        (pa.array([1e308, -1e308, 0.0]), [[1, 0], [0, 0], [0.5, 0]]),
        (pa.array([float("inf"), float("nan")]), [[0.5, 1], [0.5, 1]]),
        (pa.array([7, 7]), [[0, 0], [0, 0]]),
        (pa.array([1, 3], pa.float16()), [[0, 0], [1, 0]]),
    ],
)
def test_numbers_of_a_table_lie_between_0_and_1(values, wanted):
    embedder, table = fitted(c=values)
    assert embedder(table).tolist() == wanted


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None, "b", "a"]),
        pa.array(["a", None, "b", "a"], pa.large_string()),
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.chunked_array([["a", None], ["b", "a"]]),
        pa.chunked_array(
            [pa.array(["a", None]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode()]
        ),
        pa.array([True, None, False, True]),
        pa.array([1, None, 2, 1], pa.date32()),
        pa.array([1, None, 2, 1], pa.timestamp("us", "UTC")),
        pa.array([1, None, 2, 1], pa.time32("s")),
    ],
)
def test_categories_of_a_table_are_ones_among_zeros(values):
    embedder, table = fitted(c=values)
    got = embedder(table)
    assert got.sum(axis=1).tolist() == [1, 1, 1, 1] and np.array_equal(got[0], got[3])
    share_a_place = pa.types.is_boolean(values.type)  # "true" and missing values have one hash
    assert len({tuple(row) for row in got[:3].tolist()}) == 3 - share_a_place
    assert np.array_equal(embedder(table.slice(1, 2)), got[1:3])


def test_columns_that_a_table_embedder_does_not_take():
    for values in (
        pa.array([[1], [2, 3]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"\xff\xfe", b"a"]),
        pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)),
    ):
        with pytest.raises(DataError, match=r"Column 'c' holds .*, which is neither a number nor a category"):
            fitted(c=values)
    embedder, _ = fitted(c=pa.array([1, 2]))
    with pytest.raises(
        DataError, match="Column 'c' holds string, but held numbers when the embedder was fitted"
    ):
        embedder(pa.table({"c": ["x"]}))
    assert embedder(pa.table({"c": pa.nulls(2)})).tolist() == [[0.5, 1], [0.5, 1]]
    assert fitted(c=pa.nulls(2))[0](pa.table({"c": pa.nulls(2)})).sum(axis=1).tolist() == [1, 1]


def test_names_of_columns_and_options_are_checked():
    pca = named_embedder("pca:1")
    for wrong in (5, [], [1], {"a"}):
        with pytest.raises(ConfigError, match="is neither the name of a column nor a list of names"):
            raysel.fit_embedder(pca, object(), column=wrong)
    with pytest.raises(
        ConfigError, match=r"'pca:1' is fitted on one column, not 2 \(a, b\); the embedder 'table'"
    ):
        pca.fit(object(), ["a", "b"])
    for wrong in (object(), np.ones((2, 2)), pa.table({"a": [1]})):
        with pytest.raises(
            ConfigError, match="The dataset that the embedder is fitted on must be a Ray Dataset"
        ):
            raysel.fit_embedder(pca, wrong, column="a")
        with pytest.raises(ConfigError, match="The dataset to embed must be a Ray Dataset"):
            raysel.embed(wrong, "column", column="a")
    with pytest.raises(ConfigError, match="Embedder column takes one column, not 2"):
        raysel.embed(object(), "column", column=["a", "b"])
    for options, sentence in (
        ({"dtype": "float64"}, "dtype: 'float64' should be"),
        ({"on_error": "skip"}, "on_error: 'skip' should be"),
        ({"normalize": "yes"}, "normalize: 'yes' should be"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            raysel.embed(object(), "column", column="a", **options)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("takes", "column", "sentence"),
    [
        ("matrix", "text", "Column 'text' holds string, not numbers. Choose an embedder of text: hash:N or"),
        ("numbers", "category", "Column 'category' holds dictionary"),
        ("numbers", "bytes", "Choose an embedder of images: timm:NAME"),
        (
            "text",
            "tensor",
            "Column 'tensor' holds extension.* Choose an embedder of numbers: column or pca:N",
        ),
        ("images", "time", "Column 'time' holds timestamp"),
        ("any", "missing", "has no column 'missing'"),
        ("matrix", "null", None),  # of the first blocks alone, perhaps
        ("any", "category", None),
        ("images", "text", None),
        ("table", "time", None),
    ],
)
def test_what_types_show_is_found_before_anything_is_read(takes, column, sentence):
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("category", pa.dictionary(pa.int8(), pa.string())),
            ("tensor", pa.fixed_shape_tensor(pa.float32(), (2,))),
            ("time", pa.timestamp("s")),
            ("bytes", pa.binary()),
            ("null", pa.null()),
        ]
    )
    known = SimpleNamespace(names=schema.names, base_schema=schema)
    with pytest.raises(DataError, match=sentence) if sentence else nullcontext():
        _check_schema(known, SimpleNamespace(takes=takes), [column])


@pytest.mark.usefixtures("cluster")
def test_what_types_show_is_found_before_an_embedder_is_fitted():
    rows = raysel.read({"text": ["a", "b"], "vector": np.ones((2, 2))})
    for spec, column, sentence in (
        ("pca:1", "text", "Column 'text' holds .*string, not numbers. Choose an embedder of text"),
        ("table", ["text", "vector"], "Column 'vector' holds .*, which is neither a number nor a category"),
    ):
        with pytest.raises(DataError, match=sentence):
            raysel.fit_embedder(spec, rows, column=column)


def test_objects_of_other_libraries_are_no_embedders():
    from sklearn.decomposition import PCA

    network, pca = torch.nn.Linear(8, 2), PCA(2)
    for given, sentence in (
        (
            network,
            "embedder: The network Linear takes tensors, but an embedder is called with arrays; write torch:",
        ),
        (pca, "embedder: A PCA of scikit-learn is not an embedder; fit it, and give a function of rows"),
        (
            pa.table({"a": [1]}),
            "embedder: a pyarrow Table of shape \\(1, 1\\) is neither the name of an embedder nor a function of rows",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            fit_embedder(given)
        with pytest.raises(ConfigError, match=sentence):
            embed(None, given, column="a")


def test_nothing_is_learned_from_no_rows():
    rows = raysel.read({"k": np.arange(3.0)}).filter(lambda row: False)
    for spec in ("table", "pca:1"):
        with pytest.raises(
            DataError,
            match="The dataset that the embedder is fitted on is empty: there are no rows to learn from",
        ):
            raysel.fit_embedder(spec, rows, column="k")
