"""Factors over Ray: what one array gives, in whatever blocks; and errors without Ray around them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from raysel.errors import ConfigError, DataError, ResourceError
from raysel.factors import Autoencoder, fit_autoencoder, rep_div
from raysel.factors.distributed import scored

N, D = 700, 10


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(24, D))
    return (rng.random((N, 24)) * (rng.random((N, 24)) < 0.15) @ directions + 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.array(["cat", "dog", "eel"])[np.random.default_rng(1).integers(0, 3, N)]


@pytest.fixture(scope="module")
def sae(vectors: np.ndarray) -> Autoencoder:
    return fit_autoencoder(vectors, units=32, k=4, epochs=3)


def table(vectors: np.ndarray, labels: np.ndarray, order: np.ndarray | None = None) -> pa.Table:
    from raysel.data.vectors import to_column

    order = np.arange(len(vectors)) if order is None else order
    columns = {"sample_id": pa.array(order), "embedding": to_column(vectors[order])}
    return pa.table({**columns, "label": pa.array(labels[order])})


def test_any_blocks_give_what_one_array_gives(cluster, vectors, labels, sae, tmp_path):
    import raysel

    shuffled = table(vectors, labels, np.random.default_rng(2).permutation(N))
    whole = table(vectors, labels)
    coded = whole.set_column(2, "label", whole["label"].dictionary_encode())
    rep, div = rep_div(sae.encode(vectors).active, labels)
    fits, found = [], []
    for given, cuts in ((whole, [0, N]), (coded, [0, 3, N]), (shuffled, [0, 100, 101, 400, 650, N])):
        blocks = [given.slice(a, b - a) for a, b in pairwise(cuts)]
        dataset = cluster.data.from_arrow(blocks)
        found.append(scored(dataset, sae, "embedding", "label", 0.1))
        fits.append(raysel.fit_factors(dataset, rows=300, seed=5, units=32, k=4, epochs=2))
        fits[-1].save(tmp_path / f"{len(fits)}")
    assert found[0].table["sample_id"].to_pylist() == list(range(N))
    assert found[0].table["label"].to_pylist() == labels.tolist()
    np.testing.assert_array_equal(found[0].table["rep"].to_numpy(), rep)
    np.testing.assert_array_equal(found[0].table["div"].to_numpy(), div)
    about = json.loads(found[0].table.schema.metadata[b"raysel.factors"])
    assert (about["samples"], about["classes"], about["units"]) == (N, 3, 32)
    for other in found[1:]:
        assert other.table.equals(found[0].table, check_metadata=True)
        assert other.pairs.equals(found[0].pairs) and other.rare == found[0].rare
    assert len({(tmp_path / f"{i}").read_bytes() for i in (1, 2, 3)}) == 1
    assert 230 < fits[0].training["samples"] < 370

    on = sae.encode(vectors).active
    counts = np.bincount(on[on >= 0], minlength=32)
    live = np.flatnonzero(counts)
    rarest = sorted(live, key=lambda j: (counts[j], j))[: len(live) // 10]
    expected = sorted((j, i) for i in range(N) for j in on[i] if j in rarest)
    assert [tuple(pair.values()) for pair in found[0].pairs.to_pylist()] == expected
    assert found[0].rare == len(rarest)

    # without labels: c_j = 1, and the table says so; on another data set than the autoencoder was fitted on
    other = raysel.embed(raysel.read({"x": vectors[:90] * 2}), "column", column="x")
    alone = raysel.factor_scores(other, sae)
    assert alone.column_names == ["sample_id", "rep", "div"]
    assert json.loads(alone.schema.metadata[b"raysel.factors"])["classes"] is None
    np.testing.assert_array_equal(alone["rep"].to_numpy(), rep_div(sae.encode(vectors[:90]).active)[0])
    policy = raysel.RepDiv(alone, ratio=0.5).for_ids(90)
    assert policy.scores.number == 1


def test_what_cannot_be_scored_is_a_sentence(cluster, vectors, labels, sae):
    import raysel

    def score(given: pa.Table, **options: object) -> None:
        half = len(given) // 2
        raysel.factor_scores(
            cluster.data.from_arrow([given.slice(0, half), given.slice(half)]),
            sae,
            **{"label": "label", **options},
        )

    few = table(vectors[:40], labels[:40])
    broken = vectors[:40].copy()
    broken[31, 2] = np.nan
    with pytest.raises(
        DataError, match=r"'embedding' of the dataset to score holds NaN or infinite values \(sample_id 31\)"
    ):
        score(table(broken, labels[:40]))
    with pytest.raises(DataError, match="have 9 dimensions, but the autoencoder was fitted on 10"):
        score(table(vectors[:40, :9], labels[:40]))
    with pytest.raises(DataError, match="has no label for sample_id 35; label all samples or none"):
        score(few.set_column(2, "label", pa.array([*labels[:35].tolist(), None, *labels[36:40].tolist()])))
    with pytest.raises(DataError, match="'label' of the dataset to score holds double; a class must be"):
        score(few.set_column(2, "label", pa.array(np.ones(40))))
    with pytest.raises(DataError, match="no column 'kind'"):
        score(few, label="kind")
    with pytest.raises(DataError, match="ids that occur more than once"):
        score(pa.concat_tables([few, few.slice(3, 2)]))
    with pytest.raises(ConfigError, match="top_fraction"):
        score(few, top_fraction=0.0)
    for label in ("embedding", "sample_id"):
        with pytest.raises(ConfigError, match="must be different columns"):
            score(few, label=label)


def test_arrays_and_other_objects_get_one_sentence():
    import raysel

    for wrong in (np.eye(3), pa.table({"embedding": [[1.0]]}), [1], "vectors"):
        with pytest.raises(ConfigError, match="The dataset to fit on must be a Ray Dataset, not "):
            raysel.fit_factors(wrong)
        with pytest.raises(ConfigError, match="The dataset must be a Ray Dataset, not "):
            raysel.factor_scores(wrong, wrong)


@pytest.mark.slow
def test_ray_train_workers_find_one_autoencoder_from_parts_of_the_rows(cluster, vectors, labels):
    import raysel

    settings = {"units": 32, "k": 4, "epochs": 40, "batch_size": 64, "rows": None, "seed": 3}
    found = []
    for cuts in ([0, N], [0, 10, 350, N]):
        blocks = [table(vectors, labels).slice(a, b - a) for a, b in pairwise(cuts)]
        found.append(raysel.fit_factors(cluster.data.from_arrow(blocks), workers=2, **settings))
    np.testing.assert_array_equal(found[0].encoder, found[1].encoder)
    assert found[0].training["samples"] == N
    alone = raysel.fit_factors(cluster.data.from_arrow(blocks), **settings)
    ours, theirs = (each.report(vectors)["unexplained"] for each in (found[0], alone))
    assert ours < 1.15 * theirs < 0.4
    with pytest.raises(ResourceError, match="5 workers of 1 CPU cannot be placed"):
        raysel.fit_factors(cluster.data.from_arrow(blocks), workers=5, **settings)
