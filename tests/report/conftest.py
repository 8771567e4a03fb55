"""A run as the workflow reports it: digits, three arms, InfoBatch inside the last one, validation rows."""

from __future__ import annotations

import math

import pytest

from raysel.report import STAGES, Ledger, LedgerEntry
from raysel.report.results import Arm, Chosen, ClassCount, Curve, Data, Epoch, RunResults

POOL, KEPT, TARGET, VALIDATION, TEST, EPOCHS, BATCH = 1437, 430, 180, 20, 360, 20, 32
CLASS_POOL = [142, 146, 141, 147, 145, 146, 144, 143, 139, 144]
CLASS_KEPT = [91, 70, 84, 88, 79, 6, 2, 4, 5, 1]
CLASS_TARGET = [37, 34, 36, 38, 35, 0, 0, 0, 0, 0]


def _arm(
    name: str, title: str, rows: int, planned: list[int], floor: float, accuracy: float, pace: float
) -> Arm:
    """Loss falls and accuracy rises smoothly with the samples seen; a small fixed ripple keeps it honest.

    The accuracy on the validation rows ends half a point below the accuracy on the test rows.
    """
    epochs = []
    seen = 0
    ceiling = accuracy - 0.005
    for epoch, count in enumerate(planned):
        seen += count
        left = math.exp(-seen / pace)
        ripple = 0.004 * math.sin(2.1 * epoch + accuracy * 40)
        last = epoch == len(planned) - 1
        epochs.append(
            Epoch(
                epoch=epoch,
                planned=count,
                trained=count,
                steps=math.ceil(count / BATCH),
                loss=round(floor + (2.3 - floor) * left + 3 * abs(ripple), 4),
                metrics={
                    "accuracy": round(
                        ceiling if last else ceiling - (ceiling - 0.35) * left + ripple * (1 - left), 4
                    )
                },
                seconds=round(0.4 + count / 900, 3),
            )
        )
    return Arm(name, title, rows, tuple(epochs), {"accuracy": accuracy})


def _plan() -> list[int]:
    """InfoBatch: everything at first, about three quarters in between, everything in the last 12.5 %."""
    middle = [round(KEPT * (0.75 + 0.02 * math.sin(epoch))) for epoch in range(1, 17)]
    return [KEPT, *middle, KEPT, KEPT, KEPT]


def sample_results() -> RunResults:
    arms = [
        _arm("full", "full pool", POOL, [POOL] * EPOCHS, 0.03, 0.976, 4200),
        _arm("random", "Random subset", KEPT, [KEPT] * EPOCHS, 0.11, 0.9472, 2300),
        _arm("chain", "GIO + InfoBatch", KEPT, _plan(), 0.16, 0.9711, 2000),
    ]
    overhead: dict[str, dict[str, float]] = {
        "full": {"planning": 0.012},
        "random": {"planning": 0.010},
        "chain": {"embedding": 1.31, "selection": 3.42, "planning": 0.031},
    }
    entries = []
    for arm in arms:
        backward = sum(epoch.trained for epoch in arm.epochs)
        training = math.fsum(epoch.seconds for epoch in arm.epochs)
        entries.append(
            LedgerEntry(
                arm=arm.name,
                title=arm.title,
                rows=arm.rows,
                epochs=EPOCHS,
                samples_forward=backward + (POOL + TARGET if arm.name == "chain" else 0),
                samples_backward=backward,
                steps=sum(epoch.steps for epoch in arm.epochs),
                seconds={**dict.fromkeys(STAGES, 0.0), **overhead[arm.name], "training": training},
                metrics=arm.metrics,
            )
        )
    rows = [min(KEPT, 7 * (i + 1)) for i in range(62)]
    return RunResults(
        name="quickstart",
        created="2026-03-14T09:26:53+00:00",
        raysel="0.1.0",
        versions={"python": "3.13.1", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.1"},
        seed=0,
        config={
            "name": "quickstart",
            "data": {"source": "sklearn:digits", "label": "label"},
            "select": {"method": "GIO", "budget": 0.3, "clusters": 120, "estimator": "nearest"},
            "dynamic": {"policy": "InfoBatch", "prune_ratio": 0.5, "delta": 0.875},
            "train": {"epochs": EPOCHS, "batch_size": BATCH, "workers": 2, "learning_rate": 0.05},
        },
        data=Data(
            pool=POOL,
            target=TARGET,
            validation=VALIDATION,
            test=TEST,
            classes=tuple(str(i) for i in range(10)),
            validation_from="target",
        ),
        selection=Chosen(
            method="GIO",
            kept=KEPT,
            pool=POOL,
            curve=Curve(tuple(rows), tuple(round(0.42 + 9.1 * math.exp(-row / 62), 4) for row in rows)),
            classes=tuple(
                ClassCount(str(i), *counts)
                for i, counts in enumerate(zip(CLASS_POOL, CLASS_KEPT, CLASS_TARGET, strict=True))
            ),
        ),
        arms={arm.name: arm for arm in arms},
        ledger=Ledger(entries),
    )


@pytest.fixture(scope="session")
def results() -> RunResults:
    """The sample. A test takes parts away with ``dataclasses.replace``."""
    return sample_results()
