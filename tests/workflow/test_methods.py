"""`raysel methods`: every name, parameter and default that a workflow can give, from the docstrings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import textwrap

import pytest
import yaml

from raysel.cluster.code import load_object
from raysel.core import docstrings
from raysel.core.parameters import keys
from raysel.errors import ConfigError
from raysel.registry import EMBEDDERS, METRICS, POLICIES, SELECTORS, TASKS
from raysel.workflow.config import parse
from raysel.workflow.methods import _plain, all_methods, one_method

REGISTERED = [(registry, name) for registry in (SELECTORS, POLICIES, EMBEDDERS) for name in registry.builtin]
METRIC_NAMES = [(METRICS, name) for name in METRICS.builtin]
SECTIONS = ("workflow", "pool", "target", "validation", "test", "gime", "embed", "factors", "train")


def component(registry, name):
    return registry.find(name, name, load_object)


def test_every_registered_method_stands_under_its_kind_with_its_summary():
    groups = {block.split(" ")[0].lower(): block for block in all_methods().split("\n\n")}
    for registry, name in [*REGISTERED, *METRIC_NAMES]:
        summary = docstrings.summary(component(registry, name))
        assert summary.endswith(".") and len(summary) <= 110
        lines = " ".join(groups[registry.kind].split())
        assert f" {name} {summary}" in lines
    assert all(f"\n  {name} " in groups["sections"] for name in SECTIONS)
    assert max(map(len, all_methods().splitlines())) <= 100


@pytest.mark.parametrize("name", [*(name for _, name in [*REGISTERED, *METRIC_NAMES]), *SECTIONS])
def test_what_is_printed_is_at_most_100_columns_wide_and_has_no_markup(name):
    text = one_method(name)
    assert max(map(len, text.splitlines())) <= 100 and "`" not in text


@pytest.mark.parametrize(("registry", "name"), REGISTERED)
def test_every_parameter_of_a_built_in_method_is_documented(registry, name):
    cls = component(registry, name)
    texts = docstrings.parameters(cls)
    wanted = keys(cls) if dataclasses.is_dataclass(cls) else ("spec",)
    assert [key for key in wanted if not texts.get(key)] == []
    if registry is not EMBEDDERS:
        printed = one_method(name)
        assert all(f"\n  {key} " in printed for key in keys(cls))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_of_a_section_is_documented(name):
    lines = one_method(name).splitlines()
    entries = [at for at, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    assert entries and all(lines[at + 1].startswith("   ") for at in entries)


def test_types_and_defaults_are_those_of_the_dataclass():
    gio = one_method("gio")
    assert gio.startswith(
        "gio (selector, key 'select')\n\nSelect the pool rows that lower the Kullback-Leibler"
    )
    lines = [" ".join(line.split()) for line in gio.splitlines()]
    assert "budget float or int or text, required" in lines
    assert "clusters int or null, default 1500" in lines
    assert "within random or nearest, default random" in lines
    assert "stop.min_kl float or null, default null" in lines  # keys of a nested mapping
    assert "seed int, default 0" in lines
    infobatch = one_method("infobatch")
    assert "classes" not in {
        line.split()[0] for line in infobatch.splitlines() if line.split()
    }  # Python alone
    embed = " ".join(one_method("embed").split())
    assert 'on_error raise or drop or "null", default raise' in embed  # a bare null is none in YAML
    assert "binding.target" not in one_method("gime")


@pytest.mark.parametrize(("registry", "name"), REGISTERED)
def test_the_example_is_a_part_of_a_workflow_that_is_accepted(registry, name):
    text = one_method(name).partition("\nExample:\n")[2]
    part = yaml.safe_load(textwrap.dedent(text))
    train = {"model": "models.py:mlp", "input": "features"}
    flow = parse({"name": "x", "pool": {"path": "x.parquet"}, "train": train, **part})
    found = {"selectors": flow.select[:1], "policies": [flow.dynamic], "embedders": [flow.embed.method]}
    assert found[registry.kind][0].spec.partition(":")[0] == name
    assert len(text.splitlines()) <= 4


@pytest.mark.parametrize("name", TASKS.builtin)
def test_the_example_of_a_task_is_the_section_train_of_a_workflow(name):
    text = one_method(name).partition("\nExample:\n")[2].replace("...", "3")
    flow = parse({"name": "x", "pool": {"path": "x.parquet", "label": "y"}, **yaml.safe_load(text)})
    assert flow.train.task["method"] == name and flow.train.input == "features"


def test_an_embedder_is_found_with_its_argument():
    assert one_method("pca:64") == one_method("pca") and "embedder: pca:32" in one_method("pca")


def test_an_unknown_name_is_answered_by_the_nearest():
    with pytest.raises(ConfigError, match=r"^'infobach' is neither a method.* Did you mean 'infobatch'\?"):
        one_method("infobach")
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        one_method("trian")


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            '''
            from dataclasses import dataclass

            @dataclass(frozen=True)
            class Best:
                """Select the best rows.

                Parameters
                ----------
                budget : float
                    Share of the rows.
                low, high : int
                    Bounds of the
                    score.
                """

                budget: float
                low: int = 1
                high: int | None = None

                def select(self, pool): ...

            class Plain:
                """Train on some samples."""

                def __init__(self, share: float, *, start=3):
                    self.share = share

                def plan(self, state, *, epoch, num_epochs, seed): ...
                def update(self, state, plan, slots, losses): ...

            def doubled(rows):
                """Return rows times two."""
                return rows * 2

            def model(input_shape, classes): ...
            '''
        )
    )
    return lambda name: f"{tmp_path}/mine.py:{name}"


def test_a_class_of_the_users_own(mine):
    text = one_method(mine("Best"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == f"{mine('Best')} (selector, key 'select')" and "Select the best rows." in lines
    at = lines.index("budget float, required")
    assert lines[at : at + 6] == [
        "budget float, required",
        "Share of the rows.",
        "low int, default 1",
        "Bounds of the score.",
        "high int or null, default null",
        "Bounds of the score.",
    ]
    assert text.endswith(f"  select:\n    method: {mine('Best')}\n    budget: 0.3")


def test_sections_of_the_same_keys_say_what_each_is_for():
    told = {name: one_method(name).split("\n\n")[1] for name in ("pool", "target", "validation", "test")}
    assert told["pool"] == "Rows to select from." and len(set(told.values())) == 4


def test_code_in_docstrings_is_printed_in_one_pair_of_quotes():
    text = 'Only for ``how="sample"``, ``"200MB"`` or ``low``; see `raysel.read` and :func:`raysel.run`.'
    assert _plain(text) == ("Only for 'how=\"sample\"', \"200MB\" or 'low'; see raysel.read and raysel.run.")


def test_a_class_that_is_no_dataclass_and_a_function(mine):
    text = one_method(mine("Plain"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "(policy, key 'dynamic')" in lines[0]
    assert "share float, required" in lines and "start any value, default 3" in lines
    text = one_method(mine("doubled"))
    assert "(embedder, key 'embed.embedder')" in text and "It has no parameters." in text
    assert text.endswith(f"    embedder: {mine('doubled')}\n    column: features")
    with pytest.raises(ConfigError, match="neither a selector"):
        one_method(mine("model"))


def test_an_entry_point_is_listed_and_a_broken_one_does_not_hide_the_rest(monkeypatch):
    class Point:
        def __init__(self, name, load):
            self.name, self.value, self.load = name, f"package:{name}", load

    def broken():
        raise ImportError("no torch")

    def entry_points(group):
        points = [Point("tossed", lambda: component(SELECTORS, "random")), Point("broken", broken)]
        return points if group == "raysel.selectors" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    text = " ".join(all_methods().split())
    assert "tossed Select a uniformly random subset" in text
    assert "cannot be loaded (ImportError: no torch)" in text and "round_robin" in text
    assert "method: tossed" in one_method("tossed")
