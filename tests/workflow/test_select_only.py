"""A workflow without the key ``train`` selects rows, and a training that is added later reuses the selection."""

from __future__ import annotations

import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import raysel
from raysel.cli import cli
from raysel.data.vectors import to_column
from raysel.errors import ConfigError
from raysel.report.tables import run_text, runs_text
from raysel.workflow import config
from raysel.workflow.explain import explain
from raysel.workflow.run import Progress, report, run, runs

FLOW = """
name: small
pool: {path: pool.parquet, label: kind}
target: {path: target.parquet}
embed: {column: v}
select: {method: gio, budget: 0.4, clusters: 20}
"""
TRAIN = "train={model: 'model.py:make', input: v, epochs: 1, workers: 1, cpus_per_worker: 0.5}"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("pool", 300), ("target", 60)):
        kind = rng.integers(0, 3, count)
        v = (rng.normal(size=(count, 4)) + kind[:, None]).astype(np.float32)
        pq.write_table(pa.table({"v": to_column(v), "kind": kind}), tmp_path / f"{name}.parquet")
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    return tmp_path


def test_rows_are_selected_and_a_training_reuses_them(cluster, folder, capsys):
    def go(*changes):
        flow = config.load(folder / "flow.yaml", list(changes))
        found = run(flow, folder / "run", progress=Progress(sys.stderr))
        lines = capsys.readouterr().err.splitlines()
        return found, {line.split()[0] for line in lines if not line.endswith("reused")} - {"pool", "target"}

    found, ran = go()
    assert ran == {"embed", "select", "classes", "gallery"} and found.arms == {}
    text = run_text(found)
    assert text.startswith("GIO selected 120 of the 300 pool rows.\n\nSelection: ")
    assert eval(re.search(r"raysel\.Selection.*", text)[0]).count() == 120  # the line can be copied
    page = (folder / "run/report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Selection",
        "How to read this",
        "Configuration",
        "Versions",
    ]
    assert "GIO selected 120 of the 300 pool rows; no model was trained." in page
    assert not re.search(r"\bNaN\b|\bnan\b|\barm\b|[Ll]edger|seed does not", page)
    assert "Selected share of each class" in page and found.selection.folder in page
    assert explain(folder / "run").startswith("Selected: 120 rows")
    assert report(folder / "run").read_text() == page

    trained, ran = go(TRAIN)
    assert ran == {"arrays", "train-chain", "labels"} and trained.arms["chain"].rows == 120
    assert trained.selection.folder == found.selection.folder
    listed = runs_text(runs(folder / "run"))
    assert listed.count("120 / 300") == 2 and "train null -> {" in listed


def test_a_selection_by_gime_and_rows_without_vectors(cluster, folder):
    gime = "gime={binding: {classes: [kind]}, floors: {'0': 20, '1': 20, '2': 20}}"
    flow = config.load(folder / "flow.yaml", ["select=null", "embed=null", "target=null", gime])
    assert run(flow, folder / "gime").selection.kept == 60
    shares = pa.table({"text": ["a", "b"] * 50, "price": np.arange(100.0)})
    pq.write_table(shares, folder / "prices.parquet")  # the number to predict is no class
    pool = "pool={path: prices.parquet, label: price}"
    select = "select={method: random, budget: 30}"
    flow = config.load(folder / "flow.yaml", ["target=null", "embed=null", select, pool])
    chosen = run(flow, folder / "random").selection
    assert chosen.kept == 30 and chosen.classes == ()


def test_what_only_a_training_reads_is_refused(folder):
    for change in ("dynamic.method=infobatch", "controls=[full]", "factors.k=4", "validation=0.1", "test=t"):
        name = re.match(r"\w+", change)[0]
        with pytest.raises(ConfigError, match=f"The key '{name}' has no effect without the key 'train'"):
            config.load(folder / "flow.yaml", [change])
    defaults = config.load(folder / "flow.yaml", ["controls=[]", "dynamic.method=full", "test=null"])
    assert not defaults.trains and defaults.describe()["train"] is None
    for change in ("select=null", "select=[]"):
        with pytest.raises(ConfigError, match="neither the key 'train' nor a selection"):
            config.load(folder / "flow.yaml", [change])
    with pytest.raises(ConfigError, match="The key 'train' is missing: a comparison"):
        raysel.compare(folder / "flow.yaml")


def test_the_command_line_checks_a_workflow_without_training(folder):
    for options in ([], ["--load"]):
        result = CliRunner().invoke(cli, ["validate", str(folder / "flow.yaml"), *options])
        assert result.exit_code == 0 and "is valid (pool 300 rows, target 60 rows)" in result.output
        assert "Not checked" not in result.output
