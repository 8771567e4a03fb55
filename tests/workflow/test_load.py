"""What `run`, `compare` and `raysel validate --load` find before anything starts, and what they let pass."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import raysel
from raysel.cli import cli
from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError
from raysel.registry import POLICIES
from raysel.workflow import config, steps
from raysel.workflow.config import Method
from raysel.workflow.load import load_check, unloaded

FLOW = """
name: small
pool: {path: pool.parquet, label: kind}
train: {model: "model.py:make", input: v, epochs: 2, workers: 1}
"""
MODEL = "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], %s)\n"
OWN = """
from dataclasses import dataclass
import numpy as np, raysel
from raysel.dynamic.plan import unweighted

@dataclass(frozen=True)
class Twenty(raysel.FullData):
    def plan(self, state, *, epoch, num_epochs, seed):
        keep = np.zeros(len(state), bool)
        keep[np.random.default_rng(0).choice(len(state), 20, replace=False)] = True
        return unweighted(keep)

@dataclass(frozen=True)
class Fails(raysel.FullData):
    def plan(self, state, *, epoch, num_epochs, seed):
        return 1 // epoch

@dataclass(frozen=True)
class Drawn(raysel.FullData):
    def plan(self, state, *, epoch, num_epochs, seed):
        return unweighted(np.random.permutation(len(state)) < len(state) // 2)

@dataclass(frozen=True)
class NeedArgument(raysel.FullData):
    share: float

class NoPlan:
    pass

class NoUpdate(NoPlan):
    plan, parameters = raysel.FullData.plan, raysel.FullData.parameters

@dataclass
class Changeable(NoUpdate):
    update = raysel.FullData.update

@dataclass(frozen=True)
class Empty(raysel.FullData):
    def plan(self, state, *, epoch, num_epochs, seed):
        return unweighted(np.isfinite(state.loss))

@dataclass(frozen=True)
class Vectors:
    uses_vectors = True
    def select(self, pool, target=None):
        return raysel.Random(5).select(pool)

class Wide:
    name = "wide"
    def __call__(self, rows):
        return np.zeros((3, 2))
"""


@pytest.fixture
def folder(tmp_path):
    kind = np.sort(np.arange(60) % 3)  # sorted: the first rows are of one class
    v = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    pq.write_table(
        pa.table({"v": to_column(v), "kind": kind, "text": ["a b"] * 60}), tmp_path / "pool.parquet"
    )
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "model.py").write_text(MODEL % "classes")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def check(folder, *changes, policies=()):
    flow = config.load(folder / "flow.yaml", [change.replace("HERE", str(folder)) for change in changes])
    found = steps.check(flow)
    load_check(flow, [Method.of({"method": f"{folder}/{p}"}, POLICIES, f"policies.{p}") for p in policies])
    steps.check(flow, found=found)


def look(folder, change):
    steps.check(config.load(folder / "flow.yaml", ["select={method: k_center, budget: 5}", change]))


def test_a_model_gets_all_classes_and_at_least_two_rows(folder):
    (folder / "model.py").write_text(MODEL % "3")
    check(folder)
    first = pq.read_table(folder / "pool.parquet").slice(0, 1)
    (folder / "pool").mkdir()
    pq.write_table(first, folder / "pool" / "a.parquet")
    (folder / "pool.parquet").rename(folder / "pool" / "b.parquet")
    (folder / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.BatchNorm1d(shape[0]), torch.nn.Linear(shape[0], 3))\n"
    )
    check(folder, "pool.path=HERE/pool")
    check(folder, "pool.path=HERE/pool/b.parquet")


def test_a_workflow_that_ran_loads_changed_code_again(folder):
    flow = config.load(folder / "flow.yaml", [f"dynamic={{method: {folder}/own.py:Twenty}}"])
    assert flow.dynamic.type is flow.dynamic.type and not hasattr(flow.dynamic.type, "added")
    (folder / "own.py").write_text(
        (folder / "own.py").read_text().replace("class Twenty", "class Old")
        + "\n@dataclass(frozen=True)\nclass Twenty(Old):\n    added = 1\n"
    )
    again = config.open_workflow(flow)
    assert again == flow and again.dynamic.type.added == 1


def test_policies_are_tried_with_as_many_samples_as_there_are(folder):
    check(folder, "dynamic={method: HERE/own.py:Twenty}")
    check(folder, policies=["own.py:Twenty"])


@pytest.mark.parametrize(
    ("changes", "policies", "sentence"),
    [
        (["train.model=model"], [], "train.model: 'model' does not name a function; write file.py:function"),
        (["train.model=HERE/none.py:make"], [], "train.model: The file .*none.py does not exist"),
        (["dynamic={method: HERE/none.py:Half}"], [], "dynamic: The file .*none.py does not exist"),
        (["embed.embedder=torch:HERE/none.py:net"], [], "embed.embedder: The file .*none.py does not exist"),
        (
            ["dynamic={method: HERE/own.py:Fails}"],
            [],
            "dynamic: .*Fails raised ZeroDivisionError .* in line 16",
        ),
        (["dynamic={method: HERE/own.py:Drawn}"], [], "dynamic: Drawn.plan returned two different plans for"),
        ([], ["own.py:Fails"], r"policies.own.py:Fails: .*Fails raised ZeroDivisionError"),
        ([], ["own.py:NeedArgument"], r"The key 'policies.own.py:NeedArgument.share' is missing"),
        ([], ["own.py:NoPlan"], "policies.own.py:NoPlan: A policy needs .* but NoPlan has no plan"),
        ([], ["own.py:NoUpdate"], "policies.own.py:NoUpdate: .* but NoUpdate has no update"),
        (
            [],
            ["own.py:Changeable"],
            "policies.own.py:Changeable: The policy Changeable must be a frozen dataclass",
        ),
        (
            ["dynamic={method: HERE/own.py:Empty}"],
            [],
            "dynamic: Empty.plan returned an empty plan for epoch 0 of 60",
        ),
        (["select={method: HERE/own.py:NoPlan}"], [], "NoPlan has no method 'select"),
        (
            ["select={method: HERE/own.py:Vectors}", "embed={embedder: HERE/own.py:Wide, column: v}"],
            [],
            "Embedder wide returned float64 of shape",
        ),
        (
            ["select={method: HERE/own.py:Vectors}", "embed={embedder: HERE/own.py:Wide, column: nope}"],
            [],
            "embed.column: There is no column 'nope'",
        ),
        (["select={method: HERE/own.py:Vectors}", "embed={embedder: column, column: text}"], [], "text"),
        (["select={method: HERE/own.py:Vectors}", "embed={embedder: 'hash:8', column: v}"], [], "v"),
        (
            ["embed.embedder={method: 'pca:2', whiten: true}"],
            [],
            "'embed.embedder': The embedder 'pca:2' takes no parameters",
        ),
    ],
)
def test_what_run_would_trip_over(folder, changes, policies, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence) as caught:
        check(folder, *changes, policies=policies)
    assert "\n" not in str(caught.value)


def test_more_components_than_a_column_of_plain_lists_has(folder):
    table = pq.read_table(folder / "pool.parquet")
    lists = pa.array(table["v"].combine_chunks().to_numpy_ndarray().tolist(), pa.list_(pa.float32()))
    pq.write_table(table.set_column(0, "v", lists), folder / "pool.parquet")
    select = "select={method: HERE/own.py:Vectors}"
    check(folder, select, "embed={embedder: 'pca:4', column: v}")
    with pytest.raises(
        ConfigError, match=r"embed\.embedder: 'pca:5' has 5 components, but the column has 4 elements"
    ):
        check(folder, select, "embed={embedder: 'pca:5', column: v}")


@pytest.mark.parametrize(
    ("embed", "sentence"),
    [
        (
            "{embedder: 'pca:2', column: text}",
            r"embed\.column \(files of pool\.path\): Column 'text' holds string, not numbers\. Choose an embedder of text: hash:N",
        ),
        (
            "{embedder: 'sentence-transformers:none', column: v}",
            r"Column 'v' .*not text\. Choose an embedder of numbers",
        ),
        (
            "{embedder: table, column: [text, v]}",
            r"embed\.column \(files of pool\.path\): Column 'v' .*neither a number.*these types\.$",
        ),
        (
            "{embedder: 'pca:2', column: [v, text]}",
            r"embed\.column: Embedder pca:2 takes one column, not 2 \(v, text\)",
        ),
        ("{embedder: table, column: [text, nope]}", r"embed\.column: There is no column 'nope'"),
        ("{embedder: table, column: []}", r"embed\.column"),
    ],
)
def test_what_types_show_is_found_without_running_anything(folder, embed, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        look(folder, f"embed={embed}")


def test_components_of_nested_lists_of_one_length(folder):
    table = pq.read_table(folder / "pool.parquet")
    flat = pa.array(np.ones(len(table) * 6, np.float32))
    nested = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 3), 2)
    pq.write_table(table.append_column("nested", nested), folder / "pool.parquet")
    look(folder, "embed={embedder: 'pca:6', column: nested}")
    with pytest.raises(ConfigError, match="'pca:7' has 7 components, but the column has 6 elements"):
        look(folder, "embed={embedder: 'pca:7', column: nested}")


def test_what_is_not_checked_is_listed(folder):
    flow = config.load(
        folder / "flow.yaml", ["dynamic={method: own.py:Twenty}", "embed.embedder=timm:resnet18"]
    )
    assert [line.partition(":")[0] for line in unloaded(flow)] == ["dynamic", "embed.embedder", "train.model"]


def test_what_cannot_be_fingerprinted_is_found_with_the_key_to_give(folder):
    """A step would refuse it as well, after the steps before it have run."""
    locked = "import threading\nlock = threading.Lock()\n"
    (folder / "model.py").write_text(
        locked + (MODEL % "classes").replace("    return", "    lock.locked()\n    return")
    )
    with pytest.raises(ConfigError, match=r"Model '.*model.py:make' .*'lock'.*give train\.version\."):
        check(folder)
    check(folder, "train.version='1'")
    (folder / "own.py").write_text(
        locked
        + OWN
        + "\n@dataclass(frozen=True)\nclass Locked(raysel.FullData):\n    def select(self, pool): lock\n"
    )
    for role in ("dynamic", "select"):
        method = f"{role}={{method: HERE/own.py:Locked"
        with pytest.raises(
            ConfigError,
            match=rf"Method '.*own.py:Locked' .*'lock'.*give version next to method, at '{role}'\.",
        ):
            check(folder, "train.version='1'", method + "}")
        check(folder, "train.version='1'", method + ", version: '1'}")


def test_code_that_calls_ray_joins_no_cluster_that_ray_finds_by_itself(folder, monkeypatch):
    """Ray would join the cluster of RAY_ADDRESS, or wait for one that is gone."""
    joined = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(
        "ray.init", lambda address=None, **_: joined.append(address or os.environ["RAY_ADDRESS"])
    )
    monkeypatch.setattr("raysel.cluster.connect._check", lambda where: None)
    calls = (MODEL % "classes").replace("    return", "    ray.get_runtime_context()\n    return")
    (folder / "model.py").write_text("import ray\n" + calls)
    monkeypatch.setenv("RAY_ADDRESS", "gone:6379")
    done = CliRunner().invoke(cli, ["validate", str(folder / "flow.yaml"), "--load"])
    assert done.exit_code == 0 and "is valid" in done.output, done.output
    assert joined == ["local"] and os.environ["RAY_ADDRESS"] == "gone:6379"

    def end(*_):
        raise InterruptedError

    monkeypatch.setattr(steps, "check_room", end)
    test = f"test={{path: {folder}/pool.parquet, label: kind}}"
    flow = config.load(folder / "flow.yaml", [test, "dynamic={method: infobatch}"])
    for start in (raysel.run, raysel.compare):  # on the cluster that is joined, which happens first
        monkeypatch.setenv("RAY_ADDRESS", "gone:6379")
        joined.clear()
        with pytest.raises(InterruptedError):
            start(flow, address="head:1")
        assert joined[0] == "head:1"
        monkeypatch.delenv("RAY_ADDRESS")
        joined.clear()
        with pytest.raises(InterruptedError):
            start(flow)
        assert joined == ["local", "local"] and "RAY_ADDRESS" not in os.environ
