"""Reporting: what a run spent (ledger), its figures and its one-file HTML page. Pure: never imports Ray."""

from __future__ import annotations

from raysel.report.goal import Goal
from raysel.report.ledger import STAGES, Ledger, LedgerEntry

__all__ = ["STAGES", "Goal", "Ledger", "LedgerEntry"]
