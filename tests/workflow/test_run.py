"""The whole quickstart on a real local cluster, and what a run directory promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysel import Selection
from raysel.core import storage
from raysel.errors import ConfigError, DataError, ResourceError, RunError
from raysel.report.results import RunResults
from raysel.workflow import config, lock, steps
from raysel.workflow.explain import explain
from raysel.workflow.load import load_check
from raysel.workflow.run import Progress, report, run, runs
from raysel.workflow.steps import train
from tests.golden import results as golden

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The shipped workflow on freshly written digits, as its overrides would make it."""
    data = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(data)], check=True)
    paths = [f"{role}.path={data}/{role}.parquet" for role in ("pool", "target", "test")]
    return lambda *more: config.load(ROOT / "workflows/quickstart.yaml", [*paths, *more])


@pytest.fixture(scope="module")
def finished(cluster, quickstart, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    return out, run(quickstart(), out)


def killed(*_, **__):
    raise KeyboardInterrupt


def chosen_in(out: Path) -> Path:
    return next(out.glob("steps/select-*/selection"))


def test_the_quickstart_does_what_it_says(finished, quickstart):
    out, results = finished
    flow = quickstart()
    assert [getattr(results.data, role) for role in ("pool", "target", "test")] == [1517, 100, 180]
    assert results.selection.kept == round(0.3 * 1517) == 455
    assert list(results.arms) == ["full", "random", "chain"]
    full, random, chain = (results.ledger.entry(name) for name in ("full", "random", "chain"))
    assert (full.rows, random.rows, chain.rows) == (1517, 455, 455)
    assert full.samples_backward == 1517 * 12 and full.steps == 12 * -(-1517 // 32)
    assert random.steps == chain.steps < full.steps
    plans = [epoch.planned for epoch in results.arms["chain"].epochs]
    assert plans[0] == plans[-1] == plans[-2] == 455 and 455 * 0.5 < np.mean(plans[1:10]) < 455 * 0.9
    assert [epoch.epoch for epoch in results.arms["chain"].epochs] == list(range(flow.train.epochs))
    assert (
        chain.seconds["embedding"] > 0 and chain.seconds["selection"] > 0 and full.seconds["embedding"] == 0
    )
    # It learns, and the choice is aimed at the target: the classes 0 to 4.
    assert full.metrics["accuracy"] > 0.85 and chain.metrics["accuracy"] > 0.85
    kept = {c.label: c.kept for c in results.selection.classes}
    assert sum(kept[str(i)] for i in range(5)) > 3 * sum(kept[str(i)] for i in range(5, 10))
    log = (out / "log.txt").read_text()
    assert re.search(r"\+00:00  train-chain +[\d.]+ s ", log) and results.ledger.text().splitlines()[3] in log
    assert json.loads((out / "ledger.json").read_text()) and "quickstart" in (out / "report.html").read_text()


def test_the_quickstart_gives_the_pinned_results(finished):
    out, results = finished
    expected = json.loads(golden.EXPECTED.read_text())["quickstart"]
    assert golden.quickstart(results, Selection.load(chosen_in(out))) == expected


def test_selection_never_looks_at_what_only_scores(finished, quickstart):
    out, _ = finished
    pool = pq.read_table(quickstart().pool.path)
    junk = pool["junk"].to_numpy()
    chosen = Selection.load(chosen_in(out))
    assert junk[chosen.ids].mean() < junk.mean() / 1.5
    assert {"junk", "label"}.isdisjoint(
        name for path in out.glob("steps/embed-*/*/*.parquet") for name in pq.read_schema(path).names
    )


def test_a_second_run_reuses_every_step(finished, quickstart, capsys):
    out, results = finished
    capsys.readouterr()
    again = run(quickstart(), out, progress=Progress(sys.stderr))
    lines = capsys.readouterr().err.splitlines()
    taken, lines = lines[:3], lines[3:]
    assert [line.split()[:3] for line in taken] == [
        ["pool", "1,517", "rows"],
        ["target", "100", "rows"],
        ["test", "180", "rows"],
    ]
    assert len(lines) == 11 and all("  reused" in line for line in lines)
    assert again == results == RunResults.load(out / "results.json") and again.path == str(out)


@pytest.mark.slow
def test_two_runs_make_byte_identical_selections_and_a_killed_one_goes_on(
    cluster, finished, quickstart, tmp_path, monkeypatch
):
    out, _ = finished
    flow = quickstart("train.epochs=2", "controls=[]", "train.workers=1", "train.cpus_per_worker=0.5")

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(flow, tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    for name in ("selection.parquet", "dropped.parquet", "selection.json"):
        assert (chosen_in(out) / name).read_bytes() == (chosen_in(tmp_path / "run") / name).read_bytes()
    before = chosen_in(tmp_path / "run").stat().st_mtime_ns
    results = run(flow, tmp_path / "run")
    assert chosen_in(tmp_path / "run").stat().st_mtime_ns == before
    assert list(results.arms) == ["chain"] and len(results.arms["chain"].epochs) == 2


@pytest.mark.slow  # runs of the quickstart
def test_a_run_on_an_object_store_makes_the_same_selection_and_resumes(
    cluster, finished, quickstart, s3, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "_RENEW_S", 0.2)
    settings = quickstart()
    for role in ("pool", "target", "test"):
        storage.write_bytes(f"{s3}/data/{role}.parquet", Path(settings.rows(role).path).read_bytes())
    paths = [f"{role}.path={s3}/data/{role}.parquet" for role in ("pool", "target", "test")]
    flow = quickstart(*paths, "train.epochs=2", "controls=[]", "train.workers=1", "train.cpus_per_worker=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(flow, f"{s3}/run")
    results = run(flow, Path(f"{s3}/run"))
    out = storage.output(f"{s3}/run")
    assert results.path == str(out) and len(results.arms["chain"].epochs) == 2
    selection = out / results.selection.folder
    local, _ = finished
    for name in ("selection.parquet", "dropped.parquet"):  # the information names the digests of the files
        assert storage.read_bytes(selection / name) == (chosen_in(local) / name).read_bytes()
    there = set(storage.entries(out))
    assert there == {
        "index",
        "ledger.json",
        "log.txt",
        "manifest.json",
        "report.html",
        "results",
        "results.json",
        "steps",
    }
    steps_there = storage.entries(out / "steps")
    assert all(storage.exists(out / "steps" / name / "done.json") for name in steps_there)
    train_step = next(name for name in steps_there if name.startswith("train-chain-"))
    checkpoints = storage.entries(out / "steps" / train_step / "ray" / train_step)
    assert [name for name in checkpoints if name.startswith("checkpoint_")]
    capsys.readouterr()
    assert run(flow, out) == results == RunResults.load(out / "results.json")
    lines = capsys.readouterr().err.splitlines()[3:]
    assert len(lines) == len(steps_there) and all("  reused" in line for line in lines)
    assert "455" in explain(out) and len(runs(out)) == 1 and storage.exists(report(out))
    assert os.listdir(tmp_path) == []


def test_a_step_that_failed_leaves_nothing_that_looks_finished(cluster, quickstart, tmp_path, monkeypatch):
    flow = quickstart("train.epochs=1", "controls=[]")

    def half(step, this, directory):
        (directory / "part.parquet").write_bytes(b"half")
        raise DataError("the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(steps.Embed, "run", half)
        with pytest.raises(DataError, match="disk is full"):
            run(flow, tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/*/done.json"))
    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(flow, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("part.parquet"))
    assert len(Selection.load(chosen_in(tmp_path / "run"))) == 455


def test_an_output_that_is_not_ours_is_left_alone(cluster, quickstart, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="is not empty and not a run directory"):
        run(quickstart(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is not empty and not a run directory"):
        run(quickstart(), tmp_path / "thesis.tex")
    with pytest.raises(RunError, match="No report can be written from"):
        report(tmp_path)


def test_changed_rows_are_noticed_and_what_depends_on_them_runs_again(
    cluster, quickstart, tmp_path, monkeypatch, capsys
):
    """Ten corrected labels of the same size: the file keeps its size and its footer may keep its digest."""
    pool = pq.read_table(quickstart().pool.path)
    pq.write_table(pool, tmp_path / "pool.parquet")
    flow = quickstart(f"pool.path={tmp_path}/pool.parquet", "controls=[]")
    monkeypatch.setattr(train, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(flow, tmp_path / "run")
    labels = pool["label"].to_numpy().copy()
    labels[[3, 4]] = labels[[4, 3]]
    assert labels[3] != labels[4]
    pq.write_table(pool.set_column(1, "label", [labels]), tmp_path / "pool.parquet")
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        run(flow, tmp_path / "run", progress=Progress(sys.stderr))
    lines = capsys.readouterr().err
    assert "The files of pool.path changed; the steps that depend on these files run again." in lines
    assert "reused" not in lines
    assert len(list((tmp_path / "run").glob("steps/arrays-*/done.json"))) == 2


def test_rows_that_change_under_a_step_are_not_kept(cluster, quickstart, tmp_path, monkeypatch):
    pool = pq.read_table(quickstart().pool.path)
    pq.write_table(pool, tmp_path / "pool.parquet")
    flow = quickstart(f"pool.path={tmp_path}/pool.parquet", "controls=[]")

    def written_to(step, this, directory):
        pq.write_table(pool.slice(1), tmp_path / "pool.parquet")
        return {}

    monkeypatch.setattr(steps.Embed, "run", written_to)
    with pytest.raises(
        RunError,
        match=r"pool.parquet has changed since the ids of its rows were recorded.*while the step 'embed' ran",
    ):
        run(flow, tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/embed-*/done.json"))


def test_more_workers_than_can_be_placed_is_said_before_anything_is_done(cluster, quickstart, tmp_path):
    with pytest.raises(ResourceError, match=r"5 workers of 1 CPU cannot be placed: the cluster has 2 CPU"):
        run(quickstart("train.workers=5"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ResourceError, match=r"1 workers of 3 CPU cannot be placed"):
        steps.check_room(1, 3.0, 0.0)
    with pytest.raises(ResourceError, match=r"and 1 GPU cannot be placed"):
        steps.check_room(1, 1.0, 1.0)
    steps.check_room(4, 0.5, 0.0)


def test_another_model_is_trained_anew_and_the_choice_is_kept(cluster, quickstart, tmp_path, monkeypatch):
    code = "from layers import net\ndef make(shape, classes):\n    return net(64, classes, {})\n"
    layers = "import torch\ndef net(size, classes, wide):\n    return torch.nn.Sequential(torch.nn.Flatten(), {})\n"
    linear = "torch.nn.Linear(size, classes)"
    (tmp_path / "net.py").write_text(code.format(1))
    (tmp_path / "layers.py").write_text(layers.format(linear))
    flow = quickstart(f"train.model={tmp_path}/net.py:make", "controls=[]")
    made = []
    monkeypatch.setattr(train, "fit", lambda *a, **k: made.append(a[3].name) or killed())

    def go():
        with pytest.raises(KeyboardInterrupt):
            run(flow, tmp_path / "run")
        return len(set(made))

    assert go() == 1
    (tmp_path / "net.py").write_text("# a comment\n\n" + code.format(1))
    assert go() == 1
    (tmp_path / "net.py").write_text(code.format(2))
    assert go() == 2
    (tmp_path / "layers.py").write_text(layers.format(f"torch.nn.Dropout(0.5), {linear}"))
    assert go() == 3
    assert len(list((tmp_path / "run").glob("steps/select-*"))) == 1


def test_two_processes_do_not_share_a_run(cluster, quickstart, tmp_path, monkeypatch):
    flow = quickstart("controls=[]")

    def second(*_):
        run(flow, tmp_path / "run")

    monkeypatch.setattr(steps.Embed, "run", second)
    with pytest.raises(RunError, match="is in use by another process"):
        run(flow, tmp_path / "run")


def test_a_busy_cluster_is_waited_for_only_so_long(cluster):
    import ray

    @ray.remote(num_cpus=2)
    class Busy:
        def ready(self):
            return True

    busy = Busy.remote()
    ray.get(busy.ready.remote())
    try:
        with pytest.raises(ResourceError, match="could not be placed within 1 s"):
            steps.check_room(2, 1.0, 0.0, 1.0)
    finally:
        ray.kill(busy)
    steps.check_room(2, 1.0, 0.0)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("pool.path=none.parquet", r"pool.path: .*none.parquet does not exist"),
        (
            "pool.path=flow.yaml",
            r"pool.path: The format of .*flow.yaml is recognised neither by its name nor by its first bytes",
        ),
        (
            "pool.label=klass",
            r"pool.label: There is no label column 'klass' in the files of pool.path; the columns are pixels, label, junk",
        ),
        ("embed.column=vector", r"embed.column: There is no column 'vector'"),
        ("train.input=image", r"train.input: There is no column 'image'"),
        ("select.budget=1.5", r"select.budget: 1.5 is not a share"),
        ("select.budget=5000", r"select.budget: 5,000 rows are more than the 1,517 rows of the pool"),
        ("target=null", r"'target' is missing"),
        ("train.model=models.py", r"train.model: 'models.py' does not name a function"),
        ("train.model=none.py:mlp", r"train.model: The file .*none.py does not exist"),
        ("train.model=json:nothing", r"train.model: json has no function 'nothing'"),
        ("train.model=no.such.module:f", r"train.model: no.such.module cannot be loaded"),
        ("train.model=:f", r"train.model: ':f' does not name a function"),
        (
            "embed.embedder=nonsense",
            r"'embed.embedder' is 'nonsense', but there is no such name. The known names are column, pca",
        ),
        ("embed.embedder=pca:-1", r"embed.embedder: 'pca:-1' must end with the number of elements"),
        ("embed.embedder=pca:65", r"the column has 64 elements"),
        (
            "test.label=pixels",
            r"test.label: The label column 'pixels' .*holds .*a class must be an integer, a boolean or text",
        ),
        ("pool.label=null", r"'pool.label' is missing"),
    ],
)
def test_bad_input_is_said_before_ray_is_needed(quickstart, override, sentence, tmp_path):
    (tmp_path / "flow.yaml").write_text("name: x")
    key, value = override.split("=")
    value = str(tmp_path / value) if value.endswith((".parquet", ".yaml")) else value
    with pytest.raises((DataError, ConfigError), match=sentence):
        flow = quickstart(f"{key}={value}")
        steps.check(flow)
        load_check(flow)


def test_pool_and_target_of_other_dimension_or_without_rows(quickstart, tmp_path):
    import pyarrow as pa

    from raysel.data.vectors import to_column

    other = pa.table({"pixels": to_column(np.zeros((3, 7), np.float32)), "label": [0, 1, 2]})
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(
        DataError, match="vectors of the pool have 64 elements, but those of the target have 7"
    ):
        steps.check(quickstart(f"target.path={tmp_path}/other.parquet"))
    pq.write_table(other.slice(0, 0), tmp_path / "empty.parquet")
    for role in ("pool", "target"):
        with pytest.raises(DataError, match=f"{role}.path: There are no rows in .*empty.parquet"):
            steps.check(quickstart(f"{role}.path={tmp_path}/empty.parquet"))


def test_a_model_file_that_raises_and_a_stratum_that_is_not_there(quickstart, tmp_path):
    (tmp_path / "net.py").write_text("1 / 0")
    flow = quickstart(f"train.model={tmp_path}/net.py:make")
    steps.check(flow)  # runs no code that the workflow names
    with pytest.raises(ConfigError, match=r"train.model: .*net.py.*ZeroDivisionError"):
        load_check(flow)
    flow = quickstart("select={method: random, budget: 0.5, stratify: colour}")
    with pytest.raises(DataError, match=r"select.stratify: The pool has no column 'colour'"):
        steps.check(flow)
    steps.check(quickstart("select={method: random, budget: 0.5, stratify: label}"))


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff\xfe", b"{"])
def test_results_that_are_no_results(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(RunError, match="No report can be written from"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            "nan",
            r"holds NaN or infinite values in 2 rows \(sample_id 3, 700\); repair or drop these rows first.",
        ),
        (
            "ragged",
            r"vectors of different lengths: most have 64 elements, but 1 of \d+ rows \(sample_id 5\) has 10.",
        ),
        ("unlabelled", r"^pool.label: 1 rows have no label in column 'label'; label or drop them first.$"),
    ],
)
def test_rows_that_cannot_be_used_are_said_in_one_line(cluster, quickstart, tmp_path, bad, sentence, capfd):
    import pyarrow as pa

    from raysel.data.vectors import to_column

    table = pq.read_table(quickstart().pool.path)
    pixels = table["pixels"].combine_chunks().to_numpy_ndarray().reshape(-1, 64).copy()
    if bad == "nan":
        pixels[[3, 700], 7] = np.nan
        table = table.set_column(0, "pixels", to_column(pixels))
    elif bad == "ragged":
        rows = pixels.tolist()
        rows[5] = rows[5][:10]
        table = table.set_column(0, "pixels", pa.array(rows, pa.list_(pa.float32())))
    else:
        table = table.set_column(1, "label", pa.array([None if i == 4 else i % 5 for i in range(len(table))]))
    pq.write_table(table, tmp_path / "pool.parquet", row_group_size=256)
    with pytest.raises(DataError, match=sentence) as caught:
        run(quickstart(f"pool.path={tmp_path}/pool.parquet", "controls=[]"), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()
