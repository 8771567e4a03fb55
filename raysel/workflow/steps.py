"""The steps of a workflow: each takes what earlier steps made, and leaves a folder with its result."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset
from ray.util.placement_group import placement_group, remove_placement_group

import raysel
from raysel.code import load_function
from raysel.core.fingerprint import fingerprint
from raysel.data.blocks import gather, plain_errors
from raysel.data.embed import fit_embedder
from raysel.data.pipeline import compute
from raysel.data.rowid import ID, RowIndex, budget_rows, index_parquet, list_files
from raysel.data.shards import Options
from raysel.data.source import LABEL
from raysel.data.store import ArrayDataset, write_arrays
from raysel.data.vectors import EMBEDDING
from raysel.dynamic.plan import Policy
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError, DataError, ResourceError, RunError
from raysel.gime import Binding, Sensitivity, proxy
from raysel.report.usage import gini, images, replay, times, total_variation
from raysel.selection import Selection
from raysel.workflow.config import Dynamic, Factors, Gime, Rows, Workflow, factors_of

Watch = Callable[[str], None]  # told in a few words how far a step is


# ---- before anything starts ----------------------------------------------------------------------------------


def check(workflow: Workflow, factors: Factors | None = None) -> dict[str, int]:
    """What can be said without starting Ray: files, columns, labels, dimensions, budget, model. Rows by role.

    factors: how scores are found that a policy beside the workflow's own needs. Reads Parquet footers only. Raises
    DataError or ConfigError with the workflow's key.
    """
    roles = {role: getattr(workflow, role) for role in ("pool", "target", "test")}
    schemas: dict[str, pa.Schema] = {}
    counts: dict[str, int] = {}
    for role, rows in roles.items():
        if rows is not None:
            schemas[role], counts[role] = _look(role, rows)
    selects = workflow.select is not None and workflow.select.method == "gio"
    if selects and workflow.target is None:
        raise ConfigError("The key 'target' is missing: select.method gio chooses rows for a target.")
    factors = factors_of(workflow.dynamic) or factors
    embedded = embedded_roles(workflow) if selects or factors is not None else ()
    sizes: dict[str, int | None] = {}
    for role in embedded:
        _column(schemas[role], workflow.embed.column, f"{role}.path", "embed.column")
        sizes[role] = _elements(schemas[role].field(workflow.embed.column).type)
    if selects and None not in sizes.values() and sizes["pool"] != sizes["target"]:
        raise DataError(
            f"embed.column '{workflow.embed.column}': the pool's vectors have {sizes['pool']} elements, "
            f"the target's {sizes['target']}; they must agree."
        )
    if factors is not None:
        _factors(workflow, factors)
    if workflow.gime is not None:
        _check_gime(workflow, schemas, counts)
    if workflow.pool.label is None:
        raise ConfigError("The key 'pool.label' is missing: training needs the column that holds the class.")
    if workflow.test is not None and workflow.test.label is None:
        raise ConfigError("The key 'test.label' is missing: scoring needs the column that holds the class.")
    for role in ("pool", "test"):
        if role in schemas:
            _column(schemas[role], workflow.train.input, f"{role}.path", "train.input")
    if embedded:
        _embedder(workflow.embed.embedder, sizes["pool"])
    if workflow.select is not None and workflow.select.method == "random" and workflow.select.stratify:
        labels = {LABEL if name == workflow.pool.label else name for name in schemas["pool"].names}
        if workflow.select.stratify not in labels:
            raise DataError(
                f"select.stratify: no column '{workflow.select.stratify}' in the pool; there are {', '.join(sorted(labels))}."
            )
    if workflow.select is not None:
        try:
            budget_rows(workflow.select.budget, counts["pool"])
        except ConfigError as error:
            raise ConfigError(f"select.{error}") from None
    try:  # a saving that is out of reach is said when the first epoch is planned
        first_epoch = {"epoch": 0, "num_epochs": workflow.train.epochs, "seed": workflow.seed}
        policy(workflow.dynamic, _ONE_SCORE).plan(SampleState.empty(1), **first_epoch)
    except ConfigError as error:
        raise ConfigError(f"dynamic: {error}.") from None
    load_factory(workflow.train.model)
    return counts


def embedded_roles(workflow: Workflow) -> tuple[str, ...]:
    """The inputs whose vectors are needed, where any are: GIO aims at the target, factors are the pool's alone."""
    return (
        ("pool", "target") if workflow.select is not None and workflow.select.method == "gio" else ("pool",)
    )


_ONE_SCORE = pa.table({ID: [0], "rep": [0.0], "div": [0.0]})  # to look at the settings with


def _factors(workflow: Workflow, factors: Factors) -> None:
    if factors.units is not None and factors.k > factors.units:
        raise ConfigError(
            f"dynamic.factors.k: {factors.k} is more than the autoencoder's {factors.units} units; lower it or raise "
            "dynamic.factors.units."
        )
    if workflow.embed.on_error != "raise":
        raise ConfigError(
            f"embed.on_error: '{workflow.embed.on_error}' leaves rows without a vector, and RepDiv needs a score for "
            "every row that is trained on; use 'raise', and repair or leave out what it names."
        )


def _check_gime(workflow: Workflow, schemas: dict[str, pa.Schema], counts: dict[str, int]) -> None:
    settings = workflow.gime
    assert settings is not None
    try:
        gime(workflow, schemas["pool"]).binding.check(schemas["pool"], "pool")
    except (ConfigError, DataError) as error:
        raise type(error)(f"gime: {error}") from None
    if settings.by is not None and settings.days is not None:
        raise ConfigError("gime: give by or days, not both: groups are of a column or windows of time.")
    if settings.by is not None:
        _column(schemas["pool"], settings.by, "pool.path", "gime.by")
    if (asked := settings.calibrate) is not None:
        if workflow.target is None:
            raise ConfigError("The key 'target' is missing: gime.calibrate scores its models on the target.")
        label = asked.label or workflow.pool.label
        if label is None:
            raise ConfigError("The key 'gime.calibrate.label' is missing: its models need a column to learn.")
        for role in ("pool", "target"):
            for name in (*asked.features, label):
                _column(schemas[role], name, f"{role}.path", "gime.calibrate")
        _column(schemas["pool"], asked.mix, "pool.path", "gime.calibrate.mix")
        try:
            budget_rows(asked.rows, counts["pool"])
        except ConfigError as error:
            raise ConfigError(f"gime.calibrate.rows: {error}") from None


def _look(role: str, rows: Rows) -> tuple[pa.Schema, int]:
    paths = [rows.path] if isinstance(rows.path, str) else rows.path
    try:
        index, schema = index_parquet(*list_files(paths))
    except DataError as error:
        raise DataError(f"{role}.path: {error}") from None
    if index.rows == 0:
        raise DataError(f"{role}.path: {paths[0]} holds no rows; there is nothing to work on.")
    if rows.label is not None:
        _column(schema, rows.label, f"{role}.path", f"{role}.label")
        kind = schema.field(rows.label).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(test(kind) for test in _LABELS):
            raise DataError(
                f"{role}.label: column '{rows.label}' holds {kind}; a class is an integer or text."
            )
    return schema, index.rows


_LABELS = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)


def _embedder(spec: str, width: int | None) -> None:
    """ConfigError for a spec that is not known, or that asks for more components than a vector has elements."""
    try:
        if not spec.startswith(("pca:", "table")):
            fit_embedder(spec)  # what learns from data needs them; of it only the number can be checked
        elif spec.startswith("pca:") and (
            not spec[4:].isdecimal() or not 0 < int(spec[4:]) <= (width or np.inf)
        ):
            most = f", at most {width}" if width else ""
            raise ConfigError(
                f"embedder: '{spec}' names no number of components; write pca:32, for example{most}."
            )
    except ConfigError as error:
        raise ConfigError(f"embed.{error}") from None


def _column(schema: pa.Schema, column: str, where: str, key: str) -> None:
    if column not in schema.names:
        raise DataError(
            f"{key}: no column '{column}' in the files of {where}; the columns are {', '.join(schema.names)}."
        )


def _elements(kind: Any) -> int | None:
    if isinstance(kind, pa.FixedShapeTensorType):
        return int(np.prod(kind.shape))
    return kind.list_size if pa.types.is_fixed_size_list(kind) else None


def load_factory(spec: str) -> Callable[[tuple[int, ...], int], Any]:
    """The function that ``file.py:name`` or ``package.module:name`` names; ConfigError if there is none."""
    place, _, name = spec.rpartition(":")
    if not place.strip(".") or not name:
        raise ConfigError(
            f"train.model: '{spec}' names no function; write file.py:factory or module:factory."
        )
    return load_function(place, name, "train.model")


def model_digest(spec: str) -> str:
    """Fingerprint of the factory that ``spec`` names and of the user's code that it reaches.

    What was trained with other code is not reused. Loading the factory runs its file; data that the file reads when
    the factory is called is not part of the fingerprint.
    """
    remedy = "give the factory a text attribute 'version' that changes with it"
    return fingerprint(load_factory(spec), f"train.model: '{spec}'", remedy)


def check_room(workers: int, cpus: float, gpus: float, wait_s: float = 60.0) -> None:
    """ResourceError if the cluster cannot place the workers, or has no room for them within ``wait_s``."""
    need = f"train.workers: {workers} workers of {cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")

    def places(resources: dict[str, float]) -> int:
        by_gpu = resources.get("GPU", 0) / gpus if gpus else np.inf
        return int(min(resources.get("CPU", 0) / cpus, by_gpu) + 1e-9)

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(map(places, nodes)) < workers:
        have = ray.cluster_resources()
        raise ResourceError(
            f"{need} cannot be placed: the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU on "
            f"{len(nodes)} node(s), room for {sum(map(places, nodes))}; lower train.workers or train.cpus_per_worker."
        )
    # Reserved as Ray Train will reserve it, so that what is free in pieces does not count; then given back.
    group = placement_group([{"CPU": cpus, **({"GPU": gpus} if gpus else {})}] * workers)
    try:
        if not group.wait(wait_s):
            free = ray.available_resources()
            raise ResourceError(
                f"{need} found no room within {wait_s:g} s: {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU "
                "are free, others are at work on this cluster; try again later or ask for fewer."
            )
    finally:
        remove_placement_group(group)


# ---- the steps ---------------------------------------------------------------------------------------------------


def number(workflow: Workflow, directory: Path) -> dict[str, str]:
    """Fix the ids of every input's rows in ``directory``; returns the inputs' digests by role."""
    digests = {}
    for role in ("pool", "target", "test"):
        rows = getattr(workflow, role)
        if rows is None:
            continue
        path = directory / f"{role}.json"
        known = RowIndex.load(path) if path.exists() else None
        try:
            index, _ = index_parquet(
                *list_files([rows.path] if isinstance(rows.path, str) else rows.path), known
            )
        except DataError as error:
            raise DataError(f"{role}.path: {error}") from None
        if known is not None and len(index.files) != len(known.files):
            raise RunError(
                f"{role}.path: files were added since this run numbered its rows; start a new run with another --out."
            )
        index.save(path)
        digests[role] = index.digest
    return digests


def read(workflow: Workflow, role: str, indexes: Path) -> Dataset:
    """The rows of a role, with the ids that :func:`number` fixed."""
    rows = getattr(workflow, role)
    return raysel.read(rows.path, label=rows.label, index=indexes / f"{role}.json")


def plain(workflow: Workflow, role: str, indexes: Path) -> Dataset:
    """:func:`read` with the label under its own name, by which a binding knows it."""
    return raysel.read(getattr(workflow, role).path, index=indexes / f"{role}.json")


def gime(workflow: Workflow, schema: pa.Schema) -> raysel.GIME:
    """What the workflow says of the metrics; floors are of the class column's type. ConfigError for what cannot be."""
    settings = workflow.gime
    assert settings is not None
    binding = Binding.from_json(json.dumps(settings.binding))
    floors: dict[Any, int] = dict(settings.floors)
    if floors and len(binding.classes) == 1 and binding.classes[0] in schema.names:
        of = schema.field(binding.classes[0]).type
        try:
            floors = {pa.scalar(label).cast(of).as_py(): rows for label, rows in floors.items()}
        except pa.ArrowException as error:
            raise ConfigError(f"floors: {', '.join(floors)} are not all {of}, as the classes are.") from error
    return raysel.GIME(binding, thresholds(settings), floors)


def thresholds(settings: Gime) -> dict[str, tuple[float | None, float | None]]:
    """The thresholds that are given; ConfigError for one of another form."""
    for name, ends in settings.thresholds.items():
        if len(ends) != 2:
            raise ConfigError(
                f"thresholds.{name}: {ends} is not [least, greatest], of which one may be null."
            )
    return {name: (low, high) for name, (low, high) in settings.thresholds.items()}


def groups(workflow: Workflow) -> str | timedelta | None:
    """What the metrics are grouped by."""
    settings = workflow.gime
    assert settings is not None
    return timedelta(days=settings.days) if settings.days is not None else settings.by


def aimed(workflow: Workflow, pool: Dataset, indexes: Path) -> raysel.GIME:
    """:func:`gime` with the workflow's target, if it has one."""
    found = gime(workflow, pool.schema().base_schema)
    return found if workflow.target is None else found.aim(plain(workflow, "target", indexes))


def measure(workflow: Workflow, indexes: Path, directory: Path, watch: Watch) -> dict[str, Any]:
    """The metrics of pool, target and what is chosen by them as ``sets.parquet``, and the choice, in ``directory``.

    The thresholds are those that a calibration shows, and those given in their place. RunError if it shows none and none is given.
    """
    settings = workflow.gime
    assert settings is not None
    pool = plain(workflow, "pool", indexes)
    rule = aimed(workflow, pool, indexes)
    answer: dict[str, Any] = {}
    if settings.calibrate is not None:
        watch("calibrating")
        found = calibrate(workflow, rule, pool, indexes)
        for name in ("correlations", "evidence", "subsets"):
            pq.write_table(getattr(found, name), directory / f"{name}.parquet")
        if not found.thresholds and not settings.thresholds:
            raise RunError(
                f"gime.calibrate: no threshold could be shown to keep the score above {found.info['floor']:.6g} (all of the pool: "
                f"{found.info['full']:.6g}); raise tolerance, lower share, train on more subsets, or give thresholds yourself."
            )
        rule = replace(rule, thresholds={**found.limits, **thresholds(settings)})
        answer["calibration"] = dict(found.info)
    sets = {"pool": rule.measure(pool)}
    if settings.chooses:
        watch("choosing")
        chosen = rule.select(pool, groups(workflow), workflow.seed)
        chosen.save(directory / "selection")
        sets["kept"] = rule.measure(chosen.apply(pool))
        answer |= {
            "kept": len(chosen),
            "thresholds": chosen.info["thresholds"],
            "reached": chosen.info["reached"],
        }
    if workflow.target is not None:
        sets["target"] = rule.measure(plain(workflow, "target", indexes))
    pq.write_table(side_by_side(sets), directory / "sets.parquet")
    return answer | {"sets": {name: table.to_pylist() for name, table in sets.items()}}


def side_by_side(sets: dict[str, pa.Table]) -> pa.Table:
    """The metrics of several sets, one below the other, with a column ``set``."""
    return pa.concat_tables(
        [table.add_column(0, "set", pa.array([name] * table.num_rows)) for name, table in sets.items()]
    ).replace_schema_metadata(None)


def calibrate(workflow: Workflow, rule: raysel.GIME, pool: Dataset, indexes: Path) -> Sensitivity:
    """The thresholds that the workflow's calibration shows, its models trained on the cluster."""
    asked = workflow.gime.calibrate if workflow.gime is not None else None
    assert asked is not None
    label = asked.label or str(workflow.pool.label)
    wanted = list(dict.fromkeys([*asked.features, label]))
    test = gather(plain(workflow, "target", indexes), wanted, "target")
    return rule.sensitivity(
        pool,
        proxy(asked.features, label, test, asked.scoring),
        rows=budget_rows(asked.rows, pool.count()),
        columns=wanted,
        seed=workflow.seed,
        **asked.model_dump(exclude={"features", "label", "scoring", "rows"}),
    )


def embed(
    workflow: Workflow, indexes: Path, directory: Path, watch: Watch, before: Selection | None = None
) -> dict[str, Any]:
    """Vectors of the pool, and of the target where there is an aim, as Parquet (``sample_id``, ``embedding``) under
    ``directory/vectors``.

    before: of the pool, only its rows. Goes on where a killed run stopped.
    """
    settings = workflow.embed
    inputs = {role: read(workflow, role, indexes) for role in embedded_roles(workflow)}
    if before is not None:
        inputs["pool"] = before.apply(inputs["pool"])
    embedder = raysel.fit_embedder(settings.embedder, inputs["pool"], column=settings.column)
    options = Options(settings.normalize, settings.dtype, settings.on_error)
    answer: dict[str, Any] = {
        "embedder": settings.embedder,
        "explained": getattr(embedder, "explained", None),
    }
    for role, rows in inputs.items():
        report = compute(
            rows,
            embedder,
            [settings.column],
            str(directory / "vectors" / role),
            options,
            lambda text, role=role: watch(f"{role}: {text}"),  # type: ignore[misc]
        )
        answer[role] = asdict(report)
    return answer


def select(
    workflow: Workflow, indexes: Path, vectors: Path | None, directory: Path, before: Selection | None = None
) -> dict[str, Any]:
    """The selection the workflow asks for, from the rows of an earlier one if there is, saved in ``directory``."""
    settings = workflow.select
    assert settings is not None
    options = settings.model_dump(exclude={"method"})
    if settings.method == "gio":
        assert vectors is not None
        chosen = raysel.GIO(**options, seed=workflow.seed).select(
            raysel.read(str(vectors / "pool")), raysel.read(str(vectors / "target"))
        )
    else:
        pool = read(workflow, "pool", indexes)
        pool = pool if before is None else before.apply(pool)
        chosen = raysel.Random(**options, seed=workflow.seed).select(pool)
    chosen = chosen if before is None else chosen.after(before)
    chosen.save(directory / "selection")
    return {"kept": len(chosen)}


def factors(
    workflow: Workflow,
    settings: Factors,
    indexes: Path,
    vectors: Path,
    chosen: Selection | int,
    directory: Path,
    watch: Watch,
) -> dict[str, Any]:
    """Factors of the rows to train on, in ``directory``: the autoencoder, every row's scores, who has the rare units."""
    from raysel.factors.distributed import scored

    options = settings.model_dump(exclude={"top_fraction"})
    rows = raysel.read(str(vectors / "pool"))
    if isinstance(chosen, Selection):
        rows = chosen.apply(rows)
    watch("training the autoencoder")
    autoencoder = raysel.fit_factors(rows, **options, seed=workflow.seed)
    autoencoder.save(directory / "autoencoder.safetensors")
    watch("scoring")
    labels = ray.put(_labels(read(workflow, "pool", indexes)).sort_by(ID))
    labelled = rows.map_batches(_labelled, fn_args=(labels,), batch_format="pyarrow", batch_size=None)
    found = scored(plain_errors(labelled), autoencoder, EMBEDDING, LABEL, settings.top_fraction)
    pq.write_table(found.table, directory / SCORES)
    pq.write_table(found.pairs, directory / RARE)
    return {
        "scored": json.loads(found.table.schema.metadata[b"raysel.factors"]),
        "rare_units": found.rare,
        "autoencoder": autoencoder.training["report"],
    }


SCORES, RARE = "scores.parquet", "rare.parquet"


def _labelled(table: pa.Table, labels: Any) -> pa.Table:
    known = ray.get(labels) if isinstance(labels, ray.ObjectRef) else labels
    if not table.num_rows:  # an empty block may come without its columns
        return table
    place = np.searchsorted(known[ID].to_numpy(), table[ID].to_numpy())
    return table.append_column(LABEL, known[LABEL].take(pa.array(place)))


def usage(
    workflow: Workflow, indexes: Path, scored: Path, chosen: Selection | int, data: Path
) -> dict[str, Any]:
    """How RepDiv used the samples, beside a fresh random subset an epoch and round robin that cost as much.

    Their plans hang on no loss, so they are made again here: what the run trained on. Nothing for more than
    200 million (sample, epoch) pairs, which would take minutes.
    """
    ids = chosen.ids if isinstance(chosen, Selection) else np.arange(chosen)
    n, epochs = len(ids), workflow.train.epochs
    if n * epochs > _REPLAYED:
        return {}
    table, pairs = pq.read_table(scored / SCORES), pq.read_table(scored / RARE)
    rule = policy(workflow.dynamic, table)
    assert isinstance(rule, raysel.RepDiv)
    rule = rule.for_ids(ids)
    tail = rule.tail_epochs(epochs)
    walked, spent = rule.count(n), (epochs - tail) * rule.count(n) + tail * n
    rules: dict[str, Policy] = {
        "RepDiv": rule,
        # The middle of what is rounded down to as many samples and epochs.
        "random": raysel.RandomSubset(min((spent // epochs + 0.5) / n, 1.0)),
        "round robin": raysel.RoundRobin(
            min((walked + 0.5) / n, 1.0), min((epochs - tail + 0.5) / epochs, 1.0)
        ),
    }
    slots = np.searchsorted(ids, pairs[ID].to_numpy())
    having = (slots, pairs["unit"].to_numpy())
    courses = {name: replay(made, n, epochs, workflow.seed, having) for name, made in rules.items()}
    selected = courses["RepDiv"].selected
    return {
        "policies": [
            {
                "title": name,
                "gini": gini(course.selected),
                "variation": total_variation(course.selected),
                "times": times(course.selected),
                "rare": course.seen,
            }
            for name, course in courses.items()
        ],
        "alpha": [rule.alpha_in(epoch, epochs) for epoch in range(epochs - tail)],
        "extremes": _extremes(workflow, indexes, ids, selected, data),
    }


_REPLAYED = 200_000_000
_SHOWN = 12


def _extremes(
    workflow: Workflow, indexes: Path, ids: np.ndarray, selected: np.ndarray, data: Path
) -> dict[str, Any] | None:
    """The samples chosen most and least often of the class whose samples were used most unevenly; None if they are
    neither images nor texts."""
    arrays_ = ArrayDataset(data / "pool")
    labels = arrays_.labels[ids]
    here = max(np.unique(labels), key=lambda code: gini(selected[labels == code]))
    mine = np.flatnonzero(labels == here)
    count = min(_SHOWN, len(mine) // 2)
    most, least = (mine[np.argsort(by, kind="stable")[:count]] for by in (-selected[mine], selected[mine]))
    slots = np.concatenate([most, least])
    wanted = ids[slots]
    shown = images(np.array(arrays_.inputs[wanted]))
    kind = "image"
    if shown is None:
        kind, shown = "text", _texts(workflow, indexes, wanted)
    if shown is None or count == 0:
        return None
    samples = [
        {"id": int(i), "times": int(selected[slot]), kind: what}
        for i, slot, what in zip(wanted, slots, shown, strict=True)
    ]
    return {"label": str(arrays_.classes[here]), "most": samples[:count], "least": samples[count:]}


def _texts(workflow: Workflow, indexes: Path, ids: np.ndarray) -> list[str] | None:
    """The texts that the vectors were made of, None if they were made of something else."""
    rows, column = read(workflow, "pool", indexes), workflow.embed.column
    kind = rows.schema().base_schema.field(column).type
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return None
    found = gather(Selection.of(ids).apply(rows.select_columns([ID, column])), [ID, column], "pool")
    by_id = dict(zip(found[ID].to_pylist(), found[column].to_pylist(), strict=True))
    return [by_id[i] for i in ids.tolist()]


def random_subset(workflow: Workflow, indexes: Path, count: int, directory: Path) -> dict[str, Any]:
    """The control: ``count`` random rows of the pool."""
    chosen = raysel.Random(count, seed=workflow.seed).select(read(workflow, "pool", indexes))
    chosen.save(directory / "selection")
    return {"kept": len(chosen)}


def kept_classes(workflow: Workflow, indexes: Path, chosen: Selection) -> list[dict[str, Any]]:
    """Rows of each class in the pool, among the chosen, and in the target where it has labels."""
    pool = _labels(read(workflow, "pool", indexes))
    kept = np.isin(pool[ID].to_numpy(), chosen.ids)
    target = workflow.target is not None and workflow.target.label is not None
    columns = {
        "pool": _count(pool[LABEL]),
        "kept": _count(pool.filter(pa.array(kept))[LABEL]),
        "target": _count(_labels(read(workflow, "target", indexes))[LABEL]) if target else None,
    }
    names = sorted(columns["pool"] or {}, key=lambda v: (str(type(v)), v))
    return [
        {"label": str(name), **{key: None if c is None else c.get(name, 0) for key, c in columns.items()}}
        for name in names
    ]


def _labels(dataset: Dataset) -> pa.Table:
    return gather(dataset, [ID, LABEL], "labels")


def _count(column: pa.ChunkedArray) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def arrays(workflow: Workflow, indexes: Path, directory: Path) -> dict[str, Any]:
    """Pool and test as memory-mapped arrays for training; the classes are the pool's."""
    classes = write_arrays(read(workflow, "pool", indexes), directory / "pool", workflow.train.input)
    if workflow.test is not None:
        write_arrays(read(workflow, "test", indexes), directory / "test", workflow.train.input, classes)
    return {"classes": [str(name) for name in classes]}


def policy(settings: Dynamic, scores: pa.Table | None = None) -> Policy:
    """The dynamic policy that the settings ask for. scores: of every sample, where it needs them."""
    if settings.method == "repdiv":
        return raysel.RepDiv(scores, **settings.model_dump(exclude={"method", "factors"}))
    made: dict[str, Callable[..., Policy]] = {
        "infobatch": raysel.InfoBatch,
        "random_prune": raysel.RandomPrune,
        "random_subset": raysel.RandomSubset,
        "round_robin": raysel.RoundRobin,
        "full": raysel.FullData,
    }
    return made[settings.method](**settings.model_dump(exclude={"method"}))


def loop_config(workflow: Workflow, data: Path) -> dict[str, Any]:
    """What ``raysel.train.loops.classify`` is told by the workflow, wherever it runs."""
    settings = workflow.train
    return {
        "train": str(data / "pool"),
        "test": str(data / "test") if workflow.test is not None else None,
        "model": load_factory(settings.model),
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
    }


def epochs_for(rows: int, batch: int, max_steps: int) -> int:
    """The epochs over all ``rows`` that ``max_steps`` steps of ``batch`` rows take, the last one begun."""
    return -(-max_steps // -(-rows // batch))


def train(
    workflow: Workflow,
    rule: Policy,
    chosen: Selection | int,
    data: Path,
    directory: Path,
    *,
    name: str,
    max_steps: int | None = None,
    watch: Watch,
) -> dict[str, Any]:
    """Train one arm on Ray Train and return its history; goes on from the last checkpoint in ``directory``.

    max_steps: stop after so many steps, going round as many epochs as that takes.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raysel.train.loops import classify

    settings = workflow.train
    check_room(settings.workers, settings.cpus_per_worker, settings.gpus_per_worker)
    rows = len(chosen) if isinstance(chosen, Selection) else chosen
    epochs = settings.epochs
    if max_steps is not None:
        epochs = epochs_for(rows, settings.batch_size * settings.workers, max_steps)
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    with raysel.DynamicSelection(
        rule, chosen, num_epochs=epochs, seed=workflow.seed, max_steps=max_steps
    ) as dynamic:
        trainer = TorchTrainer(
            classify,
            train_loop_config={
                **loop_config(workflow, data),
                "dynamic": dynamic,
                "alone": False,
                "batch_size": settings.batch_size,
                "seed": workflow.seed,
                "threads": max(1, int(settings.cpus_per_worker)),
            },
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            # The name holds the step's key: Ray Train goes on with any run of the same name it finds.
            run_config=RunConfig(
                name=name,
                storage_path=str(directory / "ray"),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        done = threading.Event()
        watcher = threading.Thread(target=_follow, args=(dynamic, epochs, watch, done), daemon=True)
        watcher.start()
        try:
            result = trainer.fit()
        finally:
            done.set()
            watcher.join()
    history = result.return_value
    if not history:
        raise RunError(f"{directory}: the training left no history; remove the folder and run again.")
    return {"rows": rows, "epochs": history}


def _follow(dynamic: Any, epochs: int, watch: Watch, done: threading.Event) -> None:
    while not done.wait(1.0):
        try:
            committed, last = dynamic.progress()
        except Exception:  # the actor may be restarting; the next second tells
            continue
        if last is not None:
            loss = "" if last["mean_loss"] is None else f", loss {last['mean_loss']:.3f}"
            watch(f"epoch {committed}/{epochs}{loss}")


def write_json(path: Path, value: Any) -> None:
    """JSON that appears under its name only when it is whole."""
    from raysel.files import write_text

    write_text(path, json.dumps(value, indent=1) + "\n")


def curve_table(selection: Selection, path: Path) -> None:
    """The KL after each pick as Parquet."""
    curve = selection.info.get("curve")
    if curve:
        pq.write_table(pa.table(curve), path)
