"""Import everything that a workflow names, and try it on a few rows, before anything expensive starts."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysel.core.registry import nearest
from raysel.data.decode import decode, is_text
from raysel.data.embedders.build import as_embedder, check_columns_of, named_embedder
from raysel.data.embedders.embedder import check_vectors
from raysel.data.listing import warn
from raysel.data.row_index import ID
from raysel.data.store import Column, column_of, described, values_of
from raysel.dynamic.check import check_policy
from raysel.errors import ConfigError, DataError, RayselError, first, reason_of, shown
from raysel.gime import measure
from raysel.train.adapters import frameworks
from raysel.train.optimizers import load_optimizer, load_schedule
from raysel.train.reduce import per_sample
from raysel.train.session import RESERVED
from raysel.train.tasks.task import Facts
from raysel.workflow.config import Gime, Method, Workflow
from raysel.workflow.footers import trained_roles
from raysel.workflow.inputs import Look, look
from raysel.workflow.steps import plan
from raysel.workflow.steps.arrays import class_column, made
from raysel.workflow.steps.embed import Embed
from raysel.workflow.steps.train import by_task, framework, load_factory, load_loop, load_trackers, own_code

_ROWS = 8
_ABSENT = frozenset(("na", "n/a", "#n/a", "nan", "null", "none", "nil", "-", "?"))
_SAMPLES = 100_000  # that a policy is tried on, at most


def load_check(workflow: Workflow, policies: Sequence[Method] = ()) -> None:
    """Build every object that the workflow names and run one batch of loss, backward and metric.

    Naming a file or a package in a workflow runs its code: this is where it runs first.

    Parameters
    ----------
    policies : sequence of Method
        Policies that are trained next to the workflow's own.

    Raises
    ------
    ConfigError
        With the workflow's key, and what the code raised.
    DataError
        For rows that cannot be used.
    """
    for method in workflow.select:
        selector = method.make(seed=workflow.seed)
        if not callable(getattr(selector, "select", None)):
            raise ConfigError(
                f"{method.where}: {method.spec} has no method 'select(pool, target)', so it is not a selector."
            )
        method.key()  # raises for what cannot be fingerprinted
    found = look(workflow)
    rows = _sample(found, "pool")
    if workflow.gime is not None and workflow.gime.metrics:
        _check_metrics(workflow.gime, rows)
    if workflow.trains:
        _check_train(found, rows, policies)
    for step in plan(workflow):
        if isinstance(step, Embed):
            _check_embedder(step, rows)


def _check_train(found: Look, rows: pa.Table, policies: Sequence[Method]) -> None:
    """Check what only a training uses: the task, the labels, the policies and the keys under ``train``."""
    workflow, task, (labels, count) = found.workflow, _check_task(found), _labels(found)
    for method in (workflow.dynamic, *policies):
        _check_policy(method, workflow, min(count, _SAMPLES))
    load_optimizer(workflow.train.optimizer, workflow.train.learning_rate)
    load_schedule(workflow.train.schedule)
    load_loop(workflow.train)
    if framework(workflow.train):
        frameworks.check(workflow.train)
    load_trackers(workflow)
    own_code(workflow.train)  # raises for what cannot be fingerprinted
    if by_task(workflow.train):  # what a loop of the user's own does with a batch is its own
        _check_training(found, task, rows, labels)


def unloaded(workflow: Workflow) -> list[str]:
    """Return the configuration paths whose code was not run, for ``raysel validate``."""
    methods: list[Method] = [*workflow.select, workflow.dynamic]
    found = [f"{method.where}: {method.spec}" for method in methods if not method.builtin]
    method = workflow.embed.method
    if not method.builtin or hasattr(named_embedder(method.spec), "open"):
        found.append(f"embed.embedder: {method.spec}")
    if workflow.gime is not None:
        found += [f"gime.metrics: {spec}" for spec in workflow.gime.metrics]
    train = workflow.train
    if not workflow.task.builtin:
        found.append(f"train.task: {workflow.task.spec}")
    found += [f"{tracker.where}: {tracker.spec}" for tracker in workflow.trackers if not tracker.builtin]
    named = {"model": train.model, "loop": train.loop, "schedule": train.schedule}
    return [
        *found,
        *(f"train.{key}: {spec}" for key, spec in named.items() if spec is not None and ":" in spec),
    ]


def _sample(found: Look, role: str) -> pa.Table:
    """Return a few rows of a role with ids, at least two."""
    parts: list[pa.Table] = []
    for table in found.scan(role, rows=_ROWS):
        parts.append(table)
        if sum(map(len, parts)) >= _ROWS:
            break
    if not sum(map(len, parts)):
        raise DataError(f"{role}.path: There are no rows in {found.listings[role].where}.")
    rows = pa.concat_tables(parts).slice(0, _ROWS)
    return pa.concat_tables([rows, rows]) if len(rows) == 1 else rows


def _labels(found: Look) -> tuple[list[Any], int]:
    """Return all labels of the pool, sorted, and its number of rows; read the labels of every role that has a use for them.

    Raises DataError for rows without a label, and for labels that the pool lacks.
    """
    known: list[Any] = []
    count = 0
    column = class_column(made(found.workflow))
    if column is None:
        return known, sum(len(table) for table in found.scan("pool", [], 1 << 20))
    for role in trained_roles(found):
        label = str(getattr(found.workflow, role).label) if column == found.workflow.pool.label else column
        labels: set[Any] = set()
        rows, missing = 0, list[int]()
        for table in found.scan(role, [label], 1 << 20):
            labels.update(table[label].unique().to_pylist())
            missing += table[ID].filter(_without_label(table[label])).to_pylist()
            rows += len(table)
        if missing:
            raise DataError(
                f"{role}.label: {len(missing):,} rows have no label in column '{label}' (sample_id {first(missing)}); label or drop "
                "them first."
            )
        ordered = sorted(labels, key=lambda value: (str(type(value)), value))
        _say_odd_labels(role, label, ordered)
        if role == "pool":
            known, count = ordered, rows
        elif strange := [each for each in ordered if each not in set(known)]:
            raise DataError(
                f"{role}.label: The label {first(strange)} in column '{label}' does not occur in the pool, whose classes are "
                f"{first(known, 10)}; add rows of that class to the pool, or drop it."
            )
    return known, count


def _without_label(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which rows have no label: none is stored, or a blank text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        return column.is_null()
    text = column.cast(pa.large_string())
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)


def _say_odd_labels(role: str, label: str, labels: Sequence[Any]) -> None:
    """Log labels that are likely to be no classes, or one class in two spellings."""
    texts = [text for text in labels if isinstance(text, str)]
    absent = [text for text in texts if text.strip().lower() in _ABSENT]
    if absent:
        warn(
            f"{role}.label: The text {first(map(repr, absent))} in column '{label}' counts as a class like any other; if it stands "
            "for a missing label, drop these rows."
        )
    spellings: dict[str, str] = {}
    for text in texts:
        plain = " ".join(text.split())
        other = spellings.setdefault(plain.lower() if len(plain) > 1 else plain, text)
        if other != text:
            warn(
                f"{role}.label: {other!r} and {text!r} in column '{label}' are two classes, although they differ only in spaces or "
                "in upper and lower case."
            )
            break


@contextmanager
def _naming(where: str, spec: str) -> Iterator[None]:
    """Turn what the user's code raises into a ConfigError that names the key."""
    try:
        yield
    except RayselError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit would end the run without a word
        line = (str(error).strip().splitlines() or [""])[0]
        frames = traceback.extract_tb(error.__traceback__)
        place = [f" in line {frame.lineno}" for frame in frames if spec.startswith(f"{frame.filename}:")]
        raise ConfigError(
            f"{where}: {spec} raised {type(error).__name__} ({line.rstrip('.') or 'no message'}){''.join(place[-1:])}."
        ) from error


def _check_policy(method: Method, workflow: Workflow, count: int) -> None:
    made = method.make(seed=workflow.seed)
    if method.builtin:
        return
    method.key()
    with _naming(method.where, method.spec):
        if getattr(method.type, "needs_scores", False):
            zeros = np.zeros(count, np.float32)
            made = made.with_scores(pa.table({ID: np.arange(count), "rep": zeros, "div": zeros}))
        if hasattr(made, "for_ids"):
            made = made.for_ids(count)
        try:
            check_policy(made, count, workflow.train.epochs, workflow.seed)
        except ConfigError as error:
            raise ConfigError(f"{method.where}: {error}") from None


def _check_metrics(settings: Gime, rows: pa.Table) -> None:
    """Measure a few rows by the metrics of the user's own, and look for the statistics that thresholds name."""
    try:
        found = measure(rows, settings.binding, metrics=settings.metrics)
    except ConfigError as error:
        raise ConfigError(f"gime.{error}") from error
    known = {f"{row['metric']}.{row['statistic']}" for row in found.to_pylist()}
    for name in settings.thresholds:
        if name not in known:
            raise ConfigError(f"gime.thresholds.{name}: There is no such statistic. {nearest(name, known)}")


def _check_embedder(step: Embed, rows: pa.Table) -> None:
    """Embed a few rows, where nothing has to be learned from all of them first."""
    settings, made = step.settings, step.embedder()
    spec = settings.method.spec
    if not set(settings.columns) <= set(rows.column_names):
        return  # the step's own check says which columns there are
    first = rows[settings.columns[0]][0].as_py()
    if isinstance(first, list):
        step.check_width(made, np.size(first))
    if hasattr(made, "fit"):
        return
    embedder = as_embedder(made)
    with _naming("embed.embedder", spec):
        check_columns_of(embedder, embedder.name, settings.columns)
        few = decode(
            rows, settings.columns, getattr(embedder, "takes", "any"), getattr(embedder, "prepare", None)
        )
        if few.rejected:
            return  # what happens to rows without a value is up to embed.on_error
        check_vectors(embedder(few.rows), few.ids, embedder.name)


def _check_task(found: Look) -> Any:
    """Return the task, whose code is run here. Raises ConfigError for one that lacks what a task must have."""
    workflow = found.workflow
    task, spec = made(workflow), workflow.task.spec
    workflow.task.key()
    wanted = ["columns", "metric", "direction"]
    if by_task(workflow.train):
        wanted += ["model", "collate", "losses", "sums", "metrics"]
    with _naming("train.task", spec):  # an attribute may be computed
        missing = [name for name in wanted if not hasattr(task, name)]
    if missing:
        raise ConfigError(
            f"train.task: {spec} has no '{missing[0]}', so it is not a task; see the guide 'A task of your own'."
        )
    if task.direction not in ("max", "min"):
        raise ConfigError(
            f"train.task: {spec}.direction is {shown(task.direction)}; it should be 'max' or 'min'."
        )
    if not isinstance(task.metric, str):
        raise ConfigError(
            f"train.task: {spec}.metric is {shown(task.metric)}; it should be the name of a metric."
        )
    columns, field = task.columns, getattr(task, "classes", None)
    if not isinstance(columns, (list, tuple)) or not all(isinstance(name, str) for name in columns):
        raise ConfigError(
            f"train.task: {spec}.columns is {shown(columns)}; it should be a list of column names."
        )
    if len(set(columns)) < len(columns):
        raise ConfigError(f"train.task: {spec}.columns is {shown(columns)}; name each column once.")
    for name in columns:
        found.check_column("pool", name, f"train.task: {spec}.columns")
    if field is not None and (not isinstance(field, str) or getattr(task, field, None) not in columns):
        raise ConfigError(
            f"train.task: {spec}.classes is {shown(field)}; it should be None, or the name of a field of the task that holds one of the names in 'columns'."
        )
    return task


def _check_training(found: Look, task: Any, rows: pa.Table, labels: list[Any]) -> None:
    """One batch through the task: losses, their gradient and the metrics; and rows of other roles that differ from the pool's."""
    import torch

    workflow = found.workflow
    spec = workflow.task.spec
    given = ("train.model", workflow.train.model) if workflow.train.model else ("train.task", f"{spec}.model")

    def within(method: str) -> Any:
        """Name the task of the user's own whose method fails; of a built-in one, it is the model that fails."""
        return _naming(*(given if workflow.task.builtin else ("train.task", f"{spec}.{method}")))

    column = class_column(task)
    classes = {} if column is None else {column: labels}
    columns, values = _columns(task, rows, classes)
    facts = Facts(columns, classes, load_factory(workflow.train))
    state = torch.random.get_rng_state()
    try:
        with _naming(*given):
            model: Any = task.model(facts)
        if not isinstance(model, torch.nn.Module):
            raise ConfigError(
                f"{given[0]}: {given[1]} returned a {type(model).__name__}, not a torch.nn.Module."
            )
        if framework(workflow.train):
            frameworks.check_model(str(workflow.train.loop), model)
        _check_parameters(model, workflow.train, given)
        if workflow.train.data == "stream" and hasattr(task, "prepare"):
            with within("prepare"):
                values = task.prepare(values)
        with within("collate"):
            batch = task.collate(values, torch.Generator().manual_seed(workflow.seed))
        if hasattr(task, "check"):
            with within("check"):
                task.check(model, batch, facts)
        with within("losses"):
            made = task.losses(model, batch)
        if isinstance(made, tuple) and len(made) != 2:
            raise ConfigError(
                f"train.task: {spec}.losses returned a tuple of {len(made)}; return the losses, or the losses and a mask."
            )
        losses, mask = made if isinstance(made, tuple) else (made, None)
        try:
            each, _ = per_sample(losses, len(rows), mask)
        except DataError as error:
            raise ConfigError(f"train.task: {spec}.losses: {error}") from None
        if not each.requires_grad:
            raise ConfigError(
                f"{given[0]}: The losses have no gradient; leave some parameters of the model trainable, and do not detach its outputs."
            )
        initial = float(each.detach().mean())
        numbers = [array for array in values.values() if array.dtype.kind == "f"]
        # What is wrong with rows is said by the steps that read them all.
        sound = all(np.isfinite(array).all() for array in numbers)
        if not math.isfinite(initial) and sound:
            raise ConfigError(
                f"{given[0]}: The first loss of {given[1]} is {initial}; check the columns {', '.join(map(repr, task.columns))} "
                "and the model's initial weights."
            )
        model.eval()
        with within("collate without a generator"):
            batch = task.collate(values, None)
        with within("collate without a generator"):
            fewer = task.collate(
                {name: array[: max(1, len(array) - 1)] for name, array in values.items()}, None
            )
        _check_metrics_of(task, spec, model, (batch, fewer), within, sound)
        for role in trained_roles(found):
            if role != "pool":
                _check_other_rows(found, task, role, model, columns, classes)
        with within("losses"):
            each.mean().backward()
        unused = [
            name for name, value in model.named_parameters() if value.requires_grad and value.grad is None
        ]
        if unused and workflow.train.most_workers > 1 and workflow.train.parallel == "ddp":
            raise ConfigError(
                f"{given[0]}: The losses do not depend on these parameters of {given[1]}: {first(unused)}. Several workers cannot "
                "train such a model: remove the parameters, set requires_grad to false for them, or set train.workers to 1."
            )
        with _naming("train.optimizer", "The first step"):
            optimizer = load_optimizer(workflow.train.optimizer, workflow.train.learning_rate)(
                model.parameters()
            )
            optimizer.step()
        with _naming("train.optimizer", "The method state_dict, which checkpoints need,"):
            optimizer.state_dict()
    finally:
        torch.random.set_rng_state(state)


def _check_parameters(model: Any, settings: Any, given: tuple[str, str]) -> None:
    """Raise ConfigError for a model that several workers, a checkpoint or the file of the weights cannot take."""
    import torch

    shapeless = [name for name, value in model.named_parameters() if torch.nn.parameter.is_lazy(value)]
    if shapeless and (settings.most_workers > 1 or settings.parallel == "fsdp"):
        raise ConfigError(
            f"{given[0]}: These parameters of {given[1]} get their shape only from the first batch: {first(shapeless)}. Several "
            "workers, or FSDP, cannot train such a model: create its layers with all sizes, or use one worker without FSDP."
        )
    strange = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ConfigError(
            f"{given[0]}: The state_dict of {given[1]} has entries that are not tensors: {first(strange)}. raysel saves the weights "
            "of the trained model in a file that holds only tensors; keep these values out of the state_dict, for example as plain "
            "attributes of the model."
        )


def _check_metrics_of(
    task: Any, spec: str, model: Any, batches: tuple[Any, Any], within: Any, sound: bool
) -> None:
    """Check the metrics of a few rows, which are ``sound`` if their numbers are finite, and the sums of fewer rows."""
    import torch

    with torch.no_grad(), within("sums"):
        sums, others = (task.sums(model, batch) for batch in batches)
    for found in (sums, others):
        tensors = isinstance(found, Mapping) and all(
            isinstance(value, torch.Tensor) for value in found.values()
        )
        if not tensors or not all(isinstance(name, str) for name in found):
            raise ConfigError(f"train.task: {spec}.sums must return a dict of tensors, got {shown(found)}.")
    shapes, fewer = ({name: tuple(value.shape) for name, value in found.items()} for found in (sums, others))
    if shapes != fewer:
        raise ConfigError(
            f"train.task: {spec}.sums returned tensors of the shapes {shapes} for one batch, and {fewer} for a batch with one "
            "row fewer. Sums of different batches are added, so their shapes must be equal; return sums over the rows of the batch."
        )
    with within("metrics"):
        metrics = task.metrics({name: value.cpu().double() for name, value in sums.items()})
    if not isinstance(metrics, Mapping) or task.metric not in metrics:
        names = ", ".join(metrics) if isinstance(metrics, Mapping) else type(metrics).__name__
        raise ConfigError(
            f"train.task: {spec}.metrics returned {names or 'nothing'}, but not '{task.metric}', the metric that the attribute 'metric' "
            "of the task names."
        )
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise ConfigError(f"train.task: The metric name {shown(name)} of {spec} must be text.")
        if name in RESERVED or name == "evaluation_seconds":  # which the built-in loop reports
            raise ConfigError(
                f"train.task: The metric name '{name}' of {spec} is reserved by raysel; use another name."
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"train.task: The metric '{name}' of {spec} is {shown(value)}; return a number."
            ) from None
        if name == task.metric and sound and not math.isfinite(number):
            raise ConfigError(
                f"train.task: The metric '{name}' of {spec} is {number} for the first rows of the pool and the initial weights; "
                "return a finite number for any rows."
            )


def _columns(
    task: Any, rows: pa.Table, classes: Mapping[str, list[Any]], names: Mapping[str, str] | None = None
) -> tuple[dict[str, Column], dict[str, np.ndarray]]:
    """Return what the task's columns hold, and the values of a few rows; a class that is not known is the first one."""
    ids, ragged = rows[ID].to_numpy(), bool(getattr(task, "ragged", False))
    columns, values = dict[str, Column](), {ID: ids}
    for name in task.columns:
        column = rows[(names or {}).get(name, name)]
        if name in classes:
            code = {value: number for number, value in enumerate(classes[name])}
            columns[name] = Column("array", "int64")
            values[name] = np.array([code.get(value, 0) for value in column.to_pylist()], np.int64)
        else:
            columns[name], values[name] = (
                column_of(column, name, ids, ragged),
                values_of(column, name, ids, ragged),
            )
    return columns, values


def _check_other_rows(
    found: Look,
    task: Any,
    role: str,
    model: Any,
    columns: Mapping[str, Column],
    classes: Mapping[str, list[Any]],
) -> None:
    """Raise DataError if the model fails on a role whose columns hold another shape or type than the pool's."""
    import torch

    flow = found.workflow
    names = {str(flow.pool.label): str(getattr(flow, role).label)} if flow.pool.label is not None else {}
    own, values = _columns(task, _sample(found, role), classes, names)
    other = [name for name in columns if own[name] != columns[name]]
    if not other:
        return
    try:
        with torch.no_grad():
            task.sums(model, task.collate(values, None))
    except Exception as error:  # of the model's code
        name = other[0]
        kinds = [described(held) for held in (own[name], columns[name])]
        raise DataError(
            f"{role}.path: Column '{name}' holds {kinds[0]}, but the pool's holds {kinds[1]}, and the model cannot take "
            f"both ({reason_of(error)}); write the columns with one type."
        ) from error
