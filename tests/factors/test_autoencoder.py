"""The sparse autoencoder against its equations, and on data whose factors are known."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from raysel.errors import ConfigError, DataError, RunError
from raysel.factors import Autoencoder, fit_autoencoder, rep_div
from raysel.factors import autoencoder as module


def handmade(mode: str, k: int, encoder: object) -> Autoencoder:
    weights = np.array(encoder, np.float32)
    units, d = weights.shape
    zeros = np.zeros(d, np.float32)
    return Autoencoder(mode, k, weights, np.zeros(units, np.float32), weights, zeros, zeros)


def planted(samples: int, d: int, factors: int, active: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(factors, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    which = np.argsort(rng.random((samples, factors)), axis=1)[:, :active]
    amounts = rng.uniform(0.5, 1.5, (samples, active))
    return directions, np.einsum("ns,nsd->nd", amounts, directions[which])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These products are small: on a busy machine more threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SMALL = {"units": 64, "k": 4, "epochs": 20, "batch_size": 64, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def fitted(one_thread) -> dict[str, Autoencoder]:
    _, x = planted(3000, 24, 32, 3)
    return {mode: fit_autoencoder(x, mode=mode, **SMALL) for mode in ("topk", "paper")}


@pytest.mark.parametrize("mode", ["topk", "paper"])
def test_planted_factors_are_found(fitted, mode):
    directions, x = planted(3000, 24, 32, 3)
    found = fitted[mode]
    decoder = found.decoder / np.linalg.norm(found.decoder, axis=1, keepdims=True)
    cosine = directions @ decoder.T
    if mode == "paper":  # by absolute value a unit serves both ways round: its sign is a matter of chance
        assert (cosine.max(axis=1) > 0.9).mean() < 0.8
        cosine = np.abs(cosine)
    assert (cosine.max(axis=1) > 0.9).mean() >= 0.9
    report = found.report(x)
    assert report["unexplained"] < 0.15 and report["dead_fraction"] < 0.2
    assert json.loads(json.dumps(report)) == report


def test_the_two_modes_differ_as_described():
    x = np.array([[-0.8, 0.5, 0.3, 0.1]])
    x /= np.linalg.norm(x)
    paper = handmade("paper", 2, np.eye(4)).encode(x)
    assert paper.indices.tolist() == [[0, 1]], "the largest by absolute value"
    np.testing.assert_allclose(paper.values, x[:, :2], rtol=1e-6)
    assert paper.active.tolist() == [[-1, 1]], "a negative survivor is kept, but is not active"
    topk = handmade("topk", 2, np.eye(4)).encode(x)
    assert topk.indices.tolist() == topk.active.tolist() == [[1, 2]]
    np.testing.assert_allclose(topk.values, x[:, 1:3], rtol=1e-6)
    below = handmade("topk", 2, np.eye(4)).encode([[-0.8, -0.5, -0.3, -0.1]])
    assert below.values.tolist() == [[0, 0]] and below.active.tolist() == [[-1, -1]]


def test_the_modes_train_as_they_are_called(fitted):
    topk, paper = fitted["topk"], fitted["paper"]
    np.testing.assert_allclose(np.linalg.norm(topk.decoder, axis=1), 1, rtol=1e-5)
    assert not np.allclose(topk.encoder, topk.decoder, atol=0.05)
    np.testing.assert_allclose(topk.encoder_bias, -topk.encoder @ topk.decoder_bias, atol=1e-6)
    assert np.array_equal(paper.encoder, paper.decoder)
    assert not np.allclose(np.linalg.norm(paper.decoder, axis=1), 1, atol=0.01)


@pytest.mark.parametrize("mode", ["topk", "paper"])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_codes_and_report_by_the_equations(mode, k):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 6))
    encoder, bias = rng.normal(size=(20, 6)), rng.normal(size=20)
    sae = Autoencoder(
        mode,
        k,
        np.tile(encoder, (2, 1)).astype(np.float32),  # every pre-activation twice: ties
        np.tile(bias, 2).astype(np.float32),
        rng.normal(size=(40, 6)).astype(np.float32),
        rng.normal(size=6).astype(np.float32),
        np.full(6, 0.1, np.float32),
    )
    codes = sae.encode(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True) - 0.1
    pre = unit @ sae.encoder.T.astype(float) + sae.encoder_bias
    size = np.abs(pre) if mode == "paper" else pre
    size[:, 20:] = size[:, :20]
    z = np.zeros_like(pre)
    for i in range(len(x)):
        kept = sorted(sorted(range(40), key=lambda j, i=i: (-size[i, j], j))[:k])
        assert codes.indices[i].tolist() == kept
        z[i, kept] = pre[i, kept] if mode == "paper" else np.maximum(pre[i, kept], 0)
        np.testing.assert_allclose(codes.values[i], z[i, kept], atol=1e-5)
    assert codes.indices.dtype == np.int32 and codes.values.dtype == np.float32

    report = sae.report(x)
    error = ((unit - (z @ sae.decoder + sae.decoder_bias)) ** 2).sum()
    assert report["unexplained"] == pytest.approx(error / ((unit - unit.mean(0)) ** 2).sum(), rel=1e-4)
    count = (z > 0).sum(0)
    assert report["active"] == pytest.approx(count.sum() / 300)
    assert report["dead_units"] == (count == 0).sum() and report["units"] == 40
    for low, high, units in report["counts"]:
        assert units == ((count >= low) & (count <= high)).sum()
    assert sum(units for _, _, units in report["counts"]) == 40


def test_a_code_does_not_depend_on_the_rows_beside_it(fitted):
    _, x = planted(1500, 24, 32, 3)
    for sae in fitted.values():
        whole = sae.encode(x)
        for cuts in ([1], [255, 257, 900], [500, 1000]):
            parts = [sae.encode(part) for part in np.split(x, cuts)]
            assert np.concatenate([p.indices for p in parts]).tobytes() == whole.indices.tobytes()
            assert np.concatenate([p.values for p in parts]).tobytes() == whole.values.tobytes()


@pytest.mark.parametrize("mode", ["topk", "paper"])
@pytest.mark.parametrize("k", [1, 7, 48])
def test_rounding_has_no_say_in_which_units_stay(mode, k, monkeypatch):
    """Other processors, other tiles: pre-activations moved by half of what rounding may move them. Many are near ties."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2000, 24)).astype(np.float32)
    encoder = np.repeat(rng.normal(size=(24, 24)), 2, axis=0)
    encoder += rng.choice([0, 1e-7, 1e-6, 1e-5], size=(48, 1)) * rng.normal(size=encoder.shape)
    mean, encoder = np.full(24, 0.05, np.float32), encoder.astype(np.float32)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) - mean
    bias = rng.normal(size=48) * rng.choice([0, 0.3], 48)
    bias[:12] = -(unit[:12] * encoder[:12]).sum(1)  # each all but 0 on a row: active or not
    sae = Autoencoder(mode, k, encoder, bias.astype(np.float32), encoder, mean, mean)
    exact = (
        np.array([[(row * w).sum() for w in sae.encoder.astype(float)] for row in unit]) + sae.encoder_bias
    )
    size = np.abs(exact) if mode == "paper" else exact
    kept = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :k], axis=1)
    active = np.where(np.take_along_axis(exact, kept, 1) > 0, kept, -1)

    bare, bound = Autoencoder._pre, sae._error(0.5, float(np.linalg.norm(sae.encoder, axis=1).max()))

    def moved(self, rows, device):
        pre = bare(self, rows, device)
        return pre + bound * (torch.rand(pre.shape, generator=torch.Generator().manual_seed(9)) - 0.5)

    for pre in (bare, moved):
        monkeypatch.setattr(Autoencoder, "_pre", pre)
        codes = sae.encode(x)
        # Two sums of float64 that are closer than this are a tie that nobody can break.
        clear = np.diff(np.sort(-size, axis=1))[:, k - 1] > 1e-14 if k < 48 else np.ones(len(x), bool)
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(codes.indices[clear], kept[clear])
        np.testing.assert_array_equal(codes.active[clear], active[clear])


def test_very_long_vectors_are_their_directions(fitted):
    """The squares of 2^70 are beyond float32, 2^120 nearly is."""
    _, x = planted(1500, 24, 32, 3)
    scale = np.array([1.0, 2.0**70, 2.0**120], np.float32)[np.arange(len(x)) % 3, None]
    for sae in fitted.values():
        one, other = sae.encode(x), sae.encode((x * scale).astype(np.float32))
        assert one.indices.tobytes() == other.indices.tobytes()
        assert one.values.tobytes() == other.values.tobytes()


def test_dead_units_are_woken_as_the_losses_say():
    draws = torch.Generator().manual_seed(0)
    x, error, pre, decoder, bias = (
        torch.randn(*shape, generator=draws) for shape in ((7, 6), (7, 6), (7, 4), (4, 6), (6,))
    )
    alone = 0.0
    for j in range(4):  # each dead unit, alone, the sample with its largest pre-activation
        i = int(pre[:, j].argmax())
        alone += float(((x[i] - (pre[i, j] * decoder[j] + bias)) ** 2).sum()) / 4
    assert float(module._revival(x, error, pre, decoder, bias)) == pytest.approx(alone, rel=1e-5)
    left = 0.0
    for i in range(7):  # D / 2 = 3 of the four dead units reconstruct the error
        best = pre[i].topk(3).indices
        left += float(((error[i] - pre[i, best].clamp(min=0) @ decoder[best]) ** 2).sum()) / 7
    assert float(module._residual(x, error, pre, decoder, bias)) == pytest.approx(left, rel=1e-5)
    error.requires_grad_()
    pre.requires_grad_()
    module._residual(x, error, pre, decoder, bias).backward()
    assert error.grad is None and pre.grad is not None, "the error of the others is fixed"


@pytest.mark.parametrize("mode", ["topk", "paper"])
def test_waking_takes_part_in_the_training(mode, monkeypatch):
    _, x = planted(2000, 24, 32, 3)
    name = "_revival" if mode == "paper" else "_residual"
    loss, seen, dead = getattr(module, name), [], []

    def watched(*arguments):
        value = loss(*arguments)
        seen[-1].append(float(value.detach()))
        return value

    monkeypatch.setattr(module, name, watched)
    for weight in (1 / 32, 0.0):
        seen.append([])
        monkeypatch.setattr(module, "_AUXILIARY", weight)
        settings = {"units": 256, "k": 2, "epochs": 12, "batch_size": 64, "learning_rate": 5e-3}
        dead.append(fit_autoencoder(x, mode=mode, **settings).report(x)["dead_units"])
    if mode == "paper":
        assert dead[0] < dead[1]
    else:  # AuxK lowers its loss, but on so few dimensions that does not make a unit fire
        with_it, without = (np.mean(values[-20:]) for values in seen)
        assert with_it < 0.9 * without


def test_the_same_call_gives_the_same_bits_and_leaves_the_global_generators_alone():
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    _, x = planted(2000, 24, 32, 3)
    short = {**SMALL, "epochs": 2}
    before = state()
    one, same = fit_autoencoder(x, **short), fit_autoencoder(x.astype(np.float32), **short)
    other = fit_autoencoder(x, **short, seed=1)
    assert state() == before
    assert one.encoder.tobytes() == same.encoder.tobytes() and one.decoder.tobytes() == same.decoder.tobytes()
    assert one.encoder.tobytes() != other.encoder.tobytes()


def test_defaults_are_those_of_the_method():
    _, x = planted(400, 8, 16, 2)
    sae = fit_autoencoder(x, epochs=1)
    assert (sae.units, sae.k, sae.mode) == (64, 32, "topk")
    np.testing.assert_allclose(sae.mean, (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0), atol=1e-6)


@pytest.mark.parametrize("mode", ["topk", "paper"])
def test_saved_and_loaded(fitted, mode, tmp_path):
    sae, path = fitted[mode], tmp_path / "sae.safetensors"
    sae.save(path)
    again = Autoencoder.load(path)
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "mean"):
        assert getattr(again, name).tobytes() == getattr(sae, name).tobytes()
    assert (again.mode, again.k, again.training) == (sae.mode, sae.k, sae.training)
    assert [p.name for p in tmp_path.iterdir()] == ["sae.safetensors"]
    before = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == before


def test_files_that_cannot_be_read(fitted, tmp_path):
    path = tmp_path / "sae.safetensors"
    fitted["topk"].save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a saved autoencoder"):
            Autoencoder.load(path)
    path.write_bytes(whole.replace(b"raysel-autoencoder/1", b"raysel-autoencoder/9"))
    with pytest.raises(DataError, match="not saved by this version of raysel"):
        Autoencoder.load(path)
    with pytest.raises(DataError, match=r"none\.safetensors is not a saved autoencoder"):
        Autoencoder.load(tmp_path / "none.safetensors")
    with pytest.raises(RunError, match="cannot be written"):
        fitted["topk"].save(tmp_path / "missing" / "sae.safetensors")


def test_vectors_that_cannot_be_learnt_from(fitted):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    for same in (np.full((50, 4), 0.3), np.outer(rng.uniform(1, 2, 50), [1, 2, 3, 4]), np.zeros((50, 4))):
        with pytest.raises(DataError, match="All 50 vectors have the same direction"):
            fit_autoencoder(same)
    bad = x.copy()
    bad[17, 2] = np.nan
    with pytest.raises(DataError, match="row 17"):
        fit_autoencoder(bad)
    with pytest.raises(DataError, match="row 17"):
        fitted["topk"].encode(np.vstack([np.ones((17, 24)), np.full((1, 24), np.inf)]))
    with pytest.raises(DataError, match="has 4 dimensions, but 24 were expected"):
        fitted["topk"].encode(x)
    some = np.vstack([x, np.zeros((1, 4))])  # a row of zeros among others has no direction, and is no error
    codes = fit_autoencoder(some, k=4, epochs=1).encode(some)
    assert np.isfinite(codes.values).all()


def test_all_units_dead_says_what_to_change():
    dead = handmade("topk", 2, -np.eye(4)).encode(np.ones((9, 4)))
    with pytest.raises(DataError, match=r"No unit is active.*train the autoencoder for more epochs"):
        rep_div(dead.active)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"k": 100, "units": 64}, "k = 100 is more than the autoencoder's 64 units"),
        ({"k": 33}, "k = 33 is more than the autoencoder's 32 units"),
        ({"k": 0}, "k must be a whole number"),
        ({"units": 2.5}, "units must be a whole number"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": True}, "batch_size must be"),
        ({"mode": "relu"}, "mode = 'relu' is unknown"),
        ({"learning_rate": 0}, "learning_rate = 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ConfigError, match=message):
        fit_autoencoder(np.random.default_rng(0).normal(size=(50, 4)), **setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ConfigError, match="sees no GPU"):
        fit_autoencoder(np.eye(4), device="cuda", k=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_answers(fitted):
    _, x = planted(3000, 24, 32, 3)
    for mode, sae in fitted.items():
        here, there = sae.encode(x), sae.encode(x, device="cuda")
        assert (here.indices == there.indices).mean() > 0.999
        again = fit_autoencoder(x, mode=mode, device="cuda", **SMALL)
        unexplained = again.report(x, device="cuda")["unexplained"]
        assert unexplained == pytest.approx(sae.report(x)["unexplained"], abs=0.05)


def test_a_damaged_file_is_refused_with_its_name(tmp_path):
    made = fit_autoencoder(np.random.default_rng(0).normal(size=(20, 3)), units=4, k=2, epochs=1)
    path = tmp_path / "a.safetensors"
    made.save(path)
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        header = min(600, len(damaged))  # of JSON; a changed weight is another weight
        for _ in range(rng.choice((1, 1, 4, 64)) if header else 0):
            damaged[rng.randrange(header)] = rng.choice((rng.randrange(256), *b'0"{}[],:'))
        path.write_bytes(damaged)
        try:
            type(made).load(path)
        except DataError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
