"""Time how fast an autoencoder is trained, how fast samples are scored, and how fast RepDiv plans.

    python benchmarks/factors.py [--parts train score plan]

The output is Markdown tables, each after the load average of the machine. CPU seconds are those of all threads; on a busy
machine they are more reliable than wall-clock seconds. The vectors are sums of a few of many directions, with noise.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np

SCORED, TRAINED, PLANNED = 400_000, 60_000, 10_000_000


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4 * d, d)).astype(np.float32)
    rows = 0.3 * rng.standard_normal((n, d), np.float32)
    for _ in range(8):
        rows += rng.random((n, 1), np.float32) * directions[rng.integers(0, 4 * d, n)]
    return rows


def timed(run: Any) -> tuple[Any, float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, time.perf_counter() - clock, time.process_time() - cpu


def train() -> None:
    import torch

    from raysel.factors import fit_autoencoder

    x, rows = vectors(TRAINED, 128), []
    for mode in ("topk", "paper"):
        sae, clock, cpu = timed(lambda mode=mode: fit_autoencoder(x, mode=mode))
        report = sae.report(x)
        rows.append(
            [f"`{mode}`", clock, cpu, report["dead_fraction"], report["unexplained"], report["active"]]
        )
    head = ["mode", "seconds", "CPU seconds", "dead", "unexplained variance", "active units per sample"]
    table(
        f"Training: {TRAINED:,} x 128, 1,024 units, k = 32, 20 epochs, {torch.get_num_threads()} thread(s)",
        head,
        rows,
    )


def score() -> None:
    import torch

    from raysel.factors import fit_autoencoder, rep_div
    from raysel.factors.autoencoder import TILE

    torch.set_num_threads(1)
    x = vectors(SCORED, 64)
    labels = np.random.default_rng(0).integers(0, 10, SCORED)
    rows = []
    for mode in ("topk", "paper"):
        sae = fit_autoencoder(x[:20_000], k=16, mode=mode, epochs=2)
        weights, bias = torch.from_numpy(sae.encoder.copy()), torch.from_numpy(sae.encoder_bias.copy())
        tiles = torch.from_numpy(x).split(TILE)

        def product(tiles: Any = tiles, weights: Any = weights, bias: Any = bias) -> None:
            for tile in tiles:
                torch.addmm(bias, tile, weights.T)

        product()
        _, _, bare = min((timed(product) for _ in range(3)), key=lambda found: found[2])
        codes, _, encoding = min(
            (timed(lambda sae=sae: sae.encode(x)) for _ in range(3)), key=lambda found: found[2]
        )
        _, _, scoring = timed(lambda codes=codes: rep_div(codes.active, labels))
        for name, cpu in (("codes", encoding), ("codes, then Rep and Div", encoding + scoring)):
            rows.append([f"`{mode}`: {name}", SCORED / cpu, bare / cpu, 1 - bare / cpu])
        rows.append([f"`{mode}`: the matrix product alone", SCORED / bare, 1.0, 0.0])
    head = ["what is computed", "vectors per CPU second", "share of the product", "share of everything else"]
    table(f"Scoring: {SCORED:,} x 64, 512 units, k = 16, 1 thread", head, rows)


def plan() -> None:
    from raysel.dynamic import RepDiv, SampleState
    from raysel.dynamic.repdiv import Scores

    rng = np.random.default_rng(0)
    rep = (rng.random(PLANNED, np.float32) * 200).round() / 200
    div = rng.random(PLANNED, np.float32)
    state = SampleState(np.zeros(PLANNED, np.float32), rng.integers(0, 30, PLANNED).astype(np.int32))
    rows = []
    for classes in (1, 10, 1000):
        labels = rng.integers(0, classes, PLANNED).astype(np.int32)
        for name, settings in (
            ("the defaults", {}),
            ("`alpha=1, penalty=0` (many ties)", {"alpha": 1.0, "penalty": 0.0}),
        ):
            policy = RepDiv(Scores(rep, div, labels, classes), **settings)  # type: ignore[arg-type]
            run = lambda policy=policy: policy.plan(state, epoch=30, num_epochs=100, seed=0)  # noqa: E731
            _, clock, cpu = min((timed(run) for _ in range(3)), key=lambda found: found[1])
            rows.append([f"{classes:,}", name, clock, cpu])
    table(f"A plan of {PLANNED:,} samples", ["classes", "options", "seconds", "CPU seconds"], rows)


def table(title: str, head: list[str], rows: list[list[Any]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        cells = [c if isinstance(c, str) else f"{c:,.0f}" if c >= 1000 else f"{c:.2f}" for c in row]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parts = {"train": train, "score": score, "plan": plan}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    for name in parser.parse_args().parts:
        print(f"\nload before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        parts[name]()


if __name__ == "__main__":
    main()
