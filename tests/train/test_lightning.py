"""A Lightning Trainer that would mislead is refused before it trains, and no exception of the user's is hidden."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from raysel import DynamicSelection, FullData, InfoBatch
from raysel.errors import ConfigError, DataError, StateError

pytestmark = pytest.mark.slow

N = 40


@pytest.fixture
def fit(tmp_path):
    """Fits a module; ``selecting``, ``module`` and ``loader`` may be given, the rest is the Trainer's."""
    L = pytest.importorskip("lightning.pytorch")
    from raysel.train.adapters.lightning import Selecting

    class Module(L.LightningModule):
        def __init__(self, selecting):
            super().__init__()
            self.layer, self.held = torch.nn.Linear(4, 3), [selecting]

        def training_step(self, batch, number):
            inputs, labels = batch.data
            return self.held[0].loss(batch, F.cross_entropy(self.layer(inputs), labels, reduction="none"))

        def validation_step(self, batch, number):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.TensorDataset(torch.randn(N, 4), torch.arange(N) % 3)

    def run(
        *callbacks,
        epochs=2,
        policy=None,
        kind=Module,
        loader=None,
        forget=False,
        ckpt_path=None,
        validate=False,
        dataset=data,
        **more,
    ):
        selecting = Selecting(
            DynamicSelection.local(policy or FullData(), N, num_epochs=epochs), dataset, batch_size=4
        )
        options = {
            "max_epochs": epochs, "reload_dataloaders_every_n_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path, **more,
        }  # fmt: skip
        trainer = L.Trainer(**options, callbacks=[*([] if forget else [selecting]), *callbacks])
        rows = [torch.utils.data.DataLoader(data, batch_size=20)] if validate else []
        trainer.fit(
            kind(selecting), selecting.loader if loader is None else loader, *rows, ckpt_path=ckpt_path
        )
        return selecting, trainer

    run.Module, run.callbacks, run.data = Module, L.callbacks, data
    return run


def history(selecting):
    return selecting.driven.session.history


def test_a_callback_that_was_forgotten(fit):
    with pytest.raises(
        ConfigError,
        match=r"does not have the callback; give the callback to the Trainer, as Trainer\(callbacks=\[selecting\]",
    ):
        fit(forget=True)


def test_checkpoints_within_an_epoch_are_refused_in_setup(fit):
    own = fit.callbacks.ModelCheckpoint
    for callbacks, more in (
        ([], {"check_val_every_n_epoch": 2}),
        ([own()], {"check_val_every_n_epoch": 2}),
        ([own()], {"val_check_interval": 0.5}),
        ([own(save_on_train_epoch_end=False)], {}),
        ([own(every_n_train_steps=3)], {}),
        ([own(save_on_train_epoch_end=True), own(every_n_train_steps=3)], {}),
    ):
        with pytest.raises(
            ConfigError, match=r"Trainer would save within an epoch.*save_on_train_epoch_end=True"
        ):
            fit(*callbacks, validate=True, **more)
    for callbacks, more in (
        ([own(save_on_train_epoch_end=True)], {"check_val_every_n_epoch": 2}),
        ([], {"check_val_every_n_epoch": 2, "enable_checkpointing": False}),
        ([], {}),
    ):
        selecting, _ = fit(*callbacks, validate=True, **more)
        assert [entry["observed"] for entry in history(selecting)] == [N, N]


def test_what_does_not_go_together_is_refused_in_setup(fit):
    class Manual(fit.Module):
        def __init__(self, selecting):
            super().__init__(selecting)
            self.automatic_optimization = False

    for callbacks, more, sentence in (
        ([], {"kind": Manual}, "Manual optimization is not supported"),
        (
            [fit.callbacks.GradientAccumulationScheduler({0: 2})],
            {},
            "GradientAccumulationScheduler is not supported",
        ),
        ([], {"max_epochs": 3}, "Give the Trainer max_epochs=2 and no max_steps"),
        ([], {"overfit_batches": 2}, "no limit_train_batches and no overfit_batches"),
        ([], {"reload_dataloaders_every_n_epochs": 0}, "reload_dataloaders_every_n_epochs=1"),
    ):
        with pytest.raises(ConfigError, match=f"Selecting: .*{sentence}"):
            fit(*callbacks, **more)


@pytest.mark.parametrize("batches", [True, 3])
def test_a_fast_dev_run_takes_a_few_batches_of_the_first_epoch(fit, batches):
    selecting, trainer = fit(fast_dev_run=batches, policy=InfoBatch(), epochs=4)
    (entry,) = history(selecting)
    assert entry["observed"] == 4 * int(batches) and trainer.global_step == int(batches)


def test_data_that_can_only_be_read_in_order_is_refused_at_once(fit):
    class InOrder(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(N))

    with pytest.raises(DataError, match="Selecting: A InOrder does not support dataset"):
        fit(dataset=InOrder())


def test_what_is_no_selection():
    pytest.importorskip("lightning")
    from raysel.train.adapters.lightning import Selecting

    with pytest.raises(
        ConfigError, match="Selecting: The argument dynamic must be a DynamicSelection, got None"
    ):
        Selecting(None, range(N), batch_size=4)


def test_batches_and_losses_that_do_not_reach_the_selection(fit):
    class Plain(fit.Module):
        def training_step(self, batch, number):
            inputs, labels = getattr(batch, "data", batch)
            return F.cross_entropy(self.layer(inputs), labels)

    class Unpacked(fit.Module):
        def training_step(self, batch, number):
            return self.held[0].loss(batch.data, torch.ones(4, requires_grad=True))

    class Skips(fit.Module):
        def training_step(self, batch, number):
            return None if number < 2 else super().training_step(batch, number)

    own = torch.utils.data.DataLoader(fit.data, batch_size=4)
    for kind in (Plain, fit.Module):
        with pytest.raises(
            StateError, match=r"batches that do not follow the plan; .*trainer.fit\(model, selecting.loader\)"
        ):
            fit(kind=kind, loader=own)
    with pytest.raises(StateError, match=r"training_step recorded no loss .*selecting.loss\(batch, losses\)"):
        fit(kind=Plain)
    with pytest.raises(DataError, match="must be the Batch"):
        fit(kind=Unpacked)
    assert [entry["observed"] for entry in history(fit(kind=Skips)[0])] == [N - 8, N - 8]


def test_the_users_own_exception_is_raised_by_callbacks_that_save_on_it(fit, tmp_path):
    class Breaks(fit.Module):
        def training_step(self, batch, number):
            if number == 3:
                raise ValueError("mine")
            return super().training_step(batch, number)

    saves = fit.callbacks.OnExceptionCheckpoint(str(tmp_path / "b"))
    for callback in (fit.callbacks.ModelCheckpoint(tmp_path / "a", save_on_exception=True), saves):
        with pytest.raises(ValueError, match=r"^mine$"):
            fit(callback, kind=Breaks)
    with pytest.raises(StateError, match="saved when epoch 0 was interrupted, and has no selection state"):
        fit(ckpt_path=saves.ckpt_path)


def test_a_run_is_continued_with_more_epochs(fit, tmp_path):
    def keep():
        return fit.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True)

    first, _ = fit(keep(), policy=InfoBatch(0.6, 1.0))
    longer, trainer = fit(
        keep(), policy=InfoBatch(0.6, 1.0), epochs=5, ckpt_path=tmp_path / "kept" / "last.ckpt"
    )
    assert history(longer)[:2] == history(first) and [entry["epoch"] for entry in history(longer)] == list(
        range(5)
    )
    assert trainer.global_step == sum(entry["steps"] for entry in history(longer))
