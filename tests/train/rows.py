"""Rows on disk and the configuration of a training loop in one process, made without Ray."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import torch

import raysel
from raysel.data.store import ColumnStore
from raysel.train.epoch_log import EPOCHS, EpochLog
from raysel.train.optimizers import load_optimizer, load_schedule
from raysel.train.tasks import Facts

N = 24
X = np.random.default_rng(7).normal(size=(N, 3)).astype(np.float32)
COLUMNS = {
    "x": X,
    "kind": np.arange(N) % 3,
    "y": (X @ np.array([1.0, -2.0, 0.5])).astype(np.float32),
}


def stored(folder):
    """Write folders of the rows: pool and test are the same rows, validation is half of them."""
    for role, ids in (("pool", np.arange(N)), ("test", np.arange(N)), ("validation", np.arange(0, N, 2))):
        (folder / role).mkdir()
        kinds = {}
        for at, (name, values) in enumerate(COLUMNS.items()):
            np.save(folder / role / f"{at}.npy", values[ids])
            kinds[name] = {"kind": "array", "dtype": str(values.dtype), "shape": values.shape[1:]}
        if len(ids) < N:
            np.save(folder / role / "ids.npy", ids)
        about = {"rows": N, "stored": len(ids), "columns": kinds, "classes": {"kind": ["a", "b", "c"]}}
        (folder / role / "columns.json").write_text(json.dumps(about))
    return folder


def logged(directory, ids, losses, number=0, weights=None):
    """Write what an epoch trained into the folder of a training, as its session does."""
    weights = np.ones(len(ids), np.float32) if weights is None else weights
    places = np.arange(len(ids))
    plan = raysel.dynamic.Plan(places, weights)
    epoch = SimpleNamespace(plan=plan, ids=ids, weights=weights, number=number)
    EpochLog(directory / EPOCHS).write(epoch, places, losses)


def linear(shape, outputs):
    return torch.nn.Linear(math.prod(shape), outputs)


def config(place, task, factory, settings, folder=None, **more):
    store = ColumnStore(place / "pool")
    data = {"facts": Facts(store.columns, store.classes, factory)}
    data |= {role: place / role for role in ("pool", "validation", "test")}
    dynamic = raysel.DynamicSelection.local(
        raysel.InfoBatch(0.5, 1.0),
        N,
        num_epochs=settings.epochs,
        seed=3,
        checkpoints=more.pop("checkpoints", None),
    )
    return {
        "dynamic": dynamic,
        "data": data,
        "task": task,
        "settings": settings,
        "optimizer": load_optimizer(settings.optimizer, settings.learning_rate),
        "schedule": load_schedule(settings.schedule),
        "seed": 3,
        "threads": 1,
        "model_folder": folder,
        "alone": True,
        **more,
    }
