"""The image libraries' networks, with random weights put where each library keeps its own: nothing is downloaded."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import raysel
from raysel.cluster.blocks import gather
from raysel.data.row_index import ID
from raysel.data.vectors import EMBEDDING, to_numpy
from raysel.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images in four modes and three sizes."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "L", "RGBA", "P"] * 3):
        size = [(40, 30), (64, 64), (33, 90)][i % 3]
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
        image.save(place / f"{i:02}.png")
    return place


def opened(folder):
    return [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in sorted(folder.glob("*.png"))]


def check(spec, folder, directory, by_hand):
    """What Ray's workers make of a folder is what the library gives when called by hand."""
    made = raysel.embed(raysel.read(folder), spec, column="image", directory=directory)
    got = gather(made, [ID, EMBEDDING], "vectors").sort_by(ID)
    with torch.inference_mode():
        want = by_hand(opened(folder)).numpy()
    assert want.std() > 0
    np.testing.assert_allclose(to_numpy(got[EMBEDDING], EMBEDDING), want, rtol=1e-3, atol=1e-4)


def test_timm_from_a_folder(cluster, folder, tmp_path):
    timm = pytest.importorskip("timm", reason="needs the extra raysel[vision]")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    save_for_hf(timm.create_model("resnet10t", num_classes=7), tmp_path / "net", safe_serialization=True)
    spec = f"timm:local-dir:{tmp_path / 'net'}"
    model = timm.create_model(spec.removeprefix("timm:"), pretrained=True, num_classes=0).eval()
    look = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    check(spec, folder, tmp_path / "v", lambda images: model(torch.stack([look(i) for i in images])))


def test_torchvision_stops_before_the_classifier(folder, tmp_path, monkeypatch):
    """Its weights lie in TORCH_HOME, which a cluster started later would inherit: the embedder is called in this process."""
    models = pytest.importorskip("torchvision.models", reason="needs the extra raysel[vision]")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(weights=None).eval()
    weights = models.get_model_weights("mobilenet_v3_small").DEFAULT
    place = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(model.state_dict(), place)
    embedder = raysel.fit_embedder("torchvision:mobilenet_v3_small")
    rows = [embedder.prepare(image) for image in opened(folder)]
    with torch.inference_mode():
        inputs = torch.stack([weights.transforms()(image) for image in opened(folder)])
        want = model.classifier[:-1](model.avgpool(model.features(inputs)).flatten(1)).numpy()
    np.testing.assert_allclose(embedder(rows), want, rtol=1e-3, atol=1e-4)
    assert embedder.digest == raysel.fit_embedder("torchvision:mobilenet_v3_small").digest
    place.unlink()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    with pytest.raises(ConfigError, match="'torchvision:mobilenet_v3_small' cannot be loaded"):
        raysel.fit_embedder("torchvision:mobilenet_v3_small")


def _no_network(*_, **__):
    raise OSError("does not name a network")


def test_open_clip_from_a_file(cluster, folder, tmp_path):
    clip = pytest.importorskip("open_clip", reason="needs the extra raysel[vision]")
    torch.manual_seed(0)
    model, _, look = clip.create_model_and_transforms("ViT-S-32")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    model.eval()
    check(
        f"open_clip:ViT-S-32/{tmp_path / 'clip.pt'}",
        folder,
        tmp_path / "v",
        lambda images: model.encode_image(torch.stack([look(i) for i in images])),
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("open_clip:ViT-S-32", "does not name its weights"),
        ("open_clip:ViT-S-32/no-such-tag", "cannot be loaded"),
        ("open_clip:no-such-network/openai", "cannot be loaded"),
        ("timm:no-such-network", "cannot be loaded"),
        ("timm:local-dir:/no/such/folder", "cannot be loaded"),
        ("torchvision:no-such-network", "cannot be loaded"),
    ],
)
def test_networks_that_are_not_there(spec, sentence):
    for module in ("timm", "open_clip", "torchvision"):
        pytest.importorskip(module, reason="needs the extra raysel[vision]")
    with pytest.raises(ConfigError, match=sentence):
        raysel.fit_embedder(spec)
