"""Measure whether selectors select better training data than simple rules: six scenes, four budgets, several seeds.

    python benchmarks/selection_quality.py run              # one hour on one core; can be interrupted and resumed
    python benchmarks/selection_quality.py run --clusters 500 3000 --arms gio published-jump
    python benchmarks/selection_quality.py run --embedder convolutions --scenes junk classes
    python benchmarks/selection_quality.py run --target 300 # a small target
    python benchmarks/selection_quality.py wordnet --model FOLDER   # FOLDER: the model all-MiniLM-L6-v2
    python benchmarks/selection_quality.py run --vectors benchmarks/results/wordnet.npz --linear
    python benchmarks/selection_quality.py tables           # Markdown from benchmarks/results/selection_quality.jsonl

Data: FashionMNIST (Debian package dataset-fashion-mnist) as PCA-64 vectors, or ``--vectors FILE``. FILE is an npz with
train_x, train_y, train_junk and train_cut (the vector of each row if it becomes junk of one of two kinds), test_x and
test_y. The seed selects the target rows (a twelfth of the training rows, or ``--target``) and the rows that the scene
changes. The other training rows are the pool.

A scene is one combination of pool, target and test set:

- ``like``: pool, target and test have the same distribution.
- ``junk``: half of the pool rows are junk. For images see workflows/junk.py. A junk gloss is a word salad: as many words,
  drawn from all glosses, with a wrong label.
- ``cut``: half of the pool rows have lost the second half of their input (the lower half of an image, the last words of a
  gloss), and have a wrong label.
- ``classes``: target and test contain only the first half of the classes.
- ``shift``: of the first half of the classes, nine tenths of the pool rows are missing. Target and test are unchanged.
- ``flood``: half of the pool rows are near duplicates of one hundredth of the other rows, with their labels.

Three values are measured for every arm (one selection rule) and budget:

- The test accuracy of one network with a hidden layer of 256 units. It is trained on the selected rows with Adam for
  2,000 steps of 128 rows, at every budget. The network was fixed before the first measurement. With ``--linear``, a
  linear discriminant analysis is fitted instead; its shrinkage was chosen on random glosses, before the other measurements.
- The share of the selected rows that are on target: not junk, no near duplicate, and of a class that the target contains.
- KL(1,000 test rows || selected rows), estimated with the 5th neighbour. No arm reads these test rows.

Nothing is chosen by the test set. A measurement (cell) is one line of JSON; existing cells are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "workflows"))


from raysel.core.arrays import unit  # noqa: E402
from raysel.core.hashing import hash_ids  # noqa: E402
from raysel.gio import Picks, exact_select, gradient_select, kl  # noqa: E402
from raysel.gio.distances import nearest_logs  # noqa: E402
from raysel.gio.quantize import assign, cut_to_budget, draw_to_budget, fit_centroids  # noqa: E402
from raysel.quotas import divide  # noqa: E402
from raysel.select.covering import Greedy, facility_location, herding, k_center  # noqa: E402
from raysel.select.duplicates import close_pairs, keep_first  # noqa: E402
from raysel.select.matches import Matches, Turns, ranks  # noqa: E402
from raysel.select.random import choose  # noqa: E402
from raysel.select.ratio import draw_by_ratio, fit_ratio  # noqa: E402

RESULTS = HERE / "results" / "selection_quality.jsonl"
SCENES = ("like", "junk", "cut", "classes", "shift", "flood")
BUDGETS = (0.05, 0.10, 0.25, 0.50)
SEEDS = (0, 1, 2)
DIMENSIONS = 64
HELD_OUT = 1000
DUPLICATES = 0.95  # the default threshold of Deduplicate
SHRINKAGE = 0.1  # of the covariance of the linear discriminant analysis
Chooser = Callable[[int], np.ndarray]


@dataclass
class Scene:
    """Pool, target and test of one seed; selection reads `select_*`, and training reads the other arrays."""

    name: str
    pool: np.ndarray
    labels: np.ndarray
    good: np.ndarray
    target_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    clusters: int
    seed: int
    select_pool: np.ndarray
    select_target: np.ndarray

    @cached_property
    def ids(self) -> np.ndarray:
        return np.arange(len(self.pool))

    @cached_property
    def quantised(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centroids that have rows, and every row's cluster and distance."""
        centroids = fit_centroids(self.select_pool, self.clusters, self.seed)
        cluster, distance = assign(self.select_pool, centroids)
        used, cluster = np.unique(cluster, return_inverse=True)
        return centroids[used], cluster, distance

    @property
    def centroids(self) -> np.ndarray:
        return self.quantised[0]

    @property
    def members(self) -> tuple[np.ndarray, np.ndarray]:
        return self.quantised[1:]

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.members[0], minlength=len(self.centroids))

    @cached_property
    def target_centroids(self) -> np.ndarray:
        """The publication quantises the target too."""
        return fit_centroids(self.select_target, min(self.clusters, len(self.select_target) // 2), self.seed)

    def whole(self, picks: Picks) -> Chooser:
        """Return rows of complete clusters in the order of the picks (within="nearest")."""
        cluster, distance = self.members
        return lambda rows: cut_to_budget(picks.indices, cluster, distance, self.ids, rows)

    @cached_property
    def different(self) -> np.ndarray:
        """Rows without an earlier near duplicate."""
        pairs = close_pairs(self.ids, unit(self.select_pool), DUPLICATES)
        return np.setdiff1d(self.ids, keep_first(pairs, DUPLICATES).later)

    @cached_property
    def target_counts(self) -> np.ndarray:
        return np.bincount(assign(self.select_target, self.centroids)[0], minlength=len(self.centroids))

    def drawn(self, picks: Picks, share: np.ndarray) -> Chooser:
        """Return rows drawn from the clusters picked before the KL increases, of each in proportion to `share`."""
        rises = np.flatnonzero(np.diff(picks.kl) > 0)
        support = rises[0] + 1 if len(rises) else len(picks)
        return lambda rows: draw_to_budget(
            picks.indices, support, share, self.members[0], self.ids, rows, self.seed
        )


def random(scene: Scene) -> Chooser:
    return lambda rows: choose(scene.ids, np.zeros(len(scene.ids), np.int64), rows, scene.seed)


def by_class(scene: Scene) -> Chooser:
    return lambda rows: choose(scene.ids, scene.labels, rows, scene.seed)


def by_cluster(scene: Scene) -> Chooser:
    return lambda rows: choose(scene.ids, scene.members[0].astype(np.int64), rows, scene.seed)


def oracle(scene: Scene) -> Chooser:
    """Return a random sample of the on-target rows, which nobody knows in practice; all of them if there are too few.

    In the scene ``shift``, the sample has the class shares of the target, as far as the pool has enough rows.
    """
    if scene.name == "shift":
        draws = hash_ids(scene.ids, scene.seed)
        size, share = (
            np.bincount(labels, minlength=int(scene.labels.max()) + 1)
            for labels in (scene.labels, scene.target_labels)
        )

        def by_shares(rows: int) -> np.ndarray:
            count = divide(size, share.astype(np.float64), rows)
            order = np.lexsort((draws, scene.labels))
            return np.sort(order[ranks(scene.labels[order]) < count[scene.labels[order]]])

        return by_shares
    good = np.flatnonzero(scene.good)
    return lambda rows: good[choose(good, np.zeros(len(good), np.int64), min(rows, len(good)), scene.seed)]


def nearest_to_target(scene: Scene) -> Chooser:
    centre = scene.select_target.mean(axis=0, dtype=np.float64)
    order = np.argsort(nearest_logs(scene.select_pool, scene.select_target, 1, centre)[:, 0], kind="stable")
    return lambda rows: np.sort(order[:rows])


def published(init: str) -> Callable[[Scene], Chooser]:
    def arm(scene: Scene) -> Chooser:
        return scene.whole(
            gradient_select(
                scene.centroids,
                scene.target_centroids,
                round(max(BUDGETS) * len(scene.pool)),
                init=init,  # type: ignore[arg-type]
                seed=scene.seed,
                stop=None,
                sizes=scene.sizes,
            )
        )

    return arm


def exact(estimator: str, k: int, share: str | None = None) -> Callable[[Scene], Chooser]:
    def arm(scene: Scene) -> Chooser:
        picks = exact_select(scene.centroids, scene.select_target, estimator=estimator, k=k)  # type: ignore[arg-type]
        if share is None:
            return scene.whole(picks)
        return scene.drawn(picks, scene.sizes if share == "pool" else scene.target_counts)

    return arm


def cluster_share(scene: Scene) -> Chooser:
    """Return rows drawn from every cluster in proportion to its target rows, without GIO."""
    everything = Picks(np.arange(len(scene.centroids)), np.zeros(len(scene.centroids)))
    return scene.drawn(everything, scene.target_counts)


def nearest_in_turns(scene: Scene) -> Chooser:
    """The selector Nearest: target rows take turns."""

    def choose_rows(rows: int) -> np.ndarray:
        turns = Turns(rows, np.ones(len(scene.select_target), np.int64))
        k = 4 * -(-rows // len(scene.select_target)) + 16
        while True:
            k = min(k, len(scene.ids))
            free = ~np.isin(scene.ids, turns.taken)
            found = Matches(scene.select_target, k).add(scene.ids[free], scene.select_pool[free])
            if turns.take(*found.lists(), complete=k == len(scene.ids)):
                return np.sort(turns.ids)
            k *= 2

    return choose_rows


def density_ratio(scene: Scene) -> Chooser:
    """The selector DensityRatio, fitted on samples of at most 20,000 rows."""
    rng = np.random.default_rng(scene.seed)
    some = np.sort(rng.permutation(len(scene.ids))[:20_000])
    target_ids = np.arange(len(scene.select_target))
    model = fit_ratio(some, scene.select_pool[some], target_ids, scene.select_target, scene.seed)
    score = model.scores(scene.ids, scene.select_pool)
    cut = np.quantile(model.target_scores, 0.2, method="lower") if model.separates else -np.inf
    cluster, target = scene.members[0], assign(scene.select_target, scene.centroids)[0]
    place = draw_by_ratio(scene.ids, score, cluster, target, score >= cut, scene.seed)
    return lambda rows: np.flatnonzero(place < rows)


def deduplicated(arm: Callable[[Scene], Chooser]) -> Callable[[Scene], Chooser]:
    """Return the arm on the rows that Deduplicate keeps with its default threshold; all of them if there are too few."""

    def chain(scene: Scene) -> Chooser:
        keep = scene.different
        choose_rows = arm(
            replace(
                scene,
                pool=scene.pool[keep],
                labels=scene.labels[keep],
                good=scene.good[keep],
                select_pool=scene.select_pool[keep],
            )
        )
        return lambda rows: keep[choose_rows(rows)] if rows < len(keep) else keep

    return chain


def covering(greedy: Greedy) -> Callable[[Scene], Chooser]:
    def arm(scene: Scene) -> Chooser:
        weight, none = np.ones(len(scene.ids), np.int64), np.zeros(len(scene.ids), np.int64)
        order = greedy(scene.select_pool, weight, none, round(max(BUDGETS) * len(scene.pool))).order
        return lambda rows: np.sort(order[:rows])

    return arm


ARMS: dict[str, Callable[[Scene], Chooser]] = {
    "random": random,
    "class-stratified": by_class,
    "kmeans-stratified": by_cluster,
    "nearest-to-target": nearest_to_target,
    "published-mean": published("mean"),
    "published-jump": published("jump"),
    "gio": exact("nearest", 1),
    "gio-k5": exact("nearest", 5),
    "gio-mean5": exact("nearest_mean", 5),
    "gio-sampled": exact("nearest", 1, share="pool"),
    "gio-share": exact("nearest", 1, share="target"),
    "cluster-share": cluster_share,
    "nearest-in-turns": nearest_in_turns,
    "density-ratio": density_ratio,
    "deduplicate+random": deduplicated(random),
    "deduplicate+cluster-share": deduplicated(cluster_share),
    "deduplicate+density-ratio": deduplicated(density_ratio),
    "k-center": covering(k_center),
    "facility-location": covering(facility_location),
    "herding": covering(herding),
    "oracle": oracle,
}


# ------------------------------------------------------------------------------------------------ data


def fashion(scene: str, seed: int, target_rows: int) -> tuple[np.ndarray, ...]:
    """Pixels: (pool images, labels, good, target, target labels, test, test labels)."""
    from fashion_mnist import SOURCE, load
    from junk import corrupt, split_off

    images, labels, test, test_labels = load(SOURCE)
    target, pool = split_off(labels, target_rows or len(labels) // 12, seed)
    pixels, given = images[pool], labels[pool]
    good = np.ones(len(pool), bool)
    if scene == "junk":
        pixels, given, bad = corrupt(pixels, given, 0.5, 10, seed)
        good = ~bad
    elif scene == "cut":
        half = pixels.copy()
        half[:, half.shape[1] // 2 :] = 0
        pixels, given, good = half_junk(pixels, given, half, seed)
    elif scene == "flood":
        pixels, given, good = flooded(pixels, given, seed, lambda rows, rng: np.clip(
            np.rint(rows + rng.normal(0, 16, rows.shape)), 0, 255
        ).astype(rows.dtype))  # fmt: skip
    return pixels, given, good, images[target], labels[target], test, test_labels


def ready(path: Path, scene: str, seed: int, target_rows: int) -> tuple[np.ndarray, ...]:
    """The same from an npz of vectors."""
    from junk import split_off

    data = np.load(path, allow_pickle=False)
    x, y = data["train_x"].astype(np.float32), data["train_y"].astype(np.int64)
    target, pool = split_off(y, target_rows or len(y) // 12, seed)
    vectors, given = x[pool], y[pool].copy()
    good = np.ones(len(pool), bool)
    if scene in ("junk", "cut"):
        vectors, given, good = half_junk(vectors, given, data[f"train_{scene}"][pool], seed)
    elif scene == "flood":
        step = 0.2 / x.shape[1] ** 0.5  # a cosine of 0.98 to the original, and of 0.96 to each other
        vectors, given, good = flooded(
            vectors,
            given,
            seed,
            lambda rows, rng: unit(rows + rng.normal(0, step, rows.shape).astype(np.float32)),
        )
    return vectors, given, good, x[target], y[target], data["test_x"], data["test_y"].astype(np.int64)


def half_junk(rows: np.ndarray, labels: np.ndarray, junk: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Return rows of which half are replaced by ``junk`` with wrong labels, the labels, and which rows are good."""
    rng, classes = np.random.default_rng(seed), int(labels.max()) + 1
    bad = rng.choice(len(rows), len(rows) // 2, replace=False)
    rows, labels, good = rows.copy(), labels.copy(), np.ones(len(rows), bool)
    rows[bad] = junk[bad]
    labels[bad] = (labels[bad] + rng.integers(1, classes, len(bad))) % classes
    good[bad] = False
    return rows, labels, good


def flooded(
    rows: np.ndarray, labels: np.ndarray, seed: int, copy: Callable[..., np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Return rows of which half are replaced by near duplicates of one hundredth of the others, labels, and the others."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    bad, other = order[: len(rows) // 2], order[len(rows) // 2 :]
    of = rng.choice(other[: len(rows) // 100], len(bad))
    rows, labels, good = rows.copy(), labels.copy(), np.ones(len(rows), bool)
    rows[bad], labels[bad] = copy(rows[of], rng), labels[of]
    good[bad] = False
    return rows, labels, good


def pca(fit: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    from sklearn.decomposition import PCA

    model = PCA(DIMENSIONS, svd_solver="covariance_eigh").fit(fit)
    return [model.transform(x).astype(np.float32) for x in (fit, *others)]


def random_convolutions(images: np.ndarray) -> np.ndarray:
    """A second representation of images: 256 random 7 x 7 filters, ReLU, averaged over a 3 x 3 grid."""
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(256, 1, 7, 7, generator=generator)
    filters -= filters.mean(dim=(2, 3), keepdim=True)
    parts = []
    for at in range(0, len(images), 1000):
        x = torch.from_numpy(images[at : at + 1000].astype(np.float32) / 255)
        seen = torch.relu(torch.nn.functional.conv2d(x, filters, stride=2))
        parts.append(torch.nn.functional.adaptive_avg_pool2d(seen, 3).flatten(1).numpy())
    return np.concatenate(parts)


def wordnet(options: argparse.Namespace) -> None:
    """Write the MiniLM vectors of WordNet's glosses, and of two kinds of junk made of them."""
    from junk import split_off
    from wordnet import SOURCE, glosses, split

    texts, names = map(np.array, glosses(SOURCE))
    test, target, pool = split(names)
    texts, names = (part[np.concatenate([pool, target])] for part in (texts, names))
    labels = np.unique(names, return_inverse=True)[1]
    rows, _ = split_off(labels, options.rows, 0)
    rows = rows[np.bincount(labels[rows])[labels[rows]] >= 24]  # every class must reach target, pool and test
    texts, labels = texts[rows], np.unique(labels[rows], return_inverse=True)[1]
    test, train_rows = split_off(labels, len(rows) // 6, 0)
    options.out.parent.mkdir(exist_ok=True)
    train = texts[train_rows].tolist()
    np.savez(
        options.out,
        train_x=embedded(train, options, "train"),
        train_y=labels[train_rows],
        test_x=embedded(texts[test].tolist(), options, "test"),
        test_y=labels[test],
        train_junk=embedded(salad(train), options, "junk"),
        train_cut=embedded([cut(text) for text in train], options, "cut"),
    )


def salad(texts: list[str]) -> list[str]:
    """Return for every text as many words, drawn from the words of all texts: real words without meaning."""
    rng = np.random.default_rng(0)
    sentences = [text.split() for text in texts]
    words = np.array([word for sentence in sentences for word in sentence])
    drawn = np.split(words[rng.integers(0, len(words), len(words))], np.cumsum([len(s) for s in sentences]))
    return [" ".join(some) for some in drawn[:-1]]


def cut(text: str) -> str:
    """Return the first half of the words."""
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def embedded(texts: list[str], options: argparse.Namespace, name: str) -> np.ndarray:
    """Return the vectors of ``texts``; they are kept in a file, so that an interrupted call resumes after this part."""
    from sentence_transformers import SentenceTransformer

    path = options.out.with_name(f"{options.out.stem}-{name}.npy")
    if not path.exists():
        torch.set_num_threads(1)
        model = SentenceTransformer(str(options.model), device="cpu")
        vectors = model.encode(texts, batch_size=32, normalize_embeddings=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, vectors)
        partial.replace(path)
    return np.load(path, allow_pickle=False)


def build(scene: str, seed: int, clusters: int, options: argparse.Namespace) -> Scene:
    vectors = options.vectors
    if vectors is None:
        raw = fashion(scene, seed, options.target)
    else:
        raw = ready(vectors, scene, seed, options.target)
    pool, labels, good, target, target_labels, test, test_labels = raw
    flat = [part.reshape(len(part), -1).astype(np.float32) for part in (pool, target, test)]
    if vectors is None:
        flat = pca(flat[0] / 255, flat[1] / 255, flat[2] / 255)
    chosen = flat[:2]
    if options.embedder == "convolutions":
        chosen = pca(random_convolutions(pool), random_convolutions(target))
    keep, keep_test = np.ones(len(target), bool), np.ones(len(test), bool)
    half = (int(labels.max()) + 1) // 2
    stay = np.ones(len(labels), bool)
    if scene == "classes":
        keep, keep_test, good = target_labels < half, test_labels < half, labels < half
    elif scene == "shift":
        rng = np.random.default_rng(seed)
        stay[rng.random(len(labels)) < 0.9 * (labels < half)] = False
    return Scene(
        scene,
        flat[0][stay],
        labels[stay],
        good[stay],
        target_labels[keep],
        flat[2][keep_test],
        test_labels[keep_test],
        clusters,
        seed,
        chosen[0][stay],
        chosen[1][keep],
    )


# ------------------------------------------------------------------------------------------------ scores


def accuracy(scene: Scene, rows: np.ndarray, linear: bool) -> float:
    """Return the test accuracy in percent of the fixed model, trained on `rows`."""
    scale = scene.pool.std()
    if linear:
        weights, bias = discriminant(scene.pool[rows], scene.labels[rows], int(scene.labels.max()) + 1)
        return 100 * float(((scene.test @ weights + bias).argmax(axis=1) == scene.test_labels).mean())
    w1, b1, w2, b2 = train(
        scene.pool[rows] / scale, scene.labels[rows], int(scene.labels.max()) + 1, scene.seed
    )
    hidden = np.maximum(scene.test / scale @ w1 + b1, 0)
    return 100 * float(((hidden @ w2 + b2).argmax(axis=1) == scene.test_labels).mean())


def discriminant(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of a linear discriminant analysis, whose covariance is shrunk to a multiple of the identity."""
    counts = np.bincount(y, minlength=classes)
    means = np.zeros((classes, x.shape[1]))
    np.add.at(means, y, x)
    means /= np.maximum(counts, 1)[:, None]
    rest = x - means[y]
    covariance = rest.T @ rest / len(x)
    identity = np.eye(x.shape[1]) * np.trace(covariance) / x.shape[1]
    weights = np.linalg.solve((1 - SHRINKAGE) * covariance + SHRINKAGE * identity, means.T)
    with np.errstate(divide="ignore"):  # a class without rows is never predicted
        return weights, np.log(counts / len(x)) - (means.T * weights).sum(axis=0) / 2


def train(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
    """Weights of a network with one hidden layer of 256 ReLUs: Adam, cosine schedule, mean cross-entropy."""
    steps, batch, hidden, d = 2000, 128, 256, x.shape[1]
    rng = np.random.Generator(np.random.Philox(seed))
    shapes = [(d, hidden), (hidden,), (hidden, classes), (classes,)]
    ends = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    theta, slope, first, second = np.zeros((4, ends[-1]), np.float32)

    def parts(flat: np.ndarray) -> list[np.ndarray]:
        return [flat[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]

    (w1, b1, w2, b2), (dw1, db1, dw2, db2) = parts(theta), parts(slope)
    w1[:] = rng.normal(size=w1.shape) * (2 / d) ** 0.5
    w2[:] = rng.normal(size=w2.shape) * (1 / hidden) ** 0.5
    order = np.concatenate([rng.permutation(len(x)) for _ in range(-(-steps * batch // len(x)))])
    for step in range(steps):
        some = order[step * batch : (step + 1) * batch]
        h = np.maximum(x[some] @ w1 + b1, 0)
        p = h @ w2 + b2
        p = np.exp(p - p.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(batch), y[some]] -= 1
        p /= batch
        back = (p @ w2.T) * (h > 0)
        dw1[:], db1[:], dw2[:], db2[:] = x[some].T @ back, back.sum(axis=0), h.T @ p, p.sum(axis=0)
        first += 0.1 * (slope - first)
        second += 0.001 * (slope * slope - second)
        correction = (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        rate = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / steps)) * correction
        theta -= np.float32(rate) * first / (np.sqrt(second) + np.float32(1e-8))
    return [w1, b1, w2, b2]


def held_out_kl(scene: Scene, rows: np.ndarray) -> float:
    step = max(1, len(scene.test) // HELD_OUT)
    return kl(scene.test[::step][:HELD_OUT], scene.pool[rows], k=5)


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    done = {key(cell) for cell in cells()}
    name = "fashion" if options.vectors is None else options.vectors.stem
    name += f"-target{options.target}" if options.target else ""
    name += "-linear" if options.linear else ""
    for clusters in options.clusters:
        for seed in options.seeds:
            for scene_name in options.scenes:
                setting = {"data": name, "scene": scene_name, "seed": seed, "clusters": clusters}
                setting["embedder"] = options.embedder
                todo = [
                    {**setting, "arm": arm, "budget": budget}
                    for arm in options.arms
                    for budget in BUDGETS
                    if key({**setting, "arm": arm, "budget": budget}) not in done
                ]
                if not todo:
                    continue
                scene = build(scene_name, seed, clusters, options)
                _ = scene.sizes
                for arm in dict.fromkeys(cell["arm"] for cell in todo):
                    start = time.perf_counter()
                    chooser = ARMS[arm](scene)
                    seconds = time.perf_counter() - start
                    for cell in (cell for cell in todo if cell["arm"] == arm):
                        rows = chooser(round(cell["budget"] * len(scene.pool)))
                        cell |= {
                            "rows": len(rows),
                            "good": float(scene.good[rows].mean()),
                            "kl": held_out_kl(scene, rows),
                            "accuracy": accuracy(scene, rows, options.linear),
                            "seconds": round(seconds, 2),
                        }
                        with RESULTS.open("a") as out:
                            out.write(json.dumps(cell) + "\n")
                    print(f"{setting} {arm}: {time.perf_counter() - start:.0f} s", flush=True)


def cells() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def key(cell: dict) -> tuple:
    return tuple(cell[part] for part in ("data", "scene", "seed", "clusters", "embedder", "arm", "budget"))


# ------------------------------------------------------------------------------------------------ tables


def tables(_: argparse.Namespace) -> None:
    grid = cells()
    for setting in sorted({(c["data"], c["clusters"], c["embedder"]) for c in grid}):
        some = [c for c in grid if (c["data"], c["clusters"], c["embedder"]) == setting]
        seeds = len({c["seed"] for c in some})
        for scene in [s for s in SCENES if any(c["scene"] == s for c in some)]:
            print(
                f"\n**{setting[0]}, scene `{scene}`, K = {setting[1]:,}, {setting[2]}.** Each entry is the test accuracy in % "
                f"(mean ± standard deviation over {seeds} seeds), then in parentheses the on-target share in % and the held-out KL "
                "in nats, then in brackets the number of seeds if it is smaller.\n"
            )
            print("| arm | " + " | ".join(f"{b:.0%} of the pool" for b in BUDGETS) + " |")
            print("|---" * (len(BUDGETS) + 1) + "|")
            for arm in [a for a in ARMS if any((c["arm"], c["scene"]) == (a, scene) for c in some)]:
                texts = []
                for budget in BUDGETS:
                    here = [c for c in some if (c["scene"], c["arm"], c["budget"]) == (scene, arm, budget)]
                    texts.append(_text(here, seeds) if here else "-")
                print(f"| {arm} | " + " | ".join(texts) + " |")


def _text(here: list[dict], seeds: int) -> str:
    score, good, divergence = (np.array([c[part] for c in here]) for part in ("accuracy", "good", "kl"))
    spread = f" ± {score.std(ddof=1):.1f}" if len(here) > 1 else ""
    fewer = f" [{len(here)}]" if len(here) < seeds else ""
    return f"{score.mean():.1f}{spread} ({100 * good.mean():.0f}, {divergence.mean():.1f}){fewer}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The evidence for GIO and the other selectors.")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="compute the cells that are missing")
    runs.add_argument("--scenes", nargs="+", choices=SCENES, default=("like", "junk", "classes"))
    runs.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    runs.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    runs.add_argument("--clusters", nargs="+", type=int, default=(1500,))
    runs.add_argument(
        "--embedder", choices=("pca", "convolutions"), default="pca", help="vectors that the selection reads"
    )
    runs.add_argument("--target", type=int, default=0, help="rows of the target; 0: a twelfth of the data")
    runs.add_argument(
        "--vectors", type=Path, help="npz with train_x, train_y, train_junk, train_cut, test_x, test_y"
    )
    runs.add_argument(
        "--linear", action="store_true", help="fit a linear discriminant analysis instead of the network"
    )
    runs.set_defaults(run=run)
    words = commands.add_parser("wordnet", help="vectors of WordNet's glosses and of junk made of them")
    words.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    words.add_argument("--rows", type=int, default=30_000)
    words.add_argument("--out", type=Path, default=RESULTS.parent / "wordnet.npz")
    words.set_defaults(run=wordnet)
    commands.add_parser("tables", help="print the tables").set_defaults(run=tables)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
