"""After one key is changed, a run in the same directory repeats only the steps that depend on it."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError, RunError
from raysel.report.results import Epoch, Goal
from raysel.workflow import config, steps
from raysel.workflow.explain import explain
from raysel.workflow.run import Progress, run, runs
from raysel.workflow.steps import train
from tests.train.rows import logged

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


def not_trained(this, policy, rows, directory, *, max_steps=None, title="", workers=None, log=None):
    count = this.count(rows)
    ids = np.arange(count) if rows is None else rows.ids
    logged(directory, ids, np.ones(count, np.float32))
    epoch = asdict(Epoch(0, count, count, 1, loss=1.0, seconds=1.0))
    return {
        "rows": count,
        "epochs": [epoch],
        "metrics": {"rmse": 0.5},
        "goal": asdict(Goal("rmse", "min")),
        "startup": 0.0,
        "started": True,
    }


@pytest.fixture
def go(cluster, folder, monkeypatch, capsys):
    """Run with some keys changed; returns the results and the steps that were not reused."""
    monkeypatch.setattr(train, "fit", not_trained)

    def run_again(*changes, fresh=False):
        capsys.readouterr()
        flow = config.load(folder / "flow.yaml", list(changes))
        results = run(flow, folder / "run", progress=Progress(sys.stderr), fresh=fresh)
        lines = capsys.readouterr().err.splitlines()
        said = {line.split()[0] for line in lines if not line.endswith("reused")}
        return results, said - {"pool", "target"}  # what was read of them

    return run_again


def test_seconds_of_reused_steps_are_those_of_an_earlier_run(go, folder, monkeypatch):
    first, _ = go("controls=[random, full]")
    assert first.ledger.reused == ""
    monkeypatch.setattr("raysel.workflow.run.now", lambda: "2030-01-01T00:00:00+00:00")
    again, _ = go("controls=[random, full]", "select.budget=0.2")
    assert again.ledger.reused == (
        "The seconds of these arms are from earlier runs in this directory, whose results were reused: full pool (all stages); GIO + InfoBatch "
        "(embedding)."
    )
    assert again.created == "2030-01-01T00:00:00+00:00" == runs(folder / "run")[-1][0].created
    assert runs(folder / "run")[-1][0].ledger.reused == again.ledger.reused
    page = (folder / "run/report.html").read_text()
    assert again.ledger.reused in page and "2030-01-01 00:00 UTC" in page


def test_vectors_of_several_columns(go, folder):
    for name, count in (("pool", 300), ("target", 60)):
        table = rows(count, count).append_column("size", pa.array(range(count)))
        table = table.append_column("colour", pa.array(["red", "blue"] * (count // 2)))
        pq.write_table(table, folder / f"{name}.parquet")
    several = ("embed.embedder=table", "embed.column=[size, colour]")
    assert "embed" in go(*several)[1]
    (file,) = (folder / "run").glob("steps/embed-*/vectors/target/*-*.parquet")
    assert pq.read_schema(file).field("embedding").type.shape == [2 + 16]
    assert go(*several)[1] == set()
    assert "embed" in go("embed.embedder=table", "embed.column=[colour, size]")[1]


def test_another_value_runs_what_depends_on_it(go, folder):
    first, ran = go()
    assert ran == set(
        ["embed", "select", "random", "classes", "gallery", "arrays", "train-chain", "train-random", "labels"]
    )
    assert first.goal == first.ledger.goal == Goal("rmse", "min") and first.score("chain") == 0.5
    # 40 % of 300 rows in one epoch, against all rows in the two epochs of the workflow.
    assert first.ledger.full_samples == 600 and first.ledger.saving_samples("chain") == 0.8
    assert "test RMSE of 0.5000 (lower is better)" in (folder / "run/report.html").read_text()
    assert go()[1] == set()
    again, ran = go("select.budget=0.2")
    assert ran == set(
        ["select", "random", "classes", "gallery", "arrays", "train-chain", "train-random", "labels"]
    )
    assert (first.arms["chain"].rows, again.arms["chain"].rows) == (120, 60)
    assert go("controls=[random, full]")[1] == {"arrays", "train-full"}  # and no other arm again
    assert go("train.epochs=3")[1] == {"train-chain", "train-random", "labels"}
    assert go("dynamic.prune_ratio=0.4")[1] == {"train-chain", "labels"}
    assert go("train.max_failures=5")[1] == set()  # decides no result
    assert go("embed.normalize=true")[1] == set(
        ["embed", "select", "classes", "gallery", "arrays", "train-chain", "labels"]
    )
    assert go("seed=1")[1] == set(
        ["select", "random", "classes", "gallery", "arrays", "train-chain", "train-random", "labels"]
    )
    assert go()[1] == set()  # the first one is still there
    # Nothing was left out of a key: the results of a configuration do not depend on what was run before it.
    assert go()[0] == first

    found = runs(folder / "run")
    assert len(found) == 8 and found[-1][1] != []
    changes = {path: (there, here) for _, differences in found for path, there, here in differences}
    assert changes["select.budget"] in ((0.4, 0.2), (0.2, 0.4))


def test_a_version_stands_for_code_and_not_for_parameters(go):
    go("train.version='1'")
    assert go("train.version='1'")[1] == set()
    changed = "train.task={method: classification, max_length: 9}"
    assert go("train.version='1'", changed)[1] == {"train-chain", "train-random", "labels"}


def test_selectors_follow_each_other_and_read_the_classes(go, folder):
    chain = "select=[{method: deduplicate}, {method: density_ratio, budget: 30, clusters: 10, per_class: uniform}]"
    found, ran = go(chain)
    assert {"select-0", "select-1"} <= ran or len([one for one in ran if one.startswith("select")]) == 2
    assert [entry.kept for entry in found.selection.classes] == [10, 10, 10]
    assert any("duplicates" in note for note in found.selection.notes)
    assert any("classifier" in note for note in found.selection.notes)
    said = explain(folder / "run")
    assert said.startswith("Selected: 30 rows\n  30  drawn ") and "Dropped: 270 rows" in said
    row = int(re.search(r"Dropped.*\(sample_id (\d+)", said, re.S)[1])
    assert re.match(
        rf"sample_id {row} was dropped: .*\.\n  file: pool.parquet, row {row} \(",
        explain(folder / "run", row),
    )
    with pytest.raises(ConfigError, match="sample_id 300"):
        explain(folder / "run", 300)
    with pytest.raises(RunError, match="not the directory of a finished run"):
        explain(folder)
    by_target = chain.replace("uniform", "target")
    kinds = np.bincount(pq.read_table(folder / "target.parquet")["kind"].to_numpy())
    wanted = [entry.kept for entry in go(by_target)[0].selection.classes]
    assert np.abs(np.array(wanted) - kinds / 2).max() <= 1
    with pytest.raises(DataError, match=r"select\.1\.label: The pool has no column 'gone'"):
        go(chain.replace("per_class: uniform", "per_class: uniform, label: gone"))


def test_fresh_starts_over_and_another_format_is_refused(go, folder):
    go()
    manifest = folder / "run" / "manifest.json"
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**held, "format": 1}))
    with pytest.raises(
        RunError, match=r"written in format 1, but this version of raysel uses format 2; use --fresh"
    ):
        go()
    assert len(go(fresh=True)[1]) == 9
    manifest.write_text("{")
    with pytest.raises(RunError, match=r"manifest.json is damaged; use --fresh"):
        go()
    assert len(go(fresh=True)[1]) == 9
    assert len(list((folder / "run" / "results").glob("*.json"))) == 1
    (folder / "run" / "manifest.json").unlink()
    with pytest.raises(RunError, match="is not empty and not a run directory of raysel"):
        go(fresh=True)  # what is not ours is not removed


def test_rows_that_are_added_keep_the_ids_of_the_others(go, folder):
    pool = folder / "pool"
    pool.mkdir()
    (folder / "pool.parquet").rename(pool / "m.parquet")
    go(f"pool.path={pool}")
    pq.write_table(rows(40, 7), pool / "a.parquet")  # sorts first
    results, ran = go(f"pool.path={pool}")
    assert {"inputs", "embed", "select"} <= ran
    index = json.loads(next((folder / "run" / "index").glob("pool-*.json")).read_text())
    assert [file["path"].rsplit("/")[-1] for file in index["files"]] == ["m.parquet", "a.parquet"]
    assert results.data.pool == 340


def test_a_damaged_step_is_said(go, folder):
    go()
    (done,) = (folder / "run").glob("steps/select-*/done.json")
    done.write_text("{")
    with pytest.raises(RunError, match=r"done.json is damaged \(.*\); remove the folder"):
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
        "identified by size and modification time instead of by content"
        in (folder / "run/report.html").read_text()
    )
    assert go("pool.trust=mtime")[1] == set()
    os.utime(folder / "pool.parquet", (1, 1))
    _, ran = go("pool.trust=mtime")
    assert {"inputs", "embed", "arrays"} <= ran


# ---- whose directory it is


@pytest.mark.parametrize("content", ['{"name": "my web app", "version": 3}', "{", "[1]", "\x00"])
def test_a_folder_of_something_else_is_never_removed(go, folder, content):
    (folder / "run" / "photos").mkdir(parents=True)
    (folder / "run" / "photos" / "a.jpg").write_text("precious")
    (folder / "run" / "manifest.json").write_text(content)
    for fresh in (False, True):
        with pytest.raises(RunError, match="is not empty and not a run directory of raysel"):
            go(fresh=fresh)
    assert (folder / "run" / "photos" / "a.jpg").read_text() == "precious"


def test_fresh_removes_what_a_run_writes_and_no_more(go, folder):
    go()
    (folder / "run" / "notes.txt").write_text("mine")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "kept").write_text("mine too")
    (folder / "run" / "compare.html").symlink_to(folder / "elsewhere" / "kept")
    assert len(go(fresh=True)[1]) == 9
    assert (folder / "run" / "notes.txt").read_text() == "mine"
    assert (folder / "elsewhere" / "kept").read_text() == "mine too"


def test_a_run_that_was_killed_in_its_first_moments_can_be_started_again(go, folder):
    (folder / "run").mkdir()
    (folder / "run" / ".lock").touch()
    (folder / "run" / ".manifest.json.123.tmp").write_text("{")
    assert len(go()[1]) == 9
    manifest = folder / "run" / "manifest.json"
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: held[key] for key in ("kind", "format")}))
    with pytest.raises(RunError, match="damaged; use --fresh"):
        go()


# ---- what decides a result


def test_a_file_that_comes_during_a_run_is_not_read_in_it(go, folder, monkeypatch):
    pool = folder / "pool"
    pool.mkdir()
    (folder / "pool.parquet").rename(pool / "m.parquet")
    select, original = steps.Select, steps.Select.run

    def grown(step, this, directory):
        pq.write_table(rows(40, 7), pool / "n.parquet")
        return original(step, this, directory)

    with monkeypatch.context() as patch:
        patch.setattr(select, "run", grown)
        results, _ = go(f"pool.path={pool}")
    assert results.data.pool == 300
    (pool / "n.parquet").unlink()
    again, ran = go(f"pool.path={pool}")
    assert ran == set() and again == results


def test_another_time_of_an_unchanged_file_throws_no_step_away(go, folder, monkeypatch):
    original = steps.Select.run

    def touched(step, this, directory):
        os.utime(folder / "pool.parquet")
        (folder / "target.parquet").chmod(0o600)
        return original(step, this, directory)

    monkeypatch.setattr(steps.Select, "run", touched)
    assert "select" in go()[1]


def test_names_of_files_and_labels_that_nothing_reads_do_not_matter(go, folder):
    go()
    (folder / "pool.parquet").rename(folder / "moved.parquet")
    assert go(f"pool.path={folder}/moved.parquet")[1] == set()
    assert go(f"pool.path={folder}/moved.parquet", "target.label=null")[1] == {"classes"}


def test_workflows_that_take_turns_in_a_directory_have_the_ids_they_have_alone(go, folder):
    pool = folder / "pool"
    pool.mkdir()
    pq.write_table(rows(40, 7), pool / "a.parquet")
    (folder / "pool.parquet").rename(pool / "b.parquet")
    first, _ = go(f"pool.path={pool}")
    go(f"pool.path={pool}/b.parquet")
    again, ran = go(f"pool.path={pool}")
    assert ran == set() and again == first


def test_files_that_rows_name_are_in_the_key_of_their_vectors(go, folder):
    (folder / "files").mkdir()
    paths = [str(folder / "files" / f"{number}.txt") for number in range(300)]
    for number, path in enumerate(paths):
        with open(path, "w") as file:
            file.write(str(number % 7))
    for role, count in (("pool", 300), ("target", 60)):
        table = pq.read_table(folder / f"{role}.parquet").append_column("path", pa.array(paths[:count]))
        pq.write_table(table, folder / f"{role}.parquet")
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "class Length:\n"
        "    name, takes = 'length', 'text'\n"
        "    def __call__(self, rows):\n"
        "        return np.array([[float(open(path).read())] for path in rows], np.float32)\n"
    )
    changes = [f"embed={{embedder: {folder}/mine.py:Length, column: path}}"]
    assert "embed" in go(*changes)[1] and go(*changes)[1] == set()
    with open(paths[3], "w") as file:
        file.write("9")
    assert {"embed", "select"} <= go(*changes)[1]


SELECTOR = """
from dataclasses import dataclass
import numpy as np, raysel

@dataclass(frozen=True)
class Mine:
    first: int = 0
    count: int = 50
    pool: str = ""

    def select(self, pool, target=None):
        if self.pool:
            return raysel.Selection.load(self.pool)
        return raysel.Selection.of(np.arange(self.first, self.first + self.count))
"""


def test_a_selection_of_other_rows_is_refused_and_one_without_further_words_is_fine(go, folder):
    (folder / "mine.py").write_text(SELECTOR)
    name = f"{folder}/mine.py:Mine"
    results, _ = go(f"select={{method: {name}}}")
    assert (results.selection.kept, results.selection.pool, results.selection.method) == (50, 300, "own")
    both = f"select=[{{method: random, budget: 200}}, {{method: {name}}}]"
    with pytest.raises(DataError, match=r"The selector returned \d+ rows that it was not given"):
        go(both)
    with pytest.raises(
        DataError, match=r"The selector returned 50 rows that it was not given \(sample_id 300"
    ):
        go(f"select={{method: {name}, first: 300}}")
    pq.write_table(rows(90, 5), folder / "other.parquet")
    raysel.Random(20).select(raysel.read(folder / "other.parquet")).save(folder / "saved")
    with pytest.raises(DataError, match="This selection was made from other rows"):
        go(f"select={{method: {name}, pool: {folder}/saved}}")
    # A default that is written out, and another place of the same code, are the same selector.
    (folder / "moved").mkdir()
    (folder / "moved" / "mine.py").write_text(SELECTOR)
    assert go(f"select={{method: {folder}/moved/mine.py:Mine, count: 50}}")[1] == set()


POLICY = """
from dataclasses import dataclass
import raysel

@dataclass(frozen=True)
class Scored(raysel.FullData):
    needs_scores = True

    def with_scores(self, table):
        return self

    def parameters(self):
        return {"policy": "Scored"}
"""


def test_scores_of_a_policy_of_the_users_own_are_in_its_key(go, folder):
    (folder / "own.py").write_text(POLICY)
    changes = [f"dynamic={{method: {folder}/own.py:Scored}}", "factors={units: 12, k: 2, epochs: 1}"]
    assert {"factors", "train-chain"} <= go(*changes)[1] and go(*changes)[1] == {"usage"} - {"usage"}
    assert go(*changes, "factors.k=4")[1] == {"factors", "train-chain", "usage", "labels"}
