"""A comparison is fair: one budget, a learning rate that ends where training ends, and the numbers of Ray Train."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raysel
from raysel.dynamic import SampleState
from raysel.dynamic.budget import Budget, ratio_of
from raysel.dynamic.plan import part
from raysel.errors import ConfigError
from raysel.report.comparison import tables
from raysel.report.results import CompareResults, Goal
from raysel.train import loops
from raysel.train.settings import Train
from raysel.workflow import compare as comparing
from raysel.workflow import config, run, steps
from raysel.workflow.compare import check, compare
from raysel.workflow.steps import train
from raysel.workflow.steps.cell import Cell, train_cell

ROOT = Path(__file__).resolve().parents[2]
ALL = ("full", "full_equal_steps", "random_prune", "random_subset", "round_robin", "infobatch")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The shipped digits, all of them, one worker's batches of 32 for four epochs."""
    data = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(ROOT / "workflows/digits.py"), "--out", str(data)], check=True)
    paths = [f"{role}.path={data}/{role}.parquet" for role in ("pool", "target", "test")]
    small = ["select=null", "controls=[]", "train.epochs=4", "train.workers=1", "train.batch_size=32"]
    return lambda *more: config.load(ROOT / "workflows/quickstart.yaml", [*paths, *small, *more])


@pytest.fixture(scope="module")
def compared(cluster, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "compared"
    return out, compare(digits(), ALL, 2, out)


def spent(cell, key="trained"):
    return sum(getattr(epoch, key) for epoch in cell.epochs)


def test_every_policy_spends_the_same(compared):
    _, results = compared
    cells = {name: policy.cells for name, policy in results.policies.items()}
    assert list(cells) == list(ALL) and results.own == "infobatch" and results.seeds == (0, 1)
    assert [cell.seed for cell in cells["random_prune"]] == [0, 1]
    for seed in (0, 1):
        own = cells["infobatch"][seed]
        budget, taken = spent(own), spent(own, "steps")
        assert 1517 * 3 < budget < 1517 * 4 == spent(cells["full"][seed])
        assert spent(cells["full_equal_steps"][seed], "steps") == taken
        assert (
            abs(spent(cells["full_equal_steps"][seed]) - budget) <= 4 * 32
        )  # a short batch per epoch at most
        assert abs(spent(cells["round_robin"][seed]) - budget) <= 3
        assert abs(spent(cells["random_subset"][seed]) - budget) <= 4
        assert abs(spent(cells["random_prune"][seed]) - budget) < 5 * np.sqrt(1517 * 2 * 0.25)
        # The same tail on all the data, and for random pruning the same first epoch.
        assert own.epochs[-1].planned == 1517 == cells["round_robin"][seed].epochs[-1].planned
        plans = [epoch.planned for epoch in cells["random_prune"][seed].epochs]
        assert plans[0] == plans[3] == 1517 > max(plans[1:3])
    assert spent(cells["infobatch"][0]) != spent(cells["infobatch"][1])  # budgets are taken seed by seed


def test_what_is_left_in_the_run_directory(compared, digits):
    out, results = compared
    assert CompareResults.load(out / "compare.json") == results and results.path == str(out)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "random pruning" in (out / "compare.md").read_text() and "<svg" in (out / "compare.html").read_text()
    )
    table = tables.text(results)
    assert max(map(len, table.splitlines())) <= 100 and "InfoBatch" in table


def test_a_killed_comparison_does_only_what_is_missing(compared, digits, tmp_path):
    """Interrupted after two cells: those are not trained again, and the numbers are the undisturbed run's."""
    before, whole = compared
    out = tmp_path / "run"
    shutil.copytree(before, out, ignore=shutil.ignore_patterns("cell-*", "compare.*"))

    class Killed(run.Progress):
        def done(self, name, text):
            if name == "compare" and text.startswith("2 of"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(digits(), ("round_robin",), 2, out, progress=Killed())
    assert not (out / "compare.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("steps/cell-*/done.json")}
    assert len(kept) == 2
    results = compare(digits(), ("round_robin",), 2, out, progress=run.Progress())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert list(results.policies) == ["round_robin", "infobatch"]  # its own policy is always there
    for name, policy in results.policies.items():
        for cell, other in zip(policy.cells, whole.policies[name].cells, strict=True):
            assert numbers(cell) == numbers(other)


def numbers(cell):
    """Everything but the seconds."""
    return [(e.epoch, e.planned, e.trained, e.steps, e.loss, e.digest) for e in cell.epochs], cell.metrics


def fit(flow, out, name):
    """The workflow's own training, as ``raysel run`` does it, on the arrays that the comparison left."""
    with run.open_run(flow, out) as this:
        this.do(steps.arrays(flow))
        done = this.do(train.Train("chain", flow.train))
    return run.arm(name, done)


@pytest.mark.slow  # a fit of Ray Train
def test_one_worker_of_ray_train_gives_the_same_numbers_to_the_last_bit(compared, digits):
    out, results = compared
    one, other = (numbers(cell) for cell in results.policies["infobatch"].cells)
    assert numbers(fit(digits(), out, "one")) == one != other


@pytest.mark.slow
def test_two_workers_take_the_same_batches_and_differ_in_the_last_bits(compared, digits):
    """The sums over a batch are taken in another order, so losses, and plans that depend on them, may drift apart."""
    out, results = compared
    alone = results.policies["infobatch"].cells[0].epochs
    changed = ("train.workers=2", "train.batch_size=16", "train.cpus_per_worker=0.5")
    two = fit(digits(*changed), out, "two").epochs
    assert [two[0].planned, two[0].trained, two[0].steps] == [alone[0].planned, alone[0].trained, alone[0].steps]  # fmt: skip
    for ours, theirs in zip(two, alone, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=0.05)
        assert abs(ours.planned - theirs.planned) <= 0.02 * 1517
    assert two[0].loss == pytest.approx(alone[0].loss, rel=1e-4)


@pytest.mark.parametrize(("rule", "limit"), [(raysel.InfoBatch(), None), (raysel.FullData(), 170)])
def test_the_learning_rate_ends_with_the_steps_really_taken(compared, digits, monkeypatch, rule, limit):
    out, _ = compared
    seen, schedule = [], loops.schedule
    monkeypatch.setattr(
        loops, "schedule", lambda progress, *more: seen.append(progress) or schedule(progress)
    )
    flow = digits()
    with run.open_run(flow, out) as this:
        this.do(steps.arrays(flow))
        settings = train.loop_config(this) | {"batch_size": 32, "threads": 1, "alone": True}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        answer, _ = train_cell._function((settings, 1517), Cell("x", 0, rule, 4, limit))
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    taken = sum(epoch["steps"] for epoch in answer["epochs"])
    assert len(seen) == taken == (limit or taken) and seen == sorted(seen)
    assert seen[0] < 2 / taken and seen[-1] == 1.0 and schedule(seen[-1]) == 0.0


def test_static_selection_is_done_once_and_all_train_on_its_rows(cluster, digits, tmp_path):
    flow = digits("select={method: random, budget: 300}", "train.epochs=2", "dynamic={method: random_subset}")
    results = compare(flow, ("random_subset",), 2, tmp_path / "run")
    assert (results.data.pool, results.rows, results.data.test) == (1517, 300, 180)
    assert {e.planned for c in results.policies["random_subset"].cells for e in c.epochs} == {150}
    assert len(list((tmp_path / "run").glob("steps/select-*"))) == 1
    # Half of all passes is less than what a first epoch on all the data leaves to random pruning.
    with pytest.raises(
        ConfigError,
        match=r"random_prune: A budget of 300 samples is too small, .* need 300 samples\. Raise the budget",
    ):
        compare(flow, ("random_prune",), 1, tmp_path / "run")


def test_a_control_that_the_workflow_shares_its_model_error_with_is_said(cluster, digits, tmp_path):
    (tmp_path / "net.py").write_text("def make(shape, classes):\n    raise ValueError('no such layer')\n")
    with pytest.raises(ConfigError, match=r"train.model: .*net.py:make raised ValueError \(no such layer"):
        compare(digits(f"train.model={tmp_path}/net.py:make"), ("full",), 1, tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/cell-*/done.json"))


# ---- without a cluster ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "tail"),
    [
        (Budget(1000, 10, 7313, 0.875), 2),
        (Budget(997, 7, 4700, 0.6), 3),
        (Budget(50, 40, 1201, 1.0), 0),
        (Budget(1000, 10, 10_000, 0.875), 2),
    ],
)
def test_controls_are_held_to_the_budget(budget, tail):
    assert budget.tail == tail
    state = SampleState.empty(budget.rows)

    def passes(rule, seed=0):
        plans = [rule.plan(state, epoch=e, num_epochs=budget.epochs, seed=seed) for e in range(budget.epochs)]
        return [len(plan) for plan in plans], plans

    robin, _ = passes(raysel.RoundRobin.at_budget(budget))
    assert abs(sum(robin) - budget.passes) <= (budget.epochs - tail) / 2
    assert robin[budget.epochs - tail :] == [budget.rows] * tail
    subset, _ = passes(raysel.RandomSubset.at_budget(budget))
    assert abs(sum(subset) - budget.passes) <= budget.epochs / 2
    rule = raysel.RandomPrune.at_budget(budget)
    totals = [sum(passes(rule, seed)[0]) for seed in range(40)]
    spread = np.sqrt(rule.prune_ratio * (1 - rule.prune_ratio) * budget.rows * budget.epochs / 40)
    assert abs(np.mean(totals) - budget.passes) <= 4 * spread
    sizes, plans = passes(rule)
    assert sizes[0] == budget.rows and sizes[budget.epochs - tail :] == [budget.rows] * tail
    assert np.allclose(plans[1].weights, 1 / (1 - rule.prune_ratio))
    infobatch = raysel.InfoBatch.at_budget(budget)
    assert infobatch.delta == budget.delta
    assert (infobatch.target_saving or 0) == pytest.approx(budget.saving)


def test_a_ratio_is_of_the_very_number_of_rows():
    for rows in (1, 49, 1517):
        assert [part(ratio_of(count, rows), rows) for count in range(1, rows + 1)] == list(range(1, rows + 1))


@pytest.mark.parametrize(
    ("control", "budget", "sentence"),
    [
        (
            raysel.RandomPrune,
            Budget(100, 10, 300, 0.875),
            r"random_prune: A budget of 300 samples is too small, because 3 of the \d+ epochs .* need 300 samples",
        ),
        (
            raysel.RandomPrune,
            Budget(100, 1, 50, 1.0),
            r"random_prune: A budget of 50 samples is too small, because 1 of the 1 epochs .* need 100 samples",
        ),
        (
            raysel.RoundRobin,
            Budget(100, 10, 200, 0.875),
            r"round_robin: A budget of 200 samples is too small, because 2 of the \d+ epochs .* need 200 samples",
        ),
        (
            raysel.InfoBatch,
            Budget(100, 10, 250, 0.875),
            r"infobatch: To keep to the budget, this control must save",
        ),
    ],
)
def test_a_budget_that_a_control_cannot_reach(control, budget, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        control.at_budget(budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policies", "seeds", "override", "sentence"),
    [
        ("full,random_prun", 3, [], r"policies: 'random_prun' is unknown. Did you mean 'random_prune'\?"),
        ("fullequalstep", 3, [], r"Did you mean 'full_equal_steps'\?"),
        (
            "zzz",
            3,
            [],
            "known names are infobatch, repdiv, random_prune, random_subset, round_robin, full, full_equal_steps",
        ),
        ("", 3, [], "'' is unknown"),
        ("full", 0, [], "seeds: 0 is not a number of seeds; give an integer of at least 1"),
        ("full", 1, ["test=null"], "The key 'test' is missing"),
        ("full", 1, ["dynamic=null"], r"^dynamic: The policy is 'full', which trains on all samples"),
        (
            "full",
            1,
            ["dynamic={method: full}"],
            r"is 'full', which trains on all samples.*--set dynamic.method=infobatch",
        ),
        (
            "full",
            1,
            ["dynamic.target_saving=0.9"],
            r"dynamic: InfoBatch.target_saving of 0.9 is out of reach",
        ),
        ("full", 1, ["dynamic.threshold=2"], r"dynamic.threshold.* got 2"),
    ],
)
def test_what_is_wrong_is_said_before_ray_starts(digits, policies, seeds, override, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        check(digits(*override), policies.split(","), seeds)
    assert "\n" not in str(caught.value)


def test_policies_are_a_list_of_names(digits):
    for given, sentence in (
        ("full", r"policies: 'full' is not a list of names; write a list such as \['full', 'random_prune'\]"),
        (None, "policies: None is not a list of names"),
        ([raysel.InfoBatch], "policies: the class InfoBatch is not the name of a policy; write a name such as 'infobatch'"),
        ([raysel.InfoBatch()], "policies: a raysel InfoBatch is not the name of a policy"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            check(digits(), given, 1)
    for seeds in (1.5, "3", None, True):
        with pytest.raises(ConfigError, match=r"seeds: .* is not a number of seeds"):
            check(digits(), ["full"], seeds)


def test_names_may_be_written_in_any_case(digits):
    names = comparing.policy_names(
        digits(), ["round_robin", "RandomPrune", "random-prune", "Full_Equal-Steps"]
    )
    assert names == ("infobatch", ["round_robin", "random_prune", "full_equal_steps", "infobatch"])


def test_the_command_line_compares_the_same_policies():
    from raysel import cli

    option = next(option for option in cli.compare.params if option.name == "policies")
    assert tuple(name.strip() for name in option.default.split(",")) == comparing.CONTROLS


def test_a_workflow_can_say_what_python_can(digits):
    flow = digits("dynamic={method: infobatch, threshold: 0.7, target_saving: 0.2, ema: 0.5, delta: 1.0}")
    assert flow.dynamic.make() == raysel.InfoBatch(threshold=0.7, target_saving=0.2, ema=0.5, delta=1.0)
    flow = digits("dynamic={method: round_robin, ratio: 0.25, delta: 0.5}")
    assert flow.dynamic.make() == raysel.RoundRobin(0.25, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("loop", "model"), [("huggingface", "plain"), ("lightning", "module")])
def test_the_loop_of_a_framework_compares_as_the_built_in_loop(cluster, digits, tmp_path, loop, model):
    pytest.importorskip({"huggingface": "transformers", "lightning": "lightning"}[loop])
    file = ROOT / "tests/train/linear_models.py"
    sgd = ["train.optimizer=SGD", "train.learning_rate=0.1", "train.schedule=constant", "train.warmup=0"]
    options = {
        "huggingface": "optim: sgd, learning_rate: 0.1, lr_scheduler_type: constant, max_grad_norm: 0.0"
    }
    of_loop = [f"train.loop={loop}", f"train.options={{{options.get(loop, '')}}}"]
    of_loop.append(
        f"train.learning_rate={Train().learning_rate}"
    )  # what the workflow sets is not read by these loops
    wanted, found = (
        compare(digits(f"train.model={file}:{name}", *more), ALL, 1, tmp_path / name).policies
        for name, more in (("plain", sgd), (model, of_loop))
    )
    assert list(found) == list(wanted) == list(ALL)
    for name in ALL:
        (one,), (other,) = wanted[name].cells, found[name].cells
        assert [(e.planned, e.trained, e.steps) for e in other.epochs] == [
            (e.planned, e.trained, e.steps) for e in one.epochs
        ]
        assert [e.loss for e in other.epochs] == pytest.approx([e.loss for e in one.epochs], rel=1e-4)
        assert other.metrics == pytest.approx(one.metrics, abs=0.005)
    assert spent(found["infobatch"].cells[0]) < spent(found["full"].cells[0])


OWN = """
import torch
from raysel.train.tasks import Classification

class Mine(Classification):
    metric, direction = "rmse", "min"

    def metrics(self, sums):
        return {"rmse": 100 * (1 - float(sums["right"] / sums["rows"]))}

def loop(given):
    session, data, task = given["dynamic"].session(), given["data"], given["task"]
    model = task.model(data.facts)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for epoch in session.epochs():
        for batch in data.batches(session, task.collate, batch_size=given["batch_size"]):
            optimizer.zero_grad()
            session.loss(batch, task.losses(model, batch.data)).backward()
            optimizer.step()
        session.report()
    wrong, rows = 0, 0
    for batch, counts in data.scored("test", task.collate, batch_size=64):
        sums = task.sums(model, batch)
        wrong, rows = wrong + sums["rows"] - sums["right"], rows + sums["rows"]
    return {"rmse": 100 * float(wrong / rows)}
"""


def test_a_task_and_a_loop_of_the_users_own(cluster, digits, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("RATE", "1e-6"))
    flow = digits(f"train.task={file}:Mine", f"train.loop={file}:loop", "train.epochs=1")
    slow = compare(flow, ("infobatch",), 1, tmp_path / "run")
    assert compare(flow, ("infobatch",), 1, tmp_path / "run") == slow
    file.write_text(OWN.replace("RATE", "0.05"))
    fast = compare(flow, ("infobatch",), 1, tmp_path / "run")
    ((before,), (after,)) = (r.policies["infobatch"].cells for r in (slow, fast))
    # The changed loop was not taken for the old one.
    assert after.epochs[0].loss < 0.9 * before.epochs[0].loss
    assert fast.goal == Goal("rmse", "min") and after.metrics["rmse"] < before.metrics["rmse"] < 100
    assert (
        "lower is better" in tables.text(fast) and "accura" not in (tmp_path / "run/compare.html").read_text()
    )
    built_in = compare(
        digits(f"train.task={file}:Mine", "train.epochs=1"), ("infobatch",), 1, tmp_path / "run"
    )
    assert built_in.goal == fast.goal and built_in.policies["infobatch"].cells[0].metrics["rmse"] < 80
    with pytest.raises(
        ConfigError, match=r"'train.task.method' is 'clasification'.*Did you mean 'classification'"
    ):
        compare(digits("train.task=clasification"), ("infobatch",), 1, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.task: The file .*none.py does not exist"):
        check(digits("train.task=none.py:loop"), ("infobatch",), 1)
