"""Each built-in task trains as the same training written by hand, and its metrics are those of their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import raysel
from raysel.data.row_index import ID
from raysel.data.store import Column, ColumnStore, write_columns
from raysel.errors import ConfigError, DataError, RunError
from raysel.train import loops
from raysel.train.data import TrainingData
from raysel.train.optimizers import SCHEDULES, load_optimizer, load_schedule
from raysel.train.settings import Train
from raysel.train.tasks import Classification, Facts, LanguageModel, Regression, Segmentation
from raysel.train.tasks.inputs import BEGIN, PAD, VOCABULARY, tokens

pytestmark = pytest.mark.usefixtures("cluster")
N, EPOCHS = 24, 3
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, 3)).astype(np.float32)
COLUMNS = {
    "x": X,
    "kind": np.array(["a", "b", "c"])[np.arange(N) % 3],
    "y": (X @ np.array([1.0, -2.0, 0.5])).astype(np.float32),
    "text": np.array(["ab" * (i % 5 + 1) for i in range(N)]),
    "image": RNG.normal(size=(N, 2, 4, 4)).astype(np.float32),
    "mask": np.where(RNG.random((N, 4, 4)) < 0.1, 255, RNG.integers(0, 3, (N, 4, 4))).astype(np.uint8),
}


def linear(shape, outputs):
    return torch.nn.Linear(math.prod(shape), outputs)


def letters(codes, length):
    class Letters(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(codes, codes)

        def forward(self, input_ids, attention_mask):
            return self.table(input_ids)

    return Letters()


def pixelwise(shape, classes):
    return torch.nn.Conv2d(shape[0], classes, 1)


TASKS = {
    "classification": (Classification("x", "kind"), linear),
    "regression": (Regression("x", "y"), linear),
    "language_model": (LanguageModel("text", max_length=8), letters),
    "segmentation": (Segmentation("image", "mask", num_classes=3), pixelwise),
}


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    """Folders of the rows: pool and test are the same rows, validation is half of them."""
    folder = tmp_path_factory.mktemp("columns")
    rows = raysel.read(COLUMNS)
    classes = {"kind": ["a", "b", "c"]}
    for role in ("pool", "test"):
        write_columns(rows, folder / role, list(COLUMNS), classes=classes)
    half = raysel.Selection.of(np.arange(0, N, 2)).rows(rows)
    write_columns(half, folder / "validation", list(COLUMNS), classes=classes, rows=N)
    return folder


SETTINGS = Train(batch_size=5, epochs=EPOCHS)


def config(place, name, settings=SETTINGS, folder=None, **more):
    task, factory = TASKS[name] if isinstance(name, str) else name
    store = ColumnStore(place / "pool")
    data = {"facts": Facts(store.columns, store.classes, factory)}
    data |= {role: place / role for role in ("pool", "validation", "test")}
    dynamic = raysel.DynamicSelection.local(
        raysel.InfoBatch(0.5, 1.0),
        N,
        num_epochs=settings.epochs,
        seed=3,
        checkpoints=more.pop("checkpoints", None),
    )
    return {
        "dynamic": dynamic,
        "data": data,
        "task": task,
        "settings": settings,
        "optimizer": load_optimizer(settings.optimizer, settings.learning_rate),
        "schedule": load_schedule(settings.schedule),
        "seed": 3,
        "threads": 1,
        "model_folder": folder,
        "alone": True,
        **more,
    }


def batch_by_hand(name, ids):
    if name == "classification":
        return torch.from_numpy(X[ids]), torch.from_numpy(ids % 3)
    if name == "regression":
        return torch.from_numpy(X[ids]), torch.from_numpy(COLUMNS["y"][ids])
    if name == "segmentation":
        return torch.from_numpy(COLUMNS["image"][ids]), torch.from_numpy(
            COLUMNS["mask"][ids].astype(np.int64)
        )
    codes = [[BEGIN, *COLUMNS["text"][i].encode()][:8] for i in ids]
    width = max(map(len, codes))
    table = torch.tensor([row + [PAD] * (width - len(row)) for row in codes])
    return table, table


def losses_by_hand(name, model, inputs, labels):
    if name == "classification":
        return F.cross_entropy(model(inputs), labels, reduction="none")
    if name == "regression":
        return (model(inputs)[:, 0] - labels) ** 2
    if name == "segmentation":
        each = F.cross_entropy(model(inputs), labels, reduction="none", ignore_index=255)
        known = (labels != 255).float()
        return (each * known).sum((1, 2)) / known.sum((1, 2))
    rows = []
    for row in inputs:
        row = row[row != PAD]
        rows.append(F.cross_entropy(model.table(row[:-1]), row[1:]))
    return torch.stack(rows)


def metrics_by_hand(name, model):
    ids = np.arange(N)
    inputs, labels = batch_by_hand(name, ids)
    with torch.no_grad():
        if name == "classification":
            return {"accuracy": float((model(inputs).argmax(1) == labels).double().mean())}
        if name == "regression":
            errors = (model(inputs)[:, 0] - labels).double().numpy()
            return {"rmse": float(np.sqrt((errors**2).mean())), "mae": float(np.abs(errors).mean())}
        if name == "segmentation":
            found, wanted = model(inputs).argmax(1).numpy(), labels.numpy()
            known = wanted != 255
            shares = []
            for code in range(3):
                one, other = (found == code) & known, wanted == code
                shares.append((one & other).sum() / (one | other).sum())
            right = (found == wanted)[known].mean()
            return {"mean_iou": float(np.mean(shares)), "pixel_accuracy": float(right)}
        losses = []
        for row in inputs:
            row = row[row != PAD]
            losses += F.cross_entropy(model.table(row[:-1]), row[1:], reduction="none").tolist()
        return {"perplexity": math.exp(np.mean(losses)), "loss": float(np.mean(losses))}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_as_by_hand(place, name, tmp_path):
    found = loops.train(config(place, name, folder=tmp_path / "model"))

    task, factory = TASKS[name]
    torch.manual_seed(3)
    model = task.model(Facts(ColumnStore(place / "pool").columns, {"kind": ["a", "b", "c"]}, factory))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    session = raysel.DynamicSelection.local(
        raysel.InfoBatch(0.5, 1.0), N, num_epochs=EPOCHS, seed=3
    ).session()
    for _ in session.epochs():
        for batch in session.loader(np.arange(N), batch_size=5):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * loops.schedule(session.progress)
            losses = losses_by_hand(name, model, *batch_by_hand(name, batch.data.numpy()))
            optimizer.zero_grad()
            session.loss(batch, losses).backward()
            optimizer.step()
        session.report()
    told = [(e["planned"], e["trained"], e["steps"]) for e in found["history"]]
    assert told == [(e["planned"], e["trained"], e["steps"]) for e in session.history]
    assert any(trained < N for _, trained, _ in told)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(saved[key], value, rtol=1e-4, atol=1e-5)
    assert found["metrics"] == pytest.approx(metrics_by_hand(name, model), rel=1e-4)
    if name in ("classification", "segmentation"):  # whose losses are summed in the same order
        assert [e["digest"] for e in found["history"]] == [e["digest"] for e in session.history]
    assert all(e[task.metric] is not None and e["evaluation_seconds"] >= 0 for e in found["history"])


def test_training_resumes_with_the_best_weights_and_the_patience_so_far(place, tmp_path):
    class Stops(Regression):
        """Fails in its third epoch, once."""

        failing = True

        def losses(self, model, batch):
            if Stops.failing and len(made.made.history) == 2:
                Stops.failing = False
                raise KeyboardInterrupt
            return super().losses(model, batch)

    # A rate so high that the error grows: the first epoch is the best.
    settings = Train(
        batch_size=5, epochs=8, learning_rate=3.0, schedule="constant", warmup=0.0, keep="best", patience=3,
        optimizer="SGD",
    )  # fmt: skip
    whole = loops.train(config(place, "regression", settings, tmp_path / "whole"))
    assert len(whole["history"]) == 4  # the best, and three that were not better
    values = [entry["rmse"] for entry in whole["history"]]
    assert all(value is None or value > values[0] for value in values[1:])

    kept = tmp_path / "checkpoints"
    parts = config(place, (Stops("x", "y"), linear), settings, tmp_path / "parts", checkpoints=kept)
    made = parts["dynamic"]
    with pytest.raises(KeyboardInterrupt):
        loops.train(parts)
    again = loops.train(
        config(place, (Stops("x", "y"), linear), settings, tmp_path / "parts", checkpoints=kept)
    )
    assert [e["digest"] for e in again["history"]] == [e["digest"] for e in whole["history"]]
    assert again["metrics"] == whole["metrics"]
    assert whole["metrics"]["rmse"] < 10 * values[0]  # not those of the last epoch, which are far off
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_accumulation_clipping_and_number_formats(place):
    whole = loops.train(config(place, "classification", Train(batch_size=6, epochs=2)))
    parts = loops.train(config(place, "classification", Train(batch_size=3, accumulate=2, epochs=2)))
    assert [e["steps"] for e in parts["history"]] == [e["steps"] for e in whole["history"]]
    assert [e["mean_loss"] for e in parts["history"]] == pytest.approx(
        [e["mean_loss"] for e in whole["history"]], rel=1e-5
    )
    tiny = Train(batch_size=6, epochs=1, clip=1e-9, optimizer="SGD")
    still = loops.train(config(place, "regression", tiny))
    torch.manual_seed(3)
    assert still["metrics"] == pytest.approx(metrics_by_hand("regression", linear((3,), 1)), rel=1e-5)
    for precision in ("bf16", "fp16"):
        settings = Train(batch_size=6, epochs=2, precision=precision, optimizer="AdamW", learning_rate=0.01)
        found = loops.train(config(place, "classification", settings))
        exact = loops.train(config(place, "classification", replace(settings, precision="fp32")))
        assert found["metrics"]["accuracy"] == pytest.approx(exact["metrics"]["accuracy"], abs=0.1)
        assert found["history"] != exact["history"]


def test_validation_is_scored_every_few_epochs_and_at_the_end(place):
    found = loops.train(config(place, "regression", Train(batch_size=5, epochs=5, evaluate_every=2)))
    assert [e.get("rmse") is not None for e in found["history"]] == [False, True, False, True, True]


def test_augmentation_is_drawn_from_the_generator(place):
    class Jitter(Classification):
        def collate(self, rows, generator=None):
            inputs, labels = super().collate(rows, generator)
            if generator is not None:
                drawn.append((int(rows[ID][0]), round(float(torch.rand((), generator=generator)), 6)))
            return inputs, labels

    runs = []
    for _ in range(2):
        drawn: list = []
        loops.train(config(place, (Jitter("x", "kind"), linear), Train(batch_size=4, epochs=2)))
        runs.append(drawn)
    assert runs[0] == runs[1] and len({value for _, value in runs[0]}) == len(runs[0])


def test_streamed_rows_train_as_rows_from_files(place):
    name = "classification"
    given = config(place, name, Train(batch_size=N, epochs=2))
    found = loops.train(given)
    streamed = config(place, name, Train(batch_size=N, epochs=2))
    streamed["data"]["pool"] = None
    dynamic = streamed["dynamic"]
    planned = dynamic.planned(raysel.read({k: COLUMNS[k] for k in ("x", "kind")}))

    class Streams(TrainingData):
        def batches(self, session, collate, **options):
            stream = session.stream
            session.stream = lambda data, **more: stream(planned, **more)
            return super().batches(session, collate, **options)

    original, loops.TrainingData = loops.TrainingData, Streams
    try:
        again = loops.train(streamed)
    finally:
        loops.TrainingData = original
    assert [e["trained"] for e in again["history"]] == [e["trained"] for e in found["history"]]
    assert [e["mean_loss"] for e in again["history"]] == pytest.approx(
        [e["mean_loss"] for e in found["history"]], rel=1e-5
    )


# ---- a loop of the user's own ------------------------------------------------------------------------------------


def own(given):
    session = given["dynamic"].session()
    model = linear((3,), 1)
    task, data = given["task"], given["data"]
    for _ in session.epochs():
        for batch in data.batches(session, task.collate, batch_size=given["batch_size"]):
            session.loss(batch, task.losses(model, batch.data))
        if not (given["options"].get("forgets") and session.epoch == 1):
            session.report({"rmse": 1.0})
    return given["options"].get("returns", {"rmse": 2.0, "other": math.nan})


def ended(given):
    session = given["dynamic"].session()
    for _ in session.epochs():
        for batch in given["data"].batches(session, given["task"].collate, batch_size=5):
            session.loss(batch, batch.data[0].sum(1))
        return {}


def test_an_own_loop_gets_its_rows_and_is_held_to_its_session(place):
    settings = Train(batch_size=5, epochs=2, loop="mine.py:own")
    found = loops.own(config(place, "regression", settings, loop=own))
    assert found["metrics"] == {"rmse": 2.0, "other": None}
    assert [(e["epoch"], e["rmse"]) for e in found["history"]] == [(0, 1.0), (1, 1.0)]
    for loop, options, says in (
        (lambda given: {}, {}, "trained without a session"),
        (ended, {}, "returned within epoch 0"),
        (own, {"returns": 3}, "returned a int"),
        (own, {"returns": {}}, "returned no metric 'rmse'"),
    ):
        with pytest.raises(RunError, match=says):
            loops.own(config(place, "regression", replace(settings, options=options), loop=loop))


# ---- inputs and names --------------------------------------------------------------------------------------------


def test_text_as_bytes():
    found = tokens(["é", "", "abcdef"], "bytes", 4)
    assert found["input_ids"].tolist() == [
        [BEGIN, 0xC3, 0xA9, PAD],
        [BEGIN, PAD, PAD, PAD],
        [BEGIN, 97, 98, 99],
    ]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert tokens([""], "bytes", 4)["input_ids"].shape == (1, 2) and VOCABULARY == 258


def test_encoded_images_and_several_inputs():
    import io

    from PIL import Image

    def png(width, height, colour):
        file = io.BytesIO()
        Image.new("RGB", (width, height), colour).save(file, "PNG")
        return file.getvalue()

    files = np.empty(2, object)
    files[:] = [png(4, 9, (10, 20, 30)), png(7, 3, (1, 2, 3))]
    rows = {ID: np.array([4, 8]), "file": files, "x": X[:2], "kind": np.array([0, 1])}
    task = Classification(["file", "x"], "kind", size=2)
    inputs, labels = task.collate(rows)
    assert inputs["file"].shape == (2, 3, 2, 2) and inputs["file"][0, :, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(inputs["x"], torch.from_numpy(X[:2])) and labels.tolist() == [0, 1]
    for streamed in (
        task,
        Regression(["file", "x"], "kind", size=2),
    ):  # decoded by Ray Data, and collated alike
        prepared = streamed.prepare(rows)
        assert prepared["file"].dtype == np.uint8 and rows["file"].dtype == object
        again, (wanted, _) = streamed.collate(prepared)[0], streamed.collate(rows)
        assert all(torch.equal(again[name], wanted[name]) for name in ("file", "x"))
    held = {
        "file": Column("bytes", "uint8"),
        "x": Column("array", "float32", (3,)),
        "kind": Column("array", "int64"),
    }
    assert task.shape(Facts(held)) == {"file": (3, 2, 2), "x": (3,)}
    for task, says in (
        (Classification("file", "kind"), r"encoded images, .* train\.task\.size"),
        (Regression("x", "kind"), "holds text; store numbers, or give train.task.tokenizer"),
    ):
        with pytest.raises(ConfigError, match=says):
            task.check_columns({**held, "x": Column("text", "uint8")})
    task = Classification(["file", "x"], "kind", size=2)
    files[1] = b"no image"
    with pytest.raises(DataError, match=r"cannot be read \(sample_id 8"):
        task.collate(rows)


def test_optimizers_and_schedules_by_name():
    made = load_optimizer({"method": "AdamW", "weight_decay": 0.2}, 0.3)([torch.nn.Parameter(torch.ones(1))])
    assert (
        type(made) is torch.optim.AdamW
        and made.defaults["lr"] == 0.3
        and made.defaults["weight_decay"] == 0.2
    )
    assert (
        type(load_optimizer("torch.optim:Rprop", 0.3)([torch.nn.Parameter(torch.ones(1))]))
        is torch.optim.Rprop
    )
    for spec, says in (
        ("AdmaW", "Did you mean 'AdamW'"),
        ({"method": "SGD", "momentun": 0.9}, "SGD cannot be made"),
        ({"momentum": 0.9}, "'train.optimizer.method' is missing"),
        ({"method": "SGD", "lr": 1.0}, "as train.learning_rate"),
        ("torch:Tensor", "cannot be made|not a torch.optim.Optimizer"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_optimizer(spec, 0.1)
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        load_schedule("cosin")
    assert [SCHEDULES[name](0.25) for name in ("linear", "constant")] == [0.75, 1.0]
    assert loops.schedule(0.55, 0.1, SCHEDULES["linear"]) == pytest.approx(0.5)
