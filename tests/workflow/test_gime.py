"""The metrics in a workflow: measured and carried on, chosen by before GIO and before training, their cost in the ledger."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel import Selection
from raysel.errors import ConfigError, DataError, RunError, StateError
from raysel.gime import State, measure
from raysel.report.ledger import Ledger
from raysel.report.results import Epoch, Goal
from raysel.workflow import config, steps
from raysel.workflow.lock import alone
from raysel.workflow.run import run
from raysel.workflow.steps import train
from raysel.workflow.steps.measure import metrics
from tests.train.rows import logged

FLOW = """
name: small
pool: {path: pool, label: kind}
target: {path: target.parquet, label: kind}
gime:
  binding: {entity: who, classes: kind, content: [x, y], event_time: at}
  by: part
  thresholds: {granularity.completeness: [0.95, null], volume.rows: [250, null]}
  floors: {"2": 60}
embed: {column: v}
select: {method: gio, budget: 0.4, clusters: 20}
train: {model: "model.py:make", input: v, epochs: 2, workers: 1}
controls: [random]
"""


def rows(count, seed, part):
    """A third of the cells of `y` are null in the parts called bad."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, count)
    v = rng.normal(size=(count, 2)).astype(np.float32) + kind[:, None]
    missing = rng.random(count) < (0.67 if part.startswith("bad") else 0.02)
    return pa.table(
        {
            "who": rng.integers(0, 40, count),
            "kind": kind,
            "x": v[:, 0],
            "y": pa.array(v[:, 1], mask=missing),
            "at": pa.array(1_700_000_000 + rng.integers(0, 10**6, count), pa.timestamp("s", "UTC")),
            "part": [part] * count,
            "v": pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), 2),
        }
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pool").mkdir()
    for seed, part in enumerate(("bad 1", "good 1", "good 2", "bad 2", "good 3")):
        pq.write_table(rows(120, seed, part), tmp_path / "pool" / f"{seed}.parquet")
    pq.write_table(rows(80, 99, "aim"), tmp_path / "target.parquet")
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "model.py").write_text(
        "import torch\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes).double()\n"
    )
    return tmp_path


def flow(folder, *changes):
    return config.load(folder / "flow.yaml", list(changes))


def pool(folder):
    return pa.concat_tables([pq.read_table(f) for f in sorted((folder / "pool").glob("*.parquet"))])


def not_trained(this, policy, rows, directory, *, max_steps=None, title="", workers=None, log=None):
    """What training would return, without half a minute of Ray Train."""
    count = this.count(rows)
    ids = np.arange(count) if rows is None else rows.ids
    logged(directory, ids, np.ones(count, np.float32))
    return {
        "rows": count,
        "epochs": [asdict(Epoch(0, count, count, 1, loss=1.0, seconds=1.0))],
        "metrics": {},
        "goal": asdict(Goal()),
        "startup": 0.0,
        "started": True,
    }


@pytest.mark.usefixtures("cluster")
def test_gime_then_gio_then_training_from_one_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", not_trained)
    out = tmp_path / "run"
    results = run(flow(folder), out)
    table = pool(folder)
    first = Selection.load(next(out.glob("steps/gime-*/selection")))
    kept = table.take(pa.array(first.ids))
    assert set(kept["part"].to_pylist()) <= {"good 1", "good 2", "good 3"} and len(first) == 360
    assert kept["kind"].to_pylist().count(2) >= 60
    last = Selection.load(next(out.glob("steps/select-*/selection")))
    assert len(last) == 144 == results.arms["chain"].rows and np.isin(last.ids, first.ids).all()
    dropped = dict(
        zip(last.dropped["sample_id"].to_pylist(), last.dropped["reason"].to_pylist(), strict=True)
    )
    assert sorted([*last.ids, *dropped]) == list(range(600)) and last.info["pool_rows"] == 600
    parts = table["part"].to_pylist()
    for at, reason in dropped.items():
        assert reason.startswith(parts[at]) if parts[at].startswith("bad") else "cluster" in reason
    assert {int(i) for f in out.glob("steps/embed-*/vectors/pool/part-*") for i in pq.read_table(f)["sample_id"].to_numpy()} == set(first.ids.tolist())  # fmt: skip

    chain, random = (results.ledger.entry(n) for n in ("chain", "random"))
    assert chain.title == "GIME + GIO" and random.rows == 144
    assert chain.seconds["metrics"] > 0 and chain.seconds["selection"] > 0 and random.seconds["metrics"] == 0
    measured = results.metrics
    assert list(measured.sets) == ["pool", "kept", "target"] and measured.reached["volume.rows"] == 360
    sets = pq.read_table(next(out.glob("steps/gime-*/sets.parquet")))
    whole = sets.filter(pa.array([s == "pool" for s in sets["set"].to_pylist()])).drop(["set"]).to_pylist()
    assert [r["value"] for r in whole if r["metric"] == "granularity"] == [
        r["value"] for r in measure(table, metrics(flow(folder).gime, table.schema).binding).to_pylist() if r["metric"] == "granularity"
    ]  # fmt: skip
    report = (out / "report.html").read_text()
    assert results.selection.method == "GIME, then GIO" and "GIME, then GIO selected" in report
    assert "granularity.completeness" in report and "<h2>Metrics</h2>" in report

    # rows instead of groups, thresholds from a calibration, its cost in the ledger
    calibrated = [
        "gime.by=null", "gime.thresholds={}", "gime.floors={}", "select=null", "controls=[]",
        "gime.calibrate={features: [x], mix: kind, rows: 80, count: 90, tolerance: 0.4, share: 0.7, statistics: [variety.effective_classes]}",
    ]  # fmt: skip
    results = run(flow(folder, *calibrated), tmp_path / "rows")
    spent = results.metrics.calibration
    assert spent.rows_trained == 90 * 80 + 600
    entry = Ledger.load(tmp_path / "rows" / "ledger.json").entry("chain")
    assert entry.title == "GIME" and entry.samples_proxy == 7800 and entry.seconds["metrics"] >= spent.seconds
    least = results.metrics.thresholds["variety.effective_classes"][0]
    assert results.metrics.reached["variety.effective_classes"] >= least and entry.rows >= 80
    with pytest.raises(RunError, match="No threshold passed the test"):
        run(flow(folder, *calibrated, "gime.calibrate.tolerance=0.0"), tmp_path / "none")
    with pytest.raises(
        ConfigError,
        match=r"No selection of groups was found that satisfies granularity\.completeness.* together",
    ):
        run(
            flow(
                folder, "gime.thresholds={granularity.completeness: [0.95, null], volume.rows: [500, null]}"
            ),
            tmp_path / "no",
        )


@pytest.mark.usefixtures("cluster")
def test_what_was_measured_is_not_read_again(folder, tmp_path, monkeypatch):
    from raysel.workflow import measure as room

    read, original = [], room.parquet_dataset
    names = lambda index: [file.path.rsplit("/")[-1] for file in index.files]  # noqa: E731
    monkeypatch.setattr(
        room, "parquet_dataset", lambda index: (read.append(names(index)), original(index))[1]
    )
    out = tmp_path / "kept"
    results = room.measure(flow(folder), out)
    assert [len(names) for names in read] == [5] and len(results.groups) == 5
    pq.write_table(rows(70, 7, "good 4"), folder / "pool" / "7.parquet")
    read.clear()
    results = room.measure(flow(folder), out)
    assert read == [["7.parquet"]]
    log = (out / "log.txt").read_text()
    assert log.count("raysel ") == 2 and "measure        1 files read, 5 reused" in log and "variety" in log
    with alone(out), pytest.raises(RunError, match="is in use by another process"):
        room.measure(flow(folder), out)
    assert "good 4" in results.groups and (out / "metrics.png").stat().st_size > 10_000
    anew = room.measure(flow(folder), tmp_path / "anew")
    assert anew == results
    for name in ("sets.arrow", "groups.arrow"):
        assert State.load(out / name).digest() == State.load(tmp_path / "anew" / name).digest()
    sets = pq.read_table(out / "sets.parquet")
    assert (
        set(sets["set"].to_pylist()) == {"pool", "target"}
        and "group" in pq.read_schema(out / "groups.parquet").names
    )

    read.clear()
    room.measure(flow(folder, "gime.binding.size=x", "gime.by=null", "gime.binding.size=null"), out)
    assert not read  # nothing is new, and the sets are the same
    room.measure(flow(folder, "gime.binding.relation=who"), out)
    assert [len(names) for names in read] == [6]  # another binding: all again
    pq.write_table(rows(60, 8, "bad 1"), folder / "pool" / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet has changed since .* Or remove .*kept"):
        room.measure(flow(folder, "gime.binding.relation=who"), out)
    with pytest.raises(ConfigError, match="The key 'gime' is missing"):
        room.measure(flow(folder, "gime=null"), out)
    (out / "sets.arrow").write_bytes(b"what another version wrote")
    with pytest.raises(
        StateError, match=r"sets\.arrow: This is not a saved state .*Remove .*kept to read all files"
    ):
        room.measure(flow(folder, "gime.binding.relation=who"), out)
    assert (out / "log.txt").read_text().endswith("kept to read all files again.\n")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "gime.binding.entty=who",
            "The key 'gime.binding.entty' is unknown. Did you mean 'gime.binding.entity'?",
        ),
        ("gime.binding.size=wide", "gime: The pool has no column 'wide', which the binding names as size"),
        ("gime.by=prt", "gime.by: There is no column 'prt'"),
        ("gime.days=7", "gime: Give 'by' or 'days', not both"),
        ("gime.floors={a: 3}", "gime: floors: The classes a must all be int64"),
        (
            "gime.thresholds={volume.rows: [3]}",
            "gime: thresholds.volume.rows: [3.0] is not a pair (least, greatest)",
        ),
        ("gime.tresholds={}", "The key 'gime.tresholds' is unknown. Did you mean 'gime.thresholds'?"),
        ("gime.calibrate={features: [z], mix: part, rows: 9}", "gime.calibrate: There is no column 'z'"),
        ("gime.calibrate={features: [x], mix: prt, rows: 9}", "gime.calibrate.mix: There is no column 'prt'"),
        ("gime.calibrate={features: [x], mix: part, rows: 9999}", "gime.calibrate.rows: budget: 9,999"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(folder, change, sentence):
    with pytest.raises((ConfigError, DataError)) as caught:
        steps.check(flow(folder, change))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_calibration_needs_a_target(folder):
    asked = "gime.calibrate={features: [x], mix: part, rows: 50}"
    with pytest.raises(ConfigError, match=r"The key 'target' is missing: gime\.calibrate"):
        steps.check(flow(folder, asked, "target=null", "select=null"))
    assert not flow(folder, "gime.thresholds={}", "gime.floors={}").gime.selects
    assert flow(folder).describe()["gime"]["floors"] == {"2": 60}
