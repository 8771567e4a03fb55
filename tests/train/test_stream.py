"""Streaming: the plan is executed where rows are read, no row is lost or repeated, and ranks step together."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

import raysel
from raysel.data.datasource import IndexedParquet
from raysel.data.listing import list_source
from raysel.data.row_index import index_parquet
from raysel.dynamic.plan import unweighted
from raysel.dynamic.state import observe
from raysel.errors import ConfigError, DataError, ResourceError, StateError
from raysel.train.planned import CollateRows, ShuffledParquet, arrivals, read_tasks
from tests.train.common import Numbers, loss_of

N = 230


def write_rows(place: Path, n: int = N, group: int = 20) -> str:
    """Rows that know who they are: ``value`` is ten times the id."""
    place.mkdir(parents=True, exist_ok=True)
    ids = np.arange(n)
    table = pa.table({"value": ids * 10.0, "text": pa.array([f"row {i}" for i in ids])})
    pq.write_table(table, place / "rows.parquet", row_group_size=group)
    return str(place)


class Decode:
    """A costly step that leaves a note of every row it was given."""

    def __init__(self, notes: Path) -> None:
        self.notes = str(notes)
        notes.mkdir(parents=True, exist_ok=True)

    def __call__(self, columns):
        np.save(f"{self.notes}/{uuid.uuid4().hex}.npy", columns["sample_id"])
        assert len(columns["sample_id"])  # a block without a planned row never gets here
        return {**columns, "decoded": columns["value"] + 1}

    def seen(self) -> list[int]:
        """The ids noted since the last call, sorted."""
        found = []
        for path in Path(self.notes).glob("*.npy"):
            found += np.load(path).tolist()
            path.unlink()
        return sorted(found)


@dataclass(frozen=True)
class Listed:
    """Plans the slots that it was given for the epoch."""

    slots: tuple[tuple[int, ...], ...]
    name: str = field(default="Listed")

    def plan(self, state, *, epoch, num_epochs, seed):
        keep = np.zeros(len(state), np.bool_)
        keep[list(self.slots[epoch])] = True
        return unweighted(keep)

    def update(self, state, plan, slots, losses):
        return observe(state, plan.slots, slots, losses)

    def parameters(self):
        return {"policy": "Listed", "slots": self.slots}


def test_each_epoch_decodes_what_it_planned_and_no_other_row(cluster, tmp_path):
    rows = raysel.read(write_rows(tmp_path / "rows"))
    chosen = raysel.Selection.of(np.arange(1, N, 2), weight=np.linspace(1, 2, N // 2), info={"pool_rows": N})
    for case in (N, chosen):
        decode = Decode(tmp_path / "notes")
        dynamic = raysel.DynamicSelection.local(raysel.InfoBatch(), case, num_epochs=3, seed=3)
        stream = dynamic.planned(rows).map_batches(decode, batch_size=None)
        session = dynamic.session()
        ids_of = np.arange(N) if case is N else chosen.ids
        weight_of = np.ones(N, np.float32) if case is N else chosen.weights
        for epoch in session.epochs():
            came, expected = [], session.plan
            slots = expected.slots
            weights = dict(
                zip(ids_of[slots].tolist(), (expected.weights * weight_of[slots]).tolist(), strict=True)
            )
            for batch in session.stream(stream, batch_size=16, local_shuffle_buffer_size=48):
                rows_here = int((batch.ids >= 0).sum())  # padding comes last
                ids = batch.ids[:rows_here]
                assert len(batch.ids) == max(rows_here, 2) and batch.share == rows_here
                assert torch.equal(batch.data["decoded"][:rows_here], ids * 10.0 + 1)
                assert batch.data["text"][:rows_here].tolist() == [f"row {i}" for i in ids.tolist()]
                assert [weights[i] for i in ids.tolist()] == batch.weights[:rows_here].tolist()
                assert np.array_equal(ids_of[batch.slots[:rows_here]], ids.numpy())
                came += ids.tolist()
                assert session.progress == pytest.approx((epoch + len(came) / len(slots)) / 3)
                session.loss(batch, loss_of(batch.ids, epoch))
            assert came != sorted(came)  # shuffled within the buffer
            assert sorted(came) == decode.seen() == ids_of[slots].tolist()
            entry = session.report()
            assert entry["trained"] == entry["planned"] == entry["observed"] == len(slots)
            assert entry["steps"] == -(-len(slots) // 16)
        assert session.history[1]["planned"] < len(ids_of)  # something was pruned
        assert session.progress == 1.0


def batches_of(dynamic, rows, batch_size, stop=None):
    """The (ids, weights) of the batches of every epoch up to ``stop``."""
    session, found = dynamic.session(), []
    session.restore({})
    stream = dynamic.planned(rows)
    for epoch in session.epochs():
        for batch in session.stream(stream, batch_size=batch_size, local_shuffle_buffer_size=40):
            found.append((epoch, batch.ids.tolist(), batch.weights.tolist()))
            session.loss(batch, loss_of(batch.ids, epoch))
        session.report()
        if epoch == stop:
            break
    return found


@pytest.mark.slow
def test_a_run_and_a_resumed_run_give_the_same_batches(cluster, tmp_path):
    rows = raysel.read(write_rows(tmp_path / "rows"))

    def dynamic(place):
        return raysel.DynamicSelection.local(
            raysel.InfoBatch(), N, num_epochs=3, seed=7, checkpoints=tmp_path / place
        )

    whole = batches_of(dynamic("a"), rows, 16)
    assert batches_of(dynamic("b"), rows, 16, stop=0) + batches_of(dynamic("b"), rows, 16) == whole
    assert whole[0][1] != whole[15][1]  # epochs are shuffled each in its own way


def test_a_stream_goes_on_in_mid_epoch_with_what_it_has_not_trained(cluster, tmp_path):
    rows, decode = raysel.read(write_rows(tmp_path / "rows")), Decode(tmp_path / "notes")

    def train(place, stop=False):
        dynamic = raysel.DynamicSelection.local(
            raysel.InfoBatch(), N, num_epochs=2, seed=7, checkpoints=tmp_path / place
        )
        session, came = dynamic.session(), []
        session.restore({})
        stream = dynamic.planned(rows).map_batches(decode, batch_size=None)
        for epoch in session.epochs():
            for batch in session.stream(stream, batch_size=16, local_shuffle_buffer_size=40):
                came.append((epoch, session.step, batch.ids[batch.ids >= 0].tolist(), session.progress))
                session.loss(batch, loss_of(batch.ids, epoch))
                if stop and (epoch, session.step) == (1, 3):
                    session.checkpoint()
                if stop and (epoch, session.step) == (1, 5):
                    return session, came
            session.report()
        return session, came

    whole, _ = train("a")
    decode.seen()
    _, begun = train("b", stop=True)
    decode.seen()
    session, rest = train("b")
    done = {i for epoch, step, ids, _ in begun if epoch == 1 and step <= 3 for i in ids}
    planned = whole.history[1]["planned"]
    assert rest[0][:2] == (1, 4) and rest[0][3] == pytest.approx((1 + 64 / planned) / 2)
    later = [i for *_, ids, _ in rest for i in ids]
    assert len(done) == 48 and len(later) == planned - 48 and not done & set(later)
    assert sorted(later) == decode.seen()  # what was trained before the checkpoint is not even decoded
    keys = ("planned", "trained", "observed", "mean_loss", "digest")
    assert [[e[k] for k in keys] for e in session.history] == [[e[k] for k in keys] for e in whole.history]
    assert session.progress == 1.0


def test_max_steps_and_a_broken_loop_cut_the_stream(cluster, tmp_path):
    rows = raysel.read(write_rows(tmp_path / "rows"))
    dynamic = raysel.DynamicSelection.local(raysel.FullData(), N, num_epochs=9, max_steps=16)
    session, stream, firsts = dynamic.session(), dynamic.planned(rows), []
    for epoch in session.epochs():
        batches = session.stream(stream, batch_size=20)
        assert session.steps_per_epoch == (12 if epoch == 0 else 4)
        for batch in batches:
            session.loss(batch, loss_of(batch.ids, epoch))
            if session.step == 1:
                firsts.append(batch.ids.tolist())
        session.report()
    # Blocks are of 20 rows: whole ones, in an order of the epoch.
    assert all(first == list(range(first[0], first[0] + 20)) for first in firsts) and firsts[0] != firsts[1]
    assert [(e["steps"], e["trained"]) for e in session.history] == [(12, N), (4, 80)]
    assert session.progress == 1.0


def test_small_row_groups_are_read_together_in_another_order_each_epoch(cluster, tmp_path):
    """More groups than tasks, of two files: an epoch's blocks mix groups from anywhere, and every row comes once."""
    place = tmp_path / "rows"
    place.mkdir()
    for file in range(2):
        pq.write_table(pa.table({"x": np.arange(50.0)}), place / f"{file}.parquet", row_group_size=1)
    rows = raysel.read(place)
    dynamic = raysel.DynamicSelection.local(raysel.FullData(), 100, num_epochs=3)
    session, came, tasks = dynamic.session(), [], []
    stream = dynamic.planned(rows).map_batches(by_task, batch_size=None)
    for epoch in session.epochs():
        batches = list(session.stream(stream, batch_size=10))
        for batch in batches:
            session.loss(batch, loss_of(batch.ids, epoch))
        came.append(np.concatenate([batch.ids[batch.ids >= 0] for batch in batches]).tolist())
        tasks.append(len(set(np.concatenate([batch.data["task"] for batch in batches]))))
        session.report()
    assert all(sorted(ids) == list(range(100)) for ids in came)
    assert came[0] != came[1] != came[2] and came[0] != sorted(came[0])
    assert tasks == 3 * [read_tasks(100, 1, int(cluster.cluster_resources()["CPU"]))] and tasks[0] < 100


def by_task(columns):
    task = ray.get_runtime_context().get_task_id()
    return {**columns, "task": np.full(len(columns["sample_id"]), task)}


@pytest.mark.parametrize("tasks", [1, 16, 60])
def test_an_epochs_row_groups_are_drawn_from_all_of_them(tmp_path, tasks):
    """Also within a task, or rows written in order of class would come in it; of each file together."""
    for file in range(3):
        pq.write_table(pa.table({"x": np.arange(100.0)}), tmp_path / f"{file}.parquet", row_group_size=5)
    reader = IndexedParquet(index_parquet(list_source([tmp_path])))

    def epoch(seed):
        found = ShuffledParquet(reader, Seeded(seed), tasks).get_read_tasks(1)
        tables = [list(task()) for task in found]
        assert len(tables) == tasks and max(map(len, tables)) - min(map(len, tables)) <= 1
        for part in tables:
            files = [int(table["sample_id"][0].as_py()) // 100 for table in part]
            assert len(list(itertools.groupby(files))) == len(set(files))  # each opened once
        ids = [table["sample_id"].to_pylist() for part in tables for table in part]
        assert sorted(itertools.chain(*ids)) == list(range(300)) and all(len(part) == 5 for part in ids)
        return [part[0] for part in ids]

    one, other = epoch(1), epoch(2)
    assert one == epoch(1) and one != other and epoch(None) == list(range(0, 300, 5))
    for order in (one, other):
        assert 0.3 < np.mean(np.diff(order) > 0) < 0.7


@dataclass
class Seeded:
    """A board that knows only the order's seed."""

    order: int | None

    def seed(self) -> int | None:
        return self.order


@pytest.mark.parametrize(
    ("groups", "size", "cpus", "tasks"),
    [(5, 1 << 40, 64, 5), (40, 200 << 20, 2, 16), (40, 200 << 20, 16, 40), (10**6, 1 << 40, 64, 1 << 15)],
)
def test_how_many_tasks_read(groups, size, cpus, tasks):
    assert read_tasks(groups, size, cpus) == tasks


def streamed(rows, make, samples=60, policy=None, **options):
    """Runs the epochs over what ``make`` made of the planned rows."""
    policy = policy or raysel.RoundRobin(0.5)
    dynamic = raysel.DynamicSelection.local(policy, samples, num_epochs=2)
    session = dynamic.session()
    data = make(dynamic.planned(rows))
    for epoch in session.epochs():
        for batch in session.stream(data, **{"batch_size": 8, **options}):
            session.loss(batch, loss_of(batch.ids, epoch))
        session.report()


def test_what_cannot_be_streamed_is_said(cluster, tmp_path):
    rows = raysel.read(write_rows(tmp_path / "rows", 60))
    with pytest.raises(
        DataError,
        match=r"Epoch 0 planned 30 samples, but 1 were not in the stream \(sample_id \d+\).*must keep every row",
    ):
        streamed(rows, lambda planned: planned.limit(29))
    with pytest.raises(
        DataError, match=r"planned 60 samples, but \d+ were not in the stream \(sample_id \d+"
    ):
        streamed(rows, lambda planned: planned.map_batches(Double()), policy=raysel.FullData(), batch_size=60)
    with pytest.raises(DataError, match=r"Some rows are not in the epoch's plan \(sample_id"):
        streamed(rows, lambda planned: rows)
    with pytest.raises(ConfigError, match="Ray Train has no dataset 'train'"):
        streamed(rows, lambda planned: "train")
    with pytest.raises(ConfigError, match="name of one in datasets= is needed, got a list"):
        streamed(rows, lambda planned: [1])
    with pytest.raises(ConfigError, match=r"local_shuffle_buffer_size must be .* got 0"):
        streamed(rows, lambda planned: planned, local_shuffle_buffer_size=0)
    with pytest.raises(ConfigError, match="2 workers cannot each read the complete Dataset"):
        next(arrivals(rows, 2, 8, None, 0, CollateRows(None)))
    with pytest.raises(ConfigError, match="A Ray Dataset is needed, got a list"):
        raysel.DynamicSelection.local(raysel.FullData(), 2, num_epochs=1).planned([])
    with pytest.raises(StateError, match="has not been started"):
        raysel.DynamicSelection(raysel.FullData(), 2, num_epochs=1).planned(rows)
    session = raysel.DynamicSelection.local(raysel.FullData(), 60, num_epochs=1).session()
    next(session.epochs())
    with pytest.raises(StateError, match=r"make it with dynamic\.planned"):
        list(session.stream(rows, batch_size=8))


@pytest.mark.slow  # each reads; the sentences' own tests are in test_shares.py
def test_what_the_filter_finds_comes_through_ray_data(cluster, tmp_path):
    rows = raysel.read(write_rows(tmp_path / "rows", 60))
    streamed(rows, lambda planned: planned)
    with pytest.raises(
        DataError, match=r"no column 'sample_id'; the transformations after dynamic\.planned must keep it"
    ):
        streamed(rows, lambda planned: planned.drop_columns(["sample_id"]))
    with pytest.raises(DataError, match="sample_id 59 is not one of the 50 samples of the run"):
        streamed(rows, lambda planned: planned, samples=50)
    with pytest.raises(
        DataError,
        match=r"planned 35 samples, but 5 were not in the stream \(sample_id 6\d, 6\d, 6\d and 2 more\)",
    ):
        streamed(rows, lambda planned: planned, samples=70)
    with pytest.raises(StateError, match=r"can be read only by session\.stream, and only within an epoch"):
        streamed(rows, lambda planned: planned.materialize())


class Double:
    """The block's first row instead of its second."""

    def __call__(self, columns):
        take = np.arange(len(columns["sample_id"]))
        if 1 in columns["sample_id"]:
            take[1] = 0
        return {name: column[take] for name, column in columns.items()}


def test_no_cpu_for_ray_data_is_said_and_not_waited_for_for_ever(cluster):
    from raysel.train.planned import wait_for_cpu

    @cluster.remote(num_cpus=1)
    class Holder:
        def there(self):
            return True

    wait_for_cpu(60.0)
    holders = [Holder.remote() for _ in range(2)]
    assert all(cluster.get([holder.there.remote() for holder in holders]))
    try:
        with pytest.raises(
            ResourceError,
            match=r"use all CPUs.* within 1 s: 0 of the cluster's 2 CPUs are free. Give the workers fewer",
        ):
            wait_for_cpu(1.0)
    finally:
        for holder in holders:
            cluster.kill(holder)
    wait_for_cpu(60.0)


# ---- in Ray Train ------------------------------------------------------------------------------------------

# All; some; rows of one block, so that a rank gets none; one row; none of the first block's, an odd number.
PLANS = (
    tuple(range(N)),
    tuple(range(3, N, 3)),
    (61, 64, 67, 70, 71, 72, 73, 79, 65, 63, 62),
    (5,),
    tuple(range(21, 200, 2)),
)


def train_loop(config):
    import json
    import os
    import signal

    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    session = config["dynamic"].session()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (session.world,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = {"model": model, "optimizer": optimizer}
    decode, place = config["decode"], Path(config["place"])

    def whole():
        full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        return [value.tolist() for value in full.values()]

    if session.restore(state):
        assert whole() == json.loads((place / f"model-{session.epoch}").read_text())
    if session.rank == 0:
        decode.seen()
    for epoch in session.epochs():
        trace, least = [], session.steps_per_epoch
        for batch in session.stream("train", batch_size=8, local_shuffle_buffer_size=20):
            least = session.steps_per_epoch
            inputs = batch.data["decoded"].float()[:, None] / 1000
            predicted = model(inputs)[:, 0]
            losses = loss_of(batch.ids, epoch) + (predicted - predicted.detach())
            loss = session.loss(batch, losses)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert torch.equal(batch.data["decoded"][batch.ids >= 0], batch.ids[batch.ids >= 0] * 10.0 + 1)
            trace.append([batch.ids.tolist(), batch.share, loss.item(), session.progress])
            if epoch == 1 and session.step == 3 and session.rank == 1:
                try:
                    os.close(os.open(place / "killed", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        assert least <= session.step
        (place / f"trace-{epoch}-{session.rank}").write_text(json.dumps(trace))
        full = whole()
        if session.rank == 0:
            (place / f"model-{epoch + 1}").write_text(json.dumps(full))
        session.report({}, state=state)
        if session.rank == 0:  # Ray Data starts the next epoch only when this rank asks for it, too
            (place / f"decoded-{epoch}").write_text(json.dumps(decode.seen()))
    return session.history


@pytest.mark.slow
def test_two_ranks_stream_what_was_planned_also_after_a_kill(cluster, tmp_path):
    import json

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    policy, decode = Listed(PLANS), Decode(tmp_path / "notes")
    rows = raysel.read(write_rows(tmp_path / "rows"))
    with raysel.DynamicSelection(policy, N, num_epochs=len(PLANS), seed=1) as dynamic:
        result = TorchTrainer(
            train_loop,
            train_loop_config={"dynamic": dynamic, "place": str(tmp_path), "decode": decode},
            datasets={"train": dynamic.planned(rows).map_batches(decode, batch_size=None)},
            dataset_config=raysel.WholeRows(),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name="stream",
                storage_path=str(tmp_path),
                failure_config=FailureConfig(max_failures=1),
            ),
        ).fit()
    assert (tmp_path / "killed").exists()  # a worker did die in epoch 1
    # The same losses, given to the same policy in this process.
    alone = raysel.DynamicSelection.local(policy, N, num_epochs=len(PLANS), seed=1).session()
    for epoch in alone.epochs():
        for batch in alone.loader(Numbers(N), batch_size=N):
            alone.loss(batch, loss_of(batch.ids, epoch))
        alone.report()
    keys = ("epoch", "planned", "observed", "nonfinite", "mean_loss", "digest")
    assert [[e[k] for k in keys] for e in result.return_value] == [
        [e[k] for k in keys] for e in alone.history
    ]
    idle = 0
    for epoch, plan in enumerate(PLANS):
        assert json.loads((tmp_path / f"decoded-{epoch}").read_text()) == sorted(plan)
        ranks = [json.loads((tmp_path / f"trace-{epoch}-{rank}").read_text()) for rank in range(2)]
        entry, seen, done = result.return_value[epoch], [], 0
        assert len(ranks[0]) == len(ranks[1]) == entry["steps"] and entry["trained"] == len(plan)
        for step in zip(*ranks, strict=True):
            real = [[i for i in ids if i >= 0] for ids, *_ in step]
            together = [*real[0], *real[1]]
            assert all(
                ids == [*mine, -1, -1][: max(2, len(mine))]
                for (ids, *_), mine in zip(step, real, strict=True)
            )
            assert {share for _, share, *_ in step} == {len(together) / 2}
            # The mean over ranks is the mean over the rows of the step.
            mean = loss_of(torch.tensor(together), epoch).double().mean().item()
            assert np.mean([loss for _, _, loss, _ in step]) == pytest.approx(mean, rel=1e-5)
            done += len(together)
            assert {progress for *_, progress in step} == {(epoch + done / len(plan)) / len(PLANS)}
            seen += together
        assert sorted(seen) == sorted(plan)  # no row lost, none twice
        idle += any(not any(max(ids) >= 0 for ids, *_ in rank) for rank in ranks)
    assert idle  # in some epoch a rank got no row at all


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["equal shares", "no cpu"])
def test_shares_that_drop_rows_and_workers_that_hold_every_cpu_are_said(cluster, tmp_path, fault):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop(config):
        from raysel.train import planned

        if fault == "no cpu":
            planned.wait_for_cpu.__defaults__ = (5.0,)
        session = config["dynamic"].session()
        for epoch in session.epochs():
            for batch in session.stream(batch_size=8):
                session.loss(batch, loss_of(batch.ids, epoch))
            session.report()

    rows = raysel.read(write_rows(tmp_path / "rows", 229))
    with raysel.DynamicSelection(raysel.FullData(), 229, num_epochs=1) as dynamic:
        trainer = TorchTrainer(
            loop,
            train_loop_config={"dynamic": dynamic},
            datasets={"train": dynamic.planned(rows)},
            dataset_config=None if fault == "equal shares" else raysel.WholeRows(),
            scaling_config=ScalingConfig(
                num_workers=2, resources_per_worker={"CPU": 0.5 if fault == "equal shares" else 1}
            ),
            run_config=RunConfig(name=fault.replace(" ", "-"), storage_path=str(tmp_path)),
        )
        sentence = (
            "'train' was not divided among the workers by raysel.WholeRows.* Give TorchTrainer the argument dataset_config="
            if fault == "equal shares"
            else "got no CPU for reading within 5 s"
        )
        with pytest.raises(Exception, match=sentence):
            trainer.fit()
