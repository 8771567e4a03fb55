"""GIME: eleven information metrics of a training table, from one mergeable pass (without Ray).

Xu et al., General Information Metrics Evaluation, arXiv:2501.02004, on Objective Information Theory.
"""

from __future__ import annotations

from raysel.gime.binding import Binding, Target
from raysel.gime.block import Figure, View
from raysel.gime.estimates import Estimate
from raysel.gime.pieces import pieces
from raysel.gime.rows import key_counts, merge_key_counts, row_scores
from raysel.gime.select import Choice, select_groups
from raysel.gime.sensitivity import Sensitivity, proxy, sensitivity
from raysel.gime.state import State, columns, finalize, measure, merge, partial, with_target

__all__ = [
    "Binding",
    "Choice",
    "Estimate",
    "Figure",
    "Sensitivity",
    "State",
    "Target",
    "View",
    "columns",
    "finalize",
    "key_counts",
    "measure",
    "merge",
    "merge_key_counts",
    "partial",
    "pieces",
    "proxy",
    "row_scores",
    "select_groups",
    "sensitivity",
    "with_target",
]
