"""Compute the pinned results again and print which ones changed: ``python tests/golden/renew.py [SECTION ...]``.

Sections are ids, draws, selections, plans and quickstart (a whole run, about a minute); all of them by default.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"

from tests.golden import results  # noqa: E402


def quickstart(directory: Path) -> dict[str, Any]:
    """Run the shipped workflow on freshly written digits."""
    from raysel import Selection
    from raysel.workflow import config
    from raysel.workflow.run import run

    subprocess.run([sys.executable, ROOT / "workflows/digits.py", "--out", directory], check=True)
    paths = [f"{role}.path={directory}/{role}.parquet" for role in ("pool", "target", "test")]
    found = run(config.load(ROOT / "workflows/quickstart.yaml", paths), directory / "run")
    return results.quickstart(
        found, Selection.load(next((directory / "run").glob("steps/select-*/selection")))
    )


def main(*sections: str) -> None:
    from raysel.workflow.run import connect

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        compute = {
            "ids": lambda: results.ids(directory),
            "draws": results.draws,
            "selections": results.selections,
            "plans": lambda: {policy: results.plans(policy) for policy in results.policies()},
            "quickstart": lambda: quickstart(directory),
        }
        if unknown := set(sections) - set(compute):
            sys.exit(f"There is no section {unknown.pop()!r}; the sections are {', '.join(compute)}.")
        connect()
        before = json.loads(results.EXPECTED.read_text()) if results.EXPECTED.exists() else {}
        after = before | {section: compute[section]() for section in sections or compute}
    for section in compute:
        for entry, value in after.get(section, {}).items():
            if before.get(section, {}).get(entry) != value:
                print(f"changed: {section}: {entry}")
    text = json.dumps({section: after[section] for section in compute}, indent=1) + "\n"
    results.EXPECTED.write_text(re.sub(r"\[[^]{[]*\]", lambda found: " ".join(found[0].split()), text))


if __name__ == "__main__":
    main(*sys.argv[1:])
