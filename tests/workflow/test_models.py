"""workflows/models.py: shapes, dtypes, seeds, and that the models learn."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny and the machine may be busy: threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(WORKFLOWS))
    return importlib.import_module("models")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("mlp", (1, 8, 8), 10),
        ("mlp", (64,), 3),
        ("small_cnn", (1, 28, 28), 10),
        ("small_cnn", (3, 32, 32), 7),
        ("small_cnn", (1, 29, 30), 2),
    ],
)
def test_logits_have_one_column_a_class(models, name, shape, classes):
    model = getattr(models, name)(shape, classes)
    for images in (torch.rand(5, *shape), torch.randint(0, 256, (5, *shape), dtype=torch.uint8)):
        logits = model(images)
        assert logits.shape == (5, classes) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "shape"), [("mlp", (1, 8, 8)), ("small_cnn", (1, 28, 28))])
def test_bytes_are_scaled_and_floats_are_not(models, name, shape):
    model = getattr(models, name)(shape, 10)
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    assert torch.equal(model(images), model(images.float() / 255))
    assert not torch.allclose(model(images), model(images.float()))
    assert torch.equal(model(images.double() / 255), model((images.double() / 255).float()))


@pytest.mark.parametrize(("name", "shape"), [("mlp", (1, 8, 8)), ("small_cnn", (1, 28, 28))])
def test_the_caller_seeds(models, name, shape):
    factory = getattr(models, name)

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for value in factory(shape, 10).parameters()])

    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, second = weights(), weights()
        assert torch.initial_seed() == 5
        torch.manual_seed(5)
        assert torch.equal(first, weights())
        assert not torch.equal(first, second)


def test_every_parameter_gets_a_gradient(models):
    for factory, shape in ((models.mlp, (1, 8, 8)), (models.small_cnn, (1, 28, 28))):
        model = factory(shape, 10)
        losses = functional.cross_entropy(model(torch.rand(6, *shape)), torch.arange(6), reduction="none")
        assert losses.shape == (6,)
        losses.mean().backward()
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())


def test_mlp_learns_digits(models):
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.mlp((1, 8, 8), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[:1200]), labels[:1200]).backward()
        optimizer.step()
    right = (model(images[1200:]).argmax(1) == labels[1200:]).float().mean().item()
    assert right > 0.85


def test_small_cnn_learns_a_small_batch_by_heart(models):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(16) % 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.small_cnn((1, 28, 28), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).all()


@pytest.mark.parametrize("name", ["frozen", "fine_tuned"])
def test_a_sentence_classifier_trains_what_it_says_and_ignores_padding(monkeypatch, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(WORKFLOWS))
    minilm = importlib.import_module("minilm")
    monkeypatch.setattr(minilm, "FOLDER", tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)

    model = getattr(minilm, name)((8,), 3).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids, mask = torch.randint(0, 50, (4, 8)), torch.ones(4, 8, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    functional.cross_entropy(model(input_ids=ids, attention_mask=mask), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"head.weight", "head.bias"} <= changed
    assert any(key.startswith("encoder.") for key in changed) == (name == "fine_tuned")

    model.eval()
    shorter = model(input_ids=ids[:, :5], attention_mask=mask[:, :5])
    mask[:, 5:] = 0
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask), shorter)
    assert shorter.shape == (4, 3)
