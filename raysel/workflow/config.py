"""The workflow file: YAML whose keys are the fields of the methods it names, checked before anything starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from raysel.cluster.code import load_object
from raysel.core.fingerprint import fingerprint
from raysel.core.parameters import build, default_of, describe, keys
from raysel.core.registry import Registry, is_reference, nearest
from raysel.errors import ConfigError, shown
from raysel.gime import Binding
from raysel.registry import EMBEDDERS, POLICIES, SELECTORS, TASKS, TRACKERS
from raysel.train.settings import Train
from raysel.workflow import yaml_file

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Rows:
    """Files with the rows of the pool, the target, the rows to avoid, the validation data or the test data.

    Attributes
    ----------
    path : str or list of str
        The rows, in any format that `raysel.read` reads from files: Parquet, CSV, JSON, Arrow, NumPy or WebDataset
        files, patterns and directories of them, a directory of images, a Delta table, or a data set that Hugging Face
        saved. Paths are relative to the folder of the workflow file. Files that are not Parquet are converted once,
        into the run directory.
    label : str, optional
        Column with the label of each row: its class, or the number to predict. The pool, the validation data and the test
        data need this column, unless the task uses no labels, like a language model.
    trust : {"content", "mtime"}
        How a changed file is detected: by a digest of all its bytes (content), or only by its size and
        modification time (mtime).
    encoding : str, optional
        Character encoding of CSV and JSON files. The default is UTF-8.
    """

    path: str | tuple[str, ...]
    label: str | None = None
    trust: Literal["content", "mtime"] = "content"
    encoding: str | None = None

    @property
    def paths(self) -> list[str]:
        """The paths as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


@dataclass(frozen=True)
class Embed:
    """Settings for computing one vector per row; see `raysel.fit_embedder` and `raysel.embed`.

    Attributes
    ----------
    embedder : str or mapping
        Name of an embedder, as in `raysel.fit_embedder`. If an embedder of your own has parameters, give a mapping: its
        key ``method`` names the embedder, and the other keys are the parameters.
    column : str or list of str
        Column from which the vectors are computed, or a list of columns for the embedder ``table``.
    normalize : bool
        Whether to scale each vector to unit length.
    dtype : {"float32", "float16"}
        Type in which the vectors are stored.
    on_error : {"raise", "drop", "null"}
        What to do with a row without a usable value: raise an error, drop the row, or keep the row with a
        null in place of the vector.
    version : str, optional
        Text that identifies the code and the weights of the embedder. Give a version if the code or the
        weights cannot be hashed, and change the version whenever the vectors may change.
    """

    embedder: str | dict[str, Any] = "column"
    column: str | Annotated[list[str], Field(min_length=1)] = "embedding"
    normalize: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    on_error: Literal["raise", "drop", "null"] = "raise"
    version: str | None = None

    @cached_property
    def method(self) -> Method:
        """The embedder as a method of the registry."""
        tree = self.embedder if isinstance(self.embedder, dict) else {"method": self.embedder}
        return Method.of(tree, EMBEDDERS, "embed.embedder")

    @property
    def columns(self) -> list[str]:
        """The columns from which the vectors are computed."""
        return [self.column] if isinstance(self.column, str) else self.column


@dataclass(frozen=True)
class Calibrate:
    """Settings for finding thresholds by training proxy models; see `raysel.gime.sensitivity` and `raysel.gime.proxy`.

    The proxy models are small. They are trained on random subsets of the pool, to find out which metrics of a subset
    predict the performance of a model that was trained on it.

    Attributes
    ----------
    features : list of str
        Input columns of the proxy models, the small models that are trained on the subsets.
    mix : str
        Column by which the subsets differ: the values of this column have different shares in each subset.
    rows : float or int
        Size of a subset: a share of the pool (float) or a number of rows (int).
    label : str, optional
        Column that the proxy models predict. By default, they predict the column that the key
        ``pool.label`` names.
    scoring : str, optional
        Name of the scikit-learn scorer that measures the performance of a proxy model.
    count : int
        Number of subsets.
    statistics : list of str, optional
        Statistics of the metrics for which a calibration looks for thresholds, such as "variety.classes". By default,
        these are all statistics that differ between the subsets.
    tolerance : float
        Largest accepted loss of performance: how much worse a model trained on a subset may be than a model trained on
        the complete pool.
    share : float
        A threshold is accepted if, of the subsets that satisfy it, at least this share has an accepted performance (see
        'tolerance').
    confidence : float
        Confidence level with which ``share`` must be reached, for all thresholds together.
    false_discoveries : float
        Upper limit for the expected share of false discoveries: statistics that are chosen although the
        performance does not depend on them.
    """

    features: list[str]
    mix: str
    rows: float | int
    label: str | None = None
    scoring: str | None = None
    count: Positive = 120
    statistics: list[str] | None = None
    tolerance: NotNegative = 0.01
    share: Share = 0.9
    confidence: Share = 0.95
    false_discoveries: Share = 0.1


@dataclass(frozen=True)
class Gime:
    """Settings of GIME: metrics of the pool (the rows to select from), and limits on the metrics of the selected rows.

    A metric, such as volume or variety, describes a set of rows by one or more numbers. GIME selects rows before the
    selectors under ``select``, which then select among these rows.

    Attributes
    ----------
    binding : mapping
        The meaning of each column, such as which column has the time of an event; see `raysel.gime.Binding`.
    by : str, optional
        Column that divides the pool into groups: rows with the same value are one group. Each group is measured. Either all
        rows of a group are selected, or none.
    days : float, optional
        Length of a time window in days, to be given instead of ``by``. Each group then consists of the rows whose event
        time is in one window.
    metrics : list of str
        Metrics of your own, named as ``file.py:Name``. Metrics of your own are measured in addition to the
        eleven metrics of GIME.
    thresholds : mapping of str to [float or null, float or null]
        Limits on the metrics of the selected rows. Maps a statistic, a number that a metric consists of, such as
        "variety.classes", to its minimum and maximum; null for no limit.
    floors : mapping of str to int
        Minimum number of selected rows per class.
    calibrate : mapping, optional
        Settings of a calibration, which finds thresholds by training small models on subsets of the pool.

    Without thresholds, floors and calibrate the metrics are measured and no row is left out.
    """

    binding: Binding
    by: str | None = None
    days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    metrics: list[str] = field(default_factory=list)
    thresholds: dict[str, list[float | None]] = field(default_factory=dict)
    floors: dict[str, Positive] = field(default_factory=dict)
    calibrate: Calibrate | None = None

    @property
    def selects(self) -> bool:
        """Whether rows are left out."""
        return bool(self.thresholds or self.floors or self.calibrate)


@dataclass(frozen=True)
class Factors:
    """Settings of the sparse autoencoder with which the policy RepDiv scores the samples.

    Attributes
    ----------
    units : int, optional
        Number of hidden units of the autoencoder. By default, there are 8 units per dimension of the vectors.
    k : int
        Number of hidden units that are active for each sample.
    mode : {"topk", "paper"}
        Variant of the autoencoder: ``topk`` keeps the largest values of the hidden units after negative values were set to 0;
        ``paper`` keeps the values that are largest in absolute value, as in the paper of RepDiv.
    epochs : int
        Number of epochs that the autoencoder is trained for.
    rows : int, optional
        Number of rows that the autoencoder is trained on; null for all rows.
    top_fraction : float
        Share of the hidden units that count as frequent: the units that are active for the most samples. Units that are
        active for no sample are not counted. The score for representative samples uses only frequent units.
    """

    units: Positive | None = None
    k: Positive = 32
    mode: Literal["topk", "paper"] = "topk"
    epochs: Positive = 20
    rows: Positive | None = 1 << 18
    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1


@dataclass(frozen=True)
class Method:
    """A component that the workflow names, with its parameters. It is built when it is first needed.

    Attributes
    ----------
    spec : str
        Name in the registry, ``file.py:Name`` or ``package.module:Name``.
    parameters : dict
        Fields of the class, as YAML gives them.
    registry : Registry
        Where the name is looked up.
    where : str
        Configuration path.
    version : str, optional
        Text that identifies the code of your own selector or policy if raysel cannot detect its changes, or if it
        reads files. Change the version whenever the code or these files change.
    """

    spec: str
    parameters: dict[str, Any]
    registry: Registry = field(compare=False)
    where: str = field(compare=False)
    version: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, tree: Any, registry: Registry, where: str, **defaults: Any) -> Method:
        """Take ``method:`` out of a mapping. Raises ConfigError for anything else.

        ``defaults`` are values of fields that the mapping leaves out, if the class has such fields.
        """
        if not isinstance(tree, Mapping):
            raise ConfigError(f"'{where}' is {shown(tree)}; it should be a mapping with the key 'method'.")
        parameters = dict(tree)
        spec = parameters.pop("method", None)
        if not isinstance(spec, str):
            given = "missing" if spec is None else f"{shown(spec)}, which is not a name"
            raise ConfigError(
                f"'{where}.method' is {given}. The known names are {', '.join(registry.names())}. "
                "To use a class of your own, name it as file.py:Name."
            )
        found = cls(spec, parameters, registry, where, defaults=defaults)
        if not found.builtin and registry is not EMBEDDERS and "version" in parameters:
            version = parameters.pop("version")
            if version is not None and not isinstance(version, str):
                raise ConfigError(f"'{where}.version' is {version!r}; it should be text. Write it in quotes.")
            found = dataclasses.replace(found, version=version)
        if found.builtin and registry is EMBEDDERS and parameters:
            raise ConfigError(
                f"'{where}': The embedder '{spec}' takes no parameters except those in its name; remove "
                f"{', '.join(parameters)}."
            )
        if found.builtin and registry is not EMBEDDERS:
            found.make(
                **defaults
            )  # its parameters are checked at once; code of the user's own is not run yet
        elif not is_reference(spec) and spec.partition(":")[0] not in registry.names():
            registry.find(spec, f"'{where}'" if registry is EMBEDDERS else f"'{where}.method'", load_object)
        return found

    @property
    def builtin(self) -> bool:
        """Whether the component is part of raysel, so that looking it up runs no other code."""
        name = self.spec.partition(":")[0] if self.registry is EMBEDDERS else self.spec
        return name in self.registry.builtin

    @cached_property
    def type(self) -> Any:
        """The class or function. Runs the code of a file or package that ``spec`` names."""
        return self.registry.find(self.spec, f"{self.where}.method", load_object)

    def make(self, **defaults: Any) -> Any:
        """Build the component.

        Parameters
        ----------
        **defaults
            Values of fields that the workflow leaves out, such as the seed. Ignored where there is no such field.
        """
        made, where = self.type, self.where
        if isinstance(made, type) and dataclasses.is_dataclass(made):
            missing = {
                name: value
                for name, value in {**self.defaults, **defaults}.items()
                if name in keys(made) and name not in self.parameters
            }
            return build(made, {**self.parameters, **missing}, where)
        if not isinstance(made, type):
            if self.parameters:
                raise ConfigError(
                    f"{where}: '{self.spec}' is not a class, so it takes no parameters; remove {', '.join(self.parameters)}."
                )
            return made
        try:
            return made(**self.parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: {self.spec} cannot be created with these parameters ({error}); correct them. If you write {self.spec} as a "
                "frozen dataclass, raysel names the parameter that is wrong."
            ) from error

    @property
    def title(self) -> str:
        """Name in reports and progress lines: the class's ``title``, else its name."""
        return str(getattr(self.type, "title", None) or getattr(self.type, "__name__", self.spec))

    def describe(self) -> dict[str, Any]:
        """Return the method with every parameter, defaults included, as JSON types; runs no code of the user's."""
        if self.builtin and isinstance(self.type, type) and dataclasses.is_dataclass(self.type):
            return {"method": self.spec, **describe(self.make())}
        version = {} if self.version is None else {"version": self.version}
        return {"method": self.spec, **self.parameters, **version}

    def key(self) -> Any:
        """Return everything that decides what the component does: its parameters, and the code if it is your own."""
        if self.builtin:
            return self.describe()
        made = self.make() if isinstance(self.type, type) else self.type
        parameters = describe(made) if dataclasses.is_dataclass(made) else self.parameters
        name = self.spec.rpartition(":")[2]
        if self.version is not None:
            return [name, parameters, "version", self.version]
        remedy = f"give version next to method, at '{self.where}'"
        return [name, parameters, fingerprint(self.type, f"method '{self.spec}'", remedy)]


@dataclass(frozen=True)
class Workflow:
    """All settings of a run: the data, the methods and the training.

    Attributes
    ----------
    name : str
        Name of the run. The default run directory is runs/NAME.
    seed : int
        Seed of all random numbers of the run.
    pool : Rows
        Rows to select from.
    target : Rows, optional
        Sample of the data that the model is for.
    avoid : Rows, optional
        Rows that must not be learned. The selectors ``gio``, ``density_ratio`` and ``nearest`` select no pool row that
        resembles these rows more than the target rows.
    test : Rows, optional
        Rows that measure the metrics of the trained model and are used for nothing else.
    validation : Rows or float, optional
        Rows for decisions during the training, such as early stopping. A float is a share of the target rows,
        or of the pool rows if the target has no labels. The validation rows are chosen by a hash of their
        ids, and are removed from the target or the pool.
    gime : Gime, optional
        Settings of GIME, which describes the pool (the rows to select from) by eleven metrics, such as volume and variety,
        and selects rows whose metrics lie within limits, before the selectors under ``select`` run.
    embed : Embed
        Settings for computing one vector per row, by which selectors compare rows.
    factors : Factors
        Settings of the sparse autoencoder with which the policy RepDiv scores the samples.
    train : Train, optional
        Model to train, and settings of its training on Ray Train. Without this key, ``raysel run`` selects rows and trains
        no model.
    select : Method or list of Method
        Selector, or a list of selectors that are applied one after another. With null, all rows are selected.
    dynamic : Method
        Policy that selects the samples of each epoch from the selected rows. By default, each epoch trains on all
        selected rows.
    controls : list of {"full", "random"}
        Further trainings, with which the training on the selected rows is compared: full (on the complete pool), and random
        (on a random subset of the pool with as many rows as the workflow selects).
    trains : bool
        Whether the workflow has the key ``train``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    pool: Rows
    train: Train = field(default=Train())
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    target: Rows | None = None
    avoid: Rows | None = None
    validation: Rows | Share | None = None
    test: Rows | None = None
    gime: Gime | None = None
    embed: Embed = Embed()
    factors: Factors = Factors()
    controls: list[Literal["full", "random"]] = field(default_factory=list)
    select: tuple[Method, ...] = field(default=(), metadata={"yaml": False})
    dynamic: Method = field(default=Method("full", {}, POLICIES, "dynamic"), metadata={"yaml": False})
    trains: bool = field(default=True, metadata={"yaml": False})

    def rows(self, role: str) -> Rows | None:
        """Rows of a role, None where the workflow has no such files."""
        found = getattr(self, role)
        return found if isinstance(found, Rows) else None

    @cached_property
    def task(self) -> Method:
        """The task as a method of the registry; ``train.input`` and ``pool.label`` are defaults of its fields."""
        if not self.trains:
            return Method("classification", {}, TASKS, "train.task")  # a label of the pool is a class
        given = self.train.task
        tree = given if isinstance(given, dict) else {"method": given}
        if isinstance(tree.get("method"), str) and tree["method"] in TASKS.builtin:
            needs = keys(TASKS.find(tree["method"], "train.task", load_object))
            if "label" in needs and "label" not in tree and self.pool.label is None:
                raise ConfigError(
                    "The key 'pool.label' is missing: training needs the column that holds the class or the number to predict."
                )
            if "input" in needs and "input" not in tree and self.train.input is None:
                raise ConfigError(
                    "The key 'train.input' is missing: training needs the column with the input of the model."
                )
        given = {"input": self.train.input, "label": self.pool.label}
        given = {name: value for name, value in given.items() if value is not None}
        for name, key in (("input", "train.input"), ("label", "pool.label")):
            if name in given and tree.get(name, given[name]) != given[name]:
                raise ConfigError(
                    f"'train.task.{name}' is {shown(tree[name])}, but '{key}', which sets the same parameter, is {shown(given[name])}; remove "
                    "one of the two keys."
                )
        return Method.of(tree, TASKS, "train.task", **given)

    @cached_property
    def trackers(self) -> list[Method]:
        """The trackers as methods of the registry."""
        given = self.train.track
        many = given if isinstance(given, list) else [] if given is None else [given]
        trees = [one if isinstance(one, dict) else {"method": one} for one in many]
        where = [f"train.track.{at}" if isinstance(given, list) else "train.track" for at in range(len(many))]
        return [Method.of(tree, TRACKERS, place) for tree, place in zip(trees, where, strict=True)]

    @property
    def roles(self) -> list[str]:
        """Roles that have files of their own."""
        return [
            role for role in ("pool", "target", "avoid", "validation", "test") if self.rows(role) is not None
        ]

    def describe(self) -> dict[str, Any]:
        """Return the complete configuration as JSON types."""
        found = describe(self)
        found["embed"]["embedder"] = self.embed.embedder
        found["train"]["task"], found["train"]["track"] = self.train.task, self.train.track
        found["select"] = [method.describe() for method in self.select]
        found["dynamic"] = self.dynamic.describe()
        return found if self.trains else {**found, "train": None}


def digest(value: Any) -> str:
    """12 hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def difference(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Paths at which two configurations differ, with the value in each; a list of one mapping is like the mapping."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            entry
            for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key)
            for entry in difference(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        ]
    if (
        isinstance(one, list)
        and isinstance(other, list)
        and len(one) == len(other)
        and _mappings(one + other)
    ):
        return [
            entry
            for number, pair in enumerate(zip(one, other, strict=True))
            if pair[0] != pair[1]
            for entry in difference(*pair, f"{path}.{number}" if len(one) > 1 else path)
        ]
    return [(path, one, other)]


def _mappings(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def load(path: str | os.PathLike[str], overrides: list[str] | None = None) -> Workflow:
    """Read and check a workflow file.

    Parameters
    ----------
    path : str or path-like
        The YAML file. Paths in it are relative to its folder.
    overrides : list of str, optional
        ``key.path=value`` with the value as YAML.

    Raises
    ------
    ConfigError
        For what is wrong with a key, with the nearest known one. No code that the file names is run.
    """
    tree = read(path, overrides)
    file = Path(path)
    try:
        return parse(tree, file.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error.__cause__


def read(path: str | os.PathLike[str], overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the YAML values of a workflow file with the overrides, not checked yet. Raises ConfigError if there are none."""
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(
            f"{shown(path)} is not a workflow; give the path of a YAML file, or what raysel.workflow.config.parse returns."
        )
    file, tree = Path(path), yaml_file.read(path)
    if not isinstance(tree, dict):
        holds = "is empty" if tree is None else f"holds {shown(tree)}"
        raise ConfigError(f"{file} {holds}, but a workflow must be a mapping of keys.")
    for override in overrides or []:
        _set(tree, override)
    return tree


def parse(tree: Mapping[str, Any], base: str | os.PathLike[str] = ".") -> Workflow:
    """Return the workflow of a tree of YAML values, with paths relative to the folder ``base``."""
    known = [*keys(Workflow), "select", "dynamic"]
    for name in tree:
        if name not in known:
            raise ConfigError(f"The key '{name}' is unknown. {nearest(name, known)}")
    tree = absolute(dict(tree), Path(base).resolve())
    select = tree.pop("select", None)
    dynamic = tree.pop("dynamic", {"method": "full"})
    flow = dataclasses.replace(build(Workflow, tree), trains="train" in tree)
    if isinstance(select, list):
        methods = [Method.of(one, SELECTORS, f"select.{at}") for at, one in enumerate(select)]
    else:
        methods = [] if select is None else [Method.of(select, SELECTORS, "select")]
    flow.embed.method, flow.trackers  # noqa: B018 (raises for an embedder or a tracker that is not known)
    if flow.pool.label is not None:  # without one, steps.check says what is missing
        flow.task  # noqa: B018 (and for a task)
    flow = dataclasses.replace(flow, select=tuple(methods), dynamic=Method.of(dynamic, POLICIES, "dynamic"))
    if not flow.trains:
        _check_selection(flow)
    return flow


def open_workflow(workflow: Workflow | str | os.PathLike[str]) -> Workflow:
    """Return a workflow that has loaded no code yet; an earlier run of the same object may have, and the files may have changed."""
    if not isinstance(workflow, Workflow):
        return load(workflow)
    methods = tuple(map(dataclasses.replace, workflow.select))
    return dataclasses.replace(
        workflow,
        select=methods,
        dynamic=dataclasses.replace(workflow.dynamic),
        embed=dataclasses.replace(workflow.embed),
    )


def _check_selection(flow: Workflow) -> None:
    """Raise ConfigError unless a workflow without the key ``train`` selects rows and has no key for a training."""
    fields = {field.name: field for field in dataclasses.fields(Workflow)}
    for name in ("dynamic", "controls", "factors", "validation", "test"):
        if getattr(flow, name) != default_of(fields[name]):
            raise ConfigError(
                f"The key '{name}' has no effect without the key 'train'; add 'train', or remove '{name}' to only select rows."
            )
    if not flow.select and not (flow.gime is not None and flow.gime.selects):
        raise ConfigError(
            "The workflow has neither the key 'train' nor a selection of rows; add 'train', 'select', or limits under 'gime'."
        )


def _set(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: Write key=value, for example --set select.budget=0.2.")
    *parents, last = path.split(".")
    here: Any = tree
    for key in parents:
        if isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        elif isinstance(here, dict):
            here = here.setdefault(key, {})
        if not isinstance(here, (dict, list)):
            raise ConfigError(
                f"--set {override}: '{key}' holds a single value, so there are no keys below it; set '{key}' itself."
            )
    value = yaml_file.parse(text, f"--set {override}: The value")
    if isinstance(here, list):
        if not last.isdecimal() or int(last) >= len(here):
            raise ConfigError(
                f"--set {override}: '{last}' is not an index of the list, which has {len(here)} entries; the first is 0."
            )
        here[int(last)] = value
    else:
        here[last] = value


# ---- paths relative to the file ------------------------------------------------------------------------------


def absolute(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the values of a workflow with its relative paths made absolute."""

    def place(path: str) -> str:
        # os.path's expanduser leaves alone a ~name that nobody has; Path's raises.
        return path if "://" in path else os.path.normpath(base / os.path.expanduser(path))

    def spec(text: Any) -> Any:
        """``file.py:Name`` with the file made absolute."""
        file, colon, name = text.rpartition(".py:") if isinstance(text, str) else ("", "", "")
        return f"{place(file)}.py:{name}" if colon else text

    def method(part: Any) -> Any:
        return {**part, "method": spec(part.get("method"))} if isinstance(part, Mapping) else part

    for role in ("pool", "target", "avoid", "validation", "test"):
        rows = {"path": tree[role]} if isinstance(tree.get(role), str) else tree.get(role)
        if isinstance(rows, Mapping) and "path" in rows:
            paths = rows["path"]
            many = isinstance(paths, list)
            if many and not paths:
                raise ConfigError(f"'{role}.path' is an empty list; name at least one file or directory.")
            if "" in (paths if many else [paths]):
                raise ConfigError(f"'{role}.path' is empty; name a file or a directory.")
            moved = [place(p) if isinstance(p, str) else p for p in (paths if many else [paths])]
            tree[role] = {**rows, "path": moved if many else moved[0]}
    if isinstance(tree.get("train"), Mapping):
        train = {
            name: value for name, value in tree["train"].items() if not (name == "model" and value is None)
        }
        for name in ("model", "loop", "schedule"):
            if name in train:
                train[name] = spec(train[name])
        if "track" in train:
            given = train["track"]
            named = [
                method(one) if isinstance(one, Mapping) else spec(one)
                for one in (given if isinstance(given, list) else [given])
            ]
            train["track"] = named if isinstance(given, list) else named[0]
        if isinstance(train.get("optimizer"), Mapping):
            train["optimizer"] = method(train["optimizer"])
        elif "optimizer" in train:
            train["optimizer"] = spec(train["optimizer"])
        if isinstance(train.get("task"), Mapping):
            train["task"] = _task(method(train["task"]), place)
        elif "task" in train:
            train["task"] = spec(train["task"])
        tree["train"] = train
    if isinstance(tree.get("gime"), Mapping) and isinstance(tree["gime"].get("metrics"), list):
        tree["gime"] = {**tree["gime"], "metrics": list(map(spec, tree["gime"]["metrics"]))}
    if isinstance(tree.get("embed"), Mapping):
        given = tree["embed"].get("embedder")
        if given is not None:
            made = (
                {**given, "method": _embedder(given.get("method"), place, spec)}
                if isinstance(given, Mapping)
                else _embedder(given, place, spec)
            )
            tree["embed"] = {**tree["embed"], "embedder": made}
    if isinstance(tree.get("select"), list):
        tree["select"] = [method(part) for part in tree["select"]]
    else:
        tree["select"] = method(tree.get("select"))
    if tree.get("dynamic") is None:
        tree.pop("dynamic", None)
    else:
        tree["dynamic"] = method(tree["dynamic"])
    return {name: value for name, value in tree.items() if value is not None}


def _task(tree: dict[str, Any], place: Any) -> dict[str, Any]:
    """Return the keys of a built-in task with the folders that they name made absolute."""
    if tree.get("method") not in TASKS.builtin:
        return tree
    names = getattr(TASKS.find(tree["method"], "train.task", load_object), "paths", ())
    kept = ("bytes",)  # a name and no folder
    return {
        k: place(v) if k in names and isinstance(v, str) and v not in kept else v for k, v in tree.items()
    }


def _embedder(given: Any, place: Any, spec: Any) -> Any:
    """Return the embedder with its file or folder, where it names one, made absolute."""
    if not isinstance(given, str):
        return given
    kind, _, argument = given.partition(":")
    if kind not in EMBEDDERS.builtin:
        return spec(given)
    absolute = getattr(EMBEDDERS.find(kind, "embed.embedder", load_object), "absolute", None)
    return f"{kind}:{absolute(argument, place)}" if absolute and argument else given


__all__ = [
    "Calibrate",
    "Embed",
    "Factors",
    "Gime",
    "Method",
    "Rows",
    "Train",
    "Workflow",
    "absolute",
    "default_of",
    "difference",
    "digest",
    "load",
    "parse",
    "read",
]
