"""RepDiv from a workflow file: factors and scores are steps of the run, and a comparison holds others to its cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysel
from raysel.dynamic.budget import Budget, tail_delta
from raysel.errors import ConfigError, DataError
from raysel.factors import Autoencoder, rep_div
from raysel.workflow import config, steps
from raysel.workflow.compare import check, compare
from raysel.workflow.directory import Progress, open_run
from raysel.workflow.run import run
from raysel.workflow.steps.factors import SCORES
from raysel.workflow.steps.usage import texts_of

ROOT = Path(__file__).resolve().parents[2]
REPDIV = ["dynamic={method: repdiv, ratio: 0.4, tail: 0.25}", "factors={units: 48, k: 6, epochs: 4}"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The shipped digits, half of them chosen at random, one worker's batches of 32 for four epochs."""
    data = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(data)], check=True)
    paths = [f"{role}.path={data}/{role}.parquet" for role in ("pool", "test")]
    small = [
        "target=null",
        "controls=[]",
        "train.epochs=4",
        "train.workers=1",
        "train.batch_size=32",
        *REPDIV,
    ]
    small += ["select={method: random, budget: 700}", "embed.embedder=pca:16"]
    return lambda *more: config.load(ROOT / "workflows/quickstart.yaml", [*paths, *small, *more])


def test_a_run_finds_factors_scores_the_chosen_rows_and_trains_what_the_policy_says(
    cluster, digits, tmp_path, capsys
):
    flow, out = digits(), tmp_path / "run"
    results = run(flow, out)
    plans = [epoch.planned for epoch in results.arms["chain"].epochs]
    assert plans == [280, 280, 280, 700] and results.arms["chain"].title == "random + RepDiv"
    (folder,) = out.glob("steps/factors-*")
    scores = pq.read_table(folder / SCORES)
    chosen = raysel.Selection.load(next(out.glob("steps/select-*/selection")))
    assert scores["sample_id"].to_pylist() == chosen.ids.tolist()

    # the same from arrays, without Ray
    sae = Autoencoder.load(folder / "autoencoder.safetensors")
    vectors = pq.read_table(next(out.glob("steps/embed-*")) / "vectors" / "pool").sort_by("sample_id")
    assert not list(out.glob("steps/embed-*/vectors/target"))
    x = vectors["embedding"].combine_chunks().to_numpy_ndarray()[chosen.ids]
    labels = np.array(pq.read_table(flow.pool.path)["label"])[chosen.ids]
    rep, div = rep_div(sae.encode(x).active, labels)
    np.testing.assert_array_equal(scores["rep"].to_numpy(), rep)
    np.testing.assert_array_equal(scores["div"].to_numpy(), div)
    assert scores["label"].to_pylist() == labels.tolist()

    usage = results.usage
    assert usage.scored.samples == 700 and usage.scored.units == 48
    own, random, turns = usage.policies
    for policy in (own, random, turns):
        assert sum(samples for _, samples in policy.times) == 700
        assert len(policy.rare) == 4 and policy.rare == tuple(sorted(policy.rare))
    spent = [sum(often * samples for often, samples in p.times) for p in usage.policies]
    assert spent[0] == spent[2] == sum(plans) and abs(spent[1] - spent[0]) <= 4
    assert own.rare[-1] == turns.rare[-1] == 1.0  # the tail sees everything
    assert turns.gini < random.gini
    assert len(usage.alpha) == 3 and usage.alpha[0] > usage.alpha[2] > 0.2
    page = (out / "report.html").read_text()
    assert "Use of the samples" in page and "RepDiv: Gini" in page
    stages = json.loads((out / "ledger.json").read_text())["entries"][0]["seconds"]
    assert stages["metrics"] > 0 and stages["embedding"] > 0

    capsys.readouterr()
    assert run(flow, out, progress=Progress(sys.stderr)).usage == usage
    lines = [line for line in capsys.readouterr().err.splitlines() if line.split()[0] not in ("pool", "test")]
    assert len(lines) >= 5 and all("  reused" in line for line in lines)  # the others say what was read

    # a comparison in the same directory: no factor is found again, all at RepDiv's cost, with its tail
    compared = compare(flow, ("full_equal_steps", "random_prune", "round_robin", "infobatch"), 1, out)
    assert len(list(out.glob("steps/factors-*"))) == 1
    cells = {name: policy.cells[0].epochs for name, policy in compared.policies.items()}
    assert list(cells) == ["full_equal_steps", "random_prune", "round_robin", "infobatch", "repdiv"]
    assert [epoch.planned for epoch in cells["repdiv"]] == plans
    assert [epoch.planned for epoch in cells["round_robin"]] == plans
    for name in ("random_prune", "infobatch"):
        assert cells[name][-1].planned == 700
        assert abs(sum(e.planned for e in cells[name]) - sum(plans)) < 5 * np.sqrt(2 * 700 * 0.25)
    own_cell = compared.policies["repdiv"].cells[0].policy
    assert own_cell["policy"] == "RepDiv" and own_cell["ratio"] == 0.4


@pytest.mark.parametrize(("epochs", "tail"), [(7, 0.15), (20, 0.15), (30, 0.15), (40, 0.0), (9, 0.34)])
def test_repdiv_is_held_to_a_budget_and_holds_others_to_its_own(epochs, tail):
    table = {"sample_id": np.arange(90), "rep": np.zeros(90, "f4"), "div": np.zeros(90, "f4")}
    scores = pa.table(table)
    rule = raysel.RepDiv(scores, ratio=0.3, tail=tail)
    passes = round(rule.cost(90, epochs) * 90 * epochs)
    budget = Budget(90, epochs, passes, tail_delta(rule, epochs))
    assert budget.tail == rule.tail_epochs(epochs)
    again = raysel.RepDiv.at_budget(budget).with_scores(scores)
    assert (again.count(90), again.tail_epochs(epochs)) == (rule.count(90), rule.tail_epochs(epochs))
    with pytest.raises(ConfigError, match=r"repdiv: A budget of 1[\d,]* samples is too small"):
        raysel.RepDiv.at_budget(Budget(90, 10, 1, 0.8))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("factors.k=49", r"factors.k: 49 is more than the autoencoder's 48 units"),
        ("embed.on_error=drop", r"embed.on_error: 'drop' leaves rows without a vector, but RepDiv needs"),
        ("embed.column=vector", r"embed.column: There is no column 'vector'"),
        ("embed.embedder=pca:65", r"the column has 64 elements"),
        ("dynamic.ratio=0", r"dynamic.ratio must be a number in \(0, 1\], got 0"),
        ("dynamic.penalty=-1", r"dynamic.penalty must be a finite number of at least 0, got -1"),
        ("factor={}", r"The key 'factor' is unknown. Did you mean 'factors'\?"),
        (
            "factors.unit=3",
            r"The key 'factors.unit' is unknown. Did you mean 'factors.units'\?",
        ),
    ],
)
def test_bad_input_is_said_before_ray_is_needed(digits, override, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        steps.check(digits(override))


def test_a_comparison_that_names_repdiv_needs_vectors_too(digits):
    other = digits("dynamic={method: infobatch}", "embed.column=vector")
    check(other, ("roundrobin",), 1)
    with pytest.raises(DataError, match="no column 'vector'"):
        check(other, ("repdiv",), 1)


def test_texts_are_shown_by_their_ids_and_vectors_are_not(cluster, digits, tmp_path):
    words = [f"gloss {i}" for i in range(40)]
    pool = pa.table(
        {"text": words, "pixels": pq.read_table(digits().pool.path)["pixels"][:40], "label": [0] * 40}
    )
    pq.write_table(pool, tmp_path / "pool.parquet", row_group_size=7)
    flow = digits(f"pool.path={tmp_path}/pool.parquet", "embed.column=text", "embed.embedder=hash:16")
    wanted = np.array([31, 2, 9])
    with open_run(flow, tmp_path / "run") as this:
        assert texts_of(this, wanted) == ["gloss 31", "gloss 2", "gloss 9"]
    with open_run(digits(f"pool.path={tmp_path}/pool.parquet"), tmp_path / "other") as this:
        assert texts_of(this, wanted) is None
