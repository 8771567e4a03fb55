"""Find flipped labels of FashionMNIST by the losses of one training, next to cleanlab.

    apt install dataset-fashion-mnist
    pip install cleanlab                     # only for its rows of the table
    python benchmarks/label_check.py [--flips uniform similar] [--seeds 0 1 2] [--epochs 10 30] [--rows 60000]

10 % of the labels are flipped: to another class at random (uniform), or to the class that is most similar (similar). A small
network is trained on all rows. The output is a Markdown table: of every ranking, the average precision, the share of flipped
labels among the first 1 % and the first 10 % of all rows, and the seconds of one thread that it takes beyond the training.

loss                the mean loss of each row over the epochs
label check         the mean loss minus the median of the 10 nearest rows (PCA-64), as ``raysel.select.label_check``
cleanlab            get_label_quality_scores of probabilities by 5-fold cross-validation: five more trainings
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflows"))

import raysel
from raysel.core.arrays import unit
from raysel.select import label_check
from raysel.select.matches import Matches
from raysel.train.epoch_log import EpochLog, mean_losses

SIMILAR = np.array(
    [6, 3, 4, 1, 2, 7, 0, 9, 9, 7]
)  # T-shirt and shirt, trouser and dress, pullover and coat, ...
SHARE, BATCH, FOLDS = 0.1, 128, 5


def flipped(labels: np.ndarray, flips: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which 10 % are flipped, and which ones are."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(SHARE * len(labels)), replace=False)] = True
    given = labels.copy()
    other = (labels + rng.integers(1, 10, len(labels))) % 10 if flips == "uniform" else SIMILAR[labels]
    given[wrong] = other[wrong]
    return given, wrong


def trained(
    images: torch.Tensor, labels: np.ndarray, policy: Any, epochs: int, seed: int
) -> tuple[Any, np.ndarray]:
    """Train on all rows; return the network and the mean loss of each row over the epochs."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    targets = torch.from_numpy(labels)
    with (
        TemporaryDirectory() as log,
        raysel.DynamicSelection.local(policy, len(labels), num_epochs=epochs, seed=seed) as dynamic,
    ):
        dynamic.epoch_log = EpochLog(log)
        session = dynamic.session()
        for _ in session.epochs():
            for batch in session.loader(Positions(len(labels)), batch_size=BATCH):
                optimizer.param_groups[0]["lr"] = 0.05 * (1 - session.progress)
                losses = torch.nn.functional.cross_entropy(
                    model(images[batch.data]), targets[batch.data], reduction="none"
                )
                optimizer.zero_grad()
                session.loss(batch, losses).backward()
                optimizer.step()
            session.report()
        return model, mean_losses(log, epochs)["loss"].to_numpy()


class Positions(torch.utils.data.Dataset):
    """The rows' own positions, by which a batch is taken from the arrays."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, at: int) -> int:
        return at


def probabilities(images: torch.Tensor, labels: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    """Return the probabilities of the classes from a network that was trained without the row."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    found = np.empty((len(labels), 10))
    for number in range(FOLDS):
        there, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        model, _ = trained(images[there], labels[there], raysel.FullData(), epochs, seed)
        with torch.no_grad():
            found[out] = torch.softmax(model(images[out]), 1).numpy()
    return found


def row(name: str, suspicion: np.ndarray, wrong: np.ndarray, seconds: float) -> None:
    """Print a row of the table for a score that is high where a label is wrong."""
    from sklearn.metrics import average_precision_score

    order, n = np.argsort(-suspicion, kind="stable"), len(wrong)
    first = [wrong[order[: n // part]].mean() for part in (100, 10)]
    precision = average_precision_score(wrong, suspicion)
    print(f"| {name} | {precision:.3f} | {first[0]:.1%} | {first[1]:.1%} | {seconds:.0f} |", flush=True)


def table(images: np.ndarray, labels: np.ndarray, flips: str, seed: int, epochs: int) -> None:
    """Print the table of one setting."""
    given, wrong = flipped(labels, flips, seed)
    flat = torch.from_numpy(images.reshape(len(images), -1)).float() / 255
    flat = (flat - 0.286) / 0.353
    print(f"\n{flips} flips, seed {seed}, {epochs} epochs, {len(labels):,} rows\n")
    print("| ranking by | average precision | first 1 % | first 10 % | seconds |\n|---|---|---|---|---|")
    losses = {}
    for name, policy in (("full data", raysel.FullData()), ("InfoBatch", raysel.InfoBatch())):
        losses[name] = trained(flat, given, policy, epochs, seed)[1]
        row(f"loss, {name}", losses[name], wrong, 0)
    from sklearn.decomposition import PCA

    began = time.process_time()
    vectors = unit(PCA(64, svd_solver="covariance_eigh").fit_transform(flat.numpy()))
    embedded = time.process_time() - began
    ids = np.arange(len(given))
    for name, values in losses.items():
        began = time.process_time()
        tried = label_check.candidates(ids, values)
        lists = Matches(vectors[tried], label_check.NEIGHBOURS + 1)
        for at in range(0, len(ids), 8192):
            lists.add(ids[at : at + 8192], vectors[at : at + 8192])
        found = label_check.rank(ids, values, given, tried, label_check.others(tried, lists.lists()[0]))
        score = np.full(len(ids), found["score"].min() - 1)  # rows that are not candidates come last
        score[found["sample_id"]] = found["score"]
        row(f"label check, {name}", score, wrong, embedded + time.process_time() - began)
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("(cleanlab is not installed)")
        return
    began = time.process_time()
    quality = get_label_quality_scores(given, probabilities(flat, given, epochs, seed))
    row("cleanlab", -quality, wrong, time.process_time() - began)


def main() -> None:
    from fashion_mnist import SOURCE, load

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", nargs="+", choices=("uniform", "similar"), default=("uniform", "similar"))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", nargs="+", type=int, default=(10, 30))
    parser.add_argument("--rows", type=int, default=60_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = (part[: options.rows] for part in load(SOURCE)[:2])
    for flips in options.flips:
        for epochs in options.epochs:
            for seed in options.seeds:
                table(images, labels.astype(np.int64), flips, seed, epochs)


if __name__ == "__main__":
    main()
