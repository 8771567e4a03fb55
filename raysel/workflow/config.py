"""The workflow file: YAML whose tree is the tree of objects it makes, checked before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysel.errors import ConfigError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rows(_Part):
    """Rows to read: ``path`` (a file, a directory or a list) and the column that holds the class."""

    path: str | list[str]
    label: str | None = None


class Embed(_Part):
    """How rows become vectors; the fields are those of ``raysel.fit_embedder`` and ``raysel.embed``."""

    embedder: str = "column"
    column: str = "embedding"
    normalize: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    on_error: Literal["raise", "drop", "null"] = "raise"


class SelectGIO(_Part):
    """Preselection by gradient information optimization; the fields are those of ``raysel.GIO``."""

    method: Literal["gio"]
    budget: float | int
    clusters: Annotated[int, Field(ge=1)] | None = 1500
    estimator: Literal["nearest", "nearest_mean", "average"] = "nearest"
    k: Annotated[int, Field(ge=1)] | None = None
    solver: Literal["exact", "gradient"] = "exact"
    init: Literal["mean", "jump", "prev_opt"] = "mean"
    within: Literal["random", "nearest"] = "random"


class SelectRandom(_Part):
    """A random subset; the fields are those of ``raysel.Random``."""

    method: Literal["random"]
    budget: float | int
    stratify: str | None = None


class Calibrate(_Part):
    """How thresholds are found; the fields are those of ``raysel.gime.sensitivity`` and ``raysel.gime.proxy``.

    The proxy is trained on subsets of the pool, ``rows`` each (a share or a number), and scored on the target.
    label: the column it learns, by default the pool's label.
    """

    features: list[str]
    label: str | None = None
    scoring: str | None = None
    mix: str
    rows: float | int
    count: Annotated[int, Field(ge=1)] = 120
    statistics: list[str] | None = None
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    false_discoveries: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Gime(_Part):
    """Metrics of the pool, and a choice by them before all others; the fields are those of ``raysel.gime.Binding`` and ``raysel.GIME``.

    by: a column whose groups are measured and chosen as a whole; days: windows of event time instead. Without either, rows
    are chosen. Without thresholds, floors and calibrate nothing is chosen, only measured.
    """

    binding: dict[str, Any]
    by: str | None = None
    days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    thresholds: dict[str, list[float | None]] = {}
    floors: dict[str, Annotated[int, Field(ge=1)]] = {}
    calibrate: Calibrate | None = None

    @property
    def chooses(self) -> bool:
        """Whether rows are left out by it."""
        return bool(self.thresholds or self.floors or self.calibrate)


class DynamicInfoBatch(_Part):
    """InfoBatch; the fields are those of ``raysel.InfoBatch``."""

    method: Literal["infobatch"]
    prune_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    delta: Annotated[float, Field(ge=0, le=1)] = 0.875
    threshold: Literal["mean"] | Annotated[float, Field(gt=0, lt=1)] = "mean"
    target_saving: Annotated[float, Field(gt=0, lt=1)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DynamicRandomPrune(_Part):
    """Random pruning with the same rescale; the fields are those of ``raysel.RandomPrune``."""

    method: Literal["random_prune"]
    prune_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    delta: Annotated[float, Field(ge=0, le=1)] = 0.875


class DynamicRandomSubset(_Part):
    """A fresh random subset in every epoch, not rescaled; the fields are those of ``raysel.RandomSubset``."""

    method: Literal["random_subset"]
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5


class DynamicRoundRobin(_Part):
    """Round one random permutation of the samples; the fields are those of ``raysel.RoundRobin``."""

    method: Literal["round_robin"]
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    delta: Annotated[float, Field(ge=0, le=1)] = 1.0


class Factors(_Part):
    """The sparse autoencoder whose units RepDiv scores samples by; the fields are those of ``raysel.fit_factors``.

    top_fraction: of ``raysel.factor_scores``. The vectors are those of the workflow's ``embed``.
    """

    units: Annotated[int, Field(ge=1)] | None = None
    k: Annotated[int, Field(ge=1)] = 32
    mode: Literal["topk", "paper"] = "topk"
    epochs: Annotated[int, Field(ge=1)] = 20
    rows: Annotated[int, Field(ge=1)] | None = 1 << 18
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1


class DynamicRepDiv(_Part):
    """RepDiv; the fields are those of ``raysel.RepDiv``, whose scores come from ``factors`` and the pool's label."""

    method: Literal["repdiv"]
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    a_min: Annotated[float, Field(ge=0, le=1)] = 0.2
    t_mid: Annotated[float, Field(ge=0, le=1)] = 0.6
    k_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    tail: Annotated[float, Field(ge=0, le=1)] = 0.15
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    factors: Factors = Factors()


class DynamicFull(_Part):
    """Every sample in every epoch."""

    method: Literal["full"]


Dynamic = (
    DynamicInfoBatch
    | DynamicRepDiv
    | DynamicRandomPrune
    | DynamicRandomSubset
    | DynamicRoundRobin
    | DynamicFull
)


def _members(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _members(arg)]


def _tags(model: Any) -> tuple[Any, ...]:
    method = model.model_fields.get("method")
    return getattr(method.annotation, "__args__", ()) if method else ()


METHODS: dict[str, Any] = {_tags(model)[0]: model for model in _members(Dynamic)}
"""The dynamic methods that a workflow can name."""


def factors_of(dynamic: Dynamic) -> Factors | None:
    """How the scores that the method needs are found; None where it needs none."""
    return dynamic.factors if isinstance(dynamic, DynamicRepDiv) else None


class Train(_Part):
    """Training on Ray Train: a classifier by ``raysel.train.loops.classify``.

    model: ``file.py:factory`` beside the workflow, or ``package.module:factory``; naming it runs its code.
    input: the column the model is fed with. batch_size: rows per worker and step.
    """

    model: str
    input: str
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    workers: Annotated[int, Field(ge=1)] = 2
    cpus_per_worker: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_failures: Annotated[int, Field(ge=0)] = 2


class Workflow(_Part):
    """A whole run. ``gime``, ``select`` and ``dynamic`` may each be left out; ``controls`` are trained beside the chain."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    pool: Rows
    target: Rows | None = None
    test: Rows | None = None
    gime: Gime | None = None
    embed: Embed = Embed()
    select: Annotated[SelectGIO | SelectRandom, Field(discriminator="method")] | None = None
    dynamic: Annotated[Dynamic, Field(discriminator="method")] = DynamicFull(method="full")
    train: Train
    controls: list[Literal["full", "random"]] = []

    def key(self, *parts: str) -> str:
        """A digest of the named parts of the configuration."""
        return digest({part: self.model_dump(mode="json")[part] for part in parts})


def digest(value: Any) -> str:
    """12 hexadecimal digits of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def load(path: str | os.PathLike[str], overrides: list[str] | None = None) -> Workflow:
    """Read and check a workflow file; ``overrides`` are ``key.path=value``, values as YAML.

    Paths in it are taken relative to the file. ConfigError names the key and, for a misspelt one, the right one.
    """
    file = Path(path)
    try:
        tree = yaml.load(file.read_text(), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: a workflow is a mapping of keys, this file holds {type(tree).__name__}.")
    for override in overrides or []:
        _set(tree, override)
    try:
        workflow = Workflow.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_sentence(error, tree)}") from None
    return _absolute(workflow, file.resolve().parent)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [
            self.construct_object(key, deep=True)
            for key, _ in node.value
            if key.tag != "tag:yaml.org,2002:merge"
        ]
        wrong = [f"the key '{key}' is given twice" for key in keys if keys.count(key) > 1]
        wrong += [
            f"the key '{key}' is not text; write it in quotes" for key in keys if not isinstance(key, str)
        ]
        if wrong:
            raise yaml.constructor.ConstructorError(None, None, wrong[0], node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1, which the library reads, takes 5e-4 for text; YAML 1.2 and everybody else take it for a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _set(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: write key=value, for example --set select.budget=0.2.")
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a group of keys.")
    try:
        tree[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML.") from error


def _sentence(error: ValidationError, tree: Any) -> str:
    """The first problem as a sentence; unknown keys come first, since the others may follow from them."""
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    problem = problems[0]
    place = [str(part) for part in problem["loc"]]
    here = tree
    path: list[str] = []
    for part in place:  # pydantic puts the tag of a union into the path; the file has no such key
        if isinstance(here, dict) and part in here:
            here = here[part]
            path.append(part)
        elif isinstance(here, list) and part.isdigit():
            here = here[int(part)]
            path.append(part)
        elif problem["type"] == "missing" and part == place[-1]:
            path.append(part)
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known(place, tree)
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = (
            f"did you mean '{'.'.join([*path[:-1], close[0]])}'?"
            if close
            else f"known are {', '.join(known)}."
        )
        return f"unknown key '{name}'; {hint}"
    if problem["type"] == "missing":
        return f"the key '{name}' is missing."
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = here.get("method") if isinstance(here, dict) else here
        return f"'{name}.method' is {given!r}; known are {problem['ctx'].get('expected_tags', 'gio, random, infobatch, full')}."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"'{name}' is {problem['input']!r}: {message}."


def _known(place: list[str], tree: Any) -> list[str]:
    """The keys that may stand where the last of ``place`` stands."""
    choices: list[Any] = [Workflow]
    for part in place[:-1]:
        fields = [choice.model_fields[part] for choice in choices if part in choice.model_fields]
        if fields:
            choices = _members(fields[0].annotation)
        else:  # not a key but the tag of a union's member
            choices = [choice for choice in choices if part in _tags(choice)]
    return list(choices[0].model_fields) if choices else []


def _absolute(workflow: Workflow, base: Path) -> Workflow:
    def place(path: str) -> str:
        # os.path's expanduser leaves alone a ~name that nobody has; Path's raises
        return path if "://" in path else os.path.normpath(base / os.path.expanduser(path))

    changed: dict[str, Any] = {}
    for name in ("pool", "target", "test"):
        rows = getattr(workflow, name)
        if rows is not None:
            path = place(rows.path) if isinstance(rows.path, str) else [place(p) for p in rows.path]
            changed[name] = rows.model_copy(update={"path": path})
    file, colon, factory = workflow.train.model.rpartition(":")
    if colon and file.endswith(".py"):
        changed["train"] = workflow.train.model_copy(update={"model": f"{place(file)}:{factory}"})
    changed["embed"] = workflow.embed.model_copy(
        update={"embedder": _embedder(workflow.embed.embedder, place)}
    )
    return workflow.model_copy(update=changed)


def _embedder(spec: str, place: Callable[[str], str]) -> str:
    """The embedder with its file or folder, where it names one, taken relative to the workflow."""
    kind, _, argument = spec.partition(":")
    if kind == "torch" and ".py:" in argument:
        file, _, factory = argument.partition(".py:")
        return f"{kind}:{place(file)}.py:{factory}"
    if kind == "sentence-transformers" and argument.startswith((".", "~", "/")):
        return f"{kind}:{place(argument)}"
    if kind == "timm" and argument.startswith("local-dir:"):
        return f"{kind}:local-dir:{place(argument.removeprefix('local-dir:'))}"
    return spec
