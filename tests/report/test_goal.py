"""Reports and comparisons of a metric other than the accuracy, of which smaller values may be better."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from raysel.errors import DataError, RunError
from raysel.report import Ledger
from raysel.report.comparison import findings, rows, tables
from raysel.report.comparison import page as comparison
from raysel.report.figures.training import metric_curves
from raysel.report.goal import Goal, checked, finite
from raysel.report.page import render
from raysel.report.results import CompareResults, RunResults
from raysel.report.sections.opening import against_random, headline
from raysel.report.tables import runs_text
from raysel.workflow.steps.train import answer_of
from tests.report.test_comparison import ENDS, sample

RMSE = Goal("rmse", "min")
Metrics = dict[str, Any]


def errors(metrics: Metrics) -> Metrics:
    """The sample's accuracies as errors: 0.971 becomes 2.9."""
    return {
        name: value
        for share in metrics.values()
        for name, value in (("rmse", 100 * (1 - share)), ("mae", 1.5))
    }


def turned(results: Any, goal: Goal = RMSE, metrics: Callable[[Metrics], Metrics] = errors) -> Any:
    """The same results with other metrics and another goal."""
    if isinstance(results, RunResults):
        arms = {
            name: replace(
                arm,
                metrics=metrics(arm.metrics),
                epochs=tuple(replace(epoch, metrics=metrics(epoch.metrics)) for epoch in arm.epochs),
            )
            for name, arm in results.arms.items()
        }
        entries = [replace(entry, metrics=metrics(dict(entry.metrics))) for entry in results.ledger.entries]
        return replace(
            results, arms=arms, goal=goal, ledger=replace(results.ledger, entries=entries, goal=goal)
        )
    policies = {
        name: replace(
            policy,
            cells=tuple(
                replace(
                    cell,
                    metrics=metrics(cell.metrics),
                    epochs=tuple(replace(epoch, metrics=metrics(epoch.metrics)) for epoch in cell.epochs),
                )
                for cell in policy.cells
            ),
        )
        for name, policy in results.policies.items()
    }
    return replace(results, policies=policies, goal=goal)


def alone(results: RunResults, full_samples: int | None) -> RunResults:
    """The results without the arms ``full`` and ``random``."""
    ledger = replace(results.ledger, entries=results.ledger.entries[2:], full_samples=full_samples)
    return replace(results, arms={"chain": results.arms["chain"]}, ledger=ledger)


def alone_words(results: RunResults, full_samples: int | None) -> str:
    return headline(alone(results, full_samples)).replace("\u00a0", " ")


def plain(page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))).replace(
        "\u00a0", " "
    )


@pytest.fixture(scope="module")
def run(results: RunResults) -> RunResults:
    made: RunResults = turned(results)
    return made


@pytest.fixture(scope="module")
def compared() -> CompareResults:
    made: CompareResults = turned(sample())
    return made


# ---- words and digits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "value", "says"),
    [
        (Goal(), 0.97111, "97.1 %"),
        (Goal("mean_iou"), 0.5, "50.0 %"),
        (Goal("error_rate", "min"), 0.031, "3.1 %"),
        (Goal("balanced_accuracy"), 1.0, "100.0 %"),
        (RMSE, 38.2149, "38.21"),
        (RMSE, 4.0, "4.000"),
        (RMSE, 0.0, "0"),
        (Goal("perplexity", "min"), 1523.4, "1,523"),
        (Goal("perplexity", "min"), 3.2e9, "3.200e+09"),
        (Goal("loss", "min"), 0.012344, "0.01234"),
        (Goal("log_likelihood"), -152.36, "-152.4"),
        (Goal("inaccuracy", "min"), 0.5, "0.5000"),
        (RMSE, None, "n/a"),
        (RMSE, math.inf, "n/a"),
    ],
)
def test_shares_are_percentages_and_other_metrics_have_four_digits(
    goal: Goal, value: float | None, says: str
) -> None:
    assert goal.text(value) == says


@pytest.mark.parametrize(
    ("goal", "one", "other", "says"),
    [
        (Goal(), 0.971, 0.976, "0.5 points lower"),
        (Goal(), 0.97601, 0.976, ""),
        (Goal("error_rate", "min"), 0.029, 0.024, "0.5 points higher, which is worse"),
        (Goal("error_rate", "min"), 0.024, 0.029, "0.5 points lower, which is better"),
        (RMSE, 38.0, 40.0, "2.000 (5.0 %) lower, which is better"),
        (RMSE, 42.0, 40.0, "2.000 (5.0 %) higher, which is worse"),
        (Goal("r2"), 0.8, 0.5, "0.3000 (60.0 %) higher, which is better"),
        (Goal("log_likelihood"), -3.0, -2.0, "1.000 (50.0 %) lower, which is worse"),
        (RMSE, 1.0, 0.0, "1.000 higher, which is worse"),
        (RMSE, 38.2101, 38.2099, ""),
    ],
)
def test_a_change_is_in_points_or_absolute_and_relative_and_says_what_is_better(
    goal: Goal, one: float, other: float, says: str
) -> None:
    assert goal.change(one, other) == says


def test_names_within_and_at_the_start_of_a_sentence() -> None:
    names = ("accuracy", "rmse", "mean_iou", "perplexity", "top_5_error_of_the_batch")
    assert [Goal(name).label for name in names] == [
        "accuracy",
        "RMSE",
        "mean IoU",
        "perplexity",
        "top 5 error of the batch",
    ]
    assert [Goal(name).head for name in names[:4]] == ["Accuracy", "RMSE", "Mean IoU", "Perplexity"]
    assert [Goal(name).short for name in names] == [
        "accuracy", "RMSE", "mean IoU", "perplexity", "top 5 error.",
    ]  # fmt: skip
    assert (Goal().rule, Goal().hint) == ("higher is better", "")
    assert (RMSE.rule, RMSE.hint) == ("lower is better", " (lower is better)")


def test_metrics_are_finite_numbers_and_shares_are_at_most_one() -> None:
    assert checked({"rmse": 7, "loss": None, "r2": -3.5}, "here") == {"rmse": 7.0, "loss": None, "r2": -3.5}
    for bad, says in (
        ({"rmse": math.nan}, "here: rmse must be a finite number, not nan."),
        ({"rmse": "low"}, "here: rmse must be a finite number, not 'low'."),
        ({"mean_iou": 51.3}, "here: mean_iou must be between 0 and 1, not 51.3."),
        ([0.9], "here: 'metrics' must be a mapping from the name of a metric to a number, not a list."),
    ):
        with pytest.raises(DataError) as refused:
            checked(bad, "here")
        assert str(refused.value) == says
    assert finite({"a": 1.0, "b": math.nan, "c": -math.inf, "d": None}) == {
        "a": 1.0,
        "b": None,
        "c": None,
        "d": None,
    }


# ---- a run ---------------------------------------------------------------------------------------------------


def test_the_ledger_shows_the_metric_and_its_direction(run: RunResults, tmp_path: Path) -> None:
    lines = run.ledger.text().splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].endswith("  test") and lines[1].endswith("  RMSE")
    assert next(line for line in lines if line.startswith("GIO + InfoBatch")).endswith("  2.890")
    assert run.ledger.text().endswith("RMSE: lower is better.")
    assert Ledger.load(run.ledger.save(tmp_path / "ledger.json")) == run.ledger
    assert RunResults.load(run.save(tmp_path / "results.json")) == run
    for damaged in ({}, {"metric": "rmse", "direction": "down"}, "rmse"):
        with pytest.raises(DataError, match="direction 'max' or 'min'"):
            Ledger.from_dict({**run.ledger.to_dict(), "goal": damaged})
    with pytest.raises(DataError, match="full_samples must be a whole number"):
        Ledger.from_dict({**run.ledger.to_dict(), "full_samples": 1.5})
    with pytest.raises(
        DataError, match="name different metrics, or disagree on whether larger values are better"
    ):
        replace(run, goal=Goal("rmse", "max"))


def test_the_opening_of_a_smaller_and_of_a_larger_error(run: RunResults) -> None:
    assert headline(run).endswith(
        "than training on the full pool (the time includes selection and start-up); its test RMSE is 2.890; compared with the full pool, this is 0.4900 (20.4 %) higher, which is worse."
    )
    assert run.score("chain") == pytest.approx(2.89) and run.score("none") is None
    assert against_random(run).endswith("is 2.390 (45.3 %) lower, which is better.")
    swapped = turned(run, metrics=lambda metrics: {"rmse": 5 - metrics["rmse"]})
    assert headline(swapped).endswith(
        "its test RMSE is 2.110; compared with the full pool, this is 0.4900 (18.8 %) lower, which is better."
    )


def test_no_page_or_table_of_an_error_mentions_an_accuracy(run: RunResults, compared: CompareResults) -> None:
    bare = turned(run, metrics=lambda metrics: {})
    ends = replace(
        run,
        arms={
            name: replace(arm, epochs=tuple(replace(e, metrics={}) for e in arm.epochs))
            for name, arm in run.arms.items()
        },
        data=replace(run.data, validation=0),
    )
    pages = [render(one) for one in (run, bare, ends, alone(run, 28_740))]
    pages += [comparison.render(compared), comparison.render(turned(sample(validation=0)))]
    texts = [run.ledger.text(), runs_text([(run, [])]), tables.text(compared), tables.markdown(compared)]
    for text in (*pages, *texts):
        assert "accura" not in text.replace("an accurate", "").lower()
    for page in pages:
        assert "lower is better" in page or page == pages[1]


def test_the_page_of_an_error(run: RunResults) -> None:
    page = render(run)
    text = plain(page)
    assert "RMSE on the validation rows (lower is better)" in text
    assert "The lower a line ends, the better the model of its arm is." in text
    assert (
        "The vertical axis fits the values after the first quarter of each line; earlier values can be above its range"
        in text
    )
    assert (
        "rows on which the RMSE is measured after each epoch" in text
        and "standard error of a test" not in text
    )
    assert "2.400 when trained on the full pool; one seed each; lower is better" in text
    heads = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert "Test RMSE" in heads and heads[heads.index("After the last epoch") :][:4] == [
        "After the last epoch", "Test RMSE", "Validation RMSE", "Test MAE",
    ]  # fmt: skip
    # The last epoch of GIO + InfoBatch: 3.39 on the validation rows; 2.89 on the test rows.
    row = next(
        row for row in page.splitlines() if 'data-head="Validation RMSE"' in row and "InfoBatch" in row
    )
    assert re.findall(r">([\d.]+)</td>", row)[:3] == ["2.890", "3.390", "1.500"]
    better = plain(render(turned(run, Goal("r2"), lambda metrics: {"r2": -metrics["rmse"]})))
    assert (
        "The higher a line ends, the better the model of its arm is." in better
        and "can be below its range" in better
    )
    assert "r2 on the validation rows" in better and "lower is better" not in better


def test_the_first_values_of_a_metric_without_bounds_do_not_set_the_axis(run: RunResults) -> None:
    perplexity = [50_000.0, 9_000.0, 800.0, *(150.0 - 2 * epoch for epoch in range(17))]
    epochs = tuple(
        replace(epoch, metrics={"perplexity": value})
        for epoch, value in zip(run.arms["full"].epochs, perplexity, strict=True)
    )
    arms = {"full": replace(run.arms["full"], epochs=epochs)}
    svg = metric_curves(arms, Goal("perplexity", "min"))
    assert "perplexity on the validation rows (lower is better)" in svg and "full pool 118.0<" in svg
    assert ">140<" in svg and ">50,000<" not in svg
    whole = metric_curves({"full": replace(arms["full"], epochs=epochs[:1])}, Goal("perplexity", "min"))
    assert ">50,000<" in whole


def test_a_metric_that_is_not_finite_is_named(run: RunResults) -> None:
    odd = turned(run, metrics=lambda metrics: {"rmse": None})
    assert headline(odd).endswith("; its test RMSE is not a finite number.")
    assert alone_words(odd, None).startswith(
        "GIO selected 430 of the 1,437 pool rows; GIO + InfoBatch trained on 6,894 samples in 20 epochs, but its test RMSE is "
        "not a finite number;"
    )
    assert "GIO + InfoBatch: The test RMSE is not a finite number." in plain(render(odd))


def test_without_a_full_arm_the_saving_in_samples_is_from_rows_times_epochs(results: RunResults) -> None:
    one = alone(results, 28_740)
    ledger = one.ledger
    assert (
        ledger.saving_samples("chain") == pytest.approx(1 - 6894 / 28_740)
        and ledger.saving_seconds("chain") is None
    )
    text = ledger.text()
    assert "76 %" in text and "n/a" in text
    assert " ".join(text.splitlines()[-3:]) == (
        "Saving in samples: 1 - samples / 28,740, where 28,740 is the number of pool rows times the number of epochs. The "
        "saving in time is n/a, because no model was trained on the full pool; to train one, set controls: [full] in the workflow."
    )
    assert alone_words(results, 28_740) == (
        "GIO selected 430 of the 1,437 pool rows; GIO + InfoBatch trained on 6,894 samples in 20 epochs and reached a test "
        "accuracy of 97.1 %; it used 76 % fewer samples than a training on all pool rows in every epoch, which uses 28,740; no model of this run was "
        "trained on the full pool, so the saving in time is not known."
    )
    page = plain(render(one))
    assert "6,894 instead of 28,740 samples (all pool rows in every epoch)" in page
    assert (
        "Saved in samples: 1 − (samples of the arm) ÷ 28,740, which is the number of pool rows times" in page
    )
    assert "Saved in time" in page and "The saving in time is not known, because no arm" in page
    assert runs_text([(one, [])]).splitlines()[3].split()[-4:] == ["%", "76", "%", "n/a"]
    more, same = (headline(alone(results, samples)) for samples in (5_000, 6_894))
    assert (
        "; it used 38 % more samples than a training on all pool rows in every epoch, which uses 5,000;"
        in more
        and "; it used as many samples as a training on all pool rows in every epoch, which uses 6,894;"
        in same
    )
    # An arm that was trained on the full pool is what the others are compared with, whatever it took.
    measured = replace(results.ledger, full_samples=1)
    assert measured.saving_samples("chain") == results.ledger.saving_samples("chain")


def test_runs_with_different_metrics_name_them(run: RunResults, results: RunResults) -> None:
    lines = runs_text([(run, []), (results, [("train.task", "regression", "classification")])]).splitlines()
    assert lines[1].split()[4] == "metric" and " RMSE 2.890 " in lines[3] and " accuracy 97.1 % " in lines[4]
    assert runs_text([(run, [])]).splitlines()[1].split()[4] == "RMSE"


# ---- a comparison --------------------------------------------------------------------------------------------


def test_the_difference_of_a_smaller_error_is_an_improvement() -> None:
    """Pairs of -0.15, -0.25 and -0.35 have a mean of -0.25 and an interval of 0.2484 to each side."""
    for pairs, verdict in (
        ((-0.15, -0.25, -0.35), "better"),
        ((0.15, 0.25, 0.35), "worse"),
        ((-0.147, -0.247, -0.347), "tie"),
        ((-0.001, -0.001, -0.001), "better"),  # a step of one test row is no unit of an error
        ((0.0, 0.0, 0.0), "tie"),
        ((-0.3,), "one seed"),
    ):
        found = rows.difference([40 + p for p in pairs], [40.0] * len(pairs), RMSE, 10)
        assert found.verdict == verdict and found.mean == pytest.approx(sum(pairs) / len(pairs))
        assert found.relative == pytest.approx(found.mean / 40)


def test_the_findings_of_an_error(compared: CompareResults) -> None:
    assert findings.findings(compared) == [
        "At the same number of samples, InfoBatch has a better RMSE than full data at equal steps: −2.03 ± 0.03 (−17.2 %).",
        "At the same number of samples, InfoBatch does not have a better RMSE than random pruning: +0.00 ± 0.15 (+0.0 %), a "
        "tie.",
        "With 30 % fewer samples than full data, InfoBatch has a worse RMSE: +0.47 ± 0.03 (+5.0 %).",
    ]


def test_the_table_and_the_notes_of_an_error(compared: CompareResults) -> None:
    text = tables.text(compared)
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[0].split()[-2:] == ["RMSE", "difference"]
    notes = " ".join(findings.notes(compared))
    assert (
        "RMSE (lower is better): metric of the model on the 10,000 test rows after the last epoch, ± standard"
        in notes
    )
    assert "Difference: RMSE of InfoBatch minus that of the policy of the row, ± standard error" in notes
    assert "points" not in notes and "standard error of up to" not in notes
    assert findings.headline(compared) == (
        "InfoBatch back-propagated 70.0 % as many samples as a training on all rows in every epoch. At the same number of samples, it has a better RMSE than "
        "full data at equal steps and ties with random pruning."
    )
    page = plain(comparison.render(compared))
    assert (
        "RMSE (lower is better)" in page
        and "values of the RMSE after the first quarter of each line; earlier ones can be above its range"
        in page
    )
    only = turned(sample({"infobatch": ENDS["infobatch"]}))
    assert "reached a test RMSE of 9.767 ± 0.153 (lower is better). No control" in findings.headline(only)


def test_a_long_name_and_numbers_of_any_size_fit_in_the_tables(run: RunResults) -> None:
    name = "mean_of_the_squared_errors_of_the_arrival_delays_in_minutes_over_all_flights"
    for size in (1e-9, 1.0, 1e5, 1e12):
        made = turned(
            sample(), Goal(name, "min"), lambda metrics, size=size: {name: size * (1 - metrics["accuracy"])}
        )
        text = tables.text(made)
        assert max(map(len, text.splitlines())) <= 100 and "mean of the." in text.splitlines()[0]
        assert name.replace("_", " ") in findings.headline(made)
        one = turned(run, Goal(name, "min"), lambda metrics, size=size: {name: size * metrics["rmse"]})
        for text in (one.ledger.text(), runs_text([(one, []), (run, [])]), runs_text([(one, [])])):
            assert max(map(len, text.splitlines())) <= 100
        assert "mean of the." in one.ledger.text().splitlines()[1] and render(one).count("<svg") == 6
    assert "3.256e+10 ± 5.092e+08" in tables.text(
        turned(sample(), RMSE, lambda m: {"rmse": (1 - m["accuracy"]) / 3e-12})
    )


def test_fewer_right_answers_can_be_the_goal() -> None:
    made = turned(sample(), Goal("accuracy", "min"), dict)
    said = " ".join(findings.findings(made))
    assert "InfoBatch has a worse accuracy than full data at equal steps: +2.03 ± 0.03 points" in said


def test_a_share_other_than_the_accuracy_is_compared_in_points() -> None:
    made = turned(sample(), Goal("mean_iou"), lambda metrics: {"mean_iou": metrics.get("accuracy")})
    assert findings.findings(made)[0] == (
        "At the same number of samples, InfoBatch has a better mean IoU than full data at equal steps: +2.03 ± 0.03 points."
    )
    assert tables.table_cells(made, compact=False)[0][-2:] == ["mean IoU, %", "difference, points"]
    assert "standard error of up to" not in " ".join(findings.notes(made))


def test_a_policy_whose_error_is_not_finite_is_named_and_not_compared(
    compared: CompareResults, tmp_path: Path
) -> None:
    def lost(name: str, seed: int) -> CompareResults:
        policy = compared.policies[name]
        cells = [
            replace(cell, metrics={"rmse": None}) if cell.seed == seed else cell for cell in policy.cells
        ]
        return replace(compared, policies={**compared.policies, name: replace(policy, cells=tuple(cells))})

    one = lost("random", 1)
    table = {row.name: row for row in rows.rows(one)}
    assert (
        table["random"].value is None
        and table["random"].difference is None
        and table["full"].difference is not None
    )
    assert findings.findings(one)[-1] == (
        "The test RMSE of random pruning is not a finite number with the seed 1, so random pruning is not compared."
    )
    assert "random pruning" not in findings.headline(one)
    own = lost("infobatch", 0)
    assert len(findings.findings(own)) == 1 and "n/a" in tables.text(own)
    assert findings.headline(own).endswith(
        "Its test RMSE is not a finite number with every seed, so it is not compared."
    )
    none = turned(compared, metrics=lambda metrics: {"rmse": None})
    assert "not compared" in findings.headline(none) and "<svg" not in comparison.render(none)
    assert "Figures" not in comparison.render(none)
    comparison.write_png(none, tmp_path / "none.png")
    for results in (one, own):
        assert comparison.render(results).count("<svg") == 2 and "n/a" in tables.markdown(results)
        comparison.write_png(results, tmp_path / "compare.png")


# ---- what a training returns ---------------------------------------------------------------------------------


def test_the_metrics_of_a_training_are_kept_with_its_goal() -> None:
    entry = {
        "epoch": 0, "planned": 9, "trained": 8, "steps": 2, "seconds": 1.0, "planning_seconds": 0.1, "evaluation_seconds": 0.2,
        "nonfinite": 0, "digest": "ab", "mean_loss": 0.5, "observed": 8, "rmse": math.inf,
    }  # fmt: skip
    goal = {"metric": "rmse", "direction": "min"}
    answer = answer_of({"history": [entry], "metrics": {"rmse": 3.0, "mae": math.nan}, "goal": goal})
    assert answer["metrics"] == {"rmse": 3.0, "mae": None} and answer["goal"] == goal
    assert answer["epochs"][0]["metrics"] == {"rmse": None} and answer["epochs"][0]["loss"] == 0.5
    assert answer_of({"history": [], "metrics": {}, "goal": goal})["metrics"] == {}  # there were no test rows
    with pytest.raises(
        RunError, match="returned the metrics mae, but not 'rmse', which the workflow reports"
    ):
        answer_of({"history": [], "metrics": {"mae": 1.0}, "goal": goal})
