"""The workflow file: what is wrong with it is said in one sentence, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysel.errors import ConfigError
from raysel.workflow.config import load

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
name: tiny
pool: {path: pool.parquet, label: label}
target: {path: target.parquet}
embed: {embedder: "pca:4", column: pixels}
select: {method: gio, budget: 0.3}
dynamic: {method: infobatch}
train: {model: "models.py:mlp", input: pixels}
"""


def write(tmp_path, text):
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "name", ["quickstart", "fashion_mnist", "fashion_dynamic", "flights", "weather", "mail"]
)
def test_the_shipped_workflows_load(name):
    assert load(ROOT / "workflows" / f"{name}.yaml").name == name


def test_paths_are_relative_to_the_file_and_defaults_are_filled_in(tmp_path):
    flow = load(write(tmp_path, GOOD))
    assert flow.pool.path == str(tmp_path / "pool.parquet")
    assert flow.train.model == f"{tmp_path}/models.py:mlp"
    assert (flow.select.clusters, flow.dynamic.prune_ratio, flow.train.workers, flow.seed) == (
        1500,
        0.5,
        2,
        0,
    )
    text = GOOD.replace("path: pool.parquet", "path: s3://bucket/pool")
    assert load(write(tmp_path, text)).pool.path == "s3://bucket/pool"


def test_overrides_are_yaml_and_may_make_groups(tmp_path):
    flow = load(
        write(tmp_path, GOOD), ["select.budget=500", "test.path=t.parquet", "controls=[full]", "seed=3"]
    )
    assert (flow.select.budget, flow.test.path, flow.controls, flow.seed) == (
        500,
        str(tmp_path / "t.parquet"),
        ["full"],
        3,
    )
    for bad, sentence in (
        ("seed", "write key=value"),
        ("seed.x=1", "'seed' is a value"),
        ("seed=[", "not YAML"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load(write(tmp_path, GOOD + "seed: 1"), [bad])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("budget:", "bugdet:"), r"unknown key 'select.bugdet'; did you mean 'select.budget'\?"),
        (("select:", "selct:"), r"unknown key 'selct'; did you mean 'select'\?"),
        (("input:", "imput:"), r"unknown key 'train.imput'; did you mean 'train.input'\?"),
        (
            ("{method: infobatch}", "{method: infobatch, prune: 0.1}"),
            r"'dynamic.prune'; did you mean 'dynamic.prune_ratio'",
        ),
        (("{method: infobatch}", "{method: infobatch, zzz: 1}"), "known are method, prune_ratio, delta"),
        (
            ("{method: infobatch}", "{method: infobach}"),
            r"'dynamic.method' is 'infobach'; known are 'infobatch'",
        ),
        (("name: tiny", ""), "the key 'name' is missing"),
        ((", input: pixels", ""), "the key 'train.input' is missing"),
        (("name: tiny", "name: a b"), "'name' is 'a b'"),
        (("input: pixels", "input: pixels, workers: 0"), "'train.workers' is 0"),
        (("input: pixels", "input: pixels, workers: two"), "'train.workers' is 'two'"),
        (("budget: 0.3", "budget: lots"), "'select.budget' is 'lots'"),
        (("{method: infobatch}", "{method: infobatch, prune_ratio: 1.0}"), "'dynamic.prune_ratio' is 1.0"),
        (("name: tiny", "name: tiny\nname: other"), "the key 'name' is given twice"),
        (("name: tiny", "name: [tiny"), "not YAML"),
        (("name: tiny", "- tiny"), "not YAML|mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(tmp_path, change, sentence):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_is_no_workflow(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="holds list"):
        load(write(tmp_path, "[1, 2]"))
    binary = tmp_path / "flow.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        load(binary)


def test_numbers_are_read_as_everybody_writes_them(tmp_path):
    text = GOOD.replace("input: pixels", "input: pixels, weight_decay: 5e-4, learning_rate: 1E-2")
    train = load(write(tmp_path, text), ["train.momentum=9e-1"]).train
    assert (train.weight_decay, train.learning_rate, train.momentum) == (5e-4, 1e-2, 0.9)
    with pytest.raises(ConfigError, match=r"'train\.learning_rate' is inf"):
        load(write(tmp_path, GOOD), ["train.learning_rate=.inf"])
    with pytest.raises(ConfigError, match="'seed' is 1000"):
        load(write(tmp_path, GOOD), [f"seed={10**23}"])


def test_anchors_may_be_merged_and_keys_are_text(tmp_path):
    text = GOOD.replace(
        "pool: {path: pool.parquet, label: label}", "pool: &p {path: pool.parquet, label: label}"
    )
    assert load(write(tmp_path, text + "test: {<<: *p, path: t.parquet}")).test.label == "label"
    with pytest.raises(ConfigError, match="the key 'True' is not text"):
        load(write(tmp_path, GOOD + "on: 1"))


def test_yaml_cannot_make_objects(tmp_path):
    with pytest.raises(ConfigError, match="not YAML"):
        load(write(tmp_path, GOOD + "seed: !!python/object/apply:os.getpid []"))
