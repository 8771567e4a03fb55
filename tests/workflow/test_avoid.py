"""The key ``avoid``: rows that must not be learned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.vectors import to_column
from raysel.errors import ConfigError, DataError
from raysel.selection import Selection
from raysel.workflow import steps
from raysel.workflow.config import parse
from raysel.workflow.directory import open_run
from raysel.workflow.steps import Select


@pytest.fixture
def flow(tmp_path):
    """A pool of which every second row is like the rows to avoid, as is a part of the target."""
    rng = np.random.default_rng(0)
    sides = {
        name: rng.normal(size=(rows, 4)) for name, rows in (("pool", 200), ("target", 60), ("avoid", 50))
    }
    sides["pool"][::2, 0] += 8
    sides["target"][:20, 0] += 8
    sides["avoid"][:, 0] += 8
    sides["narrow"] = sides["avoid"][:, :3]
    for name, vectors in sides.items():
        table = {"x": to_column(vectors.astype(np.float32)), "label": np.arange(len(vectors)) % 2}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef make(shape, classes):\n    return torch.nn.Linear(shape[0], classes)\n"
    )

    def made(**more):
        tree = {
            "name": "avoiding",
            "pool": {"path": "pool.parquet", "label": "label"},
            "target": "target.parquet",
            "avoid": "avoid.parquet",
            "embed": {"column": "x"},
            "select": [{"method": "nearest", "budget": 0.5}, {"method": "random", "budget": 0.5}],
            "train": {"model": "model.py:make", "input": "x"},
        }
        return parse({**tree, **more}, tmp_path)

    return made


def test_it_is_checked_before_anything_runs(flow):
    assert flow().roles == ["pool", "target", "avoid"]
    steps.check(flow())
    with pytest.raises(ConfigError, match="'avoid' has no effect, because no selector"):
        steps.check(flow(select={"method": "cluster_share", "budget": 0.5}))
    with pytest.raises(
        DataError, match="vectors of the pool have 4 elements, but those of the rows to avoid have 3"
    ):
        steps.check(flow(avoid="narrow.parquet"))
    with pytest.raises(DataError, match=r"avoid\.path"):
        steps.check(flow(avoid="missing.parquet"))
    with pytest.raises(ConfigError, match=r"select.budget: 1 can mean one row or all rows"):
        flow(select={"method": "gio", "budget": 1})


def test_no_row_that_resembles_one_is_selected(flow, tmp_path, cluster):
    chosen, folders = {}, {}
    for name, more in (("without", {"avoid": None}), ("with", {})):
        with open_run(flow(**more), tmp_path / "run") as run:
            for step in steps.choosing(run.workflow):
                done = run.do(step)
                if isinstance(step, Select) and step.name == "select":
                    chosen[name] = Selection.load(done.directory / "selection")
                    folders[name] = done.directory
            assert len(run.rows) == 50 and ("avoid" in run.inputs) == (name == "with")
    assert folders["with"] != folders["without"]
    bad = {name: int((one.ids % 2 == 0).sum()) for name, one in chosen.items()}
    assert bad["with"] < bad["without"]
    assert chosen["with"].info["avoided"] > 60 and "were excluded" in chosen["with"].info["notes"][0]
