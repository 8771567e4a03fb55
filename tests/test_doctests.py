"""Examples in docstrings run as they stand; they share the Dataset ``rows`` and a directory with a tiny workflow."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raysel
from raysel.data.vectors import to_column

ROOT = Path(raysel.__file__).parent
WORKFLOW = """
name: tiny
pool: {path: rows.parquet, label: label}
test: {path: rows.parquet, label: label}
gime: {binding: {classes: label}}
dynamic: {method: infobatch}
train: {model: "model.py:make", input: embedding, epochs: 3, batch_size: 4, workers: 1}
controls: []
"""
MODEL = """
import torch

def make(shape, classes):
    return torch.nn.Linear(shape[0], classes)
"""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def modules() -> list[str]:
    files = [file for file in sorted(ROOT.rglob("*.py")) if ">>> " in file.read_text()]
    names = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def table() -> dict[str, pa.Array]:
    """Ten rows with vectors of four elements and two classes."""
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    return {"embedding": to_column(vectors), "label": pa.array(np.arange(10) % 2)}


@pytest.fixture(scope="module")
def namespace(cluster):
    return {"raysel": raysel, "np": np, "pa": pa, "torch": torch, "rows": raysel.read(pa.table(table()))}


SLOW = {"raysel.workflow.run", "raysel.workflow.compare"}  # they train


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in modules()]
)
def test_the_examples_run_as_they_stand(name, namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow.yaml").write_text(WORKFLOW)
    (tmp_path / "model.py").write_text(MODEL)
    pq.write_table(pa.table(table()), "rows.parquet")
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failures: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(name), extraglobs=namespace
    ):
        runner.run(test, out=failures.append)
    assert runner.summarize(verbose=False).attempted and not failures, "".join(failures)
