"""Select training data with Ray: before training and during it.

Names are imported when they are first used. The pure packages (``raysel.gio``, ``raysel.gime``,
``raysel.factors``, ``raysel.dynamic``) can therefore be imported without importing Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raysel.version import __version__

_HOME = {
    "read": "raysel.data.read",
    "embed": "raysel.data.embed",
    "fit_embedder": "raysel.data.embedders.build",
    "Selection": "raysel.selection",
    "Random": "raysel.select.random",
    "GIO": "raysel.gio.distributed",
    "GIME": "raysel.gime.distributed",
    "DensityRatio": "raysel.select.density_ratio",
    "ClusterShare": "raysel.select.cluster_share",
    "Nearest": "raysel.select.nearest",
    "KCenter": "raysel.select.coverage",
    "FacilityLocation": "raysel.select.coverage",
    "Herding": "raysel.select.coverage",
    "ByScore": "raysel.select.by_score",
    "Deduplicate": "raysel.select.deduplicate",
    "leakage": "raysel.select.deduplicate",
    "fit_factors": "raysel.factors.distributed",
    "factor_scores": "raysel.factors.distributed",
    "InfoBatch": "raysel.dynamic.infobatch",
    "RepDiv": "raysel.dynamic.repdiv",
    "FullData": "raysel.dynamic.controls",
    "RandomPrune": "raysel.dynamic.controls",
    "RandomSubset": "raysel.dynamic.controls",
    "RoundRobin": "raysel.dynamic.controls",
    "DynamicSelection": "raysel.train.dynamic",
    "WholeRows": "raysel.train.planned",
    "training_results": "raysel.report.training",
    "run": "raysel.workflow.run",
    "compare": "raysel.workflow.compare",
    "measure": "raysel.workflow.measure",
}
_ROOMS = ("data", "gio", "gime", "factors", "dynamic", "train", "workflow", "report", "errors")

if TYPE_CHECKING:
    from raysel.data.embed import embed as embed
    from raysel.data.embedders.build import fit_embedder as fit_embedder
    from raysel.data.read import read as read
    from raysel.dynamic.controls import FullData as FullData
    from raysel.dynamic.controls import RandomPrune as RandomPrune
    from raysel.dynamic.controls import RandomSubset as RandomSubset
    from raysel.dynamic.controls import RoundRobin as RoundRobin
    from raysel.dynamic.infobatch import InfoBatch as InfoBatch
    from raysel.dynamic.repdiv import RepDiv as RepDiv
    from raysel.factors.distributed import factor_scores as factor_scores
    from raysel.factors.distributed import fit_factors as fit_factors
    from raysel.gime.distributed import GIME as GIME
    from raysel.gio.distributed import GIO as GIO
    from raysel.report.training import training_results as training_results
    from raysel.select.by_score import ByScore as ByScore
    from raysel.select.cluster_share import ClusterShare as ClusterShare
    from raysel.select.coverage import FacilityLocation as FacilityLocation
    from raysel.select.coverage import Herding as Herding
    from raysel.select.coverage import KCenter as KCenter
    from raysel.select.deduplicate import Deduplicate as Deduplicate
    from raysel.select.deduplicate import leakage as leakage
    from raysel.select.density_ratio import DensityRatio as DensityRatio
    from raysel.select.nearest import Nearest as Nearest
    from raysel.select.random import Random as Random
    from raysel.selection import Selection as Selection
    from raysel.train.dynamic import DynamicSelection as DynamicSelection
    from raysel.train.planned import WholeRows as WholeRows
    from raysel.workflow.compare import compare as compare
    from raysel.workflow.measure import measure as measure
    from raysel.workflow.run import run as run

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"raysel.{name}")
    raise AttributeError(f"module 'raysel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
