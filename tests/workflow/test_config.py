"""The workflow file: what is wrong with it is said in one sentence, before anything starts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raysel
from raysel.cluster.code import load_object
from raysel.core.parameters import build, default_of, describe, keys
from raysel.errors import ConfigError
from raysel.registry import POLICIES, SELECTORS
from raysel.workflow.config import Method, Train, difference, load
from raysel.workflow.steps.train import own_code

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
name: tiny
pool: {path: pool.parquet, label: label}
target: {path: target.parquet}
embed: {embedder: "pca:4", column: pixels}
select: {method: gio, budget: 0.3}
dynamic: {method: infobatch}
train: {model: "models.py:mlp", input: pixels}
"""


def write(tmp_path, text):
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "name", ["quickstart", "fashion_mnist", "fashion_dynamic", "flights", "weather", "mail"]
)
def test_the_shipped_workflows_load(name):
    assert load(ROOT / "workflows" / f"{name}.yaml").name == name


def test_paths_are_relative_to_the_file_and_defaults_are_filled_in(tmp_path):
    flow = load(write(tmp_path, GOOD))
    assert flow.pool.path == str(tmp_path / "pool.parquet")
    assert flow.train.model == f"{tmp_path}/models.py:mlp"
    (select,) = flow.select
    policy = flow.dynamic.make()
    assert (select.make().clusters, policy.prune_ratio, flow.train.workers, flow.seed) == (
        1500,
        0.5,
        2,
        0,
    )
    text = GOOD.replace("path: pool.parquet", "path: s3://bucket/pool")
    assert load(write(tmp_path, text)).pool.path == "s3://bucket/pool"


def test_overrides_are_yaml_and_may_make_groups(tmp_path):
    flow = load(
        write(tmp_path, GOOD), ["select.budget=500", "test.path=t.parquet", "controls=[full]", "seed=3"]
    )
    assert (flow.select[0].make().budget, flow.test.path, flow.controls, flow.seed) == (
        500,
        str(tmp_path / "t.parquet"),
        ["full"],
        3,
    )
    for bad, sentence in (
        ("seed", "Write key=value"),
        ("seed.x=1", "'seed' holds a single value"),
        ("seed=[", "not YAML"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load(write(tmp_path, GOOD + "seed: 1"), [bad])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("budget:", "bugdet:"), r"The key 'select.bugdet' is unknown. Did you mean 'select.budget'\?"),
        (("select:", "selct:"), r"The key 'selct' is unknown. Did you mean 'select'\?"),
        (("input:", "imput:"), r"The key 'train.imput' is unknown. Did you mean 'train.input'\?"),
        (
            ("{method: infobatch}", "{method: infobatch, prune: 0.1}"),
            r"'dynamic.prune' is unknown. Did you mean 'dynamic.prune_ratio'",
        ),
        (("{method: infobatch}", "{method: infobatch, zzz: 1}"), "known names are prune_ratio, delta"),
        (
            ("{method: infobatch}", "{method: infobach}"),
            r"'dynamic.method' is 'infobach', but there is no such name. Did you mean 'infobatch'\?",
        ),
        (("name: tiny", ""), "The key 'name' is missing"),
        ((", input: pixels", ""), "The key 'train.input' is missing"),
        (("name: tiny", "name: a b"), "'name' is 'a b'"),
        (("input: pixels", "input: pixels, workers: 0"), "'train.workers' is 0"),
        (("input: pixels", "input: pixels, workers: two"), "'train.workers' is 'two'"),
        (("budget: 0.3", "budget: lots"), "select.budget: 'lots' is"),
        (
            ("{method: infobatch}", "{method: infobatch, prune_ratio: 1.0}"),
            r"dynamic.prune_ratio must be a number in \[0, 1\), got 1.0",
        ),
        (("name: tiny", "name: tiny\nname: other"), "the key 'name' is given twice"),
        (("name: tiny", "name: [tiny"), "not YAML"),
        (("name: tiny", "- tiny"), "not YAML|mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_path(tmp_path, change, sentence):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_is_no_workflow(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"holds \[1, 2\]"):
        load(write(tmp_path, "[1, 2]"))
    binary = tmp_path / "flow.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary)


def test_numbers_are_read_as_everybody_writes_them(tmp_path):
    text = GOOD.replace("input: pixels", "input: pixels, warmup: 5e-4, learning_rate: 1E-2")
    train = load(write(tmp_path, text), ["train.clip=9e-1"]).train
    assert (train.warmup, train.learning_rate, train.clip) == (5e-4, 1e-2, 0.9)
    with pytest.raises(ConfigError, match=r"'train\.learning_rate' is inf"):
        load(write(tmp_path, GOOD), ["train.learning_rate=.inf"])
    with pytest.raises(ConfigError, match="'seed' is 1000"):
        load(write(tmp_path, GOOD), [f"seed={10**23}"])


def test_anchors_may_be_merged_and_keys_are_text(tmp_path):
    text = GOOD.replace(
        "pool: {path: pool.parquet, label: label}", "pool: &p {path: pool.parquet, label: label}"
    )
    assert load(write(tmp_path, text + "test: {<<: *p, path: t.parquet}")).test.label == "label"
    with pytest.raises(ConfigError, match="the key True is not text"):
        load(write(tmp_path, GOOD + "on: 1"))


def test_yaml_cannot_make_objects(tmp_path):
    with pytest.raises(ConfigError, match="not YAML"):
        load(write(tmp_path, GOOD + "seed: !!python/object/apply:os.getpid []"))


# ---- methods as configuration --------------------------------------------------------------------------------


def test_whatever_python_offers_yaml_offers(tmp_path):
    text = GOOD.replace(
        "{method: gio, budget: 0.3}",
        "{method: gio, budget: 200MB, clusters: null, estimator: average, k: 3, solver: gradient, init: jump,"
        " stop: {data_size: 0.5, max_resets: 2}, within: nearest, column: v, seed: 9}",
    )
    (select,) = load(write(tmp_path, text)).select
    stop = raysel.gio.Stop(data_size=0.5, max_resets=2)
    assert select.make(seed=4) == raysel.GIO(
        "200MB", None, "average", 3, "gradient", "jump", stop, "nearest", "v", 9
    )


@pytest.mark.parametrize("registry", [SELECTORS, POLICIES])
def test_every_method_can_be_named_and_described(registry, tmp_path):
    for name in registry.builtin:
        fields = keys(registry.find(name, "here", load_object))
        required = [n for n, field in fields.items() if default_of(field) is dataclasses.MISSING]
        given = {n: {"budget": 0.5}.get(n, "v") for n in required}
        method = Method.of({"method": name, **given}, registry, "here")
        made = method.make(seed=3)
        described = method.describe()
        assert described.pop("method") == name and set(described) == set(keys(type(made)))
        assert build(type(made), described) == Method.of({"method": name, **given}, registry, "here").make()


def test_several_selectors_are_a_list(tmp_path):
    text = GOOD.replace(
        "select: {method: gio, budget: 0.3}",
        "select: [{method: random, budget: 0.5}, {method: gio, budget: 0.3}]",
    )
    flow = load(write(tmp_path, text), ["select.0.budget=40", "seed=5"])
    assert [method.spec for method in flow.select] == ["random", "gio"]
    assert flow.select[0].make(seed=flow.seed) == raysel.Random(40, seed=5)
    with pytest.raises(
        ConfigError, match=r"The key 'select.1.bugdet' is unknown. Did you mean 'select.1.budget'"
    ):
        load(write(tmp_path, text), ["select.1.bugdet=1"])
    with pytest.raises(ConfigError, match=r"'2' is not an index of the list, which has 2 entries"):
        load(write(tmp_path, text), ["select.2=1"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("select.budget=.nan", "'select.budget' is nan; give a finite number"),
        ("dynamic.prune_ratio=.inf", "'dynamic.prune_ratio' is inf"),
        ("select.budget=true", "'select.budget' is true; it should be a number or an integer or text"),
        ("seed=true", "'seed' is true; it should be an integer"),
        ("train.epochs=2.0", "'train.epochs' is 2.0; it should be an integer"),
        ("train.model=7", "'train.model' is 7; it should be text"),
        ("train.learning_rate='0.1'", "'train.learning_rate' is '0.1'; it should be a number"),
        ("embed.normalize=1", "'embed.normalize' is 1; it should be true or false"),
        ("embed.dtype=float16x", r"'embed.dtype' is 'float16x'; it should be 'float32' or 'float16'"),
        ("pool.path=2024-01-01", "'pool.path': YAML reads this value as a date, .*; write it in quotes"),
        ("pool.path=[]", "'pool.path' is an empty list"),
        ("pool.path=''", "'pool.path' is empty"),
        ("name=a/b", "'name' is 'a/b'; it should be text that matches "),
        (
            "select.stop={min_kk: 1}",
            r"The key 'select.stop.min_kk' is unknown. Did you mean 'select.stop.min_kl'",
        ),
        ("select.stop=3", "'select.stop' is 3"),
        ("dynamic.scores=[1]", "The key 'dynamic.scores' is unknown"),
        ("dynamic.classes=[1]", "The key 'dynamic.classes' is unknown"),
        ("select=gio", "'select' is 'gio'; it should be a mapping with the key 'method'"),
        ("select={budget: 1}", "'select.method' is missing. The known names are gio, "),
        (
            "embed.embedder=pac:8",
            r"'embed.embedder' is 'pac:8', but there is no such name. Did you mean 'pca'\?",
        ),
        (
            "embed.embedder=pcaa",
            r"'embed.embedder' is 'pcaa', but there is no such name. Did you mean 'pca'\?",
        ),
        ("train.epochs=1:30", "'train.epochs' is '1:30'; it should be an integer"),
        ("train.epochs=010", "'train.epochs' is '010'; it should be an integer"),
        ("pool.label=no", "'pool.label' is false; it should be text"),
        ("select=&a {method: gio, budget: 0.3, stop: *a}", "'select.stop.*' contains itself"),
        ("dynamic={method: full, x: 1}", "The key 'dynamic.x' is unknown"),
        (
            "embed.embedder={method: 'pca:2', whiten: true}",
            "The embedder 'pca:2' takes no parameters except those in its name; remove whiten",
        ),
        ("controls=[all]", "'controls.0' is 'all'; it should be 'full' or 'random'"),
        ("validation=1.5", "'validation' is 1.5"),
        ("validation=1", "'validation' is 1"),
        ("dynamic={method: round_robin, ratio: 2}", r"dynamic.ratio must be a number in \(0, 1\], got 2"),
        ("select={method: random, budget: 0}", "select.budget: 0 rows are too few; select at least 1"),
    ],
)
def test_values_are_not_converted(tmp_path, change, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(write(tmp_path, GOOD), [change])
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


def test_code_of_the_users_own_is_named_and_not_run(tmp_path):
    (tmp_path / "mine.py").write_text("raise RuntimeError('this code was run')\n")
    text = GOOD.replace("method: infobatch", "method: mine.py:Half, share: 0.5").replace(
        "method: gio, budget: 0.3", "method: mine.py:First, count: 3"
    )
    flow = load(write(tmp_path, text), ["embed.embedder={method: mine.py:Embed, size: 3}"])
    place = f"{tmp_path}/mine.py"
    assert [flow.dynamic.spec, flow.select[0].spec] == [f"{place}:Half", f"{place}:First"]
    assert flow.describe()["dynamic"] == {"method": f"{place}:Half", "share": 0.5}
    assert flow.describe()["embed"]["embedder"] == {"method": f"{place}:Embed", "size": 3}
    with pytest.raises(ConfigError, match=r"dynamic.method: .*mine.py.*RuntimeError.*this code was run"):
        flow.dynamic.make()


def test_what_the_users_class_refuses_is_said_with_its_path(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Half:\n"
        "    share: float = 0.5\n"
        "    def __post_init__(self):\n"
        "        if self.share > 1: raise ValueError('share is above 1')\n"
    )
    for parameters, sentence in (
        ("share: 2.0", r"dynamic: ValueError: share is above 1\."),
        ("shares: 2.0", r"The key 'dynamic.shares' is unknown. Did you mean 'dynamic.share'\?"),
        ("share: two", r"'dynamic.share' is 'two'; it should be a number\."),
    ):
        flow = load(write(tmp_path, GOOD.replace("method: infobatch", f"method: mine.py:Half, {parameters}")))
        with pytest.raises(ConfigError, match=sentence):
            flow.dynamic.make()
    with pytest.raises(ConfigError, match=r"has no .*'Halff'.*'?Half"):
        load(write(tmp_path, GOOD.replace("infobatch", "mine.py:Halff"))).dynamic.make()


MINE = """
import threading
from dataclasses import dataclass
lock = threading.Lock()
@dataclass(frozen=True)
class Locked:
    count: int = 3
    def select(self, pool, target=None): return lock, 1
"""


def test_a_version_stands_for_the_code_of_a_method_of_the_users_own(tmp_path):
    def key(code, **given):
        (tmp_path / "mine.py").write_text(code)
        (method,) = load(
            write(tmp_path, GOOD), [f"select={{method: mine.py:Locked, {', '.join(given.values())}}}"]
        ).select
        return method.key()

    with pytest.raises(ConfigError, match=r"'lock'.*give version next to method, at 'select'\."):
        key(MINE, count="count: 4")
    one = key(MINE, version="version: '1'")
    assert one == key(MINE.replace("lock, 1", "lock, 2"), version="version: '1'")
    assert one != key(MINE, version="version: '2'")
    assert one != key(MINE, version="version: '1'", count="count: 4")
    plain = MINE.replace("lock, 1", "1")
    keys_ = [key(plain, version="version: null"), key(plain), key(plain.replace("1", "2"))]
    assert keys_[0] == keys_[1] != keys_[2]


def test_a_version_is_described_and_is_text(tmp_path):
    flow = load(write(tmp_path, GOOD), ["dynamic={method: mine.py:P, version: '1'}", "train.version='a'"])
    assert flow.describe()["dynamic"] == {"method": f"{tmp_path}/mine.py:P", "version": "1"}
    assert (flow.train.version, load(write(tmp_path, GOOD)).train.version) == ("a", None)
    for change, sentence in (
        ("dynamic={method: mine.py:P, version: 1}", r"'dynamic.version' is 1; it should be text"),
        ("dynamic.version='1'", r"The key 'dynamic.version' is unknown"),
        ("select.version='1'", r"The key 'select.version' is unknown"),
        ("train.version=1", r"'train.version' is 1; it should be"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load(write(tmp_path, GOOD), [change])


def test_a_version_stands_for_the_code_of_the_model(tmp_path):
    (tmp_path / "m.py").write_text("import threading\nlock = threading.Lock()\ndef net(s, c): return lock\n")
    settings = Train(model=f"{tmp_path}/m.py:net", input="x")
    with pytest.raises(ConfigError, match=r"Model '.*m\.py:net' reads.*'lock'.*give train\.version\."):
        own_code(settings)
    versions = [dataclasses.replace(settings, version=one) for one in ("1", "1", "2")]
    one, again, other = map(own_code, versions)
    assert one == again != other


def test_an_installed_package_adds_methods(tmp_path, monkeypatch):
    point = importlib.metadata.EntryPoint(
        "every_other", "raysel.dynamic.controls:RandomSubset", "raysel.policies"
    )
    found = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **given: [point] if given == {"group": "raysel.policies"} else found(**given),
    )
    flow = load(write(tmp_path, GOOD), ["dynamic={method: every_other, ratio: 0.25}"])
    assert flow.dynamic.make() == raysel.RandomSubset(0.25) and "every_other" in POLICIES.names()
    with pytest.raises(
        ConfigError,
        match=r"'dynamic.method' is 'every_othr', but there is no such name. Did you mean 'every_other'\?",
    ):
        load(write(tmp_path, GOOD), ["dynamic={method: every_othr}"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["budget", "clusters", "stop", "k", "seed", "column", "solver"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_no_tree_of_values_is_a_traceback(tree):
    try:
        made = build(raysel.GIO, tree, "select")
    except ConfigError as error:
        assert str(error)
    else:
        assert build(raysel.GIO, describe(made)) == made


def test_a_difference_is_named_by_the_key_that_differs():
    one = {"select": [{"method": "gio", "budget": 0.3}], "seed": 0, "controls": ["full"]}
    other = {"select": [{"method": "gio", "budget": 0.2}], "seed": 0, "controls": []}
    assert difference(one, other) == [("controls", ["full"], []), ("select.budget", 0.3, 0.2)]
    two = {**one, "select": [{"method": "random"}, {"method": "gio"}]}
    three = {**one, "select": [{"method": "random"}, {"method": "gio", "k": 2}]}
    assert difference(two, three) == [("select.1.k", None, 2)]
    assert difference(one, two) == [("select", one["select"], two["select"])]
