"""GIO: select from a pool the rows that bring it closest to a target, by KL divergence (without Ray).

Everaert & Potts, Gradient Information Optimization, ICLR 2024, arXiv:2306.11670.
"""

from __future__ import annotations

from raysel.gio.gradient import gradient_select
from raysel.gio.greedy import Picks, Stop, exact_select
from raysel.gio.kl import kl

__all__ = ["Picks", "Stop", "exact_select", "gradient_select", "kl"]
