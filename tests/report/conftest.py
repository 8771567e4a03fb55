"""A run as the workflow reports it: digits, three arms, InfoBatch inside the last one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from raysel.report import STAGES, Ledger, LedgerEntry

POOL, KEPT, TARGET, TEST, EPOCHS, BATCH = 1437, 430, 180, 360, 20, 32
CLASS_POOL = [142, 146, 141, 147, 145, 146, 144, 143, 139, 144]
CLASS_KEPT = [91, 70, 84, 88, 79, 6, 2, 4, 5, 1]
CLASS_TARGET = [37, 34, 36, 38, 35, 0, 0, 0, 0, 0]


def _epochs(
    planned: list[int], start: float, floor: float, ceiling: float, pace: float
) -> list[dict[str, Any]]:
    """Loss falls and accuracy rises smoothly with the samples seen; a small fixed ripple keeps it honest."""
    epochs = []
    seen = 0
    for epoch, count in enumerate(planned):
        seen += count
        left = math.exp(-seen / pace)
        ripple = 0.004 * math.sin(2.1 * epoch + ceiling * 40)
        epochs.append(
            {
                "epoch": epoch,
                "planned": count,
                "steps": math.ceil(count / BATCH),
                "loss": round(floor + (start - floor) * left + 3 * abs(ripple), 4),
                "accuracy": round(ceiling - (ceiling - 0.35) * left + ripple * (1 - left), 4),
                "seconds": round(0.4 + count / 900, 3),
                "nonfinite": 0,
            }
        )
    epochs[-1]["accuracy"] = ceiling
    return epochs


def _plan() -> list[int]:
    """InfoBatch: everything at first, about three quarters in between, everything in the last 12.5 %."""
    middle = [round(KEPT * (0.75 + 0.02 * math.sin(epoch))) for epoch in range(1, 17)]
    return [KEPT, *middle, KEPT, KEPT, KEPT]


def sample_results() -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {
        "full": {
            "title": "Full data",
            "rows": POOL,
            "epochs": _epochs([POOL] * EPOCHS, 2.3, 0.03, 0.976, 4200),
        },
        "random": {
            "title": "Random subset",
            "rows": KEPT,
            "epochs": _epochs([KEPT] * EPOCHS, 2.3, 0.11, 0.9472, 2300),
        },
        "chain": {
            "title": "GIO + InfoBatch",
            "rows": KEPT,
            "epochs": _epochs(_plan(), 2.3, 0.16, 0.9711, 2000),
        },
    }
    overhead: dict[str, dict[str, float]] = {
        "full": {"planning": 0.012},
        "random": {"planning": 0.010},
        "chain": {"embedding": 1.31, "selection": 3.42, "planning": 0.031},
    }
    entries = []
    for arm, values in arms.items():
        backward = sum(entry["planned"] for entry in values["epochs"])
        training = math.fsum(entry["seconds"] for entry in values["epochs"])
        entries.append(
            LedgerEntry(
                arm=arm,
                title=values["title"],
                rows=values["rows"],
                epochs=EPOCHS,
                samples_forward=backward + (POOL + TARGET if arm == "chain" else 0),
                samples_backward=backward,
                steps=sum(entry["steps"] for entry in values["epochs"]),
                seconds={**dict.fromkeys(STAGES, 0.0), **overhead[arm], "training": training},
                accuracy=values["epochs"][-1]["accuracy"],
            )
        )
    rows = [min(KEPT, 7 * (i + 1)) for i in range(62)]
    return {
        "name": "quickstart",
        "created": "2026-03-14T09:26:53+00:00",
        "raysel": "0.1.0",
        "versions": {"python": "3.13.1", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.1"},
        "seed": 0,
        "config": {
            "name": "quickstart",
            "data": {"source": "sklearn:digits", "label": "label"},
            "select": {"method": "GIO", "budget": 0.3, "clusters": 120, "estimator": "nearest"},
            "dynamic": {"policy": "InfoBatch", "prune_ratio": 0.5, "delta": 0.875},
            "train": {"epochs": EPOCHS, "batch_size": BATCH, "workers": 2, "learning_rate": 0.05},
        },
        "data": {"pool": POOL, "target": TARGET, "test": TEST, "classes": [str(i) for i in range(10)]},
        "selection": {
            "method": "GIO",
            "kept": KEPT,
            "pool": POOL,
            "curve": {"rows": rows, "kl": [round(0.42 + 9.1 * math.exp(-row / 62), 4) for row in rows]},
            "classes": [
                {"label": str(i), "pool": CLASS_POOL[i], "kept": CLASS_KEPT[i], "target": CLASS_TARGET[i]}
                for i in range(10)
            ],
        },
        "arms": arms,
        "ledger": Ledger(entries).to_dict(),
    }


@pytest.fixture(scope="session")
def _sample() -> dict[str, Any]:
    return sample_results()


@pytest.fixture
def results(_sample: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy: a test may take parts away."""
    return copy.deepcopy(_sample)
