"""What is wrong with a task, a model, an optimizer or a loop of the user's own is named before anything expensive starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from raysel.data.vectors import to_column
from raysel.errors import RayselError, ResourceError
from raysel.train.settings import Train
from raysel.workflow import config, steps
from raysel.workflow.load import load_check

N = 16
MINE = """
import math
from dataclasses import dataclass

import torch
from raysel.train.tasks import Classification, Regression


def linear(shape, n):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), n))


def wide(shape, n):
    return linear(shape, n + 1)


def one(shape):
    return linear(shape, 1)


def number(shape, n):
    return 3


def frozen(shape, n):
    return linear(shape, n).requires_grad_(False)


def pixelwise(shape, n):
    return torch.nn.Conv2d(shape[0], n, 1)


class Letters(torch.nn.Module):
    def __init__(self, codes, length):
        super().__init__()
        self.table = torch.nn.Embedding(codes, codes)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)


class Backward(Letters):
    def forward(self, input_ids, attention_mask):
        return self.table(input_ids).flip(1).cumsum(1).flip(1)


class Good(Regression):
    pass


class Mean(Regression):
    def losses(self, model, batch):
        return super().losses(model, batch).mean()


class Number(Regression):
    def losses(self, model, batch):
        return 3.0


class Detached(Regression):
    def losses(self, model, batch):
        return super().losses(model, batch).detach()


class Short(Regression):
    def losses(self, model, batch):
        return super().losses(model, batch)[1:]


class NoMetric(Regression):
    def metrics(self, sums):
        return {"mae": 1.0}


class Nan(Regression):
    def metrics(self, sums):
        return {"rmse": math.nan}


class Vector(Regression):
    def metrics(self, sums):
        return {"rmse": torch.ones(3)}


class NoSums(Regression):
    def sums(self, model, batch):
        return None


class Up(Regression):
    direction = "up"


class NoField(Regression):
    classes = "nothing"


class Text(Regression):
    columns = "x"


class Missing(Regression):
    columns = ["x", "nope", "y"]


class Raises(Regression):
    def collate(self, rows, generator=None):
        raise KeyError("z")


class NeedsGenerator(Regression):
    def collate(self, rows, generator=None):
        generator.get_state()
        return super().collate(rows, generator)


class Reserved(Regression):
    metric = "epoch"

    def metrics(self, sums):
        return {"epoch": 1.0}


class Triple(Regression):
    def losses(self, model, batch):
        return super().losses(model, batch), None, None


class Unnamed(Regression):
    metric = None


class Numbered(Regression):
    def metrics(self, sums):
        return {"rmse": 1.0, 3: 2.0}


class Computed(Regression):
    @property
    def columns(self):
        raise KeyError("q")


class Called(Regression):
    def columns(self):
        return ["x", "y"]


class Twice(Regression):
    columns = ["x", "x", "y"]


class Listed(Regression):
    classes = ["y"]


class PerRow(Regression):
    def sums(self, model, batch):
        return {"errors": self.losses(model, batch)}

    def metrics(self, sums):
        return {"rmse": float(sums["errors"].mean())}


class Keyed(Regression):
    def sums(self, model, batch):
        return {3: torch.ones(())}


class Timed(Regression):
    def metrics(self, sums):
        return {"rmse": 1.0, "evaluation_seconds": 5.0}


class Exits(Regression):
    def model(self, facts):
        raise SystemExit(3)


@dataclass(frozen=True)
class Strange(Regression):
    kind: torch.dtype = torch.float32


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def extra(shape, n):
    return torch.nn.Sequential(torch.nn.Flatten(), Extra(math.prod(shape), n))


def lazy(shape, n):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(n))


def unused(shape, n):
    model = linear(shape, n)
    model[1].more = torch.nn.Parameter(torch.zeros(1))
    return model


class NoState(torch.optim.SGD):
    def state_dict(self):
        raise NotImplementedError


def falls(progress):
    return -1.0 if 0.2 < progress < 0.3 else 1.0


class Opens:
    def open(self):
        pass


class Empty:
    pass


class Classes(Classification):
    pass


def loop(config):
    return {}


def no_arguments():
    return {}
"""


def tensors(values: np.ndarray) -> pa.ExtensionArray:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    kind = pa.fixed_shape_tensor(flat.type, values.shape[1:])
    return pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    )


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Check a workflow as ``raysel validate --load`` does."""
    folder = tmp_path_factory.mktemp("flow")
    rng = np.random.default_rng(0)
    columns = {
        "x": to_column(rng.normal(size=(N, 4)).astype(np.float32)),
        "y": rng.normal(size=N),
        "gap": np.where(np.arange(N) == 3, np.nan, 1.0),
        "two": to_column(rng.normal(size=(N, 2)).astype(np.float32)),
        "class": np.arange(N) % 3,
        "text": [f"text {i}" for i in range(N)],
        "more": [f"more {i}" for i in range(N)],
        "bytes": [b"x"] * N,
        "lists": [[1.0] * (i % 3 + 1) for i in range(N)],
        "image": tensors(rng.normal(size=(N, 1, 6, 6)).astype(np.float32)),
        "mask": tensors((np.arange(N * 36).reshape(N, 6, 6) % 3).astype(np.uint8)),
        "nine": tensors(np.full((N, 6, 6), 9, np.uint8)),
        "floats": tensors(np.zeros((N, 6, 6), np.float32)),
        "small": tensors(np.zeros((N, 4, 4), np.uint8)),
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    (folder / "mine.py").write_text(MINE)

    def check(label, task, **train):
        settings = {"task": task, "model": "mine.py:linear", "input": "x", "workers": 1, **train}
        rows = {"path": "rows.parquet", **({"label": label} if label else {})}
        tree = {"name": "t", "pool": rows, "test": rows}
        tree["train"] = {name: value for name, value in settings.items() if value is not None}
        file = Path(folder / "flow.yaml")
        file.write_text(yaml.safe_dump(tree))
        flow = config.load(file)
        found = steps.check(flow)
        load_check(flow)
        steps.check(flow, found=found)

    return check


SEGMENT = {"method": "segmentation", "num_classes": 3}
PIXELS = {"input": "image", "model": "mine.py:pixelwise"}
LETTERS = {"input": "text", "model": "mine.py:Letters"}
OWN = {"method": "mine.py:Good"}


@pytest.mark.parametrize(
    ("label", "task", "train"),
    [
        ("class", "classification", {}),
        ("text", "classification", {}),
        ("y", "regression", {}),
        ("two", "regression", {}),
        ("class", "regression", {}),
        ("gap", "regression", {}),  # the rows are named when they are all read
        ("mask", SEGMENT, PIXELS),
        (None, "language_model", LETTERS),
        ("y", "mine.py:Good", {}),
        ("class", "mine.py:Classes", {}),
        ("y", "mine.py:Good", {"loop": "mine.py:loop", "model": None, "options": {"precision": "bf16"}}),
        ("y", "regression", {"optimizer": "torch.optim:Rprop"}),
        ("y", "regression", {"model": "mine.py:lazy"}),
        ("y", "regression", {"model": "mine.py:unused"}),
        ("y", "regression", {"workers": [1, 2]}),
    ],
)  # fmt: skip
def test_what_fits_is_accepted(checked, label, task, train):
    checked(label, task, **train)


@pytest.mark.parametrize(
    ("label", "task", "train", "says"),
    [
        # labels
        ("y", "classification", {}, "pool.label: The label column 'y' .* holds double; a class must be"),
        ("mask", "classification", {}, "pool.label: The label column 'mask' .* a class must be"),
        ("y", "mine.py:Classes", {}, "pool.label: The label column 'y' .* a class must be"),
        ("text", "regression", {}, "pool.label: Column 'text' holds text, but a regression predicts numbers"),
        ("lists", "regression", {}, "Column 'lists' holds vectors of different lengths"),
        ("nope", "regression", {}, "pool.label: There is no label column 'nope'"),
        (None, "regression", {}, "'pool.label' is missing"),
        ("class", {"method": "classification", "label": "y"}, {}, "'train.task.label' is 'y', but 'pool.label', which sets the same parameter, is 'class'; remove one"),
        ("nine", SEGMENT, PIXELS, r"The value 9 in column 'nine' \(sample_id 0, 1, 2 and 5 more\) is not a class"),
        ("floats", SEGMENT, PIXELS, r"'floats' holds float32 of shape \(6, 6\); a segmentation needs masks"),
        ("class", SEGMENT, PIXELS, r"'class' holds int64 of shape \(\); a segmentation needs masks"),
        ("small", SEGMENT, PIXELS, r"must return one logit per class and pixel, of shape \(8, 3, 4, 4\)"),
        # inputs
        ("y", "regression", {"input": "text"}, "or give train.task.tokenizer"),
        ("y", {"method": "regression", "tokenizer": "bytes"}, {"input": ["text", "more"]}, "'text' and 'more' both hold text"),
        ("y", "regression", {"input": ["x", "x"]}, "train.input: Name one column, or several different"),
        ("y", "regression", {"input": []}, "train.input: Name one column, or several different"),
        ("class", {"method": "classification", "input": "two"}, {}, "'train.task.input' is 'two', but 'train.input', which sets the same parameter, is 'x'"),
        ("class", {"method": "classification", "size": 4}, {"input": "bytes"}, r"\(sample_id 0: of no known format\); replace"),
        ("mask", SEGMENT, {**PIXELS, "input": "x"}, r"'x' holds float32 of shape \(4,\); a segmentation needs tensors"),
        (None, "language_model", {**LETTERS, "input": "x"}, "but a language model reads text"),
        (None, {"method": "language_model", "tokenizer": "nowhere"}, LETTERS, "train.task.tokenizer: There is no folder .*nowhere"),
        (None, {"method": "language_model", "pretrained": "nowhere"}, {"input": "text", "model": None}, "train.task.pretrained: There is no folder"),
        (None, {"method": "language_model", "config": {"model_type": "gpt2"}}, LETTERS, "give one of them"),
        (None, "language_model", {"input": "text", "model": "mine.py:Backward"}, "depends on a later token"),
        (None, {"method": "language_model", "config": {"n_layer": 1}}, LETTERS, "'model_type' is missing"),
        # models
        ("class", "classification", {"model": "mine.py:wide"}, r"returned \(8, 4\); it must return one logit per row and class"),
        ("y", "regression", {"model": "mine.py:wide"}, "it must return one number per row and output"),
        ("y", "regression", {"model": "mine.py:one"}, "train.model: .*one raised TypeError"),
        ("y", "regression", {"model": "mine.py:number"}, "train.model: .*number returned a int"),
        ("y", "regression", {"model": "mine.py:frozen"}, "train.model: The losses have no gradient"),
        # tasks of the user's own
        ("y", "mine.py:Mean", {}, r"Mean.losses: .*must have shape \(8,\) or"),
        ("y", "mine.py:Number", {}, "Number.losses: .*got float"),
        ("y", "mine.py:Short", {}, r"Short.losses: .*got \(7, 1\)"),
        ("y", "mine.py:Detached", {}, "The losses have no gradient"),
        ("y", "mine.py:NoMetric", {}, "NoMetric.metrics returned .*, but not 'rmse'"),
        ("y", "mine.py:Nan", {}, "The metric 'rmse' of .*Nan is nan .*return a finite number"),
        ("y", "mine.py:Vector", {}, "The metric 'rmse' .* return a number"),
        ("y", "mine.py:NoSums", {}, "NoSums.sums must return a dict of tensors"),
        ("y", "mine.py:Up", {}, "Up.direction is 'up'"),
        ("y", "mine.py:NoField", {}, "NoField.classes is 'nothing'"),
        ("y", "mine.py:Text", {}, "Text.columns is 'x'; it should be a list"),
        ("y", "mine.py:Missing", {}, "Missing.columns: There is no column 'nope'"),
        ("y", "mine.py:Raises", {}, r"train.task: .*Raises.collate raised KeyError \('z'\)"),
        ("y", "mine.py:NeedsGenerator", {}, "NeedsGenerator.collate without a generator raised"),
        ("y", "mine.py:Reserved", {}, "'epoch' of .* is reserved"),
        ("y", "mine.py:Empty", {}, "Empty has no 'columns', so it is not a task"),
        ("y", "mine.py:Triple", {}, "Triple.losses returned a tuple of 3; return the losses, or the losses and a mask"),
        ("y", "mine.py:Unnamed", {}, "Unnamed.metric is None; it should be the name of a metric"),
        ("y", "mine.py:Numbered", {}, "The metric name 3 of .*Numbered must be text"),
        ("y", "mine.py:Computed", {}, r"Computed raised KeyError \('q'\)"),
        ("y", "mine.py:Called", {}, "Called.columns is a method; it should be a list"),
        ("y", "mine.py:Twice", {}, "Twice.columns is .*; name each column once"),
        ("y", "mine.py:Listed", {}, r"Listed.classes is \['y'\]; it should be None"),
        ("y", "mine.py:PerRow", {}, r"PerRow.sums returned tensors of the shapes .*\(8, 1\).*\(7, 1\).* return sums over the rows"),
        ("y", "mine.py:Keyed", {}, "Keyed.sums must return a dict of tensors, got {3: "),
        ("y", "mine.py:Timed", {}, "'evaluation_seconds' of .* is reserved"),
        ("y", "mine.py:Exits", {}, r"train.model: .* raised SystemExit \(3\)"),
        ("y", "mine.py:Strange", {}, "Strange.kind has the type dtype, but a YAML file cannot contain values of this type; give the field another type"),
        # models that fail later
        ("y", "regression", {"model": "mine.py:extra"}, "has entries that are not tensors: 1._extra_state"),
        ("y", "regression", {"model": "mine.py:lazy", "workers": 2}, "get their shape only from the first batch: 1.weight, 1.bias"),
        ("y", "regression", {"model": "mine.py:unused", "workers": [1, 2]}, "The losses do not depend on these parameters of .*: 1.more"),
        # schedules and trackers
        ("y", "regression", {"schedule": "mine.py:falls"}, r"falls returned -1.0 when it was called with 0.21; it must return a finite number of at least 0"),
        ("y", "regression", {"track": "mine.py:Opens"}, "The method 'open' of .*Opens cannot be called with one argument"),
        # elastic workers
        ("y", "regression", {"workers": [2, 1]}, r"train.workers: \[2, 1\] is neither one number of workers nor a smallest and a largest one"),
        ("y", "mine.py:Good", {"loop": "mine.py:loop", "model": None, "workers": [1, 2]}, "Only the built-in loop can change"),
        ("y", "regression", {"data": "stream", "workers": [1, 2]}, "A training on streamed rows cannot change its number"),
        # optimizers
        ("y", "regression", {"optimizer": "mine.py:NoState"}, "The method state_dict, which checkpoints need, raised NotImpl"),
        ("y", "regression", {"optimizer": "adamw"}, "Did you mean 'AdamW'"),
        ("y", "regression", {"optimizer": "torch.optim:LBFGS"}, "train.optimizer: The first step raised TypeError"),
        ("y", "regression", {"optimizer": "torch.optim:SparseAdam"}, "train.optimizer: The first step raised"),
        ("y", "regression", {"optimizer": "torch.optim:Muon"}, "train.optimizer: The first step raised ValueError"),
        # loops
        ("y", "regression", {"loop": "mine.py:no_arguments"}, "no_arguments cannot be called with one argument"),
        ("y", "regression", {"loop": "mine.py:loop", "precision": "bf16"}, "train.precision: .* under train.options"),
        ("y", "regression", {"loop": "mine.py:loop", "optimizer": "AdamW"}, "train.optimizer: .* under train.options"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(checked, label, task, train, says):
    with pytest.raises(RayselError, match=says):
        checked(label, task, **train)


def test_a_stream_needs_a_cpu_of_its_own(monkeypatch):
    settings = Train(workers=2, cpus_per_worker=1.0, data="stream")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", list)
    with pytest.raises(ResourceError, match=r"train\.data: The workers take 2 of the 2 CPUs of the cluster"):
        steps.check_reading(settings)
    steps.check_reading(replace(settings, cpus_per_worker=0.5))


GPT = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, None),
        ({"n_layr": 2}, "has no 'n_layr'. Did you mean 'n_layer'"),
        ({"vocab_size": 50}, r"has vocab_size = 50, .* number of codes of the tokenizer \(258\)"),
        ({"n_positions": 4}, r"has max_position_embeddings = 4, .* \(128\); lower train.task.max_length"),
        ({"model_type": "gpt9"}, "cannot be made"),
        ({"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}, "depends on a later token"),
    ],
)  # fmt: skip
def test_a_model_of_hugging_face_fits_the_text(checked, config, says):
    pytest.importorskip("transformers")
    base = {} if config.get("model_type") == "bert" else GPT
    task = {"method": "language_model", "config": {**base, **config}}
    if says is None:
        checked(None, task, input="text", model=None)
        return
    with pytest.raises(RayselError, match=says):
        checked(None, task, input="text", model=None)
