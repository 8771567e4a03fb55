"""What embedders that are neural networks share: loaded once per worker, from local weights. Without Ray.

A network's last bits depend on which rows it receives together, so these embedders use tiles of fixed ids.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from raysel.core.fingerprint import fingerprint, library_versions
from raysel.data.decode import Takes
from raysel.errors import ConfigError, DataError, RayselError, first

TILE = 64  # images, or rows of a network of the user's own

Run = Callable[[Any], np.ndarray]


@dataclass(frozen=True, eq=False)
class NetworkEmbedder:
    """A network that ``make(device)`` loads; calling the embedder itself loads it on the CPU."""

    name: str
    takes: Takes
    tile: int
    digest: str
    make: Callable[[str], Run]
    prepare: Callable[[Any], np.ndarray] | None = None

    def load(self, device: str) -> Run:
        """Return the loaded network, to be called with rows."""
        return made(self.name, lambda: self.make(device))

    def __call__(self, rows: Any) -> np.ndarray:
        """Return one vector per row."""
        return self.load("cpu")(rows)

    def __fingerprint__(self) -> Any:
        return self.digest


@dataclass(frozen=True)
class NetworkName:
    """The name of a network, checked; ``open`` finds its weights."""

    spec: str
    argument: str

    def __post_init__(self) -> None:
        if not self.argument:
            kind = self.spec.partition(":")[0]
            raise ConfigError(f"embedder: '{self.spec}' does not name a model; write {kind}:NAME.")

    def open(self) -> NetworkEmbedder:
        """Return the embedder; raise ConfigError if its package or its weights are not there."""
        raise NotImplementedError

    @staticmethod
    def absolute(argument: str, place: Callable[[str], str]) -> str:
        """Return the argument with ``place(path)`` for a relative path in it."""
        return argument


def need(module: str, package: str, extra: str, spec: str) -> ModuleType:
    """Return an optional module; raise ConfigError with the pip command if it is not installed."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that does not fit another one raises anything
        missing = (
            f"{package}, which is not installed"
            if isinstance(error, ImportError) and getattr(error, "name", None) == module
            else f"{package}, which cannot be imported ({error})"
        )
        raise ConfigError(
            f"embedder: '{spec}' needs {missing}. Install it with pip install 'raysel[{extra}]'."
        ) from error


def made(spec: str, build: Callable[[], Any]) -> Any:
    """Return ``build()``; raise ConfigError for whatever it raises."""
    try:
        return build()
    except RayselError:
        raise
    except Exception as error:
        raise ConfigError(
            f"embedder: '{spec}' cannot be loaded ({type(error).__name__}: {_line(error)})."
        ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no message"


def network_digest(model: Any, prepare: Any, spec: str, libraries: Sequence[str]) -> str:
    """Return a digest of a network's weights, code, the user's code that it reaches, and preprocessing."""
    remedy = "give the network a text attribute 'version' that changes with it"
    parts = [fingerprint(part, f"embedder '{spec}'", remedy) for part in (model, prepare)]
    return fingerprint((parts, library_versions("torch", *libraries)))


def prepared(transform: Callable[[Any], Any], image: Any) -> np.ndarray:
    """Return an image as the network's own preprocessing makes it."""
    return transform(image).numpy()


def before_last(model: Any, spec: str) -> Callable[[Any], Any]:
    """Return a call of ``model`` that returns the input of its last linear layer."""
    import torch

    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    if not linear:
        advice = (
            "leave out ':penultimate'" if spec.endswith(":penultimate") else "name a network that has one"
        )
        raise ConfigError(
            f"embedder: The vectors are the input of the last linear layer, but the network of '{spec}' has no linear layer; "
            f"{advice}."
        )
    seen: list[Any] = []
    linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def call(batch: Any) -> Any:
        seen.clear()
        model(batch)
        return seen.pop()

    return call


def runner(model: Any, device: str, call: Callable[[Any], Any] | None = None) -> Run:
    """Return what embeds rows with ``call``, by default the model, on the device."""
    import torch

    model = model.to(device).eval()
    call = call or model

    def run(rows: Any) -> np.ndarray:
        if isinstance(rows, list) and rows and isinstance(rows[0], np.ndarray):
            rows = _stack(rows)
        with torch.inference_mode():
            batch = torch.from_numpy(np.array(rows)).to(device) if isinstance(rows, np.ndarray) else rows
            vectors = call(batch).flatten(start_dim=1).float().cpu().numpy()
        return np.ascontiguousarray(vectors)

    return run


def _stack(images: list[np.ndarray]) -> np.ndarray:
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise DataError(
            f"The images are of different sizes ({first(['x'.join(map(str, size)) for size in sizes])}); a network of "
            "your own needs images of one size, so resize them first."
        )
    rows = np.stack(images)
    return rows.transpose(0, 3, 1, 2) if rows.dtype == np.uint8 else rows
