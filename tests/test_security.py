"""Promises of docs/guides/security.md that no other test keeps."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel import export
from raysel.cluster import connect
from raysel.core.storage import Folder, write_json
from raysel.data.convert import convert
from raysel.data.listing import list_source
from raysel.dynamic import controls
from raysel.errors import ConfigError, DataError, RunError
from raysel.report import Ledger
from raysel.report.results import Chosen, Data, RunResults
from raysel.workflow import config, steps
from raysel.workflow.explain import explain
from raysel.workflow.load import load_check
from raysel.workflow.steps.cell import Cell

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "raysel").rglob("*.py"))}
BAD = ("../../x", "/x", "a/b", "..", "", "a\nb", "a\0", "<b>", "-x", ".x", "a b", "x\n")
NAMES = ("..x", "-rf", "<script>", "a\nb", "a b'\"", "x" * 200, "\u202e", "$(touch y)")


def calls(*names: str) -> dict[str, set[str]]:
    """Calls of functions with these names: the keywords that all have, with their values, by file and function."""
    found: dict[str, set[str]] = {}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in names:
                place = f"{path.relative_to(ROOT / 'raysel')} {name}"
                given = {f"{key.arg}={ast.unparse(key.value)}" for key in node.keywords}
                found[place] = found.get(place, given) & given
    return found


def test_what_is_read_from_storage_is_not_unpickled():
    arrays = calls("np.load", "numpy.load", "np.lib.format.read_array")  # memory maps hold no objects
    assert arrays and all("allow_pickle=False" in given for given in arrays.values())
    tensors = calls("torch.load")
    assert tensors and all("weights_only=True" in given for given in tensors.values())
    assert all("Loader=_Loader" in given for given in calls("yaml.load", "yaml.load_all").values())
    unpickling = ("load", "loads", "Unpickler")
    found = calls(
        *(
            f"{of}.{name}"
            for of in ("pickle", "cloudpickle", "dill", "joblib", "marshal")
            for name in unpickling
        )
    )
    assert found.keys() == {  # of what a process of the same run has pickled a moment ago
        "cluster/blocks.py pickle.loads",
        "data/embed.py cloudpickle.loads",
        "data/identity.py pickle.loads",
        "train/communicator.py pickle.loads",
    }
    assert not calls("eval", "exec", "pd.read_pickle", "torch.hub.load")
    assert not any("AUTOLOAD_CLOUDPICKLE" in path.read_text() for path in SOURCES)


def test_no_ray_is_installed_that_unpickles_the_metadata_of_parquet_files():
    text = (ROOT / "pyproject.toml").read_text()
    oldest = re.findall(r"\"ray(?:\[[\w,]+\])?([<>=!~][^\"]*)\"", text)
    assert oldest and set(oldest) == {">=2.59"}


def test_an_array_of_pickled_objects_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    objects = np.empty(2, dtype=object)
    objects[:] = Evil()
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "y.npz", a=objects)
    for name in ("x.npy", "y.npz"):
        with pytest.raises(DataError, match=name):
            convert(list_source([tmp_path / name]), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_the_token_and_the_environment_are_left_where_they_are():
    naming = {path.name for path in SOURCES if "AUTH_TOKEN" in path.read_text()}
    assert naming == {"connect.py", "submit.py"}  # to look for it, and to say where to put it
    copied = {
        str(path.relative_to(ROOT / "raysel"))
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Dict, ast.Call))
        for part in (node.values if isinstance(node, ast.Dict) else node.args)
        if ast.unparse(part) == "os.environ"
    }
    assert copied == {"cluster/connect.py"}  # for the process that looks at the cluster
    sent = {path.name for path in SOURCES if re.search(r"runtime_env|env_vars", path.read_text())}
    assert sent <= {"cli.py", "submit.py"}  # of a job: what the user gives for it


def test_a_cluster_of_its_own_has_no_dashboard(monkeypatch):
    import ray

    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    connect.connect("local")
    assert given["include_dashboard"] is False and "dashboard_host" not in given


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = pa.table({"label": [0, 1] * 8, "pixels": [[1.0, 2.0]] * 16, "embedding": [[1.0, 2.0]] * 16})
    pq.write_table(table, "pool.parquet")
    Path("evil_code.py").write_text("import os\nos.mkdir('ran')\nthing = None\n")
    return tmp_path


@pytest.mark.parametrize("spec", ["evil_code.py:thing", "evil_code:thing"])
def test_checking_a_workflow_runs_none_of_its_code(folder, spec):
    tree = {
        "name": "evil",
        "pool": {"path": "pool.parquet", "label": "label"},
        "test": {"path": "pool.parquet", "label": "label"},
        "embed": {"embedder": {"method": spec}},
        "select": [{"method": spec, "budget": 0.5}, {"method": spec}],
        "dynamic": {"method": spec, "share": 0.5},
        "train": {"model": spec, "task": spec, "input": "pixels", "epochs": 2},
    }
    steps.check(config.parse(tree, folder))
    assert not (folder / "ran").exists()
    with pytest.raises(ConfigError, match="evil_code"):
        load_check(config.parse(tree, folder))  # the code is run, and has nothing that can be used
    assert (folder / "ran").exists()


@pytest.mark.parametrize("name", BAD)
def test_the_name_of_a_workflow_is_no_path(folder, name):
    tree = {
        "name": name,
        "pool": {"path": "pool.parquet"},
        "train": {"model": "evil_code.py:thing", "input": "pixels"},
    }
    config.parse({**tree, "name": "a-b_c.d"}, folder)
    with pytest.raises(ConfigError, match="name"):
        config.parse(tree, folder)


def test_a_policy_of_any_name_has_one_folder():
    for name in (*BAD, *NAMES, "x/../../y.py:Z"):
        made = Cell(name, 1, controls.FullData(), 1).name
        assert re.fullmatch(r"cell-[\w-]*-1", made) and len(made) < 100, made


def test_a_file_of_any_name_is_converted_inside_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / f"{name}.csv").write_text("a\n1\n")
    found = convert(list_source([str(tmp_path / "in" / f"{name}.csv") for name in NAMES]), tmp_path / "out")
    assert len(os.listdir(tmp_path / "out")) == len(NAMES) and sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert all(Path(path).parent == tmp_path / "out" for path in found.listing.paths)


def test_members_of_an_archive_are_read_and_not_extracted(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/x.tar", "w") as tar:
        for name in ("../../a.txt", "/tmp/raysel-evil.txt", "../../b.json"):
            content = b"{}" if name.endswith("json") else b"text"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("../../c.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    try:
        convert(list_source([tmp_path / "in/x.tar"]), tmp_path / "out")
    except DataError as error:
        assert "x.tar" in str(error)
    assert set(os.listdir(tmp_path)) <= {"in", "out"} and not Path("/tmp/raysel-evil.txt").exists()
    for made in tmp_path.glob("out/*"):
        assert "root:" not in str(pq.read_table(made).to_pydict())


@pytest.mark.parametrize("name", ["../x", "/x", "a\\b", "a\nb", "json", ""])
def test_no_column_makes_a_path_in_an_archive(name):
    good = pa.table({"sample_id": [1], "seg.png": [b"x"]})
    with tarfile.open(fileobj=io.BytesIO(export._tar(good))) as tar:
        assert tar.getnames() == ["000000000001.seg.png", "000000000001.json"]
    with pytest.raises(DataError, match="cannot be exported to WebDataset"):
        export._tar(pa.table({"sample_id": [1], name: [b"x"]}))


def test_names_in_files_do_not_lead_out_of_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    folder = Folder(tmp_path / "in")
    folder.write("a", b"x")
    folder.finish()
    assert folder.fault() is None
    about = json.loads((tmp_path / "in/_done.json").read_text())
    about["files"]["../secret"] = about["files"].pop("a")
    write_json(tmp_path / "in/_done.json", about)
    assert folder.fault() == "_done.json is damaged"


def test_a_report_does_not_lead_out_of_its_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "manifest.json", {"kind": "raysel run", "format": 2, "name": "x", "created": "x"})
    for place in ("../other", "/other"):
        chosen = Chosen(method="x", kept=1, pool=2, folder=place)
        RunResults("x", "x", "x", {}, 0, {}, Data(2), {}, Ledger([]), selection=chosen).save(
            run / "results.json"
        )
        with pytest.raises(RunError, match="names a folder outside of"):
            explain(run)
