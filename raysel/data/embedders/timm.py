"""Pooled features of images, by a pretrained network of the package timm. Without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

_LOCAL = "local-dir:"


@dataclass(frozen=True)
class Timm(NetworkName):
    """Compute the pooled features of images with a pretrained network of timm.

    Parameters
    ----------
    spec : str
        Complete name, such as ``timm:resnet18``.
    argument : str
        Name of a network, or ``local-dir:PATH`` for a network on disk.

    Raises
    ------
    ConfigError
        If the package is not installed or the weights cannot be loaded.
    """

    def open(self) -> NetworkEmbedder:
        """Return the embedder; raise ConfigError if the package or the weights are not there."""
        library = need("timm", "timm", "vision", self.spec)
        model = made(self.spec, lambda: library.create_model(self.argument, pretrained=True, num_classes=0))
        config = library.data.resolve_model_data_config(model)
        prepare = partial(prepared, library.data.create_transform(**config, is_training=False))
        digest = network_digest(model, prepare, self.spec, ["timm", "torchvision"])
        return NetworkEmbedder(self.spec, "images", TILE, digest, partial(_load, self.argument), prepare)

    @staticmethod
    def absolute(argument: str, place: Callable[[str], str]) -> str:
        """Return the argument with ``place(path)`` for the path of a network on disk."""
        return _LOCAL + place(argument.removeprefix(_LOCAL)) if argument.startswith(_LOCAL) else argument


def _load(name: str, device: str) -> Run:
    import timm as library

    return runner(library.create_model(name, pretrained=True, num_classes=0), device)
