"""Features of images before the classifier, by a network of the package torchvision. Without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from raysel.data.embedders.network import (
    TILE,
    NetworkEmbedder,
    NetworkName,
    Run,
    before_last,
    made,
    need,
    network_digest,
    prepared,
    runner,
)


@dataclass(frozen=True)
class Torchvision(NetworkName):
    """Compute features of images with a torchvision network and its default weights: the input of its classifier.

    Parameters
    ----------
    spec : str
        Complete name, such as ``torchvision:resnet18``.
    argument : str
        Name of a network.

    Raises
    ------
    ConfigError
        If the package is not installed or the weights cannot be loaded.
    """

    def open(self) -> NetworkEmbedder:
        """Return the embedder; raise ConfigError if the package or the weights are not there."""
        models = need("torchvision.models", "torchvision", "vision", self.spec)
        weights = made(self.spec, lambda: models.get_model_weights(self.argument).DEFAULT)
        model = made(self.spec, lambda: models.get_model(self.argument, weights=weights))
        prepare = partial(prepared, weights.transforms())
        digest = network_digest(model, prepare, self.spec, ["torchvision"])
        return NetworkEmbedder(self.spec, "images", TILE, digest, partial(_load, self.argument), prepare)


def _load(name: str, device: str) -> Run:
    import torchvision

    model = torchvision.models.get_model(name, weights="DEFAULT")
    return runner(model, device, before_last(model, name))
