"""Policies: which samples each epoch trains on. Plans, states and policies use only NumPy and Arrow."""

from __future__ import annotations

from raysel.dynamic.controls import FullData, RandomPrune, RandomSubset, RoundRobin
from raysel.dynamic.infobatch import InfoBatch
from raysel.dynamic.plan import Plan, Policy
from raysel.dynamic.repdiv import RepDiv
from raysel.dynamic.state import SampleState

__all__ = [
    "FullData",
    "InfoBatch",
    "Plan",
    "Policy",
    "RandomPrune",
    "RandomSubset",
    "RepDiv",
    "RoundRobin",
    "SampleState",
]
