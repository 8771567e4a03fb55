"""Image vectors of a CLIP network of the package open_clip. Without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from raysel.data.embedders.network import (
    TILE,
    NetworkEmbedder,
    NetworkName,
    Run,
    made,
    need,
    network_digest,
    prepared,
    runner,
)
from raysel.errors import ConfigError

_LOCAL = "local-dir:"
_WITH_WEIGHTS = ("hf-hub:", _LOCAL)


@dataclass(frozen=True)
class OpenClip(NetworkName):
    """Compute vectors of images with a CLIP network of open_clip.

    Parameters
    ----------
    spec : str
        Complete name, such as ``open_clip:ViT-B-32/laion2b_s34b_b79k``.
    argument : str
        ``NAME/PRETRAINED``, where PRETRAINED is a tag of open_clip or a file with weights. Alternatively
        ``hf-hub:NAME`` or ``local-dir:PATH``.

    Raises
    ------
    ConfigError
        If the package is not installed, no weights are named, or they cannot be loaded.
    """

    def open(self) -> NetworkEmbedder:
        """Return the embedder; raise ConfigError if the package or the weights are not there."""
        need("open_clip", "open_clip_torch", "vision", self.spec)
        # Every worker would draw its own weights.
        if not _parts(self.argument)[1] and not self.argument.startswith(_WITH_WEIGHTS):
            raise ConfigError(
                f"embedder: '{self.spec}' does not name its weights; write open_clip:NAME/PRETRAINED, for example "
                "open_clip:ViT-B-32/laion2b_s34b_b79k, or a file of weights in the place of PRETRAINED."
            )
        model, prepare = made(self.spec, lambda: _create(self.argument))
        digest = network_digest(model, prepare, self.spec, ["open_clip_torch", "timm", "torchvision"])
        load = partial(_load, self.argument)
        return NetworkEmbedder(self.spec, "images", TILE, digest, load, partial(prepared, prepare))

    @staticmethod
    def absolute(argument: str, place: Callable[[str], str]) -> str:
        """Return the argument with ``place(path)`` for a folder, or for a file of weights that begins with a dot."""
        if argument.startswith(_LOCAL):
            return _LOCAL + place(argument.removeprefix(_LOCAL))
        name, pretrained = _parts(argument)
        return f"{name}/{place(pretrained)}" if pretrained.startswith((".", "~")) else argument


def _parts(argument: str) -> tuple[str, str]:
    if argument.startswith(_WITH_WEIGHTS):
        return argument, ""
    architecture, _, pretrained = argument.partition("/")
    return architecture, pretrained


def _create(argument: str) -> tuple[Any, Any]:
    import open_clip as library

    architecture, pretrained = _parts(argument)
    model, _, prepare = library.create_model_and_transforms(architecture, pretrained=pretrained or None)
    return model, prepare


def _load(argument: str, device: str) -> Run:
    model, _ = _create(argument)
    return runner(model, device, model.encode_image)
