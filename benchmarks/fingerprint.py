"""Time the keys: hashing a local Parquet file against decoding it, and fingerprints of a function and of a network.

    python benchmarks/fingerprint.py [--megabytes 400] [--repeats 5]

The output is medians over the repeats. The file is in the page cache; its digest is computed each time and not looked up. The
aim is that hashing takes at most 10 % of the time of decoding the same file. Timings are from one run on this machine.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raysel.core.fingerprint import file_digest, files, fingerprint


def embed(x):
    return np.asarray(x, np.float32) * 2


def seconds(call: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def tables(megabytes: int) -> dict[str, pa.Table]:
    rng = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // 8
    words = np.array([f"word{i}" for i in range(10_000)])
    text = [" ".join(words[i : i + 20]) for i in rng.integers(0, 9_980, rows // 20)]
    images = rng.integers(0, 256, (megabytes * 1_000_000 // 3072, 3072), np.uint8)
    return {
        "numbers (8 columns of float64)": pa.table(
            {f"x{i}": rng.standard_normal(rows // 8) for i in range(8)}
        ),
        "text (20 words per row)": pa.table({"text": text}),
        "pixels (3,072 bytes per row)": pa.table(
            {
                "pixels": pa.FixedSizeListArray.from_arrays(images.ravel(), 3072),
                "y": rng.integers(0, 10, len(images)),
            }
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(f"{'file':32} {'MB on disk':>10} {'hash s':>8} {'GB/s':>6} {'decode s':>9} {'hash / decode':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for name, table in tables(given.megabytes).items():
            path = Path(folder, "file.parquet")
            pq.write_table(table, path)
            size = path.stat().st_size
            pq.read_table(path)  # warm
            hashing = seconds(functools.partial(files._read, str(path)), given.repeats)
            decoding = seconds(functools.partial(pq.read_table, path), given.repeats)
            share = hashing / decoding
            print(
                f"{name:32} {size / 1e6:10.0f} {hashing:8.3f} {size / hashing / 1e9:6.1f} {decoding:9.3f} {share:14.1%}"
            )
        path = Path(folder, "many")
        path.mkdir()
        for number in range(2000):
            (path / f"{number}").write_bytes(bytes(10_000))
        time.sleep(3.5)  # until their times are old enough to be trusted
        paths = sorted(path.iterdir())
        first = seconds(lambda: files.file_digests(paths), 1)
        again = seconds(lambda: files.file_digests(paths), given.repeats)
        print(f"\n2,000 files of 10 kB: {first:.3f} s; again, from the cache: {again:.3f} s")
        assert file_digest(paths[0])
    network = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000) for _ in range(25)))  # 100 MB
    print(f"fingerprint of a function: {seconds(lambda: fingerprint(embed), given.repeats) * 1e3:.2f} ms")
    print(
        f"fingerprint of a network of 100 MB: {seconds(lambda: fingerprint(network), given.repeats) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
