"""Write WordNet's 117,659 glosses (one sentence each, 45 classes) as pool, target and test.

    apt install wordnet-base
    python workflows/wordnet.py [--source DIR] [--out DIR] [--rows N]

The task is to classify five kinds of glosses: animal, body, food, person and plant. The pool holds all 45 classes. The
files are written to ``data/wordnet`` next to this script, or to ``--out``:

- ``test.parquet``: 2,000 glosses of the five classes, stratified by class. They are used only to score the model; selection and
  training do not read them.
- ``target.parquet``: 1,000 other glosses of the five classes, stratified, which the selected rows should resemble.
- ``pool.parquet``: all other glosses, of all 45 classes.

The columns are ``text`` (the gloss), ``label`` (the class, such as noun.animal) and ``words`` (float32 (256,): hashed
words and pairs of words, the input of a small network), in row groups of 4,096 rows. ``--rows`` keeps this number of random rows
of the pool. Seeds are fixed, so every call writes the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from junk import split_off
from sklearn.feature_extraction.text import HashingVectorizer

SOURCE = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
WANTED = ("noun.animal", "noun.body", "noun.food", "noun.person", "noun.plant")
TEST_ROWS, TARGET_ROWS = 2000, 1000
WORDS = 256
SEED = 0
ROW_GROUP = 4096
# The lexicographer files in the order of their numbers, as lexnames(5WN) lists them.
CLASSES = """
    adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition
    noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person
    noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state
    noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition
    verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession
    verb.social verb.stative verb.weather adj.ppl
""".split()  # noqa: SIM905


def glosses(source: Path) -> tuple[list[str], list[str]]:
    """Return the gloss and class of every synset, in the order of the four data files."""
    texts, labels = [], []
    for part in PARTS:
        path = source / f"data.{part}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"error: {path} cannot be read ({error}); install it with `apt install wordnet-base`.")
        for line in lines:
            if not line.startswith(" "):  # the licence is indented
                head, _, gloss = line.partition("|")
                labels.append(CLASSES[int(head.split()[1])])
                texts.append(gloss.strip())
    return texts, labels


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of test, target and pool."""
    wanted = np.flatnonzero(np.isin(labels, WANTED))
    test, rest = split_off(labels[wanted], TEST_ROWS, SEED)
    target, _ = split_off(labels[wanted[rest]], TARGET_ROWS, SEED)
    test, target = wanted[test], wanted[rest[target]]
    return test, target, np.setdiff1d(np.arange(len(labels)), np.concatenate([test, target]))


def table(texts: np.ndarray, labels: np.ndarray) -> pa.Table:
    hashed = (
        HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), dtype=np.float32).transform(texts).toarray()
    )
    storage = pa.FixedSizeListArray.from_arrays(pa.array(hashed.reshape(-1)), WORDS)
    words = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [WORDS]), storage)
    return pa.table({"text": pa.array(texts), "label": pa.array(labels), "words": words})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write WordNet's glosses as Parquet: pool, target, test.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder with data.noun and the others")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent / "data" / "wordnet",
        help="folder to write",
    )
    parser.add_argument("--rows", type=int, default=None, help="rows of the pool to keep")
    options = parser.parse_args(arguments)
    texts, labels = map(np.array, glosses(options.source))
    test, target, pool = split(labels)
    if options.rows is not None:
        pool = np.sort(np.random.default_rng(SEED).choice(pool, min(options.rows, len(pool)), replace=False))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pool", pool), ("target", target), ("test", test)):
        path = options.out / f"{name}.parquet"
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        pq.write_table(table(texts[rows], labels[rows]), partial, row_group_size=ROW_GROUP)
        os.replace(partial, path)
        print(f"{path}: {len(rows):,} rows of {len(set(labels[rows]))} classes")


if __name__ == "__main__":
    main()
