"""A torch network of the user's own. Without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from raysel.cluster.code import load_function
from raysel.data.embedders.network import (
    TILE,
    NetworkEmbedder,
    NetworkName,
    Run,
    before_last,
    made,
    network_digest,
    runner,
)
from raysel.errors import ConfigError

_LIBRARIES = ("timm", "torchvision", "open_clip_torch", "transformers")  # that it may be made of


@dataclass(frozen=True)
class TorchNetwork(NetworkName):
    """Compute vectors with a torch network of your own: its output, or the input of its last linear layer.

    Parameters
    ----------
    spec : str
        Complete name, such as ``torch:net.py:factory``.
    argument : str
        ``file.py:factory`` or ``module:factory``, where ``factory()`` returns the network with its weights.
        The code of this file or module is run. With ``:penultimate`` appended, the vectors are the input of
        the last linear layer. The network receives numbers as they are stored, images as uint8 (n, 3, height,
        width), and texts as a list of str.

    Raises
    ------
    ConfigError
        If there is no such factory, or it returns something else than a torch.nn.Module.
    """

    def __post_init__(self) -> None:
        place, name, layer = self._parts()
        if not place or not name or layer not in ("", "penultimate"):
            raise ConfigError(
                f"embedder: '{self.spec}' does not name a network; write torch:module:factory or torch:file.py:factory. "
                "Append :penultimate if the vectors should be the input of the network's last linear layer."
            )

    def _parts(self) -> tuple[str, str, str]:
        """Return file or module, name of the factory, and layer."""
        file, is_file, rest = self.argument.partition(".py:")
        place = f"{file}.py"
        if not is_file:
            place, _, rest = self.argument.partition(":")
        name, _, layer = rest.partition(":")
        return place, name, layer

    def open(self) -> NetworkEmbedder:
        """Return the embedder. Runs the code of the file or module."""
        place, name, layer = self._parts()
        factory = load_function(f"{place}:{name}", f"embedder: '{self.spec}'")
        model = _make(factory, self.spec)
        digest = network_digest(model, None, self.spec, _LIBRARIES)
        if layer:
            before_last(model, self.spec)
        return NetworkEmbedder(self.spec, "stored", TILE, digest, partial(_load, factory, layer, self.spec))

    @staticmethod
    def absolute(argument: str, place: Callable[[str], str]) -> str:
        """Return the argument with ``place(path)`` for its file."""
        file, colon, rest = argument.partition(".py:")
        return f"{place(file)}.py:{rest}" if colon else argument


def _make(factory: Callable[[], Any], spec: str) -> Any:
    import torch

    model = made(spec, factory)
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"embedder: The factory of '{spec}' returned a {type(model).__name__}, not a torch.nn.Module."
        )
    return model


def _load(factory: Callable[[], Any], layer: str, spec: str, device: str) -> Run:
    model = _make(factory, spec)
    return runner(model, device, before_last(model, spec) if layer else None)
