"""`raysel init`: what it writes runs as it stands, and with a user's own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import raysel
from raysel import cli
from raysel.errors import ConfigError
from raysel.workflow import config
from raysel.workflow.directory import Progress
from raysel.workflow.init import listed, write
from raysel.workflow.run import runs

TEMPLATES = ("classify", "dynamic", "own")


def prepare(folder: Path) -> None:
    done = subprocess.run([sys.executable, str(folder / "prepare.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def edit(folder: Path, **values: object) -> None:
    """Set the values of lines marked EDIT."""
    file = folder / "prepare.py"
    lines = file.read_text().splitlines()
    for name, value in values.items():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ") and "# EDIT" in line]
        lines[at] = f"{name} = {value!r}"
    file.write_text("\n".join(lines))


def raysel_command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["raysel", *map(str, arguments)])
    cli.main()
    return capsys.readouterr().out


def test_the_templates_are_listed_with_a_line_each():
    text = listed()
    assert all(f"\n  {name} " in text for name in TEMPLATES)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_as_it_stands(template, tmp_path, monkeypatch, capsys):
    said = write(template, tmp_path / "new folder")
    folder = tmp_path / "new folder"
    workflow = folder / f"{template}.yaml"
    assert all(f"Wrote {file}" in said for file in folder.iterdir())
    assert f"raysel validate '{workflow}' --load" in said
    prepare(folder)
    assert " is valid (pool 900 rows" in raysel_command(monkeypatch, capsys, "validate", workflow)
    out = raysel_command(monkeypatch, capsys, "validate", workflow, "--load")
    assert " is valid (pool 900 rows" in out and "Not checked" not in out
    lines = workflow.read_text().splitlines()
    keys = [line for line in lines if line and not line.startswith("#")]
    assert len([line for line in keys if "#" in line]) >= 6  # commented
    assert max(map(len, lines)) <= 120


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "models.py").write_text("precious")
    with pytest.raises(ConfigError, match=r"would be overwritten: .*models\.py\. Give another folder"):
        write("classify", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["models.py"]
    assert (tmp_path / "models.py").read_text() == "precious"
    with pytest.raises(ConfigError, match="Did you mean 'classify'"):
        write("clasify", tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot be written"):
        write("classify", tmp_path / "models.py" / "inside")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_prepare_takes_a_table_of_the_users_own(tmp_path, suffix):
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "height": random.normal(170, 10, 400),
            "name": "someone",
            "age": random.integers(0, 90, 400),
            "kind": random.choice(["x", "y"], 400),
        }
    )
    frame.loc[3, "height"] = np.nan
    frame.loc[5, "kind"] = None
    write("classify", tmp_path)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    edit(tmp_path, POOL=f"rows{suffix}", LABEL="kind")
    prepare(tmp_path)
    found = {role: pq.read_table(tmp_path / f"data/{role}.parquet") for role in ("pool", "target", "test")}
    assert sum(map(len, found.values())) == 399 and len(found["target"]) < len(
        found["test"]
    )  # one without a class
    pool = np.stack(found["pool"]["inputs"].combine_chunks().to_numpy_ndarray())
    assert pool.shape[1:] == (2,) and np.allclose(pool.mean(axis=0), 0, atol=1e-5)  # height, age
    assert set(found["pool"]["label"].to_pylist()) == {"x", "y"}
    flow = config.load(tmp_path / "classify.yaml")
    raysel.workflow.load.load_check(flow)


def test_prepare_takes_folders_of_images(tmp_path):
    from PIL import Image

    random = np.random.default_rng(1)
    for role, count in (("pool", 12), ("extra", 5)):
        for name in ("cat", "dog"):
            (tmp_path / role / name).mkdir(parents=True)
            for number in range(count):
                size = (20 + number, 24)
                pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / role / name / f"{number}.png")
    write("classify", tmp_path / "flow")
    edit(tmp_path / "flow", POOL="../pool", TARGET="../extra", TEST="../extra")
    prepare(tmp_path / "flow")
    table = pq.read_table(tmp_path / "flow/data/pool.parquet")
    assert len(table) == 24 and table["inputs"].type.shape == [3, 32, 32]
    assert sorted(set(table["label"].to_pylist())) == ["cat", "dog"]
    assert len(pq.read_table(tmp_path / "flow/data/test.parquet")) == 10
    raysel.workflow.load.load_check(config.load(tmp_path / "flow/classify.yaml"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"POOL": "no.csv"}, "does not exist; edit POOL"),
        ({"POOL": "rows.csv", "LABEL": "kind"}, "has no column 'kind'; its columns are a, label"),
        ({"POOL": "empty"}, "holds no images"),
    ],
)
def test_prepare_says_what_is_wrong_with_the_users_rows(tmp_path, values, sentence):
    write("dynamic", tmp_path)
    (tmp_path / "rows.csv").write_text("a,label\n1,2\n")
    (tmp_path / "empty").mkdir()
    edit(tmp_path, **values)
    done = subprocess.run([sys.executable, str(tmp_path / "prepare.py")], capture_output=True, text=True)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow  # a run and a comparison
def test_methods_of_ones_own_run_and_compare(cluster, tmp_path, capsys):
    write("own", tmp_path)
    prepare(tmp_path)
    text = yaml.safe_load((tmp_path / "own.yaml").read_text())
    text["train"] |= {"epochs": 2, "cpus_per_worker": 0.5}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**text, "controls": []}))
    found = raysel.run(tmp_path / "own.yaml", tmp_path / "run", progress=Progress(sys.stderr))
    assert found.arms["chain"].rows == 270 == found.selection.kept and found.selection.method == "nearest"
    assert [epoch.planned for epoch in found.arms["chain"].epochs] == [270, 270 - int(0.3 * 270)]
    assert found.arms["chain"].title == "Nearest + HideEasy" and Path(found.path, "report.html").exists()
    assert [(one.created, differs) for one, differs in runs(tmp_path / "run")] == [(found.created, [])]
    capsys.readouterr()

    compared = raysel.compare(
        tmp_path / "own.yaml", ("full",), seeds=1, out=tmp_path / "run", progress=Progress(sys.stderr)
    )
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines() if "reused" in line] == [
        "embed", "select", "arrays",
    ]  # fmt: skip
    own, full = compared.policies[compared.own], compared.policies["full"]
    assert own.title == "HideEasy" and own.cells[0].policy == {"policy": "HideEasy", "share": 0.3}
    assert sum(e.trained for e in own.cells[0].epochs) < sum(e.trained for e in full.cells[0].epochs)
    assert Path(compared.path, "compare.html").exists()
