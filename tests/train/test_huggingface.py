"""What the Hugging Face Trainer offers is honoured within the plan, or refused in its own words."""

from __future__ import annotations

import types
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysel import DynamicSelection, FullData, InfoBatch
from raysel.dynamic.plan import order
from raysel.errors import ConfigError, DataError, StateError

pytestmark = pytest.mark.slow

N = 40


class Net(torch.nn.Module):
    """Two heads on four numbers; the labels of the second task are for the loss alone."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 6)

    def forward(self, x, labels=None, start_positions=None, end_positions=None):
        return {"logits": self.layer(x.float())}


def rows(n=N, names=("labels",)):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(4, generator=draw),
            **{name: torch.tensor((i + k) % 6) for k, name in enumerate(names)},
        }
        for i in range(n)
    ]


def per_sample(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels, reduction="none")


@pytest.fixture
def make(tmp_path):
    """A maker of trainers: arguments of TrainingArguments, and ``of`` for those of SelectingTrainer."""
    transformers = pytest.importorskip("transformers")
    from raysel.train.adapters.huggingface import SelectingTrainer

    def made(kind=SelectingTrainer, policy=None, epochs=2, of=None, **arguments):
        torch.manual_seed(0)
        arguments = {
            "num_train_epochs": epochs, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": [],
            "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False, "seed": 3, **arguments,
        }  # fmt: skip
        given = {"train_dataset": rows(), "compute_loss_func": per_sample, **(of or {})}
        dynamic = DynamicSelection.local(
            policy or FullData(), len(given["train_dataset"]), num_epochs=epochs, seed=1
        )
        return kind(
            Net(),
            transformers.TrainingArguments(str(tmp_path / "out"), **arguments),
            dynamic=dynamic,
            **given,
        )

    return made


def seen_by(trainer):
    """Train; return the ids of each batch."""
    found, compute = [], trainer.compute_loss

    def watch(model, inputs, *more, **others):
        if trainer._batch is not None:
            found.append(trainer._batch.ids.tolist())
        return compute(model, inputs, *more, **others)

    trainer.compute_loss = watch
    trainer.train()
    return found


# ---- the order of a plan


class Texts(torch.utils.data.Dataset):
    """Texts with lengths that differ as those of real ones do."""

    def __init__(self, n=600):
        self.lengths = np.random.default_rng(0).lognormal(3, 0.8, n).astype(int).clip(1, 300)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return {"input_ids": torch.full((int(self.lengths[i]),), i % 50), "labels": i % 6}


def pad(samples):
    longest = max(len(one["input_ids"]) for one in samples)
    width = torch.tensor([[longest, len(one["input_ids"]), 0, 0] for one in samples])
    return {"x": width, "labels": torch.tensor([one["labels"] for one in samples])}


def test_length_grouping_is_honoured_within_the_plan(make):
    from transformers.trainer_pt_utils import get_length_grouped_indices

    data = Texts()
    given = {"train_dataset": data, "data_collator": pad}

    def fit(strategy, accumulate=1, batch_size=8):
        trainer = make(
            policy=InfoBatch(0.6, 1.0), epochs=3, of=given, train_sampling_strategy=strategy,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        return seen_by(trainer), trainer.driven.session.history

    def padding(batches):
        return 1 - sum(data.lengths[ids].sum() for ids in batches) / sum(
            data.lengths[ids].max() * len(ids) for ids in batches
        )

    grouped, history = fit("group_by_length")
    alone, _ = fit("random")
    trainers_own = np.array(get_length_grouped_indices(data.lengths.tolist(), 8)).reshape(75, 8)
    assert padding(grouped[:75]) < 1.1 * padding(trainers_own) < 0.25 and padding(alone) > 0.5
    assert [entry["trained"] for entry in history] == [entry["planned"] for entry in history]
    assert history[2]["planned"] < 600 == history[0]["planned"]
    assert sorted(chain(*grouped[:75])) == list(range(600)) == sorted(chain(*alone[:75]))
    assert grouped[:75] != grouped[75:150] and fit("group_by_length")[0] == grouped  # by seed and epoch
    steps = [sorted(ids) for ids in grouped[:75]]
    halves = fit("group_by_length", accumulate=2, batch_size=4)[0]
    assert [
        sorted(halves[2 * at] + halves[2 * at + 1]) for at in range(75)
    ] == steps  # however a step is divided


def test_a_column_of_lengths_is_used(make):
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    lengths = [(7 * i) % 40 + 1 for i in range(N)]
    data = datasets.Dataset.from_dict(
        {"x": [[0.0, 0, 0, 0]] * N, "labels": [i % 6 for i in range(N)], "length": lengths}
    )

    def without_length(samples):
        return transformers.default_data_collator(
            [{k: v for k, v in one.items() if k != "length"} for one in samples]
        )

    given = {"train_dataset": data.with_format("torch"), "data_collator": without_length}
    trainer = make(of=given, train_sampling_strategy="group_by_length")
    found = seen_by(trainer)
    assert np.mean([np.ptp(np.array(lengths)[ids]) for ids in found]) < 15


def test_the_sequential_strategy_visits_the_plan_in_order(make):
    assert list(chain(*seen_by(make(epochs=1, train_sampling_strategy="sequential")))) == list(range(N))
    assert list(chain(*seen_by(make(epochs=1)))) == order(N, 1, 0).tolist()


def test_an_order_of_the_users_own_is_refused(make):
    from raysel.train.adapters.huggingface import SelectingTrainer

    class Weighted(SelectingTrainer):
        def _get_train_sampler(self, *ignored):
            return torch.utils.data.WeightedRandomSampler(torch.ones(N), N)

    class Own(SelectingTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(self.train_dataset, batch_size=4)

    with pytest.raises(ConfigError, match="Weighted reads its rows with a WeightedRandomSampler"):
        make(Weighted).train()
    with pytest.raises(StateError, match="Own trains on batches that do not follow the plan"):
        make(Own).train()


def test_arguments_that_cannot_be_honoured_are_refused(make):
    for wrong, sentence in (
        (
            {"train_sampling_strategy": "batch_rebalance"},
            'order of train_sampling_strategy="batch_rebalance"',
        ),
        ({"dataloader_drop_last": True}, "Leave dataloader_drop_last unset"),
        (
            {"data_seed": 3},
            "Leave data_seed unset in TrainingArguments and give the seed to DynamicSelection",
        ),
        ({"accelerator_config": {"split_batches": True}}, "Leave split_batches unset"),
        ({"enable_jit_checkpoint": True}, "Leave enable_jit_checkpoint unset"),
        ({"save_strategy": "steps"}, 'Set save_strategy="epoch"'),
        (
            {
                "save_strategy": "best",
                "eval_strategy": "steps",
                "eval_steps": 1,
                "metric_for_best_model": "loss",
            },
            'Set eval_strategy="epoch" together with save_strategy="best"',
        ),
    ):
        with pytest.raises(ConfigError, match=f"SelectingTrainer: .*{sentence}"):
            make(of={"eval_dataset": rows(8)}, **wrong)


def test_label_smoothing_that_would_be_ignored_is_refused(make, monkeypatch):
    monkeypatch.setattr(Net, "config", types.SimpleNamespace(), raising=False)
    with pytest.raises(ConfigError, match="SelectingTrainer: Leave label_smoothing_factor unset"):
        make(label_smoothing_factor=0.1)


def test_a_loss_function_of_another_form_is_refused(make):
    for function in (lambda outputs: 0, lambda outputs, labels, num_items_in_batch: 0):
        with pytest.raises(ConfigError, match=r"must accept exactly the arguments \(outputs, labels\)"):
            make(of={"compute_loss_func": function})
    with pytest.raises(DataError, match="compute_loss_func returned 3 values"):
        make(of={"compute_loss_func": lambda outputs, labels: (1, 2, 3)}).train()


def test_what_is_no_selection_and_no_checkpoint(make):
    from transformers import TrainingArguments

    from raysel.train.adapters.huggingface import SelectingTrainer

    for dynamic in (InfoBatch(), None):
        with pytest.raises(
            ConfigError, match="SelectingTrainer: The argument dynamic must be a DynamicSelection, got"
        ):
            SelectingTrainer(Net(), TrainingArguments("out"), dynamic=dynamic)
    with pytest.raises(StateError, match="There is no checkpoint /nowhere to resume from"):
        make().train("/nowhere")


def test_data_that_can_only_be_read_in_order_is_refused_at_once(make):
    class InOrder(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows())

        def __len__(self):
            return N

    for more in ({}, {"max_steps": 5}):
        with pytest.raises(DataError, match="SelectingTrainer: A InOrder does not support dataset"):
            make(of={"train_dataset": InOrder()}, **more)


# ---- losses


def test_the_loss_function_gets_the_labels_that_label_names_names(make):
    names = ["start_positions", "end_positions"]

    def both(outputs, labels):
        start, end = labels
        return per_sample(outputs, start) + per_sample(outputs, end)

    for label_names in (
        names,
        None,
    ):  # those of the model's own forward are not taken where there are "labels"
        given = {
            "train_dataset": rows(names=names),
            "eval_dataset": rows(8, names),
            "compute_loss_func": both,
        }
        trainer = make(of=given, label_names=label_names)
        if label_names is None:
            trainer.label_names = names  # as for a model named XxxForQuestionAnswering
        trainer.train()
        assert trainer.driven.session.history[-1]["observed"] == N
        assert trainer.evaluate()["eval_loss"] > 1
    trainer = make(of={"train_dataset": rows(names=("end_positions",))}, label_names=["end_positions"])
    assert trainer.train().global_step == 20
    with pytest.raises(
        DataError, match="label_names names end_positions, but the batch has x, start_positions"
    ):
        make(
            of={"train_dataset": rows(names=("start_positions",)), "compute_loss_func": both},
            label_names=names,
        ).train()


def test_a_loss_that_is_not_recorded_is_found_at_the_first_step(make):
    from raysel.train.adapters.huggingface import SelectingTrainer, language_model_losses

    taken = []

    class Smoothed(SelectingTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            taken.append(set(inputs))
            labels = inputs.pop("labels")
            return F.cross_entropy(model(**inputs)["logits"], labels, label_smoothing=0.1)

    with pytest.raises(
        StateError,
        match=r"Smoothed.compute_loss overrides the method that records .* argument compute_loss_func",
    ):
        make(Smoothed).train()
    assert taken == [{"x", "labels"}]

    class Logged(SelectingTrainer):
        def compute_loss(self, model, inputs, *more, **others):
            taken.append("logged")
            return super().compute_loss(model, inputs, *more, **others)

    assert make(Logged).train().global_step == taken.count("logged") == 20

    class Twice(SelectingTrainer):
        def compute_loss(self, model, inputs, *more, **others):
            return super().compute_loss(model, inputs) + super().compute_loss(model, inputs)

    with pytest.raises(StateError, match="second time for one batch"):
        make(Twice).train()
    with pytest.raises(DataError, match="language_model_losses: The batch has no labels"):
        make(
            of={
                "train_dataset": [{"x": row["x"]} for row in rows()],
                "compute_loss_func": language_model_losses,
            }
        ).train()
    with pytest.raises(DataError, match="The data collator returned a list; it must return a dict"):
        make(of={"data_collator": lambda samples: samples}).train()


def test_the_users_own_exception_is_raised(make):
    def broken(outputs, labels):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        make(of={"compute_loss_func": broken}, save_strategy="epoch").train()


# ---- the length of a run


def test_fewer_rows_are_tried_where_a_batch_does_not_fit(make):
    calls = []

    def too_large(outputs, labels):
        calls.append(len(labels))
        if len(labels) > 4 and len(calls) == 3:
            raise RuntimeError("CUDA out of memory.")
        return per_sample(outputs, labels)

    trainer = make(
        policy=InfoBatch(),
        of={"compute_loss_func": too_large},
        per_device_train_batch_size=8,
        auto_find_batch_size=True,
    )
    trainer.train()
    assert (
        trainer._train_batch_size < 8
        and calls[:3] == [8, 8, 8]
        and max(calls[3:]) == trainer._train_batch_size
    )
    history = trainer.driven.session.history
    assert [entry["observed"] for entry in history] == [N, N] and history[0]["steps"] == -(
        -N // trainer._train_batch_size
    )
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_a_run_is_continued_with_more_epochs(make):
    first = make(policy=InfoBatch(0.6, 1.0), epochs=2, save_strategy="epoch")
    first.train()
    longer = make(policy=InfoBatch(0.6, 1.0), epochs=5, save_strategy="epoch")
    longer.train(resume_from_checkpoint=True)
    history = longer.driven.session.history
    assert history[:2] == first.driven.session.history and [entry["epoch"] for entry in history] == list(
        range(5)
    )
    assert longer.state.global_step == sum(entry["steps"] for entry in history)
    assert longer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)
