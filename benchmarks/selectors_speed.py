"""Time the selectors on Ray, and measure the k-means and the probes that they use.

    python benchmarks/selectors_speed.py [--parts target pool duplicates chain kmeans probes] [--rows 1000000]

The output is Markdown tables; ``--rows`` is the number of pool rows of the first four parts.

target      every selector with a target, on rows x 64 vectors with 2,000 target rows, and Nearest with 10,000
pool        every selector without a target, on rows x 64 vectors
duplicates  Deduplicate on rows x 384 vectors, of which 5 % are near duplicates of others
chain       embed (PCA), and GIO or DensityRatio, for 5 times as many rows x 64, with 10,000 target rows
kmeans      k-means in two levels against one level, 1,500 clusters: seconds and mean squared distance
probes      share of the near duplicates that Deduplicate finds in 500 cells, by the number of probes: 20,000 images of
            FashionMNIST (PCA-64; Debian package dataset-fashion-mnist) and 20,000 glosses of WordNet (MiniLM; written by
            ``selection_quality.py wordnet``)
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflows"))

PARTS = ("target", "pool", "duplicates", "chain", "kmeans", "probes")


def clusters(rows: int, dimension: int, seed: Any, centres: int = 300, copied: float = 0.0) -> np.ndarray:
    """Vectors in clusters, with the same centres for every seed; a share of the rows are near duplicates of others."""
    middle = np.random.default_rng(0).normal(size=(centres, dimension)) * 2
    rng = np.random.default_rng(seed)
    vectors = (middle[rng.integers(0, centres, rows)] + rng.normal(size=(rows, dimension))).astype(np.float32)
    copies = rng.choice(rows, int(copied * rows), replace=False)
    vectors[copies] = vectors[rng.integers(0, rows, len(copies))] + 0.05 * rng.normal(
        size=(len(copies), dimension)
    )
    return vectors


def made(rows: int, dimension: int, seed: int, blocks: int = 8, **options: Any) -> Any:
    """A materialised Dataset with ids and the vectors of :func:`clusters`, which tasks make: the driver has none of them."""
    import ray

    def block(batch: dict[str, np.ndarray]) -> Any:
        import pyarrow as pa

        from raysel.data.vectors import to_column

        number = int(batch["id"][0])
        start, end = (rows * at // blocks for at in (number, number + 1))
        vectors = clusters(end - start, dimension, [seed, number], **options)
        return pa.table({"sample_id": np.arange(start, end), "embedding": to_column(vectors)})

    numbers = ray.data.range(blocks, override_num_blocks=blocks)
    return numbers.map_batches(block, batch_size=1, batch_format="numpy").materialize()


def timed(name: str, call: Any) -> Any:
    """Print a row of the table: seconds, and the highest memory of this process, with and without shared pages."""
    load, began, own, done = os.getloadavg()[0], time.perf_counter(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            own[0] = max(own[0], held / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = call()
    finally:
        done.set()
        watcher.join()
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| {name} | {seconds:.1f} | {own[0]:.2f} | {peak / 1e6:.2f} | {load:.1f} |", flush=True)
    return found


def head(title: str) -> None:
    print(
        f"\n{title}\n\n|  | seconds | peak memory of the driver, GB | with shared pages, so far | load before |"
        "\n|---|---|---|---|---|"
    )


def target(rows: int) -> None:
    import raysel

    pool, target, large = (made(n, 64, seed) for n, seed in ((rows, 1), (2000, 2), (10_000, 3)))
    head(f"Selectors with a target, {rows:,} x 64, budget 30 %")
    for selector in (raysel.GIO, raysel.DensityRatio, raysel.ClusterShare, raysel.Nearest):
        name = f"`{selector.__name__}`, 2,000 target rows"
        timed(name, lambda selector=selector: selector(0.3).select(pool, target))
    timed("`Nearest`, 10,000 target rows", lambda: raysel.Nearest(0.3).select(pool, large))


def pool(rows: int) -> None:
    import pyarrow as pa

    import raysel

    pool = made(rows, 64, 1)
    head(f"Selectors without a target, {rows:,} x 64, budget 30 %")
    for selector in (raysel.KCenter, raysel.FacilityLocation, raysel.Herding):
        timed(f"`{selector.__name__}`", lambda selector=selector: selector(0.3).select(pool))
    timed("`Deduplicate`", lambda: raysel.Deduplicate().select(pool))
    scored = pool.map_batches(
        lambda table: table.append_column("score", pa.array(np.sin(table["sample_id"].to_numpy()))),
        batch_format="pyarrow",
    ).materialize()
    timed("`ByScore`", lambda: raysel.ByScore(0.3, "score").select(scored))
    timed("`Random`", lambda: raysel.Random(0.3).select(pool))


def duplicates(rows: int) -> None:
    import raysel

    head(f"Near duplicates, {rows:,} x 384, threshold 0.95")
    pool = made(rows, 384, 1, 32, centres=3000, copied=0.05)
    found = timed("`Deduplicate`", lambda: raysel.Deduplicate(0.95).select(pool))
    print(f"\n{rows - len(found):,} of about {rows // 20:,} planted near duplicates were dropped.")


def chain(rows: int) -> None:
    import raysel

    head(f"Embedding and selection, {5 * rows:,} x 64, 10,000 target rows")
    pool, target = made(5 * rows, 64, 1, 64), made(10_000, 64, 2, 1)

    def embed() -> list[Any]:
        embedder = raysel.fit_embedder("pca:64", pool, column="embedding")
        return [raysel.embed(side, embedder, column="embedding").materialize() for side in (pool, target)]

    sides = timed("`fit_embedder`, `embed`", embed)
    for selector in (raysel.GIO, raysel.DensityRatio):
        timed(f"`{selector.__name__}`", lambda selector=selector: selector(0.3).select(*sides))


def kmeans(_: int) -> None:
    from raysel.gio.quantize import _lloyd, assign, fit_centroids

    sample = clusters(1500 * 256, 64, 1)
    print(
        "\nk-means, 1,500 clusters of 384,000 x 64\n\n|  | seconds | mean squared distance |\n|---|---|---|"
    )
    for name, fit in (("one level", _lloyd), ("two levels", fit_centroids)):
        began = time.process_time()
        centroids = fit(sample, 1500, 0)
        seconds = time.process_time() - began
        print(f"| {name} | {seconds:.1f} | {(assign(sample, centroids)[1] ** 2).mean():.4f} |", flush=True)


def probes(_: int) -> None:
    """Print for images and for texts which share of the near duplicates is found, by the number of probes."""
    from fashion_mnist import SOURCE, load
    from sklearn.decomposition import PCA

    print("\nShare of the near duplicates found, 20,000 rows in 500 cells\n")
    print("| rows | threshold | pairs | probes by default | share found | fewest probes for 98 % |")
    print("|---|---|---|---|---|---|")
    images = load(SOURCE)[0][:20_000]
    flat = images.reshape(len(images), -1).astype(np.float32)
    found_by_probes("images", PCA(64, svd_solver="covariance_eigh").fit_transform(flat))
    glosses = Path(__file__).resolve().parent / "results" / "wordnet.npz"
    found_by_probes("glosses", np.load(glosses, allow_pickle=False)["train_x"][:20_000])


def found_by_probes(name: str, vectors: np.ndarray) -> None:
    from raysel.core.arrays import unit
    from raysel.gio.quantize import fit_centroids
    from raysel.select.duplicates import nearest_cells, probes_for

    rows = unit(vectors)
    centroids = unit(fit_centroids(rows, 500, 0))
    cells = nearest_cells(rows, centroids, len(centroids))
    rank = np.empty(cells.shape, np.int16)
    np.put_along_axis(rank, cells, np.arange(len(centroids), dtype=np.int16)[None], axis=1)
    own = cells[:, 0]
    thresholds = (0.98, 0.95, 0.9, 0.8)
    counts = {threshold: np.zeros(len(centroids), np.int64) for threshold in thresholds}
    for at in range(0, len(rows), 1000):
        near = rows[at : at + 1000] @ rows.T
        one, two = np.nonzero(near >= min(thresholds))
        later = two > one + at
        one, two = one[later], two[later]
        found = np.minimum(rank[one + at, own[two]], rank[two, own[one + at]])
        for threshold in thresholds:
            close = near[one, two] >= threshold
            counts[threshold] += np.bincount(found[close], minlength=len(centroids))
    for threshold, count in counts.items():
        share = np.cumsum(count) / max(count.sum(), 1)
        default = probes_for(threshold)
        fewest = int(np.argmax(share >= 0.98)) + 1
        print(
            f"| {name} | {threshold} | {count.sum():,} | {default} | {share[default - 1]:.1%} | {fewest} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    if {"target", "pool", "duplicates", "chain"} & set(options.parts):
        from raysel.cluster.connect import connect

        connect("local")
    for part in options.parts:
        globals()[part](options.rows)


if __name__ == "__main__":
    main()
