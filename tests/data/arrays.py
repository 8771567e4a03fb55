"""A folder of columns as a workflow writes it, without Ray."""

from __future__ import annotations

import json

import numpy as np


def write(folder, rows=3):
    """Write an array, texts and a metadata file; return the names of the files."""
    columns = {
        "x": {"kind": "array", "dtype": "float32", "shape": [2]},
        "t": {"kind": "text", "dtype": "uint8", "shape": []},
    }
    np.save(folder / "0.npy", np.zeros((rows, 2), np.float32))
    (folder / "1.bin").write_bytes(b"ab" * rows)
    np.save(folder / "1.spans.npy", np.arange(rows)[:, None] * 2 + np.array([0, 2]))
    about = {"rows": rows, "stored": rows, "columns": columns, "classes": {}}
    (folder / "columns.json").write_text(json.dumps(about))
    return ["0.npy", "1.bin", "1.spans.npy", "columns.json"]
