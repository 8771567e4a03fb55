"""Write data/pool.parquet, data/target.parquet and data/test.parquet, which the workflow next to this script reads.

    python prepare.py

Without changes, the script generates data, so that you can try the workflow at once. To use your own rows, edit the
lines marked EDIT. Every file gets the columns ``inputs`` (the input of the model) and ``label`` (the class).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# Each of the three is a .csv or .parquet file, or a folder that holds one folder of images per class. Paths are
# relative to this script.
POOL = None  # EDIT: your training rows, for example "rows.csv"; None generates data.
TARGET = None  # EDIT: a sample of the data that the model is for; None draws a tenth of POOL.
TEST = None  # EDIT: rows that are used only to score the model; None draws a fifth of POOL.

LABEL = "label"  # EDIT: the column that holds the class, in .csv and .parquet files.
FEATURES = None  # EDIT: list of the numeric columns that the model reads; None for all columns except LABEL.
IMAGE_SIZE = 32  # EDIT: height and width to which images are scaled.

HERE = Path(__file__).resolve().parent
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
Rows = tuple[np.ndarray, np.ndarray]  # inputs (n, ...), labels (n,)


def read(source: str) -> Rows:
    """Return the inputs and labels of a table or of a folder of images."""
    path = HERE / source
    if path.is_dir():
        return read_images(path)
    if not path.exists():
        sys.exit(f"error: {path} does not exist; edit POOL, TARGET and TEST in {__file__}.")
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    for name in [LABEL, *(FEATURES or [])]:
        if name not in frame:
            sys.exit(
                f"error: {path} has no column '{name}'; its columns are {', '.join(map(str, frame.columns))}."
            )
    frame = frame[frame[LABEL].notna()]
    numeric = frame.drop(columns=LABEL).select_dtypes(["number", "bool"]).columns
    labels = frame[LABEL]
    labels = labels.astype("int64") if pd.api.types.is_numeric_dtype(labels) else labels.astype(str)
    inputs = frame[FEATURES or list(numeric)].to_numpy("float32", na_value=np.nan)
    return inputs, np.asarray(labels.tolist())


def read_images(folder: Path) -> Rows:
    """Return images as uint8 (n, 3, IMAGE_SIZE, IMAGE_SIZE) and their classes, the names of the folders."""
    from PIL import Image

    files = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in IMAGES]
    if not files:
        sys.exit(f"error: {folder} holds no images; it should hold one folder of images per class.")
    inputs = np.empty((len(files), 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for place, path in zip(inputs, files, strict=True):
        with Image.open(path) as image:
            place[:] = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))).transpose(2, 0, 1)
    return inputs, np.array([path.parent.name for path in files])


def made_up() -> dict[str, Rows]:
    """Generate rows of 16 numbers in three classes. A third of the pool is junk: noise with a random label."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 16))

    def clean(count: int) -> Rows:
        codes = random.integers(0, 3, count)
        return centres[codes] + random.normal(size=(count, 16)), np.array(["a", "b", "c"])[codes]

    inputs, labels = clean(900)
    junk = random.random(900) < 1 / 3
    inputs[junk] = random.normal(scale=3.0, size=(junk.sum(), 16))
    labels[junk] = random.choice(["a", "b", "c"], junk.sum())
    return {"pool": (inputs, labels), "target": clean(100), "test": clean(300)}


def of_your_own(pool: str) -> dict[str, Rows]:
    """Return the rows of POOL, TARGET and TEST; rows drawn from the pool for another role are removed from it."""
    inputs, labels = read(pool)
    draws = np.random.default_rng(0).random(len(inputs))
    found = {}
    for role, source, low, high in (("target", TARGET, 0.0, 0.1), ("test", TEST, 0.1, 0.3)):
        drawn = (low <= draws) & (draws < high)
        found[role] = (inputs[drawn], labels[drawn]) if source is None else read(source)
        if source is None:
            inputs, labels, draws = inputs[~drawn], labels[~drawn], draws[~drawn]
    return {"pool": (inputs, labels), **found}


def standardised(roles: dict[str, Rows]) -> dict[str, Rows]:
    """Scale numbers to mean 0 and deviation 1 of the pool; missing ones become the mean. Images are not changed."""
    pool = roles["pool"][0]
    if pool.dtype == np.uint8:
        return roles
    mean, deviation = np.nanmean(pool, axis=0), np.nanstd(pool, axis=0)
    deviation[~(deviation > 0)] = 1.0
    scaled = {role: (inputs - mean) / deviation for role, (inputs, _) in roles.items()}
    return {
        role: (np.nan_to_num(values).astype(np.float32), roles[role][1]) for role, values in scaled.items()
    }


def write(role: str, inputs: np.ndarray, labels: np.ndarray) -> None:
    """Write data/ROLE.parquet."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(inputs.dtype), inputs.shape[1:])
    flat = pa.array(np.ascontiguousarray(inputs).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(inputs.shape[1:])))
    table = pa.table({"inputs": pa.ExtensionArray.from_storage(kind, storage), "label": pa.array(labels)})
    path = HERE / "data" / f"{role}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=10_000)
    print(f"{path}: {len(table):,} rows")


if __name__ == "__main__":
    for role, rows in standardised(made_up() if POOL is None else of_your_own(POOL)).items():
        write(role, *rows)
