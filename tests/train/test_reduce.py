"""One number a sample from losses of any shape and precision, and the gradient that goes with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from raysel import DynamicSelection, FullData, Selection
from raysel.errors import DataError
from raysel.train.reduce import per_sample
from tests.train.common import Numbers

WEIGHTS = np.array([0.5, 1.0, 2.0, 1.5], np.float32)


def one_batch(n=4, weights=WEIGHTS):
    """A session in its first epoch, and the batch that holds every sample, in order."""
    chosen = Selection.of(np.arange(n), weight=weights, info={"pool_rows": n})
    session = DynamicSelection.local(FullData(), chosen, num_epochs=1).session()
    next(session.epochs())
    (batch,) = session.loader(Numbers(n), batch_size=n, shuffle=False)
    return session, batch


def noted(session):
    """The losses that the session has noted, NaN where none is."""
    session._send(session.current)
    slots, losses = session._keeper.staged(session._attempt, 0)
    found = np.full(session.run.samples, np.nan)
    found[slots] = losses
    return found


def uses():
    """(name, losses (4, ...), mask) as each use makes them, the losses a function of a leaf."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 0, 2, 1])
    logits = torch.randn(4, 3, generator=draw, requires_grad=True)
    yield "classification", logits, F.cross_entropy(logits, labels, reduction="none"), None
    pixels = torch.randn(4, 3, 5, 6, generator=draw, requires_grad=True)
    classes = torch.randint(0, 3, (4, 5, 6), generator=draw)
    classes[1, :, :4] = 255  # not labelled
    segmented = F.cross_entropy(pixels, classes, reduction="none", ignore_index=255)
    yield "segmentation", pixels, segmented, classes != 255
    tokens = torch.randn(4, 7, 11, generator=draw, requires_grad=True)
    words = torch.randint(0, 11, (4, 7), generator=draw)
    words[0, :5], words[2, 6:] = -100, -100  # an instruction's prompt, a short text's padding
    text = F.cross_entropy(tokens.transpose(1, 2), words, reduction="none", ignore_index=-100)
    yield "instruction tuning", tokens, text, words != -100
    image = torch.randn(4, 3, 8, 8, generator=draw, requires_grad=True)
    yield "diffusion", image, F.mse_loss(image, torch.zeros_like(image), reduction="none"), None


@pytest.mark.parametrize("use", list(uses()), ids=lambda use: use[0])
def test_every_use_gets_the_weighted_mean_of_its_samples(use):
    _, leaf, losses, mask = use
    session, batch = one_batch()
    scalar = session.loss(batch, losses, mask)
    (gradient,) = torch.autograd.grad(scalar, leaf, retain_graph=True)
    # By hand, sample by sample.
    means = [losses[i][... if mask is None else mask[i]].mean() for i in range(4)]
    expected = sum(w * m for w, m in zip(WEIGHTS.tolist(), means, strict=True)) / 4
    (wanted,) = torch.autograd.grad(expected, leaf, retain_graph=True)
    assert scalar.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, wanted)
    np.testing.assert_allclose(noted(session), [mean.item() for mean in means], rtol=1e-5)


def test_a_mask_of_numbers_weighs_the_elements():
    losses = torch.arange(8.0).reshape(4, 2)
    values, counts = per_sample(losses, 4, torch.tensor([[1, 3], [0, 2], [1, 1], [0, 0]]))
    assert values.tolist() == [0.75, 3.0, 4.5, 0.0] and counts.tolist() == [True, True, True, False]


def test_a_sample_in_which_nothing_counts_moves_nothing_and_is_not_noted():
    session, batch = one_batch()
    losses = torch.ones(4, 3)
    losses[2] = torch.nan  # what stands under the mask does not matter
    losses.requires_grad_()
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[2] = False
    scalar = session.loss(batch, losses, mask)
    scalar.backward()
    assert scalar.item() == pytest.approx(3.0 / 4)  # 0.5 + 1 + 1.5 over the step's four rows
    assert losses.grad[2].tolist() == [0, 0, 0] and torch.isfinite(losses.grad).all()
    assert np.isnan(noted(session)).tolist() == [False, False, True, False]


def test_half_precision_is_averaged_in_single_and_the_gradient_keeps_its_type():
    for dtype in (torch.float16, torch.bfloat16):
        session, batch = one_batch()
        half = torch.finfo(dtype).eps / 2  # what the type itself cannot add to 1
        losses = torch.tensor([[1.0, 1.0 + 2 * half]] * 4, dtype=dtype, requires_grad=True)
        scalar = session.loss(batch, losses)
        assert scalar.dtype == torch.float32 and scalar.item() == pytest.approx((1 + half) * 5 / 4, rel=1e-6)
        scalar.backward()
        assert losses.grad.dtype == dtype
        assert torch.equal(losses.grad[:, 0], torch.tensor(WEIGHTS / 8).to(dtype))
        assert noted(session).tolist() == [1 + half] * 4
    session, batch = one_batch()
    assert session.loss(batch, torch.ones(4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_a_grad_scaler_give_the_plain_gradient(dtype):
    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(4, 8, generator=draw), torch.tensor([0, 1, 2, 0])
    grads = []
    for mixed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", enabled=mixed, init_scale=2.0**12)
        session, batch = one_batch()
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            loss = session.loss(batch, F.cross_entropy(model(inputs), labels, reduction="none"))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads.append(model.weight.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0.05, atol=2e-3)


class Watch(TorchDispatchMode):
    """The operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_step_waits_for_no_device_and_changes_nothing_in_place():
    """No GPU here: the operators that would wait for one (a number or a shape from the data) must not run."""
    for slots in ([0, 1, 2, 3], [0, 1, 2, -1]):
        for mask in (None, torch.ones(4, 3, dtype=torch.bool)):
            session, batch = one_batch()
            step = replace(batch, slots=np.array(slots))
            losses = torch.ones(4, 3, requires_grad=True)
            with Watch() as watch:
                session.loss(step, losses, mask)
            names = {name.split(".")[1] for name in watch.ran}
            assert names and not names & {
                "_local_scalar_dense", "nonzero", "index", "masked_select", "equal", "unique", "item",
            }  # fmt: skip
            assert not {name for name in names if name.endswith("_")}


def test_what_is_no_loss_per_sample_is_said():
    session, batch = one_batch()
    for wrong in (torch.tensor(1.0), torch.ones(3), torch.ones(3, 4), 1.0, torch.ones(4).mean()):
        with pytest.raises(DataError, match='reduction="none"'):
            session.loss(batch, wrong)
    with pytest.raises(DataError, match="floating-point"):
        session.loss(batch, torch.ones(4, dtype=torch.int64))
    with pytest.raises(DataError, match="no elements"):
        session.loss(batch, torch.ones(4, 0))
    for mask in (torch.ones(4), torch.ones(4, 3), [1, 1]):
        with pytest.raises(DataError, match="mask must have the shape"):
            session.loss(batch, torch.ones(4, 2), mask)


@pytest.mark.parametrize("rows", [48, 41, 33])
def test_gradients_accumulated_over_batches_are_those_of_the_large_batch(rows):
    """The idiom of ``Session.loss``: 4 batches of 4 rows a step, the last group and its last batch shorter."""
    inputs = torch.randn(rows, 5, generator=torch.Generator().manual_seed(2))
    weights = np.linspace(0.5, 2, rows).astype(np.float32)

    def train(batch_size, together, **accumulate):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        chosen = Selection.of(np.arange(rows), weight=weights, info={"pool_rows": rows})
        session = DynamicSelection.local(FullData(), chosen, num_epochs=1).session()
        next(session.epochs())
        gradients, share = [], 0.0
        data = torch.utils.data.TensorDataset(inputs)
        loader = session.loader(data, batch_size=batch_size, **accumulate)
        for taken, batch in enumerate(loader, 1):
            losses = model(batch.data[0]).square()  # (B, 1)
            (session.loss(batch, losses) * batch.share).backward()
            share += batch.share
            if taken % together == 0 or taken == len(loader):
                for parameter in model.parameters():
                    parameter.grad /= share
                gradients.append(model.weight.grad.clone())
                optimizer.step()
                optimizer.zero_grad()
                share = 0.0
        return gradients

    small, large = train(4, together=4), train(16, together=1)
    assert len(small) == len(large) == -(-rows // 16)
    for one, other, third in zip(small, large, train(4, together=4, accumulate=4), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(third, other)


def test_samples_without_an_element_do_not_count():
    values, counts = per_sample(torch.zeros(2, 0, requires_grad=True), 2, torch.zeros(2, 0, dtype=torch.bool))
    assert values.tolist() == [0.0, 0.0] and counts.tolist() == [False, False]
    with pytest.raises(DataError, match="no elements"):
        per_sample(torch.zeros(2, 0), 2)
