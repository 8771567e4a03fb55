"""Factors of a data set from a sparse autoencoder, and scores of its samples (without Ray).

Zhou et al., Rethinking Representativeness and Diversity in Dynamic Data Selection, 2026, arXiv:2603.04981.
"""

from __future__ import annotations

from raysel.factors.autoencoder import Autoencoder, Codes, fit_autoencoder
from raysel.factors.scores import FactorCounts, Span, rep_div

__all__ = ["Autoencoder", "Codes", "FactorCounts", "Span", "fit_autoencoder", "rep_div"]
