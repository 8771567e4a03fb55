"""A workflow file with anything in it is a workflow, or one sentence with the file's name."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raysel.errors import ConfigError, RayselError
from raysel.workflow import config, steps

TREE = {
    "name": "tiny",
    "pool": {"path": "pool.parquet", "label": "label", "trust": "mtime"},
    "target": {"path": ["pool.parquet"]},
    "test": {"path": "pool.parquet", "label": "label"},
    "validation": 0.2,
    "gime": {"binding": {"classes": "label", "bounds": {"at": [0, 5]}}, "thresholds": {"volume.rows": [2, None]},
             "floors": {"0": 1}, "by": "label"},
    "embed": {"embedder": "pca:1", "column": "pixels", "dtype": "float16"},
    "select": [{"method": "gio", "budget": 0.3, "stop": {"min_kl": 1.0}}, {"method": "random", "budget": 3}],
    "dynamic": {"method": "infobatch", "prune_ratio": 0.5},
    "controls": ["full"],
    "train": {"model": "models.py:mlp", "input": "pixels", "epochs": 2},
}  # fmt: skip
VALUES = [
    None, True, 0, -1, 2**63, 10**400, 1.5, -0.5, float("nan"), float("inf"), 1e308, "", "x", "a\0b", "\ud800", "é", "~no/x",
    "s3://b/c", "a:b", "x.py:y", "pca:-1", "hash:0", "torch:", "torch:x.py:", "../x", "/dev/null", "30%", "200MB", "label",
    "sample_id", [], {}, [[]], [None], {"a": 1}, {"method": "gio"}, {"method": None}, ["a", "a"], "x" * 300, "2024-13-45",
]  # fmt: skip
PIECES = [
    b"\t", b"- ", b": ", b"{", b"[", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!bool ", b"!!binary ", b"!!set ", b"!!omap ",
    b"!!timestamp ", b"!!python/none ", b"? ", b"|", b">", b"'", b'"', b"#", b"---\n", b"%", b"@", b"9" * 5000, b"1e999",
    b"\xff", b"\0", b"2024-13-45", b"0x", b"~", b"[" * 200,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(
        pa.table({"label": [0, 1] * 8, "pixels": [[1.0, 2.0]] * 16, "at": [1] * 16}), "pool.parquet"
    )
    Path("models.py").write_text("def mlp(shape, classes): return None\n")
    return tmp_path


def paths(tree, path=()):
    """Path of every value of a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in inner for found in paths(value, (*path, key)))]


def changed_tree(rng):
    """Text of a workflow with other values at up to two places."""
    tree = copy.deepcopy(TREE)
    for _ in range(rng.choice((1, 1, 2))):
        *parents, last = rng.choice([path for path in paths(tree) if path])
        here = tree
        for key in parents:
            here = here[key]
        if rng.random() < 0.15:
            del here[last]
        else:
            here[last if rng.random() < 0.9 or isinstance(here, list) else "budget"] = copy.deepcopy(
                rng.choice(VALUES)
            )
    return yaml.safe_dump(tree).encode()


def changed_text(rng):
    """Text of a workflow with other bytes."""
    text = bytearray(yaml.safe_dump(TREE).encode())
    for _ in range(rng.choice((1, 2, 30))):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(3)] = rng.choice([bytes([rng.randrange(256)]), rng.choice(PIECES)])
    return bytes(text)


def fuzz(trials):
    rng, loaded = random.Random(0), 0
    for _ in range(trials):
        Path("flow.yaml").write_bytes(rng.choice((changed_tree, changed_text))(rng))
        try:
            flow = config.load("flow.yaml")
        except RayselError as error:
            text = str(error)
            assert text.startswith("flow.yaml") and text.endswith((".", "?")) and len(text.splitlines()) == 1
            continue
        try:
            steps.check(flow)
            loaded += 1
        except RayselError as error:
            assert len(str(error).splitlines()) == 1
    assert loaded  # some changes matter to nothing


def test_a_workflow_with_anything_in_it(folder):
    fuzz(60)


@pytest.mark.slow
def test_many_workflows_with_anything_in_them(folder):
    fuzz(4_000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty, but a workflow must be a mapping of keys"),
        (b"- a", r"holds \['a'\], but a workflow must be a mapping"),
        ("name: café".encode("latin-1"), r"is not UTF-8 text \(byte 9 is 0xe9\); save it as UTF-8"),
        ("name: tiny".encode("utf-16"), r"is not UTF-8 text \(byte 0 is 0xff\); save it as UTF-8"),
        (b"name:\n\tx: 1", r"is not YAML \(.*line 2, column 1.*\)\. Indent with spaces, not with tabs"),
        (b"name: a\nname: b", "the key 'name' is given twice"),
        (b"pool: {path: a, path: b}", "the key 'path' is given twice"),
        (b"1: a", "the key 1 is not text; write it in quotes"),
        (b"? [a]\n: b", r"the key \['a'\] is not text"),
        (b"seed: 2024-13-45", r"'2024-13-45' is no timestamp \(month must be in 1\.\.12.*line 1, column 7"),
        (b"seed: !!int x", "'x' is no int .*line 1, column 7"),
        (b"seed: !!bool maybe", "'maybe' is no bool"),
        (b"seed: " + b"9" * 5000, r"'9+\.\.\. is no int \(Exceeds the limit"),
        (b"seed: " + b"[" * 1500, "is nested too deeply for a workflow"),
        (b"seed: &a [*a]", "'seed.*' contains itself through an anchor"),
        (b"name: a\n---\nname: b", "is not YAML .*expected a single document"),
        (b"seed: !!python/object:os.system {}", "is not YAML .*could not determine a constructor"),
        (b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
         "has more than 100,000 values, counting those that aliases repeat"),
        (b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (i, i, i - 1, i - 1) for i in range(1, 40)),
         "merged keys make more than 100,000 values"),
        (b"#" * (1 << 20) + b"\n", "is larger than 1 MB, the largest size of a workflow"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_workflow(folder, text, says):
    Path("flow.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=f"^flow.yaml.*{says}"):
        config.load("flow.yaml")


def test_what_is_no_file_of_a_workflow(folder):
    for path, says in (
        ("none.yaml", "none.yaml cannot be read: there is no such file"), (folder, "cannot be read: it is a folder"),
        ("x" * 300, "cannot be read"), ("a\0b", "cannot be read"), ({"name": "x"}, "is not a workflow; give the path"),
        (None, "None is not a workflow; give the path of a YAML file"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            config.load(path)
    Path("flow.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(TREE).encode())  # as Notepad writes it
    assert config.load("flow.yaml").name == "tiny"
