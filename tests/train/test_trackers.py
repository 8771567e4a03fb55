"""What trackers write is what the session counted, once per epoch, also after a kill that lost a checkpoint."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import contextmanager
from dataclasses import replace

import pytest

from raysel.errors import ConfigError, RunError
from raysel.train import loops
from raysel.train.settings import Train
from raysel.train.tasks import Regression
from raysel.train.trackers import MLflow, TensorBoard, Training, WandB, check_installed
from raysel.workflow.config import parse
from raysel.workflow.load import unloaded
from raysel.workflow.steps.train import check_settings, load_trackers
from tests.train.rows import N, config, linear, stored

SETTINGS = Train(batch_size=5, epochs=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("columns"))


class Own:
    """A tracker that keeps what it gets."""

    def __init__(self):
        self.values: dict = {}
        self.opened = 0

    @contextmanager
    def open(self, training):
        self.values, self.opened = {}, self.opened + 1
        yield self.log
        self.values["closed"] = True

    def log(self, values, epoch):
        for name, value in values.items():
            assert (name, epoch) not in self.values
            self.values[name, epoch] = value


class Fails(Regression):
    """Fails in the first batch of its third epoch."""

    dynamic = None

    def losses(self, model, batch):
        if len(Fails.dynamic.made.history) == 2:
            raise KeyboardInterrupt
        return super().losses(model, batch)


def training(tmp_path):
    return Training("flow", "chain", tmp_path / "train-chain-12", tmp_path, 2 * N, N)


def interrupted(place, tmp_path, tracker):
    """Train two epochs, lose the last checkpoint, and train to the end; return the history and the test metrics."""
    kept, about = tmp_path / "checkpoints", training(tmp_path)
    tracked = {"trackers": [tracker], "training": about, "checkpoints": kept}
    about.folder.mkdir()
    given = config(place, Fails("x", "y"), linear, SETTINGS, **tracked)
    Fails.dynamic = given["dynamic"]
    with pytest.raises(KeyboardInterrupt):
        loops.train(given)
    shutil.rmtree(kept / "last")
    found = loops.train(config(place, Regression("x", "y"), linear, SETTINGS, **tracked))
    assert [entry["epoch"] for entry in found["history"]] == [0, 1, 2, 3]
    return found


def expected(found):
    """The values by name and epoch, from the session's own history."""
    values = {}
    for entry in found["history"]:
        epoch, trained = entry["epoch"], entry["trained"]
        values |= {(name, epoch): entry[name] for name in ("planned", "trained", "seconds")}
        values["loss", epoch] = entry["mean_loss"]
        values["skipped", epoch], values["saved", epoch] = N - trained, 1 - trained / (2 * N)
        values |= {(f"validation/{name}", epoch): entry[name] for name in ("rmse", "mae")}
    return values | {(f"test/{name}", 3): value for name, value in found["metrics"].items()}


def test_a_tracker_gets_every_epoch_once_after_a_lost_checkpoint(place, tmp_path):
    own = Own()
    found = interrupted(place, tmp_path, own)
    wanted = expected(found)
    assert any(wanted["skipped", epoch] > 0 for epoch in range(4))
    assert own.opened == 2 and own.values == wanted | {"closed": True}


def scalars(folder):
    """Values of the event files by name and epoch, read from their records."""
    from tensorboardX.proto.event_pb2 import Event

    values = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                assert (value.tag, event.step) not in values
                values[value.tag, event.step] = value.simple_value
    return values


def test_tensorboard_has_every_epoch_once_after_a_lost_checkpoint(place, tmp_path):
    found = interrupted(place, tmp_path, TensorBoard())
    assert scalars(tmp_path / "train-chain-12" / "tensorboard") == pytest.approx(expected(found), rel=1e-6)


@pytest.mark.slow
def test_mlflow_has_every_epoch_once_after_a_lost_checkpoint(place, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    found = interrupted(place, tmp_path, MLflow())
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("flow").experiment_id])
    assert run.info.run_name == "chain" and run.info.status == "FINISHED"
    values = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    assert values == pytest.approx(expected(found))


def records(data):
    """Records of a file in the log format of LevelDB, with a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of the block
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_has_every_epoch_once_after_a_lost_checkpoint(place, tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    found = interrupted(place, tmp_path, WandB())
    wandb.teardown()  # the file is complete when its writer has ended
    (file,) = (tmp_path / "train-chain-12" / "wandb").glob("offline-run-*/*.wandb")
    values = {}
    for record in map(Record.FromString, records(file.read_bytes())):
        items = {(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item}
        for name, value in items.items():
            if not name.startswith("_"):
                values[name, json.loads(items["_step"])] = json.loads(value)
    assert values == pytest.approx(expected(found))


# ---- the key of a workflow ---------------------------------------------------------------------------------------

TREE = {"name": "one", "pool": {"path": "x.parquet", "label": "y"}}


def flow(track, **more):
    return parse({**TREE, "train": {"model": "models.py:mlp", "input": "x", "track": track, **more}}, "/here")


def test_the_key_names_trackers():
    assert load_trackers(flow("tensorboard")) == [TensorBoard()]
    assert flow(None).trackers == [] and load_trackers(flow([])) == []
    many = flow(["tensorboard", {"method": "mlflow", "uri": "http://host"}, "mine.py:Own"])
    assert [method.spec for method in many.trackers] == ["tensorboard", "mlflow", "/here/mine.py:Own"]
    assert many.trackers[1].make() == MLflow("http://host")
    assert "train.track.2: /here/mine.py:Own" in unloaded(many)
    assert many.describe()["train"]["track"][0] == "tensorboard"


def test_what_is_no_tracker_is_said_before_anything_runs(tmp_path, monkeypatch):
    for track, says in (
        ("tensorbord", r"'train\.track\.method' is 'tensorbord', .* Did you mean 'tensorboard'"),
        (["tensorboard", "wandbb"], r"'train\.track\.1\.method' is 'wandbb'"),
        ({"method": "wandb", "mode": "of"}, r"train\.track\.mode"),
        ({"method": "mlflow", "url": "x"}, r"train\.track\.url"),
        ({"uri": "x"}, r"'train\.track\.method' is missing"),
    ):
        with pytest.raises(ConfigError, match=says):
            flow(track)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="The tracker wandb needs the package wandb; install it with pip install"
    ):
        load_trackers(flow("wandb"))
    with pytest.raises(ConfigError, match="has no method 'open"):
        check_installed(object(), "mine.py:Own")
    with pytest.raises(ConfigError, match=r"train\.track: A training loop of your own does not receive"):
        check_settings(flow("tensorboard", loop="mine.py:loop"))


def test_a_tracker_that_raises_is_named(place, tmp_path):
    class Broken(Own):
        def log(self, values, epoch):
            raise OSError("no such server")

    given = config(
        place,
        Regression("x", "y"),
        linear,
        replace(SETTINGS, epochs=1),
        trackers=[Broken()],
        training=training(tmp_path),
    )
    with pytest.raises(
        RunError, match=r"train\.track: The tracker Broken raised OSError \(no such server\)\. Fix the cause"
    ):
        loops.train(given)
