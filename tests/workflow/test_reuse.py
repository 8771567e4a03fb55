"""Changing one key in the same directory runs what depends on it again, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.vectors import to_column
from raysel.errors import RunError
from raysel.report.results import Epoch
from raysel.workflow import config
from raysel.workflow.run import Progress, run, runs
from raysel.workflow.steps import train

FLOW = """
name: small
pool: {path: pool.parquet, label: kind}
target: {path: target.parquet, label: kind}
embed: {column: v}
select: {method: gio, budget: 0.4, clusters: 20}
dynamic: {method: infobatch}
train: {model: "model.py:make", input: v, epochs: 2, workers: 1}
controls: [random]
"""


def rows(count, seed):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)
    v = (rng.normal(size=(count, 4)) + kind[:, None]).astype(np.float32)
    return pa.table({"v": to_column(v), "kind": kind})


@pytest.fixture
def folder(tmp_path):
    pq.write_table(rows(300, 0), tmp_path / "pool.parquet")
    pq.write_table(rows(60, 1), tmp_path / "target.parquet")
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )
    return tmp_path


@pytest.fixture
def go(cluster, folder, monkeypatch, capsys):
    """Run with some keys changed; returns the results and the steps that were not reused."""

    def not_trained(this, policy, rows, directory, *, name, max_steps=None, title=""):
        count = this.count(rows)
        epoch = asdict(Epoch(0, count, count, 1, loss=1.0, seconds=1.0))
        return {"rows": count, "epochs": [epoch], "accuracy": 0.5}

    monkeypatch.setattr(train, "fit", not_trained)

    def run_again(*changes, fresh=False):
        capsys.readouterr()
        flow = config.load(folder / "flow.yaml", list(changes))
        results = run(flow, folder / "run", progress=Progress(sys.stderr), fresh=fresh)
        lines = capsys.readouterr().err.splitlines()
        return results, {line.split()[0] for line in lines if not line.endswith("reused")}

    return run_again


def test_another_value_runs_what_depends_on_it(go, folder):
    first, ran = go()
    assert ran == {"embed", "select", "random", "classes", "arrays", "train-chain", "train-random"}
    assert go()[1] == set()
    again, ran = go("select.budget=0.2")
    assert ran == {"select", "random", "classes", "train-chain", "train-random"}
    assert (first.arms["chain"].rows, again.arms["chain"].rows) == (120, 60)
    assert go("controls=[random, full]")[1] == {"train-full"}
    assert go("train.epochs=3")[1] == {"train-chain", "train-random"}
    assert go("dynamic.prune_ratio=0.4")[1] == {"train-chain"}
    assert go("train.max_failures=5")[1] == set()  # decides no result
    assert go("embed.normalize=true")[1] == {"embed", "select", "classes", "train-chain"}
    assert go("seed=1")[1] == {"select", "random", "classes", "train-chain", "train-random"}
    assert go()[1] == set()  # the first one is still there
    # Nothing was left out of a key: the results of a configuration do not depend on what was run before it.
    assert go()[0] == first

    found = runs(folder / "run")
    assert len(found) == 8 and found[-1][1] != []
    changes = {path: (there, here) for _, differences in found for path, there, here in differences}
    assert changes["select.budget"] in ((0.4, 0.2), (0.2, 0.4))


def test_fresh_starts_over_and_another_format_is_refused(go, folder):
    go()
    manifest = folder / "run" / "manifest.json"
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**held, "format": 1}))
    with pytest.raises(
        RunError, match=r"written in format 1, this version of raysel works in format 2; use --fresh"
    ):
        go()
    assert len(go(fresh=True)[1]) == 7
    manifest.write_text("{")
    with pytest.raises(RunError, match=r"manifest.json: damaged; use --fresh"):
        go()
    assert len(go(fresh=True)[1]) == 7
    assert len(list((folder / "run" / "results").glob("*.json"))) == 1
    (folder / "run" / "manifest.json").unlink()
    with pytest.raises(RunError, match="not empty, and not a run of raysel"):
        go(fresh=True)  # what is not ours is not removed


def test_rows_that_are_added_keep_the_ids_of_the_others(go, folder):
    pool = folder / "pool"
    pool.mkdir()
    (folder / "pool.parquet").rename(pool / "m.parquet")
    go(f"pool.path={pool}")
    pq.write_table(rows(40, 7), pool / "a.parquet")  # sorts first
    results, ran = go(f"pool.path={pool}")
    assert {"inputs", "embed", "select"} <= ran
    index = json.loads((folder / "run" / "index" / "pool.json").read_text())
    assert [file["path"].rsplit("/")[-1] for file in index["files"]] == ["m.parquet", "a.parquet"]
    assert results.data.pool == 340


def test_a_damaged_step_is_said(go, folder):
    go()
    (done,) = (folder / "run").glob("steps/select-*/done.json")
    done.write_text("{")
    with pytest.raises(RunError, match=r"done.json: damaged; remove the folder"):
        go()


def test_weights_of_the_selection_are_in_the_keys_of_what_follows(go, folder, tmp_path):
    """A selector of the user's own that gives the same rows other weights."""
    code = (
        "from dataclasses import dataclass\n"
        "import numpy as np, raysel\n"
        "@dataclass(frozen=True)\n"
        "class Weighted:\n"
        "    weight: float = 1.0\n"
        "    def select(self, pool, target=None):\n"
        "        return raysel.Selection.of(np.arange(50), weight=self.weight, info={'pool_rows': 300, 'method': 'own'})\n"
    )
    (folder / "mine.py").write_text(code)
    select = f"select={{method: {folder}/mine.py:Weighted}}"
    first, ran = go(select)
    assert first.arms["chain"].title == "Weighted + InfoBatch" and "train-chain" in ran and "embed" not in ran
    assert go(select)[1] == set()
    assert "train-chain" in go(f"select={{method: {folder}/mine.py:Weighted, weight: 2.0}}")[1]
    (folder / "mine.py").write_text(code.replace("weight=self.weight", "weight=3 * self.weight"))
    assert {"select", "train-chain"} <= go(select)[1]
    (folder / "mine.py").write_text(
        "# moved\n\n" + code.replace("weight=self.weight", "weight=3 * self.weight")
    )
    assert go(select)[1] == set()


def test_trusted_files_are_compared_by_size_and_time_and_the_report_says_so(go, folder):
    results, _ = go("pool.trust=mtime")
    assert results.trusted == ("pool",)
    assert (
        "compared by size and modification time, not by content" in (folder / "run/report.html").read_text()
    )
    assert go("pool.trust=mtime")[1] == set()
    os.utime(folder / "pool.parquet", (1, 1))
    _, ran = go("pool.trust=mtime")
    assert {"inputs", "embed", "arrays"} <= ran
