"""Under Lightning, the Hugging Face Trainer and Accelerate: every loss reaches its own sample, every gradient its weight.

Each test runs adapter_job.py with the real framework, in one process or in two that gloo joins, and compares with a
run worked out by hand. The documents' examples run as they stand.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raysel import InfoBatch
from raysel.dynamic.keeper import Keeper
from raysel.dynamic.plan import order

JOB = Path(__file__).with_name("adapter_job.py")
_spec = importlib.util.spec_from_file_location("adapter_job", JOB)
job = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(job)

KEYS = ("epoch", "planned", "trained", "steps", "observed", "nonfinite", "mean_loss", "digest")


def by_hand(rows: int, max_steps: int | None = None) -> tuple[list[dict], float]:
    """History and trained weight of the same run: ``rows`` a step, SGD on the weighted mean, a rate falling to 0."""
    keeper = Keeper(InfoBatch(0.6, 0.9), job.N, job.EPOCHS, job.SEED)
    keeper.restore("hand")
    history, weight, taken = [], 0.0, 0
    for epoch in range(job.EPOCHS):
        plan = keeper.plan("hand", epoch)
        visit = order(len(plan), job.SEED, epoch)
        sizes = [len(part) for part in np.split(visit, range(rows, len(visit), rows))]
        if sizes[-1] == 1:  # the last step takes a row from the one before it
            sizes[-2:] = rows - 1, 2
        if max_steps is not None:
            sizes = sizes[: max_steps - taken]
        steps, seen = len(sizes), visit[: sum(sizes)]
        for step, at in enumerate(np.split(seen, np.cumsum(sizes)[:-1])):
            slopes = job.slope_of(torch.from_numpy(plan.slots[at])).numpy().astype(np.float64)
            progress = (epoch + step / steps) / job.EPOCHS if max_steps is None else taken / max_steps
            weight -= job.RATE * (1 - progress) * float((plan.weights[at] * slopes).sum()) / len(at)
            taken += 1
        slots = plan.slots[seen]
        keeper.update("hand", epoch, slots, job.loss_of(torch.from_numpy(slots), epoch).numpy())
        done = keeper.commit("hand", epoch)
        history.append({**done, "trained": len(seen), "steps": steps})
        if taken == max_steps:
            break
    return history, weight


def run(framework: str, directory: Path, *options: str, ranks: int = 1, fails: int = 0) -> tuple[list, list]:
    """The job's history and every rank's trained weight."""
    (directory / "result.json").unlink(missing_ok=True)
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*launch, str(JOB), framework, str(directory), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if fails:
        assert done.returncode and not (directory / "result.json").exists(), done.stderr[-3000:]
        return [], []
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((directory / "result.json").read_text())
    return result["history"], result["weights"]


def same(history: list[dict], expected: list[dict]) -> None:
    assert [[entry[key] for key in KEYS] for entry in history] == [
        [entry[key] for key in KEYS] for entry in expected
    ]


FRAMEWORKS = [
    pytest.param("huggingface", marks=pytest.mark.slow),
    pytest.param("accelerate", marks=pytest.mark.slow),
    pytest.param("lightning", marks=pytest.mark.slow),
]


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    pytest.importorskip({"huggingface": "transformers"}.get(request.param, request.param))
    return request.param


def test_the_run_by_hand_leaves_samples_out_and_ends_with_a_short_step():
    history, _ = by_hand(rows=24)
    assert history[0]["nonfinite"] == 1 and history[-1]["nonfinite"] == 2  # the last epoch leaves nothing out
    assert min(entry["planned"] for entry in history) < 0.8 * job.N
    assert sum(entry["planned"] % 24 > 0 for entry in history) >= 3
    # With 28 rows per step, the first and the last epoch would end with a single row.
    assert [entry["planned"] % 28 for entry in by_hand(rows=28)[0]][:: job.EPOCHS - 1] == [1, 1]


@pytest.mark.parametrize(("ranks", "accumulate", "batch_size", "workers"), [(1, 1, 8, 0), (2, 3, 4, 1)])
def test_losses_and_gradients_are_those_worked_out_by_hand(
    framework, tmp_path, ranks, accumulate, batch_size, workers
):
    options = [f"--accumulate={accumulate}", f"--batch-size={batch_size}", f"--workers={workers}"]
    history, weights = run(framework, tmp_path, *options, ranks=ranks)
    expected, weight = by_hand(rows=ranks * accumulate * batch_size)
    same(history, expected)
    assert weights == pytest.approx([weight] * ranks, rel=1e-5) and len(set(weights)) == 1


def stopped_and_resumed(framework: str, directory: Path, ranks: tuple[int, ...] = (2, 1)) -> None:
    """On two ranks, stopped within an epoch, resumed on two, or on one that takes twice the rows."""
    options = ["--accumulate=2", "--batch-size=7"]
    run(framework, directory, *options, "--stop", "2", "5", ranks=2, fails=1)
    expected, weight = by_hand(rows=28)
    shutil.copytree(directory, directory / "alone")
    for again, place in ((2, directory), (1, directory / "alone")):
        if again in ranks:
            more = [f"--accumulate={4 // again}", "--batch-size=7", "--resume"]
            history, weights = run(framework, place, *more, ranks=again)
            same(history, expected)
            assert weights == pytest.approx([weight] * again, rel=1e-5)


@pytest.mark.slow  # processes of its own
@pytest.mark.parametrize("again", [2, 1])
def test_processes_without_ray_and_without_a_framework_share_one_state(tmp_path, again):
    stopped_and_resumed("plain", tmp_path, (again,))


def test_a_run_stopped_within_an_epoch_and_resumed_is_the_undisturbed_run(framework, tmp_path):
    stopped_and_resumed(framework, tmp_path)
    before, _ = by_hand(rows=28)
    again, _ = run(framework, tmp_path, "--accumulate=2", "--batch-size=7", "--resume", ranks=2)
    same(again, before)  # nothing was left to train


def test_max_steps_cuts_the_last_epoch(framework, tmp_path):
    history, weights = run(framework, tmp_path, "--max-steps=40")
    expected, weight = by_hand(rows=8, max_steps=40)
    assert 1 < len(expected) < job.EPOCHS
    same(history, expected)
    assert weights == pytest.approx([weight], rel=1e-5)


PAGES = {"SelectingTrainer(": "hugging-face.md", "Accelerator(": "pytorch.md", "L.Trainer(": "lightning.md"}


def documented(name: str) -> list[str]:
    """The block of a guide that shows a framework, after the one that makes ``dynamic`` where that stands apart."""
    text = (Path(__file__).resolve().parents[2] / "docs/guides" / PAGES[name]).read_text()
    found = re.findall(r"```python\n(.*?)```", text, re.S)
    block = next(block for block in found if name in block)
    made = next(block for block in found if "DynamicSelection.local(InfoBatch()" in block)
    return [block] if made == block else [made, block]


class Words(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 70

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(i, i + 5) % 50
        return {"input_ids": ids, "labels": ids}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SelectingTrainer(", "Accelerator(", "L.Trainer("])
def test_the_documented_examples_run_as_they_stand(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pairs = torch.utils.data.TensorDataset(torch.randn(70, 4), torch.arange(70) % 3)
    scope = {"dataset": pairs, "make_model": lambda: torch.nn.Linear(4, 3)}
    if name == "SelectingTrainer(":
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
        )
        scope |= {"dataset": Words(), "model": transformers.GPT2LMHeadModel(config)}
    elif name == "Accelerator(":
        pytest.importorskip("accelerate")
        model = torch.nn.Linear(4, 3)
        scope |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    else:
        pytest.importorskip("lightning")
    for block in documented(name):
        exec(compile(block, f"docs/guides/{PAGES[name]}", "exec"), scope)
    session = scope.get("session") or (scope.get("trainer") and getattr(scope["trainer"], "driven", None))
    session = session or scope["selecting"].driven
    history = getattr(session, "session", session).history
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3] and history[2]["planned"] < 70
    if name == "SelectingTrainer(":
        rate = scope["trainer"].lr_scheduler.get_last_lr()[0]
        assert rate == pytest.approx(0.0, abs=1e-9)  # the schedule ended with the run
        last = sorted(tmp_path.glob("runs/mine/checkpoint-*/raysel"))
        assert len(last) == 4


@pytest.mark.slow
def test_a_lightning_batch_rounded_to_bfloat16_keeps_its_weights():
    pytest.importorskip("lightning")
    from types import SimpleNamespace

    from lightning.pytorch.plugins.precision import HalfPrecision

    from raysel import DynamicSelection, FullData, Selection
    from raysel.train.adapters.lightning import Selecting

    chosen = Selection.of(np.arange(0, 20, 2), weight=np.full(10, 1.1), info={"pool_rows": 20})
    data = torch.utils.data.TensorDataset(torch.randn(20, 2))
    selecting = Selecting(DynamicSelection.local(FullData(), chosen, num_epochs=1), data, batch_size=4)
    selecting._trainer = SimpleNamespace(accumulate_grad_batches=1, current_epoch=0, global_step=0)
    for batch in selecting.loader:
        rounded = HalfPrecision("bf16-true").convert_input(batch)
        assert rounded.weights.dtype == torch.bfloat16
        assert selecting.loss(rounded, torch.ones(len(batch.ids))).item() == pytest.approx(1.1, rel=1e-6)


@pytest.mark.slow
def test_the_trainer_notes_no_loss_for_a_text_of_which_nothing_is_asked(tmp_path):
    """Losses of a sample, of a token, and of a token with a mask; a rate of 0, so that the losses stay."""
    transformers = pytest.importorskip("transformers")
    import torch.nn.functional as F

    from raysel import DynamicSelection, FullData
    from raysel.errors import DataError
    from raysel.train.adapters.huggingface import SelectingTrainer, language_model_losses

    class Answers(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, i):
            ids = torch.arange(i, i + 6) % 50
            return {
                "input_ids": ids,
                "labels": ids.masked_fill(torch.arange(6) < (6 if i % 7 == 0 else i % 5), -100),
            }

    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, **off, bos_token_id=0, eos_token_id=0, initializer_range=1.0)
    model = transformers.GPT2LMHeadModel(config)
    rows = [Answers()[i] for i in range(64)]
    tokens = []  # each sample's five losses and how many are asked, one sample at a time
    with torch.no_grad():
        for row in rows:
            logits = model(row["input_ids"][None]).logits[0, :-1]
            tokens.append(F.cross_entropy(logits, row["labels"][1:], reduction="none").numpy())
    asked = np.array([int((row["labels"][1:] != -100).sum()) for row in rows])
    sums = np.array(tokens).sum(1)
    mean = sums / np.maximum(asked, 1)
    assert (asked == 0).sum() == 10

    def fit(compute_loss_func):
        trainer = SelectingTrainer(
            model,
            transformers.TrainingArguments(
                str(tmp_path),
                num_train_epochs=1,
                per_device_train_batch_size=4,
                per_device_eval_batch_size=10,
                gradient_accumulation_steps=2,
                learning_rate=0.0,
                save_strategy="no",
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Answers(),
            eval_dataset=Answers(),
            compute_loss_func=compute_loss_func,
            dynamic=DynamicSelection.local(FullData(), 64, num_epochs=1),
        )
        trained = trainer.train().training_loss
        (epoch,) = trainer.driven.session.history
        return epoch["observed"], epoch["mean_loss"], trained, trainer.evaluate()["eval_loss"]

    def per_token(outputs, labels):
        return language_model_losses(outputs, labels)[0]

    def by_sample(outputs, labels):
        return per_token(outputs, labels).mean(1)

    everything = (sums / 5).mean()
    for answers, expected in (
        (language_model_losses, (54, mean[asked > 0].mean(), mean.mean(), mean.mean())),
        (per_token, (64, everything, everything, everything)),
        (by_sample, (64, everything, everything, everything)),
    ):
        assert fit(answers) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match="one row per sample"):
        fit(lambda outputs, labels: by_sample(outputs, labels).mean())


@pytest.mark.slow
def test_a_lightning_run_notes_no_loss_for_a_sample_in_which_nothing_counts():
    pytest.importorskip("lightning")
    from types import SimpleNamespace

    from raysel import DynamicSelection, FullData
    from raysel.train.adapters.lightning import Selecting

    data = torch.utils.data.TensorDataset(torch.arange(20))
    selecting = Selecting(DynamicSelection.local(FullData(), 20, num_epochs=1), data, batch_size=4)
    selecting._trainer = SimpleNamespace(accumulate_grad_batches=1, current_epoch=0, global_step=0)
    for batch in selecting.loader:
        losses = torch.tensor([1.0, 3.0, torch.nan]).expand(4, 3)
        mask = torch.tensor([True, True, False]) & (batch.data[0] != 7)[:, None]
        counts = (batch.data[0] != 7).sum().item()
        assert selecting.loss(batch, losses, mask).item() == pytest.approx(2.0 * counts / 4)
    selecting.driven.end_epoch()
    (epoch,) = selecting.driven.session.history
    assert (epoch["observed"], epoch["nonfinite"], epoch["mean_loss"]) == (19, 0, 2.0)


@pytest.mark.slow
def test_arguments_that_do_not_go_together_are_said(tmp_path):
    transformers = pytest.importorskip("transformers")
    from raysel import DynamicSelection
    from raysel.errors import ConfigError, StateError
    from raysel.train.adapters.huggingface import SelectingTrainer

    def make(**arguments):
        arguments = {"num_train_epochs": 4, "save_strategy": "epoch", "use_cpu": True, **arguments}
        return SelectingTrainer(
            job.OneNumber(),
            transformers.TrainingArguments(str(tmp_path), report_to=[], **arguments),
            train_dataset=job.Numbers(),
            compute_loss_func=lambda outputs, labels: outputs["logits"],
            dynamic=DynamicSelection.local(InfoBatch(), job.N, num_epochs=4),
        )

    for wrong in ({"num_train_epochs": 3}, {"max_steps": 10}):
        with pytest.raises(ConfigError, match="num_train_epochs=4"):
            make(**wrong)
    with pytest.raises(ConfigError, match='save_strategy="epoch"'):
        make(save_strategy="steps")
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(StateError, match="holds no selection state"):
        make().train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_a_lightning_trainer_that_does_not_fit_is_said(tmp_path):
    pytest.importorskip("lightning")
    import lightning.pytorch as L

    from raysel import DynamicSelection
    from raysel.errors import ConfigError
    from raysel.train.adapters.lightning import Selecting

    for wrong, sentence in (
        ({"max_epochs": 3}, "max_epochs=4"),
        ({"max_epochs": 4, "max_steps": 9}, "no max_steps"),
        ({"max_epochs": 4, "reload_dataloaders_every_n_epochs": 0}, "reload_dataloaders_every_n_epochs=1"),
        ({"max_epochs": 4, "limit_train_batches": 3}, "limit_train_batches"),
    ):
        selecting = Selecting(
            DynamicSelection.local(InfoBatch(), job.N, num_epochs=4), job.Numbers(), batch_size=8
        )
        options = {"reload_dataloaders_every_n_epochs": 1, **wrong}
        trainer = L.Trainer(
            **options, accelerator="cpu", callbacks=[selecting], logger=False, default_root_dir=tmp_path
        )
        with pytest.raises(ConfigError, match=sentence):
            trainer.fit(_module(), selecting.loader)


def _module():
    import lightning.pytorch as L

    class Module(L.LightningModule):
        def training_step(self, batch, index):
            raise AssertionError("nothing is trained")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_steps": 3}])
def test_lightning_does_not_go_on_from_a_checkpoint_without_the_selection(length, tmp_path):
    pytest.importorskip("lightning")
    import lightning.pytorch as L

    from raysel import DynamicSelection
    from raysel.errors import StateError
    from raysel.train.adapters.lightning import Selecting

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = job.OneNumber()

        def training_step(self, batch, index):
            return self.model(batch["x"])["logits"].mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    off = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing"], False)
    before = L.Trainer(**length, **off, accelerator="cpu")
    before.fit(Module(), torch.utils.data.DataLoader(job.Numbers(), batch_size=8))
    before.save_checkpoint(tmp_path / "before.ckpt")
    dynamic = DynamicSelection.local(InfoBatch(), job.N, num_epochs=4)
    selecting = Selecting(dynamic, job.Numbers(), batch_size=8)
    options = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1, "callbacks": [selecting]}
    after = L.Trainer(**options, **off, accelerator="cpu")
    with pytest.raises(StateError, match="saved with Selecting among the callbacks"):
        after.fit(Module(), selecting.loader, ckpt_path=tmp_path / "before.ckpt")


@pytest.mark.slow
def test_lightning_saves_after_the_epochs_end_and_refuses_to_in_the_validation_before_it(tmp_path):
    pytest.importorskip("lightning")
    import lightning.pytorch as L

    from raysel import DynamicSelection
    from raysel.errors import ConfigError
    from raysel.train.adapters.lightning import Selecting

    def fit(checkpoint=None, after=None):
        dynamic = DynamicSelection.local(InfoBatch(0.6, 0.9), job.N, num_epochs=job.EPOCHS, seed=job.SEED)
        selecting = Selecting(dynamic, job.Numbers(), batch_size=8)

        class Module(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = job.OneNumber()

            def training_step(self, batch, index):
                logits, epoch = self.model(batch.data["x"])["logits"], selecting.driven.session.epoch
                return selecting.loss(batch, job.losses_of(logits, batch.data["labels"], epoch))

            def validation_step(self, batch, index):
                pass

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=job.RATE)

        keep = L.callbacks.ModelCheckpoint(
            tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=after, enable_version_counter=False
        )
        trainer = L.Trainer(
            max_epochs=job.EPOCHS,
            reload_dataloaders_every_n_epochs=1,
            callbacks=[selecting, keep],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
        )
        module = Module()
        validation = torch.utils.data.DataLoader(job.Numbers(), batch_size=64)
        trainer.fit(module, selecting.loader, validation, ckpt_path=checkpoint)
        return selecting.driven.session.history, module.model.weight.item()

    history, weight = fit()
    same(history, by_hand(rows=8)[0])
    for epoch in (0, 2):
        again, resumed = fit(tmp_path / f"epoch={epoch}.ckpt")
        same(again, history)
        assert resumed == weight
    with pytest.raises(ConfigError, match="save_on_train_epoch_end=True"):
        fit(after=False)


@pytest.mark.slow
def test_the_language_model_example_prints_its_four_runs(tmp_path):
    pytest.importorskip("transformers")
    workflows = Path(__file__).resolve().parents[2] / "workflows"
    source = tmp_path / "wordnet"
    source.mkdir()
    for part in (
        "noun",
        "verb",
        "adj",
        "adv",
    ):  # as data files begin: offset, lexicographer file, rest | gloss
        lines = [f"{i:08d} 03 n 01 w {i} | the {i % 7} of {i % 11} things; part {part}" for i in range(600)]
        (source / f"data.{part}").write_text("  licence\n" + "\n".join(lines) + "\n")
    small = ["--rows=96", "--epochs=4"]
    done = subprocess.run(
        [sys.executable, str(workflows / "wordnet_lm.py"), f"--source={source}", f"--out={tmp_path}", *small],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = {row["run"]: row for row in json.loads((tmp_path / "wordnet_lm.json").read_text())["runs"]}
    assert list(runs) == ["full", "infobatch", "random", "full, equal steps"]
    assert runs["full"]["samples"] == 4 * 96 and runs["infobatch"]["share"] < 1
    assert runs["full, equal steps"]["steps"] == runs["infobatch"]["steps"]
    assert all(1 < row["perplexity"] < 2003 for row in runs.values())
