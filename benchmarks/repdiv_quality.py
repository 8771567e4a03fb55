"""Measure whether RepDiv trains better models than simpler policies of equal cost: two data sets, two ratios, three seeds.

    python benchmarks/repdiv_quality.py run                 # one hour on one core; can be interrupted and resumed
    python benchmarks/repdiv_quality.py run --parts main --data fashion --seeds 0 1 2 3 4
    python benchmarks/repdiv_quality.py tables              # Markdown from benchmarks/results/repdiv_quality.jsonl

Data: FashionMNIST (Debian package dataset-fashion-mnist) as PCA-64 vectors of all 60,000 training images, and WordNet's
glosses in 41 classes as MiniLM vectors of 384 dimensions (benchmarks/results/wordnet.npz, written by
``selection_quality.py wordnet``). The 10,000 and 4,989 test rows are used only to score the trained network. The factors come from a sparse
autoencoder that is trained on the same training vectors with the default settings of ``fit_autoencoder`` (1,024 units for
WordNet), one autoencoder per seed.

Training: 20 epochs, batches of 128, SGD with Nesterov momentum 0.9, weight decay 5e-4 and a learning rate of 0.05, all fixed
before the first measurement. The learning rate decays over the steps that the arm really takes, after a warm-up of a tenth:
``cosine`` decays to zero; ``steps`` decays to a tenth at a half and to a hundredth at three quarters. Network ``wide`` has one
hidden layer of 256 ReLUs, and ``deep`` has three of 128. Plans and states are those of the policies in raysel.dynamic, in one
process.

Every arm but ``full`` back-propagates as many samples as RepDiv at the same ratio: all data in the last 15 % of the epochs, and the ratio
before.

- ``full-equal-steps``: all data, for as many steps.
- ``random``: a new subset per epoch, all of one size.
- ``random-prune``: InfoBatch without losses; the same tail, first epoch and rescaling.
- ``roundrobin``: the same tail.
- ``infobatch``: ``target_saving`` is set to the same number of samples.

Parts: ``main``; ``noise`` (20 % of the training labels are another class, drawn per seed; RepDiv receives the wrong labels too);
``network`` (deep); ``schedule`` (steps); ``ablation``; ``long`` (100 epochs). "no classes" in the ablation uses neither c_j nor
an equal number per class.

A measurement (cell) is one line of JSON; existing cells are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "workflows"))

from raysel.dynamic import (  # noqa: E402
    FullData,
    InfoBatch,
    RandomPrune,
    RandomSubset,
    RepDiv,
    RoundRobin,
    SampleState,
)
from raysel.report.comparison.rows import difference  # noqa: E402
from raysel.report.usage import gini, total_variation  # noqa: E402

RESULTS = HERE / "results" / "repdiv_quality.jsonl"
DATA = {"fashion": "FashionMNIST", "wordnet": "WordNet"}
RATIOS = (0.7, 0.3)
SEEDS = (0, 1, 2)
TAIL, BATCH = 0.15, 128
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
NETWORKS = {"wide": (256,), "deep": (128, 128, 128)}
UNITS = {"fashion": 512, "wordnet": 1024}
CONTROLS = ("full-equal-steps", "random", "random-prune", "roundrobin", "infobatch")
ABLATIONS: dict[str, dict[str, Any]] = {
    "alpha constant (0.6)": {"alpha": 0.6},
    "no usage penalty": {"penalty": 0.0},
    "no full-data tail": {"tail": 0.0},
    "diversity only": {"alpha": 0.0},
    "representativeness only": {"alpha": 1.0},
    "no classes": {},
}
TITLES = {
    "full": "full data",
    "full-equal-steps": "full data at equal steps",
    "random": "random, fresh each epoch",
    "random-prune": "random pruning, rescaled",
    "roundrobin": "round robin, same tail",
    "infobatch": "InfoBatch",
    "repdiv": "RepDiv",
}
PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "main": ({}, ("full", *CONTROLS, "repdiv")),
    "noise": ({"noise": 0.2}, ("full", "full-equal-steps", "random", "roundrobin", "infobatch", "repdiv")),
    "ablation": ({}, tuple(ABLATIONS)),
    "network": ({"network": "deep"}, ("full", "full-equal-steps", "random", "roundrobin", "infobatch", "repdiv")),
    "schedule": ({"schedule": "steps"}, ("full", "full-equal-steps", "random", "roundrobin", "infobatch", "repdiv")),
    "long": ({"epochs": 100}, ("full", "roundrobin", "repdiv")),
}  # fmt: skip
USUAL = {"noise": 0.0, "network": "wide", "schedule": "cosine", "epochs": 20}


# ------------------------------------------------------------------------------------------------ data


@cache
def vectors(data: str) -> tuple[np.ndarray, ...]:
    """(train, labels, test, test labels): float32 vectors."""
    if data == "wordnet":
        found = np.load(HERE / "results" / "wordnet.npz", allow_pickle=False)
        return tuple(
            found[name].astype(kind)
            for name, kind in zip(("train_x", "train_y", "test_x", "test_y"), ("f4", "i8") * 2, strict=True)
        )
    from fashion_mnist import SOURCE, load
    from sklearn.decomposition import PCA

    images, labels, test, test_labels = load(SOURCE)
    x, t = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in (images, test))
    model = PCA(64, svd_solver="covariance_eigh").fit(x)
    return model.transform(x).astype(np.float32), labels, model.transform(t).astype(np.float32), test_labels


def given_labels(data: str, seed: int, noise: float) -> np.ndarray:
    """The training labels, a share of them another class, drawn uniformly."""
    labels = vectors(data)[1].copy()
    classes, rng = int(labels.max()) + 1, np.random.default_rng([seed, 20])
    wrong = rng.choice(len(labels), round(noise * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels


@cache
def active(data: str, seed: int) -> np.ndarray:
    """The units active on every training row; the autoencoder is fitted once and kept."""
    import torch

    from raysel.factors import Autoencoder, fit_autoencoder

    torch.set_num_threads(1)
    x, path = vectors(data)[0], RESULTS.with_suffix("") / f"{data}-{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fit_autoencoder(x, units=UNITS[data], seed=seed).save(path)
    sae = Autoencoder.load(path)
    if not any(line.get("factors") == [data, seed] for line in lines()):
        report = sae.report(x)
        kept = {name: report[name] for name in ("units", "dead_fraction", "unexplained", "active")}
        add({"factors": [data, seed], **kept})
    return sae.encode(x).active


def scores(data: str, seed: int, labels: np.ndarray | None) -> Any:
    import pyarrow as pa

    from raysel.factors import rep_div

    rep, div = rep_div(active(data, seed), labels)
    table = pa.table({"sample_id": np.arange(len(rep)), "rep": rep, "div": div})
    return table if labels is None else table.append_column("label", pa.array(labels))


# ------------------------------------------------------------------------------------------------ arms


def made(arm: str, ratio: float, n: int, epochs: int, known: Any) -> tuple[Any, int]:
    """The arm's policy and the steps it takes (InfoBatch: will take, on average)."""
    chosen, tail = int(ratio * n), round(TAIL * epochs)
    passes = (epochs - tail) * chosen + tail * n
    taken = (epochs - tail) * -(-chosen // BATCH) + tail * -(-n // BATCH)
    share, delta = passes / (n * epochs), 1 - TAIL
    if arm == "full":
        return FullData(), epochs * -(-n // BATCH)
    if arm == "full-equal-steps":
        return FullData(), taken
    if arm == "random":
        policy = RandomSubset(share)
        return policy, epochs * -(-int(share * n) // BATCH)
    if arm == "random-prune":
        return RandomPrune((1 - share) * epochs / (epochs - tail - 1), 1.0, delta), taken
    if arm == "roundrobin":
        return RoundRobin(ratio, delta), taken
    if arm == "infobatch":
        return InfoBatch(delta=delta, target_saving=1 - share), taken
    changed = {"tail": TAIL, **ABLATIONS.get(arm, {})}
    policy = RepDiv(known, ratio=ratio, **changed).for_ids(n)
    return policy, taken if changed["tail"] else epochs * -(-chosen // BATCH)


def train(
    policy: Any,
    steps: int,
    x: np.ndarray,
    y: np.ndarray,
    *,
    network: str,
    schedule: str,
    epochs: int,
    seed: int,
) -> tuple[list[np.ndarray], SampleState, int, int]:
    """Weights, state, passes and steps of a run: SGD with Nesterov momentum on the plans of ``policy``."""
    classes = int(y.max()) + 1
    widths = [x.shape[1], *NETWORKS[network], classes]
    shapes = [shape for a, b in pairwise(widths) for shape in ((a, b), (b,))]
    ends = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    theta, slope, speed = np.zeros((3, ends[-1]), np.float32)

    def parts(flat: np.ndarray) -> list[np.ndarray]:
        return [flat[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]

    weights, slopes = parts(theta), parts(slope)
    rng = np.random.default_rng([seed, 1])
    for w in weights[::2]:
        w[:] = rng.normal(size=w.shape) * (2 / len(w)) ** 0.5
    state, step, passes = SampleState.empty(len(x)), 0, 0
    for epoch in range(epochs):
        plan = policy.plan(state, epoch=epoch, num_epochs=epochs, seed=seed)
        order = np.random.default_rng([seed, 2, epoch]).permutation(len(plan))
        order = order[: (steps - step) * BATCH] if isinstance(policy, FullData) else order
        losses = np.empty(len(order), np.float32)
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            rows = plan.slots[some]
            layers = forward(weights, x[rows])
            p = layers.pop()
            p -= p.max(axis=1, keepdims=True)
            here, right = np.arange(len(rows)), y[rows]
            chosen = p[here, right].copy()
            np.exp(p, out=p)
            total = p.sum(axis=1)
            losses[at : at + BATCH] = np.log(total) - chosen
            p /= total[:, None]
            p[here, right] -= 1
            p *= (plan.weights[some] / np.float32(len(rows)))[:, None]
            for layer in range(len(layers) - 1, -1, -1):
                np.matmul(layers[layer].T, p, out=slopes[2 * layer])
                p.sum(axis=0, out=slopes[2 * layer + 1])
                if layer:
                    p = p @ weights[2 * layer].T
                    p *= layers[layer] > 0
            slope += np.float32(DECAY) * theta
            speed *= np.float32(MOMENTUM)
            speed += slope
            slope += np.float32(MOMENTUM) * speed
            theta -= np.float32(RATE * factor(min(step / steps, 1.0), schedule)) * slope
            step += 1
        passes += len(order)
        state = policy.update(state, plan, plan.slots[order], losses)
        if isinstance(policy, FullData) and step >= steps:
            break
    return weights, state, passes, step


def forward(weights: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The input, every hidden layer, and the logits."""
    layers = [x]
    for w, b in zip(weights[::2], weights[1::2], strict=True):
        x = x @ w
        x += b
        if w is not weights[-2]:
            np.maximum(x, 0, out=x)
        layers.append(x)
    return layers


def factor(progress: float, schedule: str) -> float:
    from raysel.train.loops import schedule as cosine

    if schedule == "cosine" or progress < 0.1:
        return cosine(progress)
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


# ------------------------------------------------------------------------------------------------ the grid


def grid(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for part in options.parts:
        changes, arms = PARTS[part]
        for data in options.data:
            for seed in options.seeds:
                for arm in (arm for arm in arms if arm in options.arms):
                    for ratio in (1.0,) if arm == "full" else RATIOS:
                        yield {"data": data, **USUAL, **changes, "arm": arm, "ratio": ratio, "seed": seed}


def run(options: argparse.Namespace) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    done = {key(line) for line in cells()}
    for cell in grid(options):
        if key(cell) in done:
            continue
        began = time.perf_counter()
        train_x, _, test, test_labels = vectors(cell["data"])
        y = given_labels(cell["data"], cell["seed"], cell["noise"])
        scored = cell["arm"] == "repdiv" or cell["arm"] in ABLATIONS
        classes = None if cell["arm"] == "no classes" else y
        known = scores(cell["data"], cell["seed"], classes) if scored else None
        policy, steps = made(cell["arm"], cell["ratio"], len(y), cell["epochs"], known)
        scale = train_x.std()
        how = {name: cell[name] for name in ("network", "schedule", "epochs", "seed")}
        weights, state, passes, step = train(policy, steps, train_x / scale, y, **how)
        right = forward(weights, test / scale)[-1].argmax(axis=1) == test_labels
        cell |= {
            "accuracy": float(right.mean()),
            "test": len(right),
            "passes": passes / (len(y) * cell["epochs"]),
            "steps": step,
            "gini": gini(state.selected),
            "variation": total_variation(state.selected),
        }
        add(cell)
        print(f"{key(cell)}: {100 * cell['accuracy']:.2f} %, {time.perf_counter() - began:.1f} s", flush=True)


def add(line: dict[str, Any]) -> None:
    with RESULTS.open("a") as out:
        out.write(json.dumps(line) + "\n")


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def cells() -> list[dict[str, Any]]:
    return [line for line in lines() if "arm" in line]


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("data", *USUAL, "arm", "ratio", "seed"))


# ------------------------------------------------------------------------------------------------ tables


def tables(_: argparse.Namespace) -> None:
    found = [cell for cell in cells() if cell["seed"] in SEEDS]
    units(lines())
    heads = {
        "main": "Main setting: network `wide`, schedule `cosine`",
        "noise": "Wrong labels: 20 % of the training labels are another class (network `wide`, schedule `cosine`)",
        "network": "Network `deep` (schedule `cosine`)",
        "schedule": "Schedule `steps` (network `wide`)",
        "ablation": "Variants of RepDiv (network `wide`, schedule `cosine`)",
        "long": "100 epochs (network `wide`, schedule `cosine`)",
    }
    for part, (changes, arms) in PARTS.items():
        setting = {**USUAL, **changes}
        here = [c for c in found if all(c[name] == value for name, value in setting.items())]
        shown = arms if part != "ablation" else ("roundrobin", *arms, "repdiv")
        if any(c["arm"] in arms for c in here):
            accuracies(heads[part], here, shown)
    fresh = [c for c in cells() if c["seed"] not in SEEDS and all(c[name] == USUAL[name] for name in USUAL)]
    if fresh:
        tried = len({c["seed"] for c in fresh})
        head = f"{tried} other seeds, run after the tables above (network `wide`, schedule `cosine`)"
        accuracies(head, fresh, ("random", "roundrobin", "repdiv", "no classes"), own="no classes")
    usage([c for c in found if all(c[name] == value for name, value in USUAL.items())])


def columns(here: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(data, ratio) for data in DATA if any(c["data"] == data for c in here) for ratio in RATIOS]


def by_seed(here: list[dict[str, Any]], data: str, arm: str, ratio: float) -> dict[int, dict[str, Any]]:
    ratio = 1.0 if arm == "full" else ratio
    return {c["seed"]: c for c in here if (c["data"], c["arm"], c["ratio"]) == (data, arm, ratio)}


def accuracies(title: str, here: list[dict[str, Any]], arms: tuple[str, ...], own: str = "repdiv") -> None:
    name = TITLES.get(own, f"RepDiv, {own},")
    heads = [f"{DATA[data]}, {ratio:.0%}" for data, ratio in columns(here)]
    print(
        f"\n**{title}.** Test accuracy in %, ± the standard deviation over the seeds. In parentheses is the accuracy of {name} "
        f"minus that of the row, in percentage points: **+** {name} is better, **−** worse, = a tie.\n"
    )
    print(f"| | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for arm in arms:
        texts = []
        for data, ratio in columns(here):
            mine, ours = by_seed(here, data, arm, ratio), by_seed(here, data, own, ratio)
            if not mine:
                texts.append("-")
                continue
            values = 100 * np.array([c["accuracy"] for c in mine.values()])
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            text = f"{values.mean():.2f}{spread}"
            both = sorted(mine.keys() & ours.keys())
            if arm != own and both:
                pair = [[side[seed]["accuracy"] for seed in both] for side in (ours, mine)]
                gap = difference(*pair, next(iter(mine.values()))["test"])
                sign = {"better": " **+**", "worse": " **−**", "tie": " ="}.get(gap.verdict, "")
                text += f" ({gap.mean:+.2f}{sign})".replace("(-", "(−")
            texts.append(text)
        print(f"| {TITLES.get(arm, arm)} | {' | '.join(texts)} |")


def usage(here: list[dict[str, Any]]) -> None:
    heads = [f"{DATA[data]}, {ratio:.0%}" for data, ratio in columns(here)]
    print(
        "\n**How evenly the arms use the samples, and their cost.** Gini coefficient / total variation distance "
        "from uniform use of how often each sample was selected, tail included; back-propagated samples in % of full data.\n"
    )
    print(f"| | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for arm in ("random", "roundrobin", "infobatch", *ABLATIONS, "repdiv"):
        texts = []
        for data, ratio in columns(here):
            mine = list(by_seed(here, data, arm, ratio).values())
            mean = (
                {name: np.mean([c[name] for c in mine]) for name in ("gini", "variation", "passes")}
                if mine
                else {}
            )
            texts.append(
                f"{mean['gini']:.3f} / {mean['variation']:.3f}, {100 * mean['passes']:.1f} %" if mine else "-"
            )
        print(f"| {TITLES.get(arm, arm)} | {' | '.join(texts)} |")


def units(found: list[dict[str, Any]]) -> None:
    print("\n**The autoencoders**, means over the seeds\n")
    print(
        "| data | units | never active | unexplained variance | active units per sample |\n|---|---|---|---|---|"
    )
    for data, title in DATA.items():
        some = [line for line in found if line.get("factors", [None])[0] == data]
        if some:
            names = ("dead_fraction", "unexplained", "active")
            dead, left, on = (float(np.mean([line[name] for line in some])) for name in names)
            print(f"| {title} | {some[0]['units']:,} | {100 * dead:.1f} % | {100 * left:.1f} % | {on:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="The evidence for RepDiv, favourable or not.")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="compute the cells that are missing")
    runs.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    runs.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    runs.add_argument("--arms", nargs="+", choices=[*TITLES, *ABLATIONS], default=[*TITLES, *ABLATIONS])
    runs.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    runs.set_defaults(run=run)
    commands.add_parser("tables", help="print the tables").set_defaults(run=tables)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
