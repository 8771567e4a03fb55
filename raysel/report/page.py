"""The report of a run: one HTML file without scripts, which loads nothing from elsewhere."""

from __future__ import annotations

import os

from raysel.core.storage import Place, output, write_text
from raysel.report import html
from raysel.report.results import RunResults
from raysel.report.sections.costs import costs_section
from raysel.report.sections.labels import labels_section
from raysel.report.sections.ledger import ledger_section
from raysel.report.sections.metrics import metrics_section
from raysel.report.sections.opening import opening_section
from raysel.report.sections.provenance import configuration, versions
from raysel.report.sections.reading import reading_section
from raysel.report.sections.selection import selection_section
from raysel.report.sections.training import training_section
from raysel.report.sections.usage import usage_section


def render(results: RunResults) -> str:
    """Return the report of a run as one HTML page.

    Sections that the run has no results for are left out or say "Not measured". The same results give the same page.

    Parameters
    ----------
    results : RunResults
        Results of a finished run.

    Returns
    -------
    str
        The page.
    """
    name = html.text(results.name)
    body = "\n".join(
        part
        for part in (
            opening_section(results, name),
            "" if results.only_selects else ledger_section(results.ledger),
            metrics_section(results),
            selection_section(results),
            usage_section(results),
            "" if results.only_selects else training_section(results),
            labels_section(results),
            costs_section(results.ledger),
            reading_section(results),
            configuration(results),
            versions(results),
        )
        if part
    )
    return html.document(f"{name} · raysel report", body)


def write(results: RunResults, path: str | os.PathLike[str]) -> Place:
    """Write the report of a run to ``path`` and return the path. The file is complete or not there.

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    write_text(path, render(results))
    return output(path)
