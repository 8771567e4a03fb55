"""Factors over Ray Datasets: the autoencoder is trained on a sample, then blocks are counted, then scored.

The driver receives a bounded sample of the vectors, counts per block, unit and class, and for each sample its
id, two scores and its class.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import Dataset

from raysel.cluster.blocks import import_whole, stream_blocks
from raysel.cluster.errors import name_losses, unwrap_errors
from raysel.cluster.wait import STARTS, wait_for_workers
from raysel.core.hashing import hash_ids
from raysel.data.identity import check_dataset
from raysel.data.row_index import ID, check_ids
from raysel.data.vector_blocks import VectorBlocks, vector_blocks
from raysel.data.vectors import EMBEDDING, as_matrix, not_finite
from raysel.errors import ConfigError, DataError, first, shown
from raysel.factors import scores
from raysel.factors.autoencoder import Autoencoder, fit_autoencoder
from raysel.factors.scores import FactorCounts, RawScores, Span

_SAMPLE_ROWS, _SAMPLE_NUMBERS = 1 << 18, 1 << 27  # vectors on the driver, and their elements: 512 MB
_WHAT = "dataset to score"
Ids = npt.NDArray[np.int64]


def fit_factors(
    dataset: Dataset,
    *,
    column: str = EMBEDDING,
    rows: int | None = _SAMPLE_ROWS,
    workers: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Autoencoder:
    """Train a sparse autoencoder on the vectors of a data set.

    Rows are drawn by their ids, so the result does not depend on blocks or nodes.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with ``sample_id`` and vectors.
    column : str
        Column of the vectors, such as `raysel.embed` makes.
    rows : int, optional
        Approximate number of rows that are used; None for all rows. If the vectors have many elements, fewer rows
        are used: the sample takes at most 512 MB per process.
    workers : int, optional
        Number of Ray Train workers with one CPU each (and one GPU with ``device="cuda"``). Each worker holds a part
        of the rows. Give ``workers`` if the vectors do not fit into one process. By default, this process trains.
    seed : int
        Seed of the draw of rows and of the training.
    **settings
        Other parameters of `raysel.factors.fit_autoencoder`.

    Returns
    -------
    Autoencoder
        ``training["report"]`` is its `raysel.factors.Autoencoder.report` on the rows used.

    Raises
    ------
    ConfigError
        For a setting that is out of range.
    DataError
        For vectors that cannot be used.

    References
    ----------
    Zhou et al., 2026, arXiv:2603.04981; Gao et al., 2024, arXiv:2406.04093.

    Examples
    --------
    >>> autoencoder = raysel.fit_factors(rows, units=8, k=2, epochs=1)
    >>> autoencoder.units
    8
    """
    source = vector_blocks(dataset, column, "dataset to fit on")
    room = max(_SAMPLE_NUMBERS // source.dimension, 1) * (workers or 1)
    most = source.rows if rows is None else min(rows, room)
    if workers is not None:
        return _on_workers(source, most, workers, {**settings, "seed": seed})
    sample = source.sample(most, seed)[1]
    found = fit_autoencoder(sample, seed=seed, **settings)
    return replace(found, training={**found.training, "report": found.report(sample)})


def _on_workers(source: VectorBlocks, most: int, workers: int, settings: dict[str, Any]) -> Autoencoder:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpu = str(settings.get("device", "cpu")) != "cpu"
    wait_for_workers(f"workers: {workers} workers", workers, 1.0, float(gpu), "Ask for fewer")
    share = min(most / source.rows, 1.0)
    with tempfile.TemporaryDirectory() as place:
        trainer = TorchTrainer(
            _fit_part,
            train_loop_config={
                "blocks": source.blocks,
                "column": source.column,
                "share": share,
                "settings": settings,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(
                name=f"factors-{uuid.uuid4().hex[:12]}",
                storage_path=place,
                failure_config=FailureConfig(controller_failure_limit=STARTS),
            ),
        )
        with name_losses(), unwrap_errors():
            found: Autoencoder = trainer.fit().return_value
    return found


def _fit_part(config: dict[str, Any]) -> Autoencoder:
    """Train the autoencoder on this worker's part of the rows; all workers return the same one."""
    import ray.train
    import ray.train.torch

    context, settings = ray.train.get_context(), dict(config["settings"])
    rank, world = context.get_world_rank(), context.get_world_size()
    ids, parts = [], []
    for block in config["blocks"]:
        table = ray.get(block)
        mine = table[ID].to_numpy()
        here = hash_ids(mine, settings["seed"]) / config["share"]
        taken = np.flatnonzero((here >= rank / world) & (here < (rank + 1) / world))
        ids.append(mine[taken])
        parts.append(as_matrix(table[config["column"]], config["column"], mine)[taken])
    vectors = np.concatenate(parts)[np.argsort(np.concatenate(ids), kind="stable")]
    if settings.get("device", "cpu") != "cpu":
        settings["device"] = str(ray.train.torch.get_device())
    found = fit_autoencoder(vectors, **settings, together=True)
    return replace(found, training={**found.training, "report": found.report(vectors)})


def factor_scores(
    dataset: Dataset,
    autoencoder: Autoencoder,
    *,
    column: str = EMBEDDING,
    label: str | None = None,
    top_fraction: float = 0.1,
) -> pa.Table:
    """Compute the scores of `raysel.RepDiv` for every sample with a fitted autoencoder.

    ``rep`` is high for representative samples, ``div`` for diverse samples. The vectors are read twice. The result does not depend on blocks or nodes.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with ``sample_id`` and vectors.
    autoencoder : Autoencoder
        Fitted on this data set, or on another one with vectors of the same embedder.
    column : str
        Column of the vectors.
    label : str, optional
        Column of the classes: integers, booleans or text. Without it, all samples count as one
        class (c_j = 1 in the formula of ``rep``), and the table has no column ``label``.
    top_fraction : float
        Share of the units that count as frequent, in (0, 1], of those that are active on at least one sample; see `raysel.factors.rep_div`.

    Returns
    -------
    pyarrow.Table
        ``sample_id`` (int64, ascending), ``rep`` and ``div`` (float32, in [0, 1]), and ``label`` if given.
        The schema's metadata has, under ``raysel.factors``, JSON with ``samples``, ``classes`` (null without
        labels), ``units``, ``live_units``, ``frequent_units`` and ``active`` (mean number of active units per
        sample).

    Raises
    ------
    DataError
        For vectors, labels or ids that cannot be used, and if no unit is active on any sample.
    ConfigError
        If ``top_fraction`` is out of range.

    References
    ----------
    Zhou et al., 2026, arXiv:2603.04981, section 3.

    Examples
    --------
    >>> scores = raysel.factor_scores(rows, raysel.fit_factors(rows, units=8, k=2, epochs=1), label="label")
    >>> scores.column_names
    ['sample_id', 'rep', 'div', 'label']
    """
    return scored(dataset, autoencoder, column, label, top_fraction).table


class Scored(NamedTuple):
    """The table of :func:`factor_scores`, and the samples of the rare units (a tenth of the live ones).

    Attributes
    ----------
    table : pyarrow.Table
        What :func:`factor_scores` returns.
    rare : int
        Number of rare units.
    pairs : pyarrow.Table
        ``unit`` (int32) and ``sample_id`` (int64) of every sample on which a rare unit is active.
    """

    table: pa.Table
    rare: int
    pairs: pa.Table


def scored(
    dataset: Dataset, autoencoder: Autoencoder, column: str, label: str | None, top_fraction: float
) -> Scored:
    """Return the table of :func:`factor_scores` with the samples of the rare units."""
    check_dataset(dataset, "dataset")
    if not isinstance(autoencoder, Autoencoder):
        raise ConfigError(
            f"autoencoder: {shown(autoencoder)} is not an Autoencoder; make one with raysel.fit_factors, or load it with Autoencoder.load."
        )
    columns = [ID, column, *([] if label is None else [label])]
    if len(set(columns)) < len(columns):
        raise ConfigError(
            f"'{ID}', column '{column}' and label '{label}' must be different columns; name the columns of vectors and classes."
        )
    shared = ray.put(autoencoder)
    names: dict[Any, int] = {}
    counts: FactorCounts | None = None
    for found, part in stream_blocks(dataset, columns, _WHAT, _count, shared, column, label):
        part = part.recoded([names.setdefault(name, len(names)) for name in found])
        counts = part if counts is None else counts + part
    if counts is None:
        raise DataError(f"The {_WHAT} is empty: there are no samples to score.")
    weights, rare = counts.weights(top_fraction), counts.rare()

    parts = list(
        stream_blocks(dataset, columns, _WHAT, _score, shared, column, label, ray.put((weights, rare)))
    )
    ids = np.concatenate([part[0] for part in parts])
    check_ids(ids, f"the {_WHAT}")
    order = np.argsort(ids, kind="stable")
    raw = RawScores(
        *(np.concatenate([getattr(part[1], name) for part in parts])[order] for name in ("rep", "div"))
    )
    rep, div = Span.of(raw).scale(raw)
    table = pa.table({ID: ids[order], "rep": rep, "div": div})
    if label is not None:
        table = table.append_column(
            "label", pa.concat_arrays([part[2] for part in parts]).take(pa.array(order))
        )
    about = {
        "samples": len(ids),
        "classes": None if label is None else len(names),
        "units": autoencoder.units,
        "live_units": int(np.count_nonzero(counts.count)),
        "frequent_units": int(np.count_nonzero(weights.rep)),
        "active": float(counts.count.sum() / len(ids)),
    }
    unit, having = (np.concatenate([part[3][place] for part in parts]) for place in range(2))
    by_unit = np.lexsort((having, unit))
    pairs = pa.table({"unit": unit[by_unit], ID: having[by_unit]})
    return Scored(table.replace_schema_metadata({"raysel.factors": json.dumps(about)}), len(rare), pairs)


def _count(table: pa.Table, shared: Any, column: str, label: str | None) -> tuple[list[Any], FactorCounts]:
    """Return the block's class names, and its counts with positions in that list as class codes."""
    active = _active(table, shared, column)
    if label is None:
        return [], FactorCounts.of(active)
    labels = _labels(table, label).dictionary_encode()
    return labels.dictionary.to_pylist(), FactorCounts.of(active, labels.indices.to_numpy())


def _score(
    table: pa.Table, shared: Any, column: str, label: str | None, known: Any
) -> tuple[Ids, RawScores, pa.Array | None, tuple[npt.NDArray[np.int32], Ids]]:
    """Return ids, raw scores and labels of the block's samples, and its pairs of rare unit and sample id."""
    weights, rare = _fetched(known)
    ids, active = table[ID].to_numpy().astype(np.int64), _active(table, shared, column)
    row, place = active[:, rare].nonzero()
    labels = None if label is None else _labels(table, label)
    return ids, weights.score(active), labels, (rare[place].astype(np.int32), ids[row])


def _active(table: pa.Table, shared: Any, column: str) -> Any:
    """Return the units active on the block's samples; DataError names samples with unusable vectors."""
    autoencoder: Autoencoder = _fetched(shared)
    ids = table[ID].to_numpy()
    vectors = as_matrix(table[column], column, ids)
    bad = ids[not_finite(vectors)]
    if len(bad):
        raise DataError(
            f"Column '{column}' of the {_WHAT} holds NaN or infinite values (sample_id {first(bad)}); repair or drop "
            "these rows first."
        )
    if vectors.shape[1] != autoencoder.dimensions:
        raise DataError(
            f"The vectors of the {_WHAT} have {vectors.shape[1]} dimensions, but the autoencoder was fitted on "
            f"{autoencoder.dimensions}; embed both with the same embedder."
        )
    import_whole("torch")
    return scores.as_matrix(autoencoder.encode(vectors).active, autoencoder.units)


def _labels(table: pa.Table, label: str) -> pa.Array:
    labels = table[label].combine_chunks()
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    kind = labels.type
    if not any(
        test(kind)
        for test in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    ):
        raise DataError(
            f"Column '{label}' of the {_WHAT} holds {kind}; a class must be an integer, a boolean or text."
        )
    if labels.null_count:
        missing = table[ID].to_numpy()[labels.is_null().to_numpy(zero_copy_only=False)]
        raise DataError(
            f"The {_WHAT} has no label for sample_id {first(missing)}; label all samples or none."
        )
    return labels


def _fetched(given: Any) -> Any:
    return ray.get(given) if isinstance(given, ray.ObjectRef) else given
